"""Distances between messages and sums of them: what most aggregates are made of.

An agent's result has the same bits whoever is computed beside it: which way is taken depends on P alone, and sums run
over parameters, or over messages, of one agent. Costs are given in multiplications.
"""

from __future__ import annotations

import numpy as np

_FEW = 8
"""Parameters that are summed one after the other for all messages at once."""
_SMALL = 256
"""Parameters of models that are computed in float64, many agents at once; larger ones agent by agent."""
_BLOCK = 8192
"""Parameters of a large model in the cache at a time; BLAS uses one thread for vectors of this length."""
_ELEMENTS = 2**18
"""Differences held at a time."""
_LARGEST = np.finfo(np.float64).max
_SMALLEST_SINGLE = 1e-30
"""Weights below lose digits in float32."""


def weighted_sum(weight: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """sum_l weight[k, l] messages[k, l]: (g, n) float64, each row's sum 1, and (g, n, P) -> (g, P) of messages' dtype.

    A message that has all the weight is the result to the bit. A weight of 0 silences any finite message. g n P.
    """
    g, _, parameters = messages.shape
    alone = np.count_nonzero(weight, axis=1) == 1
    if parameters <= _SMALL:
        combined = np.matmul(weight[:, None, :], messages)[:, 0].astype(messages.dtype, copy=False)
    else:
        combined = np.empty((g, parameters), messages.dtype)
        for k in np.flatnonzero(~alone):
            _sum_large(weight[k], messages[k], combined[k])
    if alone.any():
        rows = np.flatnonzero(alone)
        combined[rows] = messages[rows, weight[rows].argmax(axis=1)]
    return combined


def mixed(weight: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """sum_l weight[k, j, l] messages[k, l]: (g, m, n) float64, (g, n, P) -> (g, m, P) of messages' dtype. g m n P."""
    if messages.shape[2] <= _SMALL:
        return np.matmul(weight, messages).astype(messages.dtype, copy=False)
    together = np.empty((*weight.shape[:2], messages.shape[2]), messages.dtype)
    for k in range(len(messages)):
        np.matmul(weight[k].astype(messages.dtype), messages[k], out=together[k])
    return together


def squared_distances(anchor: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """norm(anchor_k - m_lk)^2: anchors (g, P) and messages (g, n, P) -> float64 (g, n); inf above 1e308. g n P."""
    g, n, parameters = messages.shape
    with np.errstate(over="ignore"):
        if parameters <= _SMALL:
            return _squared_norms(messages, anchor[:, None])
        squared = np.zeros((g, n))
        difference = np.empty((n, min(parameters, _BLOCK)), messages.dtype)
        for k in range(g):
            for first in range(0, parameters, _BLOCK):
                block = messages[k, :, first : first + _BLOCK]
                part = difference[:, : block.shape[1]]
                np.subtract(block, anchor[k, first : first + _BLOCK], out=part)
                squared[k] += np.vecdot(part, part)
        if messages.dtype != np.float64:
            for k, place in np.argwhere(np.isinf(squared)):
                squared[k, place] = _far(anchor[k], messages[k, place]) ** 2
        return squared


def distances(anchor: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """norm(anchor_k - m_lk), never above the largest float64: (g, P), (g, n, P) -> float64 (g, n). g n P.

    Differences below 1e-154 count as none.
    """
    distance = np.sqrt(squared_distances(anchor, messages))
    if not np.isfinite(distance.sum()):
        for k, place in np.argwhere(np.isinf(distance)):
            distance[k, place] = _far(anchor[k], messages[k, place])
    return distance


def norms(models: np.ndarray) -> np.ndarray:
    """norm(model_k): (g, P) -> float64 (g,), like `distances`. g P."""
    return distances(np.zeros_like(models), models[:, None])[:, 0]


def pairwise_distances(messages: np.ndarray) -> np.ndarray:
    """norm(m_jk - m_lk), like `distances`: (g, n, P) -> float64 (g, n, n), symmetric. g n^2 P."""
    g, n, parameters = messages.shape
    squared = np.zeros((g, n, n))
    with np.errstate(over="ignore"):
        if parameters <= _SMALL:
            stack = max(1, _ELEMENTS // (n * n * parameters))
            for first in range(0, g, stack):
                some = messages[first : first + stack]
                squared[first : first + stack] = _squared_norms(some[:, :, None], some[:, None])
        else:
            for k in range(g):
                _add_squares_large(messages[k], squared[k])
    distance = np.sqrt(squared)
    if not np.isfinite(distance.sum()):
        for k, j, place in np.argwhere(np.isinf(distance)):
            distance[k, j, place] = _far(messages[k, j], messages[k, place])
    return distance


def smallest(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Which `count` values of each row are the least: (g, n), (g,) -> bool (g, n). Ties go to the first; NaN last."""
    g, n = values.shape
    order = values.argsort(axis=1, kind="stable")
    order += np.arange(0, g * n, n)[:, None]
    least = np.empty(g * n, bool)
    least[order] = np.arange(n) < count[:, None]
    return least.reshape(g, n)


def blend(alpha: float, accepted: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Weights of alpha p + (1 - alpha) mean of the accepted, of p alone where nobody is: bool (g, n), (g,) -> (g, n).

    `accepted` must not hold one's own message.
    """
    count = np.count_nonzero(accepted, axis=1)
    weight = accepted * ((1.0 - alpha) / np.maximum(count, 1))[:, None]
    weight[np.arange(len(own)), own] = np.where(count > 0, alpha, 1.0)
    return weight


def normalised(share: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Shares (g, n) >= 0 divided by their sum; all the weight to oneself where that is 0."""
    total = share.sum(axis=1)
    lonely = total == 0.0
    if lonely.any():
        share[lonely, own[lonely]] = 1.0
        total[lonely] = 1.0
    return share / total[:, None]


def _squared_norms(minuend: np.ndarray, subtrahend: np.ndarray) -> np.ndarray:
    """Squared norms along the last axis of a difference, in float64."""
    if minuend.shape[-1] > _FEW:
        difference = np.subtract(minuend, subtrahend, dtype=np.float64)
        return np.vecdot(difference, difference)
    squared = None
    for p in range(minuend.shape[-1]):
        difference = np.subtract(minuend[..., p], subtrahend[..., p], dtype=np.float64)
        difference *= difference
        squared = difference if squared is None else np.add(squared, difference, out=squared)
    return squared


def _add_squares_large(messages: np.ndarray, squared: np.ndarray) -> None:
    """Add the squared distances of one agent's messages (n, P) to `squared` (n, n)."""
    n, parameters = messages.shape
    difference = np.empty((n, min(parameters, _BLOCK)), messages.dtype)
    for first in range(0, parameters, _BLOCK):
        block = messages[:, first : first + _BLOCK]
        for j in range(n - 1):
            part = difference[j + 1 :, : block.shape[1]]
            np.subtract(block[j + 1 :], block[j], out=part)
            squared[j, j + 1 :] += np.vecdot(part, part)
    squared += squared.T


def _sum_large(weight: np.ndarray, messages: np.ndarray, combined: np.ndarray) -> None:
    """weight (n,) times messages (n, P) into `combined` (P,); in float64 where a weight is tiny for float32."""
    if messages.dtype == np.float64 or not ((weight > 0.0) & (weight < _SMALLEST_SINGLE)).any():
        np.matmul(weight.astype(messages.dtype), messages, out=combined)
        return
    for first in range(0, messages.shape[1], _BLOCK):
        combined[first : first + _BLOCK] = np.matmul(weight, messages[:, first : first + _BLOCK].astype(np.float64))


def _far(one: np.ndarray, other: np.ndarray) -> float:
    """norm(one - other) of vectors (P,) whose squares may overflow, at most the largest float64."""
    half = one * np.float64(0.5) - other * np.float64(0.5)
    scale = float(np.abs(half).max())
    half /= scale
    half *= half
    return min(2.0 * (scale * float(np.sqrt(half.sum()))), float(_LARGEST))
