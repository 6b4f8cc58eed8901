"""The paper's theory beside what runs measure: regret and its bound, eq. 5, who shares a task, what combining costs.

    mpi-resmtl sweep theory-regression --output theory
    mpi-resmtl bench scale --sweep parameters,neighbourhood --json scale.json
    python analysis/theory.py theory --bench scale.json -o figures

takes the folder of a sweep over seeds, or one result file, of a study whose true risk is known, and writes, as PNG and
PDF, theorem1 (the limiting regret beside the bound of Lemma 1, and how combining changes it, in every cell),
regret-RULE (the expected regret by iteration), eq5 (the share of agents whose risk is no higher after combining),
groups (learned weights beside the true groups) and, with --bench, cost; and theorem1.csv, agents.csv.

Regrets are of r, half the recorded risk: the function whose stochastic gradient Lemma 1 is about. A cell is one number
of attackers, one attack and no, some or all of an agent's neighbours Byzantine; a run is one sample of it, its agents'
mean. Limits are means over the last fifth of a run. An inequality holds if it is not off by more than three standard
errors of the runs' mean. Needs `mpi_resmtl`, which knows the constants of both studies.
"""

from __future__ import annotations

import argparse
import csv
import math
import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results import BYZANTINE_COLOUR, Result, ResultError, command, index, read, save, styles
from scaling import read as read_bench
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mpi_resmtl.attacks import ATTACKS
from mpi_resmtl.bench.scale import line
from mpi_resmtl.rules import RULES
from mpi_resmtl.tasks import linear_regression, target_localization

PROPOSED = ("loss", "loss-fresh")
"""The rules that Theorem 1 is drawn for where none are named."""
ALONE = "none"
LAST = 0.2
"""Share of the run that stands for the limit."""
ERRORS = 3.0
"""Standard errors within which an inequality holds."""
ROUNDING = 1e-9
"""Relative difference of regrets that are equal but for rounding."""
LEVELS = ("no", "some", "all")
"""How many of an agent's neighbours are Byzantine."""
WIDE = 4
"""Panels beside one another."""
BEFORE, AFTER = "#d55e00", "#0072b2"
BOUNDS = {
    "alone": dict(color="black", linewidth=0.9, linestyle=(0, (1, 2)), label="everyone a group of its own"),
    "best": dict(
        color="black", linewidth=0.9, linestyle=(0, (5, 3)), label="true groups, as far as the graph links them"
    ),
}
"""What mutual information is drawn beside."""


@dataclass(frozen=True)
class Problem:
    """What is known of every agent's r: arrays (n,)."""

    constants: linear_regression.Constants
    least: np.ndarray
    """r_k*"""
    step_size: float
    descends: bool
    """Whether `adapt` follows the stochastic gradient of r."""

    @property
    def bound(self) -> np.ndarray:
        """mu L sigma^2 / (2 m)."""
        c = self.constants
        with np.errstate(divide="ignore"):
            return self.step_size * c.L * c.sigma_squared / (2 * c.m)

    @property
    def largest_step(self) -> np.ndarray:
        """1 / (L (1 + c)): Lemma 1 is for steps up to that."""
        return 1 / (self.constants.L * (1 + self.constants.c))


def _of_regression(task: dict, seed: int) -> Problem:
    parameters = linear_regression.Parameters(**task)
    noise = linear_regression.agents_of(parameters, seed)[1]
    return Problem(linear_regression.constants_of(parameters, seed), noise**2 / 2, parameters.step_size, True)


def _of_localization(task: dict, seed: int) -> Problem:
    parameters = target_localization.Parameters(**task)
    noise = target_localization.noise_of(parameters, seed).distance
    return Problem(target_localization.constants_of(parameters, seed), noise**2 / 2, parameters.step_size, False)


KNOWN: dict[str, Callable[[dict, int], Problem]] = {
    "linear-regression": _of_regression,
    "target-localization": _of_localization,
}


class Cell(NamedTuple):
    """Where Theorem 1 is looked at."""

    setting: tuple[str, ...]
    """Values of what is swept besides seed, attackers and attack."""
    attackers: int
    attack: str
    level: str
    """one of LEVELS"""


@dataclass(frozen=True)
class Sample:
    """One run's agents (A,) of a cell under one rule."""

    agent: np.ndarray
    share: np.ndarray
    """(A,) of its neighbours that are Byzantine."""
    bound: np.ndarray
    before: np.ndarray
    """(I, A) regret of psi."""
    after: np.ndarray
    """(I, A) regret of theta."""


@dataclass(frozen=True)
class Groups:
    """How well a rule's weights tell who shares a task, (T,) each."""

    information: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    alone: float
    """Information of groups of one agent each."""
    best: float
    """Information of the true groups as far as the graph links them."""


