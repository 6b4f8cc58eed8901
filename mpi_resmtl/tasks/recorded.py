"""Recorded streams: models, samples and messages from an HDF5 file, also the way to bring data of one's own."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
from annotated_types import Gt

from mpi_resmtl import hdf5
from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import Graph, check_agents, sorted_edges
from mpi_resmtl.streams import block_length
from mpi_resmtl.tasks import TASKS, Scene, Size, Task
from mpi_resmtl.tasks.blocks import Blocks, following
from mpi_resmtl.tasks.classifier import ClassifierTask, Optimizer, Samples
from mpi_resmtl.tasks.digit_cnn import DigitCNN
from mpi_resmtl.tasks.linear_classifier import LinearClassifier
from mpi_resmtl.tasks.location import Judge, LocationTask, LossPosition

_RECORDED_MODELS = 2**25
"""Numbers in all the models of a stream up to which they are recorded unless asked otherwise."""

MODELS = ("location", "linear-classifier", "digit-cnn")


@dataclass
class Parameters:
    """The study's own table; what the file says of itself is the default."""

    name: Literal["recorded"] = "recorded"
    file: Annotated[str, hdf5.Input(), "recorded stream"] = ""
    step_size: Annotated[float, Gt(0), "mu"] = 0.1
    optimizer: Annotated[Optimizer, "of a classifier"] = "sgd"
    loss_position: Annotated[
        LossPosition, "whose position enters the loss of a neighbour's message; `neighbour` is a slip"
    ] = "own"
    judge: Annotated[Judge, "the loss by which messages are judged"] = "measurement"


