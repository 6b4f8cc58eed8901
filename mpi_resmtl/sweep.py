"""Sweeps: one experiment for each combination of the values that keys hold lists of.

A sweep is the TOML of an experiment in which any key that normally holds one value may hold a list of them. Keys that
hold lists by nature (`rules`, `byzantine.agents`, ...) stay as they are, so that all rules of a cell run on the same
streams, into one result file. `[attacks.NAME]` holds the parameters of an attack that `byzantine.attack` names, and
`[graphs.NAME]` those of a graph that `graph.kind` names; NAME may stand for another attack with `is`, for another
graph with `kind`. Where nobody is Byzantine attacks make no difference: such a cell runs once, its attack is "none".

The ranks are split into groups that work on cells side by side. A group takes a cell by creating a file that must not
exist yet, in the output folder, which all ranks share anyway. A counter in an MPI window would have to wait for its
owner: Open MPI's window over point-to-point lets a `Fetch_and_op` spin until the owner, busy with a cell, calls MPI.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import io
import json
import math
import os
import re
import shutil
import tomllib
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import product
from pathlib import Path
from time import monotonic, sleep
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from mpi_resmtl import memory
from mpi_resmtl.attacks import ATTACKS
from mpi_resmtl.config import TOP, Byzantine, Experiment, Use, read, resolve
from mpi_resmtl.errors import UserError, unknown
from mpi_resmtl.graph import GRAPHS
from mpi_resmtl.launch import Refused, on_ranks, on_root, refuse
from mpi_resmtl.registry import Registry
from mpi_resmtl.rules import RULES
from mpi_resmtl.tasks import TASKS

if TYPE_CHECKING:
    from mpi4py import MPI

NO_ATTACK = "none"
"""The attack of a cell in which nobody is Byzantine."""
INDEX, SWEEP = "index.csv", "sweep.toml"
_COLUMNS = ("seed", "byzantine.count", "byzantine.attack")
"""What the index says of every cell, swept or not."""
_SETTLED = ("rule.b",)
"""Keys that a run works out from its graph where they are not given."""
_MOST_CELLS = 100_000
_SECONDS_BETWEEN_LOOKS = 0.05

Tables = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep."""

    name: str
    """Stem of its result file."""
    values: dict[str, Any]
    """Its seed, number of attackers and attack, and the values of all other swept keys; "" where one has no effect."""
    tables: Tables
    """What `config.resolve` makes the experiment from."""
    config: str
    """The whole resolved TOML."""

    @property
    def file(self) -> str:
        """Name of its result file."""
        return f"{self.name}.h5"


@dataclass(frozen=True)
class Sweep:
    """A resolved sweep."""

    source: str
    cells: list[Cell]
    toml: str
    """The sweep itself, every default filled in; reading it again gives the same cells."""


def load(source: str, settings: list[str]) -> Sweep:
    """The sweep of a preset's name or a TOML file, with `key=value` settings; raises UserError."""
    written, tables = read(source, []), read(source, settings)
    for table, named in (("attacks", _attacks), ("graphs", _kinds)):
        # A setting may take a name out of its list; what the file has for it is then of no use, and no mistake.
        unused = named(written).keys() - named(tables).keys()
        if table in tables:
            tables[table] = {label: own for label, own in tables[table].items() if label not in unused}
    return expand(tables, source)


def single(source: str, settings: list[str]) -> Experiment:
    """The one experiment of a preset's name or a TOML file; raises UserError where it is a sweep."""
    tables = read(source, settings)
    if is_sweep(tables):
        raise UserError(f"{source} is a sweep; run it with: mpi-resmtl sweep {source} --output DIR")
    return resolve(tables, source)


def shown(source: str, settings: list[str]) -> str:
    """The whole resolved TOML of an experiment or a sweep."""
    tables = read(source, settings)
    return expand(tables, source).toml if is_sweep(tables) else resolve(tables, source).toml()


