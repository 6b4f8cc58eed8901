"""What an iteration costs on ever more ranks: measured (`mpi-resmtl bench scale`), and predicted beyond this machine.

    mpirun -n 4 mpi-resmtl bench scale --json scale.json
    python analysis/scaling.py scale.json -o figures

writes scaling.png and scaling.pdf, and says how far the prediction is from every measurement. See `Model` for what is
assumed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results import ResultError, command, save

from mpi_resmtl.streams import block_length
from mpi_resmtl.tasks.target_localization import DRAWN

AGENTS = (100, 1_000, 10_000, 100_000, 1_000_000)
RANKS = np.unique(np.logspace(0, 4, 81).astype(int))
COLOURS = ("#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#332288")
TITLES = {
    "target-localization": "target localisation, 10 neighbours",
    "activity-recognition": "activity recognition, complete graph",
    "digit-classification": "digit classification, complete graph",
}
SHORT = {"target-localization": "localisation", "activity-recognition": "activity", "digit-classification": "digits"}
_DOTTED = dict(linestyle=(0, (1, 1.5)), linewidth=0.9)
_OVERTAKING = dict(marker="v", markeredgecolor="black", markersize=7)
_MEASURED = dict(linestyle="", marker="o", markerfacecolor="white", markeredgecolor="black", markersize=4.5, zorder=6)
TARGET = 0.3
"""Relative error that a prediction may have."""


@dataclass(frozen=True)
class Machine:
    """What ranks of this machine reach: each as measured with so many of them at work."""

    cores: int
    """of a node"""
    memory: float
    """bytes of a node"""
    work: dict[int, float]
    """Seconds of a piece of arithmetic of a rank, by ranks at work."""
    turns: dict[int, list[tuple[float, float]]]
    """By ranks at work: seconds of an iteration, and how many more until the ranks of a node have told each other that
    they are done with it; by length."""
    messages: dict[int, dict[str, tuple[float, float, float]]]
    """By ranks at work: "within" a node, and "across" nodes where there are several: latency L and overhead o of a
    further message in seconds, bandwidth in bytes a second."""
    placed: dict[int, int]
    """Ranks on the fullest node, by ranks at work."""
    reading: dict[int, list[tuple[float, float]]]
    """By ranks at work: bytes of a table, and seconds of an edge that reads a row of it at random; by bytes."""
    network: tuple[float, float, float] | None = None
    """The same between nodes, where it is assumed instead."""

    def beyond(self) -> Machine:
        """The same where a rank has a core of its own however many there are: without what was measured otherwise."""
        fitting = {ranks for ranks in self.work if ranks <= self.cores} or {min(self.work)}
        links = {ranks: link for ranks, link in self.messages.items() if ranks in fitting}
        return replace(
            self,
            work={ranks: seconds for ranks, seconds in self.work.items() if ranks in fitting},
            turns={},
            messages=links or dict([min(self.messages.items())]),
            placed={ranks: many for ranks, many in self.placed.items() if ranks in fitting},
            reading={ranks: found for ranks, found in self.reading.items() if ranks in fitting},
        )

    @property
    def is_across(self) -> bool:
        """Whether what messages between nodes cost was measured or said."""
        return self.network is not None or any("across" in links for links in self.messages.values())

    def slowdown(self, ranks: int) -> float:
        """How many times as long a rank computes as a rank alone, when so many are at work.

        Beyond what was measured a rank has a core, as the largest number measured that has.
        """
        return self.work.get(ranks, self.work[self._fitting(self.work)]) / self.alone

    @property
    def alone(self) -> float:
        """Seconds of the piece of arithmetic on a rank alone."""
        return self.work[min(self.work)]

    def turn(self, ranks: int, seconds: float) -> float | None:
        """Seconds until all ranks of a node have told each other that they are done with something that takes so long.

        None where ranks have a core each.
        """
        if self.placed.get(ranks, 0) <= self.cores:
            return None
        return _between(self.turns[ranks], seconds)

    def edge(self, size: float, ranks: int) -> float:
        """Seconds of an edge that reads a row at random of a table of so many bytes, when so many ranks are at work."""
        return _between(self.reading.get(ranks) or self.reading[self._fitting(self.reading)], size)

    def link(self, where: str, ranks: int) -> tuple[float, float, float]:
        """(L, o, bandwidth) between two ranks; where "across" was not measured, that "within" stands for it."""
        if where == "across" and self.network is not None:
            return self.network
        found = self.messages.get(ranks) or self.messages[self._fitting(self.messages)]
        return found.get(where) or found["within"]

    def ranks_a_node(self, ranks: int) -> int:
        """How many of so many ranks a node has: as in the measurement, else one a core."""
        return self.placed.get(ranks, min(ranks, self.cores))

    def _fitting(self, measured: dict[int, Any]) -> int:
        return max((ranks for ranks in measured if ranks <= self.cores), default=min(measured))


def _between(found: list[tuple[float, float]], x: float) -> float:
    """What stands beside log x in a table of pairs, in between or at its ends."""
    known, values = np.array(found).T
    return float(np.interp(np.log(x), np.log(known), values))


@dataclass(frozen=True)
class Model:
    """LogGP (Alexandrov et al. 1995) on top of measured arithmetic: the time of one iteration of a study.

    compute = slowdown (fixed + block / B + agent A + edge E) + reading E, of the rank that has most to do: `fixed`,
    `block`, `agent` and `edge` are what one rank alone took, B is for how many iterations samples are drawn at once,
    which follows from n, `slowdown` is by how much arithmetic slows down when so many ranks are at work, and `reading`
    is what an edge of a sparse graph takes of memory, which depends on how many rows the rank hears. Where the graph
    is complete that rank has ceil(n / ranks) agents, unless ranks judge for one another (`lends`); of sparse graphs
    all have as much to do.

    communicate = L + (k - 1) o + bytes / bandwidth. Within a node rows are read in place: k peers are told, no bytes
    move; where ranks share cores, this takes what was measured of that, as waiting then is for the scheduler. Across
    nodes a rank receives the rows it hears, once each; the ranks of a node share its bandwidth. Nothing overlaps.
    """

    study: str
    fixed: float
    agent: float
    edge: float
    row_bytes: int
    degree: float | None
    """Mean number of neighbours, itself left out; None: the graph is complete."""
    lends: bool = False
    block: float = 0.0

    def edges(self, agents: float) -> float:
        """E, own edges included."""
        return agents * (agents if self.degree is None else self.degree + 1)

    def compute(self, machine: Machine, agents: int, ranks: int, slowdown: float | None = None) -> float:
        """Seconds; `slowdown` where it is known for certain."""
        if slowdown is None:
            slowdown = machine.slowdown(ranks)
        share = agents / ranks if self.degree is not None or self.lends else -(-agents // ranks)
        edges = share * self.edges(agents) / agents
        drawing = self.block / block_length(agents, DRAWN) if self.block else 0.0
        work = self.fixed + drawing + self.agent * share + self.edge * edges
        return slowdown * work + edges * self.reading(machine, agents, ranks)

    def reading(self, machine: Machine, agents: int, ranks: int) -> float:
        """Seconds that an edge takes of memory."""
        if self.degree is None:
            return 0.0
        peers, rows = self.traffic(agents, ranks)
        size = (agents / ranks + peers * rows) * self.row_bytes
        return machine.edge(size, ranks)

    def traffic(self, agents: int, ranks: int) -> tuple[float, float]:
        """Ranks that a rank hears, and rows that it hears of one of them, both means.

        Where the graph is not complete neighbours are anywhere: agents are numbered as they come.
        """
        a_rank = agents / ranks
        if ranks == 1:
            return 0.0, 0.0
        if self.degree is None:
            return ranks - 1.0, a_rank
        heard = 1 - (1 - 1 / ranks) ** self.degree
        silent = (1 - 1 / ranks) ** (self.degree * a_rank)
        return (ranks - 1) * (1 - silent), a_rank * heard / max(1 - silent, 1e-300)

    def communicate(self, machine: Machine, agents: int, ranks: int) -> float:
        """Seconds."""
        if ranks == 1:
            return 0.0
        a_node = machine.ranks_a_node(ranks)
        peers, rows = self.traffic(agents, ranks)
        near = peers * (a_node - 1) / (ranks - 1)
        far = peers - near
        latency, overhead, _ = machine.link("within", ranks)
        seconds = latency + max(0.0, near - 1) * overhead if near else 0.0
        turn = machine.turn(ranks, self.compute(machine, agents, ranks))
        if turn is not None:
            seconds = turn
        if far > 1e-9:
            latency, overhead, bandwidth = machine.link("across", ranks)
            seconds += latency + max(0.0, far - 1) * overhead
            seconds += far * rows * self.row_bytes * a_node / bandwidth
        return seconds

    def time(self, machine: Machine, agents: int, ranks: int, slowdown: float | None = None) -> float:
        """Seconds of an iteration; `slowdown` as in `compute`."""
        return self.compute(machine, agents, ranks, slowdown) + self.communicate(machine, agents, ranks)

    def memory(self, machine: Machine, agents: int, ranks: int) -> float:
        """Bytes of the rows on a node: two arrays of its agents' and of what each of its ranks hears from afar."""
        a_node = machine.ranks_a_node(ranks)
        peers, rows = self.traffic(agents, ranks)
        afar = peers * (1 - (a_node - 1) / (ranks - 1)) * rows if ranks > 1 else 0.0
        return 2 * a_node * (agents / ranks + afar) * self.row_bytes

    def overtakes(self, machine: Machine, agents: int) -> int | None:
        """The least of RANKS, at most one an agent, on which communication takes longer than arithmetic; or None."""
        for ranks in RANKS[agents >= RANKS].tolist():
            if self.communicate(machine, agents, ranks) > self.compute(machine, agents, ranks):
                return ranks
        return None


