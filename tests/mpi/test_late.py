"""The exchange with a deadline between real ranks some of which sleep: what is late is missing, and stays so.

These tests hold at any number of ranks; `tests/test_mpi.py` runs them under mpirun at several.
"""

from __future__ import annotations

from time import sleep

import numpy as np
import pytest
from mpi4py import MPI
from test_exchange import case, marked

from mpi_resmtl.exchange import DeadlineExchange
from mpi_resmtl.partition import Partition, partition, shares
from mpi_resmtl.signals import LooseVotes

PARAMETERS = {"small": 3, "large": 10_000}
"""Messages that MPI keeps for a receiver that does not look, and such that wait at the sender."""


class Crew:
    """A rank's exchange, and what came by it."""

    def __init__(self, parameters: int, seconds: float):
        comm = MPI.COMM_WORLD
        edge, byzantine = case(0.9)
        self.part: Partition = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
        self.byzantine, self.parameters = byzantine, parameters
        self.exchange = DeadlineExchange(comm, self.part, parameters, np.dtype(np.float64), seconds)
        self.lost = np.zeros(self.part.heard_rows, np.int64)

    def call(self, number: int) -> np.ndarray:
        """One iteration; -> which rows arrived. What arrived is of this iteration, what did not is NaN."""
        exchange, part = self.exchange, self.part
        exchange.turn()
        if exchange.behind:
            exchange.stand_still()
            self.lost += 1
            return np.zeros(part.heard_rows, bool)
        own = [marked(part.first + k, -1, number, self.parameters, np.float64) for k in range(part.count)]
        exchange.mine[: part.count] = own
        for (source, target), row in zip(part.spoken, part.spoken_row, strict=True):
            exchange.mine[row] = marked(source, target, number, self.parameters, np.float64)
        exchange.start()
        exchange.finish()
        arrived = np.ones(part.heard_rows, bool) if exchange.arrived is None else exchange.arrived.copy()
        for source, target, row in zip(part.source, part.target, part.row, strict=True):
            expected = marked(source, target if self.byzantine[source] else -1, number, self.parameters, np.float64)
            np.testing.assert_array_equal(exchange.heard[row], expected if arrived[row] else np.nan)
        self.lost += ~arrived
        return arrived

    def end(self) -> None:
        """All that did not arrive was counted, and the exchange ends however much is still on its way."""
        np.testing.assert_array_equal(self.exchange.missed, self.lost)
        self.exchange.close()


@pytest.mark.parametrize("size", PARAMETERS)
def test_who_sleeps_is_missed_and_takes_part_again(size: str):
    comm = MPI.COMM_WORLD
    crew, sleeps = Crew(PARAMETERS[size], 0.1), comm.rank == comm.size - 1
    awake = None
    for number in range(100):
        if number == (20 if sleeps else 60):
            awake = comm.Ibarrier()
            if sleeps:
                awake.Wait()
        crew.call(number)
    awake.Wait()
    if comm.size > 1 and not sleeps:
        assert crew.lost[crew.part.count :].max() >= 40
    comm.Barrier()
    crew.exchange.seconds = 60.0
    for number in range(100, 120):
        arrived = crew.call(number)
        sleep(0.002)
    assert arrived.all()
    crew.end()


@pytest.mark.parametrize("size", PARAMETERS)
def test_no_message_is_ever_taken_for_one_of_another_iteration(size: str):
    comm = MPI.COMM_WORLD
    random = np.random.default_rng(comm.rank)
    crew = Crew(PARAMETERS[size], 0.01)
    for number in range(100):
        if random.random() < 0.1:
            sleep(random.exponential(0.02))
        crew.call(number)
    crew.end()


def test_ranks_that_do_not_wait_meet_where_the_first_is_and_end_together():
    comm = MPI.COMM_WORLD
    votes = LooseVotes(comm, 0.0)
    met, next_ = None, 1
    for at in range(1, 3000 * (comm.rank + 1)):
        if at >= next_:
            ballot = votes.vote(15 if comm.rank == 0 and at > 100 else 0, at)
            next_ = ballot.next
            if ballot.number:
                met = ballot
        sleep(0.0002)
        if met is not None and at == met.at:
            break
    every = comm.allgather(None if met is None else (met.number, met.at))
    assert every == [every[0]] * comm.size
    assert every[0] is None or every[0][0] == 15
    votes.close()