def is_sweep(tables: Tables) -> bool:
    """Whether tables that are written well are those of a sweep."""
    try:
        return "attacks" in tables or "graphs" in tables or bool(_swept(tables, ""))
    except UserError:
        return False


def expand(tables: Tables, source: str) -> Sweep:
    """All cells of a sweep, each resolved, so that a mistake in any shows at once; raises UserError."""
    swept = _swept(tables, source)
    if not swept:
        raise UserError(f"{source}: no key holds a list of values; run it with: mpi-resmtl run {source}")
    _check(tables, swept)
    count = math.prod(len(values) for values in swept.values())
    if count > _MOST_CELLS:
        raise UserError(f"{source}: {count} cells are more than the {_MOST_CELLS} that a sweep may have")
    names, cells = _names(swept), {}
    for chosen in product(*swept.values()):
        values = dict(zip(swept, chosen, strict=True))
        own = _tables(tables, values)
        who = own.get("byzantine", {})
        if _honest(who):
            idle = [key for key in values if key.startswith("byzantine.") and key != "byzantine.count"]
            values |= dict.fromkeys(idle, "") | {"byzantine.attack": NO_ATTACK}
        else:
            values["byzantine.attack"] = _label(tables, values)
        values["byzantine.count"] = len(who["agents"]) if "agents" in who else who.get("count", 0)
        try:
            experiment = resolve(own, source)
        except UserError as error:
            raise UserError(f"cell {_name(values, names)}: {error}") from None
        values["seed"] = experiment.seed
        values["byzantine.attack"] = values["byzantine.attack"] or experiment.byzantine.attack
        name = _name(values, names)
        ordered = {key: values[key] for key in dict.fromkeys([*_COLUMNS, *swept])}
        cell = Cell(name, ordered, own, experiment.toml())
        other = cells.setdefault(name, cell)
        if other.values != cell.values:
            raise UserError(f"cells {other.values} and {cell.values} would have the same file {cell.file}")
    return Sweep(source, list(cells.values()), _resolved(tables, swept, list(cells.values())))


def _swept(tables: Tables, source: str) -> dict[str, list]:
    """The keys that hold lists without being made for them, in their order; raises UserError where that is wrong."""
    known = _known(tables, source)
    swept = {}
    for key, value in _flat({k: v for k, v in tables.items() if k not in ("attacks", "graphs")}).items():
        if not isinstance(value, list):
            continue
        if key not in known:
            raise unknown("key", key, known)
        if key == "task.name":
            raise UserError(f"task.name = {value}: a sweep has one task")
        if not known[key]:
            swept[key] = value
    for key, value in swept.items():
        if not value:
            raise UserError(f"{key} = []: an empty list leaves nothing to run")
        if any(isinstance(item, dict | list) for item in value):
            raise UserError(f"{key} = {value}: expected a list of plain values")
        twice = [item for place, item in enumerate(value) if item in value[:place]]
        if twice:
            raise UserError(f"{key} = {value} has {twice[0]!r} twice")
    return swept


def _known(tables: Tables, source: str) -> dict[str, bool]:
    """Every key that the sweep's experiments may have, and whether it holds a list by nature."""
    task = _section(tables, "task").get("name")
    if isinstance(task, list):
        raise UserError(f"task.name = {task}: a sweep has one task")
    if not isinstance(task, str):
        raise UserError(f"{source}: task.name is missing")
    known = {key: listed for key, listed in _keys(Experiment).items() if key in TOP}
    for table, kind in get_type_hints(Experiment).items():
        if is_dataclass(kind):
            known |= _keys(kind, f"{table}.")
    known |= _keys(TASKS[task].Parameters, "task.")
    known |= {"graph.kind": False}
    for kind in _kinds(tables).values() or [name for name, _ in GRAPHS.items()]:
        known |= _either(known, _keys(_part(GRAPHS, kind, tables.get("graphs", {})), "graph."))
    for attack in _attacks(tables).values():
        known |= _either(known, _keys(_part(ATTACKS, attack, tables.get("attacks", {})), "byzantine."))
    for name, table in _section(tables, "rule").items():
        if isinstance(table, dict):
            used = table.get("uses", name)
            if isinstance(used, str):
                known |= _keys(Use, f"rule.{name}.") | _keys(RULES[used].parameters, f"rule.{name}.")
    return known


