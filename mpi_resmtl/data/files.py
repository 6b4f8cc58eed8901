"""Published folders, or the same folders inside a zip, read in place: nothing is ever unpacked to disk."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mpi_resmtl.errors import UserError

MARKER = "STAND-IN.txt"
"""Lies in the folder of every data set that the suite made itself."""

LARGEST = 1 << 30
"""Bytes of any file of a data set."""
LARGEST_ZIP_IN_A_ZIP = 128 << 20
MOST_FILES = 200_000
"""Files in a folder or a zip; the largest published set has 12,000."""
DEEPEST = 8
"""Folders within one another."""
_LARGEST_DIRECTORY = 32 << 20
"""Bytes of the list of what a zip holds."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class DataError(UserError):
    """Data that cannot be used: one line that names the file and what was expected of it."""


@dataclass(frozen=True)
class Tree:
    """The files of a published folder, wherever it is; names are relative to it, with slashes."""

    path: Path
    """The folder, or the zip that holds it."""
    sizes: dict[str, int]
    """Bytes of each file."""
    _open: Callable[[str], IO[bytes]]

    def read(self, name: str, largest: int) -> bytes:
        """The file's bytes; raises DataError when it is absent, over `largest` bytes, damaged or not readable."""
        if name not in self.sizes:
            raise DataError(f"{self.path}: {name} is missing")
        if self.sizes[name] > largest:
            raise DataError(f"{self.path}: {name} has {self.sizes[name]} bytes, more than the {largest} expected")
        with clear(self.path, name), self._open(name) as file:
            return file.read(largest)


