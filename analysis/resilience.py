"""The resilience of rules: what each reached under each attack of a sweep, beside no cooperation.

    python analysis/resilience.py DIR -o figures

writes, as PNG and PDF, a heat map of rules and attacks for each number of attackers (resilience-N: green where
cooperating helps, red where an agent had better stay alone; no attack is the first column), the ranking of the rules
and the curves of their breakdown (the measure against the share of attackers), and the numbers as resilience.md,
resilience.csv and ranking.csv.

A value is the measure's mean over the normal agents and over what is recorded of the last fifth of the run; of
accuracy it is the test error, 1 - accuracy. It is compared with that of rule none in the same run, on the same random
streams. A ratio of several seeds is their geometric mean; a value that is not finite is infinitely worse. The score of
a rule is the geometric mean over all attacks of ratios between 1/100 and 100, those beyond counting as these.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results import Result, ResultError, command, index, read, save, styles

from mpi_resmtl import hdf5

NO_ATTACK, ALONE, BOUND = "none", "none", "oracle"
"""The attack and the rule that others are compared with, and the rule that knows who is normal."""
CLIP = 100.0
"""Ratio at which colours and scores end."""
LAST = 0.2
"""Share of the run whose records count."""
COLOURS = LinearSegmentedColormap.from_list(
    "resilience", ["#00543c", "#3f9c76", "#b5dcc8", "#fbfbf8", "#f4c1b4", "#d7543f", "#7d0a16"]
)
TICKS = {-2: "1/100 or less", -1: "1/10", 0: "1", 1: "10", 2: "100 or more"}
"""Words at the colours of these logarithms."""
UNKNOWN = "#e3e3e3"
BEST = 3
"""Rules that are drawn with the paper's where none are named."""
PAPER, PROPOSED = ("none", "average", "distance", "loss"), "loss"
SPAN = 0.1, 3000.0
"""The curves' axis ends at most so far from no cooperation."""


@dataclass(frozen=True)
class Measure:
    """What rules are compared by."""

    dataset: str
    label: str
    of_accuracy: bool = False


MEASURES = {
    "msd": Measure("msd", "mean squared deviation"),
    "risk": Measure("risk_after", "true risk"),
    "accuracy": Measure("test_accuracy", "test error", of_accuracy=True),
    "test-loss": Measure("test_loss", "test loss"),
    "fresh-loss": Measure("fresh_loss", "loss on fresh samples"),
    "loss": Measure("loss", "streaming loss"),
}
"""The truest first."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    setting: tuple[str, ...]
    """Values of what is swept besides seed, attackers and attack."""
    attackers: int
    attack: str
    seed: int
    values: dict[str, float]
    """of each rule"""

    def ratio(self, rule: str) -> float:
        """The rule's value beside that of no cooperation."""
        value, alone = self.values[rule], self.values[ALONE]
        if not math.isfinite(value) or not math.isfinite(alone):
            return math.nan if not math.isfinite(alone) else math.inf
        return value / alone if alone else 1.0 if value == alone else math.inf


@dataclass(frozen=True)
class Sweep:
    """What is in a folder."""

    study: str
    agents: int
    swept: tuple[str, ...]
    """Names of the values of `Cell.setting`."""
    measure: Measure
    rules: tuple[str, ...]
    """All but no cooperation."""
    cells: list[Cell]
    left_out: str
    """Which cells are not done, in words; empty where all are."""
    stand_in: bool

    def select(self, setting: tuple[str, ...], attackers: int | None = None, attack: str | None = None) -> list[Cell]:
        """Cells of a setting, of so many attackers and of an attack, where these are given."""
        return [
            cell
            for cell in self.cells
            if cell.setting == setting and attackers in (None, cell.attackers) and attack in (None, cell.attack)
        ]


def load(folder: Path, measure: str | None) -> Sweep:
    """Read the cells of a sweep that are done, by a measure or the truest that is recorded; else as `load_all`."""
    return next(iter(load_all(folder, measure and [measure]).values()))


