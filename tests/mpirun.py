"""Runs the command line under a real mpirun, as a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

MPIRUN = shutil.which("mpirun") or shutil.which("mpiexec")


def mpirun(ranks: int, *arguments: object, timeout: float = 120, cwd: Path | None = None, program=None, **environment):
    """`mpi-resmtl arguments` on so many ranks; -> the finished process with its output as text."""
    return _run(command(ranks, *arguments, program=program), timeout, cwd, environment)


def command(ranks: int, *arguments: object, program=None) -> list[str]:
    """The command line of `mpi-resmtl arguments` on so many ranks."""
    program = program or [sys.executable, "-m", "mpi_resmtl"]
    crowd = ["--oversubscribe"] if "Open MPI" in _flavour() else []
    return [MPIRUN, *crowd, "-n", str(ranks), *map(str, program), *map(str, arguments)]


def alone(*arguments: object, timeout: float = 120, cwd: Path | None = None, **environment):
    """`mpi-resmtl arguments` without mpirun."""
    return _run([sys.executable, "-m", "mpi_resmtl", *map(str, arguments)], timeout, cwd, environment)


def _run(line: list[str], timeout: float, cwd: Path | None, environment: dict):
    merged = variables() | {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=merged,
        stdin=subprocess.DEVNULL,
    )


def variables() -> dict[str, str]:
    """The environment of a run.

    Open MPI would bind two ranks to the first two cores, those of every other job on the machine too, and let them spin
    while they wait, which is much slower where others work and no faster where none do.
    """
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {"OMPI_MCA_hwloc_base_binding_policy": "none", "OMPI_MCA_mpi_yield_when_idle": "1"} | os.environ | root


def _flavour() -> str:
    return subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
