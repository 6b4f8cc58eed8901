"""Robust aggregates are what their formulas say, whoever is computed beside whom."""

from __future__ import annotations

import types
from fractions import Fraction
from itertools import combinations

import numpy as np
import oracle_robust as oracle
import pytest
from hearing import aggregate, cases, close, each, heard
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_resmtl.bench.rules import byzfl_aggregators
from mpi_resmtl.errors import UserError
from mpi_resmtl.rules import RULES, Heard

BY_COLUMN = ("median", "trimmed-mean", "meamed")
EXACT = ("ties", "far")
ALL = (*BY_COLUMN, "geometric-median", "krum", "multi-krum", "mda", "bulyan", "centerpoint")

settings.register_profile("robust", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("robust")


@pytest.mark.parametrize("name", BY_COLUMN)
@given(case=cases(parameters=(1, 2, 3, 65, 67)))
def test_coordinatewise_rules_are_their_formula(name: str, case: Heard):
    model, share = aggregate(name, case)
    rule = getattr(oracle, name.replace("-", "_"))
    for k, messages, places, b in each(case, name):
        if name == "meamed" and not _distinct(messages, case.messages.dtype):
            continue
        expected, shares = oracle.by_column(rule, messages, *([] if name == "median" else [b]))
        close(model[k], expected, messages)
        np.testing.assert_allclose(share[k, places], [float(s) for s in shares], rtol=1e-9, atol=1e-12)


def _distinct(messages: list[list[float]], dtype: type) -> bool:
    """Whether rounding cannot change which values are nearer the median: never for small integers and their halves."""
    for column in np.array(messages).T:
        distance = np.sort(np.abs(column / 8 - np.median(column / 8)))
        gap = np.diff(distance)
        if ((gap > 0) & (gap <= 8 * np.finfo(dtype).eps * np.abs(column / 8).max())).any():
            return False
        if len(column) % 2 == 0 and np.ptp(column) > 1e10 * max(float(np.median(np.abs(column))), 1e-300):
            return False
    return True


@given(case=cases(most=12, parameters=(1, 2, 9, 257), kinds=EXACT))
def test_krum_is_its_formula(case: Heard):
    model, weight = aggregate("krum", case)
    for k, messages, places, b in each(case, "krum", honest=True):
        best = oracle.krum(messages, b, list(places).index(case.own[k]))
        assert model[k].tolist() == messages[best]
        assert weight[k, places].tolist() == [float(place == best) for place in range(len(messages))]


@pytest.mark.parametrize("m", [0, 1, 3])
@given(case=cases(most=12, parameters=(1, 2, 9, 257), kinds=EXACT))
def test_multi_krum_is_its_formula(m: int, case: Heard):
    model, weight = aggregate("multi-krum", case, m=m)
    for k, messages, places, b in each(case, "multi-krum", honest=True):
        best = oracle.multi_krum(messages, b, list(places).index(case.own[k]), m)
        assert set(np.flatnonzero(weight[k, places])) == best
        close(model[k], np.mean([np.array(messages[place]) / 2 for place in best], axis=0) * 2, messages)


@given(case=cases(most=9, parameters=(1, 2, 9, 257), kinds=EXACT))
def test_mda_is_its_formula(case: Heard):
    model, weight = aggregate("mda", case)
    for k, messages, places, b in each(case, "mda", honest=True):
        best = oracle.mda(messages, b)
        assert set(np.flatnonzero(weight[k, places])) == best
        close(model[k], np.mean([np.array(messages[place]) / 2 for place in best], axis=0) * 2, messages)


@settings(max_examples=30)
@given(case=cases(most=11, parameters=(1, 2, 65), kinds=EXACT))
def test_bulyan_is_its_formula(case: Heard):
    model, share = aggregate("bulyan", case)
    for k, messages, places, b in each(case, "bulyan", honest=True):
        expected, shares = oracle.bulyan(messages, b)
        close(model[k], expected, messages)
        np.testing.assert_allclose(share[k, places], [float(s) for s in shares], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [10, 24])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_krum_keeps_its_digits_for_large_models_far_from_the_origin(n: int, dtype: type):
    generator = np.random.default_rng(n)
    messages = 100 + generator.normal(size=(1, n, 260)) * np.linspace(0.5, 1.5, n)[generator.permutation(n)][:, None]
    messages[0, 1] = 1e30
    messages[0, 3] = messages[0, 2]
    messages = messages.astype(dtype)
    order = oracle.krum_order(messages[0].tolist(), range(n), n - 7)
    best = np.flatnonzero(aggregate("multi-krum", heard(messages, b=5), m=6)[1][0])
    assert set(best) == set(order[:6])


@given(case=cases(most=12, parameters=(1, 2, 3, 300)))
def test_geometric_median_has_the_least_sum_of_distances(case: Heard):
    model, weight = aggregate("geometric-median", case)
    for k, messages, places, _ in each(case, "geometric-median"):
        scale = float(np.median(np.abs(messages))) or 1.0
        scaled, found = (np.array(messages) / scale).tolist(), (model[k].astype(np.float64) / scale).tolist()
        if np.abs(scaled).max() < 1e8 and scale > 1e-6:
            least = oracle.sum_of_distances(oracle.geometric_median(scaled, 300), scaled)
            step = 1e-5 * (1.0 + 1.0 / scale)
            assert oracle.sum_of_distances(found, scaled) <= least * (1.0 + 1e-5) + step
        exact = np.array([[Fraction(x) for x in m] for m in messages])
        close(model[k], [Fraction(w) for w in weight[k, places].tolist()] @ exact, messages)


@pytest.mark.parametrize("parameters", [2, 300])
@pytest.mark.parametrize("size", [1e3, 1e30, 1e300])
def test_far_messages_pull_the_geometric_median_by_their_direction_alone(parameters: int, size: float):
    generator = np.random.default_rng(parameters)
    messages = generator.normal(size=(1, 9, parameters))
    direction = generator.normal(size=parameters)
    messages[0, [2, 5]] = direction / np.linalg.norm(direction) * size
    model, weight = aggregate("geometric-median", heard(messages))
    units = messages[0] / 4 - model[0] / 4
    units /= np.abs(units).max(axis=1, keepdims=True)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    assert np.linalg.norm(units.sum(axis=0)) < 1e-4
    assert weight[0, 2] < 2 / size * np.sqrt(parameters) * 2


@pytest.mark.parametrize("parameters", [1, 2, 300])
def test_a_message_that_most_send_is_the_geometric_median(parameters: int):
    messages = np.random.default_rng(1).normal(size=(1, 7, parameters))
    messages[0, 3:] = messages[0, 3]
    np.testing.assert_allclose(aggregate("geometric-median", heard(messages))[0][0], messages[0, 3], rtol=1e-14)


@pytest.mark.parametrize("parameters", [1, 2, 300])
def test_two_messages_have_their_mean_as_geometric_median(parameters: int):
    messages = np.random.default_rng(1).normal(size=(1, 2, parameters))
    np.testing.assert_allclose(aggregate("geometric-median", heard(messages))[0], messages.mean(axis=1), rtol=1e-12)


@settings(max_examples=40)
@given(case=cases(most=7, parameters=(2,), g=2))
def test_centerpoint_is_its_formula(case: Heard):
    model, _ = aggregate("centerpoint", case)
    for k, messages, _, _ in each(case, "centerpoint"):
        close(model[k] / 1e3, [x / 1000 for x in oracle.centerpoint(messages)], messages)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 14))
