"""The server baseline of eq. 1 beside distributed rules: what weights and relationships were learned, and how well.

    mpi-resmtl run regression-groups --set rules=none,average,loss,loss-fresh,central --output groups.h5
    python analysis/central.py groups.h5 --rule loss-fresh -o figures

writes central.png and .pdf: the learned weights of a rule; beside them the relationship matrix of the server's last
models, Omega = (Theta'Theta)^1/2 / Tr((Theta'Theta)^1/2), as correlations Omega_kl / sqrt(Omega_kk Omega_ll); and the
error of all rules by iteration. Prints the mean correlation within and between the true groups. Omega is of the normal
agents' models alone, as what Byzantine agents told the server is not in a result file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from resilience import MEASURES
from results import Result, ResultError, command, read, save, styles
from weights import BYZANTINE_ROW, LARGEST, Learned, draw_matrix, image, learned, mean_share

from mpi_resmtl.rules.central import omega_root

CENTRAL = "central"
FLOOR = 1e-12
"""Singular values of the models below this share of the greatest count as it; they are drawn, not divided by."""


def relationship(models: np.ndarray) -> np.ndarray:
    """Omega (n, n) of models (n, P), the columns of Theta."""
    largest = np.abs(models).max()
    singular, v = omega_root(models / largest if largest else models, FLOOR)
    return (v * singular) @ v.T / singular.sum() if singular.sum() else np.eye(len(models)) / len(models)


def correlations(omega: np.ndarray) -> np.ndarray:
    """Omega_kl / sqrt(Omega_kk Omega_ll); 0 for an agent whose model is 0."""
    scale = np.sqrt(np.maximum(np.diagonal(omega), 0))
    scale = np.where(scale > 0, scale, np.inf)
    return np.clip(omega / scale / scale[:, None], -1, 1)


def _omega_image(result: Result, correlation: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(n, n, 4) colours, agents in the given order; Byzantine rows and columns are left out."""
    whole = np.full((result.agents, result.agents), np.nan)
    whole[np.ix_(result.normal, result.normal)] = correlation
    whole = whole[np.ix_(order, order)]
    drawn = colormaps["RdBu"]((np.nan_to_num(whole) + 1) / 2)
    byzantine = result.byzantine[order]
    drawn[byzantine] = drawn[:, byzantine] = (*(int(BYZANTINE_ROW[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0)
    return drawn


def draw_errors(axes: Axes, result: Result, rules: list[str]) -> None:
    """The truest measure by iteration or epoch, mean over the normal agents."""
    name = next((m for m in MEASURES.values() if m.dataset in result.file[f"rule/{CENTRAL}"]), None)
    if name is None:
        raise ResultError(f"{result.path}: rule {CENTRAL!r} has no recorded measure")
    for rule, style in styles(rules).items():
        values = result.dataset(rule, name.dataset)
        (scale,) = values.dims[0].values()
        mean = values[()][:, result.normal].mean(axis=1)
        axes.plot(scale[()], 1 - mean if name.of_accuracy else mean, **style.line)
    unit = "epoch" if name.dataset.startswith("test_") else "iteration"
    axes.set(yscale="log", xlabel=unit, ylabel=name.label, title="(c) mean of the normal agents")


def draw(result: Result, rule: str, found: Learned, correlation: np.ndarray) -> Figure:
    """Weights, relationships and errors."""
    order = np.lexsort((np.arange(result.agents), result.byzantine, result.group))
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.08, 1, 256)))
    figure = Figure(figsize=(13.5, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    title = f"(a) learned weights: {styles([rule])[rule].label}"
    draw_matrix(left, result, order, image(result, found.weight, order, colours), title)
    draw_matrix(
        middle, result, order, _omega_image(result, correlation, order), r"(b) relationships $\Omega$: central (eq. 1)"
    )
    left.set_ylabel("target agent k")
    middle.set(xlabel="agent l", ylabel="agent k")
    figure.colorbar(ScalarMappable(cmap=colours), ax=left, label="weight $a_{lk}$", shrink=0.8)
    figure.colorbar(
        ScalarMappable(Normalize(-1, 1), colormaps["RdBu"]), ax=middle, shrink=0.8,
        label=r"correlation $\Omega_{kl} / \sqrt{\Omega_{kk}\Omega_{ll}}$",
    )  # fmt: skip
    draw_errors(right, result, list(result.rules))
    lines = [Line2D([], [], **style.line) for style in styles(result.rules).values()]
    figure.legend(handles=lines, loc="outside lower right", ncols=min(6, len(lines)))
    return figure


def main() -> None:
    """Read the file, print the correlations, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a result file with rule central")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder of the figure")
    parser.add_argument("--rule", default="loss", metavar="NAME", help="whose weights are drawn (default: loss)")
    parser.add_argument("--iteration", default="last", metavar="N", help="of the weights (default: last)")
    asked = parser.parse_args()

    result = read(asked.file)
    result.require(CENTRAL)
    found = learned(result, asked.rule, asked.iteration)
    if result.agents > LARGEST:
        raise ResultError(f"{asked.file}: {result.agents} agents are too many for a matrix; at most {LARGEST}")
    models = result.dataset(CENTRAL, "model_final")[()][result.normal].astype(np.float64)
    if not np.isfinite(models).all():
        raise ResultError(f"{asked.file}: the models of rule {CENTRAL!r} are not finite; it has diverged")
    correlation = correlations(relationship(models))
    group = result.group[result.normal]
    mates, others = group == group[:, None], ~np.eye(len(group), dtype=bool)
    parts = {"within groups": mates & others, "between groups": ~mates}
    words = ", ".join(f"{name} {correlation[part].mean():.3f}" for name, part in parts.items() if part.any())
    source, target = result.edge.T
    own = (result.group[source] == result.group[target]) & ~result.byzantine[source]
    print(f"{CENTRAL}: mean correlation {words or 'of a single agent'}")
    print(f"{asked.rule}: weight given to agents of one's own group {mean_share(result, found.weight, own):.3f}")
    save(draw(result, asked.rule, found, correlation), asked.output, CENTRAL, result.stand_in)


if __name__ == "__main__":
    command(main)