@TASKS.named("recorded")
class RecordedStream:
    """Replays a recorded stream: a location, a linear classifier or the digit network."""

    Parameters = Parameters
    unit = "iterations"

    @staticmethod
    def defaults(tables: dict[str, Any]) -> dict[str, Any]:
        """What the file says of itself: constants, length, graph, who is Byzantine and what they send.

        Every iteration's weights are recorded, and its models where they are few.
        """
        name = tables["task"].get("file")
        if not isinstance(name, str) or not name:
            raise UserError("a recorded stream needs its file: --set task.file=FILE")
        hdf5.examine(name)
        with hdf5.opened(name) as file:
            length, agents = _checked_shape(file, name)
            byzantine = _attackers(file, name, agents)
            models = length * file["agent/initial"].size
            attrs = {key: file.attrs[key] for key in file.attrs}
        brought = {
            "iterations": length,
            "task": {},
            "graph": {"kind": "recorded"},
            "byzantine": {"agents": byzantine},
            "rule": {},
            "record": {"weights": 1, "models": int(models <= _RECORDED_MODELS)},
        }
        numbers = {"step_size": "task", "forgetting_factor": "rule", "initial_accumulated_loss": "rule"}
        for key, table in numbers.items():
            if key in attrs:
                brought[table][key] = hdf5.number(attrs[key])
                if brought[table][key] is None:
                    raise UserError(f"{name}: attribute {key} is {attrs[key]!r}, expected a number")
        if "optimizer" in attrs:
            brought["task"]["optimizer"] = hdf5.text(attrs["optimizer"]) or repr(attrs["optimizer"])
        asked = tables.get("byzantine", {})
        if "count" in asked:
            brought["byzantine"] = {}
        if byzantine and asked.get("attack", "recorded") == "recorded":
            brought["byzantine"] |= {"attack": "recorded", "file": name}
        return brought

    @staticmethod
    def size(parameters: Parameters) -> Size:
        """What the file's shapes say; its messages are held by every rank."""
        name = parameters.file
        with hdf5.opened(name) as file:
            _, agents = _checked_shape(file, name)
            x, itemsize = file["stream/x"], 8 if hdf5.text(file.attrs["model"]) == "location" else 4
            numbers = math.prod(x.shape[2:]) + math.prod(file["stream/y"].shape[2:])
            message = file.get("attack/message")
            held = 16 * message.size if isinstance(message, h5py.Dataset) else 0
            return Size(
                agents=agents,
                parameters=file["agent/initial"].shape[1],
                itemsize=itemsize,
                block=_block(agents, x.shape),
                sample=2 * 8 * numbers,
                gathers=itemsize == 8,
                fixed=held + (DigitCNN.memory if x.shape[3:] == (784,) else 0),
            )

    @staticmethod
    def scene(parameters: Parameters, seed: int) -> Scene:
        """Graph, positions and targets of the file; agents of one target are one group."""
        name = parameters.file
        with hdf5.opened(name) as file:
            length, agents = _checked_shape(file, name)
            edge = hdf5.dataset(file, name, "graph/edge", "iu", (None, 2))[()]
            check_agents(edge, agents, f"{name}: /graph/edge")
            there = [key for key in ("position", "target") if f"agent/{key}" in file]
            place: dict[str, np.ndarray | None] = {"position": None, "target": None}
            place |= {key: np.ascontiguousarray(hdf5.values(file[f"agent/{key}"], name), np.float64) for key in there}
        group = np.zeros(agents, np.int32)
        if place["target"] is not None:
            group = np.unique(place["target"], axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)
        return Scene(
            group=group,
            data="recorded",
            data_sha256=_sha256(Path(name)),
            edge=sorted_edges(edge, agents, directed=True),
            length=length,
            **place,
        )

    @staticmethod
    def task(parameters: Parameters, graph: Graph, seed: int, first: int, count: int) -> Task:
        """Reads the columns of this rank's agents alone, a block of iterations at a time."""
        name, own = parameters.file, slice(first, first + count)
        with hdf5.opened(name) as file:
            model, shape = hdf5.text(file.attrs["model"]), file["stream/x"].shape
            batch, inputs = shape[2], shape[3:]
            classes = 0 if model == "location" else _classes(file)
            initial = _cast(file["agent/initial"][own], classes)
            if not hdf5.finite(initial):
                raise UserError(f"{name}: /agent/initial has values that are not finite")
        stream = _Columns(name, own, graph.agents, classes)
        stream.check()
        if model == "location":
            return LocationTask(
                stream.location,
                stream.length,
                initial=initial,
                position=graph.position,
                first=first,
                step_size=parameters.step_size,
                target=None if graph.target is None else graph.target[own],
                loss_position=parameters.loss_position,
                judge=parameters.judge,
            )
        network = LinearClassifier(inputs[0], classes) if model == "linear-classifier" else DigitCNN()
        if initial.shape[1] != network.parameters:
            raise UserError(
                f"{name}: /agent/initial has models of {initial.shape[1]} parameters; "
                f"{model} of {inputs[0]} inputs and {classes} classes has {network.parameters}"
            )
        batches = Blocks(stream.batches)
        return ClassifierTask(
            network,
            batches.__getitem__,
            stream.length,
            initial=initial,
            step_size=parameters.step_size,
            optimizer=parameters.optimizer,
            batch=batch,
            draw_fresh=lambda block: _next_batches(batches[block], batches[block + 1]),
        )


def _next_batches(own: Samples, after: Samples) -> Samples:
    """The batches of the iterations that follow those of a block, `after` it comes the next."""
    return Samples(*(following(getattr(own, f.name), getattr(after, f.name)) for f in fields(Samples)))


