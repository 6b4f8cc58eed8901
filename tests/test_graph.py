"""Graphs have the shape that their topology promises."""

from __future__ import annotations

from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import GRAPHS, FromFile, build_edges, choose_byzantine

SYMMETRIC = ["geometric", "complete", "ring", "torus", "erdos-renyi", "star", "small-world"]
DRAWN = [*SYMMETRIC, "geometric-directed"]


def edges(kind: str, agents: int, seed: int = 0, position: np.ndarray | None = None, **parameters) -> np.ndarray:
    position = np.random.default_rng(seed).random((agents, 2)) * 3 if position is None else position
    return build_edges(kind, GRAPHS[kind].parameters(**parameters), agents, position, seed)


@pytest.mark.parametrize("kind", DRAWN)
@given(agents=st.integers(4, 60), seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_edges_are_unique_sorted_by_target_then_source_and_each_agent_hears_itself(kind: str, agents: int, seed: int):
    edge = edges(kind, agents, seed)
    assert edge.dtype == np.int32
    assert ((edge >= 0) & (edge < agents)).all()
    key = edge[:, 1].astype(int) * agents + edge[:, 0]
    assert (np.diff(key) > 0).all()
    assert set(map(tuple, edge.tolist())) >= {(k, k) for k in range(agents)}


@pytest.mark.parametrize("kind", SYMMETRIC)
@given(agents=st.integers(4, 60), seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_who_hears_is_heard(kind: str, agents: int, seed: int):
    pairs = set(map(tuple, edges(kind, agents, seed).tolist()))
    assert pairs == {(target, source) for source, target in pairs}


@pytest.mark.parametrize("kind", ["geometric", "geometric-directed"])
@given(agents=st.integers(2, 120), seed=st.integers(0, 2**32), cap=st.integers(1, 12), radius=st.floats(0.05, 3))
@settings(max_examples=40)
def test_geometric_neighbours_are_near_and_few(kind: str, agents: int, seed: int, cap: int, radius: float):
    position = np.random.default_rng(seed).random((agents, 2)) * 3
    edge = edges(kind, agents, seed, position, radius=radius, neighbours=cap)
    assert (np.linalg.norm(position[edge[:, 0]] - position[edge[:, 1]], axis=1) <= radius * (1 + 1e-12)).all()
    assert np.bincount(edge[:, 1]).max() <= cap


@given(agents=st.integers(2, 80), seed=st.integers(0, 2**32), cap=st.integers(1, 12))
@settings(max_examples=40)
def test_the_undirected_geometric_graph_is_that_of_one_pass_over_the_pairs(agents: int, seed: int, cap: int):
    from mpi_resmtl.graph import Geometric, _close_pairs
    from mpi_resmtl.streams import generator

    position = np.random.default_rng(seed).random((agents, 2)) * 3
    close = _close_pairs(Geometric(neighbours=cap), position)
    room, taken = [cap - 1] * agents, set()
    for place in np.argsort(generator(seed, "graph").permutation(len(close))):
        a, b = close[place].tolist()
        if room[a] and room[b]:
            room[a], room[b] = room[a] - 1, room[b] - 1
            taken |= {(a, b), (b, a)}
    edge = edges("geometric", agents, seed, position, neighbours=cap)
    assert {(a, b) for a, b in edge.tolist() if a != b} == taken


def test_no_pair_with_room_at_both_ends_is_left_out_of_a_geometric_graph():
    position = np.random.default_rng(2).random((100, 2)) * 3
    edge = edges("geometric", 100, 2, position)
    degree = np.bincount(edge[:, 1])
    linked = set(map(tuple, edge.tolist()))
    for a in range(100):
        for b in range(a):
            near = np.linalg.norm(position[a] - position[b]) <= 1
            assert (a, b) in linked or not near or degree[a] == 10 or degree[b] == 10


@pytest.mark.parametrize(
    ("kind", "agents", "parameters", "expected"),
    [
        ("complete", 7, {}, networkx.complete_graph(7)),
        ("star", 7, {}, networkx.star_graph(6)),
        ("ring", 7, {}, networkx.cycle_graph(7)),
        ("ring", 9, {"reach": 2}, networkx.circulant_graph(9, [1, 2])),
        ("ring", 2, {}, networkx.path_graph(2)),
        ("torus", 12, {"rows": 3}, networkx.grid_2d_graph(3, 4, periodic=True)),
        ("torus", 12, {}, networkx.grid_2d_graph(3, 4, periodic=True)),
    ],
)
def test_fixed_topologies_are_the_textbook_ones(kind: str, agents: int, parameters: dict, expected: networkx.Graph):
    found = networkx.Graph([(a, b) for a, b in edges(kind, agents, **parameters).tolist() if a != b])
    assert networkx.utils.graphs_equal(found, networkx.convert_node_labels_to_integers(expected, ordering="sorted"))


def test_a_graph_is_read_from_a_file(tmp_path: Path):
    path = tmp_path / "graph.txt"
    path.write_text("# who is heard, who hears\n0 1\n2 1\n1 0\n")
    edge = build_edges("file", FromFile(str(path)), 3, None, 0)
    assert edge.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [2, 1], [2, 2]]
    edge = build_edges("file", FromFile(str(path), directed=False), 3, None, 0)
    assert edge.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [2, 1], [1, 2], [2, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1 3\n", "agents are 0 to 2"),
        ("0 -1\n", "agents are 0 to 2"),
        ("0 1 2\n", "two agent numbers"),
        ("a b\n", "two agent numbers"),
    ],
)
def test_a_graph_file_with_wrong_lines_is_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "graph.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        build_edges("file", FromFile(str(path)), 3, None, 0)


@pytest.mark.parametrize(
    ("kind", "agents", "parameters", "message"),
    [
        ("torus", 10, {"rows": 3}, "does not divide"),
        ("small-world", 5, {"neighbours": 6}, "more than the 5 agents"),
        ("file", 5, {"file": "nowhere.txt"}, "no such file"),
    ],
)
def test_a_topology_that_does_not_suit_the_agents_is_refused(kind: str, agents: int, parameters: dict, message: str):
    with pytest.raises(UserError, match=message):
        edges(kind, agents, **parameters)


def test_attackers_are_those_named_or_as_many_as_asked():
    assert np.flatnonzero(choose_byzantine(10, 0, [2, 7], 0)).tolist() == [2, 7]
    assert choose_byzantine(100, 20, None, 4).sum() == 20
    np.testing.assert_array_equal(choose_byzantine(100, 20, None, 4), choose_byzantine(100, 20, None, 4))
    with pytest.raises(UserError, match="more than the 10 agents"):
        choose_byzantine(10, 11, None, 0)
    with pytest.raises(UserError, match="10 is not an agent"):
        choose_byzantine(10, 0, [10], 0)
