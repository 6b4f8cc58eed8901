"""An experiment's configuration: dataclasses, TOML in and out, every check of a value.

Tables are merged from the least to the most particular: what the task brings for the other tables, the preset or file,
`--set`. The dataclasses are plain; pydantic checks them, on rank 0 alone.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le, Len

from mpi_resmtl.attacks import ATTACKS
from mpi_resmtl.errors import UserError, unknown
from mpi_resmtl.graph import GRAPHS
from mpi_resmtl.rules import RULES, Mixing, Rule
from mpi_resmtl.tasks import TASKS

if TYPE_CHECKING:
    import pydantic


@dataclass
class Byzantine:
    """Who is Byzantine and how they attack; the attack's own parameters stand in the same table."""

    count: Annotated[int, Ge(0), "how many, drawn at random"] = 0
    agents: Annotated[list[Annotated[int, Ge(0)]] | None, "who, instead of `count`"] = None
    attack: Annotated[str, "one of `mpi-resmtl list`"] = "uniform"
    start: Annotated[int, Ge(0), "iterations that they are honest at first"] = 0
    stop: Annotated[int | None, Ge(0), "iteration from which on they are honest again"] = None

    def __post_init__(self):
        if self.stop is not None and self.start >= self.stop:
            raise UserError(
                f"byzantine.start = {self.start} is not before byzantine.stop = {self.stop}: nobody would attack"
            )


@dataclass
class Rules:
    """What all rules share; a rule's own parameters stand in a table under its name."""

    forgetting_factor: Annotated[float, Ge(0), Le(1), "nu"] = 0.1
    initial_accumulated_loss: Annotated[float, Ge(0), "phi_0"] = 1.0
    b: Annotated[int | None, Ge(0), "Byzantine neighbours to stand; default: the most that any agent has"] = None
    excess: Annotated[
        Literal["refuse", "cap"], "where a neighbourhood is too small for b: an error, or b is lowered there"
    ] = "refuse"


@dataclass
class Use:
    """How a rule is used; stands with its own parameters in a table under its name, or under another name."""

    uses: Annotated[str, "the rule, where the table's name is not its own"] = ""
    pre: Annotated[Mixing, "what is done to messages before the rule sees them"] = ""
    bucket: Annotated[int, Ge(1), "messages in a bucket of `bucketing`"] = 2
    options: Any = None
    """The rule's own parameters."""

    @property
    def rule(self) -> Rule:
        """The registered rule."""
        return RULES[self.uses]


@dataclass
class Record:
    """How often what is recorded; 0: never."""

    every: Annotated[int, Ge(1), "iterations between recorded losses and other measures"] = 1
    weights: Annotated[int, Ge(0), "iterations between recorded weights, accumulated losses and seconds"] = 10
    models: Annotated[int, Ge(0), "iterations between recorded models"] = 0


@dataclass
class Checkpoint:
    """How often all that a run has come to is saved; it is too when a signal ends the run. 0: never."""

    every: Annotated[int, Ge(0), "iterations between checkpoints"] = 0
    minutes: Annotated[float, Ge(0), "minutes between checkpoints"] = 10.0


@dataclass
class Exchange:
    """How messages get from rank to rank; changes no result, unless messages are late for a deadline."""

    shared: Annotated[
        Literal["auto", "on", "off"],
        "ranks of a node read each other's rows in place: where there is room for it, always or never",
    ] = "auto"
    deadline: Annotated[
        float, Ge(0), "seconds that an iteration waits for messages, those that are late are missing; 0: without end"
    ] = 0.0


