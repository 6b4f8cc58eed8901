"""Gossip in which each neighbour can pull only so far."""

from __future__ import annotations

import numpy as np

from mpi_resmtl import loops
from mpi_resmtl.rules import Heard, NoParameters, aggregate
from mpi_resmtl.rules.distances import distances
from mpi_resmtl.rules.sums import weighted_sum


def _stands(n: int, options: NoParameters) -> int:
    return n - 1


@aggregate("clipped-gossip", reports="weight", stands=_stands)
def clipped_gossip(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """p + sum_l W_kl (m_l - p) min(1, tau/norm(m_l - p)) (He, Karimireddy, Jaggi 2022), p = psi_k.

    tau^2 = sum_l W_kl norm(m_l - p)^2 / W_b over the nearest messages, those left after at least W_b of weight is
    taken from the far end. W_b, the Byzantine weight, is the sum of the b greatest W_kl of neighbours: the worst
    case. Where W_b = 0 nothing is clipped. Of messages equally far, the heavier counts as the farther. n P.
    """
    return _clipped(heard, squares=True)


@aggregate("cs-plus", reports="weight", stands=_stands)
def cs_plus(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """p + sum_l W_kl (m_l - p) min(1, tau/norm(m_l - p)) (Gaucher, Dieuleveut, Hendrikx 2025), p = psi_k.

    tau is the greatest distance left after at least 2 W_b of weight is taken from the far end, 0 when none is left;
    W_b as in `clipped-gossip`. Where W_b = 0 nothing is clipped. n P.
    """
    return _clipped(heard, squares=False)


def _clipped(heard: Heard, squares: bool) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours' weights scaled by min(1, tau/distance); what they lose goes to oneself."""
    distance = distances(heard.intermediate, heard.messages)
    if not heard.whole:
        distance[~heard.present] = 0.0
    metropolis = np.ascontiguousarray(heard.metropolis)
    weight = loops.clipped_weights(distance, metropolis, heard.own, heard.b, squares)
    return weighted_sum(weight, heard.messages), weight
