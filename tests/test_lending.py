"""Who judges what for whom: everything once, and nobody with more to do than the mean and half a judgement."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_resmtl.lending import loans

RANK = st.tuples(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 30)), min_size=1, max_size=6), st.integers(0, 5_000)
)


def arrays(ranks: list) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    inputs, messages = ([np.array([agent[part] for agent in agents]) for agents, _ in ranks] for part in (0, 1))
    return inputs, messages, np.array([float(ahead) for _, ahead in ranks])


def work(inputs: list[np.ndarray], messages: list[np.ndarray], ahead: np.ndarray, found: list) -> np.ndarray:
    """What each rank has to do in the end, one judgement after the other."""
    done = ahead.copy()
    for rank, (sizes, counts) in enumerate(zip(inputs, messages, strict=True)):
        for agent, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            for edge in range(count):
                takers = [
                    loan.helper
                    for loan in found
                    if (loan.owner, loan.agent) == (rank, agent) and loan.edges.start <= edge < loan.edges.stop
                ]
                assert len(takers) <= 1
                done[takers[0] if takers else rank] += size
    return done


@given(st.lists(RANK, min_size=1, max_size=6))
def test_every_message_is_judged_once_and_no_rank_is_worse_off_than_the_worst_was(ranks: list):
    inputs, messages, ahead = arrays(ranks)
    found = loans(inputs, messages, ahead)
    before, after = work(inputs, messages, ahead, []), work(inputs, messages, ahead, found)
    assert after.sum() == pytest.approx(before.sum())
    half = max(sizes.max() for sizes in inputs) / 2
    assert after.max() <= before.max() + 1e-9
    for rank, sizes in enumerate(inputs):
        lends, borrows = ([loan for loan in found if getattr(loan, who) == rank] for who in ("owner", "helper"))
        assert not (lends and borrows)
        if lends:
            assert after[rank] >= before.mean() - half - 1e-9
        if borrows:
            assert after[rank] <= before.mean() + half * len(borrows) + 1e-9
        for loan in lends:
            assert 0 <= loan.edges.start < loan.edges.stop <= messages[rank][loan.agent]
            assert loan.helper != rank
        assert len(sizes) == len(messages[rank])


def test_what_is_lent_of_an_agent_are_its_last_messages_in_one_run():
    found = loans(
        [np.array([10, 20]), np.array([10]), np.array([10])], [np.array([9, 9])] + 2 * [np.array([3])], np.zeros(3)
    )
    of_last = sorted((loan.edges.start, loan.edges.stop) for loan in found if loan.agent == 1)
    assert of_last[-1][1] == 9
    assert all(stop == start for (_, stop), (start, _) in pairwise(of_last))


def test_the_digits_study_is_evened_out_to_half_an_image_batch_over_two_ranks():
    # Agents 0 to 5 and 6 to 9 of the paper's ten, batches of 64 and 128, ten messages each; agent 4 steps next.
    inputs = [np.array([64] * 5 + [128]), np.array([128] * 4)]
    messages = [np.full(6, 10), np.full(4, 10)]
    ahead = np.array([448.0 + 3 * 64, 512.0])
    after = work(inputs, messages, ahead, loans(inputs, messages, ahead))
    assert abs(after[0] - after[1]) <= 128


def test_ranks_that_have_as_much_to_do_lend_nothing():
    assert loans(2 * [np.array([64, 64])], 2 * [np.array([10, 10])], np.zeros(2)) == []
