"""Linear regression: its samples, steps, true risk and constants against brute force; whole runs on several ranks."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, mpirun
from results import assert_identical

from mpi_resmtl.graph import Graph
from mpi_resmtl.neighbourhoods import tiles
from mpi_resmtl.tasks.linear_regression import (
    LinearRegression,
    LinearRegressionTask,
    Parameters,
    agents_of,
    constants_of,
    covariance,
    gradient_noise,
)

KINDS = [
    {"covariance": "identity"},
    {"covariance": "decay", "correlation": -0.7},
    {"covariance": "spectrum", "condition": 30.0},
    {"covariance": "spectrum", "eigenvalues": [0.2, 3.0, 1.0, 0.5]},
]
SEED = 3


def study(**settings) -> tuple[LinearRegressionTask, np.ndarray, Parameters]:
    """The task of all agents, their true models (n, P) and the table."""
    parameters = Parameters(**settings)
    scene = LinearRegression.scene(parameters, SEED)
    graph = Graph(np.empty((0, 2), np.int32), np.zeros(parameters.agents, bool), scene.group, None, scene.target)
    return LinearRegression.task(parameters, graph, SEED, 0, parameters.agents), scene.target, parameters


def matrix_of(parameters: Parameters) -> np.ndarray:
    """R from what the table says of it: (P, P)."""
    size = parameters.dimension
    if parameters.covariance == "identity":
        return np.eye(size)
    if parameters.covariance == "decay":
        return np.array([[parameters.correlation ** abs(i - j) for j in range(size)] for i in range(size)])
    factor = covariance(parameters, SEED).factor
    return factor @ factor.T


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_covariance_the_true_model_and_the_noise_that_the_study_says(kind: dict):
    task, target, parameters = study(agents=3, dimension=4, regressor_variance=[0.5, 2.0], noise=[0.3, 0.9], **kind)
    factor, noise = agents_of(parameters, SEED)
    u, y = (np.concatenate(parts) for parts in zip(*(task.draw(b) for b in range(60)), strict=True))
    residual = y - np.einsum("bap,ap->ba", u, target)
    for k in range(3):
        found = u[:, k].T @ u[:, k] / len(u)
        np.testing.assert_allclose(found, factor[k] * matrix_of(parameters), atol=0.06)
        assert residual[:, k].std() == pytest.approx(noise[k], rel=0.02)
        assert np.abs(u[:, k].T @ residual[:, k] / len(u)).max() < 0.03
    assert ((factor >= 0.5) & (factor < 2.0) & (noise >= 0.3) & (noise < 0.9)).all()


def test_a_spectrum_has_the_eigenvalues_asked_for_and_else_mean_1_and_the_condition():
    given = np.linalg.eigvalsh(matrix_of(Parameters(dimension=4, **KINDS[3])))
    np.testing.assert_allclose(given, [0.2, 0.5, 1.0, 3.0])
    spread = np.linalg.eigvalsh(matrix_of(Parameters(dimension=7, **KINDS[2])))
    assert spread[-1] / spread[0] == pytest.approx(30.0)
    assert spread.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(spread[1:] / spread[:-1], 30.0 ** (1 / 6))


def test_true_models_lie_at_their_distances_from_the_centre_and_from_their_groups():
    parameters = Parameters(agents=12, groups=4, spread=2.5, dimension=6)
    scene = LinearRegression.scene(parameters, SEED)
    np.testing.assert_array_equal(scene.group, np.repeat(np.arange(4), 3))
    assert len(np.unique(scene.target, axis=0)) == 4
    centre = LinearRegression.scene(Parameters(agents=12, spread=0.0, dimension=6), SEED).target
    np.testing.assert_allclose(np.linalg.norm(scene.target - centre, axis=1), 2.5)
    apart = LinearRegression.scene(Parameters(agents=12, groups=4, spread=2.5, within=0.1, dimension=6), SEED)
    assert len(np.unique(apart.target, axis=0)) == 12
    np.testing.assert_allclose(np.linalg.norm(apart.target - scene.target, axis=1), 0.1)


@pytest.mark.parametrize("dimension", [1, 5, 100])
def test_the_step_goes_down_the_gradient_of_half_the_loss_by_which_messages_are_judged(dimension: int):
    task, _, _ = study(agents=4, dimension=dimension, step_size=0.01)
    samples, random = task.samples(2), np.random.default_rng(0)
    theta, psi = random.normal(size=(4, dimension)), np.empty((4, dimension))
    task.adapt(samples, 0, theta, psi)
    u, y = (part[0] for part in task.draw(2))
    for k in range(4):
        expected = [theta[k, p] + 0.01 * u[k, p] * (y[k] - u[k] @ theta[k]) for p in range(dimension)]
        np.testing.assert_allclose(psi[k], expected, rtol=1e-10)
        for p in range(dimension):
            step = np.zeros(dimension)
            step[p] = 1e-5
            ahead, behind = ((y[k] - u[k] @ (theta[k] + s)) ** 2 for s in (step, -step))
            assert (theta[k, p] - psi[k, p]) / 0.01 == pytest.approx((ahead - behind) / 4e-5, rel=1e-4, abs=1e-4)
    again = np.empty_like(psi)
    task.adapt(samples, 0, psi, again)
    assert task.lookahead(samples, 0, psi).tobytes() == again.tobytes()


@pytest.mark.parametrize("dimension", [1, 3, 64, 65, 200])
def test_a_message_is_judged_by_its_loss_on_the_hearers_sample(dimension: int):
    task, _, _ = study(agents=3, dimension=dimension, step_size=0.001)
    target, source = np.divmod(np.arange(9), 3)
    (tile,) = tiles(target, source, source, 0, dimension, task.gathers)
    rows, samples = np.random.default_rng(1).normal(size=(3, dimension)), task.samples(0)
    u, y = (part[-1] for part in task.draw(0))
    last = task.length - 1
    found = task.judge(samples, last, tile, tile.gather(rows))
    expected = [(y[k] - sum(u[k, p] * rows[s, p] for p in range(dimension))) ** 2
                for k, s in zip(target, source, strict=True)]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    own = task.own_losses(samples, last, rows)
    np.testing.assert_allclose(own, found[[0, 4, 8]], rtol=1e-9)
    models = np.broadcast_to(rows, (task.length, *rows.shape))
    np.testing.assert_array_equal(task.losses(samples, models)[last], own)


@pytest.mark.parametrize("kind", KINDS)
def test_the_risk_in_closed_form_is_the_oracles_and_the_mean_of_sampled_losses(kind: dict):
    task, target, parameters = study(agents=2, dimension=4, regressor_variance=[0.5, 2.0], **kind)
    factor, noise = agents_of(parameters, SEED)
    random, matrix = np.random.default_rng(5), matrix_of(parameters)
    models = target + random.normal(size=(3, 2, 4))
    found = task.risk(models)
    measured = task.measure(task.samples(0), models, models[:1].repeat(3, axis=0))
    np.testing.assert_array_equal(measured["risk_before"], found)
    np.testing.assert_array_equal(measured["risk_after"], found[:1].repeat(3, axis=0))
    for b, k in np.ndindex(3, 2):
        error = models[b, k] - target[k]
        assert measured["msd"][0, k] == pytest.approx(sum((models[0, k] - target[k]) ** 2))
        quadratic = sum(error[i] * matrix[i, j] * error[j] for i in range(4) for j in range(4))
        assert found[b, k] == pytest.approx(factor[k] * quadratic + noise[k] ** 2, rel=1e-10)
        u = np.sqrt(factor[k]) * random.multivariate_normal(np.zeros(4), matrix, 40_000)
        losses = (noise[k] * random.normal(size=40_000) - u @ error) ** 2
        assert abs(losses.mean() - found[b, k]) < 6 * losses.std() / 200


@pytest.mark.parametrize("kind", KINDS)
def test_strong_convexity_and_smoothness_are_the_ends_of_the_hessians_spectrum(kind: dict):
    """The Hessian of half the risk, from second differences of the task's own closed form."""
    settings = dict(agents=3, dimension=4, regressor_variance=[0.5, 2.0], **kind)
    task, target, parameters = study(**settings)
    found, unit = constants_of(parameters, SEED), np.eye(4)

    def risk(at: np.ndarray) -> np.ndarray:
        return task.risk((target + at)[None])[0]

    hessian = np.empty((3, 4, 4))
    for i, j in np.ndindex(4, 4):
        both = risk(unit[i] + unit[j]) - risk(unit[i]) - risk(unit[j]) + risk(0 * unit[0])
        hessian[:, i, j] = both / 2
    eigenvalues = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(found.m, eigenvalues[:, 0], rtol=1e-9)
    np.testing.assert_allclose(found.L, eigenvalues[:, -1], rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_noise_is_as_computed_and_within_its_bound(kind: dict):
    parameters = Parameters(agents=1, dimension=4, noise=[0.5, 0.5], **kind)
    matrix, found = matrix_of(parameters), constants_of(parameters, SEED)
    random = np.random.default_rng(7)
    least = np.linalg.eigh(matrix)[1][:, 0]
    for error in (np.zeros(4), random.normal(size=4), 3 * least):
        u = random.multivariate_normal(np.zeros(4), matrix, 400_000)
        v = 0.5 * random.normal(size=len(u))
        gradient = -u * (u @ error + v)[:, None]
        noise = gradient_noise(matrix, error, 0.5)
        spread = np.sqrt(np.outer(np.diag(noise), np.diag(noise)))
        np.testing.assert_allclose(np.cov(gradient.T) / spread, noise / spread, atol=0.03)
        bound = found.sigma_squared[0] + found.c[0] * np.sum((matrix @ error) ** 2)
        assert np.trace(noise) <= bound * (1 + 1e-9)
    # At the true model, and far from it in the direction of the least eigenvalue, no smaller constants would do.
    assert np.trace(gradient_noise(matrix, np.zeros(4), 0.5)) == pytest.approx(found.sigma_squared[0])
    steep = np.trace(gradient_noise(matrix, 1e6 * least, 0.5))
    assert steep == pytest.approx(found.c[0] * np.sum((matrix @ least) ** 2) * 1e12, rel=1e-6)


def test_a_step_is_refused_exactly_where_an_agent_alone_diverges():
    """Iterates E e e' by its recursion, of which only the eigenvalues of R matter."""
    parameters = Parameters(dimension=4, **KINDS[3])
    values = np.array(parameters.eigenvalues)

    def stable(mu: float) -> bool:
        step = np.diag((1 - mu * values) ** 2 + mu**2 * values**2) + mu**2 * np.outer(values, values)
        return np.abs(np.linalg.eigvals(step)).max() < 1

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    LinearRegression.scene(Parameters(dimension=4, step_size=0.999 * low, **KINDS[3]), SEED)
    with pytest.raises(Exception, match=r"step_size = .*: an agent alone would diverge"):
        LinearRegression.scene(Parameters(dimension=4, step_size=1.001 * low, **KINDS[3]), SEED)


def run(folder: Path, ranks: int, preset: str, *settings: str) -> Path:
    path = folder / f"{preset}-{ranks}.h5"
    words = (w for s in settings for w in ("--set", s))
    done = mpirun(ranks, "run", preset, *words, "--output", path, timeout=300)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("regression", ("task.covariance=spectrum", "task.agents=7", "byzantine.count=2", "task.dimension=9")),
        ("regression-groups", ("task.agents=7", "byzantine.count=1", "task.within=0.1", "task.dimension=90",
                               "task.step_size=0.002", "graph.radius=2")),
    ],
)  # fmt: skip
def test_results_do_not_depend_on_the_number_of_ranks(preset: str, settings: tuple[str], tmp_path: Path):
    settings = (*settings, "iterations=60", "record.models=7", "rules=none,average,distance,loss,loss-fresh,median")
    one = run(tmp_path, 1, preset, *settings)
    for ranks in (2, 3, 7):
        assert_identical(one, run(tmp_path, ranks, preset, *settings))


