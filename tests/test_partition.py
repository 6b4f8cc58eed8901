"""Every rank knows which rows to send, where received rows belong, and nothing crosses that need not."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import sorted_edges
from mpi_resmtl.partition import Partition, apart, in_place, offsets, partition, shares


@st.composite
def graphs(draw) -> tuple[np.ndarray, np.ndarray, int]:
    n = draw(st.integers(1, 14))
    agent = st.integers(0, n - 1)
    pairs = draw(st.lists(st.tuples(agent, agent), max_size=60))
    edge = sorted_edges(np.array(pairs, int).reshape(-1, 2), n, draw(st.booleans()))
    byzantine = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return edge, byzantine, draw(st.integers(1, n))


def exchanged(edge: np.ndarray, byzantine: np.ndarray, ranks: int):
    """What every rank's rows hold after an exchange in which each row is marked by its (source, victim or -1)."""
    parts = [partition(s, r, byzantine) for r, s in enumerate(shares(edge, byzantine, ranks))]
    held = []
    for part in parts:
        rows = [None] * part.rows
        for k in range(part.count):
            rows[k] = (part.first + k, -1)
        for (source, target), row in zip(part.spoken.tolist(), part.spoken_row, strict=True):
            assert rows[row] is None
            rows[row] = (source, target)
        for block in part.sent:
            for place, agent in enumerate(block.normal):
                rows[block.rows.start + place] = rows[agent]
        held.append(rows)
    for r, part in enumerate(parts):
        for block in part.sent:
            (theirs,) = [b for b in parts[block.peer].received if b.peer == r]
            assert theirs.rows.stop - theirs.rows.start == block.rows.stop - block.rows.start
            held[block.peer][theirs.rows] = held[r][block.rows]
    return parts, held


@given(graphs())
def test_every_normal_agent_finds_the_message_meant_for_it_on_every_edge(case):
    edge, byzantine, ranks = case
    parts, held = exchanged(edge, byzantine, ranks)
    looked_up = []
    for part, rows in zip(parts, held, strict=True):
        assert None not in rows
        for target, source, row in zip(part.target, part.source, part.row, strict=True):
            assert rows[row] == (source, target if byzantine[source] else -1)
            looked_up.append((source, target))
    assert looked_up == [(s, t) for s, t in edge.tolist() if not byzantine[t]]


@given(graphs())
def test_a_normal_row_crosses_once_a_rank_and_a_byzantine_one_once_a_victim(case):
    edge, byzantine, ranks = case
    bounds = offsets(len(byzantine), ranks)
    owner = np.searchsorted(bounds, np.arange(len(byzantine)), side="right") - 1
    wanted = {r: {} for r in range(ranks)}
    for source, target in edge.tolist():
        if owner[source] != owner[target]:
            mark = (source, target if byzantine[source] else -1)
            wanted[owner[source]].setdefault(int(owner[target]), set()).add(mark)
    parts, held = exchanged(edge, byzantine, ranks)
    for r, part in enumerate(parts):
        assert {b.peer: set(held[r][b.rows]) for b in part.sent} == wanted[r]
        assert all(len(set(held[r][b.rows])) == b.rows.stop - b.rows.start for b in part.sent)


def in_one_array(parts: list[Partition], node: list[int], gap: int):
    """Of each rank of a node its partition with rows in the node's array, the array as `exchanged` marks it.

    Ranks' rows follow each other with `gap` rows between them; messages between nodes are moved by the caller.
    """
    alone = {r: apart(parts[r], set(node) - {r}) for r in node}
    first, place = {}, 0
    for r in node:
        first[r], place = place, place + alone[r][0].rows + gap
    rows, moved = [None] * place, {}
    for r in node:
        attacks = {peer: alone[peer][1].get(r, 0) for peer in node}
        part, heard = in_place(parts[r], alone[r][0], first, attacks, first[r])
        moved[r] = part, heard
        for k in range(part.count):
            rows[first[r] + k] = (part.first + k, -1)
        for (source, target), row in zip(part.spoken.tolist(), part.spoken_row, strict=True):
            assert rows[first[r] + row] is None
            rows[first[r] + row] = (source, target)
        for block in part.sent:
            for place, agent in enumerate(block.normal):
                rows[first[r] + block.rows.start + place] = rows[first[r] + agent]
    return moved, rows, first


