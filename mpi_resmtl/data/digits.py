"""Readers of MNIST (idx files) and of Synthetic Digits (folders of JPEGs), both as 28x28 gray images."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mpi_resmtl.data import cache, files
from mpi_resmtl.data.files import DataError, Tree

MNIST_TITLE = "MNIST"
MNIST_FOLDER = "MNIST/raw"
MNIST_STEMS = {"train": "train", "test": "t10k"}
MNIST_FILES = tuple(f"{stem}-{kind}-ubyte" for stem in MNIST_STEMS.values() for kind in ("images-idx3", "labels-idx1"))

SYNTHETIC_TITLE = "Synthetic Digits"
SYNTHETIC_FOLDER = "synthetic_digits"
SYNTHETIC_NAMES = (SYNTHETIC_FOLDER, "synthetic_digits.zip", "synthetic-digits.zip")
"""The folder, its zip, and the zip under the name that Kaggle gives it."""
SYNTHETIC_SPLITS = {"train": "imgs_train", "test": "imgs_valid"}

CLASSES = 10
SIDE = 28

_LARGEST_JPEG = 4 << 20
_LARGEST_PICTURE = 2048 * 2048
_LARGEST_SET = 10**9
"""Pixels of all pictures together; the largest known set has 51 million."""
_MOST_SCANS = 100
"""Passes over a progressive JPEG; each costs as much as the whole picture."""
_MOST_ITEMS = 10**6
"""Images or labels in an idx file."""
_BLOCK = 4096
_JPEG = re.compile(r"(imgs_train|imgs_valid)/([0-9])/[^/.][^/]*\.jpe?g", re.IGNORECASE)


def mnist_size(data_dir: Path, split: str) -> int:
    """Number of MNIST images in `split`, "train" or "test". Raises DataError as `read_mnist`."""
    with _idx(_mnist_file(data_dir, split, "labels-idx1")) as (_, shape):
        return _same_size(data_dir, split, shape[0])


def read_mnist(data_dir: Path, split: str, indices: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Images of MNIST by their number in the file of `split`, "train" or "test".

    indices int (m,), any order -> x float32 (m, 28, 28) in [0, 1], y int64 (m,) in 0..9, in that order. The files are
    read to their end, in blocks; nothing but the images asked for is kept.

    Raises DataError when a file is absent, damaged or no idx file, holds a label out of range or too few images.
    """
    indices = np.asarray(indices, dtype=np.int64)
    pictures, labels = (_mnist_file(data_dir, split, kind) for kind in ("images-idx3", "labels-idx1"))
    x = _read_idx(pictures, (SIDE, SIDE), indices)
    y = _read_idx(labels, (), indices)
    mnist_size(data_dir, split)
    return x.astype(np.float32) / np.float32(255), y.astype(np.int64)


def synthetic_size(data_dir: Path, split: str) -> int:
    """Number of Synthetic Digits in `split`, "train" or "test" (published as imgs_valid). Raises DataError."""
    path = files.require(Path(data_dir), SYNTHETIC_NAMES, SYNTHETIC_TITLE)
    with _open_synthetic(path) as tree:
        return sum(len(names) for names in _listing(tree)[split])


