"""The exchange between real ranks: every row arrives where it is looked up, and nothing else moves.

These tests hold at any number of ranks; `tests/test_mpi.py` runs them under mpirun at several.
"""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

from mpi_resmtl.errors import UserError
from mpi_resmtl.exchange import Exchange
from mpi_resmtl.graph import sorted_edges
from mpi_resmtl.launch import Refused, on_root, together
from mpi_resmtl.partition import partition, shares

AGENTS = 23


def case(density: float) -> tuple[np.ndarray, np.ndarray]:
    """The same random graph and attackers on every rank."""
    random = np.random.default_rng(int(100 * density))
    pairs = np.argwhere(random.random((AGENTS, AGENTS)) < density)
    return sorted_edges(pairs, AGENTS, directed=True), random.random(AGENTS) < 0.3


def marked(source: int, target: int, call: int, parameters: int, dtype: type) -> np.ndarray:
    """The row that `source` sends to `target` (-1: the same to all) in a call."""
    return np.arange(parameters, dtype=dtype) + source * 1000 + target * 31 + call * 7


@pytest.mark.parametrize("density", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(("parameters", "dtype"), [(2, np.float64), (3372, np.float32)])
def test_every_row_arrives_in_every_call(density: float, parameters: int, dtype: type):
    comm = MPI.COMM_WORLD
    edge, byzantine = case(density)
    part = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    rows = np.zeros((part.rows, parameters), dtype)
    exchange = Exchange(comm, part, rows)
    for call in range(5):
        for k in range(part.count):
            rows[k] = marked(part.first + k, -1, call, parameters, dtype)
        for (source, target), row in zip(part.spoken, part.spoken_row, strict=True):
            rows[row] = marked(source, target, call, parameters, dtype)
        exchange.start()
        exchange.finish()
        for source, target, row in zip(part.source, part.target, part.row, strict=True):
            expected = marked(source, target if byzantine[source] else -1, call, parameters, dtype)
            np.testing.assert_array_equal(rows[row], expected)
    exchange.close()


def test_only_ranks_that_share_an_edge_exchange_anything():
    comm = MPI.COMM_WORLD
    agents = 3 * comm.size
    byzantine = np.zeros(agents, bool)
    edge = sorted_edges(np.array([[2, 3], [3, 2], [2, 4]][: 3 if comm.size > 1 else 0]), agents, directed=True)
    part = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    exchange = Exchange(comm, part, np.zeros((part.rows, 4)))
    speaks = comm.size > 1 and comm.rank < 2
    exchange.start()
    exchange.finish()
    assert (exchange.messages, exchange.bytes) == ((1, 32) if speaks else (0, 0))
    assert len(part.received) == len(part.sent) == speaks
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
