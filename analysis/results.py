"""What the analysis scripts share: reading result files (schema mpi-resmtl/1) and one look for all figures."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import h5py
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure

from mpi_resmtl import hdf5
from mpi_resmtl.errors import UserError

SCHEMA = "mpi-resmtl/1"
USER_ERROR = 2
_FIXED = ("seed", "byzantine.count", "byzantine.attack")
_FOLLOWING = ("file", "state", "seconds", "message")
"""Columns that the index of any sweep has, before and after those of what else is swept."""


class ResultError(ValueError):
    """A file, rule or folder that cannot be used: shown as one line, exit status 2, never a traceback."""


def command(main: Callable[[], None]) -> None:
    """Run a script's `main` and leave with its exit status."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ResultError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


@dataclass(frozen=True)
class Result:
    """One whole run; the graph is read at once, what the rules found when it is asked for."""

    path: Path
    file: h5py.File
    rules: tuple[str, ...]
    edge: np.ndarray
    """(E, 2) source and target, sorted by target, then source"""
    byzantine: np.ndarray
    """(n,) bool"""
    group: np.ndarray
    """(n,) task group id"""
    position: np.ndarray | None
    """(n, 2), where the study has positions"""
    variant: str | None
    """the study's variant, such as `paper`; None where it has none"""
    stand_in: bool
    lost: tuple[tuple[int, int], ...] = ()
    """the first agent of each rank that has died, and the one after its last"""

    @property
    def agents(self) -> int:
        return len(self.byzantine)

    @property
    def attackers(self) -> int:
        return int(self.byzantine.sum())

    @property
    def normal(self) -> np.ndarray:
        """Ids of the normal agents whose ranks lived to the end of the run."""
        alive = np.ones(self.agents, bool)
        for first, stop in self.lost:
            alive[first:stop] = False
        return np.flatnonzero(~self.byzantine & alive)

    @property
    def task(self) -> dict:
        """The table `task` of the run's configuration."""
        return tomllib.loads(self.file.attrs["config"])["task"]

    @property
    def batch(self) -> np.ndarray:
        """(n,) samples of an agent's batch; ResultError where the study has none."""
        batch = self.task.get("batch")
        if batch is None:
            raise ResultError(f"{self.path}: its study has no task.batch")
        return np.asarray(batch)[self.group] if isinstance(batch, list) else np.full(self.agents, batch)

    def require(self, rule: str) -> None:
        """Raise ResultError unless the run has the rule."""
        if rule not in self.rules:
            raise ResultError(f"{self.path}: has no rule {rule!r}; it has {', '.join(self.rules)}")

    def dataset(self, rule: str, name: str, hint: str = "") -> h5py.Dataset:
        """/rule/RULE/NAME, or ResultError."""
        self.require(rule)
        found = self.file.get(f"rule/{rule}/{name}")
        if found is None:
            raise ResultError(f"{self.path}: rule {rule!r} has no recorded {name}{hint}")
        return found