def load_all(folder: Path, measures: Sequence[str] | None = None) -> dict[str, Sweep]:
    """Read the cells of a sweep that are done by each of these measures, or all that are recorded, the truest first.

    ResultError where no cell is done, or a file is not as the index says.
    """
    rows, swept = index(folder)
    states = Counter(row["state"] for row in rows if row["state"] != "done")
    done = [row for row in rows if row["state"] == "done"]
    words = ", ".join(f"{number} {state}" for state, number in states.items())
    if not done:
        raise ResultError(f"{folder / 'index.csv'}: no cell is done ({words})")
    cells: dict[str, list[Cell]] = {}
    studies, stand_in = set(), False
    for row, path in zip(done, hdf5.examined(folder / row["file"] for row in done), strict=True):
        result = read(path)
        measures = measures or measured(result)
        if not measures:
            raise ResultError(f"{result.path}: has none of the measures {', '.join(MEASURES)}")
        studies.add((result.task["name"], result.agents, tuple(rule for rule in result.rules if rule != ALONE)))
        stand_in |= result.stand_in
        setting = tuple(row[key] for key in swept)
        for measure in measures:
            values = {rule: value(result, rule, measure) for rule in (ALONE, *result.rules)}
            cell = Cell(setting, int(row["byzantine.count"]), row["byzantine.attack"], int(row["seed"]), values)
            cells.setdefault(measure, []).append(cell)
        result.file.close()
    if len(studies) > 1:
        raise ResultError(f"{folder}: its cells differ in their study, agents or rules")
    ((study, agents, rules),) = studies
    if not rules:
        raise ResultError(f"{folder}: has no rule but {ALONE}")
    left_out = f"{len(rows) - len(done)} of {len(rows)} cells are not done: {words}" if states else ""
    return {
        name: Sweep(study, agents, swept, MEASURES[name], rules, found, left_out, stand_in)
        for name, found in cells.items()
    }


def measured(result: Result) -> list[str]:
    """The measures that the run has recorded, the truest first."""
    recorded = result.file[f"rule/{result.rules[0]}"]
    return [name for name, measure in MEASURES.items() if measure.dataset in recorded]


def value(result: Result, rule: str, name: str) -> float:
    """What the rule reached: the measure's mean over normal agents and the records of the last fifth of the run."""
    measure = MEASURES[name]
    if rule == ALONE and ALONE not in result.rules:
        raise ResultError(f"{result.path}: has no rule {ALONE!r} to compare with; it has {', '.join(result.rules)}")
    if measure.dataset not in result.file[f"rule/{rule}"]:
        raise ResultError(
            f"{result.path}: rule {rule!r} has no recorded {measure.dataset}; it has {', '.join(measured(result))}"
        )
    recorded = result.dataset(rule, measure.dataset)
    (scale,) = recorded.dims[0].values()
    moment = scale[()]
    rows = recorded[int(np.searchsorted(moment, (1 - LAST) * moment[-1], side="right")) :]
    with np.errstate(over="ignore"):
        mean = float(rows[:, result.normal].mean())
    return 1.0 - mean if measure.of_accuracy else mean


def over_seeds(cells: Iterable[Cell], rule: str) -> float:
    """Geometric mean of the rule's ratios; NaN where there is none."""
    ratios = [cell.ratio(rule) for cell in cells]
    if not ratios or any(math.isnan(ratio) for ratio in ratios):
        return math.nan
    return geometric_mean(ratios)


def seed_range(cells: Iterable[Cell], rule: str) -> tuple[float, float]:
    """The rule's least and largest ratio; NaN where there is none."""
    ratios = [ratio for cell in cells if not math.isnan(ratio := cell.ratio(rule))]
    return (min(ratios), max(ratios)) if ratios else (math.nan, math.nan)


def geometric_mean(ratios: Sequence[float]) -> float:
    """exp of the mean logarithm; 0 where one is 0, and inf where one is."""
    with np.errstate(divide="ignore"):
        return math.inf if math.inf in ratios else float(np.exp(np.mean(np.log(ratios))))


@dataclass(frozen=True)
class Score:
    """How a rule fares over all attacks by so many attackers."""

    rule: str
    mean: float
    """Geometric mean over the seeds of the scores."""
    least: float
    largest: float
    helps: int
    """Attacks under which it is better than no cooperation, of `attacks`."""
    attacks: int
    worst: str
    worst_ratio: float


