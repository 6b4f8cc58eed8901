"""What is held against messages by the median of their losses, against plain loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_resmtl.judging import Judge, Moment
from mpi_resmtl.neighbourhoods import tiles

PHI_0 = 7.0
EDGES = [(0, 0), (1, 0), (3, 0), (0, 1), (1, 1), (2, 2), (0, 3), (1, 3), (2, 3), (3, 3)]
"""(source, target)"""


def judged(losses: list[list[float]], arrived: list[list[bool]], window: int) -> list[tuple[list[float], list[bool]]]:
    """What is held (E,) and which messages are usable (E,) after each iteration, of losses and arrivals (I, E)."""
    source, target = np.array(EDGES, np.intp).T
    (tile,) = tiles(target, source, np.arange(len(EDGES)), 0, 1, True)
    found, now = [], iter(losses)
    task = SimpleNamespace(judge=lambda *ignored: np.array(next(now), np.float64))
    judge = Judge(task, len(EDGES), "median", 0.1, PHI_0, SimpleNamespace(window=window))
    for i, came in enumerate(arrived):
        judge.begin(Moment(i, None, None, 0, None, None))
        usable = judge(tile, None, None if all(came) else np.array(came))
        found.append((judge.held.tolist(), [True] * len(EDGES) if usable is None else usable.tolist()))
    return found


def halved_median(values: list[float]) -> float:
    """The median; of an even number, half of both values in the middle, whose sum might be too large."""
    ordered, count = sorted(values), len(values)
    return 0.5 * ordered[(count - 1) // 2] + 0.5 * ordered[count // 2]


def expected(losses: list[list[float]], arrived: list[list[bool]], window: int) -> list[tuple[list[float], list[bool]]]:
    """The same from the definition, an edge after the other."""
    held, found = [PHI_0] * len(EDGES), []
    for i in range(len(losses)):
        past = range(max(0, i + 1 - window), i + 1)
        kept = [
            [losses[t][e] for t in past if arrived[t][e] and math.isfinite(losses[t][e])] for e in range(len(EDGES))
        ]
        held = [halved_median(values) if values else before for values, before in zip(kept, held, strict=True)]
        own = {target: e for e, (source, target) in enumerate(EDGES) if source == target}
        usable = []
        for e, (source, target) in enumerate(EDGES):
            bearable = arrived[i][e] and losses[i][e] <= max(kept[own[target]], default=-1.0)
            usable.append(source == target or bearable)
        found.append((held, usable))
    return found


SPECIAL = [0.0, 1.0, 9e76, 1.7e308, math.inf, math.nan]


def history(seed: int) -> tuple[list[list[float]], list[list[bool]]]:
    """Losses, huge and undefined ones among them, and which messages came; one's own always does."""
    random = np.random.default_rng(seed)
    shape = random.integers(1, 9), len(EDGES)
    special = random.random(shape) < random.choice([0.0, 0.2, 0.8])
    losses = np.where(special, random.choice(SPECIAL, shape), 10.0 * random.random(shape))
    arrived = random.random(shape) < random.choice([0.3, 0.8, 1.0])
    arrived[:, [source == target for source, target in EDGES]] = True
    return losses.tolist(), arrived.tolist()


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@given(seed=st.integers(0, 2**32))
def test_the_median_is_of_the_losses_of_messages_that_came_and_none_passes_that_is_worse_than_all_own(
    window: int, seed: int
):
    for found, wanted in zip(judged(*history(seed), window), expected(*history(seed), window), strict=True):
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-15)
        assert found[1] == wanted[1]
