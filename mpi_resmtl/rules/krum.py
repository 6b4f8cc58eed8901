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
from mpi_resmtl.rules.distances import pairwise_squares, shrunk_squares
from mpi_resmtl.rules.sums import weighted_sum

_DIFFERENCES = 2**17
"""Differences held at a time."""


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
    return weighted_sum(weight, heard.messages), weight


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
    shrunk = shrunk_squares(heard.messages, heard.present) if overflown else squares
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
    return weighted_sum(weight, heard.messages), weight


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
        finer = _scores(among, shrunk_squares(messages, among), nearest)
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
