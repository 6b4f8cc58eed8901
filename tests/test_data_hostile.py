"""Data folders made to harm: bombs, links, pipes and lies about sizes are refused in one line and soon."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from test_data_activity import ZIP, small_set, write_folder, write_zip
from test_data_digits import FIRST, MNIST, TRAIN_IMAGES, TRAIN_LABELS, jpeg, small_mnist, small_synthetic, write_mnist
from test_data_digits import write_zip as write_synthetic

from mpi_resmtl.data import activity, cache, digits, files, sources
from mpi_resmtl.data.files import DataError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MPI_RESMTL_CACHE", str(folder))
    return folder


def refused(read, *arguments, match: str) -> None:
    began = time.process_time()
    with pytest.raises(DataError, match=match) as raised:
        read(*arguments)
    assert "\n" not in str(raised.value)
    assert time.process_time() - began < 3


def member(name: str, content: bytes, **about) -> bytes:
    """The zip of a small set with one member changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, text in small_set().items():
            info = zipfile.ZipInfo(f"UCI HAR Dataset/{other}")
            info.compress_type = zipfile.ZIP_DEFLATED
            if other == name:
                for key, value in about.items():
                    setattr(info, key, value)
            archive.writestr(info, content if other == name else text)
    return buffer.getvalue()


def test_a_link_in_a_zip_is_refused(tmp_path):
    content = member("train/y_train.txt", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16)
    (tmp_path / ZIP).write_bytes(content)
    refused(activity.read_subjects, tmp_path, [1], match=r"train/y_train\.txt: is a link")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_packed_otherwise_than_published_is_refused(tmp_path, method):
    content = member("train/y_train.txt", b"1\n" * 5, compress_type=method)
    (tmp_path / ZIP).write_bytes(content)
    refused(activity.read_subjects, tmp_path, [1], match=f"packed by method {method}")


def test_a_zip_whose_list_is_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST_DIRECTORY", 200)
    write_zip(tmp_path, small_set())
    refused(activity.read_subjects, tmp_path, [1], match=r"needs \d+ bytes to list what it holds, more than 200")


def test_a_file_of_gigabytes_is_refused_unread(tmp_path):
    with open(tmp_path / ZIP, "wb") as file:
        file.truncate(2 << 30)
    refused(activity.read_subjects, tmp_path, [1], match="has 2147483648 bytes")


def test_a_zip_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_FILES", 100)
    more = {f"more/{number}": b"" for number in range(100)}
    write_zip(tmp_path, small_set() | more)
    refused(activity.read_subjects, tmp_path, [1], match="holds more than 100 files")


def test_a_folder_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_FILES", 100)
    more = {f"more/{number}": b"" for number in range(100)}
    write_folder(tmp_path, small_set() | more)
    refused(files.folder_sizes, tmp_path, match="holds more than 100 files")


def test_links_that_lead_in_a_circle_are_refused(tmp_path):
    write_folder(tmp_path, small_set())
    (tmp_path / "UCI HAR Dataset" / "around").symlink_to(tmp_path / "UCI HAR Dataset")
    refused(activity.read_subjects, tmp_path, [1], match="lies more than 8 folders deep")


@pytest.mark.parametrize("name", [ZIP, f"{MNIST}/{TRAIN_LABELS}", f"{MNIST}/{TRAIN_LABELS}.gz"])
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path, name):
    contents = small_mnist()
    del contents[TRAIN_LABELS]
    write_mnist(tmp_path, contents)
    os.mkfifo(tmp_path / name)
    if name == ZIP:
        refused(activity.read_subjects, tmp_path, [1], match="expected a file")
        refused(sources.find, "har", tmp_path, match="expected a file")
    else:
        refused(digits.read_mnist, tmp_path, "train", [0], match="expected a file")
        refused(sources.find, "mnist", tmp_path, match="expected a file")


def test_a_line_of_a_million_numbers_is_refused_before_it_is_split(tmp_path):
    contents = small_set()
    contents["test/X_test.txt"] += b"1 " * 10**6
    write_zip(tmp_path, contents)
    refused(activity.read_subjects, tmp_path, [1], match=r"X_test\.txt has a line of 2000000 bytes")


def test_a_number_too_large_for_single_precision_is_refused_without_a_warning(tmp_path, recwarn):
    contents = small_set()
    contents["test/X_test.txt"] = contents["test/X_test.txt"].replace(b"1.0000000e-001", b"1e300", 1)
    write_zip(tmp_path, contents)
    refused(activity.read_subjects, tmp_path, [1], match="is inf, expected a finite number")
    assert not recwarn.list


