"""Start-up of MPI, errors that all ranks share, and the end of the job when one rank fails."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mpi_resmtl.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI

USER_ERROR = 2
"""Exit status after a user's error."""

Result = TypeVar("Result")


class Refused(Exception):
    """A user's error, its text, that rank 0 has shown already; raised on every rank alike."""


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


def refuse(message: str | None) -> None:
    """Raise UserError with the message, unless it is None."""
    if message is not None:
        raise UserError(message)


def on_root(comm: MPI.Comm, action: Callable[[], Result]) -> Result | None:
    """What `action` gives on rank 0, None elsewhere; errors as in `together`."""
    return together(comm, action if comm.rank == 0 else lambda: None)
