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
    import h5py
    import xarray

    from mpi_resmtl.errors import UserError

    try:
        with h5py.File(path) as file:
            schema = file.attrs.get("schema")
    except OSError as error:
        raise UserError(f"{path}: cannot be read as HDF5: {str(error).splitlines()[0]}") from None
    if schema != "mpi-resmtl/1":
        raise UserError(f"{path}: is not a result file: its schema is {schema!r}, not 'mpi-resmtl/1'")
    results = xarray.open_datatree(path, engine="h5netcdf")
    # Its name is that of graph/edge too, over which xarray stumbles when a notebook shows the results.
    results.dataset = results.to_dataset(inherit=False).drop_indexes("edge", errors="ignore")
    return results
