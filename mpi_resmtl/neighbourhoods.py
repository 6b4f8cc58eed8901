"""The neighbourhoods of a run of agents as flat arrays over edges: what rules and tasks compute on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_TILE_ELEMENTS = 2**15


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Edges into `agents` (normal agents of a rank), sorted by (target, source), each agent's own edge included.

    N agents, E edges. `edges` is the slice of the rank's edge arrays that these edges are; every index array is intp.
    """

    agents: np.ndarray | slice
    """(N,) rows of the agents in the rank's arrays."""
    edges: slice
    start: np.ndarray
    """(N,) first edge of each agent."""
    own: np.ndarray
    """(N,) the edge from each agent to itself."""
    target: np.ndarray
    """(E,) row of the edge's target in the rank's arrays."""
    own_of_target: np.ndarray
    """(E,) the own edge of the edge's target."""
    source: np.ndarray
    """(E,) the agent l that speaks."""
    row: np.ndarray
    """(E,) row of the message among all rows the rank holds."""
    size: np.ndarray
    """(N,) number of edges of each agent."""
    element: np.ndarray | None
    """(P, E) places of the message's parameters in the flattened rows, where messages are gathered; else None."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The messages on these edges, a copy (E, P) stored parameter by parameter; or the rows, where that is best."""
        return rows if self.element is None else rows.reshape(-1).take(self.element).T

    def by_agent(self) -> Iterator[tuple[int, slice]]:
        """Each agent's row in the rank's arrays and its edges."""
        for start, size in zip(self.start.tolist(), self.size.tolist(), strict=True):
            yield int(self.target[start]), slice(start, start + size)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum over each agent's edges, in agent order: (..., E) -> (..., N)."""
        return np.add.reduceat(values, self.start, axis=-1)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Each agent's value on each of its edges: (N,) -> (E,)."""
        return values.repeat(self.size)

    def normalise(self, share: np.ndarray) -> np.ndarray:
        """Shares (E,) >= 0 divided by their sum over each neighbourhood."""
        return share / self.spread(self.total(share))

    def combine(self, weight: np.ndarray, messages: np.ndarray) -> np.ndarray:
        """sum_l a_lk m_lk: weights float64 (E,), messages as `gather` gives them -> (N, P) of their dtype.

        Where they are not gathered, only those that have weight are read.
        """
        if self.element is not None:
            return self.total(messages.T * weight).T
        combined = np.empty((len(self.start), messages.shape[1]), messages.dtype)
        for k, (_, edges) in enumerate(self.by_agent()):
            heard = np.flatnonzero(weight[edges])
            if len(heard) == 1:
                combined[k] = messages[self.row[edges][heard[0]]]
            else:
                heavy = weight[edges][heard].astype(messages.dtype)
                np.matmul(heavy, messages.take(self.row[edges][heard], axis=0), out=combined[k])
        return combined

    def squared_distance(self, anchor: np.ndarray, messages: np.ndarray) -> np.ndarray:
        """norm(anchor_k - m_lk)^2 on each edge: anchors (A, P) of the rank's agents -> float64 (E,)."""
        if self.element is not None:
            difference = messages - anchor.take(self.target, axis=0)
            difference *= difference
            return difference.sum(axis=1)
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
        agents = t[own] - first
        contiguous = agents[-1] - agents[0] + 1 == len(agents)
        yield Neighbourhoods(
            agents=slice(int(agents[0]), int(agents[-1]) + 1) if contiguous else agents,
            edges=edges,
            start=begin[k:stop] - begin[k],
            own=own,
            target=t - first,
            own_of_target=own.repeat(size[k:stop]),
            source=s,
            row=r,
            size=size[k:stop],
            element=r * parameters + np.arange(parameters)[:, None] if gathered else None,
        )
        k = stop
