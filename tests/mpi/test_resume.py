"""Runs that are stopped and go on with other numbers of ranks, for everything that remembers.

`tests/test_mpi.py` runs them under mpirun. They hold at any number of ranks; as a run changes it twice, three will do.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi4py import MPI

from mpi_resmtl import adversary, signals
from mpi_resmtl.cells import single
from mpi_resmtl.launch import Stopped
from mpi_resmtl.run import run

sys.path.insert(0, str(Path(__file__).parents[1]))

from results import assert_identical

LOCATION = ["iterations=60", "record.models=7", "record.weights=3", "task.agents=23", "byzantine.count=5"]
CASES = {
    "moving averages": ["rules=none,loss,distance"],
    "a window of losses": ["rules=none,loss-robust"],
    "the last samples": ["rules=f-filter", "rule.b=2", "rule.excess=cap"],
    "fresh samples": ["rules=none,loss-fresh"],
    "losses of the previous model": ["rules=none,fedfomo", "byzantine.attack=gaussian"],
    "rows that are not sent": ["rules=none,loss", "byzantine.attack=silent"],
    "drift": ["rules=none,loss", "byzantine.attack=drift", "byzantine.relative=true"],
    "drift-blind": ["rules=none,loss", "byzantine.attack=drift-blind", "byzantine.relative=true", "byzantine.step=0.1"],
    "stale": ["rules=none,loss", "byzantine.attack=stale", "byzantine.delay=9"],
    "sleeper": ["rules=none,loss", "byzantine.attack=sleeper", "byzantine.start=4"],
    "a server": ["rules=none,central"],
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all ranks know."""
    comm = MPI.COMM_WORLD
    made = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)
    yield Path(made)
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(made)


def run_on(ranks: int, output: Path, settings: list[str], resume=False, stop: tuple[int, int] = (0, 0)) -> None:
    """Run on the first ranks; `stop` (nth, i): the last of them is signalled the nth time that it is in iteration i."""
    world = MPI.COMM_WORLD
    comm = world.Split(world.rank < ranks)
    number, times, speak = 0, 0, adversary.Adversary.speak

    def signalled(self, moment, *rest):
        nonlocal times
        if moment.iteration == stop[1]:
            times += 1
            if times == stop[0] and comm.rank == comm.size - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
        return speak(self, moment, *rest)

    if world.rank < ranks:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adversary.Adversary, "speak", signalled)
            patch.setattr(signals, "_MOST_ITERATIONS", 2)
            try:
                run(comm, lambda: single("fig1c", LOCATION + settings), output, False, quiet=True, resume=resume)
            except Stopped as error:
                number = error.number
    comm.Free()
    assert world.bcast(number) == (signal.SIGUSR1 if stop[0] else 0)
    world.Barrier()


@pytest.mark.skipif(MPI.COMM_WORLD.size not in (1, 3), reason="three ranks will do")
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_stopped_twice_ends_as_an_unbroken_one_does(name: str, folder: Path):
    settings, output, ranks = CASES[name], folder / "stopped.h5", MPI.COMM_WORLD.size
    rules = settings[0].count(",") + 1
    run_on(1, folder / "unbroken.h5", settings)
    run_on(ranks, output, settings, stop=(rules, 20))
    run_on(max(1, ranks - 1), output, settings, resume=True, stop=(1, 38))
    run_on(ranks, output, settings, resume=True)
    if MPI.COMM_WORLD.rank == 0:
        assert_identical(folder / "unbroken.h5", output)
        assert sorted(path.name for path in folder.iterdir()) == ["stopped.h5", "unbroken.h5"]