def score(sweep: Sweep, setting: tuple[str, ...], attackers: int, rule: str) -> Score:
    """The rule's score, its range over the seeds and the attack that harms it most."""
    cells = sweep.select(setting, attackers)
    by_seed: dict[int, list[float]] = {}
    for cell in cells:
        ratio = cell.ratio(rule)
        if not math.isnan(ratio):
            by_seed.setdefault(cell.seed, []).append(min(max(ratio, 1 / CLIP), CLIP))
    scores = [geometric_mean(ratios) for ratios in by_seed.values()] or [math.nan]
    attacks = {attack: over_seeds(sweep.select(setting, attackers, attack), rule) for attack in attacks_in(cells)}
    known = {attack: ratio for attack, ratio in attacks.items() if not math.isnan(ratio)} or attacks
    worst = max(known, key=known.__getitem__)
    return Score(
        rule,
        geometric_mean(scores),
        min(scores),
        max(scores),
        sum(ratio < 1 for ratio in known.values()),
        len(known),
        worst,
        known[worst],
    )


def ranking(sweep: Sweep, setting: tuple[str, ...], attackers: int) -> list[Score]:
    """The scores of all rules, the best first; the bound before all."""
    scores = [score(sweep, setting, attackers, rule) for rule in sweep.rules]
    return sorted(scores, key=lambda score: (score.rule != BOUND, score.mean, score.worst_ratio, score.rule))


def attacks_in(cells: Iterable[Cell]) -> list[str]:
    """The attacks of cells, each once."""
    return list(dict.fromkeys(cell.attack for cell in cells))


def columns(sweep: Sweep, setting: tuple[str, ...], attackers: int) -> list[tuple[str, int]]:
    """Attack and attackers of each column of a heat map: no attack, then those that harm rules least come first."""
    harm = {}
    for attack in attacks_in(sweep.select(setting, attackers)):
        cells = sweep.select(setting, attackers, attack)
        ratios = np.array([over_seeds(cells, rule) for rule in sweep.rules])
        harm[attack] = np.nanmean(np.log(np.clip(ratios, 1 / CLIP, CLIP))) if np.isfinite(ratios).any() else math.inf
    calm = [(NO_ATTACK, 0)] if attackers and sweep.select(setting, 0) else []
    return calm + [(attack, attackers) for attack in sorted(harm, key=harm.__getitem__)]


def short(ratio: float) -> str:
    """A ratio in at most four characters."""
    if math.isnan(ratio):
        return "–"
    if ratio == math.inf:
        return "∞"
    if ratio < 0.995:
        return f"{ratio:.2f}".removeprefix("0") if ratio >= 0.005 else "0"
    if ratio < 9.95:
        return f"{ratio:.1f}"
    return f"{ratio:.0f}" if ratio < 999.5 else f"{ratio:.0e}".replace("e+0", "e").replace("e+", "e")


def strength(ratios: np.ndarray) -> np.ndarray:
    """The ratios' decimal logarithm, which colours show, up to that of CLIP."""
    with np.errstate(divide="ignore"):
        return np.clip(np.log10(ratios), -math.log10(CLIP), math.log10(CLIP))


def draw_matrix(sweep: Sweep, setting: tuple[str, ...], attackers: int) -> Figure:
    """Rules, the best first, and attacks, the mildest first."""
    scores, across = ranking(sweep, setting, attackers), columns(sweep, setting, attackers)
    ratios = np.array(
        [[over_seeds(sweep.select(setting, n, attack), s.rule) for attack, n in across] for s in scores], float
    )
    figure = Figure(figsize=(max(7.5, 2.9 + 0.42 * len(across)), 3.0 + 0.235 * len(scores)), layout="constrained")
    axes = figure.subplots()
    norm = Normalize(-math.log10(CLIP), math.log10(CLIP))
    shade = norm(strength(ratios))
    colours = COLOURS(shade)
    colours[np.isnan(ratios)] = (*(int(UNKNOWN[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0)
    axes.imshow(colours, aspect="auto", interpolation="none")
    for row, column in np.ndindex(ratios.shape):
        dark = not np.isnan(ratios[row, column]) and abs(shade[row, column] - 0.5) > 0.3
        colour = "white" if dark else "#202020"
        axes.text(column, row, short(ratios[row, column]), ha="center", va="center", fontsize=7.5, color=colour)
    calm = bool(across[0][0] == NO_ATTACK and len(across) > 1)
    axes.set_xticks(range(len(across)), ["no attack" if a == NO_ATTACK else a for a, _ in across])
    axes.tick_params(axis="x", rotation=45, top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for label in axes.get_xticklabels():
        label.set(ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(scores)), [s.rule for s in scores])
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == PROPOSED else "normal")
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    _separate(axes, ratios.shape, after_row=scores[0].rule == BOUND, after_column=calm)
    axes.set_title(_heading(sweep, setting, attackers), pad=8, fontsize=10)
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), ax=axes, location="bottom", aspect=50, shrink=0.75, pad=0.015, fraction=0.03
    )
    bar.set_ticks(list(TICKS), labels=list(TICKS.values()))
    bar.outline.set_visible(False)
    bar.set_label(_legend(sweep, sweep.rules), fontsize=8.5, linespacing=1.5, labelpad=6)
    return figure