def read_synthetic(data_dir: Path, split: str, indices: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic Digits by their number in `split`, "train" or "test" (published as imgs_valid).

    Images are numbered from 0 by class, then by file name. indices int (m,), any order -> x float32 (m, 28, 28) in
    [-1, 1], y int64 (m,) in 0..9, in that order. The first call decodes the whole set (`decode`) and keeps it in the
    cache; later calls keep nothing but the images asked for.

    Raises DataError when a folder or file is absent, a zip damaged, a file no JPEG, or when there are too few images.
    """
    indices = np.asarray(indices, dtype=np.int64)
    path = files.require(Path(data_dir), SYNTHETIC_NAMES, SYNTHETIC_TITLE)

    def pick(get: cache.Get) -> tuple[np.ndarray, np.ndarray]:
        counts = get(f"{split}-counts")
        if counts.shape != (CLASSES,) or counts.dtype.kind not in "iu" or counts.min() < 1:
            raise ValueError(f"counts are {counts}")
        ends = np.cumsum(counts)
        _check_indices(path, f"{SYNTHETIC_SPLITS[split]}/", ends[-1], indices)
        y = np.searchsorted(ends, indices, side="right")
        x = np.empty((len(indices), SIDE, SIDE), np.uint8)
        for digit in np.unique(y):
            own = y == digit
            pictures = get(f"{split}-{digit}")
            if pictures.dtype != np.uint8 or pictures.shape != (counts[digit], SIDE, SIDE):
                raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}")
            x[own] = pictures[indices[own] - (ends[digit] - len(pictures))]
        return x.astype(np.float32) / np.float32(127.5) - np.float32(1), y

    return cache.through(f"digits-1-{synthetic_checksum(path)}", lambda: _decode_all(path), pick)


def decode(jpeg: bytes) -> np.ndarray:
    """A JPEG as gray, uint8 (28, 28): ITU-R 601 luma at full size, then resized (both directions apart, so that the
    picture fills the square) by Pillow's bilinear filter, which averages when it shrinks.

    Raises DataError (without a file name) when it is no JPEG, is cut short or has more than 2048 x 2048 pixels.
    """
    return _decoded(jpeg, _LARGEST_SET)[0]


def _decoded(jpeg: bytes, most: int) -> tuple[np.ndarray, int]:
    """As `decode`, and how many pixels it took, `most` at most."""
    from PIL import Image

    scans = jpeg.count(b"\xff\xda")
    if scans > _MOST_SCANS:
        raise DataError(f"a JPEG of {scans} scans, expected {_MOST_SCANS} at most")
    try:
        with warnings.catch_warnings():
            # Of what is odd about a picture: it is decoded, or it is not.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
                pixels = picture.width * picture.height
                if pixels > _LARGEST_PICTURE:
                    raise DataError(f"{picture.width} x {picture.height} pixels, expected 2048 x 2048 at most")
                if pixels > most:
                    raise DataError(f"more than {_LARGEST_SET} pixels in all pictures together")
                gray = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                return np.asarray(gray), pixels
    except Image.DecompressionBombError:
        raise DataError("far too many pixels, expected 2048 x 2048 at most") from None
    except Image.UnidentifiedImageError:
        raise DataError("no JPEG image") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"damaged JPEG image ({error})") from None


def mnist_checksums(path: Path) -> dict[str, str]:
    """SHA-256 of each of the four files of MNIST/raw as unpacked, by its name without .gz; raises DataError."""
    return {name: mnist_file_checksum(_either(path, name)) for name in MNIST_FILES}


def mnist_file_checksum(path: Path) -> str:
    """SHA-256 of an idx file as unpacked; raises DataError."""
    digest, left = hashlib.sha256(), 16 + _MOST_ITEMS * SIDE * SIDE
    with _open_idx(path) as stream:
        while block := stream.read(_BLOCK * SIDE * SIDE):
            left -= len(block)
            if left < 0:
                raise DataError(f"{path}: unpacks to more than {_MOST_ITEMS} images")
            digest.update(block)
    return digest.hexdigest()


def synthetic_checksum(path: Path) -> str:
    """SHA-256 of the zip, or of the list of the checksums of all images in the folder."""
    if not path.is_dir():
        return files.digest(path)
    with _open_synthetic(path) as tree:
        return files.digest(path, tuple(name for name in tree.sizes if _JPEG.fullmatch(name)))


def check_published(path: Path) -> None:
    """Raises DataError unless the zip at `path` has images in all twenty folders, each of which can be decoded."""
    _decode_all(path)


def is_marked(path: Path) -> bool:
    """Whether Synthetic Digits at `path` say of themselves that they are a stand-in."""
    with _open_synthetic(path) as tree:
        return files.MARKER in tree.sizes


def _mnist_file(data_dir: Path, split: str, kind: str) -> Path:
    folder = files.require(Path(data_dir), (MNIST_FOLDER,), MNIST_TITLE)
    return _either(folder, f"{MNIST_STEMS[split]}-{kind}-ubyte")


def _either(folder: Path, name: str) -> Path:
    return files.require(folder, (name, f"{name}.gz"), "MNIST file")


@contextmanager
def _open_idx(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    opener = gzip.open if path.suffix == ".gz" else open
    files.plain(path)
    with files.clear(path), opener(path, "rb") as stream:
        yield stream


@contextmanager
def _idx(path: Path) -> Iterator[tuple[gzip.GzipFile | BufferedReader, tuple[int, ...]]]:
    """An idx file of unsigned bytes, open behind its header, and the shape that the header states."""
    dimensions = 3 if "idx3" in path.name else 1
    with _open_idx(path) as stream:
        header = stream.read(4 + 4 * dimensions)
        if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
            raise DataError(f"{path}: expected an idx file of unsigned bytes in {dimensions} dimensions")
        shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
        if shape[0] > _MOST_ITEMS:
            raise DataError(f"{path}: states {shape[0]} items, expected {_MOST_ITEMS} at most")
        yield stream, shape


def _read_idx(path: Path, item: tuple[int, ...], indices: np.ndarray) -> np.ndarray:
    """Items by number, uint8 (m, *item)."""
    order = np.argsort(indices, kind="stable")
    ascending = indices[order]
    values = np.empty((len(indices), *item), np.uint8)
    size = int(np.prod(item))
    with _idx(path) as (stream, shape):
        if shape[1:] != item:
            raise DataError(f"{path}: items of shape {shape[1:]}, expected {item}")
        _check_indices(path, "", shape[0], indices)
        for start in range(0, shape[0], _BLOCK):
            count = min(_BLOCK, shape[0] - start)
            block = np.frombuffer(stream.read(count * size), np.uint8)
            if len(block) < count * size:
                raise DataError(f"{path}: cut short, expected {shape[0]} items of {size} bytes")
            if not item and block.max() >= CLASSES:
                row = int(np.argmax(block >= CLASSES))
                raise DataError(f"{path}: label {start + row} is {block[row]}, expected 0 to {CLASSES - 1}")
            low, high = np.searchsorted(ascending, (start, start + count))
            values[order[low:high]] = block.reshape(count, *item)[ascending[low:high] - start]
        if stream.read(1):
            raise DataError(f"{path}: longer than the {shape[0]} items that its header states")
    return values


def _same_size(data_dir: Path, split: str, labels: int) -> int:
    """The number of labels; raises DataError unless there are as many images."""
    with _idx(path := _mnist_file(data_dir, split, "images-idx3")) as (_, shape):
        if shape[0] != labels:
            raise DataError(f"{path}: holds {shape[0]} images, but there are {labels} labels")
    return labels


def _check_indices(path: Path, what: str, size: int, indices: np.ndarray) -> None:
    if len(indices) and (indices.min() < 0 or indices.max() >= size):
        needed = f"number {indices.min()}" if indices.min() < 0 else f"at least {indices.max() + 1}"
        raise DataError(f"{path}: {what and what + ' '}holds {size} images, expected {needed}")


def _open_synthetic(path: Path) -> AbstractContextManager[Tree]:
    return files.open_tree(path, SYNTHETIC_FOLDER)


def _listing(tree: Tree) -> dict[str, list[list[str]]]:
    """Names of the images by split and class, sorted; raises DataError for a class without any."""
    names: dict[str, list[list[str]]] = {}
    found = sorted(name for name in tree.sizes if _JPEG.fullmatch(name))
    for split, folder in SYNTHETIC_SPLITS.items():
        names[split] = [[n for n in found if n.startswith(f"{folder}/{digit}/")] for digit in range(CLASSES)]
        for digit, own in enumerate(names[split]):
            if not own:
                raise DataError(f"{tree.path}: {folder}/{digit}/ holds no .jpg, expected images of the digit {digit}")
    return names


def _decode_all(path: Path) -> dict[str, np.ndarray]:
    """The whole set as it is cached: a uint8 (images, 28, 28) each split and class, and their counts."""
    arrays, left = {}, _LARGEST_SET
    with _open_synthetic(path) as tree:
        for split, classes in _listing(tree).items():
            arrays[f"{split}-counts"] = np.array([len(names) for names in classes])
            for digit, names in enumerate(classes):
                pictures = np.empty((len(names), SIDE, SIDE), np.uint8)
                for place, name in enumerate(names):
                    pictures[place], pixels = _decode_member(tree, name, left)
                    left -= pixels
                arrays[f"{split}-{digit}"] = pictures
    return arrays


def _decode_member(tree: Tree, name: str, most: int) -> tuple[np.ndarray, int]:
    jpeg = tree.read(name, _LARGEST_JPEG)
    try:
        return _decoded(jpeg, most)
    except DataError as error:
        raise DataError(f"{tree.path}: {name}: {error}") from None