@dataclass
class Experiment:
    """A whole resolved configuration."""

    seed: Annotated[int, Ge(0), Le(2**63 - 1), "of all random streams"] = 0
    iterations: Annotated[int, Ge(1), "length of a regression study"] = 1
    epochs: Annotated[int | None, Ge(1), "length of a classification study, which says how long an epoch is"] = None
    rules: Annotated[list[str], Len(1), "run one after the other on the same random streams"] = field(
        default_factory=lambda: ["none", "average", "distance", "loss"]
    )
    record: Record = field(default_factory=Record)
    exchange: Exchange = field(default_factory=Exchange)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    task: Any = None
    """Parameters of TASKS[task.name]."""
    graph: Any = None
    """Parameters of GRAPHS[topology]."""
    topology: str = ""
    byzantine: Byzantine = field(default_factory=Byzantine)
    attack: Any = None
    """Parameters of ATTACKS[byzantine.attack]."""
    rule: Rules = field(default_factory=Rules)
    uses: dict[str, Use] = field(default_factory=dict)
    """How each of `rules` is used."""

    def toml(self) -> str:
        """The whole resolved configuration as TOML; reading it again gives the same experiment."""
        import tomli_w

        uses = {name: _without_defaults(name, use) for name, use in self.uses.items()}
        tables = {
            "seed": self.seed,
            **({"iterations": self.iterations} if self.epochs is None else {"epochs": self.epochs}),
            "rules": self.rules,
            "task": asdict(self.task),
            "graph": {"kind": self.topology} | asdict(self.graph),
            "byzantine": asdict(self.byzantine) | asdict(self.attack),
            "rule": asdict(self.rule) | {name: table for name, table in uses.items() if table},
            "record": asdict(self.record),
            "exchange": asdict(self.exchange),
            "checkpoint": asdict(self.checkpoint),
        }
        return tomli_w.dumps(_without_none(tables))


_LARGEST_FILE = 4 << 20
"""Bytes of a TOML file; a list of a hundred thousand agents takes one seventh of it."""
_DEEPEST = 16
"""Tables and lists within one another."""
_LARGEST_NUMBER = 2**64
_LONGEST_NAME = 64
_LONG_KEY = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.){0,199}+"|'[^'\n]{0,199}+')[ \t]*+\.[ \t]*+){32}""",
    re.ASCII,
)
"""A key of so many parts that `tomllib`, whose time grows with their square, must not see it."""

TOP = ("seed", "iterations", "epochs", "rules")
_TABLES = ("task", "graph", "byzantine", "rule", "record", "exchange", "checkpoint")
_LISTS = ("rules", "byzantine.agents")
_INSTEAD = {"byzantine.count": "agents", "byzantine.agents": "count"}
"""Keys that say the same in two ways: what is set takes the other's place."""


def presets() -> dict[str, str]:
    """Text of every preset by name."""
    folder = resources.files("mpi_resmtl") / "presets"
    return {p.name.removesuffix(".toml"): p.read_text() for p in folder.iterdir() if p.name.endswith(".toml")}


def recorded(text: str, source: str) -> Experiment:
    """The experiment of a configuration that `Experiment.toml` wrote; raises UserError."""
    tables = _parsed(text.encode(errors="surrogateescape"), source)
    _check_values(tables, source)
    return resolve(tables, source, whole=True)


def load(source: str, settings: list[str]) -> Experiment:
    """The experiment of a preset's name or a TOML file, with `key=value` settings; raises UserError."""
    return resolve(read(source, settings), source)


def read(source: str, settings: list[str]) -> dict[str, Any]:
    """The tables of a preset's name or a TOML file, with `key=value` settings, unchecked; raises UserError."""
    tables = _read(source)
    for setting in settings:
        _set(tables, setting)
    _check_values(tables, source)
    return tables


