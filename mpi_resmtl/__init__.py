"""Byzantine-resilient distributed multi-task learning on MPI ranks."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray

__version__ = "0.1.0"


def open_results(path: str | PathLike[str]) -> xarray.DataTree:
    """A result file as labelled arrays: groups `graph` and `rule/NAME`, read when they are looked at.

    Dimensions are named (iteration, epoch, agent, edge, ...), every dataset says in `long_name` what it is, and the
    run's configuration and versions are the root's attributes. Close it, or use it in a `with` statement.
    Raises UserError where the file is not a result file of schema mpi-resmtl/1.
    """
    import xarray

    from mpi_resmtl import hdf5
    from mpi_resmtl.errors import UserError

    hdf5.examine(path)
    with hdf5.opened(path) as file:
        schema = hdf5.text(file.attrs.get("schema"))
    if schema != "mpi-resmtl/1":
        raise UserError(f"{path}: is not a result file: its schema is {schema!r}, not 'mpi-resmtl/1'")
    return xarray.open_datatree(path, engine="h5netcdf")
