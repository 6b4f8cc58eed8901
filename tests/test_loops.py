"""The loops in C give the bits of those in numpy, and both what their formulas say."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_resmtl import loops, loops_in_numpy

compiled = pytest.importorskip("mpi_resmtl._loops", reason="the package was built without a C compiler")

PARAMETERS = (1, 2, 3, 9)
NUMBERS = (0.0, -0.0, 1.0, 1e-300, 5e-324, 1e200, -1e308, np.inf, -np.inf, np.nan)


def same_bits(one: np.ndarray, other: np.ndarray) -> None:
    """Equal bit for bit, but for which NaN and how it is laid out in memory."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    unknown = np.isnan(one)
    np.testing.assert_array_equal(unknown, np.isnan(other))
    bits = f"u{one.itemsize}"
    zero = one.dtype.type(0)
    np.testing.assert_array_equal(np.where(unknown, zero, one).view(bits), np.where(unknown, zero, other).view(bits))


def values(random: np.random.Generator, shape: tuple[int, ...], odd: float) -> np.ndarray:
    """Numbers of all magnitudes, a share of them zero, huge, tiny or not finite."""
    drawn = random.normal(size=shape) * 10.0 ** random.integers(-3, 4, shape)
    return np.where(random.random(shape) < odd, random.choice(NUMBERS, shape), drawn)