def _separate(axes: Axes, shape: tuple[int, int], after_row: bool, after_column: bool) -> None:
    """White lines between the fields, and a gap after the bound and after no attack."""
    rows, across = shape
    for place in range(1, across):
        axes.axvline(place - 0.5, color="white", linewidth=3 if after_column and place == 1 else 0.7)
    for place in range(1, rows):
        axes.axhline(place - 0.5, color="white", linewidth=3 if after_row and place == 1 else 0.7)


def _heading(sweep: Sweep, setting: tuple[str, ...], attackers: int) -> str:
    who = f"{attackers} of {sweep.agents} agents Byzantine" if attackers else "no attack"
    return f"{title_of(sweep, setting)}, {who}\n{sweep.measure.label} relative to no cooperation"


def title_of(sweep: Sweep, setting: tuple[str, ...]) -> str:
    """The study and the setting in words."""
    extra = "".join(f", {key} = {text}" for key, text in zip(sweep.swept, setting, strict=True))
    return sweep.study.replace("-", " ").capitalize() + extra


def _legend(sweep: Sweep, rules: Iterable[str]) -> str:
    """Lines on what the heat map shows."""
    seeds = len({cell.seed for cell in sweep.cells})
    known = [f"bold: the paper's rule, {PROPOSED}"] * (PROPOSED in rules)
    known += [f"{BOUND}: a bound, it knows who is who"] * (BOUND in rules)
    lines = [
        "green: cooperation helps; red: an agent had better stay alone"
        + (f"; geometric mean of {seeds} seeds" if seeds > 1 else "; one seed"),
        "rules in the order of their geometric mean over the attacks",
        "; ".join(known),
        sweep.left_out,
    ]
    return "\n".join(filter(None, lines))


def draw_ranking(sweep: Sweep, setting: tuple[str, ...], numbers: Sequence[int]) -> Figure:
    """Scores with their range over the seeds, for each number of attackers."""
    found = {attackers: {s.rule: s for s in ranking(sweep, setting, attackers)} for attackers in numbers}
    order = [s.rule for s in ranking(sweep, setting, numbers[-1])]
    figure = Figure(figsize=(7, 1.7 + 0.24 * len(order)), layout="constrained")
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("attackers", ["#9ecae1", "#2171b5", "#08204a"])
    height = 0.7 / len(numbers)
    for place, attackers in enumerate(numbers):
        colour = shades(1 - (len(numbers) - 1 - place) / max(len(numbers) - 1, 1))
        rows = np.arange(len(order)) + (place - (len(numbers) - 1) / 2) * height
        scores = [found[attackers][rule] for rule in order]
        axes.hlines(rows, [s.least for s in scores], [s.largest for s in scores], color=colour, linewidth=1.4)
        label = f"{attackers} of {sweep.agents} Byzantine" if attackers else "no attack"
        axes.plot([s.mean for s in scores], rows, "o", color=colour, markersize=3.6, label=label)
    axes.axvline(1, color="#404040", linewidth=0.8)
    axes.set_yticks(range(len(order)), order)
    axes.set(xscale="log", ylim=(len(order) - 0.4, -0.6), xlim=(0.9 / CLIP, 1.1 * CLIP))
    axes.set_xticks([0.01, 0.1, 1, 10, 100], labels=["≤ 1/100", "1/10", "1", "10", "≥ 100"])
    axes.minorticks_off()
    axes.set_xlabel(f"{sweep.measure.label} relative to no cooperation,\ngeometric mean over the attacks")
    axes.set_title(title_of(sweep, setting) + "; dot: mean of the seeds, line: their range", fontsize=10)
    figure.legend(loc="outside lower center", ncols=len(numbers))
    return figure


