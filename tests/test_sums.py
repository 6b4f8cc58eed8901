"""Sums over messages and distances between them keep their digits and their bits, whatever the sizes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hearing import cases
from hypothesis import given, settings
from oracle_robust import squared_distance

from mpi_resmtl.rules import Heard
from mpi_resmtl.rules.distances import distances, norms, pairwise_squares, shrunk_squares, squared_distances
from mpi_resmtl.rules.sums import blend, normalised, smallest, total, weighted_sum

settings.register_profile("sums", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("sums")


def root(square: Fraction) -> float:
    """Its square root, of any size."""
    if square == 0:
        return 0.0
    shift = (square.numerator.bit_length() - square.denominator.bit_length()) // 2 * 2
    scaled = square / Fraction(2) ** shift
    return float(scaled) ** 0.5 * 2.0 ** (shift // 2)


@given(case=cases(parameters=(1, 2, 9, 65, 300)))
def test_distances_are_those_of_exact_arithmetic_for_huge_values_too(case: Heard):
    anchor = case.messages[np.arange(4), case.own]
    found = distances(anchor, case.messages)
    eps = 1e-12 if case.messages.dtype == np.float64 else 1e-5
    for k in range(4):
        for place in range(found.shape[1]):
            exact = root(squared_distance(case.messages[k, place].tolist(), anchor[k].tolist()))
            assert found[k, place] == pytest.approx(exact, rel=eps, abs=1e-152)


def test_no_distance_passes_the_largest_number():
    largest = np.finfo(np.float64).max
    for parameters in (1, 2, 300):
        far = np.full((1, 2, parameters), largest)
        far[:, 1] *= -1
        np.testing.assert_array_equal(distances(far[:, 0], far), [[0.0, largest]])
        np.testing.assert_array_equal(norms(far[:, 0]), [min(largest, largest * parameters**0.5)])


@given(case=cases(most=20, parameters=(1, 2, 9, 65, 300), kinds=("ties", "normal")))
def test_pairwise_squares_are_symmetric_and_those_of_exact_arithmetic(case: Heard):
    found = pairwise_squares(case.messages, case.present)
    for k in range(4):
        places = np.flatnonzero(case.present[k])
        for i in places:
            for j in places:
                exact = float(squared_distance(case.messages[k, i].tolist(), case.messages[k, j].tolist()))
                assert found[k, i, j] == pytest.approx(exact, rel=1e-5, abs=1e-12)
                assert found[k, i, j] == found[k, j, i]


def test_squares_that_overflow_are_told_apart_by_shrunk_ones():
    messages = np.array([1e160, -1e160, 3e160, 0.0])[None, :, None]
    present = np.ones((1, 4), bool)
    assert np.isinf(pairwise_squares(messages, present)[0, 0, 1])
    shrunk = shrunk_squares(messages, present)[0]
    np.testing.assert_allclose(shrunk / shrunk[0, 3], [[0, 4, 4, 1], [4, 0, 16, 1], [4, 16, 0, 9], [1, 1, 9, 0]])


@given(case=cases(parameters=(1, 2, 65, 300)))
def test_a_weighted_sum_is_that_of_exact_arithmetic(case: Heard):
    found = weighted_sum(case.metropolis, case.messages)
    eps = 1e-12 if found.dtype == np.float64 else 1e-5
    for k in range(4):
        for p in range(found.shape[1]):
            column = case.messages[k, :, p].tolist()
            exact = sum(Fraction(w) * Fraction(m) for w, m in zip(case.metropolis[k].tolist(), column, strict=True))
            assert abs(found[k, p] - float(exact)) <= eps * max(map(abs, column))


@pytest.mark.parametrize("parameters", [2, 300])
def test_weights_too_small_for_single_precision_still_count(parameters: int):
    messages = np.zeros((1, 2, parameters), np.float32)
    messages[0, 1] = 1e38
    weight = np.array([[1.0, 1e-45]])
    np.testing.assert_allclose(weighted_sum(weight, messages), 1e-7, rtol=1e-5)


def test_sums_do_not_depend_on_how_many_empty_places_follow():
    values = np.random.default_rng(0).random((6, 13))
    for n in range(1, 14):
        padded = np.zeros((6, 40))
        padded[:, :n] = values[:, :n]
        assert total(padded).tobytes() == total(values[:, :n]).tobytes()
        expected = [sum(row[:n], start=0.0) for row in values.tolist()]
        assert total(values[:, :n]).tolist() == expected


def test_the_smallest_are_the_first_of_equals_and_never_nan_while_numbers_are_left():
    values = np.array([[3.0, 1.0, np.nan, 1.0, 2.0], [np.inf, np.nan, np.inf, np.nan, np.inf]])
    assert smallest(values, np.array([1, 2])).tolist() == [[0, 1, 0, 0, 0], [1, 0, 1, 0, 0]]
    assert smallest(values, np.array([3, 0])).tolist() == [[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]
    finer = np.array([[0.0, 2.0, 0.0, 1.0, 0.0], [3.0, 0.0, 2.0, 0.0, 1.0]])
    assert smallest(values, np.array([1, 2]), finer).tolist() == [[0, 0, 0, 1, 0], [0, 0, 1, 0, 1]]


def test_a_blend_gives_alpha_to_oneself_and_all_where_nobody_is_accepted():
    accepted = np.array([[True, False, True], [False, False, False]])
    np.testing.assert_allclose(blend(0.25, accepted, np.array([1, 2])), [[0.375, 0.25, 0.375], [0, 0, 1]])


def test_shares_that_are_all_0_leave_all_the_weight_to_oneself():
    shares = np.array([[0.0, 0.0, 0.0], [1.0, 3.0, 0.0]])
    np.testing.assert_allclose(normalised(shares, np.array([2, 0])), [[0, 0, 1], [0.25, 0.75, 0]])


def test_squared_distances_in_single_precision_may_pass_its_largest_number():
    for parameters in (2, 300):
        messages = np.full((1, 1, parameters), 3e38, np.float32)
        found = squared_distances(np.zeros((1, parameters), np.float32), messages)
        np.testing.assert_allclose(found, parameters * 9e76, rtol=1e-5)