def test_every_half_plane_through_a_centerpoint_has_a_third_of_the_messages(seed: int, n: int):
    generator = np.random.default_rng(seed)
    messages = generator.normal(size=(3, n, 2)) * generator.choice([1.0, 100.0], size=(3, n, 1))
    model, _ = aggregate("centerpoint", heard(messages))
    for k in range(3):
        away = messages[k] - model[k]
        along = np.arctan2(away[:, 1], away[:, 0]) + np.pi / 2
        angle = np.concatenate([along - 1e-7, along + 1e-7, along + np.pi - 1e-7, along + np.pi + 1e-7])
        within = away @ np.array([np.cos(angle), np.sin(angle)]) >= -1e-9
        assert 3 * within.sum(axis=0).min() >= n


def test_centerpoint_of_more_parameters_treats_pairs_and_a_last_one():
    messages = np.random.default_rng(3).normal(size=(2, 8, 5))
    model, _ = aggregate("centerpoint", heard(messages))
    for first in (0, 2):
        np.testing.assert_array_equal(
            model[:, first : first + 2], aggregate("centerpoint", heard(messages[:, :, first : first + 2]))[0]
        )
    np.testing.assert_allclose(model[:, 4], np.median(messages[:, :, 4], axis=1))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [1, 2, 66, 258])
