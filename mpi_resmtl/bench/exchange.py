"""`bench exchange`: the suite's exchange of rows beside what MPI gives for the same bytes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_resmtl.bench import add_options, in_turns, measured, node_memory, numbers, ratio, timing
from mpi_resmtl.errors import UserError
from mpi_resmtl.launch import on_root

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_resmtl.exchange import Exchange

SIZES = (16, 1_024, 13_488, 65_536, 523_560, 2**20, 2**22, 2**24, 2**26)
"""Bytes of a row; 16, 13,488 and 523,560 are those of the paper's three studies."""
DEGREES = (1, 2, 4, 8, 16, 32)
_BLOCK = 2**14
"""Numbers averaged at a time, so that the sum is scaled while it is in the cache."""
_SHARE_OF_MEMORY = 8
"""Buffers of all ranks of a node may take one part in so many of its memory."""

Actions = dict[str, Callable[[], None]]


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add `bench exchange` to the command line."""
    parser = kinds.add_parser("exchange", help="rows from rank to rank, against raw requests and Ineighbor_alltoallv")
    parser.add_argument(
        "--bytes", default=",".join(map(str, SIZES)), help="sizes of a row, multiples of 8 (default %(default)s)"
    )
    parser.add_argument(
        "--degrees",
        default=",".join(map(str, DEGREES)),
        help="how many ranks each hears, as far as there are so many (default %(default)s)",
    )
    add_options(parser, repeats=9)
    parser.set_defaults(command=_exchange)


def _exchange(asked: argparse.Namespace) -> int:
    return measured(asked, "exchange", lambda comm: _measure(comm, asked))


def _measure(comm: MPI.Comm, asked: argparse.Namespace) -> dict[str, Any]:
    from mpi_resmtl.bench.machine import ceilings

    sizes, degrees = on_root(comm, lambda: _sizes(comm, asked)) or (None, None)
    sizes, degrees = comm.bcast((sizes, degrees))
    machine = ceilings(comm, asked.folder, min(5, asked.repeats))
    rows = []
    if comm.rank == 0:
        print(_HEADER, flush=True)
    for degree in degrees:
        for size in sizes:
            if not _fits(comm, size, degree):
                if comm.rank == 0:
                    print(
                        f"{size:>9} {degree:>6}   left out: buffers take more than 1/{_SHARE_OF_MEMORY} of the memory"
                    )
                continue
            row = one(comm, size, degree, asked.repeats)
            rows.append(row)
            if comm.rank == 0:
                print(_line(row), flush=True)
    return {"machine": machine, "exchange": rows}


def _sizes(comm: MPI.Comm, asked: argparse.Namespace) -> tuple[list[int], list[int]]:
    sizes, degrees = numbers(asked.bytes, "--bytes", 8), numbers(asked.degrees, "--degrees")
    odd = [size for size in sizes if size % 8 or size > 2**30]
    if odd:
        raise UserError(f"--bytes {odd[0]}: a row has a multiple of 8 bytes, at most 2^30")
    possible = [degree for degree in degrees if degree < comm.size]
    if not possible:
        raise UserError(
            f"bench exchange with --degrees {asked.degrees} needs {min(degrees) + 1} ranks or more, there are "
            f"{comm.size}; start it under mpirun -n {min(degrees) + 1}"
        )
    return sizes, possible


def _fits(comm: MPI.Comm, size: int, degree: int) -> bool:
    """Whether the buffers of all ranks leave the nodes enough memory; the same on every rank."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    needed = node.size * size * (2 * degree + 8)
    node.Free()
    return comm.allreduce(needed * _SHARE_OF_MEMORY <= node_memory(), MPI.LAND)


def one(comm: MPI.Comm, size: int, degree: int, repeats: int) -> dict[str, Any]:
    """Time one row of `size` bytes from each rank to the next `degree` ones; collective.

    An agent a rank. Ways, by turns: `exchange`, the suite's as it is by default, and `messages`, its rows travelling as
    messages; `raw`, persistent requests from and into buffers of their own; `neighbour`, one `Ineighbor_alltoallv` on a
    graph communicator. Each alone (`moved`), and followed by the mean of one's own row and those heard, written where
    the next row is sent from (`averaged`): in place for all but rows in shared memory, which takes the next turn's.
    Only the second says what reading in place costs, as nothing is moved before.
    """
    ways = {
        "exchange": _ours(comm, size, degree, "auto"),
        "messages": _ours(comm, size, degree, "off"),
        "raw": _raw(comm, size, degree),
        "neighbour": _neighbour(comm, size, degree),
    }
    found = {}
    for what in ("moved", "averaged"):
        found[what] = in_turns(comm, {name: way[what] for name, way in ways.items()}, repeats)
    shared = ways["exchange"]["shared"]
    for way in ways.values():
        way["close"]()
    row = {"bytes": size, "degree": degree, "shared": shared}
    for what, times in found.items():
        row[what] = {name: timing(times[name]) for name in ways}
        row[f"{what}_raw_over"] = {name: ratio(times["raw"], times[name]) for name in ways if name != "raw"}
    row["bandwidth"] = {name: size * degree / times["median"] for name, times in row["averaged"].items()}
    return row


