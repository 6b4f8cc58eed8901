"""HDF5 files of others: what leads out of a file, or is larger than it, is refused before anything is read from it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_recorded import AGENTS, LENGTH, attribute, refused_run, replaced, without, write_stream

from mpi_resmtl import hdf5
from mpi_resmtl.errors import UserError


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as raised:
        hdf5.examine(path)
    for word in (str(path), *words):
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def linked(link: object) -> Callable:
    def change(file: h5py.File) -> None:
        del file["stream/y"]
        file["stream/y"] = link

    return change


def virtual(file: h5py.File) -> None:
    del file["stream/y"]
    layout = h5py.VirtualLayout((LENGTH, AGENTS), "f8")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "y", (LENGTH, AGENTS))
    file.create_virtual_dataset("stream/y", layout)


def stored_outside(file: h5py.File) -> None:
    del file["stream/y"]
    file.create_dataset("stream/y", (LENGTH, AGENTS), "f8", external=[("/etc/hostname", 0, LENGTH * AGENTS * 8)])


def huge(file: h5py.File) -> None:
    del file["stream/y"]
    file.create_dataset("stream/y", (2**30, 2**20), "f8", chunks=(2**10, 2**10))


def packed_zeros(file: h5py.File) -> None:
    """Nothing wrong with it: the most that deflate can do."""
    del file["stream/y"]
    file.create_dataset("stream/y", data=np.zeros((2**22,)), chunks=(2**18,), compression=9)


def scaled(file: h5py.File) -> None:
    values = file["stream/y"][()]
    del file["stream/y"]
    file.create_dataset("stream/y", data=values, chunks=values.shape, scaleoffset=3)


def packed_twice(file: h5py.File) -> None:
    del file["stream/y"]
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((LENGTH, AGENTS))
    made.set_deflate(9)
    made.set_deflate(9)
    h5py.h5d.create(file["stream"].id, b"y", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((LENGTH, AGENTS)), made)


def wide_chunks(file: h5py.File) -> None:
    del file["stream/y"]
    file.create_dataset("stream/y", (LENGTH, AGENTS), "f8", chunks=(2**13, 2**13), maxshape=(None, None))


def deep(file: h5py.File) -> None:
    group = file
    for _ in range(40):
        group = group.create_group("a")


def fat_attribute(file: h5py.File) -> None:
    file.create_group("fat", track_order=True)
    file["fat"].attrs["text"] = "x" * (5 << 20)


HOSTILE = [
    (linked(h5py.ExternalLink("/etc/other.h5", "/y")), ["/stream/y is an external link"]),
    (linked(h5py.SoftLink("/stream/x")), ["/stream/y is a soft link"]),
    (virtual, ["/stream/y is a virtual dataset"]),
    (stored_outside, ["/stream/y keeps its values in another file"]),
    (huge, ["/stream/y declares 9007199254740992 bytes", "holds 0"]),
    (scaled, ["/stream/y is packed by filter 6", "gzip"]),
    (packed_twice, ["/stream/y is packed twice"]),
    (wide_chunks, ["/stream/y is cut in chunks of 536870912 bytes"]),
    (deep, ["32 groups deep"]),
    (fat_attribute, ["attribute text of /fat has 5242880 characters"]),
]


@pytest.mark.parametrize(("change", "words"), HOSTILE, ids=[words[0] for _, words in HOSTILE])
def test_what_leads_out_of_a_file_or_is_larger_than_it_is_refused(change: Callable, words: list[str], tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", "location")
    with h5py.File(path, "r+") as file:
        change(file)
    began = time.process_time()
    refused(path, *words)
    assert time.process_time() - began < 1


def test_links_in_a_circle_and_packed_zeros_are_nothing_wrong(tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", "location")
    with h5py.File(path, "r+") as file:
        file["stream/again"] = file["/"]
        packed_zeros(file)
    hdf5.examine(path)


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_stream_that_leads_to_another_file_is_refused_in_one_line(ranks: int, tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", "location")
    with h5py.File(path, "r+") as file:
        linked(h5py.ExternalLink("/etc/other.h5", "/y"))(file)
    refused_run(path, "/stream/y is an external link", ranks)


@pytest.mark.parametrize(("bytes_", "message"), [(b"", "not a whole HDF5"), (b"\x89HDF\r\n\x1a\n" * 9, "not a whole")])
def test_what_is_no_hdf5_file_is_refused(bytes_: bytes, message: str, tmp_path: Path):
    (tmp_path / "stream.h5").write_bytes(bytes_)
    refused(tmp_path / "stream.h5", message)


def test_what_is_no_plain_file_is_refused_without_waiting_for_it(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.h5")
    refused(tmp_path / "pipe.h5", "is no file")
    refused(tmp_path, "is no file")
    refused(tmp_path / "nothing.h5", "no such file")
    for name, message in (("a\0b.h5", r"no such file: a\\x00b"), ("x" * 5000, "no name of a file")):
        with pytest.raises(UserError, match=message):
            hdf5.examine(name)


def test_what_a_message_quotes_from_a_file_stays_one_printable_line():
    assert str(UserError("a\nb \x1b[31m \udcff é")) == r"a\nb \x1b[31m \udcff é"
    long = str(UserError("begin" + "x" * 10**6 + "end"))
    assert len(long) < 1010
    assert (long[:5], long[-3:]) == ("begin", "end")


def test_a_changed_file_is_examined_anew(tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", "location")
    hdf5.examine(path)
    with h5py.File(path, "r+") as file:
        deep(file)
    refused(path, "groups deep")


def test_many_files_are_examined_by_few_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good = [write_stream(tmp_path / f"stream{k}.h5", "location") for k in range(30)]
    started = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: started.append(words) or run(*words, **options))
    for path in hdf5.examined(good):
        hdf5.examine(path)
    assert len(started) == 2
    bad = write_stream(tmp_path / "bad.h5", "location")
    with h5py.File(bad, "r+") as file:
        deep(file)
    few = [tmp_path / "nothing.h5", bad]
    assert list(hdf5.examined(few)) == few
    refused(bad, "groups deep")
    refused(few[0], "no such file")


BROKEN = [
    ("location", replaced("agent/initial", lambda a: a.astype("S8")), "/agent/initial is |S8"),
    ("location", replaced("agent/initial", lambda a: a.astype(complex)), "/agent/initial is complex128"),
    ("location", replaced("agent/position", lambda a: a[1:]), "/agent/position is float64 (7, 2), expected"),
    ("location", replaced("graph/edge", lambda e: e.astype(float)), "/graph/edge is float64"),
    ("location", replaced("agent/byzantine", lambda b: b.reshape(1, -1)), "/agent/byzantine"),
    ("location", replaced("agent/byzantine", lambda b: np.arange(9)), "9 entries for 8 agents"),
    ("location", replaced("stream/y", lambda y: h5py.Empty("f8")), "/stream/y is float64 without values"),
    ("location", attribute("model", np.arange(3)), "attribute model is None"),
    ("location", attribute("step_size", np.ones(4)), "attribute step_size"),
    ("location", attribute("forgetting_factor", np.nan), "attribute forgetting_factor"),
    ("location", replaced("attack/message", lambda m: np.zeros((3, 2, 2))), "lasts for 3 of the 12 iterations"),
    (
        "linear-classifier",
        replaced("agent/initial", lambda a: a.astype(float) * 1e300),
        "/agent/initial has values",
    ),
    ("linear-classifier", replaced("stream/x", lambda x: x.astype(float) * 1e300), "not finite in iteration 1"),
    ("linear-classifier", replaced("stream/active", lambda a: a.astype("S1")), "/stream/active is |S1"),
    ("linear-classifier", attribute("classes", "many"), "attribute classes is missing"),
    ("linear-classifier", attribute("optimizer", np.arange(2)), "task.optimizer = 'array([0, 1])'"),
]


@pytest.mark.parametrize(("model", "change", "message"), BROKEN, ids=[message for _, _, message in BROKEN])
def test_wrong_types_shapes_and_values_are_refused_in_one_line(
    model: str, change: Callable, message: str, tmp_path: Path
):
    path = write_stream(tmp_path / "stream.h5", model)
    with h5py.File(path, "r+") as file:
        change(file)
    refused_run(path, message)


def test_labels_beyond_the_ten_digits_are_refused(tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", "linear-classifier")
    with h5py.File(path, "r+") as file:
        file.attrs.update(model="digit-cnn", classes=11)
        for name in ("stream/x", "agent/initial"):
            without(name)(file)
        file["stream/x"] = np.zeros((LENGTH, AGENTS, 4, 784), np.float32)
        file["agent/initial"] = np.zeros((AGENTS, 3), np.float32)
    refused_run(path, "attribute classes is 11, which digit-cnn does not take")