def test_results_stay_finite_and_within_the_messages_for_the_largest_values(name: str, dtype: type, parameters: int):
    largest = float(np.finfo(dtype).max)
    generator = np.random.default_rng(parameters)
    values = np.array([largest, -largest, 1.0, largest / 3, 0.0, 5e-324])
    for n in (2, 5, 9):
        for messages in (np.full((3, n, parameters), largest), generator.choice(values, (3, n, parameters))):
            messages = messages.astype(dtype)
            model, _ = aggregate(name, heard(messages, b=2))
            slack = np.abs(messages).max(axis=1) * 1e-5
            assert (model / 2 <= messages.max(axis=1) / 2 + slack).all()
            assert (model / 2 >= messages.min(axis=1) / 2 - slack).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [1, 2, 3, 9, 66, 300])
def test_bits_do_not_depend_on_who_else_is_computed_or_on_empty_places(name: str, dtype: type, parameters: int):
    generator = np.random.default_rng(parameters)
    g, n = 12, 24 if parameters == 300 and name not in ("mda", "centerpoint") else 11
    messages = (generator.normal(size=(g, n, parameters)) * generator.choice([1, 1, 1, 1e20], (g, n, 1))).astype(dtype)
    messages[::3, 4] = messages[::3, 2]
    present = generator.random((g, n)) < 0.75
    present[:, 3] = True
    present[::4] = True
    together = aggregate(name, heard(messages, present, b=1))
    for k in range(g):
        alone = aggregate(name, heard(messages[k : k + 1, present[k]], b=1))
        for one, all_ in zip(alone, together, strict=True):
            if one is not None:
                kept = all_[k] if all_.shape[1] == parameters and one.shape[1] == parameters else all_[k, present[k]]
                assert one[0].tobytes() == kept.tobytes()


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("mda", "bulyan")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [1, 2, 66, 300])
@pytest.mark.parametrize("n", [5, 10, 21])
def test_the_order_of_neighbours_does_not_matter(name: str, dtype: type, parameters: int, n: int):
    generator = np.random.default_rng(n)
    messages = generator.normal(size=(5, n, parameters)).astype(dtype)
    order = generator.permutation(n)
    model, part = aggregate(name, heard(messages, b=1))
    moved, parts = aggregate(name, heard(messages[:, order], b=1))
    tolerance = 1e-4 if name == "geometric-median" else 1e-5 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(moved, model, atol=tolerance)
    if part is not None:
        np.testing.assert_allclose(parts, part[:, order], atol=1e-2 if name == "geometric-median" else 1e-9)


@pytest.mark.parametrize("parameters", [1, 2, 300])
def test_the_order_of_neighbours_does_not_change_the_diameter_that_mda_finds(parameters: int):
    messages = np.random.default_rng(1).normal(size=(5, 9, parameters))
    order = np.random.default_rng(2).permutation(9)
    _, weight = aggregate("mda", heard(messages, b=3))
    _, moved = aggregate("mda", heard(messages[:, order], b=3))
    for k in range(5):
        diameter = [
            max(np.linalg.norm(x - y) for x in some for y in some)
            for some in (messages[k, weight[k] > 0], messages[k, order][moved[k] > 0])
        ]
        assert diameter[0] == diameter[1]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("parameters", [1, 2, 66, 300])
def test_a_translation_of_all_messages_translates_the_result(name: str, parameters: int):
    messages = np.random.default_rng(5).normal(size=(6, 9, parameters))
    shift = np.random.default_rng(6).normal(size=parameters) * 10
    model, _ = aggregate(name, heard(messages, b=2))
    moved, _ = aggregate(name, heard(messages + shift, b=2))
    np.testing.assert_allclose(moved, model + shift, atol=2e-4 if name == "geometric-median" else 1e-9)


@pytest.mark.parametrize("name", [name for name in ALL if name != "centerpoint"])
@pytest.mark.parametrize("parameters", [3, 66, 300])
def test_the_order_of_coordinates_does_not_matter(name: str, parameters: int):
    messages = np.random.default_rng(7).normal(size=(6, 9, parameters))
    order = np.random.default_rng(8).permutation(parameters)
    model, _ = aggregate(name, heard(messages, b=2))
    moved, _ = aggregate(name, heard(messages[:, :, order], b=2))
    np.testing.assert_allclose(moved, model[:, order], atol=1e-5 if name == "geometric-median" else 1e-12)