def _part(registry: Registry, name: Any, aliases: Tables) -> type:
    """The parameters of a registered attack or graph."""
    registered = dict(registry.items())
    if name not in registered:
        raise unknown(registry.kind, str(name), [*registered, *aliases])
    return registered[name].parameters


def _keys(kind: type, prefix: str = "") -> dict[str, bool]:
    """The fields of a dataclass, and whether each may hold a list."""
    hints = get_type_hints(kind)
    return {prefix + field.name: _lists(hints[field.name]) for field in fields(kind) if hints[field.name] is not Any}


def _lists(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_lists(one) for one in get_args(hint))
    return (get_origin(hint) or hint) in (list, tuple)


def _either(known: dict[str, bool], more: dict[str, bool]) -> dict[str, bool]:
    return {key: listed or known.get(key, False) for key, listed in more.items()}


def _named(tables: Tables, table: str, alias: str, value: Any) -> dict[str, str]:
    """What each name in a key's value stands for: itself, or what `alias` says in the table `table.NAME`."""
    own = tables.get(table, {})
    if not isinstance(own, dict) or not all(isinstance(each, dict) for each in own.values()):
        raise UserError(f"{table}: expected tables [{table}.NAME]")
    labels = value if isinstance(value, list) else [] if value is None else [value]
    return {label: own.get(label, {}).get(alias, label) for label in labels if isinstance(label, str)}


def _attacks(tables: Tables) -> dict[str, str]:
    """The attack behind each name in `byzantine.attack`."""
    return _named(tables, "attacks", "is", _section(tables, "byzantine").get("attack"))


def _kinds(tables: Tables) -> dict[str, str]:
    """The kind of graph behind each name in `graph.kind`."""
    return _named(tables, "graphs", "kind", _section(tables, "graph").get("kind"))


def _section(tables: Tables, name: str) -> Tables:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f"{name} is a table, not {table!r}")
    return table


def _check(tables: Tables, swept: dict[str, list]) -> None:
    """Raise UserError where parts of a sweep contradict one another."""
    who = tables.get("byzantine", {})
    if "byzantine.count" in swept and "agents" in who:
        raise UserError(
            f"byzantine.count = {who['count']} together with byzantine.agents = {who['agents']}: "
            f"either how many attack is swept or who does is fixed"
        )
    if "byzantine.attack" in swept and _honest(who):
        raise UserError(f"byzantine.attack = {who['attack']}: nobody is Byzantine; set byzantine.count")
    for table, alias, key, registry, named in (
        ("attacks", "is", "byzantine.attack", ATTACKS, _attacks(tables)),
        ("graphs", "kind", "graph.kind", GRAPHS, _kinds(tables)),
    ):
        registered = [name for name, _ in registry.items()]
        for label, own in tables.get(table, {}).items():
            if label not in named:
                value = tables.get(key.partition(".")[0], {}).get(key.partition(".")[2])
                listed = "is not given" if value is None else f"= {value} does not name it"
                raise UserError(f"[{table}.{label}]: {key} {listed}")
            part = own.get(alias, label)
            if part != label and label in (*registered, NO_ATTACK):
                raise UserError(f"[{table}.{label}] {alias} = {part!r}: {label} means something already; rename it")
            known = _keys(registry[part].parameters)
            for name, value in own.items():
                if isinstance(value, list) and not known.get(name, False):
                    hint = f"[{table}.{label}-1], [{table}.{label}-2] with {alias} = {part!r}, and name them in {key}"
                    raise UserError(f"{table}.{label}.{name} = {value}: one value a table; write {hint}")


