"""The location task: its loss, its true risk and its measures."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from mpi_resmtl.graph import Graph
from mpi_resmtl.neighbourhoods import tiles
from mpi_resmtl.tasks.location import LocationTask, Noise, closed_form_risk
from mpi_resmtl.tasks.target_localization import Parameters, TargetLocalization


@pytest.mark.parametrize("noise", ["independent", "scalar"])
def test_the_risk_in_closed_form_is_the_oracles_and_the_mean_of_sampled_losses(noise: str):
    random = np.random.default_rng(3)
    for _ in range(20):
        model, target, position = random.uniform(0, 20, (3, 2))
        deviation_u, deviation_d = random.uniform(0.01, 0.2, 2)
        deviations = Noise(np.array([deviation_u]), np.array([deviation_d]), noise == "scalar")
        found = closed_form_risk(model[None, None], target[None], position[None], deviations)
        expected = oracle.location_risk(model, target, position, deviation_u, deviation_d, noise)
        assert found[0, 0] == pytest.approx(expected, rel=1e-11)
        mean, error = oracle.location_risk_sampled(
            model, target, position, deviation_u, deviation_d, noise, generator=random, samples=20_000
        )
        assert abs(mean - expected) < 6 * error


def study(**settings) -> tuple[TargetLocalization, Parameters, Graph]:
    parameters = Parameters(**settings)
    scene = TargetLocalization.scene(parameters, seed=7)
    none = np.zeros(parameters.agents, bool)
    return TargetLocalization.task(
        parameters, Graph(np.empty((0, 2), np.int32), none, scene.group, scene.position, scene.target), 7, 0,
        parameters.agents,
    ), scene  # fmt: skip


@pytest.mark.parametrize("noise", ["independent", "scalar"])
def test_samples_have_the_noise_that_the_study_says(noise: str):
    task, scene = study(agents=40, noise=noise, noisy_agents=0, direction_noise=[0.015, 0.015])
    away = scene.target - scene.position
    towards = away / np.linalg.norm(away, axis=1, keepdims=True)
    u, d = (np.concatenate(parts) for parts in zip(*(task.draw(b) for b in range(400)), strict=True))
    v_u, v_d = u - towards, d - (away * u).sum(axis=-1)
    np.testing.assert_allclose(v_u.std(), 0.015, rtol=0.01)
    assert (v_d.std(axis=0) > 0.09).all()
    assert (v_d.std(axis=0) < 0.21).all()
    correlation = np.corrcoef(v_u[..., 0].ravel(), v_u[..., 1].ravel())[0, 1]
    assert correlation == pytest.approx(1.0 if noise == "scalar" else 0.0, abs=0.02)


def test_the_paper_study_has_its_groups_targets_and_noisy_agents():
    task, scene = study()
    np.testing.assert_array_equal(scene.group, np.repeat(np.arange(4), 25))
    corners = np.array([[10, 10], [10, 20], [20, 10], [20, 20]])
    offset = scene.target - corners[scene.group]
    assert ((offset >= 0) & (offset < 1)).all()
    assert len(np.unique(scene.target, axis=0)) == 4
    assert ((scene.position >= 0) & (scene.position < 3)).all()
    assert np.count_nonzero(task._noise.direction == 0.1) == 5
    assert ((task.start() >= 0) & (task.start() < 1)).all()


def located(**settings) -> LocationTask:
    random = np.random.default_rng(5)
    u, d = random.normal(size=(4, 3, 2)), random.normal(10, 1, (4, 3))
    return LocationTask(
        lambda block: (u, d), 4, random.random((3, 2)), random.random((3, 2)), 0, 0.1, random.random((3, 2)), **settings
    )


def complete_tile(agents: int):
    target, source = np.divmod(np.arange(agents**2), agents)
    (tile,) = tiles(target, source, source, 0, 2, gathered=True)
    return tile


def test_a_message_is_judged_by_its_loss_on_the_hearers_sample():
    task, tile = located(), complete_tile(3)
    samples = task.samples(0)
    (u, d), x = task.draw(0), task._position
    messages = np.random.default_rng(1).normal(size=(9, 2))
    for i in range(4):
        found = task.judge(samples, i, tile, messages)
        for e in range(9):
            k = tile.target[e]
            expected = (d[i, k] + x[k] @ u[i, k] - messages[e] @ u[i, k]) ** 2
            assert found[e] == pytest.approx(expected, rel=1e-12)


def test_the_slip_uses_the_speakers_position_for_neighbours_alone():
    task, tile = located(loss_position="neighbour"), complete_tile(3)
    samples = task.samples(0)
    (u, d), x = task.draw(0), task._position
    messages = np.random.default_rng(1).normal(size=(9, 2))
    found = task.judge(samples, 2, tile, messages)
    for e in range(9):
        k, source = tile.target[e], tile.source[e]
        expected = (d[2, k] + x[source] @ u[2, k] - messages[e] @ u[2, k]) ** 2
        assert found[e] == pytest.approx(expected, rel=1e-12)


def test_judged_by_position_a_message_is_compared_with_where_the_sample_points():
    task, tile = located(judge="position"), complete_tile(3)
    samples = task.samples(0)
    (u, d), x = task.draw(0), task._position
    messages = np.random.default_rng(1).normal(size=(9, 2))
    found = task.judge(samples, 1, tile, messages)
    for e in range(9):
        k = tile.target[e]
        assert found[e] == pytest.approx(np.sum((x[k] + d[1, k] * u[1, k] - messages[e]) ** 2), rel=1e-12)


def test_the_lookahead_is_one_more_gradient_step():
    task = located()
    samples, psi = task.samples(0), np.ones((3, 2))
    again = np.empty_like(psi)
    task.adapt(samples, 0, psi, again)
    np.testing.assert_allclose(task.lookahead(samples, 0, psi), again, rtol=1e-15)
