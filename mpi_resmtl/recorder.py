"""The result file: one run, any number of rules; schema mpi-resmtl/1.

Rank 0 lays out the whole file under a temporary name. Then all ranks open it through parallel HDF5 and each writes its
own columns, independently; where h5py has no MPI, rank 0 gathers the columns as raw buffers and writes them. The file
gets its name when it is whole. All of its space is allotted before the first iteration, so that afterwards nothing but
values change in it: however a run ends, the file can be read, with NaN where nothing was recorded yet.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import mpi4py
import numpy as np
from mpi4py import MPI

import mpi_resmtl
from mpi_resmtl import hdf5, loops, survival
from mpi_resmtl.combining import Combiner, ServerCombiner
from mpi_resmtl.errors import FileError, UserError
from mpi_resmtl.exchange import Exchange, PartialExchange
from mpi_resmtl.graph import Graph
from mpi_resmtl.judging import Moment
from mpi_resmtl.partition import Partition
from mpi_resmtl.progress import silent
from mpi_resmtl.stopwatch import PHASES, Stopwatch
from mpi_resmtl.storage import reason, sync, writing
from mpi_resmtl.streams import recorded_block
from mpi_resmtl.tasks import Task
from mpi_resmtl.tasks.blocks import later

SCHEMA = "mpi-resmtl/1"
LIBVER = "v108"
"""Oldest HDF5 that can read the files. Later versions mark a file as open for writing, and a kill leaves the mark."""
_PART_MEASURES = {
    "byzantine_weight": "part that messages of Byzantine neighbours had in the combined model",
    "true_positives": "share of Byzantine neighbours whose message had no part in the combined model",
    "false_positives": "share of normal neighbours of the same true group whose message had no part in it",
}
_OF_EDGES = ("weight", "share", "accumulated")
_OVER_THE_RUN = {
    "regret": "mean over the run of true risk, or streaming loss where that is unknown, above that of rule none",
    "descent": "share of iterations whose true risk after combination is at most that before (eq. 5)",
}
_MEASURES = {
    "loss": "streaming loss of the combined model on the agent's sample",
    "fresh_loss": "loss of the combined model on a sample that nobody trained on",
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
    measures_every: int
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
    """Ranks that have columns: the most that the run, stopped and resumed, has had."""
    deadline: bool = False
    """Whether messages can be late, and are counted."""

    @property
    def block(self) -> int:
        """Iterations written at a time, and in a chunk; a multiple of every task's own block."""
        return recorded_block(self.agents)

    @property
    def parts_every(self) -> int:
        """Iterations between records of what part messages have."""
        return self.weights_every or max(self.measures_every, 10)

    def kept(self, every: int) -> np.ndarray:
        """Iterations (from 1) recorded when one in `every` is, the last always; none when `every` is 0."""
        if every == 0:
            return np.empty(0, np.int64)
        kept = np.arange(every, self.iterations + 1, every)
        return kept if kept.size and kept[-1] == self.iterations else np.append(kept, self.iterations)

    def done(self, dimension: str, iteration: int) -> int:
        """Entries along a dimension of the file that are recorded when a rule has done some iterations.

        0 along those that are not of time: what they have is recorded at the end.
        """
        every = {
            "iteration": self.measures_every,
            "weight_iteration": self.weights_every,
            "part_iteration": self.parts_every,
            "model_iteration": self.models_every,
        }
        if dimension == "epoch":
            return iteration // self.epoch
        return int(np.searchsorted(self.kept(every.get(dimension, 0)), iteration, side="right"))


@dataclass(frozen=True)
class About:
    """What the file says of the run in its attributes."""

    config: str
    """The whole resolved TOML."""
    seed: int
    data: str
    """"generated", "recorded", "real" or "stand-in"."""
    data_sha256: str
    data_note: str
    run: str
    """Tells this run from all others, however often it is resumed."""
    stages: list[dict]
    """Where the run started and where it was resumed on another number of ranks: `rule`, `iteration` done before,
    `ranks`."""


@dataclass(frozen=True)
class Held:
    """What is recorded of one rule besides its measures."""

    accumulated: bool
    """Whether something is held against messages."""
    shares: bool
    """Whether it reports shares of a selection rather than weights."""


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
        "loops": loops.IN_USE,
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


