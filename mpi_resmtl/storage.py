"""Files that a run writes: room for them, whole ones only, and what went wrong in words."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpi_resmtl.errors import UserError
from mpi_resmtl.memory import shown

DESCRIPTION = 8192
"""Bytes that HDF5 takes at most to describe a dataset and, but for a few, each of its chunks."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the operating system become a UserError that names the file; what HDF5 says of them is cut short."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from None


def reason(error: OSError) -> str:
    """What the operating system said, also where HDF5 tells it at length."""
    told = re.search(r"error message = '([^']*)'", str(error))
    return told.group(1) if told else error.strerror or str(error).splitlines()[0]


def check_room(path: Path, size: int, what: str, advice: str = "") -> None:
    """Raise UserError unless a new file can have `size` bytes, as far as disk and file size limit tell.

    HDF5 may crash, or say nothing, where it cannot write a file's description on closing it: this is asked before.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(f"{what} takes {shown(size)}, {path.parent} has {shown(free)} left{advice}")
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and size > limit:
        raise UserError(f"{path}: takes {shown(size)}, and the file size limit (ulimit -f) is {shown(limit)}{advice}")


def sync(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