def _honest(byzantine: Tables) -> bool:
    """Whether nobody is Byzantine."""
    who = byzantine.get("agents", byzantine.get("count", 0))
    return who in (0, [])


def _label(tables: Tables, values: dict[str, Any]) -> str | None:
    """The attack of a cell by its name in the sweep; None where the sweep gives none."""
    return values.get("byzantine.attack", tables.get("byzantine", {}).get("attack"))


def _tables(tables: Tables, values: dict[str, Any]) -> Tables:
    """The ordinary tables of a cell."""
    own = deepcopy({key: value for key, value in tables.items() if key not in ("attacks", "graphs")})
    for key, value in values.items():
        _put(own, key, value)
    if "byzantine" in own:
        byzantine = own["byzantine"]
        if _honest(byzantine):
            own["byzantine"] = {key: byzantine[key] for key in ("count", "agents") if key in byzantine}
        elif "attack" in byzantine:
            label = byzantine["attack"]
            particular = tables.get("attacks", {}).get(label, {}) if isinstance(label, str) else {}
            own["byzantine"] = byzantine | {"attack": particular.get("is", label)}
            own["byzantine"] |= {key: value for key, value in particular.items() if key != "is"}
    kind = own.get("graph", {}).get("kind")
    if isinstance(kind, str):
        own["graph"] |= tables.get("graphs", {}).get(kind, {})
    return own


def _names(swept: dict[str, list]) -> dict[str, str]:
    """How each swept key is written in the names of cells, in the order in which they stand there."""
    last = [key.rpartition(".")[2] for key in swept]
    others = sorted(key for key in swept if key not in (*_COLUMNS, "graph.kind"))
    names = {key: "" for key in ("byzantine.attack", "byzantine.count") if swept.keys() & {*_COLUMNS[1:]}}
    names |= {"graph.kind": ""} if "graph.kind" in swept else {}
    names |= {key: key if last.count(key.rpartition(".")[2]) > 1 else key.rpartition(".")[2] for key in others}
    return names | ({"seed": "seed"} if "seed" in swept else {})


def _name(values: dict[str, Any], names: dict[str, str]) -> str:
    """A cell's name, such as uniform-20-seed3."""
    parts = []
    for key, word in names.items():
        value = values[key]
        if value is None or value == "":
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        parts.append(f"{word}{'' if number or not word else '-'}{text}")
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(parts)) or "all"


def _resolved(tables: Tables, swept: dict[str, list], cells: list[Cell]) -> str:
    """The sweep as TOML, with every value that all cells have in common and does not follow from what is swept."""
    import tomli_w

    flat = [_flat(tomllib.loads(cell.config)) for cell in cells]
    attacked = [(c, f) for c, f in zip(cells, flat, strict=True) if c.values["byzantine.attack"] != NO_ATTACK]
    who = {f"byzantine.{field.name}" for field in fields(Byzantine)} - {"byzantine.attack"}

    common = {key: value for key, value in _common(flat).items() if not key.startswith("byzantine.")}
    fought = _common([f for _, f in attacked] or flat)
    common |= {key: value for key, value in fought.items() if key in who}
    parts: Tables = {}
    for label in dict.fromkeys(cell.values["byzantine.attack"] for cell, _ in attacked):
        own = _common([f for cell, f in attacked if cell.values["byzantine.attack"] == label])
        attack = own.pop("byzantine.attack")
        parts |= {f"attacks.{label}.is": attack} if attack != label else {}
        loose = {key for key in own if key.startswith("byzantine.")} - who - swept.keys()
        parts |= {f"attacks.{label}.{key.removeprefix('byzantine.')}": own[key] for key in sorted(loose)}
    if attacked:
        labels = list(dict.fromkeys(cell.values["byzantine.attack"] for cell, _ in attacked))
        common["byzantine.attack"] = swept.get("byzantine.attack", labels[0])
    if "graph.kind" in swept:
        common = {key: value for key, value in common.items() if not key.startswith("graph.")}
        for label in swept["graph.kind"]:
            own = _common([f for cell, f in zip(cells, flat, strict=True) if cell.values["graph.kind"] == label])
            loose = {key for key in own if key.startswith("graph.")} - swept.keys()
            if own["graph.kind"] == label:
                loose -= {"graph.kind"}
            parts |= {f"graphs.{label}.{key.removeprefix('graph.')}": own[key] for key in sorted(loose)}
    made: Tables = {}
    for key, value in (common | swept | parts).items():
        _put(made, key, value)
    return tomli_w.dumps(made)


