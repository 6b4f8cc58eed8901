"""The loops over edges in numpy, for machines without a compiler, and the description of those in C.

A neighbourhood's edges lie together. Sums over them run in agent order, one term after the other from 0 on, which
fixes every bit: `_loops.c` gives the same. Models are float64 here; C wants arrays that are C-contiguous and places
that are intp.
"""

from __future__ import annotations

import math

import numpy as np

_SMALLEST = 1e-290
"""Keeps 1/phi, and sums of it over a neighbourhood, finite."""


def philox(key: np.ndarray, counter: int, counters: int) -> np.ndarray:
    """Philox4x64-10 (Salmon et al. 2011): the 4 words of each counter after `counter`, for a key (2,): uint64."""
    return np.random.Philox(key=key, counter=counter).random_raw(4 * counters)


def all_finite(models: np.ndarray) -> bool:
    """Whether no number of float64 or float32 models (R, P) is NaN or Inf."""
    # One sum of squares tells unless it overflows, as NaN and Inf survive it.
    return math.isfinite(np.vdot(models, models)) or bool(np.isfinite(models).all())


def gather(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The messages rows[row]: (R, P), (E,) -> (E, P), a copy; here stored parameter by parameter, which suits numpy."""
    return np.ascontiguousarray(rows.take(row, axis=0).T).T


def squared_residuals(signal: np.ndarray, target: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """(y_k - u_k'm)^2, summed parameter by parameter: u and y (P + 1, A), target k (E,), messages (E, P) -> (E,)."""
    *u, residual = signal.take(target, axis=1)
    for component, m in zip(u, messages.T, strict=True):
        component *= m
        residual -= component
    residual *= residual
    return residual


def squared_distances(anchor: np.ndarray, target: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """norm(m - anchor_k)^2, summed parameter by parameter: (A, P), target k (E,), messages (E, P) -> (E,)."""
    squared = np.zeros(len(target))
    for point, m in zip(anchor.T, messages.T, strict=True):
        difference = m - point.take(target)
        difference *= difference
        squared += difference
    return squared


def average_in(held: np.ndarray, value: np.ndarray, forgetting_factor: float) -> bool:
    """held <- (1 - nu) held + nu value, in place, (E,); False, and nothing done, where a value is not finite."""
    if not np.isfinite(value).all():
        return False
    held *= 1.0 - forgetting_factor
    held += value * forgetting_factor
    return True


def normalise(share: np.ndarray, agent: np.ndarray) -> np.ndarray:
    """Shares (E,) divided by their sum over the neighbourhood of each `agent` (E,)."""
    return share / np.bincount(agent, share).take(agent)


def inverse_weights(held: np.ndarray, agent: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Weights proportional to 1/held (E,) over the neighbourhood of each `agent` (E,).

    Where `own` (E,), the edge from each edge's target to itself, is given, 0 on edges against which more is held.
    """
    share = 1.0 / np.maximum(held, _SMALLEST)
    if own is not None:
        share *= held <= held.take(own)
    return normalise(share, agent)


def weighted_sums(
    weight: np.ndarray, messages: np.ndarray, agent: np.ndarray, row: np.ndarray, models: np.ndarray
) -> None:
    """models[row_k] <- sum_l a_lk m_lk.

    Weights (E,), messages (E, P), number k of each edge's target (E,), row of each of the N agents (N,), models (A, P).
    """
    for model, m in zip(models.T, messages.T, strict=True):
        model[row] = np.bincount(agent, weight * m, len(row))


def step_towards(point: np.ndarray, share: float, models: np.ndarray, moved: np.ndarray) -> None:
    """moved <- models + share (point - models), all (A, P)."""
    np.subtract(point, models, out=moved)
    moved *= share
    moved += models


def own_squared_residuals(signal: np.ndarray, models: np.ndarray) -> np.ndarray:
    """(y_k - u_k'm_k)^2, summed parameter by parameter: u and y (B, P + 1, A), models (b, A, P), b <= B -> (b, A)."""
    *u, y = np.moveaxis(signal[: len(models)], 1, 0)
    residual = y
    for component, m in zip(u, by_component(models), strict=True):
        residual = residual - component * m
    return residual * residual


def own_squared_distances(models: np.ndarray, target: np.ndarray) -> np.ndarray:
    """norm(w_k - m_k)^2, summed parameter by parameter: models (b, A, P), w (A, P) -> (b, A)."""
    squared = np.zeros(models.shape[:2])
    for w, m in zip(target.T, by_component(models), strict=True):
        difference = w - m
        difference *= difference
        squared += difference
    return squared


def location_samples(u: np.ndarray, d: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q = x_k + d u (B, A, 2), and u with the reading x_k.u + d (B, 3, A), of u (B, 2, A), d (B, A), x (A, 2)."""
    q, signal = np.empty((len(u), u.shape[2], 2)), np.empty((len(u), 3, u.shape[2]))
    signal[:, :2] = u
    for p, x in enumerate(position.T):
        np.add(d * u[:, p], x, out=q[..., p])
    x, y = position.T
    np.add(x * u[:, 0] + y * u[:, 1], d, out=signal[:, 2])
    return q, signal


def location_risks(
    models: np.ndarray,
    target: np.ndarray,
    towards: np.ndarray,
    direction_variance: np.ndarray,
    distance_variance: np.ndarray,
    scalar: bool,
) -> np.ndarray:
    """(e'(w - m))^2 + s_u^2 c + s_d^2, c = norm(w - m)^2 or, where `scalar`, the square of the sum of w - m.

    Models m (b, A, 2), target w and towards e (A, 2), variances s_u^2 and s_d^2 (A,) -> (b, A).
    """
    x, y = (w - m for w, m in zip(target.T, by_component(models), strict=True))
    along = x * towards[:, 0] + y * towards[:, 1]
    noisy = (x + y) * (x + y) if scalar else x * x + y * y
    return along * along + direction_variance * noisy + distance_variance


def by_component(models: np.ndarray) -> np.ndarray:
    """(b, A, P) -> (P, b, A), a copy, on which numpy is several times faster where P is small."""
    return np.ascontiguousarray(np.moveaxis(models, -1, 0))
