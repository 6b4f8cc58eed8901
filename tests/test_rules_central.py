"""The server baseline is the step of eq. 1 with the relationship matrix that the models themselves give."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from mpi_resmtl.rules import RULES
from mpi_resmtl.rules.central import Central

SERVE = RULES["central"].serve


def step(models: np.ndarray, step_size: float, relation: float, decay: float) -> np.ndarray:
    """psi - mu (lambda_1 Theta Omega^-1 + lambda_2 psi), by roots and inverses of matrices as they are written."""
    theta = models.T
    root = scipy.linalg.sqrtm(theta.T @ theta).real
    omega = root / np.trace(root)
    return models - step_size * (relation * (theta @ np.linalg.inv(omega)).T + decay * models)


@pytest.mark.parametrize(("n", "parameters"), [(1, 1), (2, 2), (3, 7), (10, 40)])
@pytest.mark.parametrize(("relation", "decay"), [(0.1, 0.0), (0.0, 0.3), (0.5, 2.0), (0.0, 0.0)])
def test_the_servers_step_is_its_formula(n: int, parameters: int, relation: float, decay: float):
    models = np.random.default_rng(n).normal(size=(n, parameters))
    found = SERVE(models, 0.05, Central(relation=relation, decay=decay))
    np.testing.assert_allclose(found, step(models, 0.05, relation, decay), rtol=1e-8, atol=1e-10)


def test_models_of_one_line_have_the_pseudo_inverse_with_a_floor():
    """Theta of rank 1, Theta = s u v': the floor changes nothing along v, and Theta has nothing across it."""
    u, v = np.array([3.0, 4.0]) / 5, np.array([1.0, 2.0, 2.0]) / 3
    theta = 6.0 * np.outer(u, v)
    found = SERVE(theta.T.copy(), 0.1, Central(relation=1.0, floor=1e-3))
    trace = 6.0 * (1 + 2 * 1e-3)
    np.testing.assert_allclose(found, theta.T - 0.1 * trace * np.outer(v, u), rtol=1e-12)


def test_the_step_goes_down_the_trace_norm():
    """Theta Omega^-1 is Tr(S) U V', half the gradient of the squared trace norm (sum of singular values)."""
    models = np.random.default_rng(2).normal(size=(4, 6))
    pull = (models - SERVE(models, 1.0, Central(relation=1.0))) / 1.0
    for k, p in np.ndindex(4, 6):
        nudge = np.zeros((4, 6))
        nudge[k, p] = 1e-6
        ahead, behind = (np.linalg.norm(models + s, "nuc") ** 2 for s in (nudge, -nudge))
        assert pull[k, p] == pytest.approx((ahead - behind) / 4e-6, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_server_answers_finite_models_to_the_largest_and_to_zeros(dtype: type):
    largest = np.finfo(dtype).max
    values = np.array([largest, -largest, 0.0, 1.0], dtype)
    for models in (np.full((3, 5), largest, dtype), np.random.default_rng(0).choice(values, (3, 5))):
        found = SERVE(models, 1.0, Central(relation=5.0, decay=3.0))
        assert found.dtype == dtype
        assert np.isfinite(found).all()
    np.testing.assert_array_equal(SERVE(np.zeros((3, 5), dtype), 1.0, Central()), 0.0)
