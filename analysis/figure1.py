"""Figure 1 of the paper: (a) the network, (b), (c), ... the streaming loss of each rule, one panel a result file.

    python analysis/figure1.py fig1b.h5 fig1c.h5 fig1d.h5 -o figures

writes figure1a, figure1b, ... and all together as figure1, each as PNG and PDF. Panels come in order of attackers.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, islice, product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results import BYZANTINE_COLOUR, GROUP_COLOURS, Result, command, read, save, styles

Curves = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Of each rule the mean, least and largest loss over the normal agents, (I,) each."""

WIDTH, HEIGHT = 4.4, 3.3
"""Inches of a panel."""


def curves(result: Result, rules: list[str] | None) -> Curves:
    """What is drawn of a run; `rules` None means all it has."""
    found = {}
    for rule in rules or result.rules:
        loss = result.dataset(rule, "loss")[()][:, result.normal]
        found[rule] = loss.mean(axis=1), loss.min(axis=1), loss.max(axis=1)
    return found


def loss_limits(runs: list[Curves]) -> tuple[float, float]:
    """Whole decades around the means and the upper ends of the ranges, the same for all panels.

    The lower ends do not count: the least of many squared errors is about zero whatever the rule does.
    """
    lines = [line for found in runs for line in found.values()]
    mean, _, largest = (np.concatenate(values) for values in zip(*lines, strict=True))
    mean, largest = (values[np.isfinite(values) & (values > 0)] for values in (mean, largest))
    if not mean.size:
        return 0.1, 1.0
    low, high = np.log10([np.percentile(mean, 10) / 3, largest.max()])
    return 10.0 ** np.floor(low), 10.0 ** np.ceil(high)


def draw_loss(axes: Axes, found: Curves, limits: tuple[float, float]) -> None:
    """Mean as a line and range as a band, on a log axis."""
    for rule, style in styles(found).items():
        mean, least, largest = found[rule]
        iteration = np.arange(1, len(mean) + 1)
        axes.fill_between(iteration, *np.clip([least, largest], limits[0] / 10, None), **style.band)
        axes.plot(iteration, largest, **style.edge)
        axes.plot(iteration, mean, **style.line)
    axes.set(yscale="log", ylim=limits, xlim=(0, len(mean)))
    axes.set(xlabel="iteration", ylabel="streaming loss of normal agents")


def draw_network(axes: Axes, result: Result) -> None:
    """Agents where they are (or on a circle), in the colour of their true group, and who hears whom."""
    position = result.position
    if position is None:
        angle = 2 * np.pi * np.argsort(np.argsort(result.group, kind="stable")) / result.agents
        position = np.column_stack([np.cos(angle), np.sin(angle)])
    pairs = np.unique(np.sort(result.edge, axis=1), axis=0)
    large = len(pairs) > 20_000
    axes.add_collection(LineCollection(position[pairs], colors="#c9c9c9", linewidths=0.6, zorder=1, rasterized=large))

    groups = np.unique(result.group)
    looks = [
        (f"group {group}", (result.group == group) & ~result.byzantine, "o", colour)
        for group, colour in zip(groups, cycle(GROUP_COLOURS), strict=False)
    ]
    looks.append(("Byzantine", result.byzantine, "X", BYZANTINE_COLOUR))
    size = np.clip(4000 / result.agents, 4, 70)
    rim = 0.5 if size > 12 else 0
    for label, chosen, marker, colour in looks:
        if chosen.any():
            style = dict(marker=marker, color=colour, edgecolors="white", linewidths=rim, zorder=2, rasterized=large)
            axes.scatter(*position[chosen].T, s=size * (1.5 if marker == "X" else 1), label=label, **style)
    if len(groups) <= len(GROUP_COLOURS):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2, labelspacing=0.8)
    if result.position is None:
        axes.set(xticks=[], yticks=[])
    else:
        axes.set(xlabel="position x", ylabel="position y")
    axes.set_aspect("equal")
    axes.set_anchor("W")
    axes.autoscale_view()


def titles(results: list[Result]) -> list[str]:
    """What sets each run apart: its attackers, a variant not the paper's and, if need be, its file."""
    found = []
    for result in results:
        attack = f"{result.attackers} of {result.agents} agents Byzantine" if result.attackers else "no attack"
        found.append(attack if result.variant in (None, "paper") else f"{attack}, {result.variant}")
    seen = Counter(found)
    alike = [seen[title] > 1 for title in found]
    return [f"{t} ({r.path.stem})" if a else t for t, r, a in zip(found, results, alike, strict=True)]


def most_attacked_half(results: list[Result]) -> Result:
    """The run with most attackers among those where at most half are; else the first."""
    halves = [result for result in results if 2 * result.attackers <= result.agents]
    return max(halves, key=lambda result: result.attackers, default=results[0])


def letters(number: int) -> list[str]:
    """a, b, ... z, aa, ab, ..."""
    words = ("".join(word) for length in count(1) for word in product(ascii_lowercase, repeat=length))
    return list(islice(words, number))


@dataclass(frozen=True)
class Panel:
    """One part of the figure."""

    letter: str
    title: str
    draw: Callable[[Axes], None]
    rules: tuple[str, ...]
    """drawn in it"""
    stand_in: bool


def draw(panels: list[Panel]) -> Figure:
    """A figure of some panels, at most three a row (two where they are four)."""
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    drawn = list(dict.fromkeys(rule for panel in panels for rule in panel.rules))
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + (0.6 if drawn else 0)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        panel.draw(axes)
        axes.set_title(f"({panel.letter}) {panel.title}")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if drawn:
        lines = [Line2D([], [], **style.line) for style in styles(drawn).values()]
        title = "line: mean over normal agents; band: smallest to largest"
        figure.legend(handles=lines, title=title, loc="outside lower center", ncols=2 * min(columns, 2))
    return figure


def main() -> None:
    """Read the files, draw each panel alone and all together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result files of one study")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder of the figures")
    parser.add_argument("--rules", metavar="NAME,...", help="rules to draw (default: all in the files)")
    asked = parser.parse_args()

    results = sorted(map(read, asked.files), key=lambda result: result.attackers)
    runs = [curves(result, asked.rules.split(",") if asked.rules else None) for result in results]
    limits = loss_limits(runs)
    network = most_attacked_half(results)
    names = letters(1 + len(results))

    whose = f", attackers of ({names[results.index(network) + 1]})" if network.attackers else ""
    scene = partial(draw_network, result=network)
    panels = [Panel(names[0], f"network of {network.agents} agents{whose}", scene, (), network.stand_in)]
    for name, result, found, title in zip(names[1:], results, runs, titles(results), strict=True):
        loss = partial(draw_loss, found=found, limits=limits)
        panels.append(Panel(name, title, loss, tuple(found), result.stand_in))
    for panel in panels:
        save(draw([panel]), asked.output, f"figure1{panel.letter}", panel.stand_in)
    save(draw(panels), asked.output, "figure1", any(panel.stand_in for panel in panels))


if __name__ == "__main__":
    command(main)
