"""Agents to ranks: contiguous blocks, and from the edges who sends which rows to whom.

A rank holds one array of rows, in this order: its own agents' intermediates; one row for each edge from a Byzantine
agent of its own to an agent of its own; a block received from each peer; a block sent to each peer. A block holds the
rows of the sender's normal agents that anyone there hears, each once, in agent order, then one row for each edge from
a Byzantine agent, in (source, target) order. Sender and receiver derive the same order from the edges alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_resmtl.errors import UserError


def offsets(agents: int, ranks: int) -> np.ndarray:
    """First agent of each rank, and n at the end: (ranks + 1,) intp; sizes differ by one at most."""
    if ranks > agents:
        raise UserError(f"{ranks} ranks are more than the {agents} agents; start at most {agents}")
    return np.arange(ranks + 1) * agents // ranks


@dataclass(frozen=True)
class Block:
    """The rows that go between this rank and one peer."""

    peer: int
    rows: slice
    normal: np.ndarray
    """Sent blocks: own agents (rows of the rank) that fill the block's first rows. Received blocks: empty."""
    spoken: np.ndarray
    """Sent blocks: which of the rank's `spoken` messages fill the other rows. Received blocks: empty."""
    attacks: int
    """How many of the rows, the last ones, attackers fill."""


@dataclass(frozen=True)
class Partition:
    """One rank's share of agents and edges; every index is intp."""

    first: int
    count: int
    heard_rows: int
    """Rows that agents hear: all but those to be sent, which come last."""
    rows: int
    target: np.ndarray
    """(E_r,) agents that hear, the rank's normal ones only; sorted by (target, source)."""
    source: np.ndarray
    """(E_r,) agents that speak."""
    row: np.ndarray
    """(E_r,) row of the message on each of these edges."""
    edges: slice
    """The edges into any of the rank's agents, in the whole edge list."""
    kept: np.ndarray
    """(E_r,) which of `edges` these are."""
    overheard_row: np.ndarray
    """(H,) row of the message on each edge from others into own Byzantine agents, sorted by (target, source)."""
    spoken: np.ndarray
    """(M, 2) source, target of the edges from own Byzantine agents to others, sorted by (source, target)."""
    spoken_row: np.ndarray
    """(M,) row of each of these messages."""
    spoken_rows: slice | np.ndarray
    """The same, as a slice where they follow one another."""
    spoken_first: int
    """Number of such edges on lower ranks."""
    spoken_total: int
    """Number of such edges in the whole graph."""
    received: list[Block]
    sent: list[Block]


@dataclass(frozen=True)
class Share:
    """What a rank must know of the graph to make its partition: the edges that touch its agents."""

    offsets: np.ndarray
    heard: np.ndarray
    """(E_in, 2) edges into the rank's agents, sorted by (target, source)."""
    first_edge: int
    """Number of the first of them in the whole edge list."""
    spoken: np.ndarray
    """(E_out, 2) edges out of the rank's agents, sorted by (source, target)."""
    spoken_first: int
    spoken_total: int


def shares(edge: np.ndarray, byzantine: np.ndarray, ranks: int) -> list[Share]:
    """Cut the edge list (E, 2), sorted by (target, source), into what each rank needs; O(E log E) once, on rank 0."""
    bounds = offsets(len(byzantine), ranks)
    heard_at = np.searchsorted(edge[:, 1], bounds)
    spoken = edge[np.lexsort((edge[:, 1], edge[:, 0]))]
    spoken_at = np.searchsorted(spoken[:, 0], bounds)
    attacks = np.concatenate([[0], np.cumsum(byzantine[spoken[:, 0]] & (spoken[:, 0] != spoken[:, 1]))])
    return [
        Share(
            offsets=bounds,
            heard=edge[heard_at[r] : heard_at[r + 1]],
            first_edge=int(heard_at[r]),
            spoken=spoken[spoken_at[r] : spoken_at[r + 1]],
            spoken_first=int(attacks[spoken_at[r]]),
            spoken_total=int(attacks[-1]),
        )
        for r in range(ranks)
    ]