def create(path: Path, layout: Layout, graph: Graph, rules: dict[str, Held], about: About) -> None:
    """Lay out the whole file at `path`, every dataset at its full size; called by rank 0.

    Raises UserError where there is no room for it.
    """
    with writing(path), h5py.File(path, "w", libver=LIBVER) as file:
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
                "data_note": about.data_note,
                "rules": json.dumps(list(rules)),
                "run": about.run,
                "stages": json.dumps(about.stages),
            }
        )
        for name, values in _scales(layout).items():
            file.create_dataset(name, data=values).make_scale(name)
        for name, (dims, what, values) in _graph_datasets(graph).items():
            _described(file, file.create_dataset(f"graph/{name}", data=values), dims, what)
        for rule, held in rules.items():
            for name, cut in _rule_datasets(layout, held).items():
                fill = np.nan if cut.dtype.kind == "f" else None
                made = file.create_dataset(
                    f"rule/{rule}/{name}", cut.shape, cut.dtype, chunks=cut.chunks, fillvalue=fill
                )
                _described(file, made, cut.dims, cut.what)


def _described(file: h5py.File, made: h5py.Dataset, dims: tuple[str, ...], what: str) -> None:
    made.attrs["long_name"] = what
    for axis, dim in enumerate(dims):
        made.dims[axis].attach_scale(file[dim])