def _common(flat: list[dict[str, Any]]) -> dict[str, Any]:
    """What all of some flat tables have, with the same value."""
    first, *others = flat
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def _flat(tables: Tables, prefix: str = "") -> dict[str, Any]:
    """Tables as one dict with dotted keys."""
    found = {}
    for key, value in tables.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _put(tables: Tables, key: str, value: Any) -> None:
    """Set a dotted key."""
    *path, last = key.split(".")
    for part in path:
        tables = tables.setdefault(part, {})
    tables[last] = value


def _differences(there: str, asked: str) -> str:
    """How two resolved TOMLs differ, in words; empty where they do not."""
    one, two = _flat(tomllib.loads(there)), _flat(tomllib.loads(asked))
    for key in _SETTLED:
        if key not in two:
            one.pop(key, None)
    keys = [key for key in sorted(one.keys() | two.keys()) if key not in one or key not in two or one[key] != two[key]]
    words = [f"{key} {_is(one, key)} there, {_is(two, key)} asked for" for key in keys]
    more = f"; and {len(words) - 3} more" if len(words) > 3 else ""
    return "; ".join(words[:3]) + more


def _is(flat: dict[str, Any], key: str) -> str:
    return f"= {flat[key]!r}" if key in flat else "is not"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    state: str
    """done; refused: a user's error; failed: an error that ended the job."""
    seconds: float
    message: str = ""


