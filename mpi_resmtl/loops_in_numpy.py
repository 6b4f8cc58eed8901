"""The loops over edges in numpy, for machines without a compiler, and the description of those in C.

A neighbourhood's edges lie together. Sums over them run in agent order, one term after the other from 0 on, which
fixes every bit: `_loops.c` gives the same. Models are float64 here; C wants arrays that are C-contiguous and places
that are intp.
"""

from __future__ import annotations

import numpy as np

_SMALLEST = 1e-290
"""Keeps 1/phi, and sums of it over a neighbourhood, finite."""


def philox(key: np.ndarray, counter: int, counters: int) -> np.ndarray:
    """Philox4x64-10 (Salmon et al. 2011): the 4 words of each counter after `counter`, for a key (2,): uint64."""
    return np.random.Philox(key=key, counter=counter).random_raw(4 * counters)


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
