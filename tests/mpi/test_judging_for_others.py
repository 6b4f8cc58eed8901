"""Ranks that judge for one another: the same numbers to the bit, and as much to do for all.

These tests hold at any number of ranks; `tests/test_mpi.py` runs them under mpirun at several.
"""

from __future__ import annotations

from time import sleep

import numpy as np
import pytest
from mpi4py import MPI

from mpi_resmtl.exchange import Exchange, open_exchange, shared_window
from mpi_resmtl.graph import sorted_edges
from mpi_resmtl.lending import Lending, open_lending
from mpi_resmtl.neighbourhoods import Neighbourhoods, tiles
from mpi_resmtl.partition import partition, shares
from mpi_resmtl.tasks.classifier import ClassifierTask, Samples

AGENTS, ITERATIONS, INPUTS, CLASSES = 11, 7, 4, 3
BATCH = np.array([3, 3, 3, 3, 3, 9, 9, 9, 9, 30, 30])


class Softmax:
    """A linear classifier that counts the inputs it judges."""

    inputs, classes, lends = INPUTS, CLASSES, True
    parameters = INPUTS * CLASSES
    tensors = (parameters,)

    def __init__(self):
        self.judged = 0

    def judge_some(self, rows: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        self.judged += len(which) * len(y)
        logits = np.array([x.astype(np.float64) @ rows[row].reshape(INPUTS, CLASSES) for row in which])
        if len(which) == 0:
            return np.empty(0)
        return (np.log(np.exp(logits).sum(axis=2)) - logits[:, np.arange(len(y)), y]).mean(axis=1)

    def judge(self, rows: np.ndarray, tile: Neighbourhoods, x: list, y: list) -> np.ndarray:
        return np.concatenate([self.judge_some(rows, tile.row[e], x[k], y[k]) for k, e in tile.by_agent()])


def samples(block: int, own: slice) -> Samples:
    """The same on every rank, all but a few agents asleep in any iteration."""
    random = np.random.default_rng(block)
    x = [random.random((rows, INPUTS), np.float32) for rows in BATCH.tolist()]
    y = [random.integers(0, CLASSES, rows) for rows in BATCH.tolist()]
    return Samples([x[own]], [y[own]], random.random((1, AGENTS))[:, own] < 0.3)


def opened(
    density: float, byzantine: np.ndarray, way: str
) -> tuple[Exchange, ClassifierTask, list[Neighbourhoods], Lending | None]:
    """All that a rank has; `mixed`: on two make-believe nodes."""
    comm = MPI.COMM_WORLD
    random = np.random.default_rng(1)
    pairs = np.argwhere(random.random((AGENTS, AGENTS)) < density)
    edge = sorted_edges(pairs, AGENTS, directed=True)
    part = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    own = slice(part.first, part.first + part.count)
    initial = np.zeros((part.count, Softmax.parameters), np.float32)
    task = ClassifierTask(
        Softmax(), lambda block: samples(block, own), 1, initial, 0.1, "sgd", int(BATCH.max()), epoch=0
    )
    node = comm.Split(comm.rank % 2 if way == "mixed" else 0)
    if way == "mixed":
        window = shared_window(comm, node, part, task.parameters, task.dtype)
        exchange = Exchange(comm, part, task.parameters, task.dtype, window)
    else:
        exchange = open_exchange(comm, part, task.parameters, task.dtype, way)
    part = exchange.partition
    cut = list(tiles(part.target, part.source, part.row, part.first, task.parameters, gathered=False))
    lending = open_lending(node, exchange, task, cut)
    node.Free()
    return exchange, task, cut, lending


def test_judgements_are_those_of_a_rank_by_itself_and_the_load_is_even():
    comm = MPI.COMM_WORLD
    byzantine = np.zeros(AGENTS, bool)
    byzantine[[2, 6]] = True
    exchange, task, cut, lending = opened(1.0, byzantine, "on")
    if comm.size == 1:
        assert lending is None
        exchange.close()
        return
    part, network = exchange.partition, task._network
    done = np.zeros((3, ITERATIONS))
    for iteration in range(ITERATIONS):
        exchange.turn()
        random = np.random.default_rng([iteration, comm.rank])
        exchange.mine[:] = random.standard_normal(exchange.mine.shape)
        batch = task.samples(iteration)
        lending.offer(batch, 0, iteration)
        exchange.start()
        exchange.finish()
        # A rank that is late judges by what was offered then, however far the others are.
        sleep(0.002 * (comm.rank == iteration % comm.size))
        network.judged = 0
        found = lending.judge(exchange.heard)
        ahead, alone = task.ahead(iteration), BATCH[part.target].sum()
        done[:, iteration] = network.judged, network.judged + ahead, alone + ahead
        assert found.tobytes() == task.judge(batch, 0, cut[0], exchange.heard).tobytes()
    judged, evened, by_itself = np.array(comm.allgather(done)).swapaxes(0, 1)
    assert (judged.sum(axis=0) == sum(comm.allgather(int(BATCH[part.target].sum())))).all()
    assert (evened.max(axis=0) < by_itself.max(axis=0)).all()
    lending.close()
    exchange.close()


@pytest.mark.parametrize(("density", "way"), [(0.0, "on"), (1.0, "off"), (1.0, "mixed")])
def test_nothing_is_lent_where_not_all_that_is_heard_is_read_in_place(density: float, way: str):
    exchange, _, _, lending = opened(density, np.zeros(AGENTS, bool), way)
    assert lending is None
    exchange.close()


def test_nothing_is_lent_where_a_rank_has_attackers_alone():
    byzantine = np.zeros(AGENTS, bool)
    byzantine[: AGENTS // MPI.COMM_WORLD.size] = True
    byzantine[-1] = False
    exchange, _, _, lending = opened(1.0, byzantine, "auto")
    assert lending is None
    exchange.close()
