"""Benchmarks: what an iteration costs here, as a table for people and JSON for machines."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

if TYPE_CHECKING:
    from mpi_resmtl.graph import Graph
    from mpi_resmtl.run import Plan, Rank

AGENTS = (100, 1_000, 10_000, 100_000)
_EDGES_A_RUN = 2_000_000
"""Edges times iterations of one timed run, whatever the number of agents."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `bench` to the command line."""
    bench = commands.add_parser("bench", help="measure what an iteration costs; under mpirun or alone")
    kinds = bench.add_subparsers(required=True, metavar="KIND")
    step = kinds.add_parser("step", help="time of an iteration of target localisation, rule `loss`, by phase")
    step.add_argument("--agents", default=",".join(map(str, AGENTS)), help="numbers of agents (default %(default)s)")
    step.add_argument("--repeats", type=int, default=7, help="timed runs, of which the median counts (default 7)")
    step.add_argument("--json", type=Path, metavar="FILE", help="write all figures here as well")
    step.set_defaults(command=_step)


def environment() -> dict[str, Any]:
    """All that a timing depends on."""
    from mpi_resmtl.recorder import versions

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
        "versions": versions(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _step(asked: argparse.Namespace) -> int:
    from mpi_resmtl.errors import UserError
    from mpi_resmtl.launch import on_ranks

    try:
        agents = [int(number) for number in asked.agents.split(",")]
    except ValueError:
        raise UserError(f"--agents {asked.agents}: expected numbers separated by commas") from None
    if min(agents) < 10 or asked.repeats < 1:
        raise UserError("bench step needs at least 10 agents and 1 repeat")

    if asked.json is not None and not asked.json.parent.is_dir():
        raise UserError(f"--json {asked.json}: the folder {asked.json.parent} does not exist")

    def action(comm) -> None:
        rows = []
        for number in agents:
            row = step(comm, number, asked.repeats)
            rows.append(row)
            if comm.rank == 0:
                if len(rows) == 1:
                    print(_HEADER)
                print(_line(row), flush=True)
        if comm.rank == 0:
            found = {"environment": environment(), "ranks": comm.size, "step": rows}
            if asked.json is not None:
                asked.json.write_text(json.dumps(found, indent=1))
            else:
                print(json.dumps(found))

    return on_ranks(action)


def step(comm, agents: int, repeats: int) -> dict[str, Any]:
    """Time an iteration of target localisation, a fifth of the agents Byzantine, at the paper's density; collective.

    Runs with and without recording take turns, so that their ratio holds when the machine's speed drifts. At up to
    100 agents on one rank the plain per-edge loop of the tests runs beside them. Times are in seconds.
    """
    from mpi_resmtl import run
    from mpi_resmtl.config import resolve
    from mpi_resmtl.stopwatch import PHASES

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
    experiment = planned.experiment
    plain = _plain_loop(planned, graph, rank) if comm.size == 1 and agents <= 100 else None
    recorded, bare, phases, looped = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(comm.bcast(folder)) / "step.h5"
        for _ in range(repeats + 1):
            record = run.open_recorder(comm, planned, graph, rank, path)
            recorded.append(_timed(comm, lambda: run.diffuse_rule(rank, "loss", experiment, record)))  # noqa: B023
            record.close()
            comm.Barrier()
            if comm.rank == 0:
                with h5py.File(path) as file:
                    phases.append(file["rule/loss/seconds"][()].sum(axis=0).mean(axis=0))
            bare.append(_timed(comm, lambda: run.diffuse_rule(rank, "loss", experiment, Unrecorded())))
            if plain is not None:
                looped.append(plain())
        comm.Barrier()
    rank.exchange.close()
    per_iteration = [total / iterations for total in recorded[1:]]
    ratios = [with_ / without for with_, without in zip(recorded[1:], bare[1:], strict=True)]
    speed_up = [loop / ours for loop, ours in zip(looped[1:], per_iteration, strict=False)]
    memory = comm.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    if comm.rank:
        return {}
    return {
        "agents": agents,
        "edges": planned.edges,
        "ranks": comm.size,
        "iterations": iterations,
        "start_up": start_up,
        "iteration": _spread(per_iteration),
        "per_edge": statistics.median(per_iteration) / planned.edges,
        "measuring_and_recording": _spread([ratio - 1 for ratio in ratios]),
        "recording": statistics.median(run[-1] / (run.sum() - run[-1]) for run in phases[1:]),
        "phases": {p: statistics.median(run[i] for run in phases[1:]) / iterations for i, p in enumerate(PHASES)},
        "plain_loop": _spread(looped[1:]) if looped else None,
        "speed_up": _spread(speed_up) if looped else None,
        "memory": memory,
    }


class Unrecorded:
    """Takes a recorder's place and records nothing."""

    def begin(self, *ignored: object) -> None: ...

    def keep(self, *ignored: object) -> None: ...

    def write(self) -> None: ...

    def end(self, *ignored: object) -> None: ...


def _timed(comm, action: Callable[[], None]) -> float:
    """Seconds that all ranks take for `action` together."""
    comm.Barrier()
    began = perf_counter()
    action()
    comm.Barrier()
    return perf_counter() - began


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _plain_loop(planned: Plan, graph: Graph, rank: Rank) -> Callable[[], float] | None:
    """A timed run of the tests' oracle on the same samples and messages, in seconds an iteration; None if not here.

    It loops over agents and neighbours in plain Python floats, and measures the streaming loss alone.
    """
    path = Path(__file__).parents[1] / "tests" / "oracle.py"
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
        message[i, speaker] = rank.attack(i, None)
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