class _Columns:
    """The samples of a run of agents, read a block of iterations at a time."""

    def __init__(self, name: str, own: slice, agents: int, classes: int):
        """`classes` is 0 for a location."""
        self._name, self._own, self._classes = name, own, classes
        with hdf5.opened(name) as file:
            shape = file["stream/x"].shape
        self._iterations = shape[0]
        self.length = _block(agents, shape)

    def check(self) -> None:
        """Read everything once; raises UserError where a number is not finite or a label out of range."""
        for block in range(-(-self._iterations // self.length)):
            x, y, _ = self._read(block)
            if not (hdf5.finite(x) and hdf5.finite(y)):
                first = block * self.length + 1
                raise UserError(
                    f"{self._name}: /stream has values that are not finite in iteration {first} or soon after"
                )
            if self._classes and (y.min() < 0 or y.max() >= self._classes):
                raise UserError(f"{self._name}: /stream/y has labels outside 0 to {self._classes - 1}")

    def location(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """u (b, A, 2) and d (b, A)."""
        x, y, _ = self._read(block)
        return x, y.astype(np.float64)

    def batches(self, block: int) -> Samples:
        """Batches of a classifier."""
        x, y, active = self._read(block)
        if active is None:
            active = np.ones(x.shape[:2], bool)
        return Samples(x, y.astype(np.int64), active)

    def _read(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        rows = slice(block * self.length, (block + 1) * self.length)
        with hdf5.opened(self._name) as file:
            x, y = (file[f"stream/{part}"][rows, self._own] for part in "xy")
            active = file["stream/active"][rows, self._own].astype(bool) if "stream/active" in file else None
        return _cast(x, self._classes), y, active


def _block(agents: int, shape: tuple[int, ...]) -> int:
    """Iterations of a stream whose x has this shape that are read at a time."""
    return block_length(agents, math.prod(shape[2:]) + 1, words=2**20)


def _checked_shape(file: h5py.File, name: str) -> tuple[int, int]:
    """(T, n) of a stream whose parts fit together."""
    model = hdf5.text(file.attrs.get("model"))
    if model not in MODELS:
        raise UserError(f"{name}: attribute model is {model!r}, expected one of {', '.join(MODELS)}")
    x = hdf5.dataset(file, name, "stream/x")
    y = hdf5.dataset(file, name, "stream/y", "fiu" if model == "location" else "iu")
    initial = hdf5.dataset(file, name, "agent/initial")
    hdf5.dataset(file, name, "graph/edge", "iu", (None, 2))
    if initial.ndim != 2 or x.ndim < 3 or 0 in x.shape or x.shape[1] != initial.shape[0]:
        raise UserError(
            f"{name}: /stream/x {x.shape} and /agent/initial {initial.shape} do not fit (T, n, ...) and (n, P)"
        )
    length, agents = x.shape[:2]
    wanted = x.shape[:2] if model == "location" else x.shape[:3]
    if y.shape != wanted:
        raise UserError(f"{name}: /stream/y is {y.dtype} {y.shape}, expected {wanted}")
    last = {
        "location": x.shape[2:] == (2,),
        "linear-classifier": x.ndim == 4,
        "digit-cnn": x.shape[3:] == (784,),
    }
    if not last[model]:
        raise UserError(f"{name}: /stream/x is {x.shape}, which {model} does not take")
    if model == "location":
        if initial.shape[1] != 2:
            raise UserError(f"{name}: /agent/initial is {initial.shape}, expected ({agents}, 2)")
        hdf5.dataset(file, name, "agent/position", shape=(agents, 2))
    elif (_classes(file) or 0) < 2:
        raise UserError(f"{name}: attribute classes is missing or below 2")
    elif model == "digit-cnn" and _classes(file) != DigitCNN.classes:
        raise UserError(f"{name}: attribute classes is {_classes(file)}, which {model} does not take")
    if "agent/target" in file:
        hdf5.dataset(file, name, "agent/target", shape=(agents, 2))
    if "stream/active" in file:
        hdf5.dataset(file, name, "stream/active", "biu", (length, agents))
    _attackers(file, name, agents)
    return int(length), int(agents)


def _cast(values: np.ndarray, classes: int) -> np.ndarray:
    """In the precision of the model, C-contiguous; what is too large for it becomes inf."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32 if classes else np.float64)


def _classes(file: h5py.File) -> int | None:
    return hdf5.whole_number(file.attrs.get("classes"))


def _attackers(file: h5py.File, name: str, agents: int) -> list[int]:
    """The Byzantine agents."""
    # An empty list is written as floating-point numbers.
    found = hdf5.dataset(file, name, "agent/byzantine", shape=(None,))
    if len(found) > agents:
        raise UserError(f"{name}: /agent/byzantine has {len(found)} entries for {agents} agents")
    ids = found[()]
    if ids.size and (ids.dtype.kind not in "iu" or (ids[1:] <= ids[:-1]).any()):
        raise UserError(f"{name}: /agent/byzantine must hold agents in ascending order")
    return ids.astype(np.int64).tolist()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
