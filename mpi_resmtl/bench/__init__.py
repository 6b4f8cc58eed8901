"""Benchmarks: what things cost here, as a table for people and JSON for machines.

Every measure is the median of several timed runs, with its spread; what is compared takes turns, so that a drift of
the machine's speed meets both. Warm-up is apart. With `--against` an earlier JSON, exit status 3 says that something
has become slower beyond the noise (`against.compare`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from mpi_resmtl.bench import against
from mpi_resmtl.errors import UserError
from mpi_resmtl.launch import on_ranks, on_root

if TYPE_CHECKING:
    from mpi4py import MPI

Found = TypeVar("Found")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `bench` to the command line."""
    from mpi_resmtl.bench import exchange, record, rules, scale, step

    bench = commands.add_parser("bench", help="measure what things cost, beside the machine's ceilings; under mpirun")
    kinds = bench.add_subparsers(required=True, metavar="KIND")
    for kind in (step, exchange, rules, record, scale):
        kind.add_parser(kinds)


def add_options(parser: argparse.ArgumentParser, repeats: int | None, said: str = "%(default)s") -> None:
    """Add the options of a benchmark that `measured` runs; `said` tells of `repeats` None what that means."""
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"timed runs, of which the median counts (default {said})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here (default: standard output)")
    parser.add_argument("--against", type=Path, metavar="EARLIER.json", help="compare; exit status 3 when slower")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        help="share by which a median must be slower, its quartiles apart from the earlier ones (default %(default)s)",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="where files are written and removed (default: .)"
    )


def measured(asked: argparse.Namespace, kind: str, measure: Callable[[MPI.Comm], dict[str, Any]]) -> int:
    """Run `measure(comm)`, whose result counts on rank 0, deliver it and compare it; -> exit status."""

    def action(comm: MPI.Comm) -> int:
        earlier = on_root(comm, lambda: _checked(asked, kind))
        found = measure(comm)
        return comm.bcast(on_root(comm, lambda: _concluded(comm, asked, kind, found, earlier)))

    return on_ranks(action)


def _checked(asked: argparse.Namespace, kind: str) -> dict[str, Any] | None:
    """The earlier figures, where there are any to compare with; raises UserError for options that cannot work."""
    if asked.repeats is not None and asked.repeats < 1:
        raise UserError(f"--repeats {asked.repeats}: at least 1 is needed")
    if not 0 <= asked.tolerance < 1e6:
        raise UserError(f"--tolerance {asked.tolerance}: a share of 0 or more, such as 0.05")
    check_json(asked.json)
    if not asked.folder.is_dir() or not os.access(asked.folder, os.W_OK):
        raise UserError(f"--folder {asked.folder}: no such folder, or it cannot be written")
    return None if asked.against is None else against.read(asked.against, kind)


def _concluded(
    comm: MPI.Comm, asked: argparse.Namespace, kind: str, found: dict[str, Any], earlier: dict[str, Any] | None
) -> int:
    report = {"kind": kind, "environment": environment(), "ranks": comm.size} | found
    if earlier is None:
        deliver(report, asked.json)
        return 0
    try:
        changes = against.compare(report, earlier, asked.tolerance)
    except UserError:
        deliver(report, asked.json)
        raise
    report["against"] = {"file": str(asked.against), "tolerance": asked.tolerance, "changes": changes}
    deliver(report, asked.json)
    print(against.told(changes, report, earlier), file=sys.stderr)
    return against.SLOWER if any(change["verdict"] == "slower" for change in changes) else 0


_SETTINGS = (
    *(
        f"OMPI_MCA_{part}"
        for part in ("btl", "pml", "mtl", "osc", "coll", "io_", "mpi_", "hwloc_base_binding", "rmaps")
    ),
    *("MPICH_", "UCX_", "FI_", "I_MPI_", "PSM2_", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_CPU_BIND"),
)
"""Beginnings of the names of environment variables that decide how MPI works."""


def environment() -> dict[str, Any]:
    """All that a timing depends on."""
    from mpi_resmtl.recorder import versions

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": node_memory(),
        "load": list(os.getloadavg()),
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
        "settings": {n: v for n, v in sorted(os.environ.items()) if n.startswith(_SETTINGS)},
        "versions": versions(),
    }


