"""Rules that choose messages by their distance from one's own, or from a mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from mpi_resmtl.rules import Heard, NoParameters, Share, aggregate
from mpi_resmtl.rules.distances import distances, norms
from mpi_resmtl.rules.sums import blend, normalised, smallest, weighted_sum


def _all_but_two(n: int, options: NoParameters) -> int:
    return n - 2


def _all_but_one(n: int, options: NoParameters) -> int:
    return n - 1


@aggregate("ios", reports="weight", stands=_all_but_two)
def ios(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """b times: take the mean, by W_kl, of the messages still trusted and drop the neighbour farthest from it; the mean.

    Iterative outlier scissor (Wu, Chen, Ling 2023). One's own message is never dropped; of neighbours equally far, the
    heavier goes. b n P.
    """
    rows = np.arange(len(heard.own))
    weight = normalised(heard.metropolis.copy(), heard.own)
    trusted = heard.present.copy()
    trusted[rows, heard.own] = False
    for dropped in range(int(heard.b.max(initial=0))):
        distance = distances(weighted_sum(weight, heard.messages), heard.messages)
        distance[~trusted] = -1.0
        farthest = distance == distance.max(axis=1)[:, None]
        worst = np.where(farthest, weight, -1.0).argmax(axis=1)
        going = np.flatnonzero((heard.b > dropped) & trusted[rows, worst])
        weight[going, worst[going]] = 0.0
        trusted[going, worst[going]] = False
        weight[going] = normalised(weight[going], heard.own[going])
    return weighted_sum(weight, heard.messages), weight


@aggregate("monna", reports="weight", stands=_all_but_one)
def monna(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the n - b messages nearest psi_k, itself the nearest (Farhadkhani et al. 2023). n P + n log n."""
    distance = distances(heard.intermediate, heard.messages)
    distance[np.arange(len(distance)), heard.own] = -1.0
    if not heard.whole:
        distance[~heard.present] = np.nan
    count = heard.count - heard.b
    weight = smallest(distance, count) / count[:, None]
    return weighted_sum(weight, heard.messages), weight


@dataclass
class Balance:
    """How near a message must be."""

    gamma: Annotated[float, Gt(0), "distance accepted at first, in norms of one's own model"] = 0.3
    kappa: Annotated[float, Ge(0), "how fast that shrinks: to exp(-kappa) of it at the end"] = 1.0
    alpha: Annotated[Share, "weight of one's own model"] = 0.5


@aggregate("balance", reports="weight", parameters=Balance)
def balance(heard: Heard, options: Balance) -> tuple[np.ndarray, np.ndarray]:
    """alpha p + (1 - alpha) mean of the neighbours with norm(p - m_l) <= gamma exp(-kappa i/I) norm(p), p = psi_k.

    Nobody accepted: p. Fang et al. 2024. Not translation invariant, since norm(p) is the scale. n P.
    """
    own = heard.intermediate
    near = options.gamma * math.exp(-options.kappa * heard.iteration / heard.iterations)
    with np.errstate(over="ignore"):
        radius = near * norms(own)
    accepted = distances(own, heard.messages) <= radius[:, None]
    accepted &= heard.present
    accepted[np.arange(len(accepted)), heard.own] = False
    weight = blend(options.alpha, accepted, heard.own)
    return weighted_sum(weight, heard.messages), weight
