"""Rules that select messages by their distances from each other.

An agent's result has the same bits whoever is computed beside it and however many places are empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Annotated

import numpy as np
from annotated_types import Ge

from mpi_resmtl.errors import UserError
from mpi_resmtl.rules import Heard, NoParameters, aggregate
from mpi_resmtl.rules.coordinatewise import mean_around_median, minority

_FEW = 8
"""Parameters whose squares are added one after the other, for all messages at once."""
_SMALL = 256
"""Parameters of models that are computed many agents at once; larger ones agent by agent."""
_BLOCK = 4096
"""Coordinates of a large model in the cache at a time."""
_DIFFERENCES = 2**17
"""Differences held at a time."""
_FEW_ROWS = 16
"""Messages up to which their products are quicker as those of any two matrices."""
_NEAR = 0.01
"""Part of norm(m_j - o)^2 + norm(m_l - o)^2 above which float32 keeps enough digits of their squared distance."""
_CANCELLED = 1e-9
"""Part of norm(m_j)^2 + norm(m_l)^2 below which their squared distance is computed from differences."""
_SHRINK = 2.0**-600
"""Brings differences whose squares overflow into range."""


def _all_but_three(n: int, options: object) -> int:
    return n - 3


@aggregate("krum", reports="weight", stands=_all_but_three, symmetric=True)
def krum(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """The message with the least sum of squared distances from the n - b - 2 others nearest it.

    Blanchard et al. 2017. The first of equals; with fewer than three messages one's own. Differences below 1e-154
    count as none. n^2 P.
    """
    best = _ranked(heard.messages, heard.present, *_krum_scores(heard))[:, 0]
    best = np.where(heard.count < 3, heard.own, best)
    rows = np.arange(len(best))
    weight = np.zeros(heard.present.shape)
    weight[rows, best] = 1.0
    return heard.messages[rows, best], weight


@dataclass
class MultiKrum:
    """How many messages are averaged."""

    m: Annotated[int, Ge(0), "messages averaged; 0: n - b - 2, at least 1"] = 0


@aggregate("multi-krum", reports="weight", parameters=MultiKrum, stands=_all_but_three, symmetric=True)
def multi_krum(heard: Heard, options: MultiKrum) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the m messages of least score, the sum of squared distances from the n - b - 2 others nearest.

    Blanchard et al. 2017. By default m = n - b - 2, the most for which resilience is proven (El-Mhamdi, Guerraoui,
    Rouault 2019); the library byzfl takes n - b. Fewer than m messages: all; ties and fewer than three messages as in
    `krum`. n^2 P.
    """
    order = _ranked(heard.messages, heard.present, *_krum_scores(heard))
    count = heard.count
    m = np.maximum(count - heard.b - 2, 1) if options.m == 0 else np.minimum(options.m, count)
    lonely = count < 3
    m[lonely] = 1
    order[lonely, 0] = heard.own[lonely]
    g, n = order.shape
    chosen = (order + np.arange(0, g * n, n)[:, None])[np.arange(n) < m[:, None]]
    weight = np.zeros(g * n)
    weight[chosen] = (1.0 / m).repeat(m)
    weight = weight.reshape(g, n)
    return weighted(weight, heard), weight


@dataclass
class MinimumDiameter:
    """How much work is allowed."""

    most_subsets: Annotated[int, Ge(1), "refuse neighbourhoods with more subsets of n - b messages than this"] = 10_000


def _few_subsets(n: int, b: int, options: MinimumDiameter) -> None:
    if comb(n, b) > options.most_subsets:
        raise UserError(
            f"mda would compare {comb(n, b)} subsets of n - b = {n - b} of n = {n} messages each time (b = {b}), and "
            f"most_subsets allows {options.most_subsets}"
        )


