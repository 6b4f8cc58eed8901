"""One page of a run or a sweep, for a browser, with all it needs in itself.

    python analysis/report.py fig1c.h5 -o report.html
    python analysis/report.py arena -o arena.html

Of a run: curves, network and weights, tables, time, traffic. Curves show mean and range over the normal agents, and
on a click in the legend each agent; the network shows the weights of the messages at the iteration that the slider
chooses.

Of the folder of a sweep: what its rules reached under its attacks beside no cooperation as resilience.py defines it, as
heat maps, ranking and curves of breakdown, for each measure that was recorded, and every value of every cell.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
from pathlib import Path
from string import Template

import matplotlib
import numpy as np
import plotly.graph_objects as go
import report_sweep
from report_page import Row, options, page, plots, rounded, section, table, wrong
from results import BYZANTINE_COLOUR, GROUP_COLOURS, Result, ResultError, command, read, styles

from mpi_resmtl.errors import UserError
from mpi_resmtl.verify import verify

POINTS, AGENT_POINTS = 250, 60
"""Points of a curve of means, and of one agent's."""
SAMPLE = 5
"""Cells of a sweep that are checked where nothing else is asked for."""
LAST = 100
"""Iterations in the mean of the streaming loss."""
BINS = 8
"""Colours of weights."""
STEPS = 200
"""Iterations at most whose weights the page holds."""
CURVES = {
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    "loss": "streaming loss",
    "fresh_loss": "loss on fresh samples",
    "msd": "mean squared deviation",
    "risk_after": "true risk",
    "byzantine_weight": "weight given to Byzantine neighbours",
}
LINEAR = ("test_accuracy", "byzantine_weight")
FINAL = {"test_loss": "test loss", "test_accuracy": "test accuracy", "loss": "streaming loss", "msd": "msd"}


def main() -> None:
    """Read the run or the sweep and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", type=Path, metavar="RUN|DIR", help="result file, or what `mpi-resmtl sweep` wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(report.html)")
    parser.add_argument(
        "--verify",
        type=cells,
        default=SAMPLE,
        metavar="N|all",
        help=f"cells of a sweep that are checked, a second or so each ({SAMPLE})",
    )
    asked = parser.parse_args()
    try:
        text = report_sweep.of_sweep(asked.of, asked.verify) if asked.of.is_dir() else of_run(asked.of)
    except UserError as error:
        raise ResultError(str(error)) from None
    try:
        asked.output.write_text(text)
    except OSError as error:
        raise ResultError(f"-o {asked.output}: cannot be written: {error.strerror}") from None
    print(f"wrote {asked.output}, {len(text.encode()) / 2**20:.1f} MiB")


def cells(text: str) -> int | None:
    """A number of cells; None for all."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of cells nor 'all'")
    return int(text)


def of_run(path: Path) -> str:
    """The page of a run."""
    result = read(path)
    return page(path.stem, body(result), "report_run.js", network(result))


def body(result: Result) -> str:
    """All sections of a run."""
    parts = [
        about(result),
        section("What the rules reached", plots(curves(result))),
        section(
            "Network and weights",
            NETWORK.substitute(options=options(weighted(result), weighted(result)[-1]), last=steps(result)),
        )
        if weighted(result)
        else "",
        section("Agents", table(*agents(result), sortable=True) + "<p class=note>Click a column to sort by it.</p>"),
        section("Time and traffic", plots([time(result)]) + table(*traffic(result)) + late(result)),
        section("Checks", checks(result)),
        section("Configuration", f"<pre>{html.escape(result.file.attrs['config'])}</pre>"),
        section("Environment", environment(result)),
    ]
    return "\n".join(part for part in parts if part)


NETWORK = Template(
    """<div class="controls"><label>rule <select id="network-rule">$options</select></label>
<input type="range" id="network-iteration" min="0" max="$last" value="$last" aria-label="iteration">
<output id="network-label"></output></div>
<p class="note">Colour of an agent: its true group, red for Byzantine ones. The half of an edge next to an agent has the
colour of the weight that it gives to the message on that edge; no line: no weight.</p>
<div id="network" class="plot"></div>"""
)


def about(result: Result) -> str:
    """What kind of run this is and on which data."""
    attrs = result.file.attrs
    what = (
        f"{result.task['name']}, {result.agents} agents, {result.attackers} of them Byzantine, "
        f"{len(result.edge)} edges, seed {attrs['seed']}, {attrs['ranks']} ranks, {attrs['created']}"
    )
    data = f"data: {attrs['data']}"
    for name, word in (("data_sha256", "sha256 "), ("data_note", "")):
        if attrs.get(name):
            data += f"; {word}{attrs[name]}"
    warning = "<p class='stand-in'>stand-in data</p>" if result.stand_in else ""
    return f"<p>{html.escape(what)}</p><p class=note>{html.escape(data)}</p>{warning}"