def find(data_dir: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is in `data_dir`; raises DataError when the folder itself cannot be read."""
    present = set(entries(data_dir))
    for name in names:
        first, _, rest = name.partition("/")
        if first in present and (not rest or (data_dir / name).exists()):
            return data_dir / name
    return None


def require(data_dir: Path, names: tuple[str, ...], title: str) -> Path:
    """As `find`; raises DataError, with the names, when there is none."""
    path = find(data_dir, names)
    if path is None:
        raise DataError(f"{data_dir}: no {title} here; expected one of: {', '.join(names)}")
    return path


def entries(folder: Path) -> list[str]:
    """Names in a folder, sorted; raises DataError when it does not exist, is no folder or cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: expected a folder") from None
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{folder}: is no name of a folder ({error})") from None


def plain(path: Path | str) -> int:
    """Bytes of a file; raises DataError unless it can be read soon: no pipe, not over `LARGEST`."""
    with clear(path):
        found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: expected a file")
    if found.st_size > LARGEST:
        raise DataError(f"{path}: has {found.st_size} bytes, more than the {LARGEST} expected")
    return found.st_size


@contextmanager
def open_tree(path: Path, folder: str, inner: str | None = None) -> Iterator[Tree]:
    """Open the published `folder`, which is `path` itself or lies in the zip `path`.

    In a zip the folder may stand at any depth, or be its root, or be in the zip `inner` that the zip holds.
    Raises DataError when the zip is damaged or holds no such folder.
    """
    if path.is_dir():
        yield Tree(path, folder_sizes(path), lambda name: (path / name).open("rb"))
        return
    plain(path)
    with clear(path):
        file = open(path, "rb")  # noqa: SIM115
    with file:
        with clear(path):
            archive = _inner(_zip(file, path), path, inner)
        members = _relative(archive.infolist(), folder)
        if not members:
            raise DataError(f"{path}: the zip holds no folder {folder}/")
        for name, info in members.items():
            _check_member(info, f"{path}: {name}")
        sizes = {name: info.file_size for name, info in members.items()}
        yield Tree(path, sizes, lambda name: archive.open(members[name]))


def digest(path: Path, names: tuple[str, ...] = ()) -> str:
    """SHA-256 in hex of a file, or of the list that `sha256sum NAMES` would print in a folder; raises DataError."""
    if path.is_dir():
        lines = "".join(f"{_file_digest(f'{path}/{name}')}  {name}\n" for name in sorted(names))
        return hashlib.sha256(lines.encode()).hexdigest()
    return _file_digest(str(path))


def _file_digest(path: str) -> str:
    plain(path)
    with clear(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sizes(path: Path | str) -> dict[str, int]:
    """Bytes of every plain file in a folder, by its name in it, down through its folders; raises DataError."""
    sizes: dict[str, int] = {}
    waiting = [("", 0)]
    while waiting:
        below, depth = waiting.pop()
        with clear(path, below), os.scandir(f"{path}/{below}") as scanned:
            for entry in scanned:
                if entry.is_dir():
                    # Links may lead round in a circle.
                    if depth == DEEPEST:
                        raise DataError(f"{path}: {below}{entry.name} lies more than {DEEPEST} folders deep")
                    waiting.append((f"{below}{entry.name}/", depth + 1))
                elif entry.is_file():
                    sizes[f"{below}{entry.name}"] = entry.stat().st_size
                if len(sizes) + len(waiting) > MOST_FILES:
                    raise DataError(f"{path}: holds more than {MOST_FILES} files")
    return sizes


class _Bounded:
    """A file of which no more than `largest` bytes are read at a time, unless that is None."""

    def __init__(self, file: IO[bytes], path: Path):
        self._file, self._path = file, path
        self.largest: int | None = _LARGEST_DIRECTORY
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if self.largest is not None and size > self.largest:
            raise DataError(f"{self._path}: needs {size} bytes to list what it holds, more than {self.largest}")
        return self._file.read(size)


def _zip(file: IO[bytes], path: Path) -> zipfile.ZipFile:
    """The zip in an open file. The list of what it holds is read at once, and is as long as the zip says."""
    bounded = _Bounded(file, path)
    archive = zipfile.ZipFile(bounded)  # type: ignore[arg-type]
    if len(archive.infolist()) > MOST_FILES:
        raise DataError(f"{path}: holds more than {MOST_FILES} files")
    bounded.largest = None
    return archive


def _check_member(info: zipfile.ZipInfo, place: str) -> None:
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{place}: is a link, expected a file")
    if info.compress_type not in _METHODS:
        raise DataError(f"{place}: packed by method {info.compress_type}, expected a plain zip")


def _inner(archive: zipfile.ZipFile, path: Path, inner: str | None) -> zipfile.ZipFile:
    if inner is None or inner not in archive.namelist():
        return archive
    size = archive.getinfo(inner).file_size
    if size > LARGEST_ZIP_IN_A_ZIP:
        raise DataError(f"{path}: {inner} has {size} bytes, more than the {LARGEST_ZIP_IN_A_ZIP} expected")
    _check_member(archive.getinfo(inner), f"{path}: {inner}")
    return _zip(io.BytesIO(archive.read(inner)), path)


def _relative(infos: list[zipfile.ZipInfo], folder: str) -> dict[str, zipfile.ZipInfo]:
    """Members below the first `folder` of their path, by their name in it; what macOS adds to a zip is left out."""
    members = {}
    for info in infos:
        above, found, name = f"/{info.filename}".rpartition(f"/{folder}/")
        if found and name and not info.is_dir() and "__MACOSX" not in above:
            members[name] = info
    return members


@contextmanager
def clear(path: Path | str, name: str = "") -> Iterator[None]:
    """Turn what a damaged file makes the libraries raise into a DataError."""
    place = f"{path}: {name}" if name else f"{path}"
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{place}: no such file") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{place}: damaged or cut short, expected a whole zip ({error})") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{place}: damaged or cut short ({error or 'ends too early'})") from None
    except (NotImplementedError, RuntimeError) as error:
        raise DataError(f"{place}: expected a plain zip ({error})") from None
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror or error})") from None
    except (ValueError, struct.error, OverflowError) as error:
        # What zipfile makes of offsets and lengths that lead nowhere.
        raise DataError(f"{place}: damaged ({error})") from None
