"""The page of a sweep: heat maps, ranking, curves of breakdown and every cell, by what resilience.py computes."""

from __future__ import annotations

import html
import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.colors import to_hex
from report_page import Row, note, options, page, rounded, section, table, wrong
from resilience import (
    ALONE,
    BOUND,
    CLIP,
    COLOURS,
    NO_ATTACK,
    PROPOSED,
    TICKS,
    UNKNOWN,
    Sweep,
    attacked_by,
    attacks_in,
    axis_limits,
    chosen,
    columns,
    drawable,
    load_all,
    mean_and_range,
    over_numbers,
    over_seeds,
    ranking,
    seed_range,
    short,
    strength,
)
from results import ResultError, index, styles

from mpi_resmtl import hdf5
from mpi_resmtl.verify import verify

ORIGIN = ("data", "data_sha256", "data_note", "ranks", "created")
"""Attributes of a result file that say where it comes from."""

Setting = tuple[str, ...]


def of_sweep(folder: Path, checked: int | None) -> str:
    """The page of a sweep's folder; `checked`: how many of its cells are verified, None for all."""
    rows, swept = index(folder)
    toml = sweep_toml(folder)
    sweeps = load_all(folder)
    done = [folder / row["file"] for row in rows if row["state"] == "done"]
    origins = [origin(path) for path in done]
    first = next(iter(sweeps.values()))
    parts = [
        about(first, rows, origins),
        unfinished(rows),
        maps(sweeps),
        section("Values of all cells", CELLS),
        section("Checks", checks(done, checked)),
        section("The sweep", f"<pre>{html.escape(toml)}</pre>"),
        section("Environment", environment(origins)),
    ]
    title = folder.resolve().name or str(folder)
    return page(title, "\n".join(filter(None, parts)), "report_sweep.js", told(sweeps, done, swept))


