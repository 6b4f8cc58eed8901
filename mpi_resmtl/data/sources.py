"""Where the data are: what a data folder holds, what is known of it, and downloads from the published addresses."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from mpi_resmtl.data import activity, digits, files, standin
from mpi_resmtl.data.files import DataError
from mpi_resmtl.errors import unknown

NAMES = ("har", "mnist", "synthetic-digits")
TITLES = dict(zip(NAMES, (activity.TITLE, digits.MNIST_TITLE, digits.SYNTHETIC_TITLE), strict=True))
LAYOUTS = dict(zip(NAMES, (activity.NAMES, (digits.MNIST_FOLDER,), digits.SYNTHETIC_NAMES), strict=True))
"""What to look for in a data folder, the first that is there counts."""

HAR_ADDRESS = "https://archive.ics.uci.edu/static/public/240"
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
KAGGLE_ADDRESS = "https://www.kaggle.com/api/v1/datasets/download"
KAGGLE_NAME = "prasunroy/synthetic-digits"
_BY_HAND = {
    "har": "https://archive.ics.uci.edu/dataset/240",
    "mnist": MNIST_MIRRORS[0],
    "synthetic-digits": f"https://www.kaggle.com/datasets/{KAGGLE_NAME}",
}

MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""Of the files as published (torchvision has the same list)."""
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Of what is in them, so that a file that was unpacked, or packed anew, is known too."""

# The checksums of UCI's and Kaggle's own zips are not known here: those are judged by what they hold.
_KNOWN = {
    "5b6c8692c20ada2e3a8c386f56a21bb99e3194a247dfa57d01afccc92a917b99": (
        "real",
        "UCI's windows, subjects and labels; features computed anew, 32 of 561 differ from the published",
    ),
    "271d49e0c558f47ad744a6fab205d8c80f9f33e95df641c59dbdd5a5e9195cfc": (
        "stand-in",
        "made to the published description, not Kaggle's images",
    ),
}

_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0
_TIMEOUT_SECONDS = (10, 60)
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """What a data folder holds of one data set."""

    name: str
    """One of `NAMES`."""
    kind: str
    """One of "real", "stand-in", "absent" (a study then makes a stand-in) or, from `status` only, "damaged"."""
    path: Path | None = None
    bytes: int = 0
    sha256: str = ""
    """Of the zip; of the list of checksums for a folder; for MNIST, of the list of those of the unpacked files; where
    the set is absent, `standin.digest` of what a study then generates."""
    checksum: str = ""
    """"known" or "unknown"."""
    note: str = ""
    """One line more, where there is something to say."""


def default_dir() -> Path:
    """Where data are sought and kept when no folder is named: the user data folder of the platform."""
    import platformdirs

    return platformdirs.user_data_path("mpi-resmtl", appauthor=False)


def target_dir(given: str | os.PathLike | None = None) -> Path:
    """The folder that `status`, `fetch` and `make` work on: `given`, $MPI_RESMTL_DATA or the default one."""
    return Path(given or os.environ.get("MPI_RESMTL_DATA") or default_dir())


def data_dir(given: str | os.PathLike | None = None) -> Path | None:
    """The folder a study reads: `given`, $MPI_RESMTL_DATA, the default one where it exists, or None.

    Raises DataError when a folder that was named cannot be read or holds none of the data sets.
    """
    folder = target_dir(given)
    named = "--data-dir" if given else "$MPI_RESMTL_DATA" if os.environ.get("MPI_RESMTL_DATA") else None
    if named is None:
        return folder if folder.is_dir() else None
    if not any(files.find(folder, LAYOUTS[name]) for name in NAMES):
        expected = "; ".join(f"{TITLES[name]}: {', '.join(LAYOUTS[name])}" for name in NAMES)
        raise DataError(f"{folder} ({named}): none of the data sets is here; expected {expected}")
    return folder


def located(name: str, given: str, wanted: str) -> Path | None:
    """The folder in which a study finds a data set; None where it makes a stand-in.

    `given` names the folder as for `data_dir` (empty: not named); with `wanted` "stand-in" none is looked for. Looks at
    names alone, so it costs nothing. Raises DataError as `data_dir`.
    """
    folder = None if wanted == "stand-in" else data_dir(given or None)
    return folder if folder is not None and files.find(folder, LAYOUTS[name]) is not None else None


def find(name: str, folder: Path | None) -> Source:
    """What `folder` holds of a data set, with checksums (some 0.1 s). No folder: absent, at no cost.

    Raises DataError when the folder or the data set cannot be read.
    """
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    path = files.find(Path(folder), LAYOUTS[name]) if folder is not None else None
    if path is None:
        return _absent(name)
    size, marked, sha256, known = _INSPECT[name](path)
    kind, note = "stand-in" if marked else "real", ""
    if sha256 in _KNOWN:
        known, (kind, note) = True, _KNOWN[sha256]
    return Source(name, kind, path, size, sha256, "known" if known else "unknown", note)


def status(folder: Path) -> list[Source]:
    """What `folder` holds of each data set; a folder that is not there holds nothing.

    Sets of unknown checksum are looked into more closely than by `find`. Raises DataError when the folder cannot be
    read; a data set that cannot be read has the kind "damaged".
    """
    return [_status(name, Path(folder) if Path(folder).exists() else None) for name in NAMES]


def fetch(name: str, folder: Path, base_url: str | None = None) -> list[Path]:
    """Download a data set into `folder` from its published address, or from below `base_url`; the files.

    What is there already and is right is not fetched again. A file takes its name only when it is whole and its
    checksum, or what it holds where none is known, is right. After a lost connection (five attempts) what came is
    kept beside it as `.part`, and the next call goes on from there; after any other failure nothing is left.

    Raises DataError when that fails, when something else is in the way, or for want of a Kaggle token.
    """
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = files.find(folder, LAYOUTS[name])
        if there and _is_marked(name, there):
            raise DataError(f"{there}: a stand-in is in the way; remove it to fetch the real data")
        if name == "mnist":
            return _fetch_mnist(folder / digits.MNIST_FOLDER, base_url)
        if there:
            return [there]
        return [_fetch_har(folder, base_url) if name == "har" else _fetch_synthetic(folder, base_url)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None


def kaggle_token() -> dict[str, str] | None:
    """HTTP headers of the user's Kaggle token, or None.

    From $KAGGLE_API_TOKEN, from $KAGGLE_USERNAME and $KAGGLE_KEY, or from kaggle.json in $KAGGLE_CONFIG_DIR or
    ~/.kaggle. Raises DataError when that file is no token.
    """
    if token := os.environ.get("KAGGLE_API_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    path = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle") / "kaggle.json"
    if not (user and key) and path.is_file():
        try:
            token = json.loads(path.read_text())
            user, key = token["username"], token["key"]
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f'{path}: expected Kaggle\'s file {{"username": ..., "key": ...}}') from None
    if not (user and key):
        return None
    from requests.auth import _basic_auth_str

    return {"Authorization": _basic_auth_str(user, key)}


def _absent(name: str) -> Source:
    return Source(name, "absent", sha256=standin.digest(name), note=standin.identity(name))


def _inspect_har(path: Path) -> tuple[int, bool, str, bool]:
    return _size(path), activity.is_marked(path), activity.checksum(path), False


def _inspect_mnist(path: Path) -> tuple[int, bool, str, bool]:
    sums = digits.mnist_checksums(path)
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
    marked = (path / files.MARKER).exists()
    return _size(path), marked, hashlib.sha256(lines.encode()).hexdigest(), sums == MNIST_SHA256


def _inspect_synthetic(path: Path) -> tuple[int, bool, str, bool]:
    return _size(path), digits.is_marked(path), digits.synthetic_checksum(path), False


_INSPECT = {"har": _inspect_har, "mnist": _inspect_mnist, "synthetic-digits": _inspect_synthetic}
"""Path -> bytes, whether a stand-in by its marker, SHA-256, whether that is a published one."""


def _status(name: str, folder: Path | None) -> Source:
    path = files.find(folder, LAYOUTS[name]) if folder else None
    if folder is None or path is None:
        return _absent(name)
    try:
        source = find(name, folder)
        if source.checksum == "known" or source.kind == "stand-in":
            return source
        if name == "har":
            activity.check_published(path)
            note = "rows and subjects as published"
        elif name == "mnist":
            sizes = (digits.mnist_size(folder, split) for split in ("train", "test"))
            note = "not the published files: {} + {} images".format(*sizes)
        else:
            note = "{} + {} images".format(*(digits.synthetic_size(folder, s) for s in ("train", "test")))
        return replace(source, note=note)
    except DataError as error:
        return Source(name, "damaged", path, note=str(error))


def _is_marked(name: str, path: Path) -> bool:
    if path.is_dir():
        return (path / files.MARKER).exists()
    return activity.is_marked(path) if name == "har" else digits.is_marked(path)


def _size(path: Path) -> int:
    if not path.is_dir():
        return files.plain(path)
    return sum(files.folder_sizes(path).values())


def _fetch_har(folder: Path, base_url: str | None) -> Path:
    final = folder / activity.NAMES[-1]
    _download(f"{base_url or HAR_ADDRESS}/{final.name}", final, "har", check=activity.check_published)
    return final


def _fetch_mnist(folder: Path, base_url: str | None) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return [_fetch_mnist_file(folder, name, base_url) for name in digits.MNIST_FILES]
    finally:
        # An empty MNIST/raw would pass for a damaged one.
        for made in (folder, folder.parent):
            with suppress(OSError):
                made.rmdir()


def _fetch_mnist_file(folder: Path, name: str, base_url: str | None) -> Path:
    if there := files.find(folder, (name, f"{name}.gz")):
        if digits.mnist_file_checksum(there) != MNIST_SHA256[name]:
            raise DataError(f"{there}: is there already and not the published file; remove it to fetch that")
        return there
    final = folder / f"{name}.gz"
    mirrors = (base_url,) if base_url else MNIST_MIRRORS
    for mirror in mirrors:
        try:
            _download(f"{mirror}/{final.name}", final, "mnist", known_hash=f"md5:{MNIST_MD5[final.name]}")
            break
        except DataError:
            if mirror == mirrors[-1]:
                raise
    return final


def _fetch_synthetic(folder: Path, base_url: str | None) -> Path:
    token = kaggle_token()
    if token is None:
        raise DataError(
            "fetching Synthetic Digits needs a Kaggle token: make one at https://www.kaggle.com/settings and keep it"
            " as ~/.kaggle/kaggle.json or in $KAGGLE_API_TOKEN; or download"
            f" {_BY_HAND['synthetic-digits']} by hand and put it into {folder} as synthetic_digits.zip"
        )
    final = folder / "synthetic_digits.zip"
    url = f"{base_url or KAGGLE_ADDRESS}/{KAGGLE_NAME}"
    _download(url, final, "synthetic-digits", check=digits.check_published, headers=token)
    return final


def _download(
    url: str,
    final: Path,
    name: str,
    known_hash: str | None = None,
    check: Callable[[Path], None] | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    """Have pooch put the file in its place, with `_receive` to bring it and `check` to judge what has no checksum."""
    import pooch

    part = final.with_name(f"{final.name}.part")

    def downloader(url: str, output: str, _: object) -> None:
        with _locked(part) as file:
            try:
                _receive(url, file, headers or {}, f"{_BY_HAND[name]} by hand, into {final.parent}")
                if check is not None:
                    check(part)
            except (_ConnectionLost, KeyboardInterrupt):
                if not file.tell():
                    part.unlink()
                raise
            except BaseException:
                part.unlink()
                raise
            os.replace(part, output)

    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, known_hash, fname=final.name, path=final.parent, downloader=downloader)
    except DataError:
        raise
    except ValueError:
        raise DataError(f"{url}: wrong checksum, expected {known_hash}; what came was removed") from None


class _ConnectionLost(DataError):
    """What came so far is good, the rest may come later."""


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, open to append and to this process alone."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{part}: another process is downloading this file") from None
        yield file
        file.flush()


def _receive(url: str, file: BinaryIO, headers: dict[str, str], by_hand: str) -> None:
    """Append to `file` what it lacks of the file at `url`."""
    import requests
    from urllib3.exceptions import HTTPError

    for attempt in range(_ATTEMPTS):
        try:
            if _attempt(url, file, headers):
                file.flush()
                return
            reason = "the server and what was kept do not fit together"
        except (requests.RequestException, HTTPError) as error:
            # Of what requests wraps around the cause, only the cause: the address is said anyhow.
            cause = getattr(error.args[0], "reason", error) if error.args else error
            reason = str(cause).rpartition("): ")[2]
        if attempt < _ATTEMPTS - 1:
            time.sleep(_PAUSE_SECONDS)
    if file.tell():
        kept = f"its first {file.tell()} bytes are kept, the same command goes on from there"
        raise _ConnectionLost(f"{url}: connection lost ({reason}); {kept}")
    raise _ConnectionLost(f"{url}: no connection ({reason}); or get {by_hand}")


def _attempt(url: str, file: BinaryIO, headers: dict[str, str]) -> bool:
    """One request for the rest of the file; False when it has to start again. Raises what `requests` does."""
    import requests
    from tqdm import tqdm

    start = file.tell()
    # Without compression on the way: the published .gz must arrive as it is, and its bytes be countable.
    headers = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as answer:
        if answer.status_code == 416:
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if whole == str(start):
                return True
            _empty(file)
            return False
        if answer.status_code in (401, 403) and "Authorization" in headers:
            raise DataError(f"{url}: Kaggle refused the token (HTTP {answer.status_code})")
        if 400 <= answer.status_code < 500:
            raise DataError(f"{url}: expected the published file, the server says HTTP {answer.status_code}")
        answer.raise_for_status()
        resumed = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if answer.status_code == 206 and not resumed:
            _empty(file)
            return False
        if answer.status_code != 206:
            _empty(file)
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        title = url.rpartition("/")[2]
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=title, disable=None) as bar:
            for chunk in answer.raw.stream(_CHUNK, decode_content=False):
                if file.tell() + len(chunk) > files.LARGEST:
                    raise DataError(f"{url}: more than {files.LARGEST} bytes came, expected the published file")
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and file.tell() < total:
            raise requests.ConnectionError(f"{file.tell()} of {total} bytes came")
    return True


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()
