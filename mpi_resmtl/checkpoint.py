"""Checkpoints: all that a run has come to, so that it goes on from there on any number of ranks.

What ranks hold lies along axes of the whole run (agents, edges, ...) of which every rank has one piece, in the order of
ranks. A checkpoint holds the whole arrays, so the number of ranks is not in it. It is an HDF5 file of contiguous
datasets: rank 0 lays it out and claims its space, then every rank writes its pieces straight into their places, which
takes no parallel HDF5 and leaves every error with the rank that has it. The file gets its name when it is on the disk;
the one before it is kept. What is recorded is in the result file alone, which a checkpoint brings to the disk too.
Random streams are keyed by iteration and have no state.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tomllib
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mpi4py import MPI

from mpi_resmtl import hdf5
from mpi_resmtl.errors import FileError, UserError
from mpi_resmtl.launch import Refused
from mpi_resmtl.recorder import LIBVER, About, Position
from mpi_resmtl.storage import DESCRIPTION, check_room, reason, sync, writing

SCHEMA = "mpi-resmtl-checkpoint/1"

State = dict[str, dict[str, np.ndarray]]
"""Arrays by axis and name, each with the rank's piece of the axis first; along "alike" all ranks have the same."""

_ALIKE = "alike"


@dataclass(frozen=True)
class Piece:
    """The part of an axis that a rank has."""

    first: int
    stop: int
    total: int


@dataclass(frozen=True)
class Saved:
    """A checkpoint as its file tells of it."""

    path: Path
    config: str
    position: Position
    run: str
    """As in `recorder.About`."""
    stages: list[dict[str, Any]]
    data_sha256: str


def newest(output: Path) -> Path:
    """Where the last checkpoint of a run is."""
    return output.with_name(f"{output.name}.checkpoint")


def before(output: Path) -> Path:
    """Where the one before it is."""
    return output.with_name(f"{output.name}.checkpoint.before")


def left(output: Path) -> list[Path]:
    """All checkpoints of a run, the newest first, whole or not."""
    return [path for path in (newest(output), before(output)) if path.exists()]


def remove(output: Path) -> None:
    """Remove all checkpoints, and what a killed run left of one that it was writing."""
    for path in (*left(output), *output.parent.glob(f"{_escaped(output.name)}.checkpoint.new-*")):
        path.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def read(path: Path) -> Saved:
    """What a checkpoint is of; raises UserError unless it is whole, to the last bit."""
    hdf5.examine(path)
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("schema") != SCHEMA:
                raise UserError(f"{path}: is not a checkpoint of this version")
            about, sums = json.loads(file.attrs["about"]), json.loads(file.attrs["arrays"])
            checks = _array(file, "checks")[()]
            for name, check in zip(sums, checks.tolist(), strict=True):
                if _check(_array(file, name)[()], 0) != check:
                    raise UserError(f"{path}: /{name} is damaged")
            position = Position(int(about["rule"]), int(about["iteration"]))
            rules = tomllib.loads(str(about["config"]))["rules"]
            if not (0 <= position.rule < len(rules) and position.iteration >= 0):
                raise ValueError(f"it goes on after iteration {position.iteration} of rule {position.rule}")
            told = str(about["config"]), position, str(about["run"]), list(about["stages"]), str(about["data_sha256"])
            return Saved(path, *told)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is not a whole checkpoint: {str(error).splitlines()[0]}") from None


