"""Adapt-then-combine diffusion with Byzantine agents: section 2 of the design, one rank's part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpi_resmtl import loops
from mpi_resmtl.adversary import Adversary
from mpi_resmtl.combining import Combiner, ServerCombiner
from mpi_resmtl.exchange import DeadlineExchange, Everyone, Exchange, PartialExchange
from mpi_resmtl.judging import Moment
from mpi_resmtl.lending import Lending
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

    task: Task
    adversary: Adversary
    exchange: Exchange | PartialExchange
    everyone: Everyone
    tiles: list[Neighbourhoods]
    lending: Lending | None = None
    """How ranks of the node judge for one another; None: each judges for itself."""

    @property
    def partition(self) -> Partition:
        """The rank's agents and edges, and the rows that the exchange has for them."""
        return self.exchange.partition

    def close(self) -> None:
        """Free what MPI keeps for this rank; collective."""
        if self.lending is not None:
            self.lending.close()
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
    task, adversary, exchange, partition = rank.task, rank.adversary, rank.exchange, rank.partition
    theta = task.start()
    begun = keeper.begin(theta)

    for first in range(begun - begun % task.length, iterations, task.length):
        samples, fresh = task.samples(first // task.length), task.fresh(first // task.length)
        for i in range(max(0, begun - first), min(task.length, iterations - first)):
            exchange.turn()
            psi = exchange.mine[: partition.count]
            moment = Moment(first + i, samples, fresh, i, theta, psi)
            if exchange.behind:
                stand_still(moment, exchange, combiner)
                recorder.write()
            else:
                task.adapt(samples, i, theta, psi)
                clock.lap("adapt")

                sent = adversary.speak(moment, task, exchange.mine, partition)
                clock.lap("attack")

                combiner.judge.offer(moment)
                exchange.start(sent)
                clock.lap("exchange")
                clock.doing = "record"
                recorder.write()
                clock.doing = "exchange"
                exchange.finish()
                clock.lap("exchange")

                finite = finite_rows(exchange.heard, exchange.parts)
                combiner(moment, exchange.heard, finite, exchange.arrived, recorder.wants_parts(first + i))
                clock.doing = "record"
                adversary.listen(exchange.heard, exchange.arrived, psi, theta, partition)
            recorder.keep(moment, combiner)
            progress(first + i)
            if first + i + 1 == keeper.next:
                keeper(first + i + 1, theta)
    clock.doing = "record"
    recorder.end(theta, exchange)


def stand_still(moment: Moment, exchange: DeadlineExchange, combiner: Combiner | ServerCombiner) -> None:
    """Let an iteration pass that others have done without this rank: its agents neither learn nor hear."""
    moment.psi[:] = moment.theta
    exchange.stand_still()
    combiner.stand_still()


def finite_rows(rows: np.ndarray, parts: list[slice]) -> np.ndarray | None:
    """Which rows are finite (R,), or None when all are; of `rows` (R, P) only some parts are looked at."""
    suspects = [part for part in parts if not loops.all_finite(rows[part])]
    if not suspects:
        return None
    finite = np.ones(len(rows), bool)
    for part in suspects:
        finite[part] = np.isfinite(rows[part]).all(axis=1)
    return finite
