"""Sweeps as TOML: one experiment, a cell, for each combination of the values that keys hold lists of.

A sweep is the TOML of an experiment in which any key that normally holds one value may hold a list of them. Keys that
hold lists by nature (`rules`, `byzantine.agents`, ...) stay as they are, so that all rules of a cell run on the same
streams, into one result file. `[attacks.NAME]` holds what `[byzantine]` has besides where `byzantine.attack` names
NAME, and `[graphs.NAME]` likewise for `[graph]` and `graph.kind`; NAME is an attack or a graph, or stands for the
`attack` or `kind` that its table gives. Where nobody is Byzantine attacks make no difference: such a cell runs once,
its attack is "none".
"""

from __future__ import annotations

import math
import re
import tomllib
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import product
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from mpi_resmtl.attacks import ATTACKS
from mpi_resmtl.config import Byzantine, Experiment, read, resolve
from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import GRAPHS
from mpi_resmtl.registry import Registry
from mpi_resmtl.tasks import TASKS

NO_ATTACK = "none"
"""The attack of a cell in which nobody is Byzantine."""
COUNT, ATTACK, KIND, SEED = "byzantine.count", "byzantine.attack", "graph.kind", "seed"
_SETTLED = ("rule.b",)
"""Keys that a run works out from its graph where they are not given."""

_MOST_CELLS = 100_000
_NO_MATTER = ("checkpoint.every", "checkpoint.minutes", "exchange.shared")
"""Keys that change no result."""

Tables = dict[str, Any]


class Labelled(NamedTuple):
    """A table [plural.NAME] that adds to `[section]` where its `name` is NAME."""

    plural: str
    section: str
    name: str
    registry: Registry

    @property
    def key(self) -> str:
        """The key that NAME is a value of."""
        return f"{self.section}.{self.name}"


_LABELLED = (Labelled("attacks", "byzantine", "attack", ATTACKS), Labelled("graphs", "graph", "kind", GRAPHS))


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep."""

    name: str
    """Stem of its result file."""
    values: dict[str, Any]
    """Its seed, number of attackers and attack, and the values of all other swept keys; "" where one has no effect."""
    config: str
    """The whole resolved TOML."""

    @property
    def file(self) -> str:
        """Name of its result file."""
        return f"{self.name}.h5"

    def experiment(self) -> Experiment:
        """What it runs."""
        return resolve(tomllib.loads(self.config), self.name)


@dataclass(frozen=True)
class Sweep:
    """A resolved sweep."""

    source: str
    cells: list[Cell]
    toml: str
    """The sweep itself, every default filled in; reading it again gives the same cells."""


def load(source: str, settings: list[str]) -> Sweep:
    """The sweep of a preset's name or a TOML file, with `key=value` settings; raises UserError.

    Every cell is resolved, so that a mistake in any shows at once.
    """
    tables = _read(source, settings)
    if not _swept(tables):
        raise UserError(f"{source}: no key holds a list of values; run it with: mpi-resmtl run {source}")
    return _expand(tables, source)


def single(source: str, settings: list[str]) -> Experiment:
    """The one experiment of a preset's name or a TOML file; raises UserError where it is a sweep."""
    tables = _read(source, settings)
    if swept := _swept(tables):
        raise UserError(
            f"{source} is a sweep, of {', '.join(swept)}; run it with: mpi-resmtl sweep {source} --output DIR"
        )
    return resolve(_of_cell(tables, {}), source)


def is_sweep(source: str, settings: list[str]) -> bool:
    """Whether any key of a preset's name or a TOML file, with settings, holds a list of values; raises UserError."""
    return bool(_swept(_read(source, settings)))


def shown(source: str, settings: list[str]) -> str:
    """The whole resolved TOML of an experiment or a sweep."""
    swept = _swept(_read(source, settings))
    return load(source, settings).toml if swept else single(source, settings).toml()


def differences(there: str, asked: str) -> str:
    """How two resolved TOMLs differ, in words; empty where they give the same result. Raises TOMLDecodeError."""
    one, two = ({k: v for k, v in _flat(tomllib.loads(t)).items() if k not in _NO_MATTER} for t in (there, asked))
    for key in _SETTLED:
        if key not in two:
            one.pop(key, None)
    keys = [key for key in sorted(one.keys() | two.keys()) if key not in one or key not in two or one[key] != two[key]]
    words = [f"{key} {_is(one, key)} there, {_is(two, key)} asked for" for key in keys]
    more = f"; and {len(words) - 3} more" if len(words) > 3 else ""
    return "; ".join(words[:3]) + more


def _is(flat: dict[str, Any], key: str) -> str:
    return f"= {flat[key]!r}" if key in flat else "is not"


