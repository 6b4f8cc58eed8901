"""The server baseline: what learning all tasks in one place gives where everyone is honest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from mpi_resmtl.rules import server


@dataclass
class Central:
    """Weights of the regularisers of eq. 1."""

    relation: Annotated[float, Ge(0), "lambda_1, of the models' relationship"] = 0.1
    decay: Annotated[float, Ge(0), "lambda_2, of the models' size"] = 0.0
    floor: Annotated[float, Gt(0), "least singular value of the models, as a share of the greatest"] = 1e-6


@server("central", parameters=Central)
def central(models: np.ndarray, step_size: float, options: Central) -> np.ndarray:
    """psi - mu (lambda_1 Theta Omega^-1 + lambda_2 psi) of all models psi (n, P), the columns of Theta; not resilient.

    Omega = (Theta'Theta)^1/2 / Tr((Theta'Theta)^1/2) is what the relationship matrix becomes when it is learnt beside
    the models (eq. 1; Zhang and Yeung 2010). With Theta = U S V', Theta Omega^-1 = Tr(S) U V', where singular values
    below `floor` times the greatest count as that. Computed in float64 from the Gram matrix: n^2 P + n^3.
    """
    theta = models.astype(np.float64)
    scale = np.abs(theta).max()
    if scale == 0.0:
        return models
    theta /= scale
    kept = (1.0 - step_size * options.decay) * theta
    if options.relation > 0.0:
        singular, v = omega_root(theta, options.floor)
        pull = singular.sum() * ((v / singular) @ (v.T @ theta))
        kept -= step_size * options.relation * pull
    with np.errstate(over="ignore"):
        kept *= scale
    largest = np.finfo(models.dtype).max
    return np.clip(kept, -largest, largest).astype(models.dtype)


def omega_root(models: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Singular values S (n,), at least `floor` times the greatest, and V (n, n) of Theta = U S V'; models (n, P)."""
    square, v = np.linalg.eigh(models @ models.T)
    singular = np.sqrt(np.maximum(square, 0.0))
    return np.maximum(singular, floor * singular.max()), v
