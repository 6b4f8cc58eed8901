"""Gossip in which each neighbour can pull only so far."""

from __future__ import annotations

import numpy as np

from mpi_resmtl.rules import Heard, NoParameters, aggregate
from mpi_resmtl.rules.distances import distances
from mpi_resmtl.rules.sums import total, weighted_sum

_ROUNDING = 1e-9
"""Sums of weights this close, relatively, are equal."""


def _stands(n: int, options: NoParameters) -> int:
    return n - 1


@aggregate("clipped-gossip", reports="weight", stands=_stands)
def clipped_gossip(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """p + sum_l W_kl (m_l - p) min(1, tau/norm(m_l - p)) (He, Karimireddy, Jaggi 2022), p = psi_k.

    tau^2 = sum_l W_kl norm(m_l - p)^2 / W_b over the nearest messages, those left after at least W_b of weight is
    taken from the far end. W_b, the Byzantine weight, is the sum of the b greatest W_kl of neighbours: the worst
    case. Where W_b = 0 nothing is clipped. Of messages equally far, the heavier counts as the farther. n P.
    """
    byzantine = _byzantine_weight(heard)
    distance = _distance(heard)
    far, weight, left = _far_end(heard, distance, byzantine)
    far *= left
    farthest = np.maximum(far.max(axis=1), np.finfo(np.float64).tiny)
    far /= farthest[:, None]
    squares = total(weight * far * far)
    with np.errstate(over="ignore"):
        radius = farthest * np.sqrt(
            np.divide(squares, byzantine, out=np.full_like(squares, np.inf), where=byzantine > 0)
        )
    return _clipped(heard, distance, radius)


@aggregate("cs-plus", reports="weight", stands=_stands)
def cs_plus(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """p + sum_l W_kl (m_l - p) min(1, tau/norm(m_l - p)) (Gaucher, Dieuleveut, Hendrikx 2025), p = psi_k.

    tau is the greatest distance left after at least 2 W_b of weight is taken from the far end, 0 when none is left;
    W_b as in `clipped-gossip`. Where W_b = 0 nothing is clipped. n P.
    """
    byzantine = _byzantine_weight(heard)
    distance = _distance(heard)
    far, _, left = _far_end(heard, distance, 2.0 * byzantine)
    far *= left
    radius = np.where(byzantine > 0.0, far.max(axis=1), np.inf)
    return _clipped(heard, distance, radius)


def _byzantine_weight(heard: Heard) -> np.ndarray:
    """W_b (g,): the sum of the b greatest weights of neighbours."""
    weight = heard.metropolis.copy()
    rows = np.arange(len(weight))
    weight[rows, heard.own] = 0.0
    weight.sort(axis=1)
    heaviest = weight[:, ::-1].cumsum(axis=1)
    return np.where(heard.b > 0, heaviest[rows, heard.b - 1], 0.0)


def _distance(heard: Heard) -> np.ndarray:
    """norm(m_l - p) (g, n), 0 in empty places."""
    distance = distances(heard.intermediate, heard.messages)
    if not heard.whole:
        distance[~heard.present] = 0.0
    return distance


def _far_end(heard: Heard, distance: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances and weights, the farthest first, and which are left after at least `taken` (g,) of weight is gone."""
    g, n = distance.shape
    order = np.lexsort((heard.metropolis, distance), axis=1)[:, ::-1] + np.arange(0, g * n, n)[:, None]
    weight = heard.metropolis.take(order)
    beyond = weight.cumsum(axis=1)
    beyond -= weight
    return distance.take(order), weight, beyond >= (taken * (1.0 - _ROUNDING))[:, None]


def _clipped(heard: Heard, distance: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours' weights scaled by min(1, radius/distance); what they lose goes to oneself."""
    rows = np.arange(len(distance))
    scale = np.ones_like(distance)
    np.divide(radius[:, None], distance, out=scale, where=distance > radius[:, None])
    scale *= heard.metropolis
    scale[rows, heard.own] = 0.0
    scale[rows, heard.own] = np.maximum(1.0 - total(scale), 0.0)
    return weighted_sum(scale, heard.messages), scale