def sweep_toml(folder: Path) -> str:
    """The sweep's own TOML; ResultError unless it is there."""
    path = folder / "sweep.toml"
    try:
        text = path.read_text()
        tomllib.loads(text)
    except FileNotFoundError:
        raise ResultError(f"{folder}: is not the folder of a sweep: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from None
    return text


def origin(path: Path) -> dict[str, str]:
    """Where a cell comes from: its data, ranks and date, and the versions of all that made it."""
    with hdf5.opened(path) as file:
        said = {name: str(file.attrs.get(name, "")) for name in ORIGIN}
        try:
            versions = json.loads(hdf5.text(file.attrs.get("versions")) or "{}")
            return said | {f"version of {name}": str(version) for name, version in versions.items()}
        except (ValueError, AttributeError, RecursionError):
            raise ResultError(f"{path}: is damaged: its versions are no JSON of names") from None


def distinct(origins: list[dict[str, str]], name: str) -> list[str]:
    """What cells say of something, each once."""
    return list(dict.fromkeys(origin[name] for origin in origins if origin.get(name)))


def about(sweep: Sweep, rows: list[dict[str, str]], origins: list[dict[str, str]]) -> str:
    """What was swept, on which data, and how much of it is there."""
    attacks = [attack for attack in attacks_in(sweep.cells) if attack != NO_ATTACK]
    numbers, seeds = sorted({cell.attackers for cell in sweep.cells}), {cell.seed for cell in sweep.cells}
    dates = sorted(distinct(origins, "created"))
    what = [
        f"{sweep.study}, {sweep.agents} agents",
        counted(len(sweep.rules) + 1, "rule"),
        f"{counted(len(attacks), 'attack')}, by {', '.join(map(str, numbers))} agents",
        counted(len(seeds), "seed"),
        *(f"{key} {', '.join(dict.fromkeys(row[key] for row in rows if row[key]))}" for key in sweep.swept),
        " to ".join(dict.fromkeys((dates or [""])[:: len(dates) - 1 or 1])),
    ]
    data = [
        f"data: {', '.join(distinct(origins, 'data'))}",
        *(f"sha256 {told}" for told in distinct(origins, "data_sha256")),
        *distinct(origins, "data_note"),
    ]
    stand_in = "<p class='stand-in'>stand-in data</p>" if sweep.stand_in else ""
    done = [row for row in rows if row["state"] == "done"]
    cells = f"{len(done)} of {counted(len(rows), 'cell')} done{lasted(done)}"
    paragraphs = f"<p>{html.escape('; '.join(filter(None, what)))}</p>{note('; '.join(data))}{stand_in}"
    return f"{paragraphs}<p id='done'>{cells}</p>"


def counted(number: int, what: str) -> str:
    """How many there are of something."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def lasted(rows: list[dict[str, str]]) -> str:
    """How long cells took in sum, where the index says so."""
    try:
        return f", {sum(float(row['seconds']) for row in rows):,.0f} s in sum"
    except (KeyError, ValueError):
        return ""


def unfinished(rows: list[dict[str, str]]) -> str:
    """The cells that are not done, and why; empty where all are."""
    left = [row for row in rows if row["state"] != "done"]
    if not left:
        return ""
    lines: list[Row] = [[row["file"].removesuffix(".h5"), row["state"], row.get("message", "")] for row in left]
    return section(f"{counted(len(left), 'cell')} not done", table(["cell", "state", "message"], lines))


MAPS = Template(
    """<div id="maps"><div class="controls bar"><label>measure <select id="measure">$measures</select></label>
<label$alone>of <select id="setting">$settings</select></label>
<span id="attackers" role="group" aria-label="attackers"></span></div>
<section><h2>Rules and attacks</h2>$legend
<div id="map" class="plot"></div></section>
<section><h2>Ranking</h2>
<p class="note">Score: geometric mean over the attacks of ratios between 1/$clip and $clip; least and largest: its range
over the seeds. Click a column to sort by it.</p>
<div class="scroll"><table class="sortable" id="ranking"><thead><tr><th>place</th><th class="word">rule</th>
<th>score</th><th>least</th><th>largest</th><th>helps under</th><th>attacks</th><th class="word">worst attack</th>
<th>its ratio</th></tr></thead><tbody></tbody></table></div></section>
$breakdown</div>"""
)
BREAKDOWN = """<section><h2>Breakdown</h2>
<div class="controls"><label>attack <select id="attack"></select></label></div>
<p class="note">Mean of the seeds and their range. Click a rule to show or hide it, double-click to see it alone.</p>
<div id="legend"></div><div id="breakdown" class="plot"></div></section>"""
CELLS = """<div class="controls"><input type="search" id="filter" placeholder="filter, such as: null-space 20 seed3"
aria-label="filter"><output id="found"></output></div>
<p class="note">All words must be in the row, a word in quotes as a whole field. A click in the heat map fills this
in. Click a column to sort by it.</p>
<div class="scroll"><table id="cells"><thead><tr></tr></thead><tbody></tbody></table></div>"""


def maps(sweeps: dict[str, Sweep]) -> str:
    """The sections that the page's script fills, under what chooses measure, setting and number of attackers."""
    first = next(iter(sweeps.values()))
    seeds, known = len({cell.seed for cell in first.cells}), settings(first)
    legend = [
        "The measure's mean over normal agents and the last fifth of the run, divided by that of no cooperation. "
        "Green: cooperation helps; red: an agent had better stay alone",
        f"geometric mean of {seeds} seeds" if seeds > 1 else "one seed",
        "rules in the order of their score, attacks by the harm they do",
        *[f"{BOUND} is a bound, it knows who is who"] * (BOUND in first.rules),
        *[f"bold: the paper's rule, {PROPOSED}"] * (PROPOSED in first.rules),
    ]
    labels = [sweep.measure.label for sweep in sweeps.values()]
    several = any(len({cell.attackers for cell in first.select(setting)}) > 1 for setting in known)
    return MAPS.substitute(
        measures=options(labels, labels[0]),
        settings=options([words(first, setting) for setting in known], words(first, known[0])),
        alone=" hidden" * (len(known) == 1),
        legend=note("; ".join(legend) + "."),
        clip=f"{CLIP:.0f}",
        breakdown=BREAKDOWN if several else "",
    )


def settings(sweep: Sweep) -> list[Setting]:
    """The settings of a sweep's cells, each once."""
    return list(dict.fromkeys(cell.setting for cell in sweep.cells))


def words(sweep: Sweep, setting: Setting) -> str:
    """A setting in words."""
    named = [f"{key} = {text}" for key, text in zip(sweep.swept, setting, strict=True) if text]
    return ", ".join(named) or "no attack"


def told(sweeps: dict[str, Sweep], done: list[Path], swept: Setting) -> dict:
    """All numbers that the page's script shows."""
    first = next(iter(sweeps.values()))
    rules = (ALONE, *first.rules)
    ends = math.log10(CLIP)
    looks = styles(rules).values()
    return {
        "rules": rules,
        "proposed": PROPOSED,
        "looks": [[look.colour, dashes(look.dashes), 3 if look.wide else 1.8] for look in looks],
        "scale": [[k / 12, to_hex(COLOURS(k / 12))] for k in range(13)],
        "unknown": UNKNOWN,
        "end": ends,
        "ticks": list(TICKS.items()),
        "swept": swept,
        "cells": [
            [*cell.setting, cell.attackers, cell.attack, cell.seed, path.name]
            for cell, path in zip(first.cells, done, strict=True)
        ],
        "measures": [measured(sweep, rules) for sweep in sweeps.values()],
    }


def dashes(line: str | tuple) -> str:
    """A dash pattern of matplotlib in plotly's words."""
    return "solid" if line == "-" else ",".join(f"{2 * length:g}px" for length in line[1])


def measured(sweep: Sweep, rules: Iterable[str]) -> dict:
    """What the script shows by one measure."""
    return {
        "label": sweep.measure.label,
        "settings": [
            {
                "maps": {n: heat_map(sweep, setting, n) for n in attacked_by(sweep, setting)},
                "breakdown": breakdown(sweep, setting),
            }
            for setting in settings(sweep)
        ],
        "values": [[digits(cell.values[rule]) for rule in rules] for cell in sweep.cells],
        "ratios": [[digits(cell.ratio(rule)) for rule in rules] for cell in sweep.cells],
    }


def digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def heat_map(sweep: Sweep, setting: Setting, attackers: int) -> dict:
    """Ratios of rules, the best first, under attacks, the mildest first; and the ranking."""
    scores, across = ranking(sweep, setting, attackers), columns(sweep, setting, attackers)
    below = [sweep.select(setting, n, attack) for attack, n in across]
    ratios = np.array([[over_seeds(cells, score.rule) for cells in below] for score in scores], float)
    names = ["no attack" if attack == NO_ATTACK else attack for attack, _ in across]
    return {
        "rules": [score.rule for score in scores],
        "attacks": names,
        "bound": scores[0].rule == BOUND,
        "calm": across[0][0] == NO_ATTACK and len(across) > 1,
        "shade": [rounded(row) for row in strength(ratios)],
        "short": [[short(ratio) for ratio in row] for row in ratios.tolist()],
        "hover": [
            [hover(sweep, name, n, cells, score.rule) for name, (_, n), cells in zip(names, across, below, strict=True)]
            for score in scores
        ],
        "ranking": [
            [place, *(digits(v) if isinstance(v, float) else v for v in astuple(score))]
            for place, score in enumerate(scores, start=1)
        ],
    }


def hover(sweep: Sweep, attack: str, attackers: int, cells: list, rule: str) -> str:
    """What a field of a heat map says: ratio and value, with their spread over the seeds."""
    ratio, (least, largest) = over_seeds(cells, rule), seed_range(cells, rule)
    values = [cell.values[rule] for cell in cells]
    who = f"{attack}, {attackers} of {sweep.agents} Byzantine" if attackers else attack
    lines = [
        f"<b>{html.escape(rule)}</b>, {html.escape(who)}",
        f"ratio {three_digits(ratio)} (seeds: {three_digits(least)} to {three_digits(largest)})",
        f"{sweep.measure.label} {with_range(*mean_and_range(values))}",
    ]
    return "<br>".join(lines)


def with_range(value: float, least: float, largest: float) -> str:
    """A value and the range of what it is the mean of."""
    return f"{three_digits(value)} ({three_digits(least)} to {three_digits(largest)})"


def three_digits(value: float) -> str:
    """A number in three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "–" if math.isnan(value) else "∞"


def breakdown(sweep: Sweep, setting: Setting) -> dict | None:
    """For each attack the curve of every rule over the number of attackers; None where there is only one number."""
    numbers = sorted({cell.attackers for cell in sweep.select(setting)})
    attacks = [attack for attack in attacks_in(sweep.select(setting)) if attack != NO_ATTACK]
    if len(numbers) < 2:
        return None
    shown = chosen(sweep, None, setting, attacked_by(sweep, setting)[-1])
    limits = axis_limits(sweep, setting, shown)
    rules = (ALONE, *sweep.rules)
    return {
        "numbers": numbers,
        "agents": sweep.agents,
        "limits": limits,
        "shown": [rule in shown for rule in rules],
        "attacks": {
            attack: [curve(over_numbers(sweep, setting, attack, rule), limits) for rule in rules] for attack in attacks
        },
    }


def curve(found: list[tuple[int, float, float, float]], limits: tuple[float, float]) -> dict:
    """A rule's curve under an attack, with what is said at its points."""
    numbers, *three = zip(*found, strict=True)
    mean, least, largest = (drawable(values, limits) for values in three)
    return {
        "x": numbers,
        "y": rounded(mean),
        "up": rounded(largest - mean),
        "down": rounded(mean - least),
        "text": [
            f"{n} Byzantine: {three_digits(m)} ({three_digits(low)} to {three_digits(high)})"
            for n, m, low, high in found
        ],
    }


def checks(done: list[Path], asked: int | None) -> str:
    """What `mpi-resmtl verify` has looked at in cells that lie spread over the sweep, and what is wrong with them."""
    number = len(done) if asked is None else min(asked, len(done))
    some = [done[place] for place in np.unique(np.linspace(0, len(done) - 1, number).astype(int))]
    verdicts = [verify(path) for path in some]
    bad = [verdict for verdict in verdicts if verdict.problems]
    good: list[Row] = [[v.path.stem, v.checked] for v in verdicts if not v.problems]
    lead = f"{len(some)} of {counted(len(done), 'finished cell')} checked, {len(bad)} with something wrong."
    if len(some) < len(done):
        lead += " These are spread evenly over the index; --verify all checks every cell."
    found = wrong(bad, named=True) * bool(bad) + table(["cell", "found"], good) * bool(good)
    return f"<p class='checked'>{lead}</p>{found}"


def environment(origins: list[dict[str, str]]) -> str:
    """Versions of all that made the cells; several where they differ."""
    names = list(dict.fromkeys(name for origin in origins for name in origin if name.startswith("version of ")))
    rows: list[Row] = [[n.removeprefix("version of "), ", ".join(distinct(origins, n))] for n in names]
    return table(["what", "version"], [*rows, ["ranks a cell", ", ".join(distinct(origins, "ranks"))]])
