"""Adapt-then-combine diffusion with Byzantine agents: section 2 of the design, one rank's part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpi_resmtl.adversary import Adversary
from mpi_resmtl.combining import Combiner, ServerCombiner
from mpi_resmtl.exchange import Everyone, Exchange, PartialExchange
from mpi_resmtl.judging import Moment
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.partition import Partition
from mpi_resmtl.recorder import Recorder
from mpi_resmtl.stopwatch import Stopwatch
from mpi_resmtl.tasks import Task

if TYPE_CHECKING:
    from mpi_resmtl.keeper import Keeper


@dataclass(frozen=True)
class Rank:
    """What one rank holds for a run, whatever the rule."""

    partition: Partition
    task: Task
    adversary: Adversary
    exchange: Exchange | PartialExchange
    everyone: Everyone
    rows: np.ndarray
    """(partition.rows, P): own intermediates, own attackers' messages, what is received, what is sent."""
    tiles: list[Neighbourhoods]

    def close(self) -> None:
        """Free what MPI keeps for this rank; collective."""
        self.exchange.close()
        self.everyone.close()


class Keepless:
    """Takes a keeper's place and saves nothing."""

    next = 0

    def rule(self, *ignored: object) -> None:
        """What works for a rule does not matter."""

    def begin(self, theta: np.ndarray) -> int:
        """Nothing is done before."""
        return 0


KEEPLESS = Keepless()


def diffuse(
    rank: Rank,
    combiner: Combiner | ServerCombiner,
    iterations: int,
    recorder: Recorder,
    clock: Stopwatch,
    progress: Callable[[int], None],
    keeper: Keeper | Keepless,
) -> None:
    """Run one rule for all iterations; `recorder` keeps what it finds, and `keeper` how far it has come."""
    task, rows, exchange = rank.task, rank.rows, rank.exchange
    theta = task.start()
    begun = keeper.begin(theta)
    psi = rows[: rank.partition.count]
    heard = rows[: rank.partition.heard_rows]

    for first in range(begun - begun % task.length, iterations, task.length):
        samples, fresh = task.samples(first // task.length), task.fresh(first // task.length)
        for i in range(max(0, begun - first), min(task.length, iterations - first)):
            moment = Moment(first + i, samples, fresh, i, theta, psi)
            task.adapt(samples, i, theta, psi)
            clock.lap("adapt")

            sent = rank.adversary.speak(moment, task, rows, rank.partition)
            clock.lap("attack")

            exchange.start(sent)
            clock.lap("exchange")
            recorder.write()
            exchange.finish()
            clock.lap("exchange")

            combiner(moment, rows, finite_rows(heard), recorder.wants_parts(first + i))
            rank.adversary.listen(rows, theta, rank.partition)
            recorder.keep(moment, combiner)
            progress(first + i)
            if first + i + 1 == keeper.next:
                keeper(first + i + 1, theta)
    recorder.end(theta, exchange)


def finite_rows(heard: np.ndarray) -> np.ndarray | None:
    """Which rows are finite (rows,), or None when all are; one sum tells, as NaN and Inf survive it."""
    if np.isfinite(heard.sum()):
        return None
    finite = np.isfinite(heard).all(axis=1)
    return None if finite.all() else finite
