"""`bench scale`: what an iteration costs as ranks, agents, edges, parameters and neighbourhoods grow."""

from __future__ import annotations

import argparse
import importlib.util
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_resmtl.bench import add_options, asleep, measured, numbers, spread, timed
from mpi_resmtl.bench.machine import Work, ceilings, reading
from mpi_resmtl.bench.step import Unrecorded
from mpi_resmtl.errors import UserError, unknown
from mpi_resmtl.launch import on_root
from mpi_resmtl.progress import silent

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_resmtl.run import Plan, Rank
    from mpi_resmtl.stopwatch import Stopwatch

SWEEPS = ("strong", "weak", "few", "edges", "parameters", "neighbourhood")
LINEAR = ("edges", "parameters", "neighbourhood")
"""Sweeps along which cost ought to grow in proportion."""
STUDIES = ("target-localization", "activity-recognition", "digit-classification")
EDGES = (1_000, 3_000, 10_000, 30_000, 100_000)
FEW = (100, 300)
"""Agents on one rank that show what an iteration costs however few there are."""
PARAMETERS = (128, 512, 2_048, 8_192, 32_768)
TURNS = (100, 1_000, 10_000, 30_000)
"""Agents of a rank's own."""
REACHES = (1, 2, 4, 8, 16, 32, 64)
"""Neighbours on either side around a ring."""
_SAMPLE = 0.1
"""Seconds that a timed run takes about."""
_GLANCE = 0.03
"""Seconds for which the machine's pace is looked at, before and after a timed run."""
_LONGEST = 2_000
"""Iterations of a timed run at most."""


@dataclass
class Setting:
    """One point of a sweep, ready to run on the ranks of `comm`; what is prepared is None on other ranks."""

    sweep: str
    comm: MPI.Comm | None
    planned: Plan | None = None
    rank: Rank | None = None
    work: Work | None = None
    start_up: float = 0.0
    warm_up: float = 0.0
    seconds: list[float] = field(default_factory=list)
    pace: list[float] = field(default_factory=list)
    phases: list[np.ndarray] = field(default_factory=list)
    traffic: np.ndarray | None = None


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add `bench scale` to the command line."""
    parser = kinds.add_parser("scale", help="cost of an iteration as ranks, agents, edges and models grow")
    parser.add_argument("--sweep", default=",".join(SWEEPS), help="which, separated by commas (default %(default)s)")
    parser.add_argument(
        "--study",
        help=f"of the strong sweep, of {', '.join(STUDIES)} (default: all, the last one where torch is installed)",
    )
    parser.add_argument(
        "--agents", type=int, default=10_000, help="of strong, and a rank of weak (default %(default)s)"
    )
    parser.add_argument(
        "--edges",
        default=",".join(map(str, EDGES)),
        help="numbers of agents, each with about 10 neighbours, of the sweep over edges (default %(default)s)",
    )
    add_options(parser, repeats=7)
    parser.set_defaults(command=lambda asked: measured(asked, "scale", lambda comm: _measure(comm, asked)))


def _measure(comm: MPI.Comm, asked: argparse.Namespace) -> dict[str, Any]:
    sweeps, studies, edges = comm.bcast(on_root(comm, lambda: _checked(comm, asked)))
    ladder = ranks_of(comm.size)
    machine = [
        among(comm, ranks, lambda some: _ceilings(some, asked.folder, min(5, asked.repeats))) for ranks in ladder
    ]
    rows: list[dict[str, Any]] = []
    points = {
        "strong": lambda: strong(ladder, studies, asked.agents),
        "weak": lambda: weak(ladder, asked.agents),
        "few": lambda: ((1, localization(n)) for n in FEW),
        "edges": lambda: edge_counts(sorted({1, comm.size}), edges),
        "parameters": parameter_counts,
        "neighbourhood": neighbourhood_sizes,
    }
    for sweep in sweeps:
        found = one(comm, sweep, list(points[sweep]()), asked.repeats)
        if comm.rank == 0:
            for number, row in enumerate(found):
                print(_line(row) if rows or number else f"{_HEADER}\n{_line(row)}", flush=True)
            rows += found
    if comm.rank:
        return {}
    laws = [law for sweep in sweeps if sweep in LINEAR for law in proportions(rows, sweep)]
    for law in laws:
        print(_law(law))
    return {"machine": machine, "scale": rows, "laws": laws}


def _ceilings(comm: MPI.Comm, folder: Path, repeats: int) -> dict[str, Any]:
    return ceilings(comm, folder, repeats) | {"reading": reading(comm, repeats), "turns": turns(comm, repeats)}


def turns(comm: MPI.Comm, repeats: int) -> list[dict[str, Any]]:
    """What it costs that ranks wait for one another, which is much where they share cores; collective.

    Every rank localises so many `agents` of its own: `work` is the seconds of an iteration, `turn` what it takes
    longer when after each a rank tells all others of its node that it is done and waits until all have told it.
    """
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    nothing = np.empty(0, np.uint8)
    peers = [rank for rank in range(node.size) if rank != node.rank]
    told = [node.Recv_init(nothing, source=peer, tag=3) for peer in peers]
    told += [node.Send_init(nothing, dest=peer, tag=3) for peer in peers]

    def tell(iteration: int) -> None:
        MPI.Prequest.Startall(told)
        MPI.Request.Waitall(told)

    rows = []
    for agents in TURNS:
        own = Setting("turns", MPI.COMM_SELF)
        _prepare(own, localization(agents))
        # All do as much.
        own.planned.experiment.iterations = comm.bcast(own.planned.experiment.iterations)
        work, longer = [], []
        for _ in range(repeats):
            for seconds, after in ((work, silent), (longer, tell)):
                comm.Barrier()
                seconds.append(max(comm.allgather(_diffuse(own, after)[0])))
        turn = [max(0.0, one - other) for one, other in zip(longer, work, strict=True)]
        rows.append({"agents": agents, "work": spread(work, "s"), "turn": spread(turn, "s")})
        own.rank.close()
    for request in told:
        request.Free()
    node.Free()
    return rows


def _checked(comm: MPI.Comm, asked: argparse.Namespace) -> tuple[list[str], list[str], list[int]]:
    sweeps = asked.sweep.split(",")
    for sweep in sweeps:
        if sweep not in SWEEPS:
            raise unknown("sweep", sweep, SWEEPS)
    torch = importlib.util.find_spec("torch") is not None
    studies = asked.study.split(",") if asked.study else [*STUDIES[:2], *STUDIES[2:][:torch]]
    for study in studies:
        if study not in STUDIES:
            raise unknown("study", study, STUDIES)
    edges = numbers(asked.edges, "--edges", max(20, comm.size))
    if asked.agents < max(20, comm.size):
        raise UserError(f"--agents {asked.agents}: at least {max(20, comm.size)} are needed, and as many as ranks")
    return sweeps, studies, edges


def ranks_of(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def among(comm: MPI.Comm, ranks: int, action: Callable[[MPI.Comm], Any]) -> Any:
    """What `action(comm)` gives on the first `ranks` ranks, the others being asleep and getting None; collective."""
    some = _first(comm, ranks)
    found = asleep(comm, None if some is None else lambda: action(some))
    if some is not None:
        some.Free()
    return found


def _first(comm: MPI.Comm, ranks: int) -> MPI.Comm | None:
    """A communicator of the first `ranks` ranks; None on the others; collective."""
    from mpi4py import MPI

    some = comm.Split(0 if comm.rank < ranks else MPI.UNDEFINED, comm.rank)
    return None if some == MPI.COMM_NULL else some


Point = tuple[int, dict[str, Any]]
"""A number of ranks, and an experiment's tables."""


