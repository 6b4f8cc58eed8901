"""How every rule stands up to every attack of a sweep, relative to no cooperation.

    python analysis/resilience.py DIR -o figures

A heat map of rules by attacks for each number of attackers (green: cooperation helps, red: worse than alone), curves
of breakdown against the share of attackers, and a ranking as Markdown and CSV. A number is the measure of a rule over
that of `none` on the same random streams, both means over the normal agents at the end; the median over the seeds.
The sweep's experiments must run the rule `none`.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from results import Result, ResultError, command, read, save, styles

LAST = 100
"""Iterations at the end over which a measure is averaged, where it is of iterations."""
MEASURES = {
    "msd": ("msd", "mean squared deviation"),
    "risk": ("risk_after", "true risk"),
    "fresh": ("fresh_loss", "loss on fresh samples"),
    "loss": ("loss", "streaming loss"),
    "test-loss": ("test_loss", "test loss"),
    "error": ("test_accuracy", "test error"),
}
"""By the name on the command line, the truest first: dataset and what it is; the test error is 1 - accuracy."""
WIDEST = 1e3
"""Ratios beyond this, and below its inverse, have the last colour."""
CURVES = ("average", "distance", "loss", "loss-fresh", "median", "krum", "clipped-gossip", "ios")
"""Rules whose breakdown is drawn unless others are asked for."""
NO_ATTACK = "none"


@dataclass(frozen=True)
class Arena:
    """What a sweep found; `ratio[rule, attack, count]` holds one number a seed, in the order of seeds."""

    measure: str
    ratio: dict[tuple[str, str, int], list[float]]
    rules: list[str]
    attacks: list[str]
    counts: list[int]
    agents: int
    unfinished: int
    stand_in: bool

    def median(self, rule: str, attack: str, count: int) -> float:
        """Median over the seeds, NaN where nothing was run; inf counts as worst."""
        found = self.ratio.get((rule, attack, count), [])
        return float(np.median(found)) if found else np.nan

    def row(self, rule: str, count: int) -> np.ndarray:
        """The medians of all attacks."""
        return np.array([self.median(rule, attack, count) for attack in self.attacks])


def main() -> None:
    """Read the sweep and write heat maps, curves and ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="DIR", help="output folder of a sweep")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder of the figures")
    parser.add_argument("--measure", choices=MEASURES, help="default: the truest that was recorded")
    parser.add_argument("--rules", metavar="NAME,...", help="rules of the curves of breakdown")
    asked = parser.parse_args()
    arena = load(asked.sweep, asked.measure)
    drawn = asked.rules.split(",") if asked.rules else [rule for rule in CURVES if rule in arena.rules]
    for rule in drawn:
        if rule not in arena.rules:
            raise ResultError(f"{asked.sweep}: has no rule {rule!r}; it has {', '.join(arena.rules)}")
    for count in [count for count in arena.counts if count] or arena.counts:
        save(heat_map(arena, count), asked.output, f"resilience-{count}", arena.stand_in)
    if len(arena.counts) > 1:
        save(breakdown(arena, drawn), asked.output, "breakdown", arena.stand_in)
    rank(arena, asked.output / "ranking")
    if arena.unfinished:
        print(f"{arena.unfinished} cells of the sweep are not finished and left out")