def _scales(layout: Layout) -> dict[str, np.ndarray]:
    """The values along each dimension; one along which nothing is recorded is left out."""
    scales = {
        "iteration": layout.kept(layout.measures_every),
        "weight_iteration": layout.kept(layout.weights_every),
        "part_iteration": layout.kept(layout.parts_every),
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
    return {name: values for name, values in scales.items() if len(values)}


def _graph_datasets(graph: Graph) -> dict[str, tuple[tuple[str, ...], str, np.ndarray]]:
    """What there is of the graph: dimensions, what it is, values."""
    found = {
        "edge": (("edge", "endpoint"), "source and target of each edge", graph.edge),
        "byzantine": (("agent",), "whether the agent is Byzantine", graph.byzantine),
        "group": (("agent",), "task group of the agent", graph.group),
    }
    if graph.position is not None:
        found["position"] = (("agent", "coordinate"), "position of the agent", graph.position)
    if graph.target is not None:
        along = "coordinate" if graph.target.shape[1] == 2 else "parameter"
        found["target"] = (("agent", along), "true model of the agent", graph.target)
    return found


@dataclass(frozen=True)
class _Cut:
    """A dataset of a rule and how it is cut."""

    dims: tuple[str, ...]
    what: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    dtype: np.dtype


def _rule_datasets(layout: Layout, held: Held) -> dict[str, _Cut]:
    """All that is recorded of a rule, by name."""
    lengths = {name: len(values) for name, values in _scales(layout).items()}
    found: dict[str, _Cut] = {}

    def dataset(name: str, dims: tuple[str, ...], what: str, chunks=None, dtype="f8") -> None:
        shape = tuple(lengths[dim] for dim in dims)
        if chunks is not None:
            chunks = tuple(max(1, min(c, s)) for c, s in zip(chunks, shape, strict=True))
        found[name] = _Cut(dims, what, shape, chunks, np.dtype(dtype))

    per_rank = -(-layout.agents // layout.ranks)
    edges_per_rank = -(-layout.edges // layout.ranks)
    measure_rows = max(1, layout.block // layout.measures_every)
    weight_rows = max(1, layout.block // max(1, layout.weights_every))
    part_rows = max(1, layout.block // layout.parts_every)
    for name in layout.measures:
        dataset(name, ("iteration", "agent"), _MEASURES.get(name, name), (measure_rows, per_rank))
    for name, what in _PART_MEASURES.items():
        dataset(name, ("part_iteration", "agent"), what, (part_rows, per_rank))
    if layout.deadline:
        what = (
            "messages that did not come in time since the last recorded iteration; its own: when an agent stood still"
        )
        dataset("missing", ("part_iteration", "edge"), what, (part_rows, edges_per_rank))
    for name, what in _OVER_THE_RUN.items():
        dataset(name, ("agent",), what, (per_rank,))
    for name in layout.epoch_measures:
        dataset(name, ("epoch", "agent"), _MEASURES[name], (layout.block, per_rank))
    if layout.weights_every:
        chunks = (weight_rows, edges_per_rank)
        dataset("weight", ("weight_iteration", "edge"), "combination weight a_lk", chunks)
        if held.shares:
            dataset("share", ("weight_iteration", "edge"), "share of the message in the selection", chunks)
        if held.accumulated:
            what = "moving average of what is held against the message"
            dataset("accumulated", ("weight_iteration", "edge"), what, chunks)
        what = "seconds since the last recorded iteration"
        dataset("seconds", ("weight_iteration", "rank", "phase"), what, (weight_rows, 1, len(PHASES)))
    if layout.models_every:
        chunks = (1, per_rank, layout.parameters)
        dims = ("model_iteration", "agent", "parameter")
        dataset("model", dims, "model after combination", chunks, layout.dtype)
    chunks = (per_rank, layout.parameters)
    dataset("model_final", ("agent", "parameter"), "last model", chunks, layout.dtype)
    dataset("traffic", ("rank", "quantity"), "messages and bytes sent over the run", dtype="i8")
    return found


def check(path: Path, layout: Layout, graph: Graph, rules: dict[str, Held]) -> None:
    """Raise UserError unless an unfinished file is laid out as `create` does it; called by rank 0.

    Ranks write straight into what they find there.
    """
    with hdf5.opened(path) as file:
        known = _scales(layout) | {f"graph/{name}": values for name, (_, _, values) in _graph_datasets(graph).items()}
        for name, values in known.items():
            found = file.get(name)
            if not (isinstance(found, h5py.Dataset) and np.array_equal(found[()], values)):
                raise UserError(f"{path}: /{name} is not that of this run")
        for rule, held in rules.items():
            for name, cut in _rule_datasets(layout, held).items():
                found = file.get(f"rule/{rule}/{name}")
                if not isinstance(found, h5py.Dataset):
                    raise UserError(f"{path}: has no /rule/{rule}/{name}")
                as_laid_out = (found.shape, found.chunks, found.dtype) == (cut.shape, cut.chunks, cut.dtype)
                if not as_laid_out or found.id.get_create_plist().get_nfilters():
                    raise UserError(f"{path}: /rule/{rule}/{name} is not laid out as in this run")


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    rule: int
    """The number of rules that are done."""
    iteration: int
    """Iterations of the next rule that are done."""


def fill(
    path: Path, layout: Layout, rules: list[str], earlier: Path | None = None, until: Position | None = None
) -> None:
    """Write every value that rules have, so that the file `create` laid out takes all its space; called by rank 0.

    `rules` in the order in which they run. Values are those of an `earlier` file of the same run, on however many
    ranks, as far as its rules had come, and NaN or 0 from there on. Parallel HDF5 does as much for a new file when it
    is opened. Raises UserError.
    """
    with writing(path), ExitStack() as stack:
        file = stack.enter_context(h5py.File(path, "r+", libver=LIBVER))
        source = None if earlier is None else stack.enter_context(h5py.File(earlier, "r"))
        for number, rule in enumerate(rules):
            for name, values in file["rule"][rule].items():
                before, known = None, 0
                if source is not None and number <= until.rule:
                    before, along = source["rule"][rule][name], values.dims[0][0].name.removeprefix("/")
                    known = len(before) if number < until.rule else layout.done(along, until.iteration)
                _fill(values, before, known)


def stages(path: Path, run: str) -> list[dict]:
    """The stages that the unfinished file of a run is laid out for; raises UserError where it is not of that run."""
    try:
        hdf5.examine(path)
        with hdf5.opened(path) as file:
            found, told = hdf5.text(file.attrs.get("run")), json.loads(hdf5.text(file.attrs.get("stages")) or "")
            if not told or not all(0 < stage["ranks"] <= len(file["agent"]) for stage in told):
                raise ValueError("it does not say on how many ranks it was written")
    except (UserError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: what was recorded cannot be read: {str(error).splitlines()[0]}") from None
    if found != run:
        raise UserError(f"{path}: is of another run than its checkpoint")
    return told


def _fill(target: h5py.Dataset, source: h5py.Dataset | None, known: int) -> None:
    """Write all of a dataset: the first rows of a source, as many columns as both have, and else the fill value."""
    size = target.chunks[0] if target.chunks else max(1, len(target))
    for first in range(0, len(target), size):
        stop = min(first + size, len(target))
        values = np.full((stop - first, *target.shape[1:]), target.fillvalue, target.dtype)
        if source is not None and first < known:
            # A rank too many in the source has sent and timed nothing that is kept.
            columns = tuple(slice(min(a, b)) for a, b in zip(source.shape[1:], target.shape[1:], strict=True))
            some = source[(slice(first, min(stop, known)), *columns)]
            values[tuple(slice(length) for length in some.shape)] = some
        target[first:stop] = values


class _Series:
    """Values of some iterations, buffered until their block is written."""

    def __init__(self, layout: Layout, every: int, widths: dict[str, int]):
        """One row of `widths[name]` numbers for each name and each iteration that `every` keeps."""
        kept = layout.kept(every)
        ends = np.minimum(np.arange(layout.block, layout.iterations + layout.block, layout.block), layout.iterations)
        rows = int(np.diff(np.searchsorted(kept, ends, side="right"), prepend=0).max(initial=0))
        self._every, self._last, self._kept = every, layout.iterations, kept
        self._buffer = {name: np.empty((rows, width)) for name, width in widths.items()}
        self.begin()

    def begin(self, done: int = 0) -> None:
        """Start anew, all NaN, after some iterations, of which all that is kept is written."""
        self._written = self._filled = int(np.searchsorted(self._kept, done, side="right"))
        for buffer in self._buffer.values():
            buffer.fill(np.nan)

    def due(self, done: int) -> bool:
        """Whether iteration `done` (from 1) is kept."""
        return self._every > 0 and (done % self._every == 0 or done == self._last)

    def places(self, first: int, count: int) -> np.ndarray:
        """Which of the iterations first + 1 to first + count are kept, as places from 0."""
        done = np.arange(first + 1, first + count + 1)
        return np.flatnonzero((done % self._every == 0) | (done == self._last))

    def put_row(self, values: dict[str, np.ndarray]) -> None:
        """Append a row; what has no values stays NaN."""
        place = self._filled - self._written
        for name, found in values.items():
            self._buffer[name][place] = found
        self._filled += 1

    def put(self, rows: int, values: dict[str, np.ndarray]) -> None:
        """Append `rows` rows."""
        at = slice(self._filled - self._written, self._filled - self._written + rows)
        for name, found in values.items():
            self._buffer[name][at] = found
        self._filled += rows

    def take(self) -> tuple[slice, dict[str, np.ndarray]]:
        """The rows of the dataset that are to be written now, and what is in them."""
        rows = slice(self._written, self._filled)
        self._written = self._filled
        return rows, {name: buffer[: rows.stop - rows.start] for name, buffer in self._buffer.items()}


class Recorder:
    """Keeps what a rule finds and writes it a block of iterations at a time. All calls are collective."""

    def __init__(
        self,
        comm: MPI.Comm,
        path: Path,
        layout: Layout,
        partition: Partition,
        graph: Graph,
        missed: np.ndarray | None = None,
        survives: bool = False,
    ):
        """Open the file that `create` laid out at `path`; of `graph` its edges are not looked at.

        `missed` (H,) is where the exchange counts rows that were late; None: none can be. `survives`: ranks but 0 may
        die; h5py has no MPI then.
        """
        self._comm, self._layout, self._partition = comm.Dup(), layout, partition
        self.parallel = self._parallel = h5py.get_config().mpi
        self._file, self._path = None, path
        if self._parallel:
            self._file = h5py.File(path, "r+", driver="mpio", comm=self._comm, libver=LIBVER)
        elif comm.rank == 0:
            self._file = h5py.File(path, "r+", libver=LIBVER)
        self._datasets: dict[str, h5py.Dataset] = {}
        if self._file is not None:
            # Opened by all ranks, a dataset takes its space; nothing but values may change once there is a checkpoint.
            for group in self._file["rule"].values():
                self._datasets |= {values.name.removeprefix("/"): values for values in group.values()}
            self._file.flush()
        own = slice(partition.first, partition.first + partition.count)
        last = comm.rank == comm.size - 1
        ranks = slice(comm.rank, layout.ranks if last else comm.rank + 1)
        self._columns = {"agent": own, "edge": partition.edges, "rank": ranks}
        self._absent = np.zeros((ranks.stop - ranks.start - 1, 2), np.int64)
        self._all_columns = None if self._parallel else comm.allgather(self._columns)
        self._survives, self._lost = survives, {}
        self._silent, self._speaks = (np.flatnonzero(who) for who in (graph.byzantine[own], ~graph.byzantine[own]))
        agents = partition.count
        self._measures = _Series(layout, layout.measures_every, dict.fromkeys(layout.measures, agents))
        self._weights = _Series(layout, layout.weights_every, dict.fromkeys(_OF_EDGES, len(partition.source)))
        self._seconds = _Series(layout, layout.weights_every, {"seconds": len(PHASES)})
        self._parts = _Series(layout, layout.parts_every, dict.fromkeys(_PART_MEASURES, agents))
        self._missing = _Series(
            layout, layout.parts_every if missed is not None else 0, {"missing": len(partition.row)}
        )
        self._missed, self._late = missed, 0
        self._models_at = set(layout.kept(layout.models_every).tolist())
        self._neighbours = _Neighbours(partition, graph)
        self._alone: np.ndarray | None = None

    def begin(
        self,
        rule: str,
        alone: bool,
        held: Held,
        task: Task,
        clock: Stopwatch,
        tell: Callable[[dict[str, float]], None] = silent,
    ) -> None:
        """Start recording a rule; `alone` says that it is the one of no cooperation, to which others are compared.

        `tell` is called now and then with means over the rank's normal agents.
        """
        self._tell = tell
        self._rule, self._task, self._clock, self._held, self._is_alone = f"rule/{rule}/", task, clock, held, alone
        kept = (task.length, self._partition.count, task.parameters)
        self._theta = np.empty(kept, task.dtype)
        self._psi = np.empty(kept, task.dtype) if task.keeps_intermediates else None
        self._to_measure = self._last = None
        self._measured = self._block_start = self._next_model = 0
        self._total = np.zeros(self._partition.count)
        self._descents = np.zeros(self._partition.count, np.int64)
        self._known = self._missed_now()
        for series in (self._measures, self._weights, self._seconds, self._parts, self._missing):
            series.begin()

    def wants_parts(self, iteration: int) -> bool:
        """Whether what part messages have in the result of an iteration (from 0) will be recorded."""
        return self._parts.due(iteration + 1)

    def keep(self, moment: Moment, combiner: Combiner | ServerCombiner) -> None:
        """Keep an iteration's models, what part messages had in them and what is held against them."""
        iteration, theta = moment.iteration, moment.theta
        place, done = iteration % self._task.length, iteration + 1
        self._theta[place] = theta
        if self._psi is not None:
            self._psi[place] = moment.psi
        due = self._parts.due(done)
        parts = self._neighbours.measure(combiner.part) if due else {}
        self._clock.lap("measure")
        if due:
            self._parts.put_row(parts)
            if self._missed is not None:
                self._keep_missing()
            if self._layout.weights_every:
                self._keep_weights(combiner)
        if self._layout.epoch and done % self._layout.epoch == 0:
            self._clock.lap("record")
            self._clock.doing = "measure"
            self._write_epoch(done // self._layout.epoch - 1, theta)
        if done in self._models_at:
            self._write("model", slice(self._next_model, self._next_model + 1), "agent", self._silenced(theta)[None])
            self._next_model += 1
        self._last = moment
        if place + 1 == self._task.length or done == self._layout.iterations:
            self._to_measure = moment
        self._clock.lap("record")

    def write(self) -> None:
        """Measure the last block of models and write what is complete; call it while messages are on their way."""
        if self._to_measure is None:
            return
        moment, self._to_measure = self._to_measure, None
        self._measure(moment)
        done = self._measured
        if done - self._block_start == self._layout.block or done == self._layout.iterations:
            self._write_block()
            self._block_start = done
        self._clock.lap("record")

    def _measure(self, moment: Moment) -> None:
        """Measure the models of the moment's block that have not been, up to that moment's."""
        first, done = self._measured, moment.iteration + 1
        start, count = first % self._task.length, done - first
        samples, fresh = later(moment.samples, start), later(moment.fresh, start)
        theta = self._theta[start : start + count]
        psi = None if self._psi is None else self._psi[start : start + count]
        found = self._task.measure(samples, psi, theta)
        if fresh is not None:
            found["fresh_loss"] = self._task.losses(fresh, theta)
        # One after the other: where a checkpoint cuts a block in two must not change how the sum is rounded.
        self._total = _added(self._total, found["risk_after" if "risk_after" in found else "loss"])
        if "risk_after" in found:
            self._descents += (found["risk_after"] <= found["risk_before"]).sum(axis=0)
        self._tell_mean({"loss": found["loss"][-1]})
        self._clock.lap("measure")
        places = self._measures.places(first, count)
        every = len(places) == count
        self._measures.put(len(places), {n: v if every else v[places] for n, v in found.items()})
        self._measured = done

    def settle(self, exchange: Exchange | PartialExchange) -> dict[str, dict[str, np.ndarray]]:
        """Write all that is known by now, for a checkpoint; -> by axis what else `resume` needs."""
        if self._last is not None and self._measured <= self._last.iteration:
            self._to_measure = None
            self._measure(self._last)
        self._write_block()
        self._block_start = self._measured - self._measured % self._layout.block
        self._flush()
        self._clock.lap("record")
        by_agent = {"total": self._total, "descents": self._descents}
        if self._alone is not None:
            by_agent["alone"] = self._alone
        seconds = np.array([list(self._clock.seconds.values())])
        by_rank = {"traffic": self._traffic(exchange), "seconds": self._with_absent(seconds)}
        by_edge = {} if self._missed is None else {"missing": self._missed_now() - self._known}
        return {"agent": by_agent, "edge": by_edge, "rank": by_rank}

    def resume(self, done: int, kept: dict[str, dict[str, np.ndarray]], exchange: Exchange | PartialExchange) -> None:
        """Go on after some iterations of the rule that has begun, with what `settle` gave, along "rank" all of it."""
        by_agent, rank = kept["agent"], self._comm.rank
        self._total, self._descents, self._alone = by_agent["total"], by_agent["descents"], by_agent.get("alone")
        self._measured, self._block_start = done, done - done % self._layout.block
        self._next_model = self._layout.done("model_iteration", done)
        for series in (self._measures, self._weights, self._seconds, self._parts, self._missing):
            series.begin(done)
        if self._missed is not None:
            self._known = self._missed_now() - kept["edge"]["missing"]
        traffic, seconds = kept["rank"]["traffic"], kept["rank"]["seconds"]
        if rank < len(traffic):
            exchange.messages, exchange.bytes = traffic[rank].tolist()
            self._clock.seconds.update(zip(PHASES, np.nan_to_num(seconds[rank]).tolist(), strict=True))
        if rank == self._comm.size - 1:
            self._absent[: max(0, len(traffic) - rank - 1)] = traffic[rank + 1 :]

    def _traffic(self, exchange: Exchange | PartialExchange) -> np.ndarray:
        """Messages and bytes sent of the rule by this rank and, on the last, by those that are there no more."""
        return np.concatenate([np.array([[exchange.messages, exchange.bytes]], np.int64), self._absent])

    def _with_absent(self, values: np.ndarray) -> np.ndarray:
        """Values of this rank (..., 1, phases) and, on the last, NaN for those that are there no more."""
        if not len(self._absent):
            return values
        shape = (*values.shape[:-2], len(self._absent), values.shape[-1])
        return np.concatenate([values, np.full(shape, np.nan)], axis=-2)

    def end(self, theta: np.ndarray, exchange: Exchange | PartialExchange) -> None:
        """Write all that is left of the rule, its last models (A, P) and its traffic."""
        self.write()
        self._write("model_final", slice(None), "agent", self._silenced(theta))
        self._write("traffic", slice(None), "rank", self._traffic(exchange))
        exchange.messages = exchange.bytes = 0
        self._absent[:] = 0
        mean = self._silenced(self._total / self._layout.iterations)
        if self._is_alone:
            self._alone = mean
        regret = np.full_like(mean, np.nan) if self._alone is None else mean - self._alone
        self._write("regret", slice(None), "agent", self._silenced(regret))
        known = "risk_after" in self._layout.measures
        descent = self._descents / self._layout.iterations if known else np.full_like(mean, np.nan)
        self._write("descent", slice(None), "agent", self._silenced(descent))

    def close(self) -> int:
        """Close the file; -> messages that were late, of all ranks, on rank 0 alone; collective."""
        late = np.array([self._late])
        if self._survives:
            late = np.array(self._gathered(late, [(1,)] * self._comm.size))
            if self._file is not None:
                self._file.attrs["lost"] = json.dumps(list(self._lost.values()))
                self._file.close()
            return int(late.sum())
        if self._file is not None:
            self._file.close()
        self._comm.Reduce(late.copy(), late)
        self._comm.Free()
        return int(late[0])

    def _keep_weights(self, combiner: Combiner | ServerCombiner) -> None:
        values = {"share" if self._held.shares else "weight": combiner.part}
        if self._held.accumulated:
            values["accumulated"] = combiner.judge.held
        self._weights.put_row(values)
        self._clock.lap("record")
        self._seconds.put_row({"seconds": self._clock.take()})

    def _missed_now(self) -> np.ndarray | None:
        """How many messages were late by now on each edge (E_r,); None where none can be."""
        return None if self._missed is None else self._missed[self._partition.row]

    def _keep_missing(self) -> None:
        now = self._missed_now()
        self._missing.put_row({"missing": now - self._known})
        self._late, self._known = self._late + int((now - self._known).sum()), now

    def _write_epoch(self, epoch: int, theta: np.ndarray) -> None:
        found = self._task.evaluate(theta)
        self._tell_mean({name.replace("_", " "): found[name] for name in ("test_loss", "test_accuracy")})
        self._clock.lap("measure")
        for name, values in found.items():
            self._write(name, slice(epoch, epoch + 1), "agent", self._silenced(values)[None])

    def _flush(self) -> None:
        """Bring what is written to the disk."""
        if self._file is not None:
            self._file.flush()
            if not self._parallel:
                sync(self._path)

    def _write_block(self) -> None:
        for series in (self._measures, self._parts):
            rows, found = series.take()
            for name, block in found.items():
                block[:, self._silent] = np.nan
                self._write_rows(name, rows, "agent", block)
        rows, found = self._weights.take()
        for name, block in found.items():
            if {"weight": True, "share": self._held.shares, "accumulated": self._held.accumulated}[name]:
                self._write_rows(name, rows, "edge", self._spread(block))
        rows, found = self._missing.take()
        self._write_rows("missing", rows, "edge", self._spread(found["missing"]))
        rows, found = self._seconds.take()
        self._write_rows("seconds", rows, "rank", self._with_absent(found["seconds"][:, None]))

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """Values on edges into normal agents (b, E_r) with NaN on those into Byzantine ones: all edges."""
        edges = self._partition.edges
        if edges.stop - edges.start == values.shape[1]:
            return values
        spread = np.full((len(values), edges.stop - edges.start), np.nan)
        spread[:, self._partition.kept] = values
        return spread

    def _write_rows(self, name: str, rows: slice, columns: str, values: np.ndarray) -> None:
        if rows.stop > rows.start:
            self._write(name, rows, columns, values)

    def _write(self, name: str, rows: slice, columns: str, values: np.ndarray) -> None:
        """Write this rank's columns of some rows; datasets indexed by column alone take all rows."""
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
            try:
                self._datasets[self._rule + name][where] = values
            except OSError as error:
                raise FileError(f"{self._path}: cannot be written: {reason(error)}") from None

    def _gather(self, columns: str, values: np.ndarray, leading: bool) -> list[np.ndarray]:
        """Every rank's values on rank 0, as raw buffers."""
        values = np.ascontiguousarray(values)
        widths = [c[columns].stop - c[columns].start for c in self._all_columns]
        axis = 1 if leading else 0
        shapes = [(*values.shape[:axis], w, *values.shape[axis + 1 :]) for w in widths]
        if self._survives:
            return self._gathered(values, shapes)
        if self._comm.rank:
            self._comm.Gatherv(values, None)
            return []
        counts = [int(np.prod(shape)) for shape in shapes]
        received = np.empty(sum(counts), values.dtype)
        self._comm.Gatherv(values, (received, counts))
        return [part.reshape(s) for part, s in zip(np.split(received, np.cumsum(counts)[:-1]), shapes, strict=True)]

    def _gathered(self, values: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        """As `_gather`, rank by rank; of one that has died NaN, or 0."""
        if self._comm.rank:
            try:
                self._comm.Ssend(values, dest=0)
            except MPI.Exception as error:
                survival.has_died(error)
                raise survival.WriterDied(f"rank 0, which writes {self._path}, has died") from None
            return []
        found = [values]
        for rank, shape in enumerate(shapes[1:], start=1):
            theirs = np.empty(shape, values.dtype)
            try:
                if rank not in self._lost:
                    self._comm.Recv(theirs, source=rank)
            except MPI.Exception as error:
                survival.has_died(error)
                self._lose(rank)
            if rank in self._lost:
                theirs.fill(np.nan if theirs.dtype.kind == "f" else 0)
            found.append(theirs)
        return found

    def _lose(self, rank: int) -> None:
        """A rank has died."""
        agents, rule = self._all_columns[rank]["agent"], self._rule.split("/")[1]
        told = f"its agents {agents.start} to {agents.stop - 1} are silent from now on"
        print(f"mpi-resmtl: rank {rank} has died in rule {rule}; {told}", file=sys.stderr, flush=True)
        self._lost[rank] = {"rank": rank, "first": agents.start, "stop": agents.stop, "rule": rule}

    def _tell_mean(self, values: dict[str, np.ndarray]) -> None:
        """Tell the means over the rank's normal agents of values (A,)."""
        if self._tell is not silent and len(self._speaks):
            self._tell({name: float(found[self._speaks].mean()) for name, found in values.items()})

    def _silenced(self, values: np.ndarray) -> np.ndarray:
        """Values of the rank's agents (A, ...) with NaN where the agent is Byzantine."""
        values = values.copy()
        values[self._silent] = np.nan
        return values


def _added(total: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A total (A,) and values (b, A), added one after the other, as numpy's own sum does only where A > 1."""
    values = np.concatenate([total[None], values])
    return values.sum(axis=0) if values.shape[1] > 1 else np.add.accumulate(values, axis=0)[-1]


class _Neighbours:
    """Which of a rank's edges come from whom, to say what part Byzantine and like-minded neighbours have."""

    def __init__(self, partition: Partition, graph: Graph):
        source, target = partition.source, partition.target
        byzantine = np.flatnonzero(graph.byzantine[source])
        friend = ~graph.byzantine[source] & (graph.group[source] == graph.group[target]) & (source != target)
        friend = np.flatnonzero(friend)
        place, agents = target - partition.first, partition.count
        # One sum for all three measures: of weights, and of whether a message has none.
        self._edge = np.concatenate([byzantine, byzantine, friend])
        self._sum = np.concatenate([place[byzantine], place[byzantine] + agents, place[friend] + 2 * agents])
        self._weights = len(byzantine)
        self._number = np.bincount(self._sum, minlength=3 * agents).astype(np.float64)
        self._number[:agents] = 1.0

    def measure(self, part: np.ndarray) -> dict[str, np.ndarray]:
        """Each of _PART_MEASURES (A,), NaN where there is no such neighbour or `part` (E_r,) is NaN."""
        values = part.take(self._edge)
        dropped = values[self._weights :]
        none = dropped == 0.0
        dropped *= 0.0
        dropped += none
        weight, *shares = (np.bincount(self._sum, values, len(self._number)) / self._number).reshape(3, -1)
        if len(part) and math.isnan(part[0]):
            weight[:] = np.nan
        return dict(zip(_PART_MEASURES, (weight, *shares), strict=True))


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
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