def test_two_thousand_subjects_are_told_apart_in_a_moment(tmp_path):
    line = b" ".join([b"0"] * activity.FEATURES) + b"\n"
    rows = 2000
    contents = small_set()
    for name, text in (
        ("X", line * rows),
        ("y", b"1\n" * rows),
        ("subject", b"\n".join(b"%d" % (i + 1) for i in range(rows))),
    ):
        contents[f"train/{name}_train.txt"] = text
    write_zip(tmp_path, contents)
    found = activity.read_subjects(tmp_path, [1, 3, rows])
    assert [len(y) for _, y in found.values()] == [1, 2, 1]


def test_an_idx_file_that_states_billions_of_images_is_refused(tmp_path):
    contents = small_mnist()
    contents[TRAIN_IMAGES] = struct.pack(">4I", 0x803, 2**32 - 1, 28, 28) + contents[TRAIN_IMAGES][16:]
    write_mnist(tmp_path, contents)
    refused(digits.read_mnist, tmp_path, "train", [0], match="states 4294967295 items")


def test_labels_and_images_must_be_as_many(tmp_path):
    contents = small_mnist()
    contents[TRAIN_LABELS] = struct.pack(">2I", 0x801, 5) + bytes(5)
    write_mnist(tmp_path, contents)
    refused(digits.mnist_size, tmp_path, "train", match="holds 23 images, but there are 5 labels")
    refused(digits.read_mnist, tmp_path, "train", [0], match="holds 23 images, but there are 5 labels")


def test_a_gz_that_unpacks_to_too_much_is_not_unpacked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "_MOST_ITEMS", 100)
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(gzip.compress(bytes(100 << 20), 1))
    refused(digits.mnist_file_checksum, path, match="unpacks to more than 100 images")


def test_a_jpeg_of_many_passes_is_refused_before_decoding():
    picture = jpeg(7)
    start = picture.rindex(b"\xff\xda")
    bomb = picture[:start] + picture[start:-2] * 200 + picture[-2:]
    refused(digits.decode, bomb, match="a JPEG of 200 scans")


def test_pictures_that_together_have_too_many_pixels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "_LARGEST_SET", 40 * 60 * 10)
    write_synthetic(tmp_path, small_synthetic())
    refused(digits.read_synthetic, tmp_path, "train", [0], match="24000 pixels in all pictures together")


@pytest.mark.parametrize("flip", range(0, 600, 7))
def test_a_damaged_picture_is_decoded_or_refused_without_a_warning(tmp_path, flip, recwarn):
    content = bytearray(small_synthetic()[FIRST])
    content[flip % len(content)] ^= 1 << flip % 8
    with suppress(DataError):
        assert digits.decode(bytes(content)).shape == (28, 28)
    assert not recwarn.list


def stored(cache_folder: Path, key: str) -> Path:
    (path,) = cache_folder.glob(f"{key}*.npz")
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays | {"y1": arrays["y1"] + 6},
        lambda arrays: arrays | {"x1": arrays["x1"] * np.float32(np.nan)},
        lambda arrays: arrays | {"x1": arrays["x1"].astype(np.float64)},
        lambda arrays: arrays | {"x1": arrays["x1"][:, 1:]},
        lambda arrays: arrays | {"x1": np.array([["a"]])},
    ],
)
def test_a_cache_that_holds_something_else_is_built_anew(tmp_path, cache_folder, change):
    write_zip(tmp_path, small_set())
    wanted = activity.read_subjects(tmp_path, [1])[1]
    path = stored(cache_folder, "activity")
    with np.load(path) as kept:
        arrays = dict(kept)
    np.savez(path, **change(arrays))
    with pytest.warns(UserWarning, match="damaged cache, built anew"):
        found = activity.read_subjects(tmp_path, [1])[1]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_cache_never_runs_code_nor_promises_more_than_it_holds(tmp_path, cache_folder):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    cache_folder.mkdir()
    built = {"x": np.arange(3)}
    promised = io.BytesIO()
    np.lib.format.write_array_header_1_0(promised, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
    for number, content in enumerate((None, promised.getvalue())):
        path = cache_folder / f"{number}.npz"
        if content is None:
            np.savez(path, x=np.array([Harm()], dtype=object))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x.npy", content)
        with pytest.warns(UserWarning, match="damaged cache, built anew"):
            assert cache.through(str(number), lambda: built, lambda get: get("x").tolist()) == [0, 1, 2]
    assert not (tmp_path / "harm").exists()


def test_a_name_with_a_null_in_it_is_refused(tmp_path):
    refused(files.entries, Path("a\0b"), match="is no name of a folder")
