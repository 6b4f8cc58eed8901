"""A result file as a whole: attributes, graph and scales, then rule by rule."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

import h5py
import numpy as np

from mpi_resmtl import config, hdf5
from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import GRAPHS, build_edges
from mpi_resmtl.tasks import TASKS
from mpi_resmtl.verify.rule import RuleOfFile
from mpi_resmtl.verify.run import PHASES, TOLERANCE, Problems, RunOfFile, kept

_VERSIONS = {"mpi_resmtl", "git", "python", "numpy", "torch", "mpi4py", "mpi", "h5py", "hdf5"}
_AT_ONCE = 4 << 20
"""Numbers that are read at a time."""


class _Stop(Exception):
    """What follows cannot be looked at."""


class ResultFile:
    """An open result file; `problems` goes through it from what everything depends on to what nothing does."""

    def __init__(self, file):
        self.h5 = file
        self._numbers = self._datasets = 0
        self._diverged: dict[str, int] = {}

    def summary(self) -> str:
        """What was checked, of a file with which nothing is wrong."""
        run = self.run
        told = f"whole: {run.task}, {len(run.rules)} rules, {run.n} agents ({int(run.byzantine.sum())} Byzantine), "
        told += f"{run.iterations} iterations, {run.ranks} ranks"
        if self._diverged:
            told += "; " + ", ".join(f"{count} agents diverged under {rule}" for rule, count in self._diverged.items())
        return f"{told}; {self._datasets} datasets, {self._numbers:,} numbers checked"

    def problems(self) -> Problems:
        """What is wrong, one line each."""
        with suppress(_Stop):
            yield from self._about()
            yield from _until_wrong(self._graph())
            yield from _until_wrong(self._scales())
            yield from self._rules()

    def _about(self) -> Problems:
        """Attributes; sets `run`."""

        attributes = self.h5.attrs
        told = {name: hdf5.text(attributes.get(name)) for name in ("config", "created", "versions", "data", "rules")}
        told |= {name: hdf5.text(attributes.get(name)) for name in ("data_sha256", "data_note", "run", "stages")}
        missing = [name for name, value in told.items() if value is None]
        if missing:
            yield from (f"attribute {name} is not there or no text" for name in missing)
            raise _Stop
        seed, ranks = (hdf5.whole_number(attributes.get(name)) for name in ("seed", "ranks"))
        try:
            experiment = config.recorded(told["config"], "attribute config")
        except UserError as error:
            yield f"attribute config: {error}"
            raise _Stop from None
        if seed != experiment.seed:
            yield f"attribute seed is {seed}, attribute config says {experiment.seed}"
        rules = _json(told["rules"])
        if rules != experiment.rules:
            yield f"attribute rules is {rules}, attribute config says {experiment.rules}"
        versions = _json(told["versions"])
        if not isinstance(versions, dict) or versions.keys() < _VERSIONS:
            yield f"attribute versions does not say all of {', '.join(sorted(_VERSIONS))}"
        if told["data"] not in ("generated", "recorded", "real", "stand-in"):
            yield f"attribute data is {told['data']!r}"
        if not re.fullmatch(r"(|[0-9a-f]{64}( [0-9a-f]{64})*)", told["data_sha256"]):
            yield "attribute data_sha256 is no SHA-256"
        try:
            datetime.fromisoformat(told["created"])
        except ValueError:
            yield f"attribute created is {told['created']!r}, expected a time"
        stages = _stages(_json(told["stages"]), experiment.rules)
        if ranks is None or ranks < 1 or stages is None or ranks != max(stage["ranks"] for stage in stages):
            yield f"attributes ranks = {ranks} and stages = {told['stages']} do not fit together"
            raise _Stop
        lost = _lost(_json(hdf5.text(self.h5.attrs.get("lost", "[]")) or ""), ranks)
        if lost is None:
            yield f"attribute lost is {self.h5.attrs['lost']!r}"
            raise _Stop
        self.run = RunOfFile(experiment, ranks, stages, lost, "lost" in self.h5.attrs)

    def _graph(self) -> Problems:
        """/graph against the configuration; fills in what `run` has of it."""
        run, experiment = self.run, self.run.experiment
        shapes = {"edge": ("i", (None, 2)), "byzantine": ("b", (None,)), "group": ("i", (None,))}
        wrong = [
            problem for name, (kind, shape) in shapes.items() for problem in self._shape(f"graph/{name}", kind, shape)
        ]
        if wrong:
            yield from wrong
            raise _Stop
        run.edge, run.byzantine, run.group = (self.read(f"graph/{name}") for name in shapes)
        n = run.n = len(run.byzantine)
        if n == 0 or len(run.group) != n:
            yield f"/graph/group has {len(run.group)} agents, /graph/byzantine {n}"
            raise _Stop
        source, target = run.edge.T.astype(np.int64)
        outside = np.flatnonzero((run.edge < 0).any(axis=1) | (run.edge >= n).any(axis=1))
        if len(outside):
            place = outside[0]
            yield f"/graph/edge {place} is {source[place]} -> {target[place]}; agents are 0 to {n - 1}"
            raise _Stop
        late = np.flatnonzero(np.diff(target * n + source) <= 0)
        if len(late):
            yield f"/graph/edge {late[0] + 1} is not behind the one before it in the order of target, then source"
            raise _Stop
        lonely = np.setdiff1d(np.arange(n), target[source == target])
        if len(lonely):
            yield f"/graph/edge has no edge from agent {lonely[0]} to itself"
            raise _Stop
        run.look_at_edges()
        if run.byzantine.all():
            yield "/graph/byzantine: all agents are Byzantine"
            raise _Stop
        who = experiment.byzantine
        if who.agents is not None and sorted(who.agents) != np.flatnonzero(run.byzantine).tolist():
            yield f"/graph/byzantine is not byzantine.agents = {who.agents}"
        elif who.agents is None and who.count != run.byzantine.sum():
            yield f"/graph/byzantine has {run.byzantine.sum()} attackers, byzantine.count = {who.count}"
        if (run.group < 0).any():
            yield f"/graph/group of agent {np.argmax(run.group < 0)} is {run.group.min()}"
        yield from self._places()
        yield from self._topology()

    def _places(self) -> Problems:
        """/graph/position and /graph/target where they are; sets `run.target`."""
        run = self.run
        for name in ("position", "target"):
            if f"graph/{name}" not in self.h5:
                if run.task in ("target-localization", "linear-regression"):
                    yield f"has no /graph/{name}"
                continue
            wrong = list(self._shape(f"graph/{name}", "f", (run.n, None)))
            if not wrong:
                values = self.read(f"graph/{name}")
                bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
                wrong = [f"/graph/{name} of agent {bad[0]} is not finite"] if len(bad) else []
                setattr(run, name, values)
            yield from wrong
        if run.target is not None and run.task in ("target-localization", "recorded"):
            first = np.unique(run.group, return_index=True)[1]
            known = np.searchsorted(run.group[first], run.group)
            apart = np.flatnonzero((run.target != run.target[first][known]).any(axis=1))
            if len(apart):
                yield f"/graph/target of agent {apart[0]} is not that of its group {run.group[apart[0]]}"
            _, one, number = np.unique(run.target, axis=0, return_index=True, return_inverse=True)
            mixed = np.flatnonzero(run.group != run.group[one][number.reshape(-1)])
            corners = getattr(run.experiment.task, "targets", [])
            if len(mixed) and len(np.unique(corners, axis=0)) == len(corners):
                yield f"/graph/target of agent {mixed[0]} is that of another group than its own, {run.group[mixed[0]]}"

    def _topology(self) -> Problems:
        """The edges against the kind of graph, as far as they do not depend on chance."""

        run, experiment = self.run, self.run.experiment
        kind, parameters = experiment.topology, experiment.graph
        if kind in ("complete", "star", "ring", "torus"):
            try:
                expected = build_edges(kind, parameters, run.n, None, experiment.seed)
            except UserError as error:
                yield f"attribute config: {error}"
                return
            if not np.array_equal(expected, run.edge):
                yield f"/graph/edge is not the graph {kind!r} of {run.n} agents"
            return
        if not GRAPHS[kind].directed and kind != "recorded":
            back = np.isin(run.edge[:, 0].astype(np.int64) * run.n + run.edge[:, 1], run.keys)
            if not back.all():
                source, target = run.edge[np.argmin(back)]
                yield f"/graph/edge has {source} -> {target}, but not back, which a graph {kind!r} has"
        if kind.startswith("geometric"):
            if run.size.max() > parameters.neighbours:
                k = np.argmax(run.size)
                yield f"/graph/edge: agent {k} hears {run.size[k]} messages, graph.neighbours = {parameters.neighbours}"
            if run.position is not None and run.position.shape == (run.n, 2):
                apart = run.position[run.edge[:, 0]] - run.position[run.edge[:, 1]]
                far = np.hypot(*apart.T) > parameters.radius * (1 + TOLERANCE)
                if far.any():
                    source, target = run.edge[np.argmax(far)]
                    yield f"/graph/edge {source} -> {target} is longer than graph.radius = {parameters.radius}"

    def _scales(self) -> Problems:
        """The dimension scales; fills in what `run` has of them."""
        run, record = self.run, self.run.experiment.record
        for name in ("iteration", "parameter"):
            wrong = list(self._shape(name, "i", (None,)))
            if wrong or not len(self.h5[name]):
                yield from wrong or [f"/{name} is empty"]
                raise _Stop
        run.iterations, run.parameters = int(self.h5["iteration"][-1]), len(self.h5["parameter"])
        epochs = run.experiment.epochs
        length = run.experiment.iterations if epochs is None else None
        if run.iterations < 1 or (length is not None and run.iterations != length):
            yield f"/iteration ends with {run.iterations}, iterations = {length}"
            raise _Stop
        if epochs is not None and run.iterations % epochs:
            yield f"/iteration ends with {run.iterations}, which is not epochs = {epochs} times anything"
            raise _Stop
        longest = -(-run.iterations // record.every)
        if longest != len(self.h5["iteration"]):
            yield f"/iteration has {len(self.h5['iteration'])} entries, expected {longest}"
            raise _Stop
        expected: dict[str, Any] = {
            "iteration": kept(run.iterations, record.every),
            "weight_iteration": kept(run.iterations, record.weights),
            "part_iteration": kept(run.iterations, record.weights or max(record.every, 10)),
            "model_iteration": kept(run.iterations, record.models),
            "epoch": np.arange(1, (epochs or 0) + 1),
            "agent": np.arange(run.n),
            "edge": np.arange(len(run.edge)),
            "rank": np.arange(run.ranks),
            "parameter": np.arange(run.parameters),
            "phase": np.array(PHASES, "S"),
            "endpoint": np.array(("source", "target"), "S"),
            "coordinate": np.array(("x", "y"), "S"),
            "quantity": np.array(("messages", "bytes"), "S"),
        }
        run.scales = {name: values for name, values in expected.items() if len(values)}
        for name, values in run.scales.items():
            wrong = list(self._shape(name, values.dtype.kind, values.shape))
            yield from wrong
            if wrong:
                continue
            if not self.h5[name].is_scale:
                yield f"/{name} is no dimension scale"
            found = self.read(name)
            differ = np.flatnonzero(found != values)
            if len(differ):
                place = differ[0]
                yield f"/{name} {place} is {_word(found[place])}, expected {_word(values[place])}"
        along = "coordinate" if run.target is not None and run.target.shape[1] == 2 else "parameter"
        dimensions = {"edge": ("edge", "endpoint"), "byzantine": ("agent",), "group": ("agent",)}
        dimensions |= {"position": ("agent", "coordinate"), "target": ("agent", along)}
        for name, dims in dimensions.items():
            if f"graph/{name}" in self.h5:
                yield from self.dataset(f"graph/{name}", dims, self.h5[f"graph/{name}"].dtype.kind)
        yield from self._size()

    def _size(self) -> Problems:
        """Agents, parameters and precision against the study; sets `run.itemsize` and `run.work`."""

        run = self.run
        run.itemsize = None
        if run.task != "recorded":
            # A recorded stream says in its file, which need not be here, how large it is.
            size = TASKS[run.task].size(run.experiment.task)
            if (size.agents, size.parameters) != (run.n, run.parameters):
                found = f"{run.n} agents with models of {run.parameters} parameters"
                yield f"the file has {found}, its configuration {size.agents} with {size.parameters}"
                raise _Stop
            run.itemsize, run.work = size.itemsize, size.work(run.edge, run.byzantine)
        if max(stage["ranks"] for stage in run.stages) > run.n:
            yield f"attribute stages has more ranks than the {run.n} agents"
            raise _Stop

    def _rules(self) -> Problems:
        run = self.run
        group = self.h5.get("rule")
        names = sorted(group) if hasattr(group, "keys") else []
        if names != sorted(run.rules):
            yield f"/rule has {names}, attribute rules says {sorted(run.rules)}"
            raise _Stop
        run.has_target = run.target is not None and run.target.shape == (run.n, run.parameters)
        alone = None
        for number, name in enumerate(run.order):
            if not hasattr(group[name], "keys"):
                yield f"/rule/{name} is no group"
                continue
            check = RuleOfFile(self, name, number, alone)
            yield from check.problems()
            if run.use(name).rule.name == "none" and check.mean is not None:
                alone = check.mean
            if check.diverged is not None and check.diverged.any():
                self._diverged[name] = int(check.diverged.sum())

    def _shape(self, path: str, kind: str, shape: tuple) -> Problems:
        """Whether the dataset at `path` is there, with a dtype of that kind and a shape; None: any length."""

        found = self.h5.get(path)
        if not isinstance(found, h5py.Dataset):
            yield f"has no /{path}"
            return
        fits = found.shape is not None and len(found.shape) == len(shape)
        if not fits or any(w not in (None, f) for w, f in zip(shape, found.shape, strict=True)):
            yield f"/{path} has the shape {found.shape}, expected {hdf5.shown(shape)}"
        elif found.dtype.kind != kind:
            yield f"/{path} is {found.dtype}, expected {_KINDS[kind]}"

    def dataset(self, path: str, dims: tuple[str, ...], kind: str, itemsize: int | None = None) -> Problems:
        """As `_shape`, with the shape that the dimensions say, and the dimensions themselves."""
        scales = self.run.scales
        if any(dim not in scales for dim in dims):
            yield f"/{path} is there, though nothing is recorded along {', '.join(d for d in dims if d not in scales)}"
            return
        wrong = list(self._shape(path, kind, tuple(len(scales[dim]) for dim in dims)))
        yield from wrong
        if wrong:
            return
        found = self.h5[path]
        self._datasets += 1
        if itemsize is not None and found.dtype.itemsize != itemsize:
            yield f"/{path} is {found.dtype}, expected {8 * itemsize} bits a number"
        attached = _attached(found)
        if attached != tuple([dim] for dim in dims):
            yield f"/{path} has the dimensions {attached or 'of scales that are gone'}, expected {dims}"

    def read(self, path: str, some: slice | tuple = ()) -> np.ndarray:
        values = self.h5[path][some]
        self._numbers += values.size
        return values

    def blocks(self, path: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The dataset at `path` some rows at a time."""
        found = self.h5[path]
        rows = max(1, _AT_ONCE // max(1, math.prod(found.shape[1:])))
        for first in range(0, len(found), rows):
            some = slice(first, min(first + rows, len(found)))
            yield some, self.read(path, some)


def _until_wrong(problems: Problems) -> Problems:
    """All of them; where there is one, nothing can be looked at that depends on what they are about."""
    wrong = False
    for problem in problems:
        wrong = True
        yield problem
    if wrong:
        raise _Stop


def _attached(found: h5py.Dataset) -> tuple[list[str], ...] | None:
    """Names of the scales of each dimension of a dataset; None where it has one that is not there any more."""
    try:
        return tuple([scale.name.removeprefix("/") for scale in dim.values()] for dim in found.dims)
    except (RuntimeError, AttributeError):
        return None


def _lost(found: Any, ranks: int) -> list[dict] | None:
    """The ranks that have died, as attribute `lost` tells of them; None where it does not."""
    try:
        numbers = [(one["rank"], one["first"], one["stop"]) for one in found]
        right = all(isinstance(number, int) for three in numbers for number in three)
        right = right and all(0 < rank < ranks and 0 <= first <= stop for rank, first, stop in numbers)
    except (KeyError, TypeError):
        return None
    return found if right else None


def _stages(told: Any, rules: list[str]) -> list[dict] | None:
    """Where a run started and was resumed, if that makes sense."""
    if not isinstance(told, list) or not told:
        return None
    for stage in told:
        if not isinstance(stage, dict) or stage.keys() != {"rule", "iteration", "ranks"}:
            return None
        numbers = (stage["iteration"], stage["ranks"])
        if stage["rule"] not in rules or not all(type(number) is int for number in numbers):
            return None
        if stage["iteration"] < 0 or stage["ranks"] < 1:
            return None
    return told


def _json(text: str) -> Any:
    """What a text says in JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


_KINDS = {"f": "floating-point numbers", "i": "integers", "b": "true or false", "S": "texts"}


def _word(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
