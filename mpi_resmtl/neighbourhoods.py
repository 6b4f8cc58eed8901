"""The neighbourhoods of a run of agents as flat arrays over edges: what rules and tasks compute on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SMALL_MODEL = 32
"""Models of at most so many parameters are handled for many agents at once, larger ones agent by agent."""

_TILE_ELEMENTS = 2**15


@dataclass(frozen=True)
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
    """(P, E) places of the message's parameters in the flattened rows; small models only."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """A copy of the messages on these edges: (E, P), for small models stored parameter by parameter."""
        if self.element is None:
            return rows.take(self.row, axis=0)
        return rows.reshape(-1).take(self.element).T

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
        """sum_l a_lk m_lk: weights float64 (E,), messages (E, P) -> (N, P) of the messages' dtype."""
        if self.element is not None:
            return self.total(messages.T * weight).T
        weight = weight.astype(messages.dtype)
        ends = self.start + self.size
        return np.stack([weight[s:e] @ messages[s:e] for s, e in zip(self.start, ends, strict=True)])


def tiles(
    target: np.ndarray, source: np.ndarray, row: np.ndarray, first: int, parameters: int
) -> Iterator[Neighbourhoods]:
    """Cut a rank's edges into neighbourhoods that fit the cache; large models go agent by agent.

    `target`, `source` (E,) are agents, sorted by (target, source); `row` (E,) as in `Neighbourhoods`; `first` is the
    rank's first agent. Which agents share a tile changes no result.
    """
    small = parameters <= SMALL_MODEL
    begin = np.flatnonzero(np.diff(target, prepend=-1))
    size = np.diff(begin, append=len(target))
    budget = _TILE_ELEMENTS // parameters if small else 0
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
            element=r * parameters + np.arange(parameters)[:, None] if small else None,
        )
        k = stop