@st.composite
def cases(draw) -> tuple[np.random.Generator, int, np.ndarray, np.ndarray, float]:
    """Random numbers, edges, each neighbourhood's first edge, each target's edge to itself, and how many are odd."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return random, sum(sizes), start, start + random.integers(0, sizes), draw(st.sampled_from([0.0, 0.1, 1.0]))


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("parameters", PARAMETERS)
@given(cases())
def test_gathered_messages_are_the_rows(parameters: int, case):
    random, edges, _, _, odd = case
    rows = values(random, (7, parameters), odd)
    row = random.integers(0, 7, edges)
    for one in (compiled, loops_in_numpy):
        same_bits(one.gather(rows, row), rows[row])


@pytest.mark.parametrize("parameters", PARAMETERS)
@given(cases())
def test_residuals_and_distances_have_the_same_bits(parameters: int, case):
    random, edges, start, _, odd = case
    agents = len(start) + 2
    agent = np.sort(random.permutation(agents)[: len(start)])
    signal, anchor = values(random, (parameters + 1, agents), odd), values(random, (agents, parameters), odd)
    messages = values(random, (edges, parameters), odd)
    for layout in (np.ascontiguousarray, np.asfortranarray):
        found = loops_in_numpy.squared_residuals(signal, agent, start, layout(messages))
        same_bits(compiled.squared_residuals(signal, agent, start, messages), found)
        found = loops_in_numpy.squared_distances(anchor, agent, start, layout(messages))
        same_bits(compiled.squared_distances(anchor, agent, start, messages), found)


def test_residuals_and_distances_are_those_of_the_formula_term_by_term():
    random = np.random.default_rng(0)
    signal, anchor, messages = random.normal(size=(4, 5)), random.normal(size=(5, 3)), random.normal(size=(20, 3))
    agent, start = np.array([0, 2, 3]), np.array([0, 7, 12])
    for one in (compiled, loops_in_numpy):
        losses = one.squared_residuals(signal, agent, start, messages)
        distances = one.squared_distances(anchor, agent, start, messages)
        for e, k in enumerate([0] * 7 + [2] * 5 + [3] * 8):
            residual, squared = float(signal[3, k]), 0.0
            for p in range(3):
                residual -= float(signal[p, k]) * float(messages[e, p])
                difference = float(messages[e, p]) - float(anchor[k, p])
                squared += difference * difference
            assert losses[e] == residual * residual
            assert distances[e] == squared


@given(cases(), st.floats(0, 1))
def test_the_moving_average_is_moved_only_by_finite_values(case, forgetting_factor: float):
    random, edges, _, _, odd = case
    held, value = np.abs(values(random, (edges,), 0.0)), values(random, (edges,), odd)
    moved = [held.copy(), held.copy()]
    done = [
        one.average_in(h, value, forgetting_factor) for one, h in zip((compiled, loops_in_numpy), moved, strict=True)
    ]
    assert done == [bool(np.isfinite(value).all())] * 2
    same_bits(*moved)
    expected = [(1.0 - forgetting_factor) * h + forgetting_factor * v for h, v in zip(held, value, strict=True)]
    same_bits(moved[0], np.array(expected) if done[0] else held)


@given(cases(), st.booleans())
def test_weights_have_the_same_bits(case, up_to_own: bool):
    random, edges, start, own, odd = case
    held = np.abs(values(random, (edges,), odd))
    weight = compiled.inverse_weights(held, start, own if up_to_own else None)
    same_bits(weight, loops_in_numpy.inverse_weights(held, start, own if up_to_own else None))
    same_bits(compiled.normalise(held, start), loops_in_numpy.normalise(held, start))


def test_weights_and_sums_are_those_of_the_formula_term_by_term_in_agent_order():
    random = np.random.default_rng(1)
    sizes = [1, 30, 9, 2]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    start = ends[:-1]
    held, messages = random.random(42) * 10.0 ** random.integers(-9, 9, 42), random.normal(size=(42, 3))
    own = start + np.array([0, 12, 8, 1])
    row = np.array([5, 0, 3, 4])
    for one in (compiled, loops_in_numpy):
        weight, models = one.inverse_weights(held, start, own), np.full((6, 3), 7.0)
        one.weighted_sums(weight, messages, start, row, models)
        for k, (first, stop) in enumerate(pairwise(ends.tolist())):
            share = [1.0 / h if h <= held[own[k]] else 0.0 for h in held[first:stop].tolist()]
            total = 0.0
            for s in share:
                total += s
            assert weight[first:stop].tolist() == [s / total for s in share]
            for p in range(3):
                combined = 0.0
                for e in range(first, stop):
                    combined += float(weight[e]) * float(messages[e, p])
                assert models[row[k], p] == combined
        np.testing.assert_array_equal(models[[1, 2]], 7.0)


@pytest.mark.parametrize("parameters", PARAMETERS)
@given(cases())
def test_weighted_sums_have_the_same_bits(parameters: int, case):
    random, edges, start, _, odd = case
    weight, messages = random.random(edges), values(random, (edges, parameters), odd)
    row = random.permutation(len(start) + 3)[: len(start)]
    models = [np.ones((len(start) + 3, parameters)) for _ in range(2)]
    compiled.weighted_sums(weight, messages, start, row, models[0])
    loops_in_numpy.weighted_sums(weight, np.asfortranarray(messages), start, row, models[1])
    same_bits(*models)


@given(st.integers(0, 2**32), st.integers(0, 2**60), st.integers(0, 50))
def test_words_are_those_of_numpys_philox(seed: int, counter: int, counters: int):
    key = np.random.default_rng(seed).integers(0, 2**64, 2, np.uint64)
    expected = np.random.Philox(key=key, counter=counter).random_raw(4 * counters)
    for one in (compiled, loops_in_numpy):
        np.testing.assert_array_equal(one.philox(key, counter, counters), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.003, 0.3]))
def test_numbers_that_are_not_finite_are_found_and_huge_ones_are_not_taken_for_them(dtype, seed: int, odd: float):
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(33, 3)).astype(dtype) * random.choice([1, np.finfo(dtype).max / 8])
    bad = random.random(numbers.shape) < odd
    numbers[bad] = random.choice([np.nan, np.inf, -np.inf], np.count_nonzero(bad))
    for one in (compiled, loops_in_numpy):
        assert one.all_finite(numbers) is not bad.any()


@pytest.mark.parametrize("parameters", PARAMETERS)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.2]))
def test_blocks_of_models_are_measured_to_the_same_bits(
    parameters: int, seed: int, length: int, agents: int, odd: float
):
    random = np.random.default_rng(seed)
    models, target = values(random, (length, agents, parameters), odd), values(random, (agents, parameters), odd)
    signal = values(random, (length + 1, parameters + 1, agents), odd)
    losses = compiled.own_squared_residuals(signal, models)
    same_bits(losses, loops_in_numpy.own_squared_residuals(signal, models))
    squared = compiled.own_squared_distances(models, target)
    same_bits(squared, loops_in_numpy.own_squared_distances(models, target))
    moved = [np.empty_like(target) for _ in range(2)]
    compiled.step_towards(target, 0.3, models[0], moved[0])
    loops_in_numpy.step_towards(target, 0.3, models[0], moved[1])
    same_bits(*moved)
    each = np.arange(agents)
    for i in range(length):
        same_bits(losses[i], compiled.squared_residuals(signal[i], each, each, models[i]))
        # The sign of a difference does not matter to its square.
        same_bits(squared[i], compiled.squared_distances(target, each, each, models[i]))


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.2]), st.booleans())
def test_the_location_has_the_same_samples_and_risks(seed: int, length: int, agents: int, odd: float, scalar: bool):
    random = np.random.default_rng(seed)
    u, d, x = (values(random, shape, odd) for shape in ((length, 2, agents), (length, agents), (agents, 2)))
    for one, other in zip(compiled.location_samples(u, d, x), loops_in_numpy.location_samples(u, d, x), strict=True):
        same_bits(one, other)
    models, towards = values(random, (length, agents, 2), odd), values(random, (agents, 2), odd)
    given_ = (models, x, towards, *random.random((2, agents)), scalar)
    same_bits(compiled.location_risks(*given_), loops_in_numpy.location_risks(*given_))


BOTH = pytest.mark.parametrize("one", [compiled, loops_in_numpy], ids=["C", "numpy"])
PRECISIONS = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@PRECISIONS
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 9), st.sampled_from([0.0, 0.1]))
def test_distances_of_large_models_have_the_same_bits(dtype, seed: int, agents: int, n: int, odd: float):
    random = np.random.default_rng(seed)
    parameters = int(random.choice([1, 31, 32, 33, 300, 4096, 4097, 9000]))
    anchor = values(random, (agents, parameters), odd / 100).astype(dtype)
    messages = values(random, (agents, n, parameters), odd / 100).astype(dtype)
    found = compiled.large_squared_distances(anchor, messages)
    same_bits(found, loops_in_numpy.large_squared_distances(anchor, messages))


@BOTH
@PRECISIONS
@pytest.mark.parametrize("parameters", [1, 32, 40, 5000])
def test_distances_of_large_models_are_those_of_the_formula(one, dtype, parameters: int):
    random = np.random.default_rng(0)
    anchor = random.normal(size=(2, parameters)).astype(dtype)
    messages = random.normal(size=(2, 5, parameters)).astype(dtype)
    found = one.large_squared_distances(anchor, messages)
    for k in range(2):
        for place in range(5):
            pairs = zip(anchor[k].tolist(), messages[k, place].tolist(), strict=True)
            expected = math.fsum((m - a) ** 2 for a, m in pairs)
            assert found[k, place] == pytest.approx(expected, rel=1e-13 if dtype == np.float64 else 1e-5)


@PRECISIONS
@given(st.integers(0, 2**32), st.integers(1, 100), st.booleans())
def test_sums_of_the_middle_values_have_the_same_bits_and_are_those_of_sorted_values(dtype, seed: int, n: int, ties):
    random = np.random.default_rng(seed)
    parameters = int(random.choice([1, 2, 63, 64, 65, 200]))
    messages = np.where(ties, random.integers(-2, 3, (n, parameters)), random.normal(size=(n, parameters)))
    messages = np.where(random.random(messages.shape) < 0.1, -0.0, messages).astype(dtype)
    first = int(random.integers(0, n + 1))
    kept = int(random.integers(0, n - first + 1))
    found = compiled.middle_sums(messages, first, kept)
    same_bits(found, loops_in_numpy.middle_sums(messages, first, kept))
    for p in range(parameters):
        total = dtype(0)
        for value in sorted(messages[:, p])[first : first + kept]:
            total += value
        assert found[p] == total


def euclid(points: np.ndarray, weight: np.ndarray) -> list[float]:
    """Distance of each point from the weighted mean."""
    return [math.dist(point, weight @ points) for point in points]


@given(st.integers(0, 2**32), st.integers(2, 30), st.integers(0, 40))
def test_steps_to_the_geometric_median_have_the_same_bits(seed: int, n: int, most_steps: int):
    random = np.random.default_rng(seed)
    points = random.normal(size=(n, 50)) * 10.0 ** random.integers(-2, 3, (n, 1))
    weight = random.dirichlet(np.ones(n))
    least = float(random.choice([np.inf, 0.0, 1.0, 1.01])) * sum(euclid(points, weight))
    given_ = (points @ points.T, weight, 1e-9, least, 1e-6, most_steps)
    found, other = compiled.weiszfeld(*given_), loops_in_numpy.weiszfeld(*given_)
    assert (found is None) == (other is None)
    if found is not None:
        same_bits(found, other)


@BOTH
def test_steps_to_the_geometric_median_are_weiszfelds(one):
    random = np.random.default_rng(2)
    points, weight = random.normal(size=(7, 20)), np.full(7, 1 / 7)
    product = points @ points.T
    for steps in range(5):
        found = one.weiszfeld(product, np.full(7, 1 / 7), 1e-12, np.inf, 0.0, steps)
        np.testing.assert_allclose(found, weight, rtol=1e-9)
        inverse = 1.0 / np.array(euclid(points, weight))
        weight = inverse / inverse.sum()
    settled = one.weiszfeld(product, np.full(7, 1 / 7), 1e-12, np.inf, 1e-6, 10_000)
    slope = sum((settled @ points - point) / far for point, far in zip(points, euclid(points, settled), strict=True))
    assert np.linalg.norm(slope) < 1e-4
    assert one.weiszfeld(product, np.full(7, 1 / 7), 1e-12, sum(euclid(points, settled)), 1e-6, 9) is None


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 20), st.booleans(), st.booleans())
def test_clipped_weights_have_the_same_bits(seed: int, agents: int, n: int, squares: bool, ties: bool):
    random = np.random.default_rng(seed)
    distance = (
        random.choice([0.0, 5e-324, 1e-160, 1.0, 2.0, 1e300], (agents, n)) if ties else random.random((agents, n))
    )
    metropolis = random.choice([0.0, 0.1, 0.25], (agents, n)) if ties else random.random((agents, n)) / n
    own, b = random.integers(0, n, agents), random.integers(0, n + 1, agents)
    distance[np.arange(agents), own] = 0.0
    found = compiled.clipped_weights(distance, metropolis, own, b, squares)
    same_bits(found, loops_in_numpy.clipped_weights(distance, metropolis, own, b, squares))


@BOTH
def test_clipped_weights_are_those_of_the_formula_by_hand(one):
    """Weights 1/4, one of three neighbours Byzantine: W_b = 1/4 takes the one at 6, 2 W_b those at 6 and 2."""
    distance, metropolis = np.array([[6.0, 0.0, 1.0, 2.0]]), np.full((1, 4), 0.25)
    own, b = np.array([1]), np.array([1])
    tau = math.sqrt(0.25 * (1 + 4) / 0.25)
    expected = [0.25 * tau / 6, 1 - 0.25 * (tau / 6 + 2), 0.25, 0.25]
    np.testing.assert_allclose(one.clipped_weights(distance, metropolis, own, b, True)[0], expected, rtol=1e-15)
    expected = [0.25 / 6, 1 - 0.25 * (1 / 6 + 1 + 1 / 2), 0.25, 0.25 / 2]
    np.testing.assert_allclose(one.clipped_weights(distance, metropolis, own, b, False)[0], expected, rtol=1e-15)
    for squares in (True, False):
        unclipped = one.clipped_weights(distance, metropolis, own, b - 1, squares)[0]
        np.testing.assert_array_equal(unclipped, 0.25)


FLOATS, PLACES = np.zeros(3), np.zeros(3, np.intp)
FIRST, ONE = np.arange(3), np.array([1])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: compiled.gather(np.zeros((3, 2)), np.array([0, 3])), IndexError),
        (lambda: compiled.gather(np.zeros((3, 2)), np.array([-1])), IndexError),
        (lambda: compiled.gather(np.zeros((3, 2)), np.array([0], np.int32)), TypeError),
        (lambda: compiled.gather(np.zeros((3, 2), np.float32), PLACES), TypeError),
        (lambda: compiled.gather(np.zeros((3, 4))[:, ::2], PLACES), TypeError),
        (lambda: compiled.gather([[1.0]], PLACES), TypeError),
        (lambda: compiled.gather(np.zeros((3, 2))), TypeError),
        (lambda: compiled.squared_residuals(np.zeros((3, 4)), PLACES + 4, FIRST, np.zeros((3, 2))), IndexError),
        (lambda: compiled.squared_residuals(np.zeros((3, 4)), PLACES, FIRST[:2], np.zeros((3, 2))), ValueError),
        (lambda: compiled.squared_residuals(np.zeros((2, 4)), PLACES, FIRST, np.zeros((3, 2))), ValueError),
        (lambda: compiled.squared_residuals(np.zeros((3, 4)), PLACES, FIRST, np.zeros((1, 2))), IndexError),
        (lambda: compiled.squared_distances(np.zeros((3, 2)), PLACES + 3, FIRST, np.zeros((3, 2))), IndexError),
        (
            lambda: compiled.squared_distances(np.zeros((3, 2)), PLACES, FIRST[::-1].copy(), np.zeros((3, 2))),
            IndexError,
        ),
        (lambda: compiled.average_in(FLOATS, np.zeros(2), 0.1), ValueError),
        (lambda: compiled.average_in(np.broadcast_to(0.0, 3), FLOATS, 0.1), TypeError),
        (lambda: compiled.average_in(np.frombuffer(bytes(24)), FLOATS, 0.1), ValueError),
        (lambda: compiled.average_in(FLOATS, FLOATS, "a tenth"), TypeError),
        (lambda: compiled.normalise(FLOATS, FIRST + 1), IndexError),
        (lambda: compiled.normalise(FLOATS, PLACES[:0]), IndexError),
        (lambda: compiled.normalise(FLOATS, np.array([0, 2, 1])), IndexError),
        (lambda: compiled.inverse_weights(FLOATS, FIRST, PLACES - 1), IndexError),
        (lambda: compiled.inverse_weights(FLOATS, FIRST, PLACES[:1]), ValueError),
        (lambda: compiled.inverse_weights(FLOATS, np.array([0, 4]), None), IndexError),
        (lambda: compiled.weighted_sums(FLOATS, np.zeros((3, 2)), FIRST, PLACES + 9, np.zeros((9, 2))), IndexError),
        (lambda: compiled.weighted_sums(FLOATS, np.zeros((3, 2)), FIRST + 3, PLACES, np.zeros((9, 2))), IndexError),
        (lambda: compiled.weighted_sums(FLOATS, np.zeros((3, 2)), FIRST, PLACES, np.zeros((9, 1))), ValueError),
        (lambda: compiled.weighted_sums(FLOATS, np.zeros((3, 2)), FIRST[:2], PLACES, np.zeros((9, 2))), ValueError),
        (lambda: compiled.large_squared_distances(np.zeros((2, 3)), np.zeros((1, 4, 3))), ValueError),
        (lambda: compiled.large_squared_distances(np.zeros((1, 2)), np.zeros((1, 4, 3))), ValueError),
        (lambda: compiled.large_squared_distances(np.zeros((1, 3), np.float32), np.zeros((1, 4, 3))), TypeError),
        (lambda: compiled.large_squared_distances(np.zeros((1, 3)), np.zeros((1, 4, 3), np.float16)), TypeError),
        (lambda: compiled.middle_sums(np.zeros((3, 2)), 2, 2), IndexError),
        (lambda: compiled.middle_sums(np.zeros((3, 2)), -1, 2), IndexError),
        (lambda: compiled.middle_sums(np.zeros((3, 2)), 0, -1), IndexError),
        (lambda: compiled.middle_sums(np.zeros((3, 2), int), 0, 1), TypeError),
        (lambda: compiled.middle_sums(np.zeros((4, 2))[::2], 0, 1), TypeError),
        (lambda: compiled.weiszfeld(np.zeros((2, 3)), FLOATS, 0.0, 1.0, 0.0, 1), ValueError),
        (lambda: compiled.weiszfeld(np.zeros((3, 3)), FLOATS[:2], 0.0, 1.0, 0.0, 1), ValueError),
        (lambda: compiled.weiszfeld(np.zeros((3, 3)), FLOATS, "0", 1.0, 0.0, 1), TypeError),
        (lambda: compiled.clipped_weights(np.zeros((1, 3)), np.zeros((1, 2)), ONE, ONE, True), ValueError),
        (lambda: compiled.clipped_weights(np.zeros((2, 3)), np.zeros((2, 3)), ONE, ONE, True), ValueError),
        (lambda: compiled.clipped_weights(np.zeros((1, 3)), np.zeros((1, 3)), ONE + 2, ONE, True), IndexError),
        (lambda: compiled.clipped_weights(np.zeros((1, 3)), np.zeros((1, 3)), ONE, ONE + 3, True), IndexError),
        (lambda: compiled.philox(np.zeros(1, np.uint64), 0, 1), ValueError),
        (lambda: compiled.philox(np.zeros(2, np.uint64), -1, 1), OverflowError),
        (lambda: compiled.philox(np.zeros(2, np.uint64), 0, -1), ValueError),
    ],
)
def test_wrong_arguments_are_refused(call, error):
    with pytest.raises(error):
        call()


@pytest.mark.parametrize(("asked", "expected"), [("numpy", "numpy"), ("", "C")])
def test_the_environment_says_which_are_used(asked: str, expected: str):
    script = "from mpi_resmtl import loops; print(loops.IN_USE, loops.gather.__module__)"
    environment = os.environ | {"MPI_RESMTL_LOOPS": asked}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    module = "mpi_resmtl.loops_in_numpy" if expected == "numpy" else "mpi_resmtl._loops"
    assert done.stdout.split()[0] == expected
    assert expected == "C" or done.stdout.split()[1] == module


def test_both_have_every_loop():
    names = {name for name in vars(loops) if callable(getattr(loops, name))}
    assert names == {name for name in dir(compiled) if callable(getattr(compiled, name)) and name[0] != "_"}
    assert all(callable(getattr(loops_in_numpy, name)) for name in names)


TURN = 2**64
WORDS = (0, 1, 2**11 - 1, 2**11, TURN // 4 - 1, *(n * TURN // 8 for n in (1, 2, 3, 4, 5, 7)), TURN - 2**11, TURN - 1)
"""The least and the largest, and those where a turn has an eighth or a quarter."""


@given(st.integers(0, 5), st.integers(0, 40), st.data())
def test_normal_numbers_have_the_same_bits(rows: int, half: int, data):
    random, used = np.random.default_rng(data.draw(st.integers(0, 2**32))), data.draw(st.integers(half, 2 * half))
    words = random.integers(0, 2**64, (rows, 2 * half), np.uint64)
    odd = random.random(words.shape) < 0.2
    words[odd] = random.choice(np.array(WORDS, np.uint64), int(odd.sum()))
    same_bits(compiled.normal(words, used), loops_in_numpy.normal(words, used))


@pytest.mark.parametrize("one", [compiled, loops_in_numpy], ids=["C", "numpy"])
def test_normal_numbers_are_those_of_box_and_muller(one):
    random = np.random.default_rng(0)
    words = random.integers(0, 2**64, (4, 2000), np.uint64)
    words[:2, : len(WORDS)] = words[1:3, 1000 : 1000 + len(WORDS)] = np.array(WORDS, np.uint64)
    found = one.normal(words, 1990)
    assert found.shape == (4, 1990)
    for row, drawn in zip(words.tolist(), found.tolist(), strict=True):
        for j in range(1000):
            u, v = (row[j] >> 11) / 2**53, (row[1000 + j] >> 11) / 2**53
            radius = math.sqrt(-2 * math.log(1 - u))
            assert drawn[j] == pytest.approx(radius * math.cos(2 * math.pi * v), rel=1e-14, abs=1e-14)
            if j < 990:
                assert drawn[1000 + j] == pytest.approx(radius * math.sin(2 * math.pi * v), rel=1e-14, abs=1e-14)


def test_normal_numbers_need_an_even_number_of_words_and_room_for_the_first_half():
    words = np.zeros((2, 6), np.uint64)
    for wrong, used in ((words[:, :5].copy(), 3), (words, 2), (words, 7)):
        with pytest.raises(ValueError, match="lengths"):
            compiled.normal(wrong, used)
    with pytest.raises(TypeError):
        compiled.normal(words.view(np.int64), 4)