def curves(result: Result) -> list[go.Figure]:
    """A plot for each measure that the run has."""
    looks = styles(result.rules)
    return [
        curve(result, measure, what, looks)
        for measure, what in CURVES.items()
        if measure in result.file[f"rule/{result.rules[0]}"]
    ]


def curve(result: Result, measure: str, what: str, looks: dict) -> go.Figure:
    """Mean and range of each rule over the normal agents; single agents are hidden at first."""
    figure, means = go.Figure(), []
    unit = "epoch" if measure.startswith("test") else "iteration"
    for rule, look in looks.items():
        dataset = result.dataset(rule, measure)
        values = dataset[()][:, result.normal]
        if np.isnan(values).all():
            continue
        x = np.asarray(dataset.dims[0][0])
        some, few = (np.unique(np.linspace(0, len(x) - 1, points).astype(int)) for points in (POINTS, AGENT_POINTS))
        around = dict(x=rounded(x[some]), mode="lines", legendgroup=rule, hoverinfo="skip", showlegend=False)
        with np.errstate(invalid="ignore"):
            figure.add_scatter(y=rounded(np.nanmin(values[some], axis=1)), line=dict(width=0), **around)
            shade = dict(fill="tonexty", fillcolor=transparent(look.colour))
            figure.add_scatter(y=rounded(np.nanmax(values[some], axis=1)), line=dict(width=0), **shade, **around)
            mean = rounded(np.nanmean(values[some], axis=1))
        line = dict(color=look.colour, width=3 if look.wide else 1.8)
        figure.add_scatter(x=rounded(x[some]), y=mean, mode="lines", line=line, name=look.label, legendgroup=rule)
        figure.add_scatter(
            x=[v for _ in result.normal for v in [*rounded(x[few]), None]],
            y=[v for agent in values[few].T for v in [*rounded(agent), None]],
            text=[f"agent {k}" for k in result.normal for _ in range(len(few) + 1)],
            mode="lines",
            line=dict(color=look.colour, width=0.6),
            name=f"{look.label}, each agent",
            visible="legendonly",
            hovertemplate="%{text}: %{y}",
        )
        means += [value for value in mean if value]
    figure.update_layout(title=what, xaxis_title=unit)
    if measure not in LINEAR and means:
        # The least of many agents' losses is near 0 and would flatten all else.
        span = [float(np.log10(min(means) / 10)), float(np.log10(max(means) * 5))]
        figure.update_yaxes(type="log", range=span, exponentformat="power")
    return figure


def transparent(colour: str) -> str:
    """The colour at an eighth of its strength."""
    red, green, blue = (round(255 * part) for part in matplotlib.colors.to_rgb(colour))
    return f"rgba({red},{green},{blue},0.12)"


def weighted(result: Result) -> list[str]:
    """Rules whose weights, or shares of a selection, were recorded."""
    return [rule for rule in result.rules if weight(result, rule) is not None]


def weight(result: Result, rule: str):
    """The dataset of weights or shares, None where neither says anything."""
    group = result.file[f"rule/{rule}"]
    for name in ("weight", "share"):
        if name in group and len(group[name]) and np.isfinite(group[name][-1]).any():
            return group[name]
    return None


def chosen(result: Result) -> np.ndarray:
    """Which of the recorded weights the page holds."""
    recorded = len(weight(result, weighted(result)[0]))
    return np.unique(np.linspace(0, recorded - 1, min(STEPS, recorded)).astype(int))


def steps(result: Result) -> int:
    """The last place of the slider."""
    return len(chosen(result)) - 1


