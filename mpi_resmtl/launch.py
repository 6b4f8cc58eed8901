"""Start-up of MPI, errors that all ranks share, and the end of the job when one rank fails."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from mpi_resmtl.errors import FileError, UserError

if TYPE_CHECKING:
    from mpi4py import MPI

USER_ERROR = 2
"""Exit status after a user's error."""
_RANKS = "MPI_RESMTL_RANKS"
"""Environment variable in which a batch script says how many ranks it starts."""

Result = TypeVar("Result")


class Refused(Exception):
    """A user's error, its text, that rank 0 has shown already; raised on every rank alike."""


class Stopped(Exception):
    """A signal has ended the run in good order; raised on every rank alike."""

    def __init__(self, number: int, what: str):
        """`what` has come of the run."""
        super().__init__(f"stopped by {signal.Signals(number).name}: {what}")
        self.number, self.status = number, 128 + number
        """The signal, and the exit status, as a shell tells of a process that the signal ends."""


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Add `--plugin` to a command."""
    what = "import a module of your own, also from this folder, that registers rules, attacks or tasks"
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=what)


def plug_in(modules: list[str]) -> None:
    """Import modules of the user's own, also from the current folder; raises UserError where one fails."""
    sys.path.insert(0, os.getcwd())
    try:
        for name in modules:
            importlib.import_module(name)
    except Exception as error:
        raise UserError(f"--plugin {name}: {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)


def on_ranks(action: Callable[[MPI.Comm], int | None], plugins: Sequence[str] = ()) -> int:
    """Call `action(comm)` on every rank; an exception on any rank ends the whole job. -> exit status.

    That is what `action` gives, None being 0. `plugins` are imported before, on every rank.
    """
    import mpi4py

    mpi4py.rc.threads = False
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    try:
        together(comm, lambda: _check_ranks(comm.size))
        together(comm, lambda: plug_in(plugins))
        return action(comm) or 0
    except Refused:
        return USER_ERROR
    except Stopped as stopped:
        if comm.rank == 0:
            print(f"mpi-resmtl: {stopped}", file=sys.stderr, flush=True)
        return stopped.status
    except FileError as error:
        print(f"mpi-resmtl: {error}", file=sys.stderr, flush=True)
        if comm.size > 1:
            comm.Abort(1)
        return 1
    except BaseException:
        print(f"mpi-resmtl: rank {comm.rank} failed and ends the job", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        comm.Abort(1)
        return 1


def _check_ranks(ranks: int) -> None:
    """Raise UserError where ranks do not know of one another and would each do all the work, into one file."""
    started = os.environ.get(_RANKS, str(ranks))
    if started != str(ranks):
        raise UserError(
            f"{started} ranks were started, but MPI sees {ranks}: the launcher does not know this MPI library; "
            "use its own mpirun, or another srun --mpi=... (srun --mpi=list)"
        )


def together(comm: MPI.Comm, action: Callable[[], Result]) -> Result:
    """What `action` gives on each rank; if it raises UserError on any, rank 0 shows the first and all raise Refused."""
    result, error = None, None
    try:
        result = action()
    except UserError as raised:
        error = str(raised)
    errors = _told(comm, error)
    if errors:
        if comm.rank == 0:
            print(f"mpi-resmtl: {errors[0]}", file=sys.stderr, flush=True)
        raise Refused(errors[0])
    return result


def _told(comm: MPI.Comm, text: str | None) -> list[str]:
    """What those ranks say that say something, in their order; as raw bytes, since this is asked in mid-run too."""
    import numpy as np

    own = np.frombuffer((text or "").encode(), np.uint8)
    lengths = np.empty(comm.size, np.int64)
    comm.Allgather(np.array([-1 if text is None else len(own)], np.int64), lengths)
    if (lengths < 0).all():
        return []
    counts = np.maximum(lengths, 0)
    every = np.empty(int(counts.sum()), np.uint8)
    comm.Allgatherv(own, (every, counts))
    parts = np.split(every, np.cumsum(counts)[:-1])
    return [part.tobytes().decode() for part, length in zip(parts, lengths, strict=True) if length >= 0]


def refuse(message: str | None) -> None:
    """Raise UserError with the message, unless it is None."""
    if message is not None:
        raise UserError(message)


def on_root(comm: MPI.Comm, action: Callable[[], Result]) -> Result | None:
    """What `action` gives on rank 0, None elsewhere; errors as in `together`."""
    return together(comm, action if comm.rank == 0 else lambda: None)
