"""The geometric median, by Weiszfeld's algorithm on the distances between messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from mpi_resmtl import loops
from mpi_resmtl.rules import Heard, aggregate
from mpi_resmtl.rules.distances import pairwise_squares, products
from mpi_resmtl.rules.sums import total, weighted_sum

_SMALL = 256
"""Parameters of models that are computed many agents at once; larger ones agent by agent."""
_BLOCK = 4096
"""Coordinates of a large model in the cache at a time."""
_TOLERANCE = 1e-6
_SAME = 1e-12
"""Messages this near, by the median distance, are at the same place."""
_ROUNDING = 1e-9
_FARTHEST = 1e150
"""Median distances beyond which only the direction of a message counts."""
_NEAR_ENOUGH = 1e4
"""Median distances up to which sums of distances tell messages on a line apart."""
_SPREAD_ENOUGH = 1e-8
"""Squared distance, as part of the greatest squared norm, from which on products of messages keep enough digits."""
_GREATEST = 1e200
"""Squared norm up to which they do."""


@dataclass
class GeometricMedian:
    """When to stop."""

    most_steps: Annotated[int, Ge(1), "Weiszfeld steps at most"] = 200


@aggregate("geometric-median", reports="weight", parameters=GeometricMedian, symmetric=True)
def geometric_median(heard: Heard, options: GeometricMedian) -> tuple[np.ndarray, np.ndarray]:
    """The point z with the least sum of distances norm(z - m_l); does not use b.

    Weiszfeld's z <- sum_l m_l / d_l / sum_l 1 / d_l, d_l = norm(z - m_l), until a step is <= 1e-6 (1 + norm of a
    message). It begins at the message of least sum, with the step of Vardi and Zhang (2000), whose criterion tells
    whether that message is the median, or, for large models, at a point that is better than every message: so no later
    step can end on a message. Where all messages are on a line and the median is not unique, it is the middle. z is
    kept as weights of messages, so that a step costs n^2 and not n P. n^2 P, and n^2 a step.
    """
    messages, present = heard.messages, heard.present
    if messages.shape[2] <= _SMALL:
        weight = _weights(messages, present, pairwise_squares(messages, present), options.most_steps, together=True)
    else:
        weight = np.zeros(present.shape)
        for k in range(len(messages)):
            places = np.flatnonzero(present[k])
            some = messages[k] if len(places) == present.shape[1] else messages[k, places]
            weight[k, places] = _large_weights(some, options.most_steps)
    return weighted_sum(weight, messages), weight


def _large_weights(messages: np.ndarray, most_steps: int) -> np.ndarray:
    """Weights (n,) of one agent's messages (n, P) in their geometric median.

    With G their products, the weights w mean d_l^2 = G_ll - 2 (G w)_l + w'G w. That keeps enough digits where no
    message is very far and none very near another; elsewhere directions are computed, from differences.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = products(messages)
        norm = product.diagonal()
        squares = norm[:, None] + norm
        squares -= 2.0 * product
        greatest = float(norm.max())
        np.fill_diagonal(squares, np.inf)
        plain = len(messages) > 2 and squares.min() > _SPREAD_ENOUGH * greatest and greatest < _GREATEST
        if plain:
            np.fill_diagonal(squares, 0.0)
            sums = np.sqrt(squares).sum(axis=1)
            best = sums.argmin()
            size = float(np.linalg.norm(messages[best]))
            if np.isfinite(size):
                weight = 1.0 / sums
                weight /= weight.sum()
                floor, tolerance = _ROUNDING * _ROUNDING * greatest, _TOLERANCE * (1.0 + size)
                weight = loops.weiszfeld(product, weight, floor, sums[best], tolerance, most_steps)
                if weight is not None:
                    return weight
    everyone = np.ones((1, len(messages)), bool)
    squares = pairwise_squares(messages[None], everyone)
    return _weights(messages[None], everyone, squares, most_steps, together=False)[0]


def _weights(
    messages: np.ndarray, present: np.ndarray, squares: np.ndarray, most_steps: int, together: bool
) -> np.ndarray:
    """Weights (g, n) of messages (g, n, P) in their geometric median by squared distances (g, n, n) between them.

    Lengths are in units that make the median distance from the start 1. With r_l = m_l - start of length rho_l, z is
    start + sum_l v_l r_l / rho_l, and with the cosines C of the r_l, c = C v and q = v.c:
    d_l^2 = rho_l^2 - 2 rho_l c_l + q.
    """
    rows = np.arange(len(messages))
    sums = _sums_of_distances(np.sqrt(squares), present)
    start = sums.argmin(axis=1)
    origin = messages[rows, start]
    lengths, cosine = _directions(messages, origin, together)
    unit = _median_length(lengths, present)
    with np.errstate(over="ignore"):
        rho = np.minimum(lengths / unit[:, None], _FARTHEST)
        tolerance = _TOLERANCE * (1.0 + _norms(origin)) / unit
    rho[rho <= _SAME] = 0.0
    away = present & (rho > 0.0)
    here = present & ~away

    cosine = cosine * (away[:, :, None] & away[:, None])
    if together:
        cosine = cosine.transpose(1, 0, 2).copy()
    inverse = np.divide(1.0, rho, out=np.zeros_like(rho), where=away)
    multiplicity = here.sum(axis=1)
    c = _product(cosine, away.astype(np.float64), together)
    pull = np.sqrt(np.maximum(total(c * away), 0.0))
    active = pull > multiplicity * (1.0 + _ROUNDING)
    flat = ~active & (pull >= multiplicity * (1.0 - _ROUNDING)) & (rho.max(axis=1) < _NEAR_ENOUGH)
    factor = np.divide(
        1.0 - multiplicity / np.maximum(pull, 1e-300), total(inverse), out=np.zeros(len(rows)), where=active
    )
    v = factor[:, None] * away
    c *= factor[:, None]

    _approach(v, c, rho, cosine, present, tolerance, active, most_steps - 1, together)

    with np.errstate(over="ignore"):
        weight = np.divide(v * unit[:, None], lengths, out=np.zeros_like(v), where=away)
    weight += here * (np.maximum(1.0 - total(weight), 0.0) / multiplicity)[:, None]
    if flat.any():
        least = sums[rows, start][:, None]
        middle = present & (sums <= least * (1.0 + _ROUNDING))
        weight = np.where(flat[:, None], middle / middle.sum(axis=1)[:, None], weight)
    return weight


