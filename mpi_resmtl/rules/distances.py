"""Distances between messages and from one's own.

An agent's result has the same bits whoever is computed beside it and however many places are empty. Costs are given in
multiplications.
"""

from __future__ import annotations

import numpy as np

from mpi_resmtl import loops

_FEW = 8
"""Parameters whose squares are added one after the other, for all messages at once."""
_SMALL = 256
"""Parameters of models that are computed in float64, many agents at once; larger ones agent by agent."""
_BLOCK = 4096
"""Coordinates of a large model in the cache at a time; BLAS uses one thread for vectors of this length."""
_DIFFERENCES = 2**17
"""Differences held at a time."""
_FEW_ROWS = 7
"""Messages up to which their products are as quick in float64."""
_NEAR = 0.01
"""Part of norm(m_j - o)^2 + norm(m_l - o)^2 above which float32 keeps enough digits of their squared distance."""
_CANCELLED = 1e-9
"""Part of norm(m_j)^2 + norm(m_l)^2 below which their squared distance is computed from differences."""
_SHRINK = 2.0**-600
"""Brings differences whose squares overflow into range."""
_LARGEST = np.finfo(np.float64).max


def squared_distances(anchor: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """norm(anchor_k - m_lk)^2: anchors (g, P) and messages (g, n, P) -> float64 (g, n); inf above 1e308. g n P."""
    with np.errstate(over="ignore"):
        if messages.shape[2] <= _SMALL:
            return _squared_norms(messages, anchor[:, None])
        squared = loops.large_squared_distances(np.ascontiguousarray(anchor), np.ascontiguousarray(messages))
        if messages.dtype != np.float64 and not loops.all_finite(squared):
            for k, place in np.argwhere(np.isinf(squared)):
                squared[k, place] = _far(anchor[k], messages[k, place]) ** 2
        return squared


def distances(anchor: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """norm(anchor_k - m_lk), never above the largest float64: (g, P), (g, n, P) -> float64 (g, n). g n P.

    Differences below 1e-154 count as none.
    """
    distance = np.sqrt(squared_distances(anchor, messages))
    if not loops.all_finite(distance):
        for k, place in np.argwhere(np.isinf(distance)):
            distance[k, place] = _far(anchor[k], messages[k, place])
    return distance


def norms(models: np.ndarray) -> np.ndarray:
    """norm(model_k): (g, P) -> float64 (g,), like `distances`. g P."""
    return distances(np.zeros_like(models), models[:, None])[:, 0]


def pairwise_squares(messages: np.ndarray, present: np.ndarray) -> np.ndarray:
    """norm(m_j - m_l)^2 of messages (g, n, P): float64 (g, n, n), symmetric, inf where it overflows. n^2 P.

    Relative accuracy 1e-5 or better, that of differences in float64 where P <= 256. What is not present (g, n) has no
    meaningful distances.
    """
    g, n, parameters = messages.shape
    with np.errstate(over="ignore", invalid="ignore"):
        if parameters > _SMALL:
            squares = np.zeros((g, n, n))
            for k in range(g):
                if present[k].all():
                    squares[k] = _large_squares(messages[k])
                else:
                    places = np.flatnonzero(present[k])
                    squares[k, places[:, None], places] = _large_squares(messages[k, places])
            return squares
        if parameters > _FEW:
            squares = np.empty((g, n, n))
            some = max(1, _DIFFERENCES // (n * n * parameters))
            for first in range(0, g, some):
                part = messages[first : first + some]
                difference = np.subtract(part[:, :, None], part[:, None], dtype=np.float64)
                np.vecdot(difference, difference, out=squares[first : first + some])
            return squares
        squares = np.zeros((g, n, n))
        for p in range(parameters):
            column = messages[:, :, p]
            difference = np.subtract(column[:, :, None], column[:, None], dtype=np.float64)
            difference *= difference
            squares += difference
        return squares


def products(messages: np.ndarray) -> np.ndarray:
    """(m_j - o) . (m_l - o) of one agent's messages (n, P) for some o: float64 (n, n), symmetric. n^2 P.

    For many messages in float32 in that precision, o the first, where no message is much nearer another than o, else
    in float64 with o = 0; so that norm(m_j - m_l)^2 from them has a relative error of 1e-5, or what _CANCELLED says.
    """
    n, parameters = messages.shape
    if messages.dtype == np.float32 and n > _FEW_ROWS:
        product = np.zeros((n, n))
        width = max(512, min(parameters, 2**16 // n))
        away = np.empty((n, width), np.float32)
        for first in range(0, parameters, width):
            some = messages[:, first : first + width]
            part = np.subtract(some, some[0], out=away[:, : some.shape[1]])
            product += part @ part.T
        norm = product.diagonal()
        limit = norm[:, None] + norm
        limit *= 1.0 - _NEAR
        limit -= 2.0 * product
        np.fill_diagonal(limit, 0.0)
        if limit.min() >= 0.0:
            return product

    width = max(512, min(parameters, 2**16 // n))
    double = np.empty((n, width))
    product, part = np.zeros((n, n)), np.empty((n, n))
    for first in range(0, parameters, width):
        some = messages[:, first : first + width]
        converted = double[:, : some.shape[1]]
        converted[:] = some
        product += np.matmul(converted, converted.T, out=part)
    return product


def _large_squares(messages: np.ndarray) -> np.ndarray:
    """norm(m_j)^2 + norm(m_l)^2 - 2 m_j . m_l of (n, P), from differences where that loses digits: (n, n)."""
    product = products(messages)
    norm = product.diagonal()
    squares = norm[:, None] + norm
    limit = squares * _CANCELLED
    product *= 2.0
    squares -= product
    lost = ~(squares > limit)
    np.fill_diagonal(lost, False)
    np.fill_diagonal(squares, 0.0)
    if lost.any():
        for j in np.flatnonzero(lost.any(axis=1)):
            others = np.flatnonzero(lost[j, :j])
            squares[j, others] = squares[others, j] = _direct_squares(messages[j], messages, others)
    return squares


def _direct_squares(one: np.ndarray, messages: np.ndarray, others: np.ndarray) -> np.ndarray:
    """norm(one - m_l)^2 in float64 for l in `others` (m,): one (P,), messages (n, P) -> (m,)."""
    total = np.zeros(len(others))
    for first in range(0, len(one), _BLOCK):
        block = slice(first, first + _BLOCK)
        difference = np.subtract(messages[others, block], one[block], dtype=np.float64)
        total += np.vecdot(difference, difference)
    return total


def shrunk_squares(messages: np.ndarray, present: np.ndarray) -> np.ndarray:
    """As `pairwise_squares`, of messages brought into range: to tell apart those whose squares overflow."""
    return pairwise_squares(messages * np.float64(_SHRINK), present)


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


def _far(one: np.ndarray, other: np.ndarray) -> float:
    """norm(one - other) of vectors (P,) whose squares may overflow, at most the largest float64."""
    half = one * np.float64(0.5) - other * np.float64(0.5)
    scale = float(np.abs(half).max())
    half /= scale
    half *= half
    return min(2.0 * (scale * float(np.sqrt(half.sum()))), float(_LARGEST))