@given(graphs(), st.integers(1, 3), st.integers(0, 2))
def test_ranks_of_a_node_find_each_others_messages_where_these_were_written(case, nodes: int, gap: int):
    edge, byzantine, ranks = case
    parts = [partition(s, r, byzantine) for r, s in enumerate(shares(edge, byzantine, ranks))]
    found = {}
    for node in range(min(nodes, ranks)):
        members = list(range(node, ranks, nodes))
        moved, rows, first = in_one_array(parts, members, gap)
        found |= {r: (*moved[r], rows, first[r]) for r in members}
    for r, (part, _, rows, here) in found.items():
        assert not {b.peer for b in part.sent} & set(range(r % nodes, ranks, nodes))
        for block in part.sent:
            there, _, their_rows, begin = found[block.peer]
            (theirs,) = [b for b in there.received if b.peer == r]
            message = rows[here + block.rows.start : here + block.rows.stop]
            their_rows[begin + theirs.rows.start : begin + theirs.rows.stop] = message
    for r, (part, heard, rows, here) in found.items():
        covered = {row for span in heard for row in range(span.start, span.stop)}
        for target, source, row in zip(part.target, part.source, part.row, strict=True):
            assert rows[row] == (source, target if byzantine[source] else -1)
            assert row in covered
        assert set(range(here, here + part.count)) <= covered
        into = edge[parts[r].edges].tolist()
        overheard = [(s, t if byzantine[s] else -1) for s, t in into if byzantine[t] and s != t]
        assert [rows[row] for row in part.overheard_row] == overheard


@given(graphs())
def test_recorded_columns_are_the_edges_in_their_order(case):
    edge, byzantine, ranks = case
    parts = [partition(s, r, byzantine) for r, s in enumerate(shares(edge, byzantine, ranks))]
    assert [part.edges.start for part in parts] == [0, *(part.edges.stop for part in parts[:-1])]
    for part in parts:
        mine = edge[part.edges][part.kept]
        np.testing.assert_array_equal(mine, np.stack([part.source, part.target], axis=1))


def test_attack_messages_are_numbered_alike_for_any_number_of_ranks():
    random = np.random.default_rng(0)
    edge = sorted_edges(random.integers(0, 20, (80, 2)), 20, directed=True)
    byzantine = random.random(20) < 0.4
    whole = partition(shares(edge, byzantine, 1)[0], 0, byzantine).spoken
    for ranks in (2, 3, 20):
        parts = [partition(s, r, byzantine) for r, s in enumerate(shares(edge, byzantine, ranks))]
        for part in parts:
            assert part.spoken_total == len(whole)
            np.testing.assert_array_equal(part.spoken, whole[part.spoken_first :][: len(part.spoken)])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_the_rank_that_has_most_to_do_has_as_little_as_runs_of_agents_allow(work: list[int], data):
    ranks = data.draw(st.integers(1, len(work)))
    bounds = offsets(len(work), ranks, np.array(work, float)).tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(work)
    assert all(first < stop for first, stop in pairwise(bounds))
    cuts = ([0, *inner, len(work)] for inner in combinations(range(1, len(work)), ranks - 1))
    least = min(max(sum(work[a:b]) for a, b in pairwise(cut)) for cut in cuts)
    assert max(sum(work[a:b]) for a, b in pairwise(bounds)) == least


def test_agents_with_like_work_are_dealt_out_evenly():
    for ranks in (1, 2, 3, 7):
        np.testing.assert_array_equal(offsets(23, ranks, np.full(23, 2.5)), offsets(23, ranks))
        assert np.ptp(np.diff(offsets(23, ranks))) <= 1


def test_more_ranks_than_agents_are_refused():
    with pytest.raises(UserError, match="5 ranks are more than the 4 agents"):
        offsets(4, 5)