def resolve(tables: dict[str, Any], source: str, whole: bool = False) -> Experiment:
    """The experiment that tables as the user wrote them ask for; `source` is named in errors.

    `whole`: the tables are those of `Experiment.toml`, so nothing is added and no other file looked at.
    """
    for name in tables:
        if name not in (*TOP, *_TABLES):
            raise unknown("key", name, (*TOP, *_TABLES))
        if name in _TABLES and not isinstance(tables[name], dict):
            raise UserError(f"{source}: {name} is a table, not {tables[name]!r}")
    own = tables.get("task", {})
    if not isinstance(own.get("name"), str):
        raise UserError(f"{source}: task.name is missing")
    study = TASKS[own["name"]]
    wrong = "iterations" if study.unit == "epochs" else "epochs"
    if wrong in tables:
        raise UserError(f"{wrong} = {tables[wrong]!r}: the length of {own['name']} is given in {study.unit}")
    if not whole:
        tables = _merged(study.defaults(tables), tables)

    shared = {k: v for k, v in tables.get("rule", {}).items() if not isinstance(v, dict)}
    particular = {k: v for k, v in tables.get("rule", {}).items() if isinstance(v, dict)}
    uses = {name: _use(name, table) for name, table in particular.items()}
    names = _names(tables.get("rules", Experiment().rules), uses)
    uses = {name: uses.get(name) or _use(name, {}) for name in names}
    held_back = any(use.rule.judged_by == "fresh" for use in uses.values())
    if held_back and any(f.name == "held_back" for f in fields(study.Parameters)):
        tables["task"] = {"held_back": 0.1} | tables["task"]

    task = _checked(study.Parameters, tables["task"], "task")
    graph = dict(tables.get("graph", {}))
    topology = _text(graph.pop("kind", "complete"), "graph.kind")
    byzantine = dict(tables.get("byzantine", {}))
    others = tuple(f.name for f in fields(Byzantine))
    who = {key: byzantine.pop(key) for key in others if key in byzantine}
    who = _checked(Byzantine, who, "byzantine")
    if who.agents is not None and len(set(who.agents)) != len(who.agents):
        raise UserError(f"byzantine.agents = {who.agents} names an agent twice")
    numbers = ("seed", "iterations", "epochs")
    top = {key: tables[key] for key in numbers if key in tables}
    experiment = _checked(Experiment, top, "", only=numbers)
    experiment.rules = names
    experiment.record = _checked(Record, tables.get("record", {}), "record")
    experiment.exchange = _checked(Exchange, tables.get("exchange", {}), "exchange")
    experiment.checkpoint = _checked(Checkpoint, tables.get("checkpoint", {}), "checkpoint")
    experiment.task = task
    experiment.topology, experiment.graph = topology, _checked(GRAPHS[topology].parameters, graph, "graph")
    experiment.byzantine = who
    attack = ATTACKS[who.attack].parameters
    experiment.attack = _checked(attack, byzantine, "byzantine", others=others)
    every_rule = [name for name, _ in RULES.items()]
    experiment.rule = _checked(Rules, shared, "rule", others=every_rule)
    experiment.uses = uses
    return experiment


def _check_values(value: Any, where: str, depth: int = 0) -> None:
    """Raise UserError where tables are nested too deep, or a number is too large, to be worked with."""
    if depth > _DEEPEST:
        raise UserError(f"{where}: tables and lists lie more than {_DEEPEST} deep in one another")
    if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
        raise UserError(f"{where}: a number of {value.bit_length()} bits is too large")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_values(item, where, depth + 1)


def _use(name: str, table: dict[str, Any]) -> Use:
    """How a table `rule.NAME` uses a rule."""
    if not all(c.isalnum() or c in "-_+" for c in name):
        raise UserError(f"rule.{name}: a name has letters, digits, -, _ and + only")
    if not 0 < len(name) <= _LONGEST_NAME:
        raise UserError(f"rule.{name}: a name has 1 to {_LONGEST_NAME} letters")
    rule = RULES[_text(table.get("uses", name), f"rule.{name}.uses")]
    own = {f.name for f in fields(Use)} - {"options"}
    use = _checked(Use, {k: v for k, v in table.items() if k in own}, f"rule.{name}")
    rest = {k: v for k, v in table.items() if k not in own}
    use.uses, use.options = rule.name, _checked(rule.parameters, rest, f"rule.{name}", others=sorted(own))
    if use.pre == "bucketing" and not rule.symmetric:
        raise UserError(f"rule.{name}.pre = 'bucketing': {rule.name} treats its own message unlike others")
    return use


