"""Random streams depend on seed, purpose and item alone, and have the distribution they claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpi_resmtl.streams import Stream, block_length


@given(
    items=st.integers(1, 40), width=st.integers(1, 5), block=st.integers(0, 3), cut=st.data(),
    kind=st.sampled_from(["uniform", "uniform_single", "normal"]),
)  # fmt: skip
def test_a_part_of_the_items_sees_the_same_numbers_as_the_whole(items, width, block, cut, kind):
    first = cut.draw(st.integers(0, items - 1))
    count = cut.draw(st.integers(0, items - first))
    whole = getattr(Stream(5, "sample", items, width), kind)(block)
    part = getattr(Stream(5, "sample", items, width, first, count), kind)(block)
    assert part.tobytes() == whole[:, first : first + count].tobytes()


@pytest.mark.parametrize(("seed", "purpose"), [(1, "sample"), (0, "attack")])
def test_another_seed_or_purpose_gives_other_numbers(seed: int, purpose: str):
    same = Stream(0, "sample", 50, 3).uniform(0) == Stream(seed, purpose, 50, 3).uniform(0)
    assert not same.any()


def test_numbers_of_different_items_iterations_and_blocks_are_independent():
    stream = Stream(0, "sample", 8, 4)
    drawn = np.concatenate([stream.uniform(b) for b in range(8)])
    assert len(np.unique(drawn)) == drawn.size
    flat = drawn.reshape(len(drawn), -1)
    correlation = np.corrcoef(flat, rowvar=False)[np.triu_indices(flat.shape[1], 1)]
    assert abs(correlation).max() < 5 / len(flat) ** 0.5


def test_distributions_are_uniform_and_normal():
    stream = Stream(0, "sample", 100, 3)
    uniform = np.concatenate([stream.uniform(b).ravel() for b in range(40)])
    normal = np.concatenate([stream.normal(b).ravel() for b in range(40)])
    single = np.concatenate([stream.uniform_single(b).ravel() for b in range(40)])
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert stats.kstest(single, "uniform").pvalue > 0.01
    assert stats.kstest(normal, "norm").pvalue > 0.01


def test_blocks_are_powers_of_two_that_shrink_with_the_experiment():
    lengths = [block_length(items, 3) for items in (1, 10, 100, 1000, 10**4, 10**6)]
    assert lengths == [1024, 512, 32, 4, 1, 1]