@dataclass
class Study:
    """What is in a folder or file."""

    name: str
    agents: int
    rules: tuple[str, ...]
    swept: tuple[str, ...]
    problem: list[Problem] = field(default_factory=list)
    """of each run"""
    iteration: np.ndarray | None = None
    """(I,)"""
    weight_iteration: np.ndarray | None = None
    """(T,)"""
    samples: dict[tuple[Cell, str], list[Sample]] = field(default_factory=dict)
    groups: dict[tuple[Cell, str], list[Groups]] = field(default_factory=dict)
    """Of all normal agents of a run: the cell's level is empty."""
    told: dict[str, bool] = field(default_factory=dict)
    """Whether an attack is told its victim's sample."""
    averaged: dict[tuple[str, ...], float] = field(default_factory=dict)
    """Of each setting, how many samples phi is a mean of: 2 / nu - 1, at which equal weights have its variance."""
    stand_in: bool = False
    left_out: str = ""

    @property
    def cells(self) -> list[Cell]:
        """In the order of settings, attacks, attackers and levels."""
        found = dict.fromkeys(cell for cell, _ in self.samples)
        settings = list(dict.fromkeys(cell.setting for cell in found))
        attacks = list(dict.fromkeys(cell.attack for cell in found))
        return sorted(
            found,
            key=lambda c: (
                settings.index(c.setting), c.attackers > 0, attacks.index(c.attack), c.attackers, LEVELS.index(c.level)
            ),
        )  # fmt: skip

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """In order."""
        return list(dict.fromkeys(cell.setting for cell in self.cells))


def load(path: Path) -> Study:
    """Read all runs of a sweep's folder that are done, or one result file; ResultError where there is none."""
    if path.is_dir():
        rows, swept = index(path)
        done = [row for row in rows if row["state"] == "done"]
        if not done:
            raise ResultError(f"{path / 'index.csv'}: no cell is done")
        runs = [(path / row["file"], tuple(row[key] for key in swept), row["byzantine.attack"]) for row in done]
    else:
        rows, swept, runs = (), (), [(path, (), None)]
    study = None
    for file, setting, attack in runs:
        result = read(file)
        name = result.task["name"]
        if name not in KNOWN:
            raise ResultError(f"{file}: nothing is known of the risks of {name}; only of those of {', '.join(KNOWN)}")
        study = study or Study(name, result.agents, result.rules, swept)
        if (name, result.agents, result.rules) != (study.name, study.agents, study.rules):
            raise ResultError(f"{file}: differs from the sweep's other runs in its study, agents or rules")
        _add(study, result, setting, attack)
        result.file.close()
    _drop_rare(study)
    if rows and len(done) < len(rows):
        study.left_out = f"{len(rows) - len(done)} of {len(rows)} cells are not done"
    return study


def _add(study: Study, result: Result, setting: tuple[str, ...], attack: str | None) -> None:
    config = tomllib.loads(result.file.attrs["config"])
    problem = KNOWN[study.name](result.task, int(result.file.attrs["seed"]))
    who, nu = config["byzantine"]["attack"], config["rule"]["forgetting_factor"]
    attack = attack or (who if result.attackers else "none")
    study.told[attack] = attack != "none" and ATTACKS[who].samples
    study.averaged[setting] = 2 / nu - 1 if nu else math.inf
    study.problem.append(problem)
    study.stand_in |= result.stand_in
    share = byzantine_share(result)
    levels = {
        "no": share == 0,
        "some": (share > 0) & (share < 1),
        "all": share == 1,
    }
    for rule in result.rules:
        before, after = (result.dataset(rule, f"risk_{when}") for when in ("before", "after"))
        (scale,) = before.dims[0].values()
        study.iteration = _same(study.iteration, scale[()], result.path)
        before, after = (risk[()] / 2 - problem.least for risk in (before, after))
        for level, chosen in levels.items():
            agent = np.flatnonzero(chosen & ~result.byzantine)
            if len(agent):
                sample = Sample(agent, share[agent], problem.bound[agent], before[:, agent], after[:, agent])
                study.samples.setdefault((Cell(setting, result.attackers, attack, level), rule), []).append(sample)
        weight = result.file.get(f"rule/{rule}/weight")
        if weight is not None and rule != ALONE and len(np.unique(result.group[result.normal])) > 1:
            study.weight_iteration = _same(study.weight_iteration, result.file["weight_iteration"][()], result.path)
            found = tell_groups(result, weight[()])
            study.groups.setdefault((Cell(setting, result.attackers, attack, ""), rule), []).append(found)