def _without_defaults(name: str, use: Use) -> dict[str, Any]:
    """The table of a use: all of the rule's own parameters, and what else is not as it would be without a table."""
    table = asdict(use)
    own, plain = table.pop("options"), asdict(Use(uses=name))
    return {key: value for key, value in table.items() if key in plain and value != plain[key]} | own


def _read(source: str) -> dict[str, Any]:
    known = presets()
    if source in known:
        return tomllib.loads(known[source])
    path = Path(source)
    if path.suffix != ".toml":
        raise unknown("preset", source, known)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{source}: is no file")
        with open(path, "rb") as file:
            written = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: {getattr(error, 'strerror', None) or error}") from None
    if len(written) > _LARGEST_FILE:
        raise UserError(f"{source}: has more than {_LARGEST_FILE} bytes, too many for a configuration")
    return _parsed(written, source)


def _parsed(written: bytes, source: str) -> dict[str, Any]:
    """The tables of a TOML text; raises UserError when it is none."""
    try:
        text = written.decode()
        if _LONG_KEY.search(text):
            raise UserError(f"{source}: a key has 32 parts or more")
        return tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{source}: tables and lists lie more than {_DEEPEST} deep in one another") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: not TOML: {error}") from None


def _set(tables: dict[str, Any], setting: str) -> None:
    """Put `key=value` into the tables; the value is TOML, or else a word or a comma-separated list."""
    key, equals, text = setting.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"--set {setting}: expected key=value, such as --set byzantine.count=20")
    if len(path) > _DEEPEST:
        raise UserError(f"--set {setting}: a key has {_DEEPEST} parts at most")
    value = _word(text)
    if value is text and "," in text:
        value = [_word(item.strip()) for item in text.split(",")]
    if key in _LISTS and not isinstance(value, list):
        value = [value]
    table = tables
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {setting}: {part} is a value, not a table")
    table[path[-1]] = value
    table.pop(_INSTEAD.get(key), None)


def _word(text: str) -> Any:
    """A value of TOML, or else the text itself."""
    if _LONG_KEY.search(text):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables of `over` laid over those of `base`."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _names(rules: Any, uses: dict[str, Use]) -> list[str]:
    if not isinstance(rules, list) or not rules or not all(isinstance(name, str) for name in rules):
        raise UserError(f"rules = {rules!r}: expected a list of names, such as rules=none,loss")
    for name in rules:
        if name not in uses:
            RULES[name]
    if len(set(rules)) != len(rules):
        raise UserError(f"rules = {rules} names a rule twice")
    return rules


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{key} = {value!r}: expected a name")
    return value


def _checked(
    kind: type,
    table: dict[str, Any],
    name: str,
    others: tuple[str, ...] | list[str] = (),
    only: tuple[str, ...] = (),
) -> Any:
    """`kind` made from a table, its types and ranges checked; `others` are further keys to suggest from."""
    import pydantic

    prefix = f"{name}." if name else ""
    known = only or [f.name for f in fields(kind)]
    for key in table:
        if key not in known:
            full = [f"{prefix}{k}" for k in (*known, *others)]
            raise unknown("key", f"{prefix}{key}", full)
    try:
        return _adapter(kind).validate_json(json.dumps(table, default=str))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = prefix + ".".join(str(part) for part in first["loc"] if isinstance(part, int | str))
        if isinstance(first.get("ctx", {}).get("error"), UserError):
            raise first["ctx"]["error"] from None
        raise UserError(f"{where} = {first['input']!r}: {_lower(first['msg'])}") from None


@cache
def _adapter(kind: type) -> pydantic.TypeAdapter:
    """What checks a table for a dataclass; a sweep needs the same ones for every cell."""
    import pydantic

    strict = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(pydantic.with_config(strict)(kind))


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _without_none(tables: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tables.items()
        if value is not None
    }