def read(path: Path) -> dict[str, Any]:
    """A report of `bench scale`; ResultError unless it is one that can be used."""
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ResultError(f"{path}: is not JSON") from None
    if not isinstance(report, dict) or report.get("kind") != "scale":
        raise ResultError(f"{path}: is not a report of `mpi-resmtl bench scale --json`")
    return report


def machine_of(report: dict[str, Any], network: tuple[float, float, float] | None = None) -> Machine:
    """The ceilings in a report; `network` as in `Machine`."""
    found = report["machine"]
    links = {
        m["ranks"]: {
            where: tuple(link[name]["median"] for name in ("latency", "overhead", "bandwidth"))
            for where, link in m["messages"].items()
        }
        for m in found
    }
    if not any(links.values()):
        raise ResultError("was measured on one rank: nothing says what messages cost; use mpirun -n 2")
    # Glances at the pace beside every timed run say more than one long look.
    paces = {m["ranks"]: [m["product"]["median"]] for m in found}
    for row in report["scale"]:
        paces[row["ranks"]].append(row["work"]["median"])
    return Machine(
        cores=report["environment"]["cores"],
        memory=report["environment"]["memory"],
        work={m["ranks"]: float(np.median(paces[m["ranks"]])) for m in found},
        turns={m["ranks"]: [(t["work"]["median"], t["turn"]["median"]) for t in m["turns"]] for m in found},
        messages={ranks: link for ranks, link in links.items() if link},
        placed={m["ranks"]: max(m["nodes"]) for m in found},
        reading={m["ranks"]: [(t["bytes"], t["edge"]["median"]) for t in m["reading"]] for m in found},
        network=network,
    )


