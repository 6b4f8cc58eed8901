"""Checks result files (schema mpi-resmtl/1) against themselves: what one part says must follow from the others.

Nothing that wrote the file is used to check it: shapes follow from its configuration and graph, weights from what it
says is held against each message, measures from models and weights, traffic from graph, ranks and parameters. What
would take the data, or the random numbers of another version of numpy, is not looked at.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from mpi_resmtl.errors import UserError, printable
from mpi_resmtl.launch import USER_ERROR, add_plugin, plug_in

SCHEMA = "mpi-resmtl/1"
_SHOWN = 10
"""Things that are shown of those that are wrong with a file."""
_WRONG = 1
"""Exit status where a file can be read and something is wrong with it."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `verify` to the command line."""
    verify = commands.add_parser("verify", help="check result files against themselves")
    verify.add_argument("files", nargs="+", type=Path, metavar="FILE")
    add_plugin(verify)
    verify.set_defaults(command=_verify)


def _verify(asked: argparse.Namespace) -> int:
    """Exit status 0: all is right; 1: something is wrong; 2: a file cannot be read at all."""
    import mpi4py

    # h5py imports MPI where it can; this process is no rank of anything.
    mpi4py.rc.initialize = False
    plug_in(asked.plugin)
    status = 0
    for path in asked.files:
        try:
            verdict = verify(path)
        except UserError as error:
            print(f"mpi-resmtl: {error}", file=sys.stderr, flush=True)
            status = USER_ERROR
            continue
        for line in verdict.lines():
            print(line, flush=True)
        if verdict.problems:
            status = max(status, _WRONG)
    return status


@dataclass(frozen=True)
class Verdict:
    """What was found of a file."""

    path: Path
    problems: list[str]
    """The first things that are wrong."""
    more: bool
    """Whether more is."""
    checked: str
    """What was looked at."""

    def lines(self) -> list[str]:
        """What to tell the user."""
        if not self.problems:
            return [printable(f"{self.path}: {self.checked}")]
        lines = [printable(f"{self.path}: {problem}") for problem in self.problems]
        return [*lines, f"{self.path}: and more"] if self.more else lines


def verify(path: Path) -> Verdict:
    """Check a result file; raises UserError when it cannot be read, or is no result file of this schema."""
    from mpi_resmtl import hdf5
    from mpi_resmtl.verify.file import ResultFile

    hdf5.examine(path)
    if path.suffix == ".part":
        return Verdict(path, [f"the run is not finished; its file is named {path.stem} once it is whole"], False, "")
    with hdf5.opened(path) as file:
        if hdf5.text(file.attrs.get("schema")) != SCHEMA:
            schema = file.attrs.get("schema")
            raise UserError(f"{path}: is not a result file: its schema is {schema!r}, expected {SCHEMA!r}")
        check = ResultFile(file)
        problems = []
        for problem in check.problems():
            if len(problems) == _SHOWN:
                return Verdict(path, problems, True, "")
            problems.append(problem)
        return Verdict(path, problems, False, "" if problems else check.summary())