def draw_breakdown(sweep: Sweep, setting: tuple[str, ...], rules: Sequence[str]) -> Figure:
    """The measure against the share of attackers, a panel an attack; mean of the seeds as a line, range as a band."""
    numbers = sorted({cell.attackers for cell in sweep.select(setting)})
    attacks = [attack for attack in attacks_in(sweep.select(setting)) if attack != NO_ATTACK]
    wide = min(5, len(attacks))
    high = -(-len(attacks) // wide)
    figure = Figure(figsize=(0.8 + 2.3 * wide, 1.3 + 1.75 * high), layout="constrained")
    panels = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).ravel()
    limits = axis_limits(sweep, setting, rules)
    for axes, attack in zip(panels, attacks, strict=False):
        for rule, style in styles(rules).items():
            numbers_of_rule, *three = zip(*over_numbers(sweep, setting, attack, rule), strict=True)
            share = [100 * number / sweep.agents for number in numbers_of_rule]
            mean, least, largest = (drawable(values, limits) for values in three)
            axes.fill_between(share, least, largest, **style.band)
            axes.plot(share, mean, marker="o", markersize=2.4, clip_on=True, **style.line)
        axes.set_title(attack, fontsize=9.5)
    panels[0].set(yscale="log", ylim=limits, xticks=[100 * n / sweep.agents for n in numbers])
    for axes in panels[len(attacks) :]:
        axes.set_axis_off()
    for place, axes in enumerate(panels[: len(attacks)]):
        axes.xaxis.set_tick_params(labelbottom=place + wide >= len(attacks))
        if axes.xaxis.get_tick_params()["labelbottom"]:
            axes.set_xlabel("% Byzantine", fontsize=9)
    figure.supylabel(sweep.measure.label, fontsize=10)
    lines = [Line2D([], [], **style.line) for style in styles(rules).values()]
    title = title_of(sweep, setting) + "; line: mean of the seeds; band: their range"
    figure.legend(handles=lines, title=title, loc="outside lower center", ncols=min(5, len(lines)))
    return figure


def axis_limits(sweep: Sweep, setting: tuple[str, ...], rules: Sequence[str]) -> tuple[float, float]:
    """What a log axis has to show of the rules, but not far from no cooperation: one rule must not flatten the rest."""
    found = np.array([[cell.values[rule] for rule in (ALONE, *rules)] for cell in sweep.select(setting)])
    usual = float(np.median(found[:, 0]))
    found = found[np.isfinite(found) & (found > 0)]
    if not usual > 0 or not found.size:
        return 0.1, 10.0
    return max(0.7 * float(found.min()), SPAN[0] * usual), min(1.5 * float(found.max()), SPAN[1] * usual)


def over_numbers(
    sweep: Sweep, setting: tuple[str, ...], attack: str, rule: str
) -> list[tuple[int, float, float, float]]:
    """For each number of attackers of an attack: it, and mean, least and largest value over the seeds."""
    found = {}
    for cell in sweep.select(setting):
        if cell.attack in (attack, NO_ATTACK):
            found.setdefault(cell.attackers, []).append(cell.values[rule])
    return [(n, *mean_and_range(found[n])) for n in sorted(found)]


def mean_and_range(values: list[float]) -> tuple[float, float, float]:
    """Mean, least and largest; what is not finite is infinite."""
    known = [value if math.isfinite(value) else math.inf for value in values]
    with np.errstate(over="ignore"):
        return float(np.mean(known)), min(known), max(known)


def drawable(values: Sequence[float], limits: tuple[float, float]) -> np.ndarray:
    """Values as a log axis with these limits can take them: what is infinite or 0 is far outside."""
    return np.clip(values, limits[0] * 1e-3, limits[1] * 1e6)


def write_numbers(sweep: Sweep, settings: list[tuple[str, ...]], folder: Path) -> None:
    """resilience.csv: every value; ranking.csv: every score."""
    rows = [
        [*cell.setting, cell.attackers, cell.attack, rule, cell.seed, repr(cell.values[rule]), repr(cell.ratio(rule))]
        for cell in sweep.cells
        for rule in (ALONE, *sweep.rules)
    ]
    names = [*sweep.swept, "attackers", "attack", "rule", "seed", sweep.measure.label, "relative"]
    _write_csv(folder / "resilience.csv", names, rows)
    scores = [
        [*setting, n, place, s.rule, s.mean, s.least, s.largest, s.helps, s.attacks, s.worst, s.worst_ratio]
        for setting in settings
        for n in attacked_by(sweep, setting)
        for place, s in enumerate(ranking(sweep, setting, n), start=1)
    ]
    names = ["attackers", "place", "rule", "score", "least", "largest", "helps", "attacks", "worst attack", "worst"]
    _write_csv(folder / "ranking.csv", [*sweep.swept, *names], scores)


