"""Runs the cells of a sweep on groups of ranks side by side, each into a result file of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

import numpy as np

from mpi_resmtl import memory
from mpi_resmtl.board import INDEX, Board, Outcome, lock, open_board
from mpi_resmtl.cells import Cell, Sweep, load
from mpi_resmtl.errors import UserError
from mpi_resmtl.launch import Refused, Stopped, add_plugin, on_ranks, on_root
from mpi_resmtl.watchdog import NO_WATCHDOG, NoWatchdog, Watchdog, add_watchdog, watching

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_resmtl.signals import Signals

_SECONDS_BETWEEN_LOOKS = 0.05


def run(
    comm: MPI.Comm,
    load: Callable[[], Sweep],
    folder: Path,
    groups: int | None,
    overwrite: bool,
    watchdog: Watchdog | NoWatchdog = NO_WATCHDOG,
) -> None:
    """Run every cell of the sweep that `load()` gives and that has no result file yet; collective.

    A cell that was saved goes on from there. `groups` None: as many as there are ranks, or cells left. Raises Refused
    on every rank when a cell was refused, Stopped when a signal has ended the sweep and the cells at work are saved.
    """
    from mpi_resmtl.signals import Signals

    def prepare():
        if groups is not None and not 1 <= groups <= comm.size:
            raise UserError(f"--groups {groups}: expected 1 to the number of ranks, {comm.size}")
        sweep, held = load(), lock(folder)
        board = open_board(sweep, folder, overwrite)
        board.prepare()
        return board, held

    board, held = on_root(comm, prepare) or (None, None)
    board = comm.bcast(board)
    cells, left = len(board.sweep.cells), len(board.sweep.cells) - len(board.there)
    number = groups or max(1, min(comm.size, left))
    if comm.rank == 0:
        there = f", {len(board.there)} of them there already" if board.there else ""
        side = f" in {number} groups of ranks" if number > 1 and left else ""
        print(f"{board.sweep.source}: {cells} cells{there}{side}", flush=True)
    memory.settle(comm)
    group = comm.Split(comm.rank * number // comm.size)
    with Signals() as signals:
        _work(group, board, signals, watchdog)
        group.Free()
        watchdog.end()
        _wait(comm)
    stopped = comm.allreduce(signals.received, max)

    def close() -> None:
        board.close()
        held.close()
        print(f"{board.sweep.source}: wrote {folder / INDEX}", flush=True)
        refused = sum(outcome.state == "refused" for outcome in ended)
        if refused:
            raise UserError(f"{refused} of {cells} cells were refused; {folder / INDEX} says why")

    ended = board.outcomes() if comm.rank == 0 else []
    on_root(comm, close)
    if stopped:
        raise Stopped(stopped, f"the cells at work in {folder} are saved; the same command goes on from there")


def _work(group: MPI.Comm, board: Board, signals: Signals, watchdog: Watchdog | NoWatchdog) -> None:
    """Run one cell after the other on the ranks of a group, until none is left or a signal comes."""
    from mpi_resmtl import run as engine

    began = monotonic()
    while (cell := _next(group, board, signals)) is not None:
        started = monotonic()
        try:
            path = board.folder / cell.file
            engine.run(
                group,
                cell.experiment,
                path,
                overwrite=True,
                quiet=True,
                resume=True,
                signals=signals,
                watchdog=watchdog,
            )
            outcome = Outcome("done", monotonic() - started)
        except Stopped as stopped:
            outcome = Outcome("stopped", None, str(stopped))
            signals.received = signals.received or stopped.number
        except Refused as refused:
            outcome = Outcome("refused", monotonic() - started, str(refused))
        except Exception as error:
            board.record(cell, Outcome("failed", monotonic() - started, f"{type(error).__name__}: {error}"))
            raise
        if group.rank == 0:
            board.record(cell, outcome)
            what = f"{outcome.state}: {outcome.message}" if outcome.message else f"done in {outcome.seconds:.1f} s"
            print(f"{cell.name}: {what}{_pace(board, monotonic() - began)}", flush=True)


def _next(group: MPI.Comm, board: Board, signals: Signals) -> Cell | None:
    """The cell that rank 0 of the group takes, on all of its ranks; None when none is left or a signal has come."""
    number = np.full(1, -1, np.int64)
    if group.rank == 0 and not signals.received and (cell := board.take()) is not None:
        number[0] = board.sweep.cells.index(cell)
    group.Bcast(number)
    return board.sweep.cells[number[0]] if number[0] >= 0 else None


def _pace(board: Board, elapsed: float) -> str:
    """How many cells have ended, and what is left of the time."""
    cells = len(board.sweep.cells)
    ended = sum(outcome.state in ("done", "refused") for outcome in board.outcomes())
    here = ended - len(board.there)
    left = f", about {_duration(elapsed / here * (cells - ended))} left" if here and ended < cells else ""
    return f"; {ended} of {cells} cells{left}"


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
    add_watchdog(sweep)
    add_plugin(sweep)
    sweep.set_defaults(command=_sweep)


def _sweep(asked: argparse.Namespace) -> int:
    if asked.data_dir is not None:
        asked.set.append(f"task.data_dir={json.dumps(asked.data_dir)}")

    def action(comm: MPI.Comm) -> None:
        with watching(asked.watchdog, comm.rank) as watchdog:
            run(comm, lambda: load(asked.sweep, asked.set), asked.output, asked.groups, asked.overwrite, watchdog)

    return on_ranks(action, asked.plugin)
