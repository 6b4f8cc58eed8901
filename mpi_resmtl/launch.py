"""Start-up of MPI, errors that all ranks share, and the end of the job when one rank fails."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mpi_resmtl.errors import FileError, UserError

if TYPE_CHECKING:
    from mpi4py import MPI

USER_ERROR = 2
"""Exit status after a user's error."""

Result = TypeVar("Result")


class Refused(Exception):
    """A user's error, its text, that rank 0 has shown already; raised on every rank alike."""


class Stopped(Exception):
    """A signal has ended the run in good order; raised on every rank alike."""

    def __init__(self, number: int, what: str):
        """`what` has come of the run."""
        super().__init__(f"stopped by {signal.Signals(number).name}: {what}")
        self.status = 128 + number
        """Exit status, as a shell tells of a process that the signal ends."""


def on_ranks(action: Callable[[MPI.Comm], None]) -> int:
    """Call `action(comm)` on every rank; an exception on any rank ends the whole job. -> exit status."""
    import mpi4py

    mpi4py.rc.threads = False
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    try:
        action(comm)
    except Refused:
        return USER_ERROR
    except Stopped as stopped:
        if comm.rank == 0:
            print(f"mpi-resmtl: {stopped}", file=sys.stderr, flush=True)
        return stopped.status
    except FileError as error:
        print(f"mpi-resmtl: {error}", file=sys.stderr, flush=True)
        if comm.size == 1:
            return 1
        comm.Abort(1)
    except BaseException:
        print(f"mpi-resmtl: rank {comm.rank} failed and ends the job", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        comm.Abort(1)
    return 0


def together(comm: MPI.Comm, action: Callable[[], Result]) -> Result:
    """What `action` gives on each rank; if it raises UserError on any, rank 0 shows the first and all raise Refused."""
    result, error = None, None
    try:
        result = action()
    except UserError as raised:
        error = str(raised)
    errors = [e for e in comm.allgather(error) if e is not None]
    if errors:
        if comm.rank == 0:
            print(f"mpi-resmtl: {errors[0]}", file=sys.stderr, flush=True)
        raise Refused(errors[0])
    return result


def on_root(comm: MPI.Comm, action: Callable[[], Result]) -> Result | None:
    """What `action` gives on rank 0, None elsewhere; errors as in `together`."""
    return together(comm, action if comm.rank == 0 else lambda: None)
