"""MNIST and Synthetic Digits in their published layouts, and what is said of bad files."""

import gzip
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpi_resmtl.data import digits
from mpi_resmtl.data.files import DataError

COUNTS = {"train": 23, "test": 7}
MNIST = "MNIST/raw"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MPI_RESMTL_CACHE", str(folder))
    return folder


def small_mnist() -> dict[str, bytes]:
    """Image i is filled with i, its label is i % 10."""
    contents = {}
    for split, count in COUNTS.items():
        stem = digits.MNIST_STEMS[split]
        pictures = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
        contents[f"{stem}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, count, 28, 28) + pictures.tobytes()
        labels = bytes(i % 10 for i in range(count))
        contents[f"{stem}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, count) + labels
    return contents


def write_mnist(data_dir: Path, contents: dict[str, bytes]) -> None:
    folder = data_dir / MNIST
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def packed(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}


def jpeg(gray: int, size: tuple[int, int] = (40, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (gray, gray, gray)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def small_synthetic() -> dict[str, bytes]:
    """Three training images and one test image of a digit; their gray tells digit and number."""
    contents = {}
    for folder, count in (("imgs_train", 3), ("imgs_valid", 1)):
        for digit in range(10):
            for number in range(count):
                contents[f"{folder}/{digit}/{digit}_{number:05d}.jpg"] = jpeg(20 * digit + 4 * number)
    return contents


def write_folder(data_dir: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = data_dir / "synthetic_digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return data_dir / "synthetic_digits"


def write_zip(data_dir: Path, contents: dict[str, bytes], name: str = "synthetic_digits.zip") -> Path:
    with zipfile.ZipFile(data_dir / name, "w") as archive:
        for member, content in contents.items():
            archive.writestr(f"synthetic_digits/{member}", content)
    return data_dir / name


@pytest.mark.parametrize("form", [dict, packed])
def test_mnist_images_come_in_the_order_asked_for(tmp_path, monkeypatch, form):
    monkeypatch.setattr(digits, "_BLOCK", 4)
    write_mnist(tmp_path, form(small_mnist()))
    assert [digits.mnist_size(tmp_path, split) for split in ("train", "test")] == [23, 7]
    x, y = digits.read_mnist(tmp_path, "train", [22, 0, 5, 5])
    assert (x.dtype, x.shape, y.dtype) == (np.float32, (4, 28, 28), np.int64)
    np.testing.assert_array_equal(x[:, 3, 4], np.float32([22, 0, 5, 5]) / np.float32(255))
    np.testing.assert_array_equal(y, [2, 0, 5, 5])
    x, y = digits.read_mnist(tmp_path, "test", [])
    assert (x.shape, y.shape) == ((0, 28, 28), (0,))


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
BAD_MNIST = {
    "images cut short": (TRAIN_IMAGES, lambda b: b[:-1], "cut short, expected 23 items of 784 bytes"),
    "labels cut short": (TRAIN_LABELS, lambda b: b[:-1], "cut short, expected 23 items of 1 bytes"),
    "header cut short": (TRAIN_IMAGES, lambda b: b[:9], "expected an idx file of unsigned bytes in 3 dimensions"),
    "empty": (TRAIN_LABELS, lambda b: b"", "expected an idx file of unsigned bytes in 1 dimensions"),
    "no idx file": (TRAIN_IMAGES, lambda b: b"\x89PNG" + b[4:], "expected an idx file"),
    "too long": (TRAIN_LABELS, lambda b: b + b"\0", "longer than the 23 items that its header states"),
    "other size": (
        TRAIN_IMAGES,
        lambda b: struct.pack(">4I", 0x803, 23, 14, 56) + b[16:],
        r"items of shape \(14, 56\), expected \(28, 28\)",
    ),
    "label out of range": (TRAIN_LABELS, lambda b: b[:-3] + b"\x0a" + b[-2:], "label 20 is 10, expected 0 to 9"),
}


@pytest.mark.parametrize("bad", BAD_MNIST)
@pytest.mark.parametrize("form", [dict, packed])
def test_a_bad_mnist_file_is_named_with_what_was_expected(tmp_path, bad, form):
    name, change, message = BAD_MNIST[bad]
    contents = small_mnist()
    write_mnist(tmp_path, form(contents | {name: change(contents[name])}))
    with pytest.raises(DataError, match=f"{name}.*{message}") as error:
        digits.read_mnist(tmp_path, "train", [0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 40, -9, -1])
def test_a_gz_cut_short_is_named(tmp_path, keep):
    contents = packed(small_mnist())
    name = f"{TRAIN_IMAGES}.gz"
    write_mnist(tmp_path, contents | {name: contents[name][:keep]})
    with pytest.raises(DataError, match=name):
        digits.read_mnist(tmp_path, "train", [0])


def test_a_gz_that_is_none_is_named(tmp_path):
    write_mnist(tmp_path, packed(small_mnist()) | {f"{TRAIN_IMAGES}.gz": b"<html>not found</html>"})
    with pytest.raises(DataError, match=r"idx3-ubyte\.gz: cannot be read \(Not a gzipped file"):
        digits.read_mnist(tmp_path, "train", [0])


def test_a_missing_mnist_file_is_named(tmp_path):
    contents = small_mnist()
    del contents[TRAIN_LABELS]
    write_mnist(tmp_path, contents)
    with pytest.raises(DataError, match=f"expected one of: {TRAIN_LABELS}, {TRAIN_LABELS}.gz"):
        digits.read_mnist(tmp_path, "train", [0])


def test_too_few_mnist_images_are_counted(tmp_path):
    write_mnist(tmp_path, small_mnist())
    with pytest.raises(DataError, match="idx3-ubyte: holds 23 images, expected at least 24"):
        digits.read_mnist(tmp_path, "train", [0, 23])
    with pytest.raises(DataError, match="expected number -1"):
        digits.read_mnist(tmp_path, "train", [-1])


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_synthetic_digits_are_numbered_by_class_then_name(tmp_path, write):
    write(tmp_path, small_synthetic())
    assert [digits.synthetic_size(tmp_path, split) for split in ("train", "test")] == [30, 10]
    for _ in ("decoded", "from the cache"):
        x, y = digits.read_synthetic(tmp_path, "train", [29, 0, 4])
        assert (x.dtype, x.shape, y.dtype) == (np.float32, (3, 28, 28), np.int64)
        np.testing.assert_array_equal(y, [9, 0, 1])
        gray = np.array([188, 0, 24])
        np.testing.assert_allclose(x.mean((1, 2)), gray / 127.5 - 1, atol=1.5 / 127.5)
    x, y = digits.read_synthetic(tmp_path, "test", range(10))
    np.testing.assert_array_equal(y, range(10))


def test_the_zip_may_have_kaggles_name_and_one_folder_more(tmp_path):
    contents = {f"synthetic_digits/{name}": content for name, content in small_synthetic().items()}
    write_zip(tmp_path, contents, "synthetic-digits.zip")
    assert digits.synthetic_size(tmp_path, "train") == 30


def test_synthetic_digits_are_decoded_once(tmp_path, monkeypatch):
    write_zip(tmp_path, small_synthetic())
    digits.read_synthetic(tmp_path, "train", [0])
    monkeypatch.setattr(digits, "_decode_all", lambda path: pytest.fail("decoded again"))
    digits.read_synthetic(tmp_path, "test", [3])


def test_gray_is_the_601_luma_and_the_picture_fills_the_square():
    # Halves that JPEG's 8 x 8 blocks hold exactly: red left, blue right, of a picture wider than high.
    picture = Image.new("RGB", (112, 56), (255, 0, 0))
    picture.paste((0, 0, 255), (56, 0, 112, 56))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=100, subsampling=0)
    gray = digits.decode(buffer.getvalue()).astype(int)
    assert np.abs(gray[:, :13] - 0.299 * 255).max() <= 2
    assert np.abs(gray[:, 15:] - 0.114 * 255).max() <= 2


FIRST = "imgs_train/3/3_00001.jpg"
BAD_IMAGES = {
    "text": (b"no picture", "no JPEG image"),
    "empty": (b"", "no JPEG image"),
    "cut short": (jpeg(100)[:-300], "damaged JPEG image"),
    "a picture of another kind": (b"GIF89a" + bytes(50), "no JPEG image"),
    "too many pixels": (jpeg(0, (2049, 2048)), "2049 x 2048 pixels, expected 2048 x 2048 at most"),
}


@pytest.mark.parametrize("bad", BAD_IMAGES)
@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_an_image_that_is_none_is_named(tmp_path, bad, write, cache_folder):
    content, message = BAD_IMAGES[bad]
    path = write(tmp_path, small_synthetic() | {FIRST: content})
    with pytest.raises(DataError, match=f"{path}: {FIRST}: {message}"):
        digits.read_synthetic(tmp_path, "test", [0])
    assert not cache_folder.exists()


def test_a_header_that_promises_a_bomb_is_refused_before_decoding():
    content = bytearray(jpeg(0))
    frame = content.index(b"\xff\xc0")
    for side in (16000, 65500):
        content[frame + 5 : frame + 9] = struct.pack(">2H", side, side)
        with pytest.raises(DataError, match="pixels, expected 2048 x 2048 at most"):
            digits.decode(bytes(content))


def test_an_image_file_far_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "_LARGEST_JPEG", 10)
    write_zip(tmp_path, small_synthetic())
    with pytest.raises(DataError, match="more than the 10 expected"):
        digits.read_synthetic(tmp_path, "train", [0])


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_zip_cut_short_is_named(tmp_path, part):
    path = write_zip(tmp_path, small_synthetic())
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=r"synthetic_digits\.zip: damaged or cut short"):
        digits.read_synthetic(tmp_path, "train", [0])


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_a_class_without_images_is_named(tmp_path, write):
    contents = {n: c for n, c in small_synthetic().items() if not n.startswith("imgs_valid/7/")}
    write(tmp_path, contents | {"imgs_valid/7/notes.txt": b"", "imgs_valid/7/._7_00000.jpg": b""})
    with pytest.raises(DataError, match=r"imgs_valid/7/ holds no \.jpg, expected images of the digit 7"):
        digits.read_synthetic(tmp_path, "train", [0])


def test_too_few_synthetic_digits_are_counted(tmp_path):
    write_zip(tmp_path, small_synthetic())
    for _ in ("decoded", "from the cache"):
        with pytest.raises(DataError, match="imgs_train/ holds 30 images, expected at least 31"):
            digits.read_synthetic(tmp_path, "train", [30])


def test_a_data_folder_without_the_data_is_told_what_it_should_hold(tmp_path):
    with pytest.raises(DataError, match="no MNIST here; expected one of: MNIST/raw"):
        digits.read_mnist(tmp_path, "train", [0])
    with pytest.raises(DataError, match=r"no Synthetic Digits here; expected one of: synthetic_digits, synthetic_dig"):
        digits.read_synthetic(tmp_path, "train", [0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    write_mnist(tmp_path, small_mnist())
    (tmp_path / MNIST / TRAIN_LABELS).chmod(0)
    with pytest.raises(DataError, match=r"labels-idx1-ubyte: cannot be read \(Permission denied\)"):
        digits.read_mnist(tmp_path, "train", [0])


REAL = Path(os.environ.get("MPI_RESMTL_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.mark.skipif(not (REAL / MNIST).exists(), reason=f"no MNIST in {REAL} ($MPI_RESMTL_DATA)")
def test_the_real_mnist_begins_with_the_labels_everyone_knows():
    assert [digits.mnist_size(REAL, split) for split in ("train", "test")] == [60000, 10000]
    x, y = digits.read_mnist(REAL, "train", range(10))
    np.testing.assert_array_equal(y, [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    assert (x.min(), x.max()) == (0, 1)
    x, _ = digits.read_mnist(REAL, "test", range(10000))
    assert x.mean(dtype=np.float64) == pytest.approx(0.1325, abs=1e-4)


@pytest.mark.skipif(
    not any((REAL / name).exists() for name in digits.SYNTHETIC_NAMES),
    reason=f"no Synthetic Digits in {REAL} ($MPI_RESMTL_DATA)",
)
def test_the_synthetic_digits_have_the_published_numbers():
    assert [digits.synthetic_size(REAL, split) for split in ("train", "test")] == [10000, 2000]
    x, y = digits.read_synthetic(REAL, "train", range(10000))
    np.testing.assert_array_equal(np.bincount(y), [1000] * 10)
    assert x.min() >= -1
    assert x.max() <= 1
    assert (x.mean() + 1) / 2 == pytest.approx(0.457, abs=0.02)
    assert x.std() / 2 == pytest.approx(0.220, abs=0.02)