def _approach(
    v: np.ndarray,
    c: np.ndarray,
    rho: np.ndarray,
    cosine: np.ndarray,
    present: np.ndarray,
    tolerance: np.ndarray,
    active: np.ndarray,
    most_steps: int,
    together: bool,
) -> None:
    """Weiszfeld's steps of v (g, n), in place, for the agents `active` (g,) until a step is within `tolerance` (g,).

    Few agents need most of the steps: when half have arrived, the others go on without them.
    """
    agents, arrived = np.arange(len(v)), v
    for _ in range(most_steps):
        going = np.count_nonzero(active)
        if going == 0:
            break
        if 2 * going <= len(active):
            arrived[agents] = v
            agents, cosine = agents[active], cosine[:, active]
            v, c, rho, present, tolerance = (x[active] for x in (v, c, rho, present, tolerance))
            active = active[active]
        q = total(v * c)[:, None]
        squared = rho * rho
        floor = 1e-18 * (squared + q) + 1e-300
        squared -= 2.0 * rho * c
        squared += q
        inverse = present / np.sqrt(np.maximum(squared, floor))
        moved = inverse * rho
        moved /= total(inverse)[:, None]
        turned = _product(cosine, moved, together)
        step = total((moved - v) * (turned - c))
        np.copyto(v, moved, where=active[:, None])
        np.copyto(c, turned, where=active[:, None])
        active &= np.sqrt(np.maximum(step, 0.0)) > tolerance
    arrived[agents] = v


def _sums_of_distances(distance: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean distance (g, n) of each message from all n places, finite; inf for places that are empty."""
    n = distance.shape[1]
    reached = np.minimum(distance, 1e300) * present[:, None]
    reached /= n
    return np.where(present, np.add.accumulate(reached, axis=2)[:, :, -1], np.inf)


def _directions(messages: np.ndarray, origin: np.ndarray, together: bool) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (g, n) of m_l - origin, halved, and the cosines (g, n, n) between them."""
    if together:
        away = messages * np.float64(0.5) - origin[:, None] * np.float64(0.5)
        scale = np.maximum(np.abs(away).max(axis=2), np.finfo(np.float64).tiny)
        away /= scale[:, :, None]
        product = np.vecdot(away[:, :, None], away[:, None])
    else:
        scale, product = _large_products(messages[0], origin[0])
    norm = np.sqrt(product.diagonal(axis1=1, axis2=2))
    safe = np.where(norm > 0.0, norm, 1.0)
    with np.errstate(over="ignore"):
        return np.minimum(scale * norm, 1e308), product / (safe[:, :, None] * safe[:, None])


def _large_products(messages: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest coordinates (1, n) of (m_l - origin) / 2 and the products (1, n, n) of these divided by them."""
    n, parameters = messages.shape
    blocks = [slice(first, first + _BLOCK) for first in range(0, parameters, _BLOCK)]
    scale = np.full(n, np.finfo(np.float64).tiny)
    for block in blocks:
        away = messages[:, block] * np.float64(0.5) - origin[block] * np.float64(0.5)
        np.maximum(scale, np.abs(away).max(axis=1), out=scale)
    product = np.zeros((n, n))
    for block in blocks:
        away = messages[:, block] * np.float64(0.5) - origin[block] * np.float64(0.5)
        away /= scale[:, None]
        product += away @ away.T
    return scale[None], product[None]


def _median_length(lengths: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Lower median of the lengths present (g,); where that is 0 the greatest, or 1."""
    ordered = np.sort(np.where(present, lengths, np.inf), axis=1)
    count = present.sum(axis=1)
    rows = np.arange(len(count))
    middle = ordered[rows, (count - 1) // 2]
    greatest = ordered[rows, count - 1]
    return np.where(middle > 0.0, middle, np.where(greatest > 0.0, greatest, 1.0))


def _norms(models: np.ndarray) -> np.ndarray:
    """norm(model), halved, of (g, P): finite float64 (g,)."""
    scale = np.maximum(np.abs(models).max(axis=1).astype(np.float64), np.finfo(np.float64).tiny)
    shrunk = models / scale[:, None]
    with np.errstate(over="ignore"):
        return np.minimum(0.5 * scale * np.sqrt(np.vecdot(shrunk, shrunk)), 1e308)


def _product(matrix: np.ndarray, vector: np.ndarray, together: bool) -> np.ndarray:
    """A symmetric matrix times a vector for each agent, (g, n); in the order of messages where agents are `together`.

    Of agents together the matrices are (n, g, n), so that numpy adds along the first axis, one message after the other.
    """
    if together:
        return np.add.reduce(matrix * vector.T[:, :, None], axis=0)
    return np.matmul(matrix[0], vector[0])[None]