def _array(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values are in the file itself."""
    found = file[name]
    if (
        not isinstance(found, h5py.Dataset)
        or found.external
        or found.is_virtual
        or found.file.filename != file.filename
    ):
        raise ValueError(f"/{name} is not a plain dataset")
    return found


def _check(values: np.ndarray, first: int) -> int:
    """Sum of 32-bit words, each times an odd number that its place sets, modulo 2^64; of rows from `first` on.

    Sums of pieces add up to that of the whole, and any flipped bit changes it.
    """
    words = np.ascontiguousarray(values).reshape(-1).view(np.uint32).astype(np.uint64)
    start = first * (words.size // len(values)) if values.ndim and len(values) else 0
    words *= np.arange(2 * start + 1, 2 * (start + words.size) + 1, 2, dtype=np.uint64)
    return int(words.sum(dtype=np.uint64))


@dataclass
class Files:
    """The checkpoints of one run, written by all ranks together."""

    comm: MPI.Comm
    output: Path
    pieces: dict[str, Piece]
    about: About | None
    """What the run is; on rank 0 alone."""
    _name: str = field(init=False)

    def __post_init__(self):
        self._name = self.comm.bcast(uuid.uuid4().hex[:8])

    def write(self, state: State, position: Position) -> None:
        """Write the newest checkpoint; collective.

        Raises Refused on every rank alike where there is no room for it, FileError on a rank that cannot write.
        """
        new = self.output.with_name(f"{self.output.name}.checkpoint.new-{self._name}")
        arrays = [(axis, name, values) for axis in sorted(state) for name, values in sorted(state[axis].items())]
        places = np.full(len(arrays) + 1, -1, np.int64)
        problem = "rank 0 cannot write a checkpoint"
        if self.comm.rank == 0:
            try:
                places[:] = self._lay_out(new, arrays, position)
            except UserError as error:
                problem = f"{error}; {self._good()}"
                print(f"mpi-resmtl: {problem}", file=sys.stderr, flush=True)
                new.unlink(missing_ok=True)
        self.comm.Bcast(places)
        if places[0] < 0:
            raise Refused(problem)
        checks, total = np.zeros(len(arrays), np.uint64), np.zeros(len(arrays), np.uint64)
        try:
            self._write_pieces(new, arrays, places, checks)
            self.comm.Reduce(checks, total)
            if self.comm.rank == 0:
                self._finish(new, total, int(places[-1]))
        except OSError as error:
            raise FileError(f"{new}: cannot be written: {reason(error)}; {self._good()}") from None

    def _good(self) -> str:
        there = left(self.output)
        return f"the last checkpoint, {there[0]}, is good" if there else "there is no checkpoint yet"

    def _lay_out(self, new: Path, arrays: list[tuple[str, str, np.ndarray]], position: Position) -> list[int]:
        """Make the file with all its space; -> where in it each array begins, and the checks at last."""
        places = []
        sizes = [self.pieces[axis].total * _row(v) if axis != _ALIKE else v.nbytes for axis, _, v in arrays]
        size = sum(sizes) + DESCRIPTION * (len(arrays) + 1) + len(json.dumps(asdict(self.about)))
        check_room(new, size, "a checkpoint")
        with writing(new):
            with h5py.File(new, "w", libver=LIBVER) as file:
                names = [f"{axis}/{name}" for axis, name, _ in arrays]
                about = asdict(self.about) | asdict(position)
                file.attrs.update({"schema": SCHEMA, "about": json.dumps(about), "arrays": json.dumps(names)})
                for (axis, _, values), name in zip(arrays, names, strict=True):
                    whole = values.shape if axis == _ALIKE else (self.pieces[axis].total, *values.shape[1:])
                    places.append(_claim(file, name, whole, values.dtype))
                places.append(_claim(file, "checks", (len(arrays),), np.dtype(np.uint64)))
            descriptor = os.open(new, os.O_WRONLY)
            try:
                os.posix_fallocate(descriptor, 0, max(1, new.stat().st_size))
            finally:
                os.close(descriptor)
        return places

    def _write_pieces(self, new: Path, arrays: list, places: np.ndarray, checks: np.ndarray) -> None:
        descriptor = os.open(new, os.O_WRONLY)
        try:
            for number, (axis, _, values) in enumerate(arrays):
                first = 0
                if axis != _ALIKE:
                    first = self.pieces[axis].first
                elif self.comm.rank:
                    continue
                if values.size:
                    _write(descriptor, values, int(places[number]) + first * _row(values))
                    checks[number] = _check(values, first)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _finish(self, new: Path, total: np.ndarray, place: int) -> None:
        descriptor = os.open(new, os.O_WRONLY)
        try:
            _write(descriptor, total, place)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if newest(self.output).exists():
            os.replace(newest(self.output), before(self.output))
        os.replace(new, newest(self.output))
        sync(self.output.parent)


def _claim(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Add a dataset that is not written yet; -> where its values are, -1 where there are none."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.h5d.create(file.id, None, h5py.h5t.py_create(dtype), space, properties)
    h5py.h5o.link(dataset, file.id, name.encode(), lcpl=links)
    offset = dataset.get_offset()
    return 0 if offset is None else offset


def _row(values: np.ndarray) -> int:
    """Bytes of a row of an array, as many as a rank without any row sees."""
    return values.dtype.itemsize * math.prod(values.shape[1:]) if values.ndim else 0


def _write(descriptor: int, values: np.ndarray, place: int) -> None:
    """Write an array at a place of a file, all of it."""
    left = memoryview(np.ascontiguousarray(values).reshape(-1)).cast("B")
    while left:
        written = os.pwrite(descriptor, left, place)
        left, place = left[written:], place + written


def load(path: Path, pieces: dict[str, Piece]) -> State:
    """This rank's pieces of a checkpoint, and all of what lies along "rank"; raises UserError where they do not fit."""
    state: State = {axis: {} for axis in (*pieces, _ALIKE)}
    try:
        with h5py.File(path, "r") as file:
            for full in json.loads(file.attrs["arrays"]):
                axis, _, name = full.partition("/")
                values = _array(file, full)
                if axis in (_ALIKE, "rank"):
                    state[axis][name] = values[()]
                    continue
                piece = pieces[axis]
                if len(values) != piece.total:
                    raise ValueError(f"/{full} has {len(values)} rows, the run {piece.total}")
                state[axis][name] = values[piece.first : piece.stop]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this run: {str(error).splitlines()[0]}") from None
    return state
