"""The neighbourhoods of a run of agents as flat arrays over edges: what rules and tasks compute on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mpi_resmtl import loops

_TILE_ELEMENTS = 2**15


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Edges into `agents` (normal agents of a rank), sorted by (target, source), each agent's own edge included.

    N agents, E edges. `edges` is the slice of the rank's edge arrays that these edges are; every index array is intp.
    """

    agents: np.ndarray
    """(N,) rows of the agents in the rank's arrays."""
    edges: slice
    start: np.ndarray
    """(N,) first edge of each agent."""
    own: np.ndarray
    """(N,) the edge from each agent to itself."""
    target: np.ndarray
    """(E,) row of the edge's target in the rank's arrays."""
    source: np.ndarray
    """(E,) the agent l that speaks."""
    row: np.ndarray
    """(E,) row of the message among all rows the rank holds."""
    size: np.ndarray
    """(N,) number of edges of each agent."""
    agent: np.ndarray
    """(E,) which of the N agents the edge's target is."""
    gathered: bool
    """Whether messages are gathered, or read from the rows as they lie."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The messages on these edges, a copy (E, P); or the rows, where that is best."""
        return loops.gather(rows, self.row) if self.gathered else rows

    def by_agent(self) -> Iterator[tuple[int, slice]]:
        """Each agent's row in the rank's arrays and its edges."""
        for start, size in zip(self.start.tolist(), self.size.tolist(), strict=True):
            yield int(self.target[start]), slice(start, start + size)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum over each agent's edges, in agent order: (E,) -> (N,)."""
        return np.bincount(self.agent, values, len(self.size))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Each agent's value on each of its edges: (N,) -> (E,)."""
        return values.repeat(self.size)

    def normalise(self, share: np.ndarray) -> np.ndarray:
        """Shares (E,) >= 0 divided by their sum over each neighbourhood."""
        return loops.normalise(np.ascontiguousarray(share, np.float64), self.start)

    def inverse_weights(self, held: np.ndarray, up_to_own: bool = False) -> np.ndarray:
        """Weights proportional to 1/held (E,); `up_to_own`: 0 where more is held than against one's own message."""
        return loops.inverse_weights(held, self.start, self.own if up_to_own else None)

    def combine(self, weight: np.ndarray, messages: np.ndarray, theta: np.ndarray) -> None:
        """theta_k <- sum_l a_lk m_lk: weights float64 (E,), messages as `gather` gives them, models (A, P) likewise.

        Where messages are not gathered, only those that have weight are read.
        """
        if self.gathered:
            weight = np.ascontiguousarray(weight, np.float64)
            loops.weighted_sums(weight, messages, self.start, self.agents, theta)
            return
        for k, edges in self.by_agent():
            heard = np.flatnonzero(weight[edges])
            if len(heard) == 1:
                theta[k] = messages[self.row[edges][heard[0]]]
            else:
                heavy = weight[edges][heard].astype(messages.dtype)
                np.matmul(heavy, messages.take(self.row[edges][heard], axis=0), out=theta[k])

    def squared_distance(self, anchor: np.ndarray, messages: np.ndarray) -> np.ndarray:
        """norm(anchor_k - m_lk)^2 on each edge: anchors (A, P) of the rank's agents -> float64 (E,)."""
        if self.gathered:
            return loops.squared_distances(anchor, self.agents, self.start, messages)
        squared = np.empty(len(self.row))
        for k, edges in self.by_agent():
            difference = messages.take(self.row[edges], axis=0)
            difference -= anchor[k]
            difference *= difference
            squared[edges] = difference.sum(axis=1)
        return squared


def tiles(
    target: np.ndarray, source: np.ndarray, row: np.ndarray, first: int, parameters: int, gathered: bool
) -> Iterator[Neighbourhoods]:
    """Cut a rank's edges into neighbourhoods that fit the cache; those whose messages are not gathered stay together.

    `target`, `source` (E,) are agents, sorted by (target, source); `row` (E,) as in `Neighbourhoods`; `first` is the
    rank's first agent. Which agents share a tile changes no result.
    """
    begin = np.flatnonzero(np.diff(target, prepend=-1))
    size = np.diff(begin, append=len(target))
    budget = _TILE_ELEMENTS // parameters if gathered else len(target)
    k = 0
    while k < len(begin):
        stop = max(k + 1, int(np.searchsorted(begin + size, begin[k] + budget, side="right")))
        edges = slice(int(begin[k]), int(begin[stop - 1] + size[stop - 1]))
        t, s, r = target[edges], source[edges], row[edges]
        own = np.flatnonzero(t == s)
        yield Neighbourhoods(
            agents=t[own] - first,
            edges=edges,
            start=begin[k:stop] - begin[k],
            own=own,
            target=t - first,
            source=s,
            row=r,
            size=size[k:stop],
            agent=np.arange(stop - k).repeat(size[k:stop]),
            gathered=gathered,
        )
        k = stop
