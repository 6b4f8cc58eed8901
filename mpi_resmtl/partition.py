"""Agents to ranks: contiguous blocks, and from the edges who sends which rows to whom.

A rank holds one array of rows, in this order: its own agents' intermediates; one row for each edge from a Byzantine
agent of its own to an agent of its own; a block received from each peer; a block sent to each peer. A block holds the
rows of the sender's normal agents that anyone there hears, each once, in agent order, then one row for each edge from
a Byzantine agent, in (source, target) order. Sender and receiver derive the same order from the edges alone. A block to
be sent that is no more than a run of own agents' intermediates lies where these are.

Where ranks of a node read each other's rows in place (`in_place`), no block is sent or received between them: a rank
finds its peers' intermediates, and the rows of their attackers for its agents, in the array of the whole node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mpi_resmtl.errors import UserError


def offsets(agents: int, ranks: int, work: np.ndarray | None = None) -> np.ndarray:
    """First agent of each rank, and n at the end: (ranks + 1,) intp.

    Sizes differ by one at most; or, where what agents have to do is not alike, `work` (n,) > 0, the rank that has most
    to do has as little as runs of agents allow. Raises UserError when there are more ranks than agents.
    """
    if ranks > agents:
        raise UserError(f"{ranks} ranks are more than the {agents} agents; start at most {agents}")
    if work is None or (work == work[0]).all():
        return np.arange(ranks + 1) * agents // ranks
    done = np.concatenate([[0.0], np.cumsum(work)])
    enough, too_little = done[-1], max(done[-1] / ranks, work.max()) * (1 - 1e-9)
    bounds = _filled(done, ranks, enough)
    while enough - too_little > 1e-9 * enough:
        tried = (enough + too_little) / 2
        found = _filled(done, ranks, tried)
        if found is None:
            too_little = tried
        else:
            enough, bounds = tried, found
    return bounds


def _filled(done: np.ndarray, ranks: int, most: float) -> np.ndarray | None:
    """Offsets of ranks each filled up to `most`, but for one agent at least that each rank after it needs; or None.

    `done` (n + 1,) sums of work.
    """
    agents = len(done) - 1
    bounds = np.zeros(ranks + 1, np.intp)
    for rank in range(ranks):
        stop = int(np.searchsorted(done, done[bounds[rank]] + most, side="right")) - 1
        bounds[rank + 1] = min(stop, agents - (ranks - 1 - rank))
    return bounds if bounds[-1] == agents else None


@dataclass(frozen=True)
class Block:
    """The rows that go between this rank and one peer."""

    peer: int
    rows: slice
    normal: np.ndarray
    """Which of the sender's agents (rows of the sender) the block's first rows are."""
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
    spoken_first: int
    """Number of such edges on lower ranks."""
    spoken_total: int
    """Number of such edges in the whole graph."""
    received: list[Block]
    sent: list[Block]

    @cached_property
    def spoken_rows(self) -> slice | np.ndarray:
        """`spoken_row` as a slice where rows follow one another: numpy copies to one several times faster."""
        row = self.spoken_row
        follow = len(row) > 0 and (row == np.arange(row[0], row[0] + len(row))).all()
        return slice(int(row[0]), int(row[0]) + len(row)) if follow else row


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


def shares(edge: np.ndarray, byzantine: np.ndarray, ranks: int, work: np.ndarray | None = None) -> list[Share]:
    """Cut the edge list (E, 2), sorted by (target, source), into what each rank needs; O(E log E) once, on rank 0.

    `work` (n,) as in `offsets`.
    """
    bounds = offsets(len(byzantine), ranks, work)
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
        block = slice(place, place + size)
        received.append(Block(int(peer), block, agents - bounds[peer], np.empty(0, np.intp), len(heard_attack)))
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
        if len(numbers) == 0 and agents[-1] - agents[0] + 1 == len(agents):
            sent.append(Block(int(peer), slice(int(agents[0]), int(agents[-1]) + 1), agents, numbers, 0))
            continue
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
        spoken_first=share.spoken_first,
        spoken_total=share.spoken_total,
        received=received,
        sent=sent,
    )


def apart(part: Partition, node: set[int]) -> tuple[Partition, dict[int, int]]:
    """The partition when blocks to and from the ranks of `node` need no room but for the rows that attackers fill.

    -> it, its `row` and `overheard_row` unchanged and so of no use until `in_place`, and the first of the rows that
    its attackers fill for each rank of the node.
    """
    place = min((block.rows.start for block in part.received), default=part.heard_rows)
    spoken_row, first_attack = part.spoken_row.copy(), {}
    for block in part.sent:
        if block.peer in node:
            first_attack[block.peer] = place
            spoken_row[block.spoken] = place + np.arange(block.attacks)
            place += block.attacks
    received = []
    for block in part.received:
        if block.peer not in node:
            received.append(_moved(block, place))
            place = received[-1].rows.stop
    heard_rows, sent = place, []
    for block in part.sent:
        if block.peer in node:
            continue
        if block.rows.stop > part.count:
            block = _moved(block, place)
            spoken_row[block.spoken] = np.arange(block.rows.stop - block.attacks, block.rows.stop)
            place = block.rows.stop
        sent.append(block)
    changed = dict(spoken_row=spoken_row, received=received, sent=sent, heard_rows=heard_rows, rows=place)
    return replace(part, **changed), first_attack


def in_place(
    part: Partition, own: Partition, first_row: dict[int, int], first_attack: dict[int, int], here: int
) -> tuple[Partition, list[slice]]:
    """`own`, that `apart` made of `part`, with `row` and `overheard_row` in the array of the whole node.

    There the rows of this rank begin at `here` and those of the others at `first_row`; `first_attack` says which of
    their rows the others' attackers fill for this rank. -> also the parts of that array that this rank's agents hear
    or own.
    """
    place = np.arange(part.heard_rows) + here
    heard = [slice(here, here + own.heard_rows)]
    kept = {block.peer: block for block in own.received}
    for block in part.received:
        if block.peer in kept:
            place[block.rows] = here + np.arange(kept[block.peer].rows.start, kept[block.peer].rows.stop)
            continue
        begin, attack = first_row[block.peer], first_row[block.peer] + first_attack[block.peer]
        place[block.rows] = np.concatenate([begin + block.normal, attack + np.arange(block.attacks)])
        if len(block.normal):
            heard.append(slice(begin + int(block.normal[0]), begin + int(block.normal[-1]) + 1))
        if block.attacks:
            heard.append(slice(attack, attack + block.attacks))
    return replace(own, row=place[part.row], overheard_row=place[part.overheard_row]), heard


def _moved(block: Block, place: int) -> Block:
    return replace(block, rows=slice(place, place + block.rows.stop - block.rows.start))
