"""Proves that an environment works: all ranks write one HDF5 file, and read what the others wrote.

mpirun -n 2 python -m mpi4py jobs/prove.py parallel|serial FILE
"""

import sys

import h5py
import numpy as np
from mpi4py import MPI

import mpi_resmtl
from mpi_resmtl import loops

kind, path = sys.argv[1:]
parallel = kind == "parallel"
comm = MPI.COMM_WORLD
library = MPI.Get_library_version().split(",")[0].splitlines()[0]

if comm.size != 2:
    sys.exit(f"mpirun started 2 ranks, but mpi4py sees {comm.size}, of {library}: two different MPI libraries")
if h5py.get_config().mpi != parallel:
    sys.exit(f"this h5py is {'serial' if parallel else 'parallel'}, wanted: {kind}")

expected = np.arange(comm.size * 1000.0).reshape(comm.size, 1000)
mine = expected[comm.rank]
if parallel:
    with h5py.File(path, "w", driver="mpio", comm=comm) as file:
        file.create_dataset("x", expected.shape, expected.dtype)[comm.rank] = mine
else:
    rows = np.empty_like(expected) if comm.rank == 0 else None
    comm.Gather(mine, rows)
    if comm.rank == 0:
        with h5py.File(path, "w") as file:
            file["x"] = rows
comm.Barrier()
with h5py.File(path) as file:
    np.testing.assert_array_equal(file["x"], expected)

if comm.rank == 0:
    python = sys.version.split()[0]
    print(
        f"two ranks wrote one {kind} HDF5 file: mpi_resmtl {mpi_resmtl.__version__}, Python {python}, {library},"
        f" HDF5 {h5py.version.hdf5_version}, h5py {h5py.__version__}, numpy {np.__version__}, loops in {loops.IN_USE}"
    )
