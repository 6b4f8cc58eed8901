"""Sums over messages and over what is held against them: what most aggregates end in.

An agent's result has the same bits whoever is computed beside it and however many places are empty: sums run over
places in order, or over filled places alone. Costs are given in multiplications.
"""

from __future__ import annotations

import numpy as np

from mpi_resmtl import loops

_SMALL = 256
"""Parameters of models that are computed in float64, many agents at once; larger ones agent by agent."""
_BLOCK = 4096
"""Coordinates of a large model in the cache at a time."""
_SMALLEST_SINGLE = 1e-30
"""Weights below lose digits in float32."""


def total(values: np.ndarray) -> np.ndarray:
    """Sums over the last axis, in order: (..., n) -> (...). numpy's own sum adds otherwise where n is another."""
    return np.add.accumulate(values, axis=-1)[..., -1]


def weighted_sum(weight: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """sum_l weight[k, l] messages[k, l]: (g, n) float64, each row's sum 1, and (g, n, P) -> (g, P) of messages' dtype.

    A large model that has all the weight is the result to the bit. A weight of 0 silences any finite message. g n P.
    """
    g, _, parameters = messages.shape
    with np.errstate(over="ignore"):
        if parameters <= _SMALL:
            model = np.add.accumulate(weight[:, :, None] * messages, axis=1)[:, -1].astype(messages.dtype, order="C")
        else:
            model = np.empty((g, parameters), messages.dtype)
            for k in range(g):
                _sum_large(weight[k], messages[k], model[k])
    return _finite(model)


def mixed(weight: np.ndarray, messages: np.ndarray, filled: np.ndarray, present: np.ndarray) -> np.ndarray:
    """sum_l weight[k, j, l] messages[k, l] for places j that are to be filled (g, m), of messages present (g, n).

    (g, m, n) float64, each row's sum 1, and (g, n, P) -> (g, m, P) of messages' dtype, 0 where not filled. g m n P.
    """
    g, m, n = weight.shape
    parameters = messages.shape[2]
    with np.errstate(over="ignore"):
        if parameters <= _SMALL:
            together = np.zeros((g, m, parameters))
            for place in range(n):
                together += weight[:, :, place, None] * messages[:, place, None]
            return _finite(together.astype(messages.dtype, copy=False))
        together = np.zeros((g, m, parameters), messages.dtype)
        for k in range(g):
            heavy = weight[k].astype(messages.dtype)
            if present[k].all() and filled[k].all():
                np.matmul(heavy, messages[k], out=together[k])
            else:
                some = heavy[np.ix_(filled[k], present[k])]
                together[k, filled[k]] = np.matmul(some, messages[k, present[k]])
    return _finite(together)


def smallest(values: np.ndarray, count: np.ndarray, finer: np.ndarray | None = None) -> np.ndarray:
    """Which `count` values of each row are the least: (g, n), (g,) -> bool (g, n).

    Of equals those whose `finer` (g, n) are less, if given; then the first. NaN last.
    """
    g, n = values.shape
    order = values.argsort(axis=1, kind="stable") if finer is None else np.lexsort((finer, values), axis=1)
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
    whole = total(share)
    lonely = whole == 0.0
    if lonely.any():
        share[lonely, own[lonely]] = 1.0
        whole[lonely] = 1.0
    return share / whole[:, None]


def _sum_large(weight: np.ndarray, messages: np.ndarray, model: np.ndarray) -> None:
    """weight (n,) times messages (n, P) into `model` (P,); in float64 where weights are too small for float32."""
    heavy = np.flatnonzero(weight)
    if len(heavy) == 1:
        model[:] = messages[heavy[0]]
        return
    weight = weight[heavy]
    if messages.dtype == np.float32 and weight.min() > _SMALLEST_SINGLE:
        weight = weight.astype(np.float32)
    for first in range(0, len(model), _BLOCK):
        block = slice(first, first + _BLOCK)
        some = messages[:, block] if len(heavy) == len(messages) else messages[heavy, block]
        np.matmul(weight, some, out=model[block], casting="same_kind")


def _finite(models: np.ndarray) -> np.ndarray:
    """Models that passed the largest number by rounding are brought back to it, in place."""
    if not loops.all_finite(models.reshape(-1, models.shape[-1])):
        largest = np.finfo(models.dtype).max
        np.clip(models, -largest, largest, out=models)
    return models
