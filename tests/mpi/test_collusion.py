"""What attackers know, hear and leave out, between real ranks; tests/test_mpi.py runs these at several numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI
from test_exchange import AGENTS, case, marked

from mpi_resmtl.attacks import Known
from mpi_resmtl.exchange import Collusion, Everyone, PartialExchange
from mpi_resmtl.partition import offsets, partition, shares

PARAMETERS = 3


def silences(call: int) -> np.ndarray:
    """[source, target]: whether an attacker speaks in a call, the same on every rank."""
    chance = (0.5, 1.0, 0.0, 0.5)[call]
    return np.random.default_rng(call).random((AGENTS, AGENTS)) < chance


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_that_are_not_sent_do_not_travel_and_all_others_arrive(density: float, dtype: type):
    comm = MPI.COMM_WORLD
    edge, byzantine = case(density)
    part = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    exchange = PartialExchange(comm, part, PARAMETERS, dtype)
    rows = exchange.mine
    bounds = offsets(AGENTS, comm.size)
    owner = np.searchsorted(bounds, np.arange(AGENTS), side="right") - 1
    messages = sent_bytes = 0
    for call in range(4):
        speaks = silences(call)
        for k in range(part.count):
            rows[k] = marked(part.first + k, -1, call, PARAMETERS, dtype)
        for (source, target), row in zip(part.spoken, part.spoken_row, strict=True):
            rows[row] = marked(source, target, call, PARAMETERS, dtype)
        everyone_speaks = bool(speaks.all())
        exchange.start(None if everyone_speaks else speaks[tuple(part.spoken.T)])
        exchange.finish()
        into = [(s, t) for s, t in edge.tolist() if byzantine[t] and s != t and owner[t] == comm.rank]
        overheard = [(*pair, row) for pair, row in zip(into, part.overheard_row, strict=True)]
        for source, target, row in (*zip(part.source, part.target, part.row, strict=True), *overheard):
            lies = byzantine[source] and source != target
            if lies and not speaks[source, target]:
                assert np.isnan(rows[row]).all()
                assert not exchange.arrived[row]
            else:
                expected = marked(source, target if lies else -1, call, PARAMETERS, dtype)
                np.testing.assert_array_equal(rows[row], expected)
                assert exchange.arrived is None or exchange.arrived[row]
        crossing = {
            (owner[t], s, t if byzantine[s] else -1)
            for s, t in edge.tolist()
            if owner[s] == comm.rank != owner[t] and (not byzantine[s] or speaks[s, t])
        }
        messages += len({peer for peer, _, _ in crossing})
        sent_bytes += len(crossing) * PARAMETERS * rows.itemsize
        assert (exchange.messages, exchange.bytes) == (messages, sent_bytes)
    exchange.close()


@pytest.mark.parametrize("knows", ["heard", "victim", "all"])
@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_attackers_are_told_what_they_declare_and_nothing_else(knows: str, samples: bool, density: float):
    comm = MPI.COMM_WORLD
    edge, byzantine = case(density)
    part = partition(shares(edge, byzantine, comm.size)[comm.rank], comm.rank, byzantine)
    everyone = Everyone(comm, offsets(AGENTS, comm.size))
    nothing = np.zeros((len(part.overheard_row), PARAMETERS))
    collusion = Collusion(everyone, part, byzantine, knows, nothing)

    def all_rows(what: int, iteration: int) -> np.ndarray:
        return np.array([marked(k, what, iteration, PARAMETERS, np.float64) for k in range(AGENTS)])

    mine = slice(part.first, part.first + part.count)
    victims = {int(target) for _, target in part.spoken}
    told = [k for k in range(AGENTS) if not byzantine[k] and (knows == "all" or k in victims)]
    into = [(s, t) for s, t in edge.tolist() if byzantine[t] and s != t and part.first <= t < part.first + part.count]
    for iteration in (0, 1, 2, 0, 1):
        psi, theta, sample = (all_rows(what, iteration) for what in (0, 1, 2))
        task = SimpleNamespace(reveal=lambda samples, i, sample=sample: sample[mine])
        moment = SimpleNamespace(iteration=iteration, samples=None, i=0, theta=theta[mine])
        known = collusion.add(Known(iteration), moment, task, psi[mine], samples)
        assert known.own is None
        if knows == "heard":
            assert (known.intermediate, known.previous, known.revealed) == (None, None, None)
            said = [marked(s, t, iteration - 1, PARAMETERS, np.float64) * (iteration > 0) for s, t in into]
            np.testing.assert_array_equal(known.heard, np.array(said).reshape(-1, PARAMETERS))
        else:
            assert known.heard is None
            assert (known.revealed is not None) == samples
            for found, whole in ((known.intermediate, psi), (known.previous, theta), (known.revealed, sample)):
                if found is not None:
                    np.testing.assert_array_equal(found[told], whole[told])
                    assert not np.delete(found, told, axis=0).any()
        collusion.heard = np.array([marked(s, t, iteration, PARAMETERS, np.float64) for s, t in into]).reshape(
            -1, PARAMETERS
        )
    everyone.close()


def test_everyones_rows_are_a_copy_in_agent_order():
    comm = MPI.COMM_WORLD
    bounds = offsets(AGENTS, comm.size)
    everyone = Everyone(comm, bounds)
    own = np.arange(bounds[comm.rank], bounds[comm.rank + 1])[:, None] * np.ones((1, 2))
    whole = everyone.rows(own)
    np.testing.assert_array_equal(whole, np.arange(AGENTS)[:, None] * np.ones((1, 2)))
    whole[:] = -1
    assert (own >= 0).all()
    everyone.close()
