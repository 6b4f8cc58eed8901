"""The learned weights a_lk of a rule as a matrix, beside what perfect knowledge of the true groups would give.

    python analysis/weights.py fig1c.h5 -o figures

writes weights-loss.png and .pdf (weights-RULE-ITERATION when an iteration is asked for) and prints one line: the weight
that a normal agent gives to Byzantine neighbours and to normal neighbours of other groups.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from results import BYZANTINE_COLOUR, Result, ResultError, command, read, save, styles

LARGEST = 3000
"""Agents beyond which a matrix has nothing left to see."""

NO_EDGE, NO_WEIGHT, BYZANTINE_ROW = "#ffffff", "#dedede", "#fbe4e4"


@dataclass(frozen=True)
class Learned:
    """Weights of a rule after an iteration."""

    iteration: int
    weight: np.ndarray
    """(E,), NaN into a Byzantine agent"""


def learned(result: Result, rule: str, asked: str) -> Learned:
    """The weights after the iteration that is asked for, a number or `last`."""
    weight = result.dataset(rule, "weight", "; run it with record.weights above 0")
    recorded = result.file["weight_iteration"][()]
    try:
        place = len(recorded) - 1 if asked == "last" else recorded.tolist().index(int(asked))
    except ValueError:
        some = ", ".join(map(str, recorded[:3]))
        known = f"{some}, ... {recorded[-1]}" if len(recorded) > 4 else ", ".join(map(str, recorded))
        raise ResultError(f"{result.path}: no weights recorded at iteration {asked}; there are {known}") from None
    values = weight[place]
    if np.isnan(values[~result.byzantine[result.edge[:, 1]]]).all():
        raise ResultError(f"{result.path}: rule {rule!r} has no weights: it does not combine by a weighted mean")
    return Learned(int(recorded[place]), values)


def true_weights(result: Result) -> np.ndarray:
    """(E,) equal weights to the normal agents of k's own true group in N_k; NaN into a Byzantine agent."""
    source, target = result.edge.T
    useful = (result.group[source] == result.group[target]) & ~result.byzantine[source]
    useful_to = np.bincount(target, useful, result.agents)[target]
    return np.where(result.byzantine[target], np.nan, useful / np.maximum(useful_to, 1))


def mean_share(result: Result, weight: np.ndarray, chosen: np.ndarray) -> float:
    """Total weight on the chosen edges (E,) bool, mean over normal agents."""
    total = np.bincount(result.edge[:, 1], np.where(chosen, weight, 0), result.agents)
    return float(total[result.normal].mean())


def image(result: Result, weight: np.ndarray, order: np.ndarray, colours: Colormap) -> np.ndarray:
    """(n, n, 4) colours of a_lk: row k, column l, both in the given order of agents."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    source, target = place[result.edge.T]
    shades = colours(weight)
    shades[weight == 0] = _rgba(NO_WEIGHT)
    drawn = np.full((result.agents, result.agents, 4), _rgba(NO_EDGE))
    drawn[target, source] = shades
    drawn[result.byzantine[order]] = _rgba(BYZANTINE_ROW)
    return drawn


def draw_matrix(axes: Axes, result: Result, order: np.ndarray, drawn: np.ndarray, title: str) -> None:
    """The matrix with group boundaries, and Byzantine agents in red on the margins."""
    n = result.agents
    axes.imshow(drawn, interpolation="none", extent=(0, n, n, 0))
    axes.grid(False)
    axes.spines[:].set(visible=True, color="#808080")
    groups, first = np.unique(result.group[order], return_index=True)
    for start in first[1:]:
        axes.axhline(start, color="#404040", linewidth=0.7)
        axes.axvline(start, color="#404040", linewidth=0.7)
    attackers = np.flatnonzero(result.byzantine[order])
    mark = dict(color=BYZANTINE_COLOUR, linewidth=0, clip_on=False)
    thickness = 0.022 * n
    axes.bar(attackers, -thickness, width=1, align="edge", **mark)
    axes.barh(attackers, -thickness, height=1, align="edge", **mark)

    middle = (first + np.append(first[1:], n)) / 2
    labels = [f"group {group}" for group in groups] if len(groups) <= 12 else [""] * len(groups)
    axes.set_xticks(middle, labels)
    axes.set_yticks(middle, labels, rotation=90, va="center")
    axes.tick_params(length=0, pad=6)
    axes.set(xlim=(0, n), ylim=(n, 0), xlabel="source agent l")
    axes.set_title(title, pad=14)


def draw(result: Result, rule: str, found: Learned) -> Figure:
    """Learned weights on the left, the truth on the right, one scale of colours."""
    order = np.lexsort((np.arange(result.agents), result.byzantine, result.group))
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.08, 1, 256)))
    figure = Figure(figsize=(9, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    label = styles([rule])[rule].label
    learnt = f"(a) learned: {label}, iteration {found.iteration}"
    draw_matrix(left, result, order, image(result, found.weight, order, colours), learnt)
    draw_matrix(
        right, result, order, image(result, true_weights(result), order, colours), "(b) if the true groups were known"
    )
    left.set_ylabel("target agent k")
    figure.colorbar(ScalarMappable(cmap=colours), ax=[left, right], label="weight $a_{lk}$", shrink=0.8, aspect=30)
    patches = [
        Patch(facecolor=NO_WEIGHT, edgecolor="#a0a0a0", linewidth=0.5, label="edge with weight 0"),
        Patch(facecolor=NO_EDGE, edgecolor="#a0a0a0", linewidth=0.5, label="no edge"),
    ]
    if result.attackers:
        patches.append(Patch(color=BYZANTINE_COLOUR, label="Byzantine agent"))
        patches.append(
            Patch(facecolor=BYZANTINE_ROW, edgecolor="#a0a0a0", linewidth=0.5, label="Byzantine target: no weights")
        )
    figure.legend(handles=patches, loc="outside lower center", ncols=4)
    return figure


def _rgba(colour: str) -> tuple[float, ...]:
    return (*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0)


def main() -> None:
    """Read the file, print the shares, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a result file")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder of the figure")
    parser.add_argument("--rule", default="loss", metavar="NAME", help="(default: loss)")
    parser.add_argument("--iteration", default="last", metavar="N", help="a recorded iteration (default: last)")
    asked = parser.parse_args()

    result = read(asked.file)
    found = learned(result, asked.rule, asked.iteration)
    if result.agents > LARGEST:
        raise ResultError(f"{asked.file}: {result.agents} agents are too many for a matrix; at most {LARGEST}")
    byzantine = result.byzantine[result.edge[:, 0]]
    other = (result.group[result.edge[:, 0]] != result.group[result.edge[:, 1]]) & ~byzantine
    print(
        f"{asked.rule}, iteration {found.iteration}: weight given to Byzantine neighbours "
        f"{mean_share(result, found.weight, byzantine):.4f}, to normal agents of other groups "
        f"{mean_share(result, found.weight, other):.4f} "
        f"(means over the normal agents, {len(result.normal)} of {result.agents})"
    )
    suffix = "" if asked.iteration == "last" else f"-{found.iteration}"
    save(draw(result, asked.rule, found), asked.output, f"weights-{asked.rule}{suffix}", result.stand_in)


if __name__ == "__main__":
    command(main)
