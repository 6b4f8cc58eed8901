"""`bench step`: what an iteration of a study costs, by phase."""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np

from mpi_resmtl.bench import add_options, measured, numbers, shared_folder, spread, timed
from mpi_resmtl.errors import unknown

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_resmtl.graph import Graph
    from mpi_resmtl.run import Plan, Rank

AGENTS = (100, 1_000, 10_000, 100_000)
_EDGES_A_RUN = 2_000_000
"""Edges times iterations of one timed run of target localisation, whatever the number of agents."""

LAYERS = {
    "activity-recognition": ((1, 561, 6),),
    "digit-classification": ((784, 9, 32), (196, 288, 64), (49, 576, 64), (1, 576, 128), (1, 128, 10)),
}
"""Places, inputs a place and outputs a place of the layers of a study's network; a convolution's places are pixels."""
_EPOCHS_A_RUN = {"activity-recognition": 20, "digit-classification": 1}
_REPEATS = {"target-localization": 7, "activity-recognition": 7, "digit-classification": 3}
STUDIES = tuple(_REPEATS)

Found = TypeVar("Found")


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add `bench step` to the command line."""
    step = kinds.add_parser("step", help="time of an iteration of a study, rule `loss`, by phase")
    step.add_argument(
        "--study", default=STUDIES[0], help=f"of {', '.join(STUDIES)}, separated by commas (default %(default)s)"
    )
    step.add_argument(
        "--agents",
        default=",".join(map(str, AGENTS)),
        help="numbers of agents of target-localization (default %(default)s)",
    )
    add_options(step, None, "7, of digit-classification 3")
    step.set_defaults(command=_step)


def _step(asked: argparse.Namespace) -> int:
    agents, studies = numbers(asked.agents, "--agents", least=10), asked.study.split(",")
    for study in studies:
        if study not in STUDIES:
            raise unknown("study", study, STUDIES)

    def measure(comm: MPI.Comm) -> dict[str, Any]:
        rows = []
        for study in studies:
            repeats = asked.repeats or _REPEATS[study]
            header, line = (_HEADER, _line) if study == "target-localization" else (_LEARNING_HEADER, _learning_line)
            for number, count in enumerate(agents if study == "target-localization" else [None]):
                with shared_folder(comm, asked.folder) as folder:
                    path = folder / "step.h5"
                    if count is None:
                        row = learning(comm, study, repeats, path)
                    else:
                        row = localization(comm, count, repeats, path)
                rows.append(row)
                if comm.rank == 0:
                    print(line(row) if number else f"{header}\n{line(row)}", flush=True)
        return {"step": rows}

    return measured(asked, "step", measure)


def localization(comm: MPI.Comm, agents: int, repeats: int, path: Path) -> dict[str, Any]:
    """Time an iteration of target localisation, a fifth of the agents Byzantine, at the paper's density; collective.

    Runs with and without recording take turns, so that their ratio holds when the machine's speed drifts. At up to
    100 agents on one rank the plain per-edge loop of the tests runs beside them. Times are in seconds.
    """
    from mpi_resmtl import run
    from mpi_resmtl.config import resolve

    iterations = max(8, min(5_000, _EDGES_A_RUN // (10 * agents)))
    tables = {
        "iterations": iterations,
        "rules": ["loss"],
        "task": {"name": "target-localization", "agents": agents, "side": 3.0 * (agents / 100) ** 0.5},
        "byzantine": {"count": agents // 5},
    }
    tables["task"]["noisy_agents"] = agents // 20
    began = perf_counter()
    planned, graph, rank = run.prepare(comm, lambda: resolve(tables, "bench"))
    start_up = perf_counter() - began
    plain = _plain_loop(planned, graph, rank) if comm.size == 1 and agents <= 100 else None
    recorded, bare, phases, looped = [], [], [], []
    for _ in range(repeats + 1):
        seconds, by_phase = _recorded_run(comm, planned, graph, rank, path)
        recorded.append(seconds)
        if comm.rank == 0:
            phases.append(by_phase.mean(axis=0))
        bare.append(timed(comm, lambda: run.diffuse_rule(planned, rank, "loss", Unrecorded())))
        if plain is not None:
            looped.append(plain())
    rank.close()
    per_iteration = [total / iterations for total in recorded[1:]]
    ratios = [with_ / without for with_, without in zip(recorded[1:], bare[1:], strict=True)]
    speed_up = [loop / ours for loop, ours in zip(looped[1:], per_iteration, strict=False)]
    memory = comm.gather(_memory())
    if comm.rank:
        return {}
    return {
        "study": "target-localization",
        "agents": agents,
        "edges": planned.edges,
        "ranks": comm.size,
        "iterations": iterations,
        "start_up": start_up,
        "iteration": spread(per_iteration, "s"),
        "per_edge": statistics.median(per_iteration) / planned.edges,
        "measuring_and_recording": spread([ratio - 1 for ratio in ratios]),
        "recording": statistics.median(run[-1] / (run.sum() - run[-1]) for run in phases[1:]),
        "phases": _phases(phases[1:], iterations),
        "plain_loop": spread(looped[1:]) if looped else None,
        "speed_up": spread(speed_up) if looped else None,
        "memory": memory,
    }


def learning(comm: MPI.Comm, study: str, repeats: int, path: Path) -> dict[str, Any]:
    """Time an iteration of a classification study of the paper, nobody Byzantine, recording on; collective.

    Data are those found, else a stand-in. A run is whole epochs, each with its evaluation at the end. Under several
    ranks the same runs on rank 0 alone, the others asleep, take turns with those on all. Times are in seconds, memory
    is the most a rank has held so far, in bytes.

    Shares of peak are operations over seconds over the sum of what each rank multiplies at best (`gemm_peak`, the
    better of once before and once after the run). Counted are the multiplications and additions of the layers, F a
    forward pass of an input (`operations`): an iteration's evaluation of neighbours F batch a message judged, an
    agent's own included; besides, for the whole iteration, 3 F batch an agent that takes a gradient step and F batch
    an agent for the loss of the combined model. Everything else (pooling, softmax, optimiser, combination, recording,
    the evaluation after an epoch) takes its time and counts nothing.
    """
    from mpi_resmtl import run
    from mpi_resmtl.bench.peak import gemm_peak
    from mpi_resmtl.config import resolve

    tables = {"epochs": _EPOCHS_A_RUN[study], "rules": ["loss"], "task": {"name": study}, "byzantine": {"count": 0}}
    began = perf_counter()
    planned, graph, rank = run.prepare(comm, lambda: resolve(tables, "bench"))
    start_up = perf_counter() - began
    iterations = planned.experiment.iterations
    evaluated, passed = (comm.allreduce(operations(study, n)) for n in _inputs(rank, iterations))
    # The first run of all finds pages and caches cold.
    _recorded_run(comm, planned, graph, rank, path)
    memory = comm.gather(_memory())
    by_itself = comm.Split(comm.rank)
    alone = _asleep(comm, lambda: run.prepare(by_itself, lambda: resolve(tables, "bench"))) if comm.size > 1 else None
    taken, taken_alone, phases, peaks = [], [], [], [comm.gather(gemm_peak(comm))]
    for _ in range(repeats):
        seconds, by_phase = _recorded_run(comm, planned, graph, rank, path)
        taken.append(seconds)
        phases.append(by_phase)
        peaks.append(comm.gather(gemm_peak(comm)))
        if comm.size > 1:
            taken_alone.append(_asleep(comm, lambda: _recorded_run(by_itself, *alone, path)[0]))
    rank.close()
    if alone is not None:
        alone[2].close()
    by_itself.Free()
    if comm.rank:
        return {}
    from mpi_resmtl.stopwatch import PHASES

    peak = [np.maximum(before, after) for before, after in pairwise(peaks)]
    evaluating = [by_phase[:, PHASES.index("evaluate")] for by_phase in phases]
    ratio = [one / all_ for one, all_ in zip(taken_alone, taken, strict=False)]
    return {
        "study": study,
        "data": planned.scene.data,
        "agents": planned.graph.agents,
        "edges": planned.edges,
        "ranks": comm.size,
        "iterations": iterations,
        "start_up": start_up,
        "iteration": spread([seconds / iterations for seconds in taken], "s"),
        "phases": _phases([by_phase.mean(axis=0) for by_phase in phases], iterations),
        "operations": {"evaluate": evaluated / iterations, "iteration": passed / iterations},
        "gemm_peak": np.median(peak, axis=0).tolist(),
        "share_of_peak": {
            "evaluate": spread([float(evaluated / (s @ p)) for s, p in zip(evaluating, peak, strict=True)]),
            "iteration": spread([float(passed / (s * p.sum())) for s, p in zip(taken, peak, strict=True)]),
        },
        "one_rank": spread([seconds / iterations for seconds in taken_alone]) if ratio else None,
        "times_one_rank": spread(ratio) if ratio else None,
        "memory": memory,
    }


def operations(study: str, inputs: int) -> int:
    """Multiplications and additions of a forward pass of so many inputs: 2 places * fan in * outputs a layer."""
    return 2 * inputs * sum(places * fan_in * outputs for places, fan_in, outputs in LAYERS[study])


class Unrecorded:
    """Takes a recorder's place and records nothing."""

    def begin(self, *ignored: object) -> None: ...

    def wants_parts(self, *ignored: object) -> bool:
        return False

    def keep(self, *ignored: object) -> None: ...

    def write(self) -> None: ...

    def end(self, *ignored: object) -> None: ...