def test_alone_an_agent_comes_as_near_to_its_model_as_the_theory_of_lms_says(tmp_path: Path):
    """Steady state of R = I: mu s^2 P / (2 - mu (P + 2)) in mean square (Feuer and Weinstein 1985)."""
    settings = ("task.agents=200", "task.noise=[0.2,0.2]", "task.step_size=0.02", "iterations=1500", "rules=none",
                "byzantine.count=0", "graph.kind=ring")  # fmt: skip
    with h5py.File(run(tmp_path, 2, "regression", *settings)) as file:
        found = file["rule/none"]
        settled = found["msd"][-500:].mean()
        np.testing.assert_allclose(found["risk_after"][()], found["msd"][()] + 0.04, rtol=1e-9)
        assert file["graph/target"].shape == (200, 10)
        assert file["graph/position"].shape == (200, 2)
        assert found["fresh_loss"][-500:].mean() == pytest.approx(settled + 0.04, rel=0.02)
    assert settled == pytest.approx(0.02 * 0.04 * 10 / (2 - 0.02 * 12), rel=0.03)


@pytest.mark.parametrize("preset", ["regression", "regression-groups"])
def test_a_preset_reads_back_as_itself(preset: str, tmp_path: Path):
    shown = alone("show", preset).stdout
    (tmp_path / "again.toml").write_text(shown)
    assert alone("show", tmp_path / "again.toml").stdout == shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.noise=[2.0,1.0]"], "task.noise = [2.0, 1.0]: the first is above the second"),
        (["task.regressor_variance=[0.0,1.0]"], "an agent whose u is always 0 cannot learn"),
        (["task.groups=21"], "task.groups = 21 is more than the 20 agents"),
        (["task.eigenvalues=[1.0]"], "task.eigenvalues is for covariance = 'spectrum', not 'identity'"),
        (["task.covariance=spectrum", "task.eigenvalues=[1.0]"], "has 1 numbers; task.dimension = 10"),
        (["task.correlation=1.0"], "task.correlation = 1.0"),
        (["task.step_size=0.2"], "has trace 10 and largest eigenvalue 1; below 0.167 none does"),
        (["byzantine.attack=label-flip"], "attack label-flip needs labels; linear-regression has none"),
    ],
)
def test_what_the_study_cannot_do_is_refused_in_one_line(settings: list[str], message: str, tmp_path: Path):
    done = alone("run", "regression", *(w for s in settings for w in ("--set", s)), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpi-resmtl: ")]
    assert message in line
    assert list(tmp_path.iterdir()) == []
