"""Published folders, or the same folders inside a zip, read in place: nothing is ever unpacked to disk."""

from __future__ import annotations

import hashlib
import io
import os
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

LARGEST_ZIP_IN_A_ZIP = 512 << 20


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


@contextmanager
def open_tree(path: Path, folder: str, inner: str | None = None) -> Iterator[Tree]:
    """Open the published `folder`, which is `path` itself or lies in the zip `path`.

    In a zip the folder may stand at any depth, or be its root, or be in the zip `inner` that the zip holds.
    Raises DataError when the zip is damaged or holds no such folder.
    """
    if path.is_dir():
        yield Tree(path, _folder_sizes(str(path)), lambda name: (path / name).open("rb"))
        return
    with clear(path):
        archive = zipfile.ZipFile(path)
    with archive:
        with clear(path):
            archive = _inner(archive, path, inner)
        members = _relative(archive.infolist(), folder)
        if not members:
            raise DataError(f"{path}: the zip holds no folder {folder}/")
        sizes = {name: info.file_size for name, info in members.items()}
        yield Tree(path, sizes, lambda name: archive.open(members[name]))


def digest(path: Path, names: tuple[str, ...] = ()) -> str:
    """SHA-256 in hex of a file, or of the list that `sha256sum NAMES` would print in a folder; raises DataError."""
    if path.is_dir():
        lines = "".join(f"{_file_digest(f'{path}/{name}')}  {name}\n" for name in sorted(names))
        return hashlib.sha256(lines.encode()).hexdigest()
    return _file_digest(str(path))


def _file_digest(path: str) -> str:
    with clear(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_sizes(path: str, below: str = "") -> dict[str, int]:
    """Bytes of every file in a folder, by its name in it, down through its folders."""
    sizes: dict[str, int] = {}
    with clear(path), os.scandir(path) as scanned:
        for entry in scanned:
            if entry.is_dir():
                sizes |= _folder_sizes(entry.path, f"{below}{entry.name}/")
            elif entry.is_file():
                sizes[f"{below}{entry.name}"] = entry.stat().st_size
    return sizes


def _inner(archive: zipfile.ZipFile, path: Path, inner: str | None) -> zipfile.ZipFile:
    if inner is None or inner not in archive.namelist():
        return archive
    size = archive.getinfo(inner).file_size
    if size > LARGEST_ZIP_IN_A_ZIP:
        raise DataError(f"{path}: {inner} has {size} bytes, more than the {LARGEST_ZIP_IN_A_ZIP} expected")
    return zipfile.ZipFile(io.BytesIO(archive.read(inner)))


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