@aggregate("mda", reports="weight", parameters=MinimumDiameter, stands=minority, symmetric=True, check=_few_subsets)
def mda(heard: Heard, options: MinimumDiameter) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the n - b messages of least diameter, the greatest distance between two of them.

    El-Mhamdi et al. 2021 (minimum-diameter averaging). Of equals, the subset that is first in the order of messages.
    Exact and exponential: all C(n, b) subsets, refused above `most_subsets`; C(n, b) n^2 + n^2 P.
    """
    count = heard.count
    squares = pairwise_squares(heard.messages, heard.present)
    overflown = np.isinf(squares).any()
    shrunk = _shrunk_squares(heard.messages, heard.present) if overflown else squares
    weight = np.zeros(heard.present.shape)
    for n, b in sorted(set(zip(count.tolist(), heard.b.tolist(), strict=True))):
        subsets = _subsets(n, n - b)
        few = max(1, _DIFFERENCES // len(subsets))
        agents = np.flatnonzero((count == n) & (heard.b == b))
        for first in range(0, len(agents), few):
            some = agents[first : first + few]
            places = np.nonzero(heard.present[some])[1].reshape(-1, n)
            best, least = _least_diameter(squares, some, places, subsets)
            if np.isinf(least).any():
                best = np.where(np.isinf(least), _least_diameter(shrunk, some, places, subsets)[0], best)
            weight[some[:, None], np.take_along_axis(places, subsets[best], axis=1)] = 1.0 / (n - b)
    return weighted(weight, heard), weight


@lru_cache(maxsize=32)
def _subsets(n: int, size: int) -> np.ndarray:
    """All subsets of 0 .. n-1 of that size, in lexicographic order: intp (C(n, size), size)."""
    return np.array(list(combinations(range(n), size)), np.intp)


def _least_diameter(
    squares: np.ndarray, agents: np.ndarray, places: np.ndarray, subsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the subsets of each agent's `places` (a, n) is the first of least diameter, and its square: (a,), (a,).

    squares (g, n, n) of distances between places, subsets (m, size).
    """
    a, n = places.shape
    table = squares[agents[:, None, None], places[:, :, None], places[:, None]].reshape(a, n * n)
    diameter = np.zeros((a, len(subsets)))
    for i in range(subsets.shape[1]):
        for j in range(i + 1, subsets.shape[1]):
            np.maximum(diameter, table[:, subsets[:, i] * n + subsets[:, j]], out=diameter)
    best = diameter.argmin(axis=1)
    return best, diameter[np.arange(a), best]


