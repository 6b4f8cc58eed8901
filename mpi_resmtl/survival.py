"""Going on without ranks that have died, where the MPI library can (ULFM: Open MPI 5 under `mpirun --with-ft ulfm`).

Nothing is collective from the first iteration on: messages between two ranks fail when one of them has died, and the
other then takes it for silent; rank 0 gathers what is recorded by messages of each rank, and writes it. So no group of
ranks has to agree on who is left. At the end ranks leave without MPI_Finalize, which Open MPI 5.0.11 did not come back
from in some 15 of 100 runs in which a rank had died.
"""

from __future__ import annotations

import os
import sys

import h5py
from mpi4py import MPI

from mpi_resmtl.errors import UserError

_FAULT_TOLERANT = "OMPI_MCA_mpi_ft_enable"
"""What mpirun sets where it leaves ranks alone when one of them dies."""


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
    if error.Get_error_class() in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING):
        return True
    raise error


def leave() -> None:
    """End this process; its exit status is 0."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