def _recorded_run(
    comm: MPI.Comm, planned: Plan, graph: Graph | None, rank: Rank, path: Path
) -> tuple[float, np.ndarray | None]:
    """Seconds of a whole run with recording, and on rank 0 those of each rank and phase (ranks, phases)."""
    from mpi_resmtl import run

    record, _, _ = run.open_recorder(comm, planned, graph, rank, path)
    seconds = timed(comm, lambda: run.diffuse_rule(planned, rank, "loss", record))
    record.close()
    comm.Barrier()
    if comm.rank:
        return seconds, None
    with h5py.File(path) as file:
        return seconds, file["rule/loss/seconds"][()].sum(axis=0)


def _inputs(rank: Rank, iterations: int) -> tuple[int, int]:
    """Inputs that pass forward through the networks of this rank's agents in a run: evaluating neighbours, and in all.

    A gradient step counts as three passes.
    """
    task, target = rank.task, rank.partition.target - rank.partition.first
    evaluated = besides = 0
    for first in range(0, iterations, task.length):
        samples = task.samples(first // task.length)
        for i in range(min(task.length, iterations - first)):
            batch = np.array([len(labels) for labels in samples.y[i]])
            evaluated += int(batch[target].sum())
            besides += int(batch.sum() + 3 * batch[samples.active[i]].sum())
    return evaluated, evaluated + besides


def _asleep(comm: MPI.Comm, action: Callable[[], Found]) -> Found | None:
    """What `action` gives on rank 0, while the other ranks leave the machine to it; None there."""
    found = action() if comm.rank == 0 else None
    done = comm.Ibarrier()
    while not done.Test():
        sleep(0.002)
    return found


def _memory() -> int:
    """The most bytes that this process has held in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _phases(runs: list[np.ndarray], iterations: int) -> dict[str, float]:
    """Median over runs of the seconds an iteration of each phase, from runs' totals (phases,)."""
    from mpi_resmtl.stopwatch import PHASES

    return {p: statistics.median(float(run[i]) for run in runs) / iterations for i, p in enumerate(PHASES)}


def _plain_loop(planned: Plan, graph: Graph, rank: Rank) -> Callable[[], float] | None:
    """A timed run of the tests' oracle on the same samples and messages, in seconds an iteration; None if not here.

    It loops over agents and neighbours in plain Python floats, and measures the streaming loss alone.
    """
    from mpi_resmtl.attacks import Known

    path = Path(__file__).parents[2] / "tests" / "oracle.py"
    if not path.is_file():
        return None
    specification = importlib.util.spec_from_file_location("oracle", path)
    oracle = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(oracle)
    experiment, length = planned.experiment, 50
    drawn = [rank.task.draw(block) for block in range(-(-length // rank.task.length))]
    attackers = np.flatnonzero(graph.byzantine)
    speaker = np.searchsorted(attackers, rank.partition.spoken[:, 0])
    message = np.zeros((length, len(attackers), rank.task.parameters))
    for i in range(length):
        message[i, speaker] = rank.adversary.messages(Known(i))
    stream = {
        "model": "location",
        "step_size": experiment.task.step_size,
        "forgetting_factor": experiment.rule.forgetting_factor,
        "initial_accumulated_loss": experiment.rule.initial_accumulated_loss,
        "edge": graph.edge,
        "byzantine": attackers,
        "initial": rank.task.start(),
        "position": graph.position,
        "target": graph.target,
        "x": np.concatenate([u for u, _ in drawn])[:length],
        "y": np.concatenate([d for _, d in drawn])[:length],
        "active": None,
        "message": message,
    }

    def run() -> float:
        began = perf_counter()
        oracle.simulate(stream, "loss")
        return (perf_counter() - began) / length

    return run


_HEADER = (
    "agents     edges  ranks   us/iteration (min-max)     ns/edge  recording  "
    "adapt attack exchange evaluate combine measure record  start-up s  MB/rank  plain loop us  times faster"
)
_LEARNING_HEADER = (
    "study                 data      agents ranks  ms/iteration (min-max)    GFLOP/s/rank  evaluate  iteration  "
    " adapt attack exchange evaluate combine measure record  start-up s  MB/rank  times one rank"
)


def _line(row: dict[str, Any]) -> str:
    """One row of the table; phases in us an iteration, mean over ranks."""
    time = row["iteration"]
    phases = " ".join(f"{seconds * 1e6:>{max(6, len(p))}.0f}" for p, seconds in row["phases"].items())
    line = (
        f"{row['agents']:>6} {row['edges']:>9} {row['ranks']:>6} "
        f"{time['median'] * 1e6:>10.1f} ({time['min'] * 1e6:.1f}-{time['max'] * 1e6:.1f})".ljust(52)
        + f"{row['per_edge'] * 1e9:>8.1f} {row['recording']:>9.1%} {phases} "
        f"{row['start_up']:>10.2f} {max(row['memory']) / 1e6:>8.0f}"
    )
    if row["plain_loop"] is not None:
        line += f" {row['plain_loop']['median'] * 1e6:>14.0f} {row['speed_up']['median']:>13.1f}"
    return line


def _learning_line(row: dict[str, Any]) -> str:
    """One row of the table of classification studies; phases in ms an iteration, mean over ranks."""
    time, share = row["iteration"], row["share_of_peak"]
    phases = " ".join(f"{seconds * 1e3:>{max(6, len(p))}.2f}" for p, seconds in row["phases"].items())
    line = (
        f"{row['study']:<21} {row['data']:<9} {row['agents']:>6} {row['ranks']:>5} "
        f"{time['median'] * 1e3:>9.2f} ({time['min'] * 1e3:.2f}-{time['max'] * 1e3:.2f})".ljust(71)
        + f"{statistics.mean(row['gemm_peak']) / 1e9:>10.1f} {share['evaluate']['median']:>9.1%} "
        f"{share['iteration']['median']:>10.1%}  {phases} {row['start_up']:>11.2f} {max(row['memory']) / 1e6:>8.0f}"
    )
    if row["times_one_rank"] is not None:
        line += f" {row['times_one_rank']['median']:>15.2f}"
    return line
