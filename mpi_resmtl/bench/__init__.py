"""Benchmarks: what things cost here, as a table for people and JSON for machines."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mpi_resmtl.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `bench` to the command line."""
    from mpi_resmtl.bench import step

    bench = commands.add_parser("bench", help="measure what an iteration costs; under mpirun or alone")
    kinds = bench.add_subparsers(required=True, metavar="KIND")
    step.add_parser(kinds)
    if importlib.util.find_spec("mpi_resmtl.bench_rules"):
        importlib.import_module("mpi_resmtl.bench_rules").add_parser(kinds)


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


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