def load(folder: Path, measure: str | None) -> Arena:
    """What is finished of the sweep in a folder; ResultError unless it is one."""
    try:
        with open(folder / "index.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ResultError(f"{folder}: is not the folder of a sweep: index.csv: {error.strerror}") from None
    missing = {"file", "state", "byzantine.attack", "byzantine.count"} - set(rows[0] if rows else ())
    if missing:
        raise ResultError(f"{folder / 'index.csv'}: is not the index of a sweep: it has no column {min(missing)!r}")
    done = [row for row in rows if row["state"] == "done"]
    if not done:
        raise ResultError(f"{folder}: none of its {len(rows)} cells is finished")
    ratio, rules, agents, stand_in = defaultdict(list), {}, 0, False
    for row in done:
        result = read(folder / row["file"])
        measure = measure or truest(result)
        agents, stand_in = result.agents, stand_in or result.stand_in
        alone = reached(result, "none", measure)
        for rule in result.rules:
            rules[rule] = None
            place = rule, row["byzantine.attack"] or NO_ATTACK, int(row["byzantine.count"])
            ratio[place].append(relative(reached(result, rule, measure), alone))
        result.file.close()
    attacks = dict.fromkeys(row["byzantine.attack"] or NO_ATTACK for row in done)
    return Arena(
        measure=measure,
        ratio=dict(ratio),
        rules=list(rules),
        attacks=sorted(attacks, key=lambda attack: attack != NO_ATTACK),
        counts=sorted({int(row["byzantine.count"]) for row in done}),
        agents=agents,
        unfinished=len(rows) - len(done),
        stand_in=stand_in,
    )


def truest(result: Result) -> str:
    """The measure to take where none is asked for."""
    recorded = result.file[f"rule/{result.rules[0]}"]
    return next(name for name, (dataset, _) in MEASURES.items() if dataset in recorded)


def reached(result: Result, rule: str, measure: str) -> float:
    """A measure of a rule at the end, mean over the normal agents; inf where it is not finite."""
    values = result.dataset(rule, MEASURES[measure][0])
    if measure in ("test-loss", "error"):
        last = values[-1:]
    else:
        iteration = np.asarray(values.dims[0][0])
        last = values[int(np.searchsorted(iteration, iteration[-1] - LAST, side="right")) :]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(last[:, result.normal].mean())
    if measure == "error":
        mean = 1.0 - mean
    return mean if np.isfinite(mean) else np.inf


def relative(found: float, alone: float) -> float:
    """How many times as large as alone; 1 where both are 0."""
    if found == alone:
        return 1.0
    return found / alone if alone > 0.0 else np.inf


def columns(arena: Arena, count: int) -> list[str]:
    """No attack first, then the attacks that were run with this number of attackers."""
    attacked = [attack for attack in arena.attacks if any((rule, attack, count) in arena.ratio for rule in arena.rules)]
    return list(dict.fromkeys([NO_ATTACK, *attacked])) if 0 in arena.counts else attacked


def value(arena: Arena, rule: str, attack: str, count: int) -> float:
    """The median over seeds; without attack that with no attackers."""
    return arena.median(rule, attack, 0 if attack == NO_ATTACK else count)


def heat_map(arena: Arena, count: int) -> Figure:
    """Rules by attacks, the rule with the least worst case on top."""
    attacks, table = columns(arena, count), {}
    for rule in arena.rules:
        if rule != "none":
            table[rule] = np.array([value(arena, rule, attack, count) for attack in attacks])
    order = sorted(table, key=lambda rule: (np.nanmax(table[rule]), rule))
    shown = np.array([table[rule] for rule in order])
    size = max(7.5, 2.2 + 0.52 * len(attacks)), 1.9 + 0.27 * len(order)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    coloured = np.clip(np.nan_to_num(shown, nan=1.0, posinf=WIDEST), 1 / WIDEST, WIDEST)
    image = axes.imshow(coloured, cmap="RdYlGn_r", norm=LogNorm(1 / WIDEST, WIDEST), aspect="auto")
    for (y, x), ratio in np.ndenumerate(shown):
        dark = abs(np.log10(coloured[y, x])) > 1.9
        axes.text(x, y, short(ratio), ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    axes.set_xticks(range(len(attacks)), attacks, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(order)), order)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    what = MEASURES[arena.measure][1]
    axes.set_title(f"{what} over that of no cooperation, {count} of {arena.agents} agents Byzantine", loc="left")
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01)
    bar.set_label("green: cooperation helps; red: worse than alone")
    return figure


def short(ratio: float) -> str:
    """A ratio in four characters or so."""
    if np.isnan(ratio):
        return ""
    if np.isinf(ratio):
        return "inf"
    if ratio >= 1000:
        return f"1e{np.log10(ratio):.0f}"
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}".lstrip("0")


def breakdown(arena: Arena, rules: list[str]) -> Figure:
    """The ratio against the share of attackers, a panel an attack."""
    attacks = [attack for attack in arena.attacks if attack != NO_ATTACK]
    wide = min(4, len(attacks))
    figure = Figure(figsize=(2.7 * wide, 2.1 * -(-len(attacks) // wide) + 0.7), layout="constrained")
    panels = figure.subplots(-(-len(attacks) // wide), wide, sharex=True, sharey=True, squeeze=False).ravel()
    looks = styles(rules)
    for panel, attack in zip(panels, attacks, strict=False):
        panel.axhline(1.0, color="#8f8f8f", linewidth=2.5, zorder=1)
        for rule in rules:
            found = [value(arena, rule, attack if count else NO_ATTACK, count) for count in arena.counts]
            share = 100 * np.array(arena.counts) / arena.agents
            panel.plot(share, np.clip(found, 1 / WIDEST, WIDEST), marker=".", **looks[rule].line)
        panel.set(title=attack, yscale="log", ylim=(0.7 / WIDEST, 1.4 * WIDEST))
    for panel in panels[len(attacks) :]:
        panel.set_visible(False)
    figure.supxlabel("Byzantine agents (%)")
    figure.supylabel(f"{MEASURES[arena.measure][1]} over that of no cooperation")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def rank(arena: Arena, path: Path) -> None:
    """Write PATH.csv and PATH.md: rules by their worst case over attacks, for each number of attackers."""
    rows = []
    for count in arena.counts:
        found = []
        for rule in arena.rules:
            medians = arena.row(rule, count)
            if rule == "none" or np.isnan(medians).all():
                continue
            worst = arena.attacks[int(np.nanargmax(medians))]
            seeds = arena.ratio[rule, worst, count]
            middle = float(np.median(medians[~np.isnan(medians)]))
            found.append((count, rule, middle, float(np.nanmax(medians)), worst, min(seeds), max(seeds)))
        rows += sorted(found, key=lambda row: (row[3], row[1]))
    heads = ("attackers", "rule", "median", "worst", "worst attack", "worst, least seed", "worst, greatest seed")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".csv"), "w", newline="") as file:
            csv.writer(file).writerows([heads, *rows])
        lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row in rows:
            words = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
            lines.append(f"| {' | '.join(words)} |")
        path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise ResultError(f"-o {path.parent}: cannot be written: {error.strerror}") from None
    print(f"wrote {path}.csv and .md")


if __name__ == "__main__":
    command(main)
