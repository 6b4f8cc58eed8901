"""The result file: one run, any number of rules; schema mpi-resmtl/1.

Rank 0 lays out the whole file under a temporary name. Then all ranks open it through parallel HDF5 and each writes its
own columns, independently; where h5py has no MPI, rank 0 gathers the columns as raw buffers and writes them. The file
gets its name when it is whole.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import mpi4py
import numpy as np
from mpi4py import MPI

import mpi_resmtl
from mpi_resmtl.errors import UserError
from mpi_resmtl.exchange import Exchange
from mpi_resmtl.graph import Graph
from mpi_resmtl.partition import Partition
from mpi_resmtl.stopwatch import PHASES, Stopwatch
from mpi_resmtl.streams import block_length
from mpi_resmtl.tasks import Task

SCHEMA = "mpi-resmtl/1"
_MEASURES = {
    "loss": "streaming loss of the combined model on the agent's sample",
    "msd": "squared distance of the combined model from the true one",
    "risk_before": "true risk of the intermediate, before combination",
    "risk_after": "true risk of the combined model",
    "train_loss": "mean cross-entropy on the agent's training data at the end of the epoch",
    "train_accuracy": "accuracy on the agent's training data at the end of the epoch",
    "test_loss": "mean cross-entropy on the agent's test data at the end of the epoch",
    "test_accuracy": "accuracy on the agent's test data at the end of the epoch",
}


@dataclass(frozen=True)
class Layout:
    """What is recorded of every rule, and how it is cut; the same on every rank."""

    iterations: int
    weights_every: int
    models_every: int
    parameters: int
    dtype: np.dtype
    measures: tuple[str, ...]
    epoch: int
    epoch_measures: tuple[str, ...]
    agents: int
    edges: int
    ranks: int

    @property
    def block(self) -> int:
        """Iterations written at a time, and in a chunk; a multiple of every task's own block."""
        return block_length(self.agents, 1, words=2**20)

    def kept(self, every: int) -> np.ndarray:
        """Iterations (from 1) recorded when one in `every` is, the last always; none when `every` is 0."""
        if every == 0:
            return np.empty(0, np.int64)
        kept = np.arange(every, self.iterations + 1, every)
        return kept if kept.size and kept[-1] == self.iterations else np.append(kept, self.iterations)


@dataclass(frozen=True)
class About:
    """What the file says of the run in its attributes."""

    config: str
    """The whole resolved TOML."""
    seed: int
    data: str
    """"generated", "recorded", "real" or "stand-in"."""
    data_sha256: str


def versions() -> dict[str, str | None]:
    """Versions of all that a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return {
        "mpi_resmtl": mpi_resmtl.__version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch,
        "mpi4py": mpi4py.__version__,
        "mpi": MPI.Get_library_version().split(",")[0].strip("\0\n "),
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
    }


def _git_commit() -> str | None:
    """Commit of the checkout the package runs from, with + when it has changes; None outside one."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10)
        if tracked.returncode:
            return None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.returncode else "") if commit.returncode == 0 else None