def _peers(comm: MPI.Comm, degree: int) -> tuple[list[int], list[int]]:
    """The ranks that a rank tells and those that it hears, on a circle."""
    steps = range(1, degree + 1)
    return [(comm.rank + s) % comm.size for s in steps], [(comm.rank - s) % comm.size for s in steps]


def _mean(rows: list[np.ndarray], into: np.ndarray) -> None:
    """Mean of rows (P,), written block by block; `into` may be the first of them."""
    share = into.dtype.type(1 / len(rows))
    for start in range(0, len(into), _BLOCK):
        block = slice(start, start + _BLOCK)
        total = into[block]
        np.add(rows[0][block], rows[1][block], out=total)
        for row in rows[2:]:
            total += row[block]
        total *= share


def _ours(comm: MPI.Comm, size: int, degree: int, shared: str) -> dict[str, Any]:
    from mpi_resmtl.exchange import open_exchange
    from mpi_resmtl.graph import sorted_edges
    from mpi_resmtl.partition import partition, shares

    agents, steps = np.arange(comm.size), np.arange(1, degree + 1)[:, None]
    pairs = np.stack(np.broadcast_arrays(agents, (agents + steps) % comm.size), axis=-1)
    edge = sorted_edges(pairs, comm.size, directed=True)
    nobody = np.zeros(comm.size, bool)
    part = partition(shares(edge, nobody, comm.size)[comm.rank], comm.rank, nobody)
    exchange: Exchange = open_exchange(comm, part, size // 8, np.dtype(np.float64), shared)
    exchange.mine[:] = 1.0
    own = exchange.partition.row[exchange.partition.source == comm.rank]
    order = np.concatenate([own, exchange.partition.row[exchange.partition.source != comm.rank]]).tolist()

    def moved() -> None:
        exchange.turn()
        exchange.start()
        exchange.finish()

    def averaged() -> None:
        exchange.start()
        exchange.finish()
        heard = exchange.heard
        exchange.turn()
        _mean([heard[row] for row in order], exchange.mine[0])

    return {"moved": moved, "averaged": averaged, "shared": exchange.shared, "close": exchange.close}


def _raw(comm: MPI.Comm, size: int, degree: int) -> dict[str, Any]:
    from mpi4py import MPI

    told, heard = _peers(comm, degree)
    own, inbox = np.ones(size // 8), np.zeros((degree, size // 8))
    requests = [comm.Recv_init(row, source=peer, tag=1) for row, peer in zip(inbox, heard, strict=True)]
    requests += [comm.Send_init(own, dest=peer, tag=1) for peer in told]

    def moved() -> None:
        MPI.Prequest.Startall(requests)
        MPI.Request.Waitall(requests)

    def averaged() -> None:
        moved()
        _mean([own, *inbox], own)

    def close() -> None:
        for request in requests:
            request.Free()

    return {"moved": moved, "averaged": averaged, "close": close}


def _neighbour(comm: MPI.Comm, size: int, degree: int) -> dict[str, Any]:
    from mpi4py import MPI

    told, heard = _peers(comm, degree)
    around = comm.Create_dist_graph_adjacent(heard, told)
    own, inbox = np.ones(size // 8), np.zeros((degree, size // 8))
    counts = [len(own)] * degree
    out = [own, counts, [0] * degree, MPI.DOUBLE]
    into = [inbox, counts, [len(own) * place for place in range(degree)], MPI.DOUBLE]

    def moved() -> None:
        around.Ineighbor_alltoallv(out, into).Wait()

    def averaged() -> None:
        moved()
        _mean([own, *inbox], own)

    return {"moved": moved, "averaged": averaged, "close": around.Free}


_COLUMNS = ("exchange", "messages", "raw", "neighbour", "raw/exchange", "raw/messages")
_HEADER = f"{'':>24}{'moved, us':>63}{'moved and averaged, us':>65}\n{'bytes':>9} {'degree':>6} {'shared':>6} " + 2 * (
    "  " + "".join(f"{c:>{max(10, len(c) + 1)}}" for c in _COLUMNS)
)


def _line(row: dict[str, Any]) -> str:
    """One row of the table: medians in us, and how many times as long the raw requests take."""
    line = f"{row['bytes']:>9} {row['degree']:>6} {'yes' if row['shared'] else 'no':>6} "
    for what in ("moved", "averaged"):
        times, over = row[what], row[f"{what}_raw_over"]
        line += "  " + "".join(f"{times[name]['median'] * 1e6:>10.1f}" for name in _COLUMNS[:4])
        line += "".join(f"{over[name]['median']:>13.2f}" for name in ("exchange", "messages"))
    return line