def _write_csv(path: Path, names: list[str], rows: list[list]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
    print(f"wrote {path}")


def attacked_by(sweep: Sweep, setting: tuple[str, ...]) -> list[int]:
    """The numbers of attackers that a figure is drawn for; 0 only where there is no other."""
    found = sorted({cell.attackers for cell in sweep.select(setting)})
    return [number for number in found if number] or found


def write_markdown(sweep: Sweep, settings: list[tuple[str, ...]], path: Path) -> None:
    """The ranking and the matrix of each number of attackers."""
    parts = [f"# Resilience: {sweep.measure.label} relative to no cooperation\n"]
    parts += ["**Stand-in data.**\n"] if sweep.stand_in else []
    parts += [f"{sweep.left_out[0].upper()}{sweep.left_out[1:]}.\n"] if sweep.left_out else []
    seeds = len({cell.seed for cell in sweep.cells})
    parts.append(
        f"Below 1 cooperation helps, above 1 an agent had better stay alone. Geometric mean of {seeds} "
        f"seed{'s' * (seeds > 1)}; the score is the geometric mean over the attacks of ratios between 1/{CLIP:.0f} and "
        f"{CLIP:.0f}, its range that over the seeds.\n"
    )
    for setting in settings:
        for attackers in attacked_by(sweep, setting):
            who = f"{attackers} of {sweep.agents} agents Byzantine" if attackers else "no attack"
            parts.append(f"## {title_of(sweep, setting)}, {who}\n")
            scores, across = ranking(sweep, setting, attackers), columns(sweep, setting, attackers)
            rows = [
                [s.rule, f"{s.mean:.3g}", f"{s.least:.3g} to {s.largest:.3g}", f"{s.helps} of {s.attacks}",
                 f"{s.worst} ({short(s.worst_ratio)})"]
                for s in scores
            ]  # fmt: skip
            parts.append(_table(["rule", "score", "range", "helps under", "worst attack"], rows))
            rows = [
                [s.rule, *(short(over_seeds(sweep.select(setting, n, attack), s.rule)) for attack, n in across)]
                for s in scores
            ]
            parts.append(_table(["rule", *("no attack" if a == NO_ATTACK else a for a, _ in across)], rows))
    path.write_text("\n".join(parts))
    print(f"wrote {path}")


def _table(names: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [names, ["---"] * len(names), *rows]) + "\n"


def chosen(sweep: Sweep, asked: str | None, setting: tuple[str, ...], most: int) -> list[str]:
    """The rules whose curves are drawn: those asked for, or the paper's and the best."""
    known = (ALONE, *sweep.rules)
    if asked is None:
        best = [s.rule for s in ranking(sweep, setting, most) if s.rule not in (*PAPER, BOUND)][:BEST]
        return [rule for rule in PAPER if rule in known] + best
    rules = asked.split(",")
    for rule in rules:
        if rule not in known:
            raise ResultError(f"--rules {asked}: the sweep has no rule {rule!r}; it has {', '.join(known)}")
    return rules


def main() -> None:
    """Read the sweep, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `mpi-resmtl sweep` wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder of the figures")
    parser.add_argument("--measure", choices=MEASURES, help="(default: the first of these that is recorded)")
    parser.add_argument("--rules", metavar="NAME,...", help="rules of the breakdown (default: the paper's, the best)")
    asked = parser.parse_args()

    sweep = load(asked.folder, asked.measure)
    settings = list(dict.fromkeys(cell.setting for cell in sweep.cells))
    curves = {setting: chosen(sweep, asked.rules, setting, attacked_by(sweep, setting)[-1]) for setting in settings}
    if sweep.left_out:
        print(f"note: {sweep.left_out}")
    for setting in settings:
        suffix = "".join(f"-{text}" for text in setting)
        numbers = attacked_by(sweep, setting)
        for attackers in numbers:
            figure = draw_matrix(sweep, setting, attackers)
            save(figure, asked.output, f"resilience{suffix}-{attackers}", sweep.stand_in)
        save(draw_ranking(sweep, setting, numbers), asked.output, f"ranking{suffix}", sweep.stand_in)
        if len({cell.attackers for cell in sweep.select(setting)}) > 1:
            figure = draw_breakdown(sweep, setting, curves[setting])
            save(figure, asked.output, f"breakdown{suffix}", sweep.stand_in)
    write_numbers(sweep, settings, asked.output)
    write_markdown(sweep, settings, asked.output / "resilience.md")


if __name__ == "__main__":
    command(main)
