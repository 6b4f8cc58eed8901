"""Averages with fixed weights: consensus rules, and the average that perfect knowledge would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le

from mpi_resmtl.rules import Heard, NoParameters, aggregate
from mpi_resmtl.rules.sums import weighted_sum


@aggregate("metropolis", reports="weight")
def metropolis(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """sum_l W_kl m_l, W_kl = 1/(1 + max(deg_k, deg_l)): consensus of the diffusion literature (Sayed 2014).

    Not resilient. n P.
    """
    weight = heard.metropolis.copy()
    return weighted_sum(weight, heard.messages), weight


@dataclass
class MeanRegularised:
    """How strongly the neighbourhood pulls."""

    strength: Annotated[float, Gt(0), Le(1), "mu eta: 1 is the average of the neighbourhood, near 0 no cooperation"] = (
        0.5
    )


@aggregate("mean-regularised", reports="weight", parameters=MeanRegularised)
def mean_regularised(heard: Heard, options: MeanRegularised) -> tuple[np.ndarray, np.ndarray]:
    """psi_k - mu eta (psi_k - mean of N_k): a gradient step of (eta/2) norm(theta_k - mean)^2, all else held.

    Regularised multi-task learning (Evgeniou, Pontil 2004). Not resilient. n P.
    """
    count = heard.count
    weight = heard.present * (options.strength / count)[:, None]
    weight[np.arange(len(count)), heard.own] = 1.0 - options.strength * ((count - 1) / count)
    return weighted_sum(weight, heard.messages), weight


@aggregate("oracle", reports="weight")
def oracle(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """Average over the normal agents of one's own true group, which nobody knows: a bound for plots only. n P."""
    friend = heard.friend & heard.present
    friend[np.arange(len(friend)), heard.own] = True
    weight = friend / np.count_nonzero(friend, axis=1)[:, None]
    return weighted_sum(weight, heard.messages), weight
