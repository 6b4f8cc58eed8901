"""Rules that treat each coordinate by itself.

An agent's result has the same bits whoever is computed beside it and however many places are empty: which way is taken
depends on P and on the number of messages alone, and sums run over one agent's messages in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from mpi_resmtl import loops
from mpi_resmtl.rules import Heard, NoParameters, aggregate

_SMALL = 64
"""Parameters of models that are computed many agents at once; larger ones agent by agent."""
_NETWORK = 100
"""Messages up to which a network of minima and maxima over whole rows is faster than sorting column by column."""
_COLUMN_BLOCK = 2**12
"""Coordinates of a large model that are worked on at a time."""

Reduced = tuple[np.ndarray, np.ndarray | None]
"""The models (g, P) and the shares of the messages in them (g, n), None where they are not asked for."""


def minority(n: int, options: object) -> int:
    """The greatest b with n > 2b."""
    return (n - 1) // 2


@aggregate("median", reports="share", symmetric=True)
def median(heard: Heard, options: NoParameters) -> Reduced:
    """Per coordinate the median of the messages; of an even number, the mean of the two in the middle.

    Yin et al. 2018. Does not use b. n log n P (n log^2 n P up to 100 messages, on vectors).
    """
    return middle_mean(heard.messages, heard.present, heard.whole, (heard.count - 1) // 2, heard.reported)


@aggregate("trimmed-mean", reports="share", stands=minority, symmetric=True)
def trimmed_mean(heard: Heard, options: NoParameters) -> Reduced:
    """Per coordinate the mean without the b largest and the b smallest values; needs n > 2b.

    Yin et al. 2018. Of equal values the first message counts as the smallest. n log n P, as `median`.
    """
    return middle_mean(heard.messages, heard.present, heard.whole, heard.b, heard.reported)


@aggregate("meamed", reports="share", stands=minority, symmetric=True)
def meamed(heard: Heard, options: NoParameters) -> Reduced:
    """Per coordinate the mean of the n - b values nearest the median.

    Xie, Koyejo, Gupta 2018 (mean around median). Of values equally near the first message's counts as nearer.
    n log n P.
    """
    return mean_around_median(heard.messages, heard.present, heard.whole, heard.count - heard.b, heard.reported)


def middle_mean(
    messages: np.ndarray, present: np.ndarray, whole: bool, dropped: np.ndarray, reported: bool = False
) -> Reduced:
    """Per coordinate the mean of the sorted values without the `dropped` (g,) least and as many greatest.

    messages (g, n, P) with what is not present (g, n) left out; g n log n P.
    """
    count = present.sum(axis=1)
    if messages.shape[2] > _SMALL:
        first, kept = dropped, count - 2 * dropped
        return _by_agent(messages, present, whole, first, kept, _middle_sums, _middle_shares, reported)
    values = _columns(messages, present, whole)
    model = _window_mean(np.sort(values, axis=2), dropped, count - dropped)
    if not reported:
        return model, None
    return model, _window_shares(values.argsort(axis=2, kind="stable"), dropped, count - dropped)


def mean_around_median(
    messages: np.ndarray, present: np.ndarray, whole: bool, kept: np.ndarray, reported: bool = False
) -> Reduced:
    """Per coordinate the mean of the `kept` (g,) >= 1 values nearest the median; as `middle_mean`. g n log n P."""
    count = present.sum(axis=1)
    if messages.shape[2] > _SMALL:
        return _by_agent(messages, present, whole, None, kept, _nearest_sums, _nearest_shares, reported)
    values = _columns(messages, present, whole)
    middle = _window_mean(np.sort(values, axis=2), (count - 1) // 2, count // 2 + 1)
    g, parameters, n = values.shape
    order = _halved_distance(values, middle[:, :, None]).argsort(axis=2, kind="stable")
    nearest = values.reshape(-1).take(order + np.arange(0, values.size, n).reshape(g, parameters, 1))
    first = np.zeros_like(kept)
    return _window_mean(nearest, first, kept), _window_shares(order, first, kept) if reported else None


def _columns(messages: np.ndarray, present: np.ndarray, whole: bool) -> np.ndarray:
    """The messages (g, n, P) as (g, P, n), inf where not present."""
    values = messages.transpose(0, 2, 1).copy()
    if not whole:
        np.copyto(values, np.inf, where=~present[:, None])
    return values


def _halved_distance(values: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """abs(value - middle) / 2, which does not overflow."""
    distance = values * values.dtype.type(0.5)
    distance -= middle * middle.dtype.type(0.5)
    return np.abs(distance, out=distance)


def _window_mean(values: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Mean of values[k, :, first[k] : stop[k]], added in that order: (g, P, n) -> (g, P)."""
    size = (stop - first).astype(values.dtype)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = _window_sum(values, first, stop)
        mean /= size
        if not np.isfinite(mean).all():
            divided = _window_sum(values / size[:, :, None], first, stop)
            mean = np.where(np.isfinite(mean), mean, _finite(divided))
    return mean


