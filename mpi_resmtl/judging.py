"""What an agent holds against the messages it hears: losses on its own samples and distances, one number an edge."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpi_resmtl import loops
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.rules import Judgement
from mpi_resmtl.tasks import Task

if TYPE_CHECKING:
    from mpi_resmtl.lending import Lending

_BY_ONE_SAMPLE: tuple[Judgement, ...] = ("loss", "fresh", "sample", "median")
"""Judgements of an iteration's messages on one sample an agent."""


class Moment(NamedTuple):
    """One iteration of a rank's agents."""

    iteration: int
    """From 0."""
    samples: Any
    """The block of samples it is in."""
    fresh: Any
    """Samples that nobody trained on, or None where the task has none."""
    i: int
    """Its place in the block."""
    theta: np.ndarray
    """(A, P) models before the iteration."""
    psi: np.ndarray
    """(A, P) intermediates."""


class Judge:
    """Judges messages as one rule asks; `held` (E_r,) is what is held against each of a rank's edges."""

    def __init__(
        self,
        task: Task,
        count: int,
        judged_by: Judgement | None,
        forgetting_factor: float,
        initial: float,
        options: object,
        lending: Lending | None = None,
    ):
        """`count` is E_r; `options` of the rule: `anchor` of `distance`, `window` iterations of `median`, `samples` of
        `recent`. `lending`: ranks of the node judge for one another; None: each for itself.
        """
        self.held = np.full(count, initial)
        self._task, self._kind, self._nu = task, judged_by, forgetting_factor
        self._lending = lending if judged_by in _BY_ONE_SAMPLE else None
        self._lookahead = getattr(options, "anchor", "previous") == "lookahead"
        if judged_by == "median":
            self._window = np.full((options.window, count), np.nan)
        if judged_by == "recent":
            self._recent: deque[tuple[Any, int]] = deque(maxlen=-(-options.samples // task.batch))

    def state(self) -> dict[str, np.ndarray]:
        """What later judgements depend on, by edge (E_r, ...)."""
        return {"held": self.held} | ({"window": self._window.T} if self._kind == "median" else {})

    def resume(self, state: dict[str, np.ndarray], done: int) -> None:
        """Go on from what `state` gave after some iterations."""
        self.held[:] = state["held"]
        if self._kind == "median":
            self._window[:] = state["window"].T
        if self._kind == "recent":
            length = self._task.length
            for iteration in range(max(0, done - self._recent.maxlen), done):
                self._recent.append((self._task.samples(iteration // length), iteration % length))

    def offer(self, moment: Moment) -> None:
        """Show the node's other ranks what they may judge for this one, before they are told that it goes on."""
        if self._lending is not None:
            self._lending.offer(self._samples(moment), moment.i, moment.iteration)

    def _samples(self, moment: Moment) -> Any:
        return moment.fresh if self._kind == "fresh" else moment.samples

    def begin(self, moment: Moment) -> None:
        """Look at what is the same for all messages of an iteration."""
        self._moment = moment
        if self._kind == "distance":
            ahead = self._lookahead
            self._from = self._task.lookahead(moment.samples, moment.i, moment.psi) if ahead else moment.theta
        if self._kind == "recent":
            self._recent.append((moment.samples, moment.i))

    def __call__(self, tile: Neighbourhoods, messages: np.ndarray, usable: np.ndarray | None) -> np.ndarray | None:
        """Judge the messages of a tile, of which some (E,) are usable, None: all; -> which are usable still.

        What is held against a message that is missing, or whose value overflows, stays as it was.
        """
        if self._kind is None:
            return usable
        held, value = self.held[tile.edges], self._value(tile, messages)
        if self._kind in ("loss", "distance", "fresh"):
            return accumulate(held, value, self._nu, usable)
        if self._kind == "median":
            return self._in_window(tile, held, value, usable)
        if usable is not None or not np.isfinite(value.sum()):
            usable = np.isfinite(value) & (True if usable is None else usable)
            value = np.where(usable, value, held)
        held[:] = value
        return usable

    def _in_window(
        self, tile: Neighbourhoods, held: np.ndarray, value: np.ndarray, usable: np.ndarray | None
    ) -> np.ndarray:
        """held <- the median of the values in the window, of messages that came; -> which are usable.

        A median does not see one value among many, so a message whose own value is above all that the victim's own
        messages had in the window is not usable.
        """
        usable = np.isfinite(value) & (True if usable is None else usable)
        self._window[self._moment.iteration % len(self._window), tile.edges] = np.where(usable, value, np.nan)
        seen = np.sort(self._window[: self._moment.iteration + 1, tile.edges], axis=0)
        count, edge = np.count_nonzero(~np.isnan(seen), axis=0), np.arange(seen.shape[1])
        middle = 0.5 * seen[(count - 1) // 2, edge] + 0.5 * seen[count // 2, edge]
        np.copyto(held, middle, where=count > 0)
        worst = seen[count[tile.own] - 1, tile.own]
        usable &= value <= tile.spread(worst)
        usable[tile.own] = True
        return usable

    def _value(self, tile: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        moment, task = self._moment, self._task
        if self._lending is not None:
            return self._lending.judge(messages)
        if self._kind == "distance":
            return tile.squared_distance(self._from, messages)
        if self._kind == "recent":
            total = np.zeros(len(tile.row))
            for samples, i in self._recent:
                total += task.judge(samples, i, tile, messages)
            return total / len(self._recent)
        return task.judge(self._samples(moment), moment.i, tile, messages)


def accumulate(
    held: np.ndarray, value: np.ndarray, forgetting_factor: float, usable: np.ndarray | None
) -> np.ndarray | None:
    """held <- (1 - nu) held + nu value, in place, where the message says something; -> usable."""
    if usable is None and loops.average_in(held, value, forgetting_factor):
        return None
    usable = np.isfinite(value) & (True if usable is None else usable)
    held[usable] = (1.0 - forgetting_factor) * held[usable] + forgetting_factor * value[usable]
    return usable