@aggregate("bulyan", reports="share", stands=lambda n, options: (n - 3) // 4, symmetric=True)
def bulyan(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray | None]:
    """Per coordinate the mean of the n - 4b values nearest the median of n - 2b messages, selected by Krum repeatedly.

    El-Mhamdi, Guerraoui, Rouault 2018. A selection takes the message with the least sum of squared distances from the
    r - b - 2 others nearest it, at least one, among the r not yet selected. Distances are computed once; n^2 P + n^4.
    """
    selected = _selected(heard)
    kept = np.maximum(heard.count - 4 * heard.b, 1)
    return mean_around_median(heard.messages, selected, bool(selected.all()), kept, heard.reported)


def _selected(heard: Heard) -> np.ndarray:
    """The n - 2b messages that Bulyan goes on with: bool (g, n)."""
    wanted = np.maximum(heard.count - 2 * heard.b, 1)
    if not heard.b.any():
        return heard.present
    squares = pairwise_squares(heard.messages, heard.present)
    left = heard.present.copy()
    for step in range(int(wanted.max())):
        nearest = np.maximum(left.sum(axis=1) - heard.b - 2, 1)
        best = _ranked(heard.messages, left, squares, nearest)[:, 0]
        active = np.flatnonzero(step < wanted)
        left[active, best[active]] = False
    return heard.present & ~left


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
        width = max(512, min(parameters // 2, 2**16 // n))
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

    width = max(512, min(parameters // 4, 2**15 // n))
    left = np.empty((n, width))
    # numpy hands a product with its own transpose to BLAS's syrk, which is slower for few rows.
    right = left if n > _FEW_ROWS else np.empty_like(left)
    product, part = np.zeros((n, n)), np.empty((n, n))
    for first in range(0, parameters, width):
        some = messages[:, first : first + width]
        stop = some.shape[1]
        left[:, :stop] = some
        if right is not left:
            right[:, :stop] = some
        product += np.matmul(left[:, :stop], right[:, :stop].T, out=part)
    return product if right is left else np.maximum(product, product.T)


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


def _krum_scores(heard: Heard) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and the number of others that count in Krum's score, at least one."""
    return pairwise_squares(heard.messages, heard.present), np.maximum(heard.count - heard.b - 2, 1)


def _ranked(messages: np.ndarray, among: np.ndarray, squares: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """The places `among` (g, n), best score first, then the others: intp (g, n). Ties in the order of messages.

    A score is the sum of the `nearest` (g,) least squared distances from others among them. Scores that overflow are
    told apart by scaled messages.
    """
    score = _scores(among, squares, nearest)
    far = np.isinf(score) & among
    if far.any():
        finer = _scores(among, _shrunk_squares(messages, among), nearest)
        return np.lexsort((np.where(far, finer, 0.0), score, ~among), axis=1)
    return score.argsort(axis=1, kind="stable")


def _scores(among: np.ndarray, squares: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Sum of the `nearest` (g,) least squared distances (g, n, n) from others; (g, n), inf for places not `among`.

    Where there are fewer others, of all of them.
    """
    g, n = among.shape
    ordered = squares.copy()
    ordered[:, np.arange(n), np.arange(n)] = np.inf
    if not among.all():
        ordered[~(among[:, :, None] & among[:, None])] = np.inf
    ordered.sort(axis=2)
    nearest = np.minimum(nearest, among.sum(axis=1) - 1)
    with np.errstate(over="ignore"):
        sums = np.add.accumulate(ordered[:, :, : max(int(nearest.max()), 1)], axis=2)
    score = sums[np.arange(g), :, np.maximum(nearest, 1) - 1]
    score[nearest < 1] = 0.0
    score[~among] = np.inf
    return score


def _shrunk_squares(messages: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Squared distances of messages brought into range."""
    return pairwise_squares(messages * np.float64(_SHRINK), present)


def weighted(weight: np.ndarray, heard: Heard) -> np.ndarray:
    """sum_l weight[k, l] m_l, added in the order of messages: float64 (g, n), each row's sum 1 -> (g, P). n P."""
    messages = heard.messages
    g, _, parameters = messages.shape
    with np.errstate(over="ignore"):
        if parameters <= _SMALL:
            model = np.add.accumulate(weight[:, :, None] * messages, axis=1)[:, -1].astype(messages.dtype)
        else:
            model = np.empty((g, parameters), messages.dtype)
            for k in range(g):
                _weighted_large(weight[k], messages[k], model[k])
    if not np.isfinite(model).all():
        largest = np.finfo(messages.dtype).max
        np.clip(model, -largest, largest, out=model)
    return model


def _weighted_large(weight: np.ndarray, messages: np.ndarray, model: np.ndarray) -> None:
    """weight (n,) times messages (n, P) into `model` (P,); in float64 where weights are too small for float32."""
    heavy = np.flatnonzero(weight)
    if len(heavy) == 1:
        model[:] = messages[heavy[0]]
        return
    weight = weight[heavy]
    if messages.dtype == np.float32 and weight.min() > 1e-30:
        weight = weight.astype(np.float32)
    for first in range(0, len(model), _BLOCK):
        block = slice(first, first + _BLOCK)
        some = messages[:, block] if len(heavy) == len(messages) else messages[heavy, block]
        np.matmul(weight, some, out=model[block], casting="same_kind")