@pytest.mark.parametrize("n", [17, 40])
def test_the_middle_of_very_large_models_is_that_of_their_sorted_values(n: int):
    messages = np.random.default_rng(n).standard_normal((1, n, 70_000), np.float32)
    ordered = np.sort(messages[0].astype(np.float64), axis=0)
    np.testing.assert_allclose(aggregate("median", heard(messages))[0][0], np.median(ordered, axis=0), rtol=1e-6)
    trimmed = aggregate("trimmed-mean", heard(messages, b=6))[0][0]
    np.testing.assert_allclose(trimmed, ordered[6:-6].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", ["krum", "multi-krum"])
def test_with_fewer_than_three_messages_krum_keeps_ones_own(name: str):
    messages = np.random.default_rng(9).normal(size=(4, 2, 3))
    model, weight = aggregate(name, heard(messages, own=1))
    np.testing.assert_array_equal(model, messages[:, 1])
    np.testing.assert_array_equal(weight[:, 1], 1.0)


def test_mda_refuses_too_many_subsets_by_name_and_number():
    check, options = RULES["mda"].check, RULES["mda"].parameters()
    check(10, 4, options)
    with pytest.raises(UserError, match=r"155117520 subsets .* n = 30 .*b = 15.* 10000"):
        check(30, 15, options)
    check(30, 15, RULES["mda"].parameters(most_subsets=10**9))


@pytest.mark.parametrize("name", ALL)
def test_rules_that_use_b_say_how_much_they_stand(name: str):
    stands = {"trimmed-mean": 4, "meamed": 4, "krum": 7, "multi-krum": 7, "mda": 4, "bulyan": 1}
    rule = RULES[name]
    assert rule.symmetric
    assert (rule.stands and rule.stands(10, rule.parameters())) == stands.get(name)


@pytest.fixture(scope="module")
def byzfl() -> types.ModuleType:
    """Its aggregators."""
    return byzfl_aggregators() or pytest.skip("byzfl or torch is not installed (pip install --no-deps byzfl)")


@pytest.mark.parametrize("parameters", [2, 66, 300])
@pytest.mark.parametrize("n", [5, 8, 11])
@pytest.mark.parametrize("f", [1, 2])
def test_byzfl_agrees_where_it_has_the_rule(byzfl: types.ModuleType, parameters: int, n: int, f: int):
    messages = np.random.default_rng(n).normal(size=(1, n, parameters))
    given_ = heard(messages, b=f)
    found = {name: aggregate(name, given_)[0][0] for name in BY_COLUMN}
    if n <= 8:
        found["mda"] = aggregate("mda", given_)[0][0]
        np.testing.assert_allclose(found["mda"], byzfl.MDA(f)(messages[0]), rtol=1e-9)
    np.testing.assert_allclose(found["median"], byzfl.Median()(messages[0]), rtol=1e-12)
    np.testing.assert_allclose(found["trimmed-mean"], byzfl.TrMean(f)(messages[0]), rtol=1e-9)
    np.testing.assert_allclose(found["meamed"], byzfl.Meamed(f)(messages[0]), rtol=1e-9)
    # Its Krum counts n - f - 1 others, as the formula here does for b = f - 1.
    fewer = heard(messages, b=f - 1)
    np.testing.assert_array_equal(aggregate("krum", fewer)[0][0], byzfl.Krum(f)(messages[0]))
    np.testing.assert_allclose(
        aggregate("multi-krum", fewer, m=n - f)[0][0], byzfl.MultiKrum(f)(messages[0]), rtol=1e-9
    )
    smoothed = byzfl.GeometricMedian(nu=1e-9, T=2000)(messages[0])
    np.testing.assert_allclose(aggregate("geometric-median", given_)[0][0], smoothed, atol=2e-4)


def test_depth_of_the_oracle_is_that_of_all_half_planes():
    points = [(0, 0), (4, 0), (0, 4), (1, 1), (1, 1), (2, 1)]
    for x in range(5):
        for y in range(5):
            directions = [np.array([np.cos(t), np.sin(t)]) for t in np.linspace(0, 2 * np.pi, 5000)]
            seen = min(sum(1 for p in points if (np.array(p) - (x, y)) @ d >= -1e-12) for d in directions)
            assert oracle.depth((x, y), points) == seen


def test_oracle_sees_a_triangle_and_its_middle():
    corners = [(0.0, 0.0), (6.0, 0.0), (0.0, 6.0), (2.0, 2.0)]
    assert oracle.centerpoint(corners) == [2, 2]
    assert oracle.mda([[0.0], [1.0], [5.0]], 1) == {0, 1}
    assert [len(list(combinations(range(4), 2))), oracle.krum([[0.0], [1.0], [1.5], [9.0]], 1, 0)] == [6, 1]
