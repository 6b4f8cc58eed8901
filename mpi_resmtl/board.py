"""The output folder of a sweep: where groups of ranks take cells and say what became of them.

A group takes a cell by creating a file that must not exist yet, in a folder that all ranks share anyway. A counter in
an MPI window would have to wait for its owner: Open MPI's window over point-to-point lets a `Fetch_and_op` spin until
the owner, busy with a cell, calls MPI.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from mpi_resmtl.cells import Cell, Sweep, differences
from mpi_resmtl.errors import UserError

INDEX, SWEEP = "index.csv", "sweep.toml"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    state: str
    """done; refused: a user's error; failed: an error that ended the job; stopped: by a signal, and saved; running or
    waiting: nothing yet."""
    seconds: float | None = None
    message: str = ""


class Board:
    """The cells of a sweep in its folder; every method but `prepare` and `close` may be called by several groups."""

    def __init__(self, folder: Path, sweep: Sweep, there: dict[str, Outcome]):
        """`there`: cells by name that were done before."""
        self.folder, self.sweep, self.there = folder, sweep, there
        self._taken = folder / ".taken"

    def prepare(self) -> None:
        """Forget what was taken when a sweep was stopped; before anything is."""
        shutil.rmtree(self._taken, ignore_errors=True)
        self._taken.mkdir()
        _replace(self.folder / SWEEP, self.sweep.toml)
        self._write_index()

    def take(self) -> Cell | None:
        """The next cell that nobody has taken; None when there is none left."""
        for cell in self.sweep.cells:
            if cell.name not in self.there:
                try:
                    (self._taken / cell.name).touch(exist_ok=False)
                except FileExistsError:
                    continue
                return cell
        return None

    def record(self, cell: Cell, outcome: Outcome) -> None:
        """Say what became of a cell that was taken."""
        _replace(self._taken / cell.name, json.dumps(asdict(outcome)))
        self._write_index()

    def outcomes(self) -> list[Outcome]:
        """What is known of each cell, in their order."""
        return [self.there.get(cell.name) or self._told(self._taken / cell.name) for cell in self.sweep.cells]

    def close(self) -> None:
        """Write the last index, after all groups have ended."""
        self._write_index()
        shutil.rmtree(self._taken)

    @staticmethod
    def _told(taken: Path) -> Outcome:
        try:
            text = taken.read_text()
        except FileNotFoundError:
            return Outcome("waiting")
        return Outcome(**json.loads(text)) if text else Outcome("running")

    def _write_index(self) -> None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([*self.sweep.cells[0].values, "file", "state", "seconds", "message"])
        for cell, outcome in zip(self.sweep.cells, self.outcomes(), strict=True):
            seconds = "" if outcome.seconds is None else f"{outcome.seconds:.2f}"
            rows.writerow([*cell.values.values(), cell.file, outcome.state, seconds, outcome.message])
        _replace(self.folder / INDEX, text.getvalue())


def lock(folder: Path) -> io.TextIOBase:
    """Make a folder, unless it is there, and keep other sweeps from it until the result is closed; raises UserError."""
    if not folder.parent.is_dir():
        raise UserError(f"--output {folder}: the folder {folder.parent} does not exist")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: is a file, not a folder")
    try:
        folder.mkdir(exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--output {folder}: another sweep is running there") from None
    except OSError:
        warning = f"{folder}: this file system has no locks; see that no other sweep runs there"
        print(f"mpi-resmtl: {warning}", file=sys.stderr, flush=True)
    return file


def open_board(sweep: Sweep, folder: Path, overwrite: bool) -> Board:
    """The board of a sweep in a locked folder; raises UserError, before any file changes, where another's results are.

    `overwrite`: keep what fits of another sweep, and replace what does not.
    """
    if (folder / SWEEP).exists() and not overwrite:
        try:
            differ = differences((folder / SWEEP).read_text(), sweep.toml)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            differ = f"{SWEEP} is not TOML: {error}"
        if differ:
            raise UserError(f"--output {folder}: holds another sweep: {differ}; --overwrite takes it over")
    seconds = _earlier_seconds(folder / INDEX)
    done = [cell for cell in sweep.cells if _is_there(folder / cell.file, cell, overwrite)]
    return Board(folder, sweep, {cell.name: Outcome("done", seconds.get(cell.file)) for cell in done})


def _is_there(path: Path, cell: Cell, overwrite: bool) -> bool:
    """Whether a cell's result file is there and has its configuration."""
    import h5py

    if not path.exists():
        return False
    try:
        with h5py.File(path) as file:
            differ = differences(file.attrs["config"], cell.config)
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        differ = "it is not a result file"
    if differ and not overwrite:
        raise UserError(f"{path}: is there already, of another run: {differ}; --overwrite replaces it")
    return not differ


def _earlier_seconds(index: Path) -> dict[str, float]:
    """Seconds of done cells by file in an index that was written earlier; none where there is no such index."""
    try:
        with open(index, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["state"] == "done" and row["seconds"]]
        return {row["file"]: float(row["seconds"]) for row in rows}
    except (FileNotFoundError, KeyError, ValueError):
        return {}


def _replace(path: Path, text: str) -> None:
    """Write a whole file at once."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
