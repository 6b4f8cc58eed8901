"""The exchange between real ranks: every row arrives where it is looked up, and nothing else moves.

These tests hold at any number of ranks; `tests/test_mpi.py` runs them under mpirun at several.
"""

from __future__ import annotations

import os
from time import sleep

import numpy as np
import pytest
from mpi4py import MPI

from mpi_resmtl.errors import UserError
from mpi_resmtl.exchange import Exchange, open_exchange, shared_window
from mpi_resmtl.graph import sorted_edges
from mpi_resmtl.launch import Refused, on_root, together
from mpi_resmtl.partition import Partition, partition, shares

AGENTS = 23


def case(density: float) -> tuple[np.ndarray, np.ndarray]:
    """The same random graph and attackers on every rank."""
    random = np.random.default_rng(int(100 * density))
    pairs = np.argwhere(random.random((AGENTS, AGENTS)) < density)
    return sorted_edges(pairs, AGENTS, directed=True), random.random(AGENTS) < 0.3


def marked(source: int, target: int, call: int, parameters: int, dtype: type) -> np.ndarray:
    """The row that `source` sends to `target` (-1: the same to all) in a call."""
    return np.arange(parameters, dtype=dtype) + source * 1000 + target * 31 + call * 7


def opened(part: Partition, parameters: int, dtype: type, way: str) -> Exchange:
    """An exchange of messages, in place, or (`mixed`) in place between ranks of two make-believe nodes only."""
    comm = MPI.COMM_WORLD
    if way == "deadline":
        return open_exchange(comm, part, parameters, np.dtype(dtype), deadline=60.0)
    if way != "mixed":
        return open_exchange(comm, part, parameters, np.dtype(dtype), way)
    node = comm.Split(comm.rank % 2)
    window = shared_window(comm, node, part, parameters, np.dtype(dtype))
    node.Free()
    return Exchange(comm, part, parameters, np.dtype(dtype), window)


@pytest.mark.parametrize("way", ["off", "on", "mixed", "deadline"])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(("parameters", "dtype"), [(2, np.float64), (3372, np.float32)])
def test_every_row_arrives_in_every_call(density: float, parameters: int, dtype: type, way: str):
    comm = MPI.COMM_WORLD
    edge, byzantine = case(density)
    plain = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    exchange = opened(plain, parameters, dtype, way)
    part = exchange.partition
    for call in range(5):
        exchange.turn()
        for k in range(part.count):
            exchange.mine[k] = marked(part.first + k, -1, call, parameters, dtype)
        for (source, target), row in zip(part.spoken, part.spoken_row, strict=True):
            exchange.mine[row] = marked(source, target, call, parameters, dtype)
        exchange.start()
        exchange.finish()
        # A rank that is late reads what was said then, however far the others are.
        sleep(0.002 * (comm.rank == call % comm.size))
        for source, target, row in zip(part.source, part.target, part.row, strict=True):
            expected = marked(source, target if byzantine[source] else -1, call, parameters, dtype)
            np.testing.assert_array_equal(exchange.heard[row], expected)
        into = edge[part.edges]
        overheard = into[byzantine[into[:, 1]] & (into[:, 0] != into[:, 1])]
        for (source, target), row in zip(overheard, part.overheard_row, strict=True):
            expected = marked(source, target if byzantine[source] else -1, call, parameters, dtype)
            np.testing.assert_array_equal(exchange.heard[row], expected)
    sent = [block.rows.stop - block.rows.start for block in plain.sent]
    assert (exchange.messages, exchange.bytes) == (5 * len(sent), 5 * sum(sent) * parameters * np.dtype(dtype).itemsize)
    exchange.close()


@pytest.mark.parametrize("way", ["off", "on"])
def test_only_ranks_that_share_an_edge_exchange_anything(way: str):
    comm = MPI.COMM_WORLD
    agents = 3 * comm.size
    byzantine = np.zeros(agents, bool)
    edge = sorted_edges(np.array([[2, 3], [3, 2], [2, 4]][: 3 if comm.size > 1 else 0]), agents, directed=True)
    part = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    exchange = open_exchange(comm, part, 4, np.dtype(np.float64), way)
    speaks = comm.size > 1 and comm.rank < 2
    exchange.turn()
    exchange.start()
    exchange.finish()
    assert (exchange.messages, exchange.bytes) == ((1, 32) if speaks else (0, 0))
    assert len(part.received) == len(part.sent) == speaks
    exchange.close()


def test_what_is_heard_cannot_be_written():
    comm = MPI.COMM_WORLD
    edge, byzantine = case(0.9)
    part = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    for way in ("off", "on"):
        exchange = open_exchange(comm, part, 4, np.dtype(np.float64), way)
        assert exchange.shared == (way == "on" and comm.size > 1)
        exchange.turn()
        with pytest.raises(ValueError, match="read-only"):
            exchange.heard[0] = 1.0
        exchange.close()


def test_too_little_shared_memory_is_refused_on_all_ranks_and_does_without_where_it_may(monkeypatch):
    comm = MPI.COMM_WORLD
    if comm.size == 1:
        pytest.skip("one rank shares nothing")
    edge, byzantine = case(0.9)
    part = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    if comm.rank == comm.size - 1:
        full = os.statvfs_result((4096, 4096, 100, 0, 0, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(UserError, match=r"exchange\.shared = 'on': a node needs .* bytes .* 0 left"):
        open_exchange(comm, part, 4, np.dtype(np.float64), "on")
    exchange = open_exchange(comm, part, 4, np.dtype(np.float64), "auto")
    assert not exchange.shared
    exchange.close()


def test_an_error_of_a_user_on_one_rank_is_refused_on_all():
    def action() -> int:
        if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
            raise UserError("a bad file")
        return 1

    with pytest.raises(Refused):
        together(MPI.COMM_WORLD, action)
    assert together(MPI.COMM_WORLD, lambda: MPI.COMM_WORLD.rank) == MPI.COMM_WORLD.rank
    assert on_root(MPI.COMM_WORLD, lambda: "told") == ("told" if MPI.COMM_WORLD.rank == 0 else None)
