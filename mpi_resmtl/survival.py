"""Going on without ranks that have died, where the MPI library can (ULFM: Open MPI 5 under `mpirun --with-ft ulfm`).

Nothing is collective from the first iteration on: messages between two ranks fail when one of them has died, and the
other then takes it for silent; rank 0 gathers what is recorded by messages of each rank, and writes it. So no group of
ranks has to agree on who is left, and none makes a communicator, in which Open MPI 5.0.11 can crash after a death.

How ranks end matters as much. In that version nobody notices a rank that leaves or calls MPI_Abort, only one that a
signal ends: so a rank that fails kills itself. MPI_Finalize did not come back in some 15 of 100 runs in which a rank
had died: so ranks leave without it, once all they have sent has been taken. A death in start-up is not survived.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import h5py
from mpi4py import MPI

from mpi_resmtl.errors import FileError, UserError
from mpi_resmtl.launch import Refused, Stopped

_FAULT_TOLERANT = "OMPI_MCA_mpi_ft_enable"
"""What mpirun sets where it leaves ranks alone when one of them dies."""
_DEATHS = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)


def check() -> None:
    """Raise UserError unless a run can go on without a rank here."""
    library = MPI.Get_library_version().split(",")[0].strip("\0\n ")
    if os.environ.get(_FAULT_TOLERANT) not in ("1", "true"):
        raise UserError(
            "--survive needs an MPI library with fault tolerance, Open MPI 5 started by mpirun --with-ft ulfm; this is "
            f"{library} without"
        )
    if h5py.get_config().mpi:
        raise UserError("--survive: parallel HDF5 closes no file without a rank that opened it; use h5py's own wheel")


def has_died(error: MPI.Exception) -> bool:
    """Whether an operation failed because the other rank has died; raises the error where it failed for another."""
    if error.Get_error_class() in _DEATHS:
        return True
    raise error


class WriterDied(Exception):
    """Rank 0, which writes the result file, has died; raised on every other rank."""


def ended(action: Callable[[], None]) -> NoReturn:
    """Call `action`, then end this process as others need it; raises Refused and Stopped, which all ranks do alike."""
    try:
        action()
    except (Refused, Stopped):
        raise
    except WriterDied as error:
        print(f"mpi-resmtl: {error}", file=sys.stderr)
        _leave(1)
    except BaseException as error:
        if isinstance(error, FileError):
            print(f"mpi-resmtl: {error}", file=sys.stderr)
        elif isinstance(error, MPI.Exception) and error.Get_error_class() in _DEATHS:
            print("mpi-resmtl: a rank has died before the run iterates, which is not survived", file=sys.stderr)
        else:
            print(f"mpi-resmtl: rank {MPI.COMM_WORLD.rank} failed and ends itself", file=sys.stderr)
            traceback.print_exc()
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    _leave(0)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
