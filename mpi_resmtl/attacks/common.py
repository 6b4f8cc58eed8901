"""What attacks share: who stands around a victim, sums in a fixed order, messages that stay finite, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Annotated, Literal

import numpy as np

from mpi_resmtl.attacks import Known, Messages, Stage

_PART_ELEMENTS = 2**20

Over = Annotated[
    Literal["neighbourhood", "all"],
    "whose models: the normal agents in the victim's neighbourhood, itself included, or those of the whole graph",
]


@dataclass(frozen=True)
class Surroundings:
    """V sets of normal agents around victims, J at most in each."""

    victim: np.ndarray
    """(V,) intp: a victim that the set stands around."""
    member: np.ndarray
    """(J, V) intp, ascending; empty places name a Byzantine agent, whose row is 0 wherever models are known."""
    present: np.ndarray
    """(J, V) bool: which places are not empty."""
    normal: np.ndarray
    """(V,) number of members."""
    byzantine: np.ndarray
    """(V,) number of Byzantine agents who speak to the victim."""
    of_edge: np.ndarray
    """(M,) intp: the set of each edge's victim."""

    def parts(self, parameters: int) -> list[Surroundings]:
        """Runs of sets small enough that all members' models fit into memory at once; `of_edge` is the whole's."""
        places, sets = self.member.shape
        size = max(1, _PART_ELEMENTS // max(1, places * parameters))
        cuts = [slice(first, first + size) for first in range(0, max(sets, 1), size)]
        return [
            Surroundings(
                self.victim[cut],
                self.member[:, cut],
                self.present[:, cut],
                self.normal[cut],
                self.byzantine[cut],
                self.of_edge,
            )
            for cut in cuts
        ]


def surroundings(stage: Stage) -> Surroundings:
    """The normal agents in each victim's neighbourhood, itself included: one set a victim."""
    victim, of_edge = np.unique(stage.target, return_inverse=True)
    source, target = stage.edge.astype(np.intp).T
    heard = np.isin(target, victim) & ~stage.byzantine[source]
    source, column = source[heard], np.searchsorted(victim, target[heard])
    normal = np.bincount(column, minlength=len(victim))
    place = np.arange(len(column)) - (np.cumsum(normal) - normal).repeat(normal)
    member = np.full((normal.max(initial=1), len(victim)), int(stage.byzantine.argmax()), np.intp)
    present = np.zeros(member.shape, bool)
    member[place, column], present[place, column] = source, True
    return Surroundings(victim.astype(np.intp), member, present, normal, _speakers(stage)[victim], of_edge)


def shared_surroundings(stage: Stage, over: str) -> Surroundings:
    """As `surroundings`, but one set for all victims who share members and the number of Byzantine neighbours.

    With `over = "all"` there is one set, every normal agent, and all Byzantine agents count.
    """
    if over == "all":
        member = np.flatnonzero(~stage.byzantine)[:, None]
        counts = np.array([len(member)]), np.array([np.count_nonzero(stage.byzantine)])
        nobody = np.zeros(1, np.intp)
        return Surroundings(nobody, member, np.ones(member.shape, bool), *counts, np.zeros(len(stage.target), np.intp))
    around = surroundings(stage)
    key = np.concatenate([around.member, around.normal[None], around.byzantine[None]])
    _, first, same = np.unique(key, axis=1, return_index=True, return_inverse=True)
    return Surroundings(
        around.victim[first],
        around.member[:, first],
        around.present[:, first],
        around.normal[first],
        around.byzantine[first],
        same.reshape(-1)[around.of_edge],
    )


def _speakers(stage: Stage) -> np.ndarray:
    """(n,) number of Byzantine agents who speak to each agent."""
    source, target = stage.edge.T
    return np.bincount(target[stage.byzantine[source] & (source != target)], minlength=stage.agents)


def by_set(
    stage: Stage, around: Surroundings, build: Callable[[Surroundings], Callable[[Known], np.ndarray]]
) -> Callable[[Known], np.ndarray]:
    """What `build(part)` computes from what is known for v sets, (v, P), for all sets: (V, P)."""
    computes = [build(part) for part in around.parts(stage.parameters)]
    if len(computes) == 1:
        return computes[0]
    return lambda known: np.concatenate([compute(known) for compute in computes])


def in_order(values: np.ndarray) -> np.ndarray:
    """Sum over the first axis, one after the other, whatever the shape of the rest."""
    total = values[0].copy()
    for value in values[1:]:
        total += value
    return total


def mean(around: Surroundings, rows: np.ndarray) -> np.ndarray:
    """Mean over each set of models (n, P): (V, P)."""
    return in_order(rows.take(around.member, axis=0)) / number(around, rows.dtype)


def number(around: Surroundings, dtype: np.dtype) -> np.ndarray:
    """Members of each set, 1 where there are none, as a column (V, 1) of `dtype`."""
    return np.maximum(around.normal, 1)[:, None].astype(dtype)


def centred(around: Surroundings, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (V, P) over each set and the members' differences from it (J, V, P), 0 in empty places."""
    difference = rows.take(around.member, axis=0)
    middle = in_order(difference) / number(around, rows.dtype)
    difference -= middle
    difference *= around.present[..., None]
    return middle, difference


def own(stage: Stage) -> Callable[[Known], np.ndarray]:
    """The attacker's own intermediate on each edge: (M, P)."""
    of_edge = np.unique(stage.source, return_inverse=True)[1]
    return lambda known: known.own.take(of_edge, axis=0)


def drawn(draw: Callable[[int], np.ndarray], length: int) -> Callable[[int], np.ndarray]:
    """Numbers of an iteration from a stream that draws blocks of `length` iterations; the last block is kept."""
    block = lru_cache(maxsize=1)(draw)
    return lambda iteration: block(iteration // length)[iteration % length]


def finite(messages: Messages) -> Messages:
    """Decorator: NaN becomes 0 and what overflows the greatest number; victims' models may be huge."""

    @wraps(messages)
    def bounded(known: Known) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            sent = messages(known)
            return sent if np.isfinite(sent.sum()) else np.nan_to_num(sent)

    return bounded


def begins(state: dict[str, np.ndarray], known: Known) -> bool:
    """Whether a run begins, as when the iterations start anew for another rule; then `state` is forgotten."""
    first = not state or known.iteration <= state["iteration"]
    if first:
        state.clear()
    state["iteration"] = np.array(known.iteration)
    return first