def _drop_rare(study: Study) -> None:
    """Leave out levels that fewer than half of the runs with so many attackers have: too few samples."""
    most: dict[tuple, int] = {}
    for (cell, rule), samples in study.samples.items():
        most[*cell[:3], rule] = max(len(samples), most.get((*cell[:3], rule), 0))
    for cell, rule in list(study.samples):
        if 2 * len(study.samples[cell, rule]) < most[*cell[:3], rule]:
            del study.samples[cell, rule]


def _same(known: np.ndarray | None, found: np.ndarray, path: Path) -> np.ndarray:
    if known is not None and not np.array_equal(known, found):
        raise ResultError(f"{path}: was recorded at other iterations than the sweep's other runs")
    return found


def byzantine_share(result: Result) -> np.ndarray:
    """(n,) share of each agent's neighbours, itself not counted, that are Byzantine; NaN where it has none."""
    source, target = result.edge[result.edge[:, 0] != result.edge[:, 1]].T
    heard = np.bincount(target, minlength=result.agents)
    byzantine = np.bincount(target, result.byzantine[source], result.agents)
    return np.where(heard > 0, byzantine / np.maximum(heard, 1), np.nan)


def heeded(result: Result, weight: np.ndarray) -> np.ndarray:
    """(T, E) bool: the edges from others whose weight is at least half of an equal share, 1 / (2 abs(N_k))."""
    source, target = result.edge.T
    size = np.bincount(target, minlength=result.agents)
    return (np.nan_to_num(weight) >= 0.5 / size[target]) & (source != target) & ~result.byzantine[target]