def create(path: Path, layout: Layout, graph: Graph, rules: dict[str, bool], about: About) -> None:
    """Lay out the whole file at `path`, every dataset at its full size; called by rank 0.

    `rules` says of each rule whether something is accumulated about messages.
    """
    with h5py.File(path, "w", libver="v110") as file:
        file.attrs.update(
            {
                "schema": SCHEMA,
                "config": about.config,
                "seed": about.seed,
                "ranks": layout.ranks,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": json.dumps(versions()),
                "data": about.data,
                "data_sha256": about.data_sha256,
                "rules": json.dumps(list(rules)),
            }
        )
        scales = {
            "iteration": np.arange(1, layout.iterations + 1),
            "weight_iteration": layout.kept(layout.weights_every),
            "agent": np.arange(layout.agents),
            "edge": np.arange(layout.edges),
            "rank": np.arange(layout.ranks),
            "phase": np.array(PHASES, "S"),
            "parameter": np.arange(layout.parameters),
            "endpoint": np.array(["source", "target"], "S"),
            "coordinate": np.array(["x", "y"], "S"),
            "quantity": np.array(["messages", "bytes"], "S"),
        }
        if layout.epoch:
            scales["epoch"] = np.arange(1, layout.iterations // layout.epoch + 1)
        if layout.models_every:
            scales["model_iteration"] = layout.kept(layout.models_every)
        for name, values in scales.items():
            if len(values) == 0:
                continue
            file.create_dataset(name, data=values).make_scale(name)

        per_rank = -(-layout.agents // layout.ranks)
        edges_per_rank = -(-layout.edges // layout.ranks)
        weight_rows = max(1, layout.block // max(1, layout.weights_every))

        def dataset(name: str, dims: tuple[str, ...], what: str, chunks=None, data=None, dtype="f8"):
            shape = tuple(len(scales[d]) for d in dims)
            if chunks is not None:
                chunks = tuple(max(1, min(c, s)) for c, s in zip(chunks, shape, strict=True))
            fill = np.nan if data is None and np.dtype(dtype).kind == "f" else None
            made = file.create_dataset(
                name,
                data=data,
                **({} if data is not None else dict(shape=shape, dtype=dtype, chunks=chunks)),
                fillvalue=fill,
            )
            made.attrs["long_name"] = what
            for axis, dim in enumerate(dims):
                made.dims[axis].attach_scale(file[dim])

        dataset("graph/edge", ("edge", "endpoint"), "source and target of each edge", data=graph.edge)
        dataset("graph/byzantine", ("agent",), "whether the agent is Byzantine", data=graph.byzantine)
        dataset("graph/group", ("agent",), "task group of the agent", data=graph.group)
        for name in ("position", "target"):
            if getattr(graph, name) is not None:
                dataset(
                    f"graph/{name}",
                    ("agent", "coordinate"),
                    f"{name} of the agent",
                    data=getattr(graph, name),
                )
        for rule, accumulates in rules.items():
            at = f"rule/{rule}/"
            for measure in layout.measures:
                what = _MEASURES.get(measure, measure)
                dataset(at + measure, ("iteration", "agent"), what, (layout.block, per_rank))
            for measure in layout.epoch_measures:
                dataset(at + measure, ("epoch", "agent"), _MEASURES[measure], (layout.block, per_rank))
            if layout.weights_every:
                chunks = (weight_rows, edges_per_rank)
                dataset(at + "weight", ("weight_iteration", "edge"), "combination weight a_lk", chunks)
                if accumulates:
                    what = "moving average of what is held against the message"
                    dataset(at + "accumulated", ("weight_iteration", "edge"), what, chunks)
                what = "seconds since the last recorded iteration"
                dataset(at + "seconds", ("weight_iteration", "rank", "phase"), what, (weight_rows, 1, len(PHASES)))
            if layout.models_every:
                dims = ("model_iteration", "agent", "parameter")
                chunks = (1, per_rank, layout.parameters)
                dataset(at + "model", dims, "model after combination", chunks, dtype=layout.dtype)
            chunks = (per_rank, layout.parameters)
            dataset(at + "model_final", ("agent", "parameter"), "last model", chunks, dtype=layout.dtype)
            dataset(at + "traffic", ("rank", "quantity"), "messages and bytes sent over the run", dtype="i8")


class Recorder:
    """Keeps what a rule finds and writes it a block of iterations at a time. All calls are collective."""

    def __init__(self, comm: MPI.Comm, path: Path, layout: Layout, partition: Partition, byzantine: np.ndarray):
        """Open the file that `create` laid out at `path`; `byzantine` (n,) bool."""
        self._comm, self._layout, self._partition = comm.Dup(), layout, partition
        self.parallel = self._parallel = h5py.get_config().mpi
        self._file = None
        if self._parallel:
            self._file = h5py.File(path, "r+", driver="mpio", comm=self._comm)
        elif comm.rank == 0:
            self._file = h5py.File(path, "r+")
        own = slice(partition.first, partition.first + partition.count)
        self._columns = {"agent": own, "edge": partition.edges, "rank": slice(comm.rank, comm.rank + 1)}
        self._all_columns = None if self._parallel else comm.allgather(self._columns)
        self._silent = np.flatnonzero(byzantine[own])
        edges = partition.edges.stop - partition.edges.start
        self._series = {m: np.full((layout.block, partition.count), np.nan) for m in layout.measures}
        self._weights_at = layout.kept(layout.weights_every)
        self._weights_due = set(self._weights_at.tolist())
        self._models_at = set(layout.kept(layout.models_every).tolist())
        rows = int(
            np.diff(np.searchsorted(self._weights_at, self._block_ends(), side="right"), prepend=0).max(initial=0)
        )
        self._edge_series = {name: np.full((rows, edges), np.nan) for name in ("weight", "accumulated")}
        self._seconds = np.zeros((rows, 1, len(PHASES)))

    def begin(self, rule: str, task: Task, clock: Stopwatch, accumulates: bool) -> None:
        """Start recording a rule."""
        self._rule, self._task, self._clock, self._accumulates = f"rule/{rule}/", task, clock, accumulates
        kept = (task.length, self._partition.count, task.parameters)
        self._theta = np.empty(kept, task.dtype)
        self._psi = np.empty(kept, task.dtype) if task.keeps_intermediates else None
        self._datasets: dict[str, h5py.Dataset] = {}
        self._to_measure = self._samples = None
        self._block_start = self._next_weights = self._weights_start = self._next_model = 0

    def keep(
        self,
        iteration: int,
        samples: object,
        psi: np.ndarray,
        theta: np.ndarray,
        weight: np.ndarray,
        held: np.ndarray,
    ) -> None:
        """Keep the models (A, P), weights and accumulated values (E_r,) of an iteration (from 0)."""
        place = iteration % self._task.length
        self._theta[place] = theta
        if self._psi is not None:
            self._psi[place] = psi
        done = iteration + 1
        last = done == self._layout.iterations
        if done in self._weights_due:
            row = self._next_weights - self._weights_start
            self._edge_series["weight"][row, self._partition.kept] = weight
            if self._accumulates:
                self._edge_series["accumulated"][row, self._partition.kept] = held
            self._clock.lap("record")
            self._seconds[row, 0] = self._clock.take()
            self._next_weights += 1
        if self._layout.epoch and done % self._layout.epoch == 0:
            self._clock.lap("record")
            self._write_epoch(done // self._layout.epoch - 1, theta)
        if done in self._models_at:
            self._write("model", slice(self._next_model, self._next_model + 1), "agent", self._silenced(theta)[None])
            self._next_model += 1
        if place + 1 == self._task.length or last:
            self._to_measure = (iteration - place, place + 1, samples)
        self._clock.lap("record")

    def write(self) -> None:
        """Measure the last block of models and write what is complete; call it while messages are on their way."""
        if self._to_measure is None:
            return
        first, count, samples = self._to_measure
        self._to_measure = None
        psi = None if self._psi is None else self._psi[:count]
        found = self._task.measure(samples, psi, self._theta[:count])
        self._clock.lap("measure")
        start = first - self._block_start
        for name, values in found.items():
            self._series[name][start : start + count] = values
        done = first + count
        if done - self._block_start == self._layout.block or done == self._layout.iterations:
            self._write_block(done)
        self._clock.lap("record")

    def end(self, theta: np.ndarray, exchange: Exchange) -> None:
        """Write all that is left of the rule, its last models (A, P) and its traffic."""
        self.write()
        self._write("model_final", slice(None), "agent", self._silenced(theta))
        sent = self._layout.iterations * np.array([[exchange.messages_a_call, exchange.bytes_a_call]], np.int64)
        self._write("traffic", slice(None), "rank", sent)

    def close(self) -> None:
        """Close the file; it is whole."""
        if self._file is not None:
            self._file.close()
        self._comm.Free()

    def _write_epoch(self, epoch: int, theta: np.ndarray) -> None:
        found = self._task.evaluate(theta)
        self._clock.lap("measure")
        for name, values in found.items():
            values[self._silent] = np.nan
            self._write(name, slice(epoch, epoch + 1), "agent", values[None])

    def _write_block(self, done: int) -> None:
        rows = slice(self._block_start, done)
        for name, series in self._series.items():
            block = series[: done - self._block_start]
            block[:, self._silent] = np.nan
            self._write(name, rows, "agent", block)
        rows = slice(self._weights_start, self._next_weights)
        count = rows.stop - rows.start
        if count:
            self._write("weight", rows, "edge", self._edge_series["weight"][:count])
            if self._accumulates:
                self._write("accumulated", rows, "edge", self._edge_series["accumulated"][:count])
            self._write("seconds", rows, "rank", self._seconds[:count])
        self._block_start, self._weights_start = done, self._next_weights

    def _write(self, name: str, rows: slice, columns: str, values: np.ndarray) -> None:
        """Write this rank's columns of some rows; datasets indexed by column alone take all rows."""
        if self._file is not None and name not in self._datasets:
            self._datasets[name] = self._file[self._rule + name]
        if self._parallel:
            self._put(name, rows, self._columns[columns], values)
            return
        gathered = self._gather(columns, values, leading=rows != slice(None))
        if self._file is not None:
            for theirs, part in zip(self._all_columns, gathered, strict=True):
                self._put(name, rows, theirs[columns], part)

    def _put(self, name: str, rows: slice, columns: slice, values: np.ndarray) -> None:
        where = columns if rows == slice(None) else (rows, columns)
        if columns.stop > columns.start:
            self._datasets[name][where] = values

    def _gather(self, columns: str, values: np.ndarray, leading: bool) -> list[np.ndarray]:
        """Every rank's values on rank 0, as raw buffers."""
        values = np.ascontiguousarray(values)
        if self._comm.rank:
            self._comm.Gatherv(values, None)
            return []
        widths = [c[columns].stop - c[columns].start for c in self._all_columns]
        axis = 1 if leading else 0
        shapes = [(*values.shape[:axis], w, *values.shape[axis + 1 :]) for w in widths]
        counts = [int(np.prod(shape)) for shape in shapes]
        received = np.empty(sum(counts), values.dtype)
        self._comm.Gatherv(values, (received, counts))
        return [part.reshape(s) for part, s in zip(np.split(received, np.cumsum(counts)[:-1]), shapes, strict=True)]

    def _silenced(self, theta: np.ndarray) -> np.ndarray:
        """Models with NaN where the agent is Byzantine."""
        theta = theta.copy()
        theta[self._silent] = np.nan
        return theta

    def _block_ends(self) -> np.ndarray:
        """Iterations (from 1) that end a block."""
        ends = np.arange(self._layout.block, self._layout.iterations + self._layout.block, self._layout.block)
        return np.minimum(ends, self._layout.iterations)


def temporary(path: Path) -> Path:
    """Where the file grows until it is whole."""
    return path.parent / f"{path.name}.part"


def finish(path: Path) -> None:
    """Give the whole file its name; called by rank 0 after every rank has closed it."""
    os.replace(temporary(path), path)


def check_output(path: Path, overwrite: bool) -> None:
    """Raise UserError unless a result can be written at `path`."""
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder, not a file")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path}: exists already; --overwrite replaces it")
    try:
        with open(temporary(path), "wb"):
            pass
        temporary(path).unlink()
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
