"""Arrays kept in the user's cache folder under a key that names their source's checksum."""

from __future__ import annotations

import io
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from mpi_resmtl.data.files import DataError

Picked = TypeVar("Picked")
Get = Callable[[str], np.ndarray]
"""Name of an array -> the array."""

_LARGEST = 1 << 30
"""Bytes of one array."""


def folder() -> Path:
    """$MPI_RESMTL_CACHE, or the cache folder of the platform."""
    given = os.environ.get("MPI_RESMTL_CACHE")
    if given:
        return Path(given)
    import platformdirs

    return platformdirs.user_cache_path("mpi-resmtl", appauthor=False)


def through(key: str, build: Callable[[], dict[str, np.ndarray]], pick: Callable[[Get], Picked]) -> Picked:
    """`pick` from the arrays kept under `key`, made by `build` where there are none or the file is damaged.

    `pick` is given a function that reads one array; what it does not ask for is not read. Any number of processes may
    come through at once: each writes a file of its own and renames it. A cache folder that cannot be written costs a
    warning and the time to build again, nothing else. DataError from `build` or `pick` passes.
    """
    path = folder() / f"{key}.npz"
    try:
        with zipfile.ZipFile(path) as archive:
            # ZipFile.read checks the member's CRC before a byte of it is interpreted.
            return pick(lambda name: _load(archive, f"{name}.npy"))
    except DataError:
        raise
    except OSError:  # most often: not there yet
        pass
    except Exception as error:  # a damaged zip raises nearly anything, and the source is at hand
        warnings.warn(f"{path}: damaged cache, built anew ({error})", stacklevel=2)
    arrays = build()
    try:
        _store(path, arrays)
    except OSError as error:
        warnings.warn(f"{path}: not cached ({error.strerror or error})", stacklevel=2)
    return pick(arrays.__getitem__)


def _load(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """An array of numbers, whose header promises no more than the member holds."""
    if archive.getinfo(member).file_size > _LARGEST:
        raise ValueError(f"{member} is larger than anything that is kept here")
    content = io.BytesIO(archive.read(member))
    version = np.lib.format.read_magic(content)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = header(content)
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize != len(content.getbuffer()) - content.tell():
        raise ValueError(f"{member} holds {dtype} {shape}")
    content.seek(0)
    return np.load(content, allow_pickle=False)


def _store(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