def _read(source: str, settings: list[str]) -> Tables:
    """The tables of a sweep or an experiment as written; those of names that only settings took out are left out."""
    written, tables = read(source, []), read(source, settings)
    for labelled in _LABELLED:
        own = tables.get(labelled.plural, {})
        if not isinstance(tables.get(labelled.section, {}), dict):
            raise UserError(f"{source}: {labelled.section} is a table, not {tables[labelled.section]!r}")
        if not isinstance(own, dict) or not all(isinstance(table, dict) for table in own.values()):
            raise UserError(f"{labelled.plural}: expected tables [{labelled.plural}.NAME]")
        before, named = _labels(written, labelled), _labels(tables, labelled)
        for label in own:
            if label not in before | named:
                listed = f"is one of {', '.join(sorted(named))}" if named else "is not given"
                raise UserError(f"[{labelled.plural}.{label}]: nothing is called {label}; {labelled.key} {listed}")
        if own:
            tables[labelled.plural] = {label: table for label, table in own.items() if label in named}
    return tables


def _labels(tables: Tables, labelled: Labelled) -> set[str]:
    """The values of `byzantine.attack` or `graph.kind`."""
    value = _flat(tables).get(labelled.key)
    return {label for label in (value if isinstance(value, list) else [value]) if isinstance(label, str)}


def _swept(tables: Tables) -> dict[str, list]:
    """The keys that hold lists without being made for them, in their order; raises UserError where that is wrong."""
    task = _flat(tables).get("task.name")
    if isinstance(task, list):
        raise UserError(f"task.name = {task}: a sweep has one task")
    lists = _holding_lists(Experiment) | (
        _holding_lists(TASKS[task].Parameters, "task.") if isinstance(task, str) else set()
    )
    plain = {key: value for key, value in tables.items() if key not in ("attacks", "graphs")}
    swept = {key: value for key, value in _flat(plain).items() if isinstance(value, list) and key not in lists}
    for key, value in swept.items():
        if not value:
            raise UserError(f"{key} = []: an empty list leaves nothing to run")
        if any(isinstance(item, dict | list) for item in value):
            raise UserError(f"{key} = {value}: expected a list of plain values")
        twice = _twice(value)
        if twice:
            raise UserError(f"{key} = {value} has {twice[0]!r} twice")
    return swept


def _twice(values: list) -> list:
    """Those that were there before."""
    seen = set()
    return [value for value in values if value in seen or seen.add(value)]


def _holding_lists(kind: type, prefix: str = "") -> set[str]:
    """The keys of a dataclass, and of those in it, that may hold a list."""
    found = set()
    for field in fields(kind):
        hint = get_type_hints(kind)[field.name]
        if is_dataclass(hint):
            found |= _holding_lists(hint, f"{prefix}{field.name}.")
        elif _may_be_list(hint):
            found.add(prefix + field.name)
    return found


def _may_be_list(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_may_be_list(one) for one in get_args(hint))
    return (get_origin(hint) or hint) in (list, tuple)


def _expand(tables: Tables, source: str) -> Sweep:
    swept = _swept(tables)
    _check(tables, swept)
    count = math.prod(len(values) for values in swept.values())
    if count > _MOST_CELLS:
        raise UserError(f"{source}: {count} cells are more than the {_MOST_CELLS} that a sweep may have")
    cells: dict[str, Cell] = {}
    seen = set()
    for chosen in product(*swept.values()):
        asked = dict(zip(swept, chosen, strict=True))
        own = _of_cell(tables, asked)
        if _honest(own):
            asked = {key: "" if key.startswith("byzantine.") and key != COUNT else asked[key] for key in asked}
        if tuple(asked.values()) in seen:
            continue
        seen.add(tuple(asked.values()))
        try:
            experiment = resolve(own, source)
        except UserError as error:
            where = ", ".join(f"{key} = {value!r}" for key, value in asked.items() if value != "")
            raise UserError(f"where {where}: {error}") from None
        who = experiment.byzantine
        attack = asked.get(ATTACK, tables.get("byzantine", {}).get("attack", who.attack))
        values = {
            SEED: experiment.seed,
            COUNT: who.count if who.agents is None else len(who.agents),
            ATTACK: NO_ATTACK if _honest(own) else attack,
        }
        values |= {key: value for key, value in asked.items() if key not in values}
        name = _name(values, swept)
        if name in cells:
            raise UserError(f"{cells[name].values} and {values} would have the same file {name}.h5")
        cells[name] = Cell(name, values, experiment.toml())
    return Sweep(source, list(cells.values()), _resolved(swept, list(cells.values())))