def tell_groups(result: Result, weight: np.ndarray) -> Groups:
    """How weights (T, E) tell who shares a task.

    Of the messages that normal agents heed, the share that is from normal agents of the same true group (precision),
    and of those that are, the share that is heeded (recall). Normal agents of whom one heeds the other are in one found
    group, and so are all that are linked in that way; found and true groups are compared by their mutual information.
    """
    source, target = result.edge.T
    mate = (result.group[source] == result.group[target]) & ~result.byzantine[source] & (source != target)
    mates = np.count_nonzero(mate & ~result.byzantine[target])
    chosen = heeded(result, weight)
    right = np.count_nonzero(chosen & mate, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = right / chosen.sum(axis=1)
        recall = right / mates if mates else np.full(len(weight), np.nan)
    truth = result.group[result.normal]
    found = [normalised_information(found_groups(result, row), truth) for row in chosen]
    alone = normalised_information(np.arange(len(truth)), truth)
    best = normalised_information(found_groups(result, mate & ~result.byzantine[target]), truth)
    return Groups(np.array(found), precision, recall, alone, best)


def found_groups(result: Result, chosen: np.ndarray) -> np.ndarray:
    """Group of each normal agent, of those linked by one heeding the other; chosen (E,) bool."""
    source, target = result.edge[chosen & ~result.byzantine[result.edge[:, 0]]].T
    links = coo_array((np.ones(len(source)), (source, target)), shape=(result.agents, result.agents))
    return connected_components(links, directed=False)[1][result.normal]


def normalised_information(one: np.ndarray, other: np.ndarray) -> float:
    """2 I / (H + H') of two labellings (A,); 1 where both have one group only."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1 / len(one))

    def entropy(share: np.ndarray) -> float:
        share = share[share > 0]
        return float(-(share * np.log(share)).sum())

    rows, columns = entropy(table.sum(axis=1)), entropy(table.sum(axis=0))
    if rows + columns == 0:
        return 1.0
    return max(0.0, 2 * (rows + columns - entropy(table.ravel())) / (rows + columns))


@dataclass(frozen=True)
class Estimate:
    """A mean over runs and its standard error, NaN of one run."""

    mean: float
    error: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """From one value a run."""
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return Estimate(float(np.mean(values)), error)

    def is_positive(self, rounding: float) -> bool:
        """Whether it is above 0 beyond the Monte Carlo error."""
        return self.mean > ERRORS * np.nan_to_num(self.error) + rounding


@dataclass(frozen=True)
class Verdict:
    """Theorem 1 in a cell under a rule: the limits of regrets, and whether the inequalities hold."""

    cell: Cell
    rule: str
    runs: int
    share: str
    before: Estimate
    after: Estimate
    change: Estimate
    """after - before"""
    excess: Estimate
    """before - bound"""
    bound: float
    doubts: tuple[str, ...]
    """What Theorem 1 assumes and the cell does not fulfil, of itself."""
    averaged: float

    @property
    def is_bounded(self) -> bool:
        """E[r(psi) - r*] <= mu L sigma^2 / (2 m)."""
        return not self.excess.is_positive(ROUNDING * self.bound)

    @property
    def never_worse(self) -> bool:
        """E[r(theta) - r*] <= E[r(psi) - r*]."""
        return not self.change.is_positive(ROUNDING * abs(self.before.mean))

    @property
    def holds(self) -> bool:
        """Both, within the Monte Carlo error."""
        return self.is_bounded and self.never_worse

    @property
    def words(self) -> str:
        """In a few words; a regret above the bound whose error is as large decides nothing."""
        if math.isnan(self.change.error):
            return "one run: no Monte Carlo error"
        if self.holds and self.excess.mean > 0:
            return f"undecided: {self.runs} runs are too few"
        if self.holds:
            return "holds" + (f", though {self.doubts[0]}" if self.doubts else "")
        return f"fails: {'; '.join(self.doubts) or f'{self.averaged:.0f} losses do not tell the risk'}"


def settled(study: Study) -> slice:
    """The records of the last fifth."""
    return slice(int(np.searchsorted(study.iteration, (1 - LAST) * study.iteration[-1], side="right")), None)


def verdict(study: Study, cell: Cell, rule: str) -> Verdict:
    """Theorem 1 in a cell under a rule."""
    samples, late = study.samples[cell, rule], settled(study)
    with np.errstate(over="ignore", invalid="ignore"):
        before, after = (
            np.nan_to_num([getattr(s, when)[late].mean() for s in samples], nan=np.inf) for when in ("before", "after")
        )
        change = np.nan_to_num(after - before, nan=np.inf)
        bound = np.array([s.bound.mean() for s in samples])
        excess = np.where(np.isinf(bound), -np.inf, before - bound)
        parts = [Estimate.of(values) for values in (before, after, change, excess)]
    told = cell.level != "no" and study.told[cell.attack] and RULES[rule.rpartition("+")[2]].judged_by != "fresh"
    doubts = ("attackers see the sample",) if told else ()
    share = np.concatenate([s.share for s in samples])
    return Verdict(
        cell, rule, len(samples), _percent(share), *parts, float(bound.mean()), doubts, study.averaged[cell.setting]
    )


def _percent(share: np.ndarray) -> str:
    low, high = round(100 * share.min()), round(100 * share.max())
    return f"{low} %" if low == high else f"{low} to {high} %"


def _range(values: np.ndarray) -> str:
    low, high = f"{values.min():.2g}", f"{values.max():.2g}"
    return low if low == high else f"{low} to {high}"


def assumptions(study: Study) -> tuple[bool, str]:
    """Whether Lemma 1 applies to every agent of every run, and the constants in words."""
    together = {
        name: np.concatenate([getattr(p.constants, name) for p in study.problem])
        for name in ("m", "L", "sigma_squared", "c")
    }
    largest = np.concatenate([p.largest_step for p in study.problem])
    step, descends = study.problem[0].step_size, all(p.descends for p in study.problem)
    symbols = dict(zip(("m", "L", r"\sigma^2", "c"), together.values(), strict=True))
    words = "   ".join(f"${symbol}$ = {_range(values)}" for symbol, values in symbols.items())
    fits = step <= largest.min()
    words += f"\n$\\mu$ = {step:g} {'≤' if fits else '>'} $1/(L(1+c))$ = {_range(largest)}"
    if fits and descends:
        return True, f"{words}: Lemma 1 applies"
    why = (
        []
        if fits
        else [f"regressors are almost of rank one, $m/L$ down to {(together['m'] / together['L']).min():.1g}"]
    )
    why += [] if descends else ["adapt descends another function than this risk"]
    return False, f"{words}: Lemma 1 does not apply\n({'; '.join(why)})"


def _title(study: Study, setting: tuple[str, ...]) -> str:
    return ", ".join([_study(study), *_setting(study, setting)])


def _setting(study: Study, setting: tuple[str, ...]) -> list[str]:
    """What is swept besides seed, attackers and attack, in words."""
    return [f"{key.removeprefix('rule.')} = {text}" for key, text in zip(study.swept, setting, strict=True)]


def _study(study: Study) -> str:
    return study.name.replace("-", " ").capitalize()


def _name(cell: Cell, share: str | None = None, agents: int | None = None) -> str:
    """A cell in a line: the share of Byzantine neighbours, or how many of the agents are."""
    if not cell.attackers:
        return "no attack"
    return f"{cell.attack}, {share} Byzantine" if agents is None else f"{cell.attack}, {cell.attackers} of {agents}"


def draw_theorem(study: Study, verdicts: list[Verdict]) -> Figure:
    """Limiting regrets over the bound, and what combining changes; a row a cell and rule."""
    rows = sorted(verdicts, key=lambda v: (study.settings.index(v.cell.setting), study.rules.index(v.rule)))
    blocks = list(dict.fromkeys((v.cell.setting, v.rule) for v in rows))
    places = [number + 1.6 * blocks.index((v.cell.setting, v.rule)) for number, v in enumerate(rows)]
    figure = Figure(figsize=(11, 2.2 + 0.21 * (places[-1] + 1)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, v in zip(places, rows, strict=True):
        if v.bound and math.isfinite(v.bound):
            for found, colour, marker in ((v.before, BEFORE, "o"), (v.after, AFTER, "x")):
                left.errorbar(
                    found.mean / v.bound, place, xerr=_bars(found, v.bound), color=colour, marker=marker, markersize=5
                )
        if v.before.mean and math.isfinite(v.change.mean):
            scale = v.before.mean / 100
            colour = AFTER if v.never_worse else BYZANTINE_COLOUR
            right.errorbar(
                v.change.mean / scale, place, xerr=_bars(v.change, scale), color=colour, marker="o", markersize=4
            )
        right.annotate(
            v.words, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5,
            color="#202020" if v.holds else BYZANTINE_COLOUR, annotation_clip=False,
        )  # fmt: skip
    left.axvline(1, color="black", linewidth=1, linestyle=(0, (4, 2)))
    right.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(places, [_name(v.cell, v.share) for v in rows])
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    left.set(xscale="log", xlabel=r"limiting regret / bound $\mu L\sigma^2/(2m)$", ylim=(places[-1] + 0.7, -1.8))
    right.set_xscale("symlog", linthresh=1)
    low, high = right.get_xlim()
    right.set(xlim=(min(low, -1), max(high, 1)), xlabel="change by combining, % of the regret before")
    ticks = [t for t in (-100, -10, -1, 0, 1, 10, 100, 1e3, 1e4) if min(low, -1) <= t <= max(high, 1)]
    right.set_xticks(ticks, [f"{t:g}" for t in ticks])
    for setting, rule in blocks:
        first = min(p for p, v in zip(places, rows, strict=True) if (v.cell.setting, v.rule) == (setting, rule))
        words = ", ".join([f"rule {rule}", *_setting(study, setting)])
        left.annotate(
            words, (0.01, first - 0.95), xycoords=("axes fraction", "data"), va="center", fontsize=9, fontweight="bold"
        )
    figure.suptitle(f"{_study(study)}: {assumptions(study)[1]}", fontsize=10, linespacing=1.5)
    marks = [
        Line2D([], [], color=BEFORE, marker="o", markersize=5, label="before combining"),
        Line2D([], [], color=AFTER, marker="x", markersize=5, label="after"),
        Line2D([], [], color="black", linestyle=(0, (4, 2)), label="bound"),
        Line2D([], [], color=BYZANTINE_COLOUR, marker="o", markersize=4, label="worse after combining"),
    ]
    runs = f"{min(v.runs for v in rows)} runs" if len({v.runs for v in rows}) == 1 else "runs"
    figure.legend(
        handles=marks, title=f"bars: {ERRORS:g} standard errors of {runs}", loc="outside lower center", ncols=4
    )
    return figure


def _bars(found: Estimate, scale: float) -> float | None:
    return None if math.isnan(found.error) else ERRORS * found.error / scale


def _panels(number: int, height: float = 2.1, legend: float = 0.9) -> tuple[Figure, np.ndarray]:
    """A figure and as many panels, WIDE in a row."""
    high = -(-number // WIDE)
    wide = -(-number // high)
    figure = Figure(figsize=(max(6.5, 0.6 + 2.7 * wide), legend + height * high), layout="constrained")
    panels = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[number:]:
        axes.set_axis_off()
    for place, axes in enumerate(panels[:number]):
        last = place >= wide * (high - 1)
        axes.xaxis.set_tick_params(labelbottom=last)
        if last:
            axes.set_xlabel("iteration")
    return figure, panels[:number]


def draw_regret(study: Study, setting: tuple[str, ...], rule: str) -> Figure:
    """Expected regret by iteration, a panel a cell: before and after combining, alone, and the bound."""
    cells = [cell for cell in study.cells if cell.setting == setting]
    figure, panels = _panels(len(cells), legend=1.5)
    usual = []
    for axes, cell in zip(panels, cells, strict=True):
        v, samples = verdict(study, cell, rule), study.samples[cell, rule]
        for when, look in (
            ("before", dict(color=BEFORE, linewidth=2.4, alpha=0.8)), ("after", dict(color=AFTER, linewidth=1.1))
        ):  # fmt: skip
            axes.plot(study.iteration, np.mean([getattr(s, when).mean(axis=1) for s in samples], axis=0), **look)
        agents = _by_agent(samples, "after", study.agents)
        axes.fill_between(study.iteration, agents.min(axis=1), agents.max(axis=1), color=AFTER, alpha=0.13, linewidth=0)
        if ALONE in study.rules and rule != ALONE:
            alone = np.mean([s.after.mean(axis=1) for s in study.samples[cell, ALONE]], axis=0)
            axes.plot(
                study.iteration, alone, **(styles([ALONE])[ALONE].line | dict(linewidth=1.4, zorder=5, linestyle=":"))
            )
            usual.append(alone)
        axes.axhline(v.bound, color="black", linewidth=1, linestyle=(0, (4, 2)))
        usual += [np.array([v.bound]), agents[np.isfinite(agents)]]
        axes.set_title(_name(cell, v.share), fontsize=9.5)
        axes.annotate(
            v.words.replace(", though", ",\nthough").replace(": ", ":\n"), (0.97, 0.95), xycoords="axes fraction",
            ha="right", va="top", fontsize=8, color="#202020" if v.holds else BYZANTINE_COLOUR,
            bbox=dict(facecolor="white", edgecolor="none", alpha=0.8, pad=1.5), zorder=8,
        )  # fmt: skip
    values = np.concatenate([np.ravel(u) for u in usual])
    values = values[np.isfinite(values) & (values > 0)]
    middle = float(np.median(values))
    panels[0].set(yscale="log", ylim=(max(values.min() / 2, middle * 1e-4), min(values.max() * 20, middle * 1e7)))
    figure.supylabel("expected regret $E[r_k - r_k^*]$", fontsize=10)
    figure.suptitle(f"{_title(study, setting)}, rule {rule}\n{assumptions(study)[1]}", fontsize=9.5, linespacing=1.4)
    handles = [
        Line2D([], [], color=BEFORE, linewidth=2.4, label="before combining"),
        Line2D([], [], color=AFTER, label="after combining (band: the agents' range)"),
        Line2D([], [], color="black", linestyle=(0, (4, 2)), label=r"bound $\mu L\sigma^2/(2m)$"),
    ]
    if ALONE in study.rules:
        handles.insert(2, Line2D([], [], color="#8f8f8f", linestyle=":", label="no cooperation"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(cells) < 3 else 4)
    return figure


def _by_agent(samples: list[Sample], when: str, agents: int) -> np.ndarray:
    """(I, A') expected regret of each agent that is in any of the samples."""
    total = np.zeros((len(samples[0].before), agents))
    count = np.zeros(agents)
    for s in samples:
        total[:, s.agent] += getattr(s, when)
        count[s.agent] += 1
    return total[:, count > 0] / count[count > 0]


def draw_eq5(study: Study, setting: tuple[str, ...]) -> Figure:
    """Share of agents and runs in which the risk is no higher after combining, by iteration; a panel a cell."""
    cells = [cell for cell in study.cells if cell.setting == setting]
    rules = [rule for rule in study.rules if rule != ALONE] or list(study.rules)
    figure, panels = _panels(len(cells), legend=1.3)
    for axes, cell in zip(panels, cells, strict=True):
        for rule, style in styles(rules).items():
            axes.plot(study.iteration, 100 * share_of_eq5(study.samples[cell, rule]), **style.line)
        share = np.concatenate([s.share for s in study.samples[cell, rules[0]]])
        axes.set_title(_name(cell, _percent(share)), fontsize=9.5)
    panels[0].set(ylim=(-3, 103), yticks=range(0, 101, 25))
    figure.supylabel("agents with $r_k(\\theta_k) \\leq r_k(\\psi_k)$, %", fontsize=10)
    lines = [Line2D([], [], **style.line) for style in styles(rules).values()]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(5, len(lines)))
    figure.suptitle(f"{_title(study, setting)}: how often eq. 5 holds", fontsize=10)
    return figure


def share_of_eq5(samples: list[Sample]) -> np.ndarray:
    """(I,) share of agents, of all runs together, whose risk is not higher after combining; rounding does not count."""
    before, after = (np.concatenate([getattr(s, when) for s in samples], axis=1) for when in ("before", "after"))
    return (after <= before + ROUNDING * np.abs(before)).mean(axis=1)


def draw_groups(study: Study, setting: tuple[str, ...]) -> Figure | None:
    """How the weights tell the true groups, by iteration; a column an attack and its attackers. None without groups."""
    keys = [cell for cell in dict.fromkeys(cell for cell, _ in study.groups) if cell.setting == setting]
    if not keys:
        return None
    rules = [rule for rule in study.rules if (keys[0], rule) in study.groups]
    figure = Figure(figsize=(max(6.5, 0.8 + 2.6 * len(keys)), 6.6), layout="constrained")
    grid = figure.subplots(3, len(keys), sharex=True, sharey=True, squeeze=False)
    names = (
        ("information", "mutual information\nwith the groups"),
        ("precision", "precision of\n'shares my task'"),
        ("recall", "recall of\n'shares my task'"),
    )
    for row, (name, label) in zip(grid, names, strict=True):
        row[0].set_ylabel(label, fontsize=9)
        for axes, cell in zip(row, keys, strict=True):
            for rule, style in styles(rules).items():
                found = np.array([getattr(g, name) for g in study.groups[cell, rule]])
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Mean of empty slice")
                    axes.plot(study.weight_iteration, np.nanmean(found, axis=0), **style.line)
    for axes, cell in zip(grid[0], keys, strict=True):
        for name, look in BOUNDS.items():
            axes.axhline(np.mean([getattr(g, name) for g in study.groups[cell, rules[0]]]), **look)
        axes.set_title(_name(cell, agents=study.agents) + " Byzantine" * bool(cell.attackers), fontsize=9.5)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    grid[0, 0].set(ylim=(-0.04, 1.04))
    lines = [Line2D([], [], **style.line) for style in styles(rules).values()] + [
        Line2D([], [], **look) for look in BOUNDS.values()
    ]
    title = "shares my task: has at least half of an equal share of the weight; mean of the runs"
    figure.legend(handles=lines, title=title, loc="outside lower center", ncols=3)
    figure.suptitle(f"{_title(study, setting)}: learned weights and the true groups", fontsize=10)
    return figure


@dataclass(frozen=True)
class Cost:
    """What judging and combining takes an agent along one axis; seconds."""

    label: str
    x: np.ndarray
    seconds: np.ndarray


def costs(report: dict) -> tuple[list[Cost], list[Cost]]:
    """Along abs(N_k) for each model size, and along P; ResultError where `bench scale` measured neither."""
    found: dict[tuple[str, object], list[tuple[float, float]]] = {}
    for row in report["scale"]:
        seconds = (row["phases"]["evaluate"] + row["phases"]["combine"]) / row["agents"]
        size = row["edges"] / row["agents"]
        if row["sweep"] == "neighbourhood":
            found.setdefault(("neighbourhood", row["parameters"]), []).append((size, seconds))
        elif row["sweep"] == "parameters":
            found.setdefault(("parameters", size), []).append((row["parameters"], seconds))
    split = {"neighbourhood": [], "parameters": []}
    for (sweep, other), points in found.items():
        label = f"P = {other:,}" if sweep == "neighbourhood" else f"$|N_k|$ = {other:g}"
        x, seconds = np.array(sorted(points)).T
        if len(x) > 1:
            split[sweep].append(Cost(label, x, seconds))
    if not any(split.values()):
        raise ResultError("has neither the sweep `neighbourhood` nor `parameters` of `mpi-resmtl bench scale`")
    return split["neighbourhood"], split["parameters"]


def draw_cost(parts: tuple[list[Cost], list[Cost]]) -> Figure:
    """Time of judging and combining against abs(N_k) and P, with the line fixed + each x of least relative error."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    names = ("size of the neighbourhood $|N_k|$", "parameters of a model, P")
    for axes, found, name in zip(figure.subplots(1, 2), parts, names, strict=True):
        for cost, colour in zip(found, ("#0072b2", "#d55e00", "#009e73"), strict=False):
            fixed, each = line(cost.x, cost.seconds)
            across = np.geomspace(cost.x[0], cost.x[-1], 100)
            axes.plot(across, 1e6 * (fixed + each * across), color=colour, linewidth=1.2)
            error = np.abs((fixed + each * cost.x) / cost.seconds - 1).max()
            label = f"{cost.label}: {1e6 * fixed:.3g} us + {1e9 * each:.3g} ns each, within {error:.0%}"
            axes.plot(cost.x, 1e6 * cost.seconds, "o", color=colour, markersize=4.5, label=label)
        axes.set(xscale="log", yscale="log", xlabel=name)
        if found:
            seconds = np.log10([1e6 * value for cost in found for value in (cost.seconds.min(), cost.seconds.max())])
            axes.set_ylim(10 ** np.floor(seconds.min()), 10 ** np.ceil(seconds.max()))
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5)
    figure.axes[0].set_ylabel("judging and combining,\nus an agent and iteration")
    return figure


def write_numbers(study: Study, verdicts: list[Verdict], folder: Path) -> None:
    """theorem1.csv: every verdict; agents.csv: the limiting regrets of every agent of every cell."""
    names = ["byzantine.count", "attack", "byzantine neighbours", "rule", "runs"]
    values = ["before", "error", "after", "error", "change", "error", "bound"]

    def numbers(parts: Sequence[Estimate], bound: float) -> list[str]:
        return [repr(x) for part in parts for x in (part.mean, part.error)] + [repr(bound)]

    rows = [
        [*v.cell.setting, v.cell.attackers, v.cell.attack, v.share, v.rule, v.runs,
         *numbers((v.before, v.after, v.change), v.bound), v.words]
        for v in verdicts
    ]  # fmt: skip
    _write_csv(folder / "theorem1.csv", [*study.swept, *names, *values, "verdict"], rows)
    rows, late = [], settled(study)
    for v in verdicts:
        each: dict[int, list[tuple[float, float, float]]] = {}
        for s in study.samples[v.cell, v.rule]:
            limits = zip(
                s.agent.tolist(), s.before[late].mean(axis=0), s.after[late].mean(axis=0), s.bound, strict=True
            )
            for agent, before, after, bound in limits:
                each.setdefault(agent, []).append((float(before), float(after), float(bound)))
        for agent, found in sorted(each.items()):
            before, after, bound = np.array(found).T
            parts = [Estimate.of(x) for x in (before, after, after - before)]
            rows.append(
                [*v.cell.setting, v.cell.attackers, v.cell.attack, v.share, v.rule, len(found), agent,
                 *numbers(parts, float(bound.mean()))]
            )  # fmt: skip
    _write_csv(folder / "agents.csv", [*study.swept, *names, "agent", *values], rows)


def _write_csv(path: Path, names: list[str], rows: list[list]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
    print(f"wrote {path}")


def show(study: Study, verdicts: list[Verdict]) -> None:
    """Theorem 1's cells as a table."""
    swept = " ".join(key.rpartition(".")[2] for key in study.swept)
    print(
        f"{swept:<18} {'attack':<11} {'Byzantine neighbours':<21} {'rule':<11} {'runs':>4} {'regret before':>20} "
        f"{'change by combining':>22} {'bound':>9}  verdict"
    )
    for v in verdicts:
        before, change = (f"{x.mean:.4g} ± {x.error:.1g}" for x in (v.before, v.change))
        print(
            f"{' '.join(v.cell.setting):<18} {v.cell.attack:<11} {v.share:<21} {v.rule:<11} {v.runs:>4} {before:>20} "
            f"{change:>22} {v.bound:>9.4g}  {v.words}"
        )


def chosen(study: Study, asked: str | None, source: Path) -> list[str]:
    """The rules that Theorem 1 is drawn for."""
    rules = asked.split(",") if asked else [rule for rule in PROPOSED if rule in study.rules]
    for rule in rules or PROPOSED[:1]:
        if rule not in study.rules:
            raise ResultError(f"{source}: has no rule {rule!r}; it has {', '.join(study.rules)}")
    return rules


def main() -> None:
    """Read the runs, say whether Theorem 1 holds and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="DIR|FILE", help="what `mpi-resmtl sweep` wrote, or a result file")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder of the figures")
    parser.add_argument("--rules", metavar="NAME,...", help="rules of Theorem 1 (default: loss, loss-fresh)")
    parser.add_argument("--bench", type=Path, metavar="JSON", help="written by `mpi-resmtl bench scale --json`")
    asked = parser.parse_args()

    parts = None
    if asked.bench is not None:
        try:
            parts = costs(read_bench(asked.bench))
        except (KeyError, TypeError) as error:
            raise ResultError(f"{asked.bench}: is damaged: {type(error).__name__}: {error}") from None
        except ResultError as error:
            raise ResultError(str(error) if str(asked.bench) in str(error) else f"{asked.bench}: {error}") from None
    study = load(asked.source)
    rules = chosen(study, asked.rules, asked.source)
    if study.left_out:
        print(f"note: {study.left_out}")
    verdicts = [verdict(study, cell, rule) for cell in study.cells for rule in rules]
    print(assumptions(study)[1].replace("$", "").replace("\\", ""))
    show(study, verdicts)
    save(draw_theorem(study, verdicts), asked.output, "theorem1", study.stand_in)
    for setting in study.settings:
        suffix = "".join(f"-{text}" for text in setting)
        for rule in rules:
            save(draw_regret(study, setting, rule), asked.output, f"regret-{rule}{suffix}", study.stand_in)
        save(draw_eq5(study, setting), asked.output, f"eq5{suffix}", study.stand_in)
        groups = draw_groups(study, setting)
        if groups is not None:
            save(groups, asked.output, f"groups{suffix}", study.stand_in)
    if parts is not None:
        save(draw_cost(parts), asked.output, "cost", False)
    write_numbers(study, verdicts, asked.output)


if __name__ == "__main__":
    command(main)