def localization(agents: int) -> dict[str, Any]:
    """Target localisation at the paper's density, nobody Byzantine."""
    task = {"name": "target-localization", "agents": agents, "side": 3.0 * (agents / 100) ** 0.5}
    return {"iterations": 1, "task": task | {"noisy_agents": agents // 20}}


def strong(ladder: list[int], studies: list[str], agents: int) -> Iterator[Point]:
    """The same experiment on ever more ranks; the classification studies as in the paper, on stand-in data."""
    for study in studies:
        learning = {"epochs": 1, "task": {"name": study, "data": "stand-in"}}
        if study == "digit-classification":
            learning["task"] |= {"epoch_iterations": 2, "train_images_measured": 1}
        for ranks in ladder:
            if study == "target-localization":
                yield ranks, localization(agents)
            elif ranks <= (30 if study == "activity-recognition" else 10):
                yield ranks, learning


def weak(ladder: list[int], agents: int) -> Iterator[Point]:
    """As many agents a rank, on ever more ranks."""
    for ranks in ladder:
        yield ranks, localization(agents * ranks)


def edge_counts(ladder: list[int], agents: list[int]) -> Iterator[Point]:
    """Ever more agents, each with as many neighbours."""
    for ranks in ladder:
        for n in agents:
            yield ranks, localization(n)


def parameter_counts() -> Iterator[Point]:
    """Ever larger models: linear regression on a ring."""
    for parameters in PARAMETERS:
        yield 1, _regression(20, parameters, 2)


def neighbourhood_sizes() -> Iterator[Point]:
    """Ever larger neighbourhoods around a ring: of location models (P = 2), and of larger ones."""
    for reach in REACHES:
        yield 1, localization(2_000) | {"graph": {"kind": "ring", "reach": reach}}
    for reach in REACHES:
        yield 1, _regression(2 * REACHES[-1] + 2, 1_024, reach)


def _regression(agents: int, parameters: int, reach: int) -> dict[str, Any]:
    task = {"name": "linear-regression", "agents": agents, "dimension": parameters, "step_size": 1e-9}
    return {"iterations": 1, "task": task, "graph": {"kind": "ring", "reach": reach}}


def one(comm: MPI.Comm, sweep: str, points: list[Point], repeats: int) -> list[dict[str, Any]]:
    """Time rule `loss` without recording at every point of a sweep, all points taking turns; collective.

    `points` are numbers of ranks and tables. Rows on rank 0; times are in seconds, `work` of a product (`Work`) just
    before and after each timed run, traffic is of the rank that sends most, an iteration.
    """
    settings = []
    for ranks, tables in points:
        some = _first(comm, ranks)
        setting = Setting(sweep, some)
        asleep(comm, None if some is None else lambda s=setting, t=tables: _prepare(s, t))
        settings.append(setting)
    for _ in range(repeats):
        for setting in settings:
            asleep(comm, None if setting.comm is None else lambda s=setting: _run(s))
    rows = []
    for setting in settings:
        row = asleep(comm, None if setting.comm is None else lambda s=setting: _row(s))
        if comm.rank == 0:
            rows.append(row)
    if sweep in ("strong", "weak") and comm.rank == 0:
        _compare(settings, rows)
    return rows


def _prepare(setting: Setting, tables: dict[str, Any]) -> None:
    """Make everything ready and find how many iterations take long enough to be timed."""
    from mpi_resmtl import run
    from mpi_resmtl.config import resolve

    began: list[Any] = []
    asked = tables | {"rules": ["loss"], "byzantine": {"count": 0}}
    setting.start_up = timed(
        setting.comm, lambda: began.extend(run.prepare(setting.comm, lambda: resolve(asked, "bench")))
    )
    setting.planned, _, setting.rank = began
    setting.work = Work(setting.comm)
    # Samples are drawn in whole blocks, so whole blocks are run.
    experiment, block = setting.planned.experiment, setting.rank.task.length
    experiment.iterations = block
    setting.warm_up = _diffuse(setting)[0]
    while experiment.iterations < _LONGEST:
        taken = _diffuse(setting)[0] * experiment.iterations
        if taken > 0.8 * _SAMPLE:
            break
        blocks = experiment.iterations // block * min(10.0, max(2.0, _SAMPLE / taken))
        experiment.iterations = int(blocks) * block
    setting.rank.exchange.messages = setting.rank.exchange.bytes = 0


def _run(setting: Setting) -> None:
    before = _pace(setting)
    seconds, phases = _diffuse(setting)
    setting.pace.append((before + _pace(setting)) / 2)
    setting.seconds.append(seconds)
    setting.phases.append(phases)
    exchange = setting.rank.exchange
    setting.traffic = np.array([exchange.messages, exchange.bytes]) // setting.planned.experiment.iterations
    exchange.messages = exchange.bytes = 0


def _pace(setting: Setting) -> float:
    """Seconds of a product of `Work`, all ranks of the setting being at it for a while."""
    products = max(1, round(_GLANCE / setting.work.once))
    return timed(setting.comm, lambda: setting.work(products)) / products


def _diffuse(setting: Setting, after: Callable[[int], None] = silent) -> tuple[float, np.ndarray]:
    """Seconds an iteration of all ranks together, and of this rank by phase; `after` is called after each."""
    from mpi_resmtl import run

    watch, iterations = _Watch(), setting.planned.experiment.iterations
    seconds = setting.comm.bcast(
        timed(setting.comm, lambda: run.diffuse_rule(setting.planned, setting.rank, "loss", watch, after))
    )
    return seconds / iterations, np.array(list(watch.clock.seconds.values())) / iterations


class _Watch(Unrecorded):
    """Records nothing, and keeps the stopwatch."""

    def begin(self, rule: str, alone: bool, held: object, task: object, clock: Stopwatch, *more: object) -> None:
        self.clock = clock


def _row(setting: Setting) -> dict[str, Any]:
    from mpi_resmtl.stopwatch import PHASES

    comm, planned = setting.comm, setting.planned
    phases = np.mean(comm.allgather(np.median(setting.phases, axis=0)), axis=0)
    traffic = np.max(comm.allgather(setting.traffic), axis=0).tolist()
    memory = max(comm.allgather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    task, agents = setting.rank.task, planned.graph.agents
    row = {
        "sweep": setting.sweep,
        "study": planned.experiment.task.name,
        "ranks": comm.size,
        "agents": agents,
        "edges": planned.edges,
        "parameters": task.parameters,
        "row_bytes": task.parameters * task.dtype.itemsize,
        "iteration": spread(setting.seconds, "s") | {"iterations": planned.experiment.iterations},
        "block": task.length,
        "work": spread(setting.pace),
        "warm_up": setting.warm_up,
        "start_up": setting.start_up,
        "phases": dict(zip(PHASES, phases.tolist(), strict=True)),
        "traffic": dict(zip(("messages", "bytes"), traffic, strict=True)),
        "memory": {"most": memory},
    }
    setting.rank.close()
    comm.Free()
    return row


def _compare(settings: list[Setting], rows: list[dict[str, Any]]) -> None:
    """Add to each row how many times as fast it was as the same study on one rank, turn by turn."""
    alone = {}
    for setting, row in zip(settings, rows, strict=True):
        if row["ranks"] == 1:
            alone[row["study"]] = setting
        times = zip(alone[row["study"]].seconds, setting.seconds, strict=True)
        row["times_one_rank"] = spread([one / all_ for one, all_ in times])


def proportions(rows: list[dict[str, Any]], sweep: str) -> list[dict[str, Any]]:
    """How cost grows along a sweep, for each study and number of ranks in it.

    `slope` of the least-squares line through log(cost) over log(x), x being edges, parameters or the mean size of a
    neighbourhood; `rule_slope` the same of the rule's own cost, judging and combining, without the samples and gradient
    steps that an agent has anyhow; `fixed` and `each` of the line cost = fixed + each x, by least squares of relative
    errors, both at least 0; `error` its largest relative error.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        if row["sweep"] == sweep:
            groups.setdefault((row["study"], row["ranks"]), []).append(row)
    laws = []
    for (study, ranks), found in groups.items():
        if len(found) < 2:
            continue
        x = np.array([_along(row, sweep) for row in found])
        cost = np.array([row["iteration"]["median"] for row in found])
        own = np.array([row["phases"]["evaluate"] + row["phases"]["combine"] for row in found])
        fixed, each = line(x, cost)
        laws.append(
            {
                "sweep": sweep,
                "study": study,
                "ranks": ranks,
                "from": float(x.min()),
                "to": float(x.max()),
                "slope": _slope(x, cost),
                "rule_slope": _slope(x, own),
                "fixed": fixed,
                "each": each,
                "error": float(np.abs((fixed + each * x) / cost - 1).max()),
            }
        )
    return laws


def _slope(x: np.ndarray, cost: np.ndarray) -> float:
    return float(np.polyfit(np.log(x), np.log(cost), 1)[0])


def _along(row: dict[str, Any], sweep: str) -> float:
    if sweep == "neighbourhood":
        return row["edges"] / row["agents"]
    return float(row[sweep])


def line(x: np.ndarray, cost: np.ndarray) -> tuple[float, float]:
    """(fixed, each) >= 0 that make sum ((fixed + each x)/cost - 1)^2 least."""
    from scipy.optimize import nnls

    found, _ = nnls(np.stack([1 / cost, x / cost], axis=1), np.ones(len(x)))
    return float(found[0]), float(found[1])


_HEADER = (
    f"{'sweep':<13} {'study':<21} {'ranks':>5} {'agents':>8} {'edges':>9} {'P':>7} "
    f"{'us/iteration (quartiles)':>36} {'ns/edge':>10} {'start-up s':>10} {'times one rank':>14}"
)


def _line(row: dict[str, Any]) -> str:
    time = row["iteration"]
    low, high = time["quartiles"]
    text = f"{time['median'] * 1e6:.1f} ({low * 1e6:.1f}-{high * 1e6:.1f})"
    line = (
        f"{row['sweep']:<13} {row['study']:<21} {row['ranks']:>5} {row['agents']:>8} {row['edges']:>9} "
        f"{row['parameters']:>7} {text:>36} {time['median'] / row['edges'] * 1e9:>10.1f} {row['start_up']:>10.2f}"
    )
    return line + (f" {row['times_one_rank']['median']:>14.2f}" if "times_one_rank" in row else "")


def _law(law: dict[str, Any]) -> str:
    slopes = f"slope of log-log {law['slope']:.3f}, of judging and combining alone {law['rule_slope']:.3f}"
    share = f"{law['fixed'] * 1e6:.3g} us + {law['each'] * 1e9:.3g} ns each, within {law['error']:.0%}"
    where = f"{law['sweep']} {law['from']:.3g} to {law['to']:.3g}, {law['study']}, ranks {law['ranks']}"
    return f"{where}: {slopes}; {share}"
