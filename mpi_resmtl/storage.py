"""Files that a run writes: room for them, whole ones only, and what went wrong in words."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpi_resmtl.errors import UserError


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


def check_room(path: Path, more: int) -> None:
    """Raise UserError unless `more` bytes can be added to a file, as far as disk and file size limit tell."""
    state = os.statvfs(path)
    free = state.f_bavail * state.f_frsize
    if more > free:
        raise UserError(f"{path}: needs {more:,} bytes, and {free:,} are free in {path.parent}")
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.stat().st_size + more
    if limit != resource.RLIM_INFINITY and size > limit:
        raise UserError(f"{path}: will have {size:,} bytes, and the file size limit (ulimit -f) is {limit:,}")


def sync(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
