"""`bench record`: what the recorder writes a second, beside a plain parallel write of the same bytes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mpi_resmtl.bench import add_options, measured, shared_folder, spread, timed
from mpi_resmtl.errors import UserError
from mpi_resmtl.launch import on_root
from mpi_resmtl.stopwatch import Stopwatch

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_resmtl.run import Plan, Rank

STUDIES = {
    "target-localization": {
        "task": {"name": "target-localization", "agents": 10_000, "side": 30.0},
        "record": {"weights": 1},
    },
    "activity-recognition": {
        "task": {"name": "activity-recognition", "data": "stand-in"},
        "graph": {"kind": "complete"},
        "record": {"weights": 1, "models": 1},
    },
}
"""Many small numbers (losses, weights and accumulated losses), and models, all of every iteration."""


class _Totals(Stopwatch):
    """A stopwatch that remembers all seconds of recording, also those that the recorder takes away."""

    def __init__(self):
        super().__init__()
        self.recording = 0.0

    def lap(self, phase: str) -> None:
        """As that of any stopwatch."""
        before = self.seconds["record"]
        super().lap(phase)
        self.recording += self.seconds["record"] - before


@dataclass(frozen=True)
class _Written:
    """One whole file."""

    layout: float
    """Seconds of rank 0's layout and of opening, on all ranks together."""
    recording: float
    """Seconds of keeping, writing and closing, of the rank that takes longest."""
    pieces: list[int]
    """Bytes of each piece of data in the file, on rank 0."""


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add `bench record` to the command line."""
    parser = kinds.add_parser("record", help="what the recorder writes a second, against a plain parallel write")
    parser.add_argument(
        "--megabytes", type=float, default=256, help="about how much is written a file (default %(default)s)"
    )
    add_options(parser, repeats=5)
    parser.set_defaults(command=lambda asked: measured(asked, "record", lambda comm: _measure(comm, asked)))


def _measure(comm: MPI.Comm, asked: argparse.Namespace) -> dict[str, Any]:
    from mpi_resmtl.bench.machine import ceilings

    on_root(comm, lambda: _check(asked))
    machine = ceilings(comm, asked.folder, min(5, asked.repeats))
    rows = []
    for number, study in enumerate(STUDIES):
        row = one(comm, study, int(asked.megabytes * 1e6), asked.folder, asked.repeats)
        rows.append(row)
        if comm.rank == 0:
            print(_line(row) if number else f"{_HEADER}\n{_line(row)}", flush=True)
    return {"machine": machine, "record": rows}


def _check(asked: argparse.Namespace) -> None:
    if not asked.megabytes >= 1:
        raise UserError(f"--megabytes {asked.megabytes:g}: at least 1 is needed")


def one(comm: MPI.Comm, study: str, size: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Record about `size` bytes of a study that stands still, again and again, in turns with plain writes; collective.

    The recorder is given one iteration's models and weights over and over. Counted is what is its own: keeping,
    writing, closing the file; not what it asks of others (measures, the layout of the file at start-up, which is told
    apart). The plain write puts the very same pieces of data, chunk by chunk, dealt out to the ranks, into a file with
    `pwrite`, open and close included. Neither waits for the disk.
    """
    from mpi_resmtl import run
    from mpi_resmtl.bench.machine import write
    from mpi_resmtl.config import resolve

    length = "epochs" if study == "activity-recognition" else "iterations"
    tables = STUDIES[study] | {"rules": ["loss"], length: 1}
    planned, graph, rank = run.prepare(comm, lambda: resolve(tables, "bench"))
    part, task = rank.partition, rank.task
    words = planned.edges * 2 + planned.graph.agents * (len(task.measures) + 3)
    models = planned.graph.agents * task.parameters * task.dtype.itemsize
    a_iteration = 8 * words + models * planned.experiment.record.models
    epoch = task.epoch or 1
    iterations = planned.experiment.iterations = epoch * max(1, round(size / a_iteration / epoch))
    still = SimpleNamespace(part=np.full(len(part.row), 0.1), judge=SimpleNamespace(held=np.ones(len(part.row))))

    layouts, recorded, plain, pieces, mine, start = [], [], [], [], [], 0
    with shared_folder(comm, folder) as inside:
        # Turns begin with one and the other, so that neither always finds what the other has left in memory.
        for turn in range(2 * repeats + 1):
            path = inside / str(turn)
            if turn == 0 or turn % 4 in (1, 0):
                with np.errstate(invalid="ignore"):
                    written = _record(comm, planned, graph, rank, still, path)
                if turn == 0:
                    pieces = comm.bcast(written.pieces)
                    mine = [np.zeros(piece, np.uint8) for piece in pieces[comm.rank :: comm.size]]
                    start = sum(comm.allgather(sum(map(len, mine)))[: comm.rank])
                else:
                    layouts.append(written.layout)
                    recorded.append(written.recording)
            else:
                if comm.rank == 0:
                    path.touch()
                plain.append(timed(comm, lambda path=path, at=start, what=mine: write(path, at, what)))
            if comm.rank == 0:
                path.unlink()
    rank.close()
    total = sum(pieces)
    return {
        "study": study,
        "ranks": comm.size,
        "iterations": iterations,
        "bytes": total,
        "pieces": len(pieces),
        "recorded": spread([total / seconds for seconds in recorded], "B/s"),
        "plain": spread([total / seconds for seconds in plain], "B/s"),
        "share": spread([p / r for p, r in zip(plain, recorded, strict=True)]),
        "layout": spread(layouts, "s"),
    }


