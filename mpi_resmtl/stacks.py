"""Neighbourhoods as dense arrays: what aggregates compute on, many agents at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mpi_resmtl.graph import Graph
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.rules import Heard
from mpi_resmtl.rules.sums import total

_STACK_ELEMENTS = 2**20


@dataclass(frozen=True, eq=False)
class Stack:
    """g agents of a tile, their E_s edges laid out on n places each, those of an agent with fewer left empty."""

    agents: np.ndarray
    """(g,) rows of the agents in the rank's arrays."""
    edges: slice
    """Their edges among those of the tile."""
    slot: np.ndarray
    """(E_s,) flat place (of g * n) of each edge."""
    row: np.ndarray
    """(g, n) row of the message; one's own row in empty places."""
    present: np.ndarray
    """(g, n) bool"""
    whole: bool
    own: np.ndarray
    """(g,) place of one's own message."""
    metropolis: np.ndarray
    """(g, n) W_kl, rows sum to 1."""
    friend: np.ndarray
    """(g, n) bool: normal and of the same true group."""
    agent: np.ndarray
    """(g,) who the agents are."""
    b: np.ndarray
    """(g,) Byzantine neighbours to stand, lowered to what the rule can."""

    def spread(self, values: np.ndarray, empty: float) -> np.ndarray:
        """Values on the tile's edges (E,) on their places (g, n)."""
        if self.whole:
            return values[self.edges].reshape(self.present.shape)
        placed = np.full(self.present.size, empty, values.dtype)
        placed[self.slot] = values[self.edges]
        return placed.reshape(self.present.shape)

    def collect(self, places: np.ndarray) -> np.ndarray:
        """What is on the places (g, n) of the edges: (E_s,)."""
        return places.reshape(-1)[self.slot]

    def messages(self, rows: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
        """Messages (g, n, P), 0 where not present; `present` defaults to that of the stack."""
        heard = rows.take(self.row, axis=0)
        if present is not None:
            heard[~present] = 0
        elif not self.whole:
            heard[~self.present] = 0
        return heard

    def without(self, usable: np.ndarray, cap: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray | bool]:
        """What changes in `Heard` when only messages that are usable (E,) are present; `cap` lowers b for counts."""
        present = self.spread(usable, False)
        agents = np.arange(len(self.own))
        metropolis = np.where(present, self.metropolis, 0.0)
        metropolis[agents, self.own] = 0.0
        metropolis[agents, self.own] = 1.0 - total(metropolis)
        return {
            "present": present,
            "whole": bool(present.all()),
            "metropolis": metropolis,
            "b": np.minimum(self.b, cap(present.sum(axis=1))),
        }


def stacks(
    tile: Neighbourhoods,
    first: int,
    graph: Graph,
    degree: np.ndarray,
    parameters: int,
    cap: Callable[[np.ndarray], np.ndarray],
) -> Iterator[Stack]:
    """Cut a tile into stacks of a bounded size; `first` is the rank's first agent, `degree` (n,) without oneself.

    W_kl = 1 / (1 + max(deg_k, deg_l)), W_kk = 1 - their sum (Metropolis weights).
    """
    k, size = 0, tile.size
    while k < len(size):
        widest, stop = int(size[k]), k + 1
        while stop < len(size) and max(widest, int(size[stop])) * (stop + 1 - k) * parameters <= _STACK_ELEMENTS:
            widest = max(widest, int(size[stop]))
            stop += 1
        yield _stack(tile, first, graph, degree, cap, slice(k, stop), widest)
        k = stop


def _stack(
    tile: Neighbourhoods,
    first: int,
    graph: Graph,
    degree: np.ndarray,
    cap: Callable[[np.ndarray], np.ndarray],
    some: slice,
    places: int,
) -> Stack:
    start, size = tile.start[some], tile.size[some]
    agents = len(start)
    edges = slice(int(start[0]), int(start[-1] + size[-1]))
    source, target = tile.source[edges], tile.target[edges] + first
    place = np.arange(len(source)) - (start - start[0]).repeat(size)
    slot = np.arange(agents).repeat(size) * places + place
    own = tile.own[some] - start
    who = target[tile.own[some] - edges.start]

    present = np.zeros(agents * places, bool)
    present[slot] = True
    row = tile.row[tile.own[some]].repeat(places)
    row[slot] = tile.row[edges]
    friend = np.zeros(agents * places, bool)
    friend[slot] = ~graph.byzantine[source] & (graph.group[source] == graph.group[target])
    metropolis = np.zeros(agents * places)
    metropolis[slot] = np.where(source == target, 0.0, 1.0 / (1.0 + np.maximum(degree[source], degree[target])))
    metropolis = metropolis.reshape(agents, places)
    metropolis[np.arange(agents), own] = 1.0 - total(metropolis)
    return Stack(
        agents=tile.target[tile.own[some]],
        edges=edges,
        slot=slot,
        row=row.reshape(agents, places),
        present=present.reshape(agents, places),
        whole=bool(present.all()),
        own=own,
        metropolis=metropolis,
        friend=friend.reshape(agents, places),
        agent=who,
        b=cap(size),
    )


def heard(
    stack: Stack,
    rows: np.ndarray,
    theta: np.ndarray,
    usable: np.ndarray | None,
    cap: Callable[[np.ndarray], np.ndarray],
    **moment,
) -> Heard:
    """What the agents of a stack heard; `usable` (E,) messages of the tile, `moment` the fields that change."""
    changed = {} if usable is None else stack.without(usable, cap)
    fields = {
        "present": stack.present,
        "whole": stack.whole,
        "own": stack.own,
        "metropolis": stack.metropolis,
        "friend": stack.friend,
        "b": stack.b,
        "agent": stack.agent,
    }
    messages = stack.messages(rows, changed.get("present"))
    return Heard(messages=messages, previous=theta.take(stack.agents, axis=0), **(fields | changed | moment))