@dataclass
class Board:
    """The output folder as a place where the groups of a sweep take cells and say what became of them.

    Claims and outcomes are files of their own, each made by one group; the index is written anew from them.
    """

    folder: Path
    sweep: Sweep
    found: dict[str, Outcome]
    """Outcomes by cell; at first those of cells that were finished before."""

    def claim(self) -> Cell | None:
        """Take the next cell that nobody has taken; None when there is none left."""
        for cell in self.sweep.cells:
            if cell.name not in self.found:
                try:
                    os.close(os.open(self._claims / cell.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                except FileExistsError:
                    continue
                return cell
        return None

    def record(self, cell: Cell, outcome: Outcome) -> None:
        """Say what became of a cell, and write the index."""
        _replace(self._claims / f"{cell.name}.outcome", json.dumps(asdict(outcome)))
        self.write_index()

    def write_index(self) -> None:
        """Write the index; when groups do so at once, the last one written has all outcomes."""
        outcomes = None
        while outcomes != (latest := self._outcomes()):
            outcomes = latest
            _replace(self.folder / INDEX, self._index(outcomes))

    def open(self) -> None:
        """Forget the claims of a sweep that was stopped; before any is made."""
        shutil.rmtree(self._claims, ignore_errors=True)
        self._claims.mkdir()
        _replace(self.folder / SWEEP, self.sweep.toml)
        self.write_index()

    def close(self, outcomes: dict[str, Outcome]) -> None:
        """Write the last index, after all groups have ended and told these outcomes."""
        self.found |= outcomes
        self.write_index()
        shutil.rmtree(self._claims)

    @property
    def _claims(self) -> Path:
        return self.folder / ".running"

    def _outcomes(self) -> dict[str, Outcome]:
        for path in self._claims.glob("*.outcome"):
            if path.stem not in self.found:
                self.found[path.stem] = Outcome(**json.loads(path.read_text()))
        return dict(self.found)

    def _index(self, outcomes: dict[str, Outcome]) -> str:
        claimed = {path.name for path in self._claims.iterdir()}
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([*self.sweep.cells[0].values, "file", "state", "seconds", "message"])
        for cell in self.sweep.cells:
            waiting = Outcome("running" if cell.name in claimed else "waiting", 0.0)
            outcome = outcomes.get(cell.name, waiting)
            seconds = f"{outcome.seconds:.2f}" if outcome is not waiting else ""
            rows.writerow([*cell.values.values(), cell.file, outcome.state, seconds, outcome.message])
        return text.getvalue()


def _replace(path: Path, text: str) -> None:
    """Write a whole file at once."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _prepare(sweep: Sweep, folder: Path, overwrite: bool) -> tuple[Board, io.TextIOWrapper]:
    """Make the folder, or see what is in it, and lock it; called by rank 0. Raises UserError before a file changes."""
    if not folder.parent.is_dir():
        raise UserError(f"--output {folder}: the folder {folder.parent} does not exist")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: is a file, not a folder")
    try:
        folder.mkdir(exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115  (held until the sweep ends)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--output {folder}: another sweep is running there") from None
    except OSError:
        # A file system without locks: nothing guards against a second sweep.
        pass
    if (folder / SWEEP).exists() and not overwrite:
        try:
            differ = _differences((folder / SWEEP).read_text(), sweep.toml)
        except tomllib.TOMLDecodeError as error:
            differ = f"its {SWEEP} is not TOML: {error}"
        if differ:
            raise UserError(
                f"--output {folder}: holds another sweep: {differ}; --overwrite takes it over, keeping what fits"
            )
    seconds = _earlier_seconds(folder / INDEX)
    there = [cell for cell in sweep.cells if _is_there(folder / cell.file, cell, overwrite)]
    board = Board(folder, sweep, {cell.name: Outcome("done", seconds.get(cell.file, 0.0)) for cell in there})
    board.open()
    return board, lock


def _is_there(path: Path, cell: Cell, overwrite: bool) -> bool:
    """Whether a cell's result file is there and has its configuration."""
    import h5py

    if not path.exists():
        return False
    try:
        with h5py.File(path) as file:
            differ = _differences(file.attrs["config"], cell.config)
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        differ = "it is not a result file"
    if differ and not overwrite:
        raise UserError(f"{path}: is there already, of another run: {differ}; --overwrite replaces it")
    return not differ


def _earlier_seconds(path: Path) -> dict[str, float]:
    """Seconds by file in an index that was written earlier."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    number = re.compile(r"\d+\.\d+")
    return {row["file"]: float(row["seconds"]) for row in rows if number.fullmatch(row.get("seconds") or "")}


def run(comm: MPI.Comm, load: Any, folder: Path, groups: int | None, overwrite: bool) -> None:
    """Run every cell of the sweep that `load()` gives and that has no result file yet; collective.

    `groups` None: as many as there are ranks, or cells left. Raises Refused on every rank when a cell was refused.
    """

    def prepare() -> tuple[Board, io.TextIOWrapper]:
        if groups is not None and not 1 <= groups <= comm.size:
            raise UserError(f"--groups {groups}: expected 1 to the number of ranks, {comm.size}")
        return _prepare(load(), folder, overwrite)

    board, lock = on_root(comm, prepare) or (None, None)
    board = comm.bcast(board)
    left = len(board.sweep.cells) - len(board.found)
    number = groups or max(1, min(comm.size, left))
    if comm.rank == 0:
        there = f", {len(board.found)} of them there already" if board.found else ""
        side = f" in {number} groups of ranks" if number > 1 and left else ""
        print(f"{board.sweep.source}: {len(board.sweep.cells)} cells{there}{side}", flush=True)
    memory.settle(comm)
    group = comm.Split(comm.rank * number // comm.size, comm.rank)
    outcomes = _work(group, board)
    group.Free()
    _wait(comm)
    told = comm.gather(outcomes)
    refused = 0
    if comm.rank == 0:
        board.close(dict(item for each in told for item in each.items()))
        lock.close()
        refused = sum(outcome.state == "refused" for outcome in board.found.values())
        print(f"{board.sweep.source}: wrote {folder / INDEX}", flush=True)
    refused = comm.bcast(refused)
    message = f"{refused} of {len(board.sweep.cells)} cells were refused; {folder / INDEX} says why"
    on_root(comm, lambda: refuse(message if refused else None))


def _work(group: MPI.Comm, board: Board) -> dict[str, Outcome]:
    """Run one cell after the other on the ranks of a group, until none is left; what became of them."""
    from mpi_resmtl import run as engine

    began, before, outcomes = monotonic(), len(board.found), {}
    while (cell := group.bcast(board.claim() if group.rank == 0 else None)) is not None:
        started = monotonic()
        try:
            path = board.folder / cell.file
            engine.run(group, lambda: resolve(cell.tables, board.sweep.source), path, overwrite=True, quiet=True)
            outcome = Outcome("done", monotonic() - started)
        except Refused as refused:
            outcome = Outcome("refused", monotonic() - started, str(refused))
        except Exception as error:
            board.record(cell, Outcome("failed", monotonic() - started, f"{type(error).__name__}: {error}"))
            raise
        outcomes[cell.name] = outcome
        if group.rank == 0:
            board.record(cell, outcome)
            print(_line(cell, outcome, board, before, monotonic() - began), flush=True)
    return outcomes


def _line(cell: Cell, outcome: Outcome, board: Board, before: int, elapsed: float) -> str:
    """What the console says of a cell; `before`: cells that were there `elapsed` seconds ago."""
    done, cells = len(board.found), len(board.sweep.cells)
    left = elapsed / (done - before) * (cells - done)
    what = f"refused: {outcome.message}" if outcome.message else f"{outcome.state} in {outcome.seconds:.1f} s"
    what += " on stand-in data" if outcome.state == "done" and _stands_in(board.folder / cell.file) else ""
    return f"{cell.name}: {what}; {done} of {cells} cells" + (f", about {_duration(left)} left" if done < cells else "")


def _stands_in(path: Path) -> bool:
    import h5py

    with h5py.File(path) as file:
        return file.attrs["data"] == "stand-in"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _wait(comm: MPI.Comm) -> None:
    """A barrier at which a rank sleeps, where MPI's own would keep its core busy until the last cell ends."""
    request = comm.Ibarrier()
    while not request.Test():
        sleep(_SECONDS_BETWEEN_LOOKS)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `sweep` to the command line."""
    sweep = commands.add_parser("sweep", help="run every combination of the values that a TOML file lists")
    sweep.add_argument("sweep", metavar="PRESET|FILE.toml")
    sweep.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of result files and index.csv")
    sweep.add_argument("--groups", type=int, metavar="G", help="groups of ranks side by side (default: one a rank)")
    sweep.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as seed=0,1,2")
    sweep.add_argument("--overwrite", action="store_true", help="replace what is in DIR of another sweep or run")
    sweep.add_argument("--data-dir", metavar="DIR", help="where real data lie (default: $MPI_RESMTL_DATA)")
    sweep.set_defaults(command=_sweep)


def _sweep(asked: argparse.Namespace) -> int:
    if asked.data_dir is not None:
        asked.set.append(f"task.data_dir={json.dumps(asked.data_dir)}")
    return on_ranks(
        lambda comm: run(comm, lambda: load(asked.sweep, asked.set), asked.output, asked.groups, asked.overwrite)
    )
