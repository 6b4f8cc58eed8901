"""Adapt-then-combine diffusion with Byzantine agents: section 2 of the design, one rank's part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpi_resmtl.attacks import Messages
from mpi_resmtl.exchange import Exchange
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.partition import Partition
from mpi_resmtl.recorder import Recorder
from mpi_resmtl.rules import Rule
from mpi_resmtl.stopwatch import Stopwatch
from mpi_resmtl.tasks import Task


@dataclass(frozen=True)
class Rank:
    """What one rank holds for a run, whatever the rule."""

    partition: Partition
    task: Task
    attack: Messages
    exchange: Exchange
    rows: np.ndarray
    """(partition.rows, P): own intermediates, own attackers' messages, what is received, what is sent."""
    tiles: list[Neighbourhoods]
    attackers: np.ndarray
    """Own agents that are Byzantine and whose models their attack knows: these train alone."""


def diffuse(
    rank: Rank,
    name: str,
    rule: Rule,
    options: object,
    iterations: int,
    forgetting_factor: float,
    initial_accumulated_loss: float,
    recorder: Recorder,
    progress: Callable[[int], None],
) -> None:
    """Run one rule for all iterations; `recorder` keeps what it finds under the rule's name."""
    task, rows, exchange = rank.task, rank.rows, rank.exchange
    theta = task.start()
    psi = rows[: rank.partition.count]
    heard = rows[: rank.partition.heard_rows]
    accumulated = np.full(len(rank.partition.source), initial_accumulated_loss)
    weight = np.empty_like(accumulated)
    clock = Stopwatch()
    recorder.begin(name, task, clock, rule.judged_by is not None)

    for first in range(0, iterations, task.length):
        samples = task.samples(first // task.length)
        for i in range(min(task.length, iterations - first)):
            task.adapt(samples, i, theta, psi)
            clock.lap("adapt")

            rows[rank.partition.spoken_row] = rank.attack(first + i, psi)
            clock.lap("attack")

            exchange.start()
            clock.lap("exchange")
            recorder.write()
            exchange.finish()
            clock.lap("exchange")

            finite = _finite_rows(heard)
            anchor = _anchor(options, task, samples, i, theta, psi) if rule.judged_by == "distance" else None
            for tile in rank.tiles:
                messages = tile.gather(rows)
                judged = accumulated[tile.edges]
                usable = _usable(finite, tile)
                if rule.judged_by == "loss":
                    usable = _accumulate(judged, task.judge(samples, i, tile, messages), forgetting_factor, usable)
                elif rule.judged_by == "distance":
                    usable = _accumulate(judged, tile.squared_distance(anchor, messages), forgetting_factor, usable)
                clock.lap("evaluate")

                a = rule.weigh(tile, judged)
                if usable is not None and not rule.trusting:
                    a = _without(tile, a, usable, messages)
                combined = tile.combine(a, messages)
                weight[tile.edges] = a
                theta[tile.agents] = combined
                clock.lap("combine")

            if rank.attackers.size:
                theta[rank.attackers] = psi[rank.attackers]
            recorder.keep(first + i, samples, psi, theta, weight, accumulated)
            progress(first + i)
    recorder.end(theta, exchange)


def _finite_rows(heard: np.ndarray) -> np.ndarray | None:
    """Which rows are finite (rows,), or None when all are; one sum tells, as NaN and Inf survive it."""
    if np.isfinite(heard.sum()):
        return None
    finite = np.isfinite(heard).all(axis=1)
    return None if finite.all() else finite


def _usable(finite: np.ndarray | None, tile: Neighbourhoods) -> np.ndarray | None:
    """Which messages may have weight (E,), or None when all may; one's own always may."""
    if finite is None:
        return None
    usable = finite[tile.row]
    usable[tile.own] = True
    return usable


def _anchor(options: object, task: Task, samples: object, i: int, theta: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """theta~ (A, P), what the distance rule compares messages with."""
    return theta if options.anchor == "previous" else task.lookahead(samples, i, psi)


def _accumulate(
    accumulated: np.ndarray, value: np.ndarray, forgetting_factor: float, usable: np.ndarray | None
) -> np.ndarray | None:
    """accumulated <- (1 - nu) accumulated + nu value, in place, where the message says something; -> usable.

    What is held against a message that is missing, or whose value overflows, stays as it was.
    """
    if usable is None and not np.isfinite(value.sum()):
        usable = np.isfinite(value)
    if usable is None:
        accumulated *= 1.0 - forgetting_factor
        value *= forgetting_factor
        accumulated += value
        return None
    usable = usable & np.isfinite(value)
    updated = (1.0 - forgetting_factor) * accumulated[usable] + forgetting_factor * value[usable]
    accumulated[usable] = updated
    return usable


def _without(tile: Neighbourhoods, weight: np.ndarray, usable: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """Weights with 0 on what is not usable, their sum 1 again; gathered copies of such messages become 0."""
    usable = usable.copy()
    usable[tile.own] = True
    if tile.element is not None:
        messages[~usable] = 0.0
    weight = np.where(usable, weight, 0.0)
    lonely = tile.total(weight) == 0.0
    weight[tile.own[lonely]] = 1.0
    return tile.normalise(weight)
