"""The machine's ceilings, in the same run as what is held against them: arithmetic, memory, messages, files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_resmtl import loops
from mpi_resmtl.bench import in_turns, shared_folder, spread, timed
from mpi_resmtl.bench.peak import gemm_peak

if TYPE_CHECKING:
    from mpi4py import MPI

COPIED = 2**26
"""Bytes of the arrays that are copied, beyond any cache."""
WRITTEN = 2**25
"""Bytes a rank writes."""
_LARGE = 2**22
"""Bytes of the message by which bandwidth is told."""
_SMALL = 16
_BURST = 32
_SIDE = 128
_WARM_UP = 200
_SUSTAINED = 0.1
"""Seconds for which ranks work on end."""
_TABLES = tuple(2**power for power in range(12, 25, 2))
"""Bytes of tables that fit the first cache, and that fit none but the last."""
_EDGES_A_ROW = 10
_RUN = 2**14


def ceilings(comm: MPI.Comm, folder: Path, repeats: int) -> dict[str, Any]:
    """What all ranks of `comm` reach at once, and pairs of them by messages; collective, counts on rank 0.

    `gemm`: float32 operations a second of a rank (`peak.gemm_peak`), the mean over ranks. `copy`: bytes a second of a
    rank that copies 64 MiB, read and written bytes counted both. `product`: see `pace`. `messages`: see `messages`,
    "within" a node and "across" nodes, where there are two such ranks. `file`: bytes a second of all ranks that write
    32 MiB each into one file in `folder`, side by side, open and close included.
    """
    peaks = [np.mean(comm.allgather(gemm_peak(comm))) for _ in range(repeats)]
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
    copies = in_turns(comm, {"copy": lambda: np.copyto(target, source)}, repeats)["copy"]["seconds"]
    files = [WRITTEN * comm.size / seconds for seconds in written(comm, folder, WRITTEN, repeats)]
    return {
        "ranks": comm.size,
        "nodes": nodes(comm),
        "gemm": spread([float(peak) for peak in peaks], "operations/s"),
        "copy": spread([2 * COPIED / seconds for seconds in copies], "B/s"),
        "product": spread(pace(comm, repeats), "s"),
        "messages": {where: messages(comm, pair, repeats) for where, pair in pairs(comm).items()},
        "file": spread(files, "B/s"),
    }


def nodes(comm: MPI.Comm) -> list[int]:
    """How many ranks each node has, in the order of their first ranks; collective."""
    first = _first_on_node(comm)
    return [first.count(rank) for rank in dict.fromkeys(first)]


def pairs(comm: MPI.Comm) -> dict[str, tuple[int, int]]:
    """The first two ranks that are "within" one node and the first two "across" nodes, where there are such."""
    first, found = _first_on_node(comm), {}
    for rank in range(1, comm.size):
        found.setdefault("within" if first[rank] == first[0] else "across", (0, rank))
    for rank in range(1, comm.size):
        if first[rank] != rank:
            found.setdefault("within", (first[rank], rank))
    return found


def _first_on_node(comm: MPI.Comm) -> list[int]:
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = node.bcast(comm.rank)
    node.Free()
    return comm.allgather(first)


def pace(comm: MPI.Comm, repeats: int) -> list[float]:
    """Seconds of a product of `Work`, one after another for a while, all ranks being at it; collective."""
    work = Work(comm)
    products = max(1, round(_SUSTAINED / work.once))
    return [timed(comm, lambda: work(products)) / products for _ in range(repeats)]


def reading(comm: MPI.Comm, repeats: int) -> list[dict[str, Any]]:
    """What memory gives, all ranks being at it: seconds an edge, for ever larger tables; collective.

    An edge is a row of 16 B read at random from a rank's table of so many `bytes`, and a number of 8 B that is read and
    written, one after another. There are ten edges a row, shared out among the ranks; they come in runs, as in rules.
    """
    random, rows = np.random.default_rng(comm.rank), []
    for size in _TABLES:
        table = np.ones((size // _SMALL, 2))
        held = np.ones(max(_RUN, _EDGES_A_ROW * len(table) // comm.size))
        row = random.integers(len(table), size=len(held))

        def edges(table: np.ndarray = table, row: np.ndarray = row, held: np.ndarray = held) -> None:
            for first in range(0, len(row), _RUN):
                run = slice(first, first + _RUN)
                loops.gather(table, row[run])
                held[run] *= 1.0

        found = in_turns(comm, {"edges": edges}, repeats)["edges"]["seconds"]
        rows.append({"bytes": size, "edge": spread([seconds / len(held) for seconds in found], "s")})
    return rows


class Work:
    """A piece of arithmetic by which the pace of a machine is told: products of two 128 x 128 float32 matrices."""

    def __init__(self, comm: MPI.Comm):
        self._left, self._right = np.ones((2, _SIDE, _SIDE), np.float32)
        self._into = np.empty_like(self._left)
        began = perf_counter()
        self(_WARM_UP)
        self.once = comm.bcast((perf_counter() - began) / _WARM_UP)
        """Seconds of a product, about; the same on all ranks."""

    def __call__(self, products: int) -> None:
        """Do so many."""
        for _ in range(products):
            np.matmul(self._left, self._right, out=self._into)


def messages(comm: MPI.Comm, pair: tuple[int, int], repeats: int) -> dict[str, Any]:
    """How messages go between two ranks over persistent requests, the others waiting; collective.

    `latency`: half a round trip of 16 B. `overhead`: what each further message of 16 B costs a rank that sends and
    receives 32 of them at once. `bandwidth`: 4 MiB over half its round trip.
    """
    trips = {"small": (_SMALL, 1), "burst": (_SMALL, _BURST), "large": (_LARGE, 1)}
    actions, requests = {}, []
    for name, (size, count) in trips.items():
        actions[name], made = _round_trip(comm, pair, size, count)
        requests += made
    found = in_turns(comm, actions, repeats)
    for request in requests:
        request.Free()
    half = {name: [seconds / 2 for seconds in times["seconds"]] for name, times in found.items()}
    further = [(b - s) / (_BURST - 1) for b, s in zip(half["burst"], half["small"], strict=True)]
    return {
        "latency": spread(half["small"], "s"),
        "overhead": spread([max(0.0, seconds) for seconds in further], "s"),
        "bandwidth": spread([_LARGE / seconds for seconds in half["large"]], "B/s"),
    }


def _round_trip(
    comm: MPI.Comm, pair: tuple[int, int], size: int, count: int
) -> tuple[Callable[[], None], list[MPI.Prequest]]:
    """`count` messages of `size` bytes there and then as many back between two ranks; -> this, and its requests."""
    from mpi4py import MPI

    if comm.rank not in pair:
        return lambda: None, []
    out, into = np.zeros((count, size), np.uint8), np.zeros((count, size), np.uint8)
    peer = pair[1 - pair.index(comm.rank)]
    sends = [comm.Send_init(row, dest=peer, tag=2) for row in out]
    receives = [comm.Recv_init(row, source=peer, tag=2) for row in into]
    order = (sends, receives) if comm.rank == pair[0] else (receives, sends)

    def there_and_back() -> None:
        for requests in order:
            MPI.Prequest.Startall(requests)
            MPI.Request.Waitall(requests)

    return there_and_back, sends + receives


def written(comm: MPI.Comm, folder: Path, size: int, repeats: int) -> list[float]:
    """Seconds that all ranks take to write `size` bytes each, side by side into one file of `folder`; collective."""
    data = np.full(size, comm.rank % 251, np.uint8)
    seconds = []
    with shared_folder(comm, folder) as inside:
        for number in range(repeats + 1):
            path = inside / f"{number}"
            if comm.rank == 0:
                path.touch()
            seconds.append(timed(comm, lambda path=path: write(path, comm.rank * size, [data])))
    return seconds[1:]


def write(path: Path, start: int, pieces: list[np.ndarray]) -> None:
    """Write pieces one after another from byte `start` of a file on, with nothing between them and the system."""
    file = os.open(path, os.O_WRONLY)
    for piece in pieces:
        left = memoryview(piece).cast("B")
        while left:
            done = os.pwrite(file, left, start)
            left, start = left[done:], start + done
    os.close(file)
