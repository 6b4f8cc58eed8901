"""HDF5 files that others wrote, streams and results: nothing in them is trusted.

A file is first read to its end by a process of its own (`hdf5_examiner`), because the HDF5 library crashes, loops or
takes any amount of memory on some files that are damaged or made to harm. After that the shapes, types and values of
what is used are checked here, before anything is allocated for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import h5py
import numpy as np

from mpi_resmtl import hdf5_examiner
from mpi_resmtl.errors import UserError

_PATIENCE = 20
"""How much longer than its processor time an examination may take, on a machine that is busy or a disk that is slow."""
_TOGETHER = 24
"""Files that a process examines one after the other."""
_AT_ONCE = 4 << 20
"""Numbers whose values are checked at a time."""

_examined: set[tuple] = set()


class Input:
    """Marks a parameter that names an HDF5 file: rank 0 examines it before any rank reads it."""


def examine_inputs(parameters: object) -> None:
    """Examine every file that a dataclass names in a field marked `Input`; raises UserError."""
    if not is_dataclass(parameters):
        return
    hints = get_type_hints(type(parameters), include_extras=True)
    for field in fields(parameters):
        if any(isinstance(mark, Input) for mark in getattr(hints[field.name], "__metadata__", ())):
            examine(getattr(parameters, field.name))


def examine(name: str | Path) -> None:
    """Have the file read to its end elsewhere, once for each state of it; raises UserError, naming what is wrong."""
    path = _regular(name)
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from None
    if _state(path, found) in _examined:
        return
    allowed = _allowed([found])
    try:
        done = _examiner([path], allowed)
    except subprocess.TimeoutExpired:
        raise UserError(f"{name}: cannot be read to its end in {allowed} s") from None
    if done.returncode == 0:
        _examined.add(_state(path, found))
        return
    said = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode == 1 and said:
        raise UserError(f"{name}: {said[-1]}")
    if done.returncode < 0:
        raise UserError(f"{name}: damaged: the HDF5 library fails on it (signal {-done.returncode})")
    why = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
    raise UserError(f"{name}: cannot be examined: {why[-1]}")


def examined(names: Iterable[str | Path]) -> Iterator[Path]:
    """Many files in their order, examined by a few processes, so that `examine` need not start one for each.

    A file that something is wrong with comes too; `examine` will say it.
    """
    paths = [Path(name) for name in names]
    parts = [paths[first : first + _TOGETHER] for first in range(0, len(paths), _TOGETHER)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for part, _ in zip(parts, pool.map(_examine_part, parts), strict=True):
            yield from part


def _examine_part(paths: list[Path]) -> None:
    """Examine files in one process; if all is well with all of them, that is known from now on."""
    try:
        found = [path.stat() for path in paths if path.is_file()]
        if len(found) == len(paths) and _examiner(paths, _allowed(found)).returncode == 0:
            _examined.update(map(_state, paths, found))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return


def _state(path: Path, found: os.stat_result) -> tuple:
    return (str(path.absolute()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _allowed(found: list[os.stat_result]) -> int:
    """Seconds that the examination of files may take."""
    return _PATIENCE * sum(hdf5_examiner.SECONDS + f.st_size // hdf5_examiner.BYTES_A_SECOND for f in found)


def _examiner(paths: list[Path], seconds: int) -> subprocess.CompletedProcess:
    # -P: a file beside the examiner, or in the working folder, is not to be imported in place of a library.
    command = [sys.executable, "-P", hdf5_examiner.__file__, *map(str, paths)]
    return subprocess.run(command, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL)


@contextmanager
def opened(name: str | Path) -> Iterator[h5py.File]:
    """The file, read only; raises UserError when it is missing, no HDF5 file, or damaged where it is read."""
    path = _regular(name)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{name}: cannot be read: permission denied") from None
    except OSError as error:
        raise UserError(f"{name}: not a whole HDF5 file: {_first_line(error)}") from None
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{name}: damaged: {_first_line(error)}") from None


def dataset(file: h5py.File, name: str, path: str, kinds: str = "fiu", shape: tuple | None = None) -> h5py.Dataset:
    """The dataset at `path` of the file `name`; raises UserError unless it is there with a dtype of one of `kinds`.

    `shape`: what its shape must be; None in it stands for any length.
    """
    found = file.get(path)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{name}: has no /{path}")
    try:
        kind, actual = found.dtype, found.shape
    except TypeError as error:
        raise UserError(f"{name}: /{path} is of a type that cannot be read: {_first_line(error)}") from None
    what = f"{name}: /{path} is {kind} {'without values' if actual is None else actual}"
    if kind.kind not in kinds or kind.itemsize > 8 or actual is None:
        raise UserError(f"{what}, expected {_KINDS[kinds]}")
    fits = shape is None or (
        len(actual) == len(shape) and all(w in (None, f) for w, f in zip(shape, actual, strict=True))
    )
    if not fits:
        raise UserError(f"{what}, expected {_KINDS[kinds]} {shown(shape)}")
    return found


_KINDS = {"fiu": "numbers", "f": "floating-point numbers", "iu": "integers", "b": "true or false", "biu": "flags"}


def values(found: h5py.Dataset, name: str) -> np.ndarray:
    """All values of a dataset of the file `name`; raises UserError where one is not finite."""
    read = found[()]
    if not finite(read):
        raise UserError(f"{name}: {found.name} has values that are not finite")
    return read


def finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite, without a mask of the size of the array."""
    flat = array.reshape(-1)
    return all(np.isfinite(flat[first : first + _AT_ONCE]).all() for first in range(0, flat.size, _AT_ONCE))


def text(value: Any) -> str | None:
    """An attribute as text; None where it is none."""
    if isinstance(value, bytes | np.bytes_):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return None
    return str(value) if isinstance(value, str) else None


def whole_number(value: Any) -> int | None:
    """An attribute as an integer; None where it is none."""
    if isinstance(value, np.ndarray) and value.shape in ((), (1,)):
        value = value.reshape(-1)[0]
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_) else None


def number(value: Any) -> float | None:
    """An attribute as a finite float; None where it is none."""
    if isinstance(value, np.ndarray) and value.shape in ((), (1,)):
        value = value.reshape(-1)[0]
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if np.isfinite(found) else None


def _regular(name: str | Path) -> Path:
    try:
        path = Path(name)
        there, regular = path.exists(), path.is_file()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{str(name)[:200]!r}: is no name of a file: {why}") from None
    if not regular:
        raise UserError(f"{'is no file' if there else 'no such file'}: {name}")
    return path


def shown(shape: tuple) -> str:
    """A shape as numpy shows it; None in it stands for any length."""
    words = ["any" if length is None else str(length) for length in shape]
    return f"({words[0]},)" if len(words) == 1 else f"({', '.join(words)})"


def _first_line(error: Exception) -> str:
    words = str(error.args[0] if error.args else "").splitlines()
    return words[0] if words else type(error).__name__
