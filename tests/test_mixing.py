"""What is done to messages before a rule sees them: nearest-neighbour mixing and buckets."""

from __future__ import annotations

import itertools
import types
from collections import Counter

import numpy as np
import oracle_weighing as oracle
import pytest
from hearing import cases, close, each
from hypothesis import given, settings

from mpi_resmtl.bench.rules import byzfl_aggregators
from mpi_resmtl.rules import Heard
from mpi_resmtl.rules.mixing import bucketing, nnm

settings.register_profile("mixing", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("mixing")


def nearest_means(messages: list[list[float]], b: int) -> list[list]:
    """The mean of the n - b messages nearest each, itself the nearest, the first of equals first."""
    n = len(messages)
    means = []
    for place, message in enumerate(messages):
        others = oracle.nearest_first(messages, message, [j for j in range(n) if j != place])
        chosen = [place, *others][: max(n - b, 1)]
        means.append(oracle.combined(oracle.mean_over(chosen, n), messages))
    return means


@given(case=cases(most=12, parameters=(1, 2, 9, 65, 300), kinds=("ties", "normal", "far")))
def test_nearest_neighbour_mixing_is_its_formula(case: Heard):
    mixed = nnm(case.messages, case.present, np.minimum(case.b, case.count - 1))
    assert mixed.dtype == case.messages.dtype
    assert not mixed[~case.present].any()
    for k, messages, places, b in each(case, "median"):
        b = min(b, len(messages) - 1)
        size = np.abs(messages).max(axis=1)
        for place, mean in zip(places, nearest_means(messages, b), strict=True):
            # From very far all that is near seems equally far.
            if (size > 1e30).sum() > b or np.abs(case.messages[k, place]).max() > 1e30:
                continue
            close(mixed[k, place], mean, messages)


def test_of_messages_beyond_reckoning_the_nearest_are_still_told_apart():
    """Squares of these differences overflow."""
    messages = np.array([[[1e300], [-1e300], [1.2e300], [-0.9e300], [0.5e300]]])
    mixed = nnm(messages, np.ones((1, 5), bool), np.array([3]))
    np.testing.assert_allclose(mixed[0, :, 0] / 1e300, [1.1, -0.95, 1.1, -0.95, 0.75])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [2, 300])
def test_means_of_the_largest_messages_are_finite(dtype: type, parameters: int):
    largest = np.finfo(dtype).max
    messages = np.random.default_rng(0).choice(np.array([largest, -largest, 1.0], dtype), (3, 7, parameters))
    present = np.ones((3, 7), bool)
    assert np.isfinite(nnm(messages, present, np.array([0, 2, 5]))).all()
    assert np.isfinite(bucketing(messages, present, np.arange(3), 0, 0, 3)[0]).all()


@given(case=cases(most=14, parameters=(1, 2, 9, 65, 300), g=8, kinds=("normal", "ties", "far")))
def test_bits_do_not_depend_on_who_else_is_mixed_or_on_empty_places(case: Heard):
    b = np.minimum(case.b, case.count - 1)
    mixed = nnm(case.messages, case.present, b)
    for k in range(len(b)):
        here = case.present[k]
        alone = nnm(case.messages[k : k + 1, here], np.ones((1, here.sum()), bool), b[k : k + 1])
        assert alone[0].tobytes() == mixed[k, here].tobytes()
    padded = np.zeros((*case.messages.shape[:1], case.messages.shape[1] + 5, case.messages.shape[2]))
    padded[:, : case.messages.shape[1]] = case.messages
    empty = np.zeros((len(b), 5), bool)
    agent = np.arange(10, 10 + len(b))
    some, _ = bucketing(case.messages, case.present, agent, 3, 7, 2)
    more, filled = bucketing(
        padded.astype(case.messages.dtype), np.concatenate([case.present, empty], axis=1), agent, 3, 7, 2
    )
    few = min(some.shape[1], more.shape[1])
    assert some[:, :few].tobytes() == np.ascontiguousarray(more[:, :few]).tobytes()
    assert not filled[:, few:].any()
    for k in (0, len(b) - 1):
        alone, _ = bucketing(case.messages[k : k + 1], case.present[k : k + 1], agent[k : k + 1], 3, 7, 2)
        assert alone[0].tobytes() == some[k].tobytes()


def members(present: np.ndarray, agents: int, iteration: int, size: int, seed: int = 0) -> np.ndarray:
    """Part of each message in each bucket, of agents who all hear the same places: (agents, buckets, n)."""
    n = len(present)
    messages = np.broadcast_to(np.eye(n), (agents, n, n)).copy()
    heard = np.broadcast_to(present, (agents, n)).copy()
    messages[~heard] = 0
    buckets, filled = bucketing(messages, heard, np.arange(agents), iteration, seed, size)
    count = int(present.sum())
    np.testing.assert_array_equal(filled.sum(axis=1), -(-count // size))
    assert not buckets[~filled].any()
    return buckets


@pytest.mark.parametrize(("n", "missing", "size"), [(1, 0, 2), (7, 0, 2), (9, 2, 3), (20, 3, 4), (40, 0, 7), (5, 1, 9)])
def test_each_message_is_in_one_bucket_and_all_buckets_but_the_last_are_full(n: int, missing: int, size: int):
    present = np.ones(n, bool)
    present[1 : 1 + missing] = False
    count = n - missing
    for parts in members(present, 5, 0, size):
        sizes = [int(np.count_nonzero(bucket)) for bucket in parts if bucket.any()]
        full, rest = divmod(count, size)
        assert sizes == [size] * full + [rest] * (rest > 0)
        np.testing.assert_array_equal(np.count_nonzero(parts, axis=0), present)
        for bucket in parts:
            assert set(np.round(bucket[bucket > 0] * np.count_nonzero(bucket), 12)) <= {1.0}


def test_every_pair_shares_a_bucket_equally_often_and_agents_and_iterations_draw_anew():
    seen, first = Counter(), set()
    for iteration in range(40):
        for parts in members(np.ones(6, bool), 50, iteration, 2):
            pairs = tuple(tuple(np.flatnonzero(bucket).tolist()) for bucket in parts)
            seen.update(pairs)
            first.add((iteration, pairs))
    counts = np.array([seen[pair] for pair in itertools.combinations(range(6), 2)])
    assert counts.sum() == 40 * 50 * 3
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert chi_squared < 40
    assert len(first) > 40 * 30
    assert not np.array_equal(members(np.ones(6, bool), 50, 0, 2), members(np.ones(6, bool), 50, 0, 2, seed=1))


@pytest.fixture(scope="module")
def byzfl() -> types.ModuleType:
    """Its aggregators."""
    return byzfl_aggregators()


@pytest.mark.parametrize("parameters", [2, 66, 300])
@pytest.mark.parametrize("n", [5, 8, 21])
@pytest.mark.parametrize("f", [0, 1, 2])
def test_byzfl_mixes_alike(byzfl: types.ModuleType, parameters: int, n: int, f: int):
    messages = np.random.default_rng(n).normal(size=(1, n, parameters))
    present = np.ones((1, n), bool)
    np.testing.assert_allclose(nnm(messages, present, np.array([f]))[0], byzfl.NNM(f)(messages[0]), rtol=1e-9)
    for size in (1, n):
        found, theirs = bucketing(messages, present, np.zeros(1, int), 0, 0, size)[0][0], byzfl.Bucketing(size)
        np.testing.assert_allclose(*(np.sort(each_, axis=0) for each_ in (found, theirs(messages[0]))), rtol=1e-9)