def models_of(report: dict[str, Any], machine: Machine) -> list[Model]:
    """A model of each study that was measured on one rank; ResultError where there is none.

    Seconds are those at the pace that the machine had while its ceilings were measured.
    """
    found = []
    for study in TITLES:
        rows = [row for row in report["scale"] if row["study"] == study and row["ranks"] == 1]
        rows = [row for row in rows if row["sweep"] in ("strong", "few", "edges")]
        if not rows:
            continue
        sparse = study == "target-localization"
        x = np.array([float(row["edges"]) for row in rows])
        pace = np.array([machine.alone / row["work"]["median"] for row in rows])
        seconds = np.array([row["iteration"]["median"] for row in rows])
        degree = float(np.mean([row["edges"] / row["agents"] - 1 for row in rows])) if sparse else None
        model = Model(study, 0.0, 0.0, 0.0, rows[0]["row_bytes"], degree, study == "digit-classification")
        if sparse:
            read = x * [model.reading(machine, row["agents"], 1) for row in rows]
            fixed, block, edge = _shares(x, 1 / np.array([row["block"] for row in rows]), pace * (seconds - read))
            agent = 0.0
        else:
            (row,) = rows[:1]
            phases = {phase: pace[0] * taken for phase, taken in row["phases"].items()}
            agent = phases["adapt"] / row["agents"]
            edge = (phases["evaluate"] + phases["combine"]) / row["edges"]
            fixed, block = max(0.0, pace[0] * seconds[0] - agent * row["agents"] - edge * row["edges"]), 0.0
        found.append(replace(model, fixed=fixed, agent=agent, edge=edge, block=block))
    if not found:
        raise ResultError("has no study on one rank; run `mpi-resmtl bench scale` with the sweep `strong`")
    return found