def _window_sum(values: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    total = np.zeros(values.shape[:2], values.dtype)
    begin, shortest, end = int(first.min()), int(stop.min()), int(stop.max())
    uniform = begin == first.max()
    for place in range(begin, end):
        if uniform and place < shortest:
            total += values[:, :, place]
        else:
            inside = (first <= place) & (place < stop)
            np.add(total, values[:, :, place], out=total, where=inside[:, None])
    return total


def _window_shares(order: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """How often each message is among order[k, p, first[k] : stop[k]], of all: (g, P, n) -> (g, n)."""
    g, parameters, n = order.shape
    place = np.arange(n)
    inside = (first[:, None] <= place) & (place < stop[:, None])
    chosen = (order + np.arange(0, g * n, n)[:, None, None])[np.broadcast_to(inside[:, None], order.shape)]
    times = np.bincount(chosen, minlength=g * n).reshape(g, n)
    return times / (parameters * (stop - first))[:, None]


def _finite(values: np.ndarray) -> np.ndarray:
    """Values at most the largest: means of the largest may pass it by rounding."""
    largest = np.finfo(values.dtype).max
    return np.clip(values, -largest, largest)


def _by_agent(
    messages: np.ndarray,
    present: np.ndarray,
    whole: bool,
    first: np.ndarray | None,
    kept: np.ndarray,
    sums: Callable,
    shares: Callable,
    reported: bool,
) -> Reduced:
    """Agent by agent: `sums` of the `kept` values a coordinate, divided by their number, and the `shares`."""
    g, n, parameters = messages.shape
    model = np.empty((g, parameters), messages.dtype)
    share = np.zeros((g, n)) if reported else None
    for k in range(g):
        heard = messages[k] if whole or present[k].all() else messages[k][present[k]]
        begin = 0 if first is None else int(first[k])
        size = int(kept[k])
        with np.errstate(over="ignore", invalid="ignore"):
            sums(heard, begin, size, model[k])
            model[k] /= model.dtype.type(size)
            if not np.isfinite(model[k].sum()):
                divided = np.empty_like(model[k])
                sums(heard / model.dtype.type(size), begin, size, divided)
                np.copyto(model[k], _finite(divided), where=~np.isfinite(model[k]))
        if reported:
            share[k, present[k]] = shares(heard, begin, size) / (parameters * size)
    return model, share


def _blocks(parameters: int, length: int) -> Iterator[slice]:
    """Runs of coordinates of about equal length, at most `length`."""
    edges = np.linspace(0, parameters, -(-parameters // length) + 1).astype(int).tolist()
    return (slice(*edge) for edge in pairwise(edges))


def _middle_sums(messages: np.ndarray, first: int, kept: int, total: np.ndarray) -> None:
    """Sum per coordinate of the values that sort to first .. first + kept - 1: (n, P) -> total (P,)."""
    n, parameters = messages.shape
    if kept == n:
        np.add.reduce(messages, axis=0, out=total)
        return
    if n <= _NETWORK:
        total[:] = loops.middle_sums(np.ascontiguousarray(messages), first, kept)
        return
    for block in _blocks(parameters, _COLUMN_BLOCK):
        columns = messages[:, block].T.copy()
        columns.sort(axis=1)
        _sum_columns(columns[:, first : first + kept], total[block])


def _sum_columns(columns: np.ndarray, total: np.ndarray) -> None:
    """Sums of (B, n) over n into (B,)."""
    if columns.shape[1] <= 2:
        np.add(columns[:, 0], 0.0 if columns.shape[1] == 1 else columns[:, 1], out=total)
    else:
        np.matmul(columns, np.ones(columns.shape[1], columns.dtype), out=total)


def _middle_shares(messages: np.ndarray, first: int, kept: int) -> np.ndarray:
    """How often each message is among the values that sort to first .. first + kept - 1: (n, P) -> (n,)."""
    times = np.zeros(len(messages), np.intp)
    for block in _blocks(messages.shape[1], _COLUMN_BLOCK):
        order = messages[:, block].T.copy().argsort(axis=1, kind="stable")
        times += np.bincount(order[:, first : first + kept].ravel(), minlength=len(times))
    return times


def _nearest_sums(messages: np.ndarray, _: int, kept: int, total: np.ndarray) -> None:
    """Sum per coordinate of the `kept` values nearest the median: (n, P) -> total (P,)."""
    if kept == len(messages):
        np.add.reduce(messages, axis=0, out=total)
        return
    for block, columns, near in _nearest(messages, kept):
        np.vecdot(columns, near.astype(columns.dtype), out=total[block])


def _nearest_shares(messages: np.ndarray, _: int, kept: int) -> np.ndarray:
    """How often each message is among the `kept` nearest the median: (n, P) -> (n,)."""
    return sum(near.sum(axis=0) for _, _, near in _nearest(messages, kept))


def _nearest(messages: np.ndarray, kept: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """By blocks, the columns (B, n) and which values are the `kept` nearest the median, ties to the first."""
    n = len(messages)
    for block in _blocks(messages.shape[1], _COLUMN_BLOCK):
        columns = messages[:, block].T.copy()
        ordered = np.sort(columns, axis=1)
        middle = ordered[:, n // 2]
        if n % 2 == 0:
            middle = ordered[:, n // 2 - 1] * columns.dtype.type(0.5) + middle * columns.dtype.type(0.5)
        distance = _halved_distance(columns, middle[:, None])
        limit = np.sort(distance, axis=1)[:, kept - 1, None]
        near = distance <= limit
        many = np.flatnonzero(near.sum(axis=1) > kept)
        if many.size:
            tied = distance[many] == limit[many]
            left = kept - (near[many] & ~tied).sum(axis=1)
            near[many] &= ~tied | (tied.cumsum(axis=1) <= left[:, None])
        yield block, columns, near