def node_memory() -> int:
    """Bytes of memory of this node."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_json(path: Path | None) -> None:
    """Raise UserError where `--json` names a file in a folder that does not exist."""
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--json {path}: the folder {path.parent} does not exist")


def deliver(found: dict[str, Any], path: Path | None) -> None:
    """Write what was found as JSON, to `path` or, where none is named, to the standard output; rank 0 alone."""
    if path is None:
        print(json.dumps(found))
    else:
        path.write_text(json.dumps(found, indent=1))


def timed(comm: MPI.Comm, action: Callable[[], None]) -> float:
    """Seconds that all ranks take for `action` together."""
    comm.Barrier()
    began = perf_counter()
    action()
    comm.Barrier()
    return perf_counter() - began


def spread(values: list[float], unit: str | None = None) -> dict[str, Any]:
    """Median, least, greatest and quartiles; `unit` "s" or one "a second" of measures that `--against` compares."""
    ordered = sorted(values)
    quartiles = statistics.quantiles(ordered, method="inclusive") if len(ordered) > 1 else ordered * 3
    found = {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}
    return found | {"quartiles": [quartiles[0], quartiles[2]]} | ({} if unit is None else {"unit": unit})


def in_turns(
    comm: MPI.Comm, actions: dict[str, Callable[[], object]], repeats: int, least: float = 0.01
) -> dict[str, dict[str, Any]]:
    """Seconds of each action on all ranks together, the actions taking turns; collective.

    A turn calls an action as often as takes `least` seconds. -> by name {"seconds": one a repeat, "calls" in each,
    "warm_up": seconds of the first call}.
    """
    found = {}
    for name, action in actions.items():
        warm_up = timed(comm, action)
        once = comm.bcast(min(timed(comm, action) for _ in range(2)))
        found[name] = {"seconds": [], "calls": max(1, min(100_000, round(least / max(once, 1e-9)))), "warm_up": warm_up}
    for _ in range(repeats):
        for name, action in actions.items():
            calls = range(found[name]["calls"])

            def several(calls: range = calls, action: Callable[[], object] = action) -> None:
                for _ in calls:
                    action()

            found[name]["seconds"].append(timed(comm, several) / len(calls))
    return found


def timing(found: dict[str, Any]) -> dict[str, Any]:
    """What the JSON says of an action that `in_turns` timed: spread of its seconds, warm-up and calls."""
    return spread(found["seconds"], "s") | {"warm_up": found["warm_up"], "calls": found["calls"]}


def ratio(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Spread of how many times as long `one` took as `other`, turn by turn."""
    return spread([a / b for a, b in zip(one["seconds"], other["seconds"], strict=True)])


def asleep(comm: MPI.Comm, action: Callable[[], Found] | None) -> Found | None:
    """What `action` gives; ranks that have none (None) leave the machine to the others until these are done."""
    found = None if action is None else action()
    done = comm.Ibarrier()
    while not done.Test():
        sleep(0.002)
    return found


@contextmanager
def shared_folder(comm: MPI.Comm, parent: Path) -> Iterator[Path]:
    """A folder that all ranks see while they need it, in one that all nodes share; collective."""
    with tempfile.TemporaryDirectory(dir=parent) if comm.rank == 0 else nullcontext() as made:
        yield Path(comm.bcast(made))
        comm.Barrier()


def numbers(text: str, option: str, least: int = 1) -> list[int]:
    """Numbers separated by commas, such as 1,2,4; raises UserError."""
    try:
        found = [int(float(word)) if "e" in word.lower() else int(word) for word in text.split(",")]
    except (ValueError, OverflowError):
        raise UserError(f"{option} {text}: expected numbers separated by commas") from None
    if min(found) < least:
        raise UserError(f"{option} {text}: the least possible is {least}")
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