def _shares(x: np.ndarray, blocks: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """fixed, block, each >= 0 with seconds = fixed + block blocks + each x, relative errors squared least."""
    from scipy.optimize import nnls

    if len(np.unique(x)) == 1:
        return 0.0, 0.0, float(np.median(seconds / x))
    found, _ = nnls(np.stack([1 / seconds, blocks / seconds, x / seconds], axis=1), np.ones(len(x)))
    return float(found[0]), float(found[1]), float(found[2])


@dataclass(frozen=True)
class Check:
    """One measurement beside its prediction, in seconds."""

    study: str
    sweep: str
    agents: int
    ranks: int
    measured: float
    low: float
    high: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.measured - 1


def checks(report: dict[str, Any], machine: Machine, models: list[Model]) -> Iterator[Check]:
    """Every measurement of a study beside its prediction, at the pace that the machine had just then."""
    by_study = {model.study: model for model in models}
    for row in report["scale"]:
        if row["sweep"] not in ("strong", "weak", "few", "edges") or row["study"] not in by_study:
            continue
        slowdown = row["work"]["median"] / machine.alone
        predicted = by_study[row["study"]].time(machine, row["agents"], row["ranks"], slowdown)
        time = row["iteration"]
        yield Check(
            row["study"], row["sweep"], row["agents"], row["ranks"], time["median"], *time["quartiles"], predicted
        )


def draw_prediction(axes: Axes, machine: Machine, model: Model, found: list[Check]) -> None:
    """Time over ranks, a line for each number of agents, its measurements, and where communication overtakes."""
    cluster = machine.beyond()
    own = {check.agents for check in found} - set(AGENTS) if model.degree is None else set()
    for agents, colour in [*zip(AGENTS, COLOURS, strict=True), *((agents, "black") for agents in sorted(own))]:
        ranks = RANKS[agents >= RANKS]
        seconds = np.array([model.time(cluster, agents, r) for r in ranks.tolist()])
        fits = np.array([model.memory(cluster, agents, r) <= machine.memory for r in ranks.tolist()])
        axes.plot(ranks, np.where(fits, seconds, np.nan), color=colour, linewidth=1.6, zorder=3)
        axes.plot(ranks, seconds, color=colour, zorder=2, **_DOTTED)
        crossing = model.overtakes(cluster, agents)
        if crossing is not None:
            at = model.time(cluster, agents, crossing)
            axes.plot([crossing], [at], color=colour, zorder=5, **_OVERTAKING)
        if colour == "black":
            axes.annotate(f"{agents}", (ranks[-1], seconds[-1]), (4, 0), textcoords="offset points", va="center")
    for check in found:
        axes.plot([check.ranks], [check.measured], **_MEASURED)
    axes.set(xscale="log", yscale="log", xlabel="ranks, one a core", ylabel="seconds an iteration")
    axes.set_title(TITLES[model.study])


def draw_checks(axes: Axes, found: list[Check]) -> None:
    """Predicted over measured time of every measurement, with the target and the quartiles of the measured times."""
    axes.axhspan(1 / (1 + TARGET), 1 + TARGET, color="#dddddd", zorder=0)
    axes.axhline(1, color="#8f8f8f", linewidth=0.8, zorder=1)
    for place, check in enumerate(found):
        colour = COLOURS[list(TITLES).index(check.study) * 2]
        quartiles = [[check.predicted / check.high], [check.predicted / check.low]]
        axes.plot([place, place], np.ravel(quartiles), color=colour, linewidth=1.4)
        axes.plot([place], [check.predicted / check.measured], "o", color=colour, markersize=4.5)
    labels = [f"{SHORT[c.study]}, {c.agents:,} on {c.ranks}" for c in found]
    axes.set_xticks(range(len(found)), labels, rotation=90, fontsize=7.5)
    axes.set(yscale="log", ylabel="predicted / measured", title="the prediction beside what was measured")
    ratios = [r for c in found for r in (c.predicted / c.low, c.predicted / c.high)]
    axes.set_ylim(min(0.5, *ratios) / 1.1, max(2.0, *ratios) * 1.1)
    ticks = [t for t in (0.1, 0.25, 0.5, 0.77, 1, 1.3, 2, 4, 10) if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()


def draw(machine: Machine, models: list[Model], found: list[Check]) -> Figure:
    """A panel a study, and one of all errors."""
    figure = Figure(figsize=(4.2 * len(models), 7.6), layout="constrained")
    grid = figure.add_gridspec(2, len(models), height_ratios=(1.15, 1))
    for place, model in enumerate(models):
        of_study = [check for check in found if check.study == model.study]
        draw_prediction(figure.add_subplot(grid[0, place]), machine, model, of_study)
    draw_checks(figure.add_subplot(grid[1, :]), found)
    looks = [dict(color=c, linewidth=1.6, label=f"{n:,} agents") for n, c in zip(AGENTS, COLOURS, strict=True)]
    looks.append(dict(color="black", label="rows exceed a node's memory", **_DOTTED))
    looks.append(dict(color="#8f8f8f", linestyle="", label="communication overtakes arithmetic", **_OVERTAKING))
    looks.append(dict(label="measured", **_MEASURED))
    handles = [Line2D([], [], **look) for look in looks]
    latency, overhead, bandwidth = machine.link("across", machine.cores)
    title = (
        f"nodes of {machine.cores} cores; between them latency {latency * 1e6:.2g} us, a further message "
        f"{overhead * 1e6:.2g} us, {bandwidth / 1e9:.2g} GB/s{'' if machine.is_across else ' (as measured within one)'}"
    )
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=4)
    return figure


def _network(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        latency, overhead, bandwidth = map(float, text.split(","))
        if not (latency > 0 and overhead >= 0 and 0 < bandwidth < np.inf):
            raise ValueError
    except ValueError:
        raise ResultError(f"--network {text}: expected three numbers, us,us,GB/s, such as 1.5,0.3,12") from None
    return latency * 1e-6, overhead * 1e-6, bandwidth * 1e9


def main() -> None:
    """Read the report, say how good the prediction is and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="BENCH.json", help="written by `mpi-resmtl bench scale --json`")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="folder of the figure")
    parser.add_argument(
        "--network",
        metavar="US,US,GB/s",
        help="latency, further message and bandwidth between nodes, such as 1.5,0.3,12 (default: measured)",
    )
    asked = parser.parse_args()

    report, network = read(asked.file), _network(asked.network)
    try:
        machine = machine_of(report, network)
        models = models_of(report, machine)
        found = list(checks(report, machine, models))
    except ResultError as error:
        raise ResultError(f"{asked.file}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ResultError(f"{asked.file}: is damaged: {type(error).__name__}: {error}") from None
    titles = f"{'measured us':>12} {'predicted us':>12} {'error':>7}"
    print(f"{'study':<21} {'sweep':<7} {'agents':>8} {'ranks':>5} {titles}")
    for c in found:
        times = f"{c.measured * 1e6:>12.1f} {c.predicted * 1e6:>12.1f}"
        print(f"{c.study:<21} {c.sweep:<7} {c.agents:>8} {c.ranks:>5} {times} {c.error:>+7.0%}")
    worst = max(found, key=lambda c: abs(np.log(c.predicted / c.measured)))
    inside = sum(abs(c.error) <= TARGET for c in found)
    print(f"{inside} of {len(found)} within {TARGET:.0%}; the worst is {worst.error:+.0%}")
    for model in models:
        for agents in AGENTS:
            crossing = model.overtakes(machine.beyond(), agents)
            where = f"from {crossing:,} ranks on" if crossing else "on no number of ranks up to 10,000 or one an agent"
            print(f"{SHORT[model.study]}, {agents:,} agents: communication takes longer than arithmetic {where}")
    save(draw(machine, models, found), asked.output, "scaling", False)


if __name__ == "__main__":
    command(main)