def read(path: Path) -> Result:
    """Open a result file; ResultError unless it is one and the run that wrote it is whole."""
    if path.suffix == ".part":
        raise ResultError(f"{path}: the run is not finished; its file is named {path.stem} once it is whole")
    if not path.is_file():
        raise ResultError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        hdf5.examine(path)
        file = h5py.File(path)
    except (UserError, OSError) as error:
        raise ResultError(str(error)) from None
    schema = file.attrs.get("schema")
    if schema is None:
        raise ResultError(f"{path}: is not a result file: it has no schema (wanted {SCHEMA!r})")
    if hdf5.text(schema) != SCHEMA:
        raise ResultError(f"{path}: has schema {str(schema)!r}; this script reads {SCHEMA!r}")
    told = {name: hdf5.text(file.attrs.get(name)) for name in ("config", "data", "rules")}
    missing = [name for name, value in told.items() if value is None]
    if missing:
        raise ResultError(f"{path}: is damaged: it has no attribute {missing[0]!r}")
    try:
        result = _result(path, file, told)
        unfinished = [rule for rule in result.rules if _is_unfinished(result, rule)]
    except (UserError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResultError(f"{path}: is damaged: {str(error.args[0]).splitlines()[0]}") from None
    if unfinished:
        raise ResultError(f"{path}: the run is not finished: nothing in the last iteration of {', '.join(unfinished)}")
    return result


def _result(path: Path, file: h5py.File, told: dict[str, str]) -> Result:
    """The run that a file tells of; UserError, or what the parsers raise, unless all in it has a fitting shape."""
    edge = hdf5.dataset(file, path.name, "graph/edge", "iu", (None, 2))[()]
    byzantine = hdf5.dataset(file, path.name, "graph/byzantine", "biu", (None,))[()].astype(bool)
    n = len(byzantine)
    if ((edge < 0) | (edge >= n)).any():
        raise ValueError(f"/graph/edge leads to agents that are none of the {n}")
    position = None
    if "graph/position" in file:
        position = hdf5.dataset(file, path.name, "graph/position", "fiu", (n, 2))[()]
    rules = tuple(json.loads(told["rules"]))
    for rule in rules:
        for name in file[f"rule/{rule}"]:
            shape = _shape(name, n, len(edge))
            if 0 in hdf5.dataset(file, path.name, f"rule/{rule}/{name}", "fiu", shape).shape:
                raise ValueError(f"/rule/{rule}/{name} is empty")
    return Result(
        path=path,
        file=file,
        rules=rules,
        edge=edge,
        byzantine=byzantine,
        group=hdf5.dataset(file, path.name, "graph/group", "iu", (n,))[()],
        position=position,
        variant=tomllib.loads(told["config"])["task"].get("variant"),
        stand_in=told["data"] == "stand-in",
        lost=tuple((int(rank["first"]), int(rank["stop"])) for rank in json.loads(file.attrs.get("lost", "[]"))),
    )


def _shape(name: str, agents: int, edges: int) -> tuple:
    """Shape of a dataset of a rule; None: any length."""
    if name in ("weight", "share", "accumulated", "missing"):
        return (None, edges)
    others = {"seconds": (None, None, None), "traffic": (None, 2), "model": (None, agents, None)}
    others |= {"model_final": (agents, None), "regret": (agents,), "descent": (agents,)}
    return others.get(name, (None, agents))


def _is_unfinished(result: Result, rule: str) -> bool:
    """Whether the rule's last iteration was never written; a run that diverged to NaN still has its seconds."""
    found = result.file[f"rule/{rule}"]
    late = [found[name][-1] for name in ("seconds", "loss") if name in found]
    return bool(late) and all(np.isnan(values).all() for values in late)


def index(folder: Path) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """Rows of the index of a sweep's folder, and what is swept besides seed, attackers and attack; or ResultError."""
    path = folder / "index.csv"
    if not path.is_file():
        raise ResultError(f"{folder}: is not the folder of a sweep: it has no index.csv")
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), tuple(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from None
    missing = [name for name in (*_FIXED, "file", "state") if name not in names]
    if missing or not rows:
        raise ResultError(f"{path}: is not the index of a sweep: it has no {missing[0] if missing else 'cell'}")
    for line, row in enumerate(rows, start=2):
        numbers = (row["seed"], row["byzantine.count"])
        if None in row or None in row.values() or not all(re.fullmatch("[0-9]{1,18}", n) for n in numbers):
            raise ResultError(f"{path}: is damaged: line {line} is no cell")
    return rows, tuple(name for name in names if name not in (*_FIXED, *_FOLLOWING))


@dataclass(frozen=True)
class Style:
    """How a rule is drawn. Wide lines lie below narrow ones, so that both are seen where two rules agree."""

    label: str
    colour: str
    wide: bool = False
    dashes: str | tuple = "-"

    @property
    def line(self) -> dict:
        """Keywords of `Axes.plot`."""
        width, above = (2.8, 3) if self.wide else (1.1, 4)
        return dict(color=self.colour, linestyle=self.dashes, linewidth=width, zorder=above, label=self.label)

    @property
    def band(self) -> dict:
        """Keywords of `Axes.fill_between`."""
        return dict(color=self.colour, alpha=0.12, linewidth=0, zorder=1)

    @property
    def edge(self) -> dict:
        """Keywords of `Axes.plot` for the edge of a band."""
        return dict(color=self.colour, alpha=0.6, linewidth=0.5, zorder=2)


_DASHED, _DOTTED = (0, (4, 1.5)), (0, (1.2, 1.2))
_KNOWN = {
    "none": Style("No cooperation", "#8f8f8f", wide=True),
    "average": Style("Average", "#e69f00", wide=True),
    "distance": Style("Distance-based", "#882255", dashes=_DASHED),
    "loss": Style("Loss-based", "#0072b2"),
    "loss-unfiltered": Style("Loss-based, unfiltered", "#009e73", dashes=_DOTTED),
}
_OTHERS = ("#56b4e9", "#332288", "#cc79a7", "#999933", "#44aa99", "#aa4499", "#117733", "#ddcc77")
GROUP_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#332288", "#999933")
BYZANTINE_COLOUR = "#d3001f"


def styles(rules: Iterable[str]) -> dict[str, Style]:
    """The look of each rule: the paper's rules always have theirs, others take what is left in their order."""
    left = (Style("", colour, dashes=dashes) for dashes in cycle((_DASHED, _DOTTED, "-")) for colour in _OTHERS)
    return {rule: _KNOWN[rule] if rule in _KNOWN else replace(next(left), label=rule) for rule in rules}


matplotlib.rcParams.update(
    {
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "savefig.dpi": 160,
        "pdf.fonttype": 42,
    }
)


def save(figure: Figure, folder: Path, name: str, stand_in: bool) -> None:
    """Write NAME.png and NAME.pdf, the same bytes for the same figure; says on its face when the data stand in."""
    if stand_in:
        figure.suptitle("stand-in data", fontsize=10, fontweight="bold", color=BYZANTINE_COLOUR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    except OSError as error:
        raise ResultError(f"-o {folder}: cannot be written: {error.strerror}") from None
    print(f"wrote {folder / name}.png and .pdf")