def _record(comm: MPI.Comm, planned: Plan, graph: Any, rank: Rank, still: SimpleNamespace, path: Path) -> _Written:
    """Write one whole file of an experiment in which nothing changes; collective."""
    from mpi_resmtl import recorder, run
    from mpi_resmtl.judging import Moment

    task, clock, opened = rank.task, _Totals(), []
    layout = timed(comm, lambda: opened.append(run.open_recorder(comm, planned, graph, rank, path)))
    (record, _, _), theta = opened[0], task.start()
    record.begin("loss", False, recorder.Held(accumulated=True, shares=False), task, clock)
    clock.lap("measure")
    iterations = planned.experiment.iterations
    for first in range(0, iterations, task.length):
        samples = task.samples(0)
        for i in range(min(task.length, iterations - first)):
            record.write()
            clock.lap("measure")
            record.keep(Moment(first + i, samples, None, i, theta, theta), still)
    record.end(theta, rank.exchange)
    clock.lap("record")
    record.close()
    clock.lap("record")
    longest = max(comm.allgather(clock.recording))
    comm.Barrier()
    return _Written(layout, longest, _pieces(path) if comm.rank == 0 else [])


def _pieces(path: Path) -> list[int]:
    """Bytes of every piece of a rule's data in a result file."""
    found: list[int] = []

    def look(name: str, item: h5py.HLObject) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.chunks is None:
            found.append(item.id.get_storage_size())
        else:
            found.extend(item.id.get_chunk_info(i).size for i in range(item.id.get_num_chunks()))

    with h5py.File(path) as file:
        file["rule"].visititems(look)
    return [size for size in found if size]


_HEADER = (
    f"{'study':<21} {'ranks':>5} {'MB':>9} {'pieces':>7} {'MB/s recorded (min-max)':>24} {'MB/s plain (min-max)':>24} "
    f"{'share':>7} {'layout s':>9}"
)


def _line(row: dict[str, Any]) -> str:
    speeds = [
        f"{row[what]['median'] / 1e6:.0f} ({row[what]['min'] / 1e6:.0f}-{row[what]['max'] / 1e6:.0f})".rjust(24)
        for what in ("recorded", "plain")
    ]
    return (
        f"{row['study']:<21} {row['ranks']:>5} {row['bytes'] / 1e6:>9.1f} {row['pieces']:>7} {' '.join(speeds)} "
        f"{row['share']['median']:>7.1%} {row['layout']['median']:>9.3f}"
    )