def partition(share: Share, rank: int, byzantine: np.ndarray) -> Partition:
    """One rank's rows and blocks from the edges that touch its agents and who is Byzantine (n,) bool."""
    bounds = share.offsets
    first, stop = int(bounds[rank]), int(bounds[rank + 1])
    source, target = share.heard.T.astype(np.intp)
    out_source, out_target = share.spoken.T.astype(np.intp)

    attacks = byzantine[out_source] & (out_source != out_target)
    spoken = np.stack([out_source[attacks], out_target[attacks]], axis=1)
    at_home = (spoken[:, 1] >= first) & (spoken[:, 1] < stop)
    spoken_row = np.full(len(spoken), -1)
    spoken_row[at_home] = (stop - first) + np.arange(np.count_nonzero(at_home))

    row = source - first
    from_attack = byzantine[source] & (source != target)
    inside = (source >= first) & (source < stop)
    local = np.flatnonzero(from_attack & inside)
    local = local[np.lexsort((target[local], source[local]))]
    row[local] = (stop - first) + np.arange(len(local))
    place = (stop - first) + len(local)

    received, sent = [], []
    normal, attack = np.flatnonzero(~inside & ~from_attack), np.flatnonzero(~inside & from_attack)
    attack = attack[np.lexsort((target[attack], source[attack]))]
    normal = normal[np.argsort(source[normal], kind="stable")]
    peers = np.searchsorted(bounds, source, side="right") - 1
    for peer in np.unique(peers[~inside]):
        heard_normal = normal[slice(*np.searchsorted(peers[normal], [peer, peer + 1]))]
        heard_attack = attack[slice(*np.searchsorted(peers[attack], [peer, peer + 1]))]
        agents, which = np.unique(source[heard_normal], return_inverse=True)
        row[heard_normal] = place + which
        row[heard_attack] = place + len(agents) + np.arange(len(heard_attack))
        size = len(agents) + len(heard_attack)
        nothing = np.empty(0, np.intp)
        received.append(Block(int(peer), slice(place, place + size), nothing, nothing, len(heard_attack)))
        place += size

    heard_rows = place
    listeners = np.searchsorted(bounds, out_target, side="right") - 1
    by_peer = np.argsort(listeners, kind="stable")
    attack_number = np.cumsum(attacks) - 1
    for peer in np.unique(listeners):
        if peer == rank:
            continue
        going = by_peer[slice(*np.searchsorted(listeners[by_peer], [peer, peer + 1]))]
        agents = np.unique(out_source[going][~attacks[going]]) - first
        numbers = attack_number[going][attacks[going]]
        spoken_row[numbers] = place + len(agents) + np.arange(len(numbers))
        size = len(agents) + len(numbers)
        sent.append(Block(int(peer), slice(place, place + size), agents, numbers, len(numbers)))
        place += size

    hears = ~byzantine[target]
    return Partition(
        first=first,
        count=stop - first,
        heard_rows=heard_rows,
        rows=place,
        target=target[hears],
        source=source[hears],
        row=row[hears],
        edges=slice(share.first_edge, share.first_edge + len(share.heard)),
        kept=np.flatnonzero(hears),
        overheard_row=row[~hears & (source != target)],
        spoken=spoken,
        spoken_row=spoken_row,
        spoken_rows=as_slice(spoken_row),
        spoken_first=share.spoken_first,
        spoken_total=share.spoken_total,
        received=received,
        sent=sent,
    )


def as_slice(index: np.ndarray) -> slice | np.ndarray:
    """The slice that an index (m,) is, if it is one of step 1: numpy copies that several times faster."""
    follows = len(index) and (index == np.arange(index[0], index[0] + len(index))).all()
    return slice(int(index[0]), int(index[0]) + len(index)) if follows else index