def _check(tables: Tables, swept: dict[str, list]) -> None:
    """Raise UserError where parts of a sweep contradict one another."""
    who = tables.get("byzantine", {})
    if COUNT in swept and "agents" in who:
        raise UserError(
            f"{COUNT} = {who['count']} together with byzantine.agents = {who['agents']}: "
            f"either how many attack is swept or who does is fixed"
        )
    if ATTACK in swept and _honest(tables):
        raise UserError(f"{ATTACK} = {who['attack']}: nobody is Byzantine; set {COUNT}")
    for labelled in _LABELLED:
        taken = [name for name, _ in labelled.registry.items()] + [NO_ATTACK]
        for label, own in tables.get(labelled.plural, {}).items():
            where, part = f"[{labelled.plural}.{label}]", own.get(labelled.name, label)
            if not isinstance(part, str):
                raise UserError(f"{where} {labelled.name} = {part!r}: expected a name")
            if part != label and label in taken:
                raise UserError(f"{where} {labelled.name} = {part!r}: {label} means something already; rename it")
            lists = _holding_lists(labelled.registry[part].parameters)
            for key in own:
                if isinstance(own[key], list) and key not in lists:
                    raise UserError(
                        f"{where} {key} = {own[key]}: one value a table; write two tables with {labelled.name} = "
                        f"{part!r}, and name both in {labelled.key}"
                    )


def _honest(tables: Tables) -> bool:
    """Whether nobody is Byzantine."""
    who = tables.get("byzantine", {})
    return who.get("agents", who.get("count", 0)) in (0, [])


def _of_cell(tables: Tables, values: dict[str, Any]) -> Tables:
    """The tables of an experiment, with these values of the swept keys."""
    own = deepcopy({key: value for key, value in tables.items() if key not in ("attacks", "graphs")})
    for key, value in values.items():
        _put(own, key, value)
    for labelled in _LABELLED:
        section = own.get(labelled.section, {})
        label = section.get(labelled.name)
        particular = tables.get(labelled.plural, {}).get(label) if isinstance(label, str) else None
        if particular is not None:
            own[labelled.section] = section | particular
    if _honest(own) and "byzantine" in own:
        own["byzantine"] = {key: value for key, value in own["byzantine"].items() if key not in _of_attacks()}
    return own


@cache
def _of_attacks() -> set[str]:
    """What `[byzantine]` may hold besides who is Byzantine."""
    kinds = [Byzantine, *(attack.parameters for _, attack in ATTACKS.items())]
    return {field.name for kind in kinds for field in fields(kind)} - {"count", "agents"}


def _name(values: dict[str, Any], swept: dict[str, list]) -> str:
    """A cell's name, such as uniform-20-seed3."""
    last = [key.rpartition(".")[2] for key in swept]
    bare = [ATTACK, COUNT] * bool(swept.keys() & {ATTACK, COUNT}) + [KIND] * (KIND in swept)
    others = sorted(swept.keys() - {ATTACK, COUNT, KIND, SEED})
    parts = []
    for key in [*bare, *others] + [SEED] * (SEED in swept):
        value = values[key]
        if value == "":
            continue
        short = key.rpartition(".")[2]
        word = "" if key in bare else short if last.count(short) == 1 else key
        text = str(value).lower() if isinstance(value, bool) else str(value)
        apart = "-" if word and (isinstance(value, str | bool)) else ""
        parts.append(f"{word}{apart}{text}")
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(parts)) or "all"


def _resolved(swept: dict[str, list], cells: list[Cell]) -> str:
    """The sweep as TOML: what is swept, what all cells have in common, and what all cells of an attack or graph have.

    What follows from other swept values is left out.
    """
    import tomli_w

    flat = {cell.name: _flat(tomllib.loads(cell.config)) for cell in cells}
    fought = [cell for cell in cells if cell.values[ATTACK] != NO_ATTACK]
    everywhere, attacks = _common(list(flat.values())), _common([flat[cell.name] for cell in fought or cells])
    common = {key: value for key, value in everywhere.items() if not key.startswith("byzantine.")}
    common |= {key: value for key, value in attacks.items() if key.startswith("byzantine.")}
    common = swept | common | swept
    parts: Tables = {}
    for labelled, concerned in zip(_LABELLED, (fought, cells if KIND in swept else []), strict=True):
        labels = dict.fromkeys(cell.values[labelled.key] for cell in concerned)
        if labels and labelled.key not in swept:
            common[labelled.key] = next(iter(labels))
        for label in labels:
            own = _common([flat[cell.name] for cell in concerned if cell.values[labelled.key] == label])
            aliased = labelled.key if own[labelled.key] != label else None
            for key in sorted(own):
                if key.startswith(f"{labelled.section}.") and (key not in common or key == aliased):
                    parts.setdefault(labelled.plural, {}).setdefault(label, {})[key.partition(".")[2]] = own[key]
    made: Tables = {}
    for key, value in common.items():
        _put(made, key, value)
    return tomli_w.dumps(made | parts)


def _common(flat: list[dict[str, Any]]) -> dict[str, Any]:
    """What all of some flat tables have, with the same value."""
    first, *others = flat
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def _flat(tables: Tables, prefix: str = "") -> dict[str, Any]:
    """Tables as one dict with dotted keys, in the order of TOML: a table's values before the tables in it."""
    found = {prefix + key: value for key, value in tables.items() if not isinstance(value, dict)}
    for key, value in tables.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
    return found


def _put(tables: Tables, key: str, value: Any) -> None:
    """Set a dotted key."""
    *path, last = key.split(".")
    for part in path:
        tables = tables.setdefault(part, {})
    tables[last] = value
