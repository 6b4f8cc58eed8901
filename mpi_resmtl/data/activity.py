"""Reader of the UCI data set Human Activity Recognition Using Smartphones (Anguita et al. 2012)."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from mpi_resmtl.data import cache, files
from mpi_resmtl.data.files import DataError, Tree

TITLE = "UCI HAR data set"
FOLDER = "UCI HAR Dataset"
NAMES = (FOLDER, f"{FOLDER}.zip", "human+activity+recognition+using+smartphones.zip")
"""What to look for in a data folder: the folder, its zip, and the zip as published, which holds that zip."""

FEATURES = 561
CLASSES = 6
PUBLISHED_ROWS = {"train": 7352, "test": 2947}
PUBLISHED_SUBJECTS = 30

_LARGEST_FILE = 128 << 20
_LARGEST_COLUMN = 4 << 20
"""Bytes of a file with one number a line."""
_LONGEST_LINE = 1 << 16
_MOST_SUBJECTS = 10_000
_USED = tuple(f"{split}/{kind}_{split}.txt" for split in ("train", "test") for kind in ("X", "y", "subject"))


def read_subjects(data_dir: Path, subjects: Iterable[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Rows of some subjects, who are numbered from 1 as published.

    subject -> x float32 (rows, 561), y int64 (rows,) in 0..5 (the published label less one): its rows of the published
    training file, then those of the test file, in the order of the files. The first call parses the whole set and
    keeps it in the cache; later calls read only the subjects asked for.

    Raises DataError when the files are absent, damaged, do not fit together, hold a value that is no finite number or
    a label out of range, or when a subject has no rows.
    """
    path = files.require(Path(data_dir), NAMES, TITLE)
    wanted = [int(subject) for subject in subjects]

    def pick(get: cache.Get) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        known = get("subjects")
        for subject in wanted:
            if subject not in known:
                raise DataError(f"{path}: subject {subject} has no rows; those that have any: {_spans(known)}")
        return {subject: _rows(get(f"x{subject}"), get(f"y{subject}")) for subject in wanted}

    return cache.through(f"activity-1-{checksum(path)}", lambda: _by_subject(path), pick)


def checksum(path: Path) -> str:
    """SHA-256 of the zip, or of the list of the checksums of the six files that are read from the folder."""
    return files.digest(path, _USED)


def check_published(path: Path) -> None:
    """Raises DataError unless the file at `path` is whole and has the rows and subjects of the published set."""
    with _open(path) as tree:
        subjects = []
        for split, rows in PUBLISHED_ROWS.items():
            labels = len(_integers(tree, f"{split}/y_{split}.txt", 1, CLASSES))
            if labels != rows:
                raise DataError(f"{path}: {split}/y_{split}.txt has {labels} rows, {rows} are published")
            subjects.append(_integers(tree, f"{split}/subject_{split}.txt", 1, PUBLISHED_SUBJECTS))
            lines = tree.read(f"{split}/X_{split}.txt", _LARGEST_FILE).count(b"\n")
            if lines != rows:
                raise DataError(f"{path}: {split}/X_{split}.txt has {lines} rows, {rows} are published")
        count = len(np.unique(np.concatenate(subjects)))
        if count != PUBLISHED_SUBJECTS:
            raise DataError(f"{path}: {count} subjects have rows, {PUBLISHED_SUBJECTS} are published")


def is_marked(path: Path) -> bool:
    """Whether the set says of itself that it is a stand-in."""
    with _open(path) as tree:
        return files.MARKER in tree.sizes


def _rows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A subject's rows as they are; raises ValueError where a cache gives something else."""
    if x.dtype != np.float32 or x.shape != (len(x), FEATURES) or y.dtype != np.int64 or y.shape != (len(x),):
        raise ValueError(f"x is {x.dtype} {x.shape}, y is {y.dtype} {y.shape}")
    if not len(x) or not np.isfinite(x).all() or y.min() < 0 or y.max() >= CLASSES:
        raise ValueError("values out of range")
    return x, y


def _open(path: Path) -> AbstractContextManager[Tree]:
    return files.open_tree(path, FOLDER, inner=f"{FOLDER}.zip")


def _by_subject(path: Path) -> dict[str, np.ndarray]:
    """The whole set as it is cached: x1, y1, x2, ... and the subjects that have rows."""
    with _open(path) as tree:
        parts = [_split(tree, split) for split in ("train", "test")]
    x, y, subject = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    arrays = {"subjects": np.unique(subject)}
    order = np.argsort(subject, kind="stable")
    bounds = np.searchsorted(subject, arrays["subjects"][1:], sorter=order)
    for number, rows in zip(arrays["subjects"], np.split(order, bounds), strict=True):
        arrays[f"x{number}"], arrays[f"y{number}"] = x[rows], y[rows]
    return arrays


def _split(tree: Tree, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x float32 (rows, 561), y int64 (rows,) in 0..5, subject int64 (rows,)."""
    x = _numbers(tree, f"{split}/X_{split}.txt")
    y = _integers(tree, f"{split}/y_{split}.txt", 1, CLASSES)
    subject = _integers(tree, f"{split}/subject_{split}.txt", 1, _MOST_SUBJECTS)
    if not len(x) == len(y) == len(subject):
        rows = f"{len(x)} rows of X, {len(y)} of y and {len(subject)} of subject"
        raise DataError(f"{tree.path}: {split}/ has {rows}; expected as many of each")
    return x, y - 1, subject


def _numbers(tree: Tree, name: str) -> np.ndarray:
    x = _parse(tree, name, np.float32, _LARGEST_FILE)
    if x.shape[1] != FEATURES:
        raise DataError(f"{tree.path}: {name} has {x.shape[1]} columns, expected {FEATURES}")
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        place = f"{name}, row {row + 1}, column {column + 1}"
        raise DataError(f"{tree.path}: {place} is {x[row, column]}, expected a finite number")
    return x


def _integers(tree: Tree, name: str, low: int, high: int) -> np.ndarray:
    values = _parse(tree, name, np.int64, _LARGEST_COLUMN)
    if values.shape[1] != 1:
        raise DataError(f"{tree.path}: {name} has {values.shape[1]} columns, expected 1")
    wrong = np.flatnonzero((values < low) | (values > high))
    if len(wrong):
        found = values[wrong[0], 0]
        raise DataError(f"{tree.path}: {name}, row {wrong[0] + 1} is {found}, expected {low} to {high}")
    return values[:, 0]


def _parse(tree: Tree, name: str, dtype: type, largest: int) -> np.ndarray:
    """Numbers of a text file, `dtype` (rows, columns)."""
    text = tree.read(name, largest)
    if not text.strip():
        raise DataError(f"{tree.path}: {name} is empty")
    # numpy splits a whole line before it counts its columns.
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    longest = int(np.diff(ends, prepend=-1, append=len(text)).max()) - 1
    if longest > _LONGEST_LINE:
        raise DataError(f"{tree.path}: {name} has a line of {longest} bytes, expected {_LONGEST_LINE} at most")
    try:
        # A number that is too large for the type becomes inf, which is refused where it matters.
        with np.errstate(over="ignore"):
            return np.loadtxt(io.BytesIO(text), dtype=dtype, comments=None, ndmin=2, encoding="latin1")
    except (ValueError, OverflowError) as error:
        raise DataError(f"{tree.path}: {name}: {error}") from None


def _spans(numbers: np.ndarray) -> str:
    """1, 2, 3, 5 -> '1-3, 5'."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
