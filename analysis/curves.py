"""What Figures 2, 3 and 4 share: test loss and accuracy an epoch of each rule, over all agents or one task group."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figure1 import letters, titles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results import Result, ResultError, read, save, styles

WIDTH, HEIGHT = 4.4, 2.9
"""Inches of a plot."""
LINEAR_TO = 30
"""The loss has a log axis where its means span more than this factor."""


@dataclass(frozen=True)
class Curve:
    """One measure of one rule at the end of each epoch, over the normal agents, (epochs,) each."""

    mean: np.ndarray
    least: np.ndarray
    largest: np.ndarray


@dataclass(frozen=True)
class Panel:
    """Loss and accuracy of one run."""

    letter: str
    title: str
    loss: dict[str, Curve]
    accuracy: dict[str, Curve]
    """in percent"""
    stand_in: bool


def members(result: Result, group: int | None) -> np.ndarray:
    """Ids of the normal agents, of the task group if one is given."""
    if group is None:
        return result.normal
    groups = np.unique(result.group).tolist()
    if len(groups) == result.agents:
        raise ResultError(f"{result.path}: has no task groups: each of its {result.agents} agents has its own task")
    if group not in groups:
        raise ResultError(f"{result.path}: has no group {group}; it has {', '.join(map(str, groups))}")
    chosen = result.normal[result.group[result.normal] == group]
    if not chosen.size:
        raise ResultError(f"{result.path}: all agents of group {group} are Byzantine")
    return chosen


def curve(result: Result, rule: str, measure: str, agents: np.ndarray, scale: np.ndarray) -> Curve:
    """The measure of the agents, each multiplied by its scale (A,)."""
    values = result.dataset(rule, measure, ": not a classification study")[()][:, agents] * scale
    return Curve(values.mean(axis=1), values.min(axis=1), values.max(axis=1))


def panel(letter: str, title: str, result: Result, asked: argparse.Namespace, group: int | None) -> Panel:
    """What is drawn of a run."""
    agents = members(result, group)
    rules = asked.rules.split(",") if asked.rules else result.rules
    percent = np.full(len(agents), 100.0)
    shrink = 1 / result.batch[agents] if asked.paper_scale else np.ones(len(agents))
    return Panel(
        letter,
        title,
        {rule: curve(result, rule, "test_loss", agents, shrink) for rule in rules},
        {rule: curve(result, rule, "test_accuracy", agents, percent) for rule in rules},
        result.stand_in,
    )


def loss_axis(panels: list[Panel]) -> dict:
    """Keywords of `Axes.set` for the losses of all panels: scale and limits.

    The top is the largest of the ranges, but at most twice the largest mean: one bad agent must not flatten the rest.
    """
    found = [curve for panel in panels for curve in panel.loss.values()]
    mean, largest = (np.concatenate([getattr(curve, name) for curve in found]) for name in ("mean", "largest"))
    mean, largest = (values[np.isfinite(values) & (values > 0)] for values in (mean, largest))
    if not mean.size:
        return dict(ylim=(0, 1))
    if mean.max() > LINEAR_TO * mean.min():
        low, high = np.log10([mean.min(), mean.max()])
        return dict(yscale="log", ylim=(10.0 ** np.floor(low), 10.0 ** np.ceil(high)))
    return dict(ylim=(0, min(1.03 * largest.max(), 2 * mean.max())))


def accuracy_axis(panels: list[Panel]) -> dict:
    """Keywords of `Axes.set` for the accuracies of all panels: whole tens around the ranges."""
    least = np.concatenate([curve.least for panel in panels for curve in panel.accuracy.values()])
    least = least[np.isfinite(least)]
    return dict(ylim=(10 * np.floor(least.min() / 10) if least.size else 0, 101))


def draw_curves(axes: Axes, found: dict[str, Curve], worst: str) -> None:
    """Mean as a line and range as a band, its `worst` end as its edge."""
    for rule, style in styles(found).items():
        drawn = found[rule]
        epoch = np.arange(1, len(drawn.mean) + 1)
        dot = "o" if len(epoch) == 1 else None
        axes.fill_between(epoch, drawn.least, drawn.largest, **style.band)
        axes.plot(epoch, getattr(drawn, worst), **style.edge)
        axes.plot(epoch, drawn.mean, marker=dot, **style.line)
    axes.set(xlim=(0, len(epoch) * 1.01), xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw(panels: list[Panel], limits: tuple[dict, dict], heading: str, paper_scale: bool) -> Figure:
    """A row of loss and accuracy for each panel."""
    loss, accuracy = limits
    figure = Figure(figsize=(2 * WIDTH, HEIGHT * len(panels) + 0.6), layout="constrained")
    for (left, right), shown in zip(figure.subplots(len(panels), 2, squeeze=False), panels, strict=True):
        draw_curves(left, shown.loss, "largest")
        draw_curves(right, shown.accuracy, "least")
        left.set(ylabel="test loss / batch size" if paper_scale else "test loss", **loss)
        right.set(ylabel="test accuracy (%)", **accuracy)
        left.set_title(f"({shown.letter}) {shown.title}")
    rules = list(dict.fromkeys(rule for shown in panels for rule in shown.loss))
    lines = [Line2D([], [], **style.line) for style in styles(rules).values()]
    title = f"line: mean over normal agents{heading}; band: smallest to largest; thin line: the worst agent"
    figure.legend(handles=lines, title=title, loc="outside lower center", ncols=4)
    return figure


def _titles(results: list[Result]) -> list[str]:
    """What sets each run apart, and which of them are on stand-ins where only some are."""
    if len({result.stand_in for result in results}) == 1:
        return titles(results)
    return [f"{t}{', stand-in data' * r.stand_in}" for t, r in zip(titles(results), results, strict=True)]


def main(figure: str, description: str, group: int | None = None, whose: str = "") -> None:
    """Read the files, draw each panel alone and all together as `figure`; `whose` says in words what the group is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result files of one study")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder of the figures")
    parser.add_argument("--rules", metavar="NAME,...", help="rules to draw (default: all in the files)")
    parser.add_argument(
        "--paper-scale",
        action="store_true",
        help="divide the loss by the batch size, to lay the plots over the paper's: these show the sum of the batch "
        "means over the number of samples",
    )
    asked = parser.parse_args()

    results = sorted(map(read, asked.files), key=lambda result: result.attackers)
    named = zip(letters(len(results)), _titles(results), results, strict=True)
    panels = [panel(letter, title, result, asked, group) for letter, title, result in named]
    limits = loss_axis(panels), accuracy_axis(panels)
    heading = f" of the {whose}" if whose else ""
    for shown in panels:
        drawn = draw([shown], limits, heading, asked.paper_scale)
        save(drawn, asked.output, f"{figure}{shown.letter}", shown.stand_in)
    together = draw(panels, limits, heading, asked.paper_scale)
    save(together, asked.output, figure, any(shown.stand_in for shown in panels))