def network(result: Result) -> dict | None:
    """What the page's script draws: places and colours of agents, edges, and their weights in a byte each."""
    rules = weighted(result)
    if not rules:
        return None
    between = np.flatnonzero(result.edge[:, 0] != result.edge[:, 1])
    rows = chosen(result)
    codes = {}
    for rule in rules:
        values = weight(result, rule)[()][rows][:, between]
        code = np.where(np.isfinite(values), np.ceil(np.clip(values, 0, 1) ** 0.5 * 254), 255).astype(np.uint8)
        codes[rule] = base64.b64encode(code.tobytes()).decode()
    bounds = (np.arange(BINS) / BINS) ** 2
    position = places(result)
    iteration = np.asarray(weight(result, rules[0]).dims[0][0])[rows]
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.1, 1, BINS))
    byzantine = result.byzantine.tolist()
    return {
        "x": rounded(position[:, 0]),
        "y": rounded(position[:, 1]),
        "names": [f"agent {k}, group {result.group[k]}{', Byzantine' * b}" for k, b in enumerate(byzantine)],
        "nodes": [
            BYZANTINE_COLOUR if b else GROUP_COLOURS[g % len(GROUP_COLOURS)]
            for g, b in zip(result.group.tolist(), byzantine, strict=True)
        ],
        "source": result.edge[between, 0].tolist(),
        "target": result.edge[between, 1].tolist(),
        "iterations": iteration.tolist(),
        "weights": codes,
        "colours": [matplotlib.colors.to_hex(shade) for shade in shades],
        "labels": [f"above {bound:.2g}" for bound in bounds],
    }


def places(result: Result) -> np.ndarray:
    """Where agents are drawn (n, 2): their positions, or else a circle by group."""
    if result.position is not None:
        return result.position
    place = np.empty(result.agents)
    place[np.argsort(result.group, kind="stable")] = np.arange(result.agents)
    angle = 2 * np.pi * place / result.agents
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def agents(result: Result) -> tuple[list[str], list[Row]]:
    """A row an agent: what each rule reached in the end."""
    names = [name for name in FINAL if name in result.file[f"rule/{result.rules[0]}"]]
    if "test_loss" in names:
        names = [name for name in names if name.startswith("test")]
    columns = [(rule, name) for name in names for rule in result.rules]
    found = [last(result, rule, name) for rule, name in columns]
    heads = ["agent", "group", "Byzantine", *(f"{FINAL[name]}, {rule}" for rule, name in columns)]
    rows = [
        [k, int(result.group[k]), int(result.byzantine[k]), *(float(values[k]) for values in found)]
        for k in range(result.agents)
    ]
    return heads, rows


def last(result: Result, rule: str, name: str) -> np.ndarray:
    """A measure at the end, of the streaming loss the mean over the last iterations: (n,)."""
    values = result.dataset(rule, name)
    return values[-LAST:].mean(axis=0) if name == "loss" else values[-1]


def time(result: Result) -> go.Figure:
    """Seconds of each rule by phase, mean over ranks, with the slowest rank's beside it."""
    figure = go.Figure()
    phases = [phase.decode() for phase in result.file["phase"][()]]
    spent = {rule: result.dataset(rule, "seconds")[()].sum(axis=0) for rule in result.rules}
    for number, phase in enumerate(phases):
        figure.add_bar(
            x=list(spent),
            y=rounded(np.array([s[:, number].mean() for s in spent.values()])),
            customdata=[f"ranks {s[:, number].min():.3g} to {s[:, number].max():.3g} s" for s in spent.values()],
            hovertemplate=phase + " %{y} s, %{customdata}<extra></extra>",
            name=phase,
        )
    figure.update_layout(title="seconds by phase, mean over ranks", barmode="stack", yaxis_title="s")
    return figure


def traffic(result: Result) -> tuple[list[str], list[Row]]:
    """A row a rank: what it sent under each rule."""
    sent = {rule: result.dataset(rule, "traffic")[()] for rule in result.rules}
    heads = ["rank", *(f"{what}, {rule}" for rule in sent for what in ("messages", "bytes"))]
    ranks = len(next(iter(sent.values())))
    return heads, [[r, *(int(v) for values in sent.values() for v in values[r])] for r in range(ranks)]


def late(result: Result) -> str:
    """Of a run with a deadline: messages that were late under each rule, and how often agents stood still."""
    timed = [rule for rule in result.rules if f"rule/{rule}/missing" in result.file]
    own = result.edge[:, 0] == result.edge[:, 1]
    rows = []
    for rule in timed:
        missing = np.nansum(result.dataset(rule, "missing")[()], axis=0).astype(int)
        rows.append([rule, int(missing[~own].sum()), int(missing[own].sum())])
    return table(["rule", "messages that were late", "agents' iterations that they stood still"], rows) if rows else ""


def checks(result: Result) -> str:
    """What `mpi-resmtl verify` has looked at, or the first things wrong."""
    verdict = verify(result.path)
    return wrong([verdict]) if verdict.problems else f"<p class='checked'>{html.escape(verdict.checked)}</p>"


def environment(result: Result) -> str:
    """Versions of all that made the run."""
    versions = json.loads(result.file.attrs["versions"])
    return table(["what", "version"], [[name, str(version)] for name, version in versions.items()])


if __name__ == "__main__":
    command(main)
