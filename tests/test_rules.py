"""Each rule is what its formula says, for many agents at once."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_resmtl.neighbourhoods import Neighbourhoods, tiles
from mpi_resmtl.rules import RULES

PAPER = ("none", "average", "distance", "loss-unfiltered", "loss")


@st.composite
def neighbourhoods_with_values(draw) -> tuple[Neighbourhoods, np.ndarray]:
    """Random directed neighbourhoods of up to 12 agents, and a value held against each message."""
    n = draw(st.integers(1, 12))
    heard = draw(st.lists(st.sets(st.integers(0, n - 1), max_size=n), min_size=n, max_size=n))
    edges = [(k, source) for k in range(n) for source in sorted(heard[k] | {k})]
    target, source = np.array(edges).T
    value = st.one_of(st.floats(1e-12, 1e12), st.sampled_from([0.5, 1.0, 2.0]))
    values = draw(st.lists(value, min_size=len(edges), max_size=len(edges)))
    (tile,) = tiles(target, source, source, 0, 2, gathered=True)
    return tile, np.array(values)


def by_agent(tile: Neighbourhoods, values: np.ndarray) -> list[dict[int, float]]:
    """The values by target and source."""
    found = [{} for _ in tile.start]
    for target, source, value in zip(tile.target, tile.source, values, strict=True):
        found[target][int(source)] = float(value)
    return found


@pytest.mark.parametrize("name", PAPER)
@given(neighbourhoods_with_values())
def test_weights_are_those_of_the_formula(name: str, case: tuple[Neighbourhoods, np.ndarray]):
    tile, values = case
    weights = by_agent(tile, RULES[name].weigh(tile, values))
    for k, accumulated in enumerate(by_agent(tile, values)):
        expected = oracle.rule_weights(name, sorted(accumulated), k, accumulated)
        for source, weight in weights[k].items():
            assert weight == pytest.approx(expected[source], rel=1e-12, abs=0)


@pytest.mark.parametrize("name", PAPER)
@given(neighbourhoods_with_values())
def test_weights_are_not_negative_and_sum_to_one(name: str, case: tuple[Neighbourhoods, np.ndarray]):
    tile, values = case
    weight = RULES[name].weigh(tile, values)
    assert (weight >= 0).all()
    np.testing.assert_allclose(tile.total(weight), 1.0, rtol=1e-14)


@pytest.mark.parametrize("name", PAPER)
def test_weights_are_finite_when_nothing_is_held_against_anyone(name: str):
    source, target = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]).T
    (tile,) = tiles(target, source, source, 0, 2, gathered=True)
    weight = RULES[name].weigh(tile, np.array([0.0, 0.0, 1.0, 0.0]))
    assert np.isfinite(weight).all()
    np.testing.assert_allclose(tile.total(weight), 1.0)


@given(neighbourhoods_with_values())
def test_loss_gives_nothing_to_a_message_that_does_worse_than_ones_own(case: tuple[Neighbourhoods, np.ndarray]):
    tile, values = case
    weight = RULES["loss"].weigh(tile, values)
    np.testing.assert_array_equal(weight > 0, values <= tile.spread(values[tile.own]))


@pytest.mark.parametrize(("parameters", "gathered"), [(1, True), (2, True), (700, True), (2, False), (700, False)])
def test_combination_and_distance_are_what_they_say_however_agents_are_tiled(parameters: int, gathered: bool):
    random = np.random.default_rng(parameters)
    n = 60
    heard = random.random((n, n)) < 0.3
    np.fill_diagonal(heard, True)
    target, source = np.argwhere(heard).T
    rows, weight = random.normal(size=(n, parameters)), random.random(len(target))
    combined, squared = np.empty((n, parameters)), np.empty(len(target))
    anchor = random.normal(size=(n, parameters))
    for tile in tiles(target, source, source, 0, parameters, gathered):
        tile.combine(weight[tile.edges], tile.gather(rows), combined)
        squared[tile.edges] = tile.squared_distance(anchor, tile.gather(rows))
    expected = [[sum(weight[e] * rows[source[e], p] for e in np.flatnonzero(target == k)) for p in range(parameters)]
                for k in range(n)]  # fmt: skip
    np.testing.assert_allclose(combined, expected, rtol=1e-10, atol=1e-12)
    distances = [sum((anchor[k] - rows[s]) ** 2) for k, s in zip(target, source, strict=True)]
    np.testing.assert_allclose(squared, distances, rtol=1e-12)
