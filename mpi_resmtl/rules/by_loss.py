"""Rules that choose messages by their loss on one's own data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from mpi_resmtl.errors import UserError
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.rules import Heard, NoParameters, Share, aggregate, rule
from mpi_resmtl.rules.distances import distances
from mpi_resmtl.rules.paper import loss
from mpi_resmtl.rules.sums import blend, normalised, smallest, total, weighted_sum

_SMALLEST = 1e-290
"""Keeps 1/loss, and sums of it over a neighbourhood, finite."""
_LARGEST = 1e290


@rule("loss-fresh", judged_by="fresh")
def loss_fresh(neighbourhoods: Neighbourhoods, accumulated: np.ndarray) -> np.ndarray:
    """a_lk as in `loss` (eq. 10), phi_lk being of losses on a sample that nobody trained on. n."""
    return loss(neighbourhoods, accumulated)


@dataclass
class Ubar:
    """How many are looked at, and how far one moves."""

    rho: Annotated[float, Gt(0), Le(1), "share of the neighbours that are near enough to be tried"] = 0.4
    alpha: Annotated[Share, "weight of one's own model"] = 0.5


@aggregate("ubar", reports="weight", parameters=Ubar, judged_by="sample")
def ubar(heard: Heard, options: Ubar) -> tuple[np.ndarray, np.ndarray]:
    """alpha p + (1 - alpha) mean of those among the rho n nearest neighbours whose loss is not above one's own.

    n neighbours without oneself; floor(rho n), at least 1, are tried. Nobody accepted: p = psi_k. Guo et al. 2021.
    n P + n log n, and n losses.
    """
    rows = np.arange(len(heard.own))
    distance = distances(heard.intermediate, heard.messages)
    distance[~heard.present] = np.nan
    distance[rows, heard.own] = np.nan
    neighbours = heard.count - 1
    tried = np.maximum(np.floor(options.rho * neighbours + 1e-9), np.minimum(neighbours, 1))
    accepted = smallest(distance, tried)
    accepted &= heard.judged <= heard.judged[rows, heard.own][:, None]
    accepted &= np.isfinite(heard.judged)
    weight = blend(options.alpha, accepted, heard.own)
    return weighted_sum(weight, heard.messages), weight


@dataclass
class Pens:
    """How many are heeded."""

    m: Annotated[int, Ge(1), "neighbours that are averaged with oneself"] = 2


@aggregate("pens", reports="weight", parameters=Pens, judged_by="sample")
def pens(heard: Heard, options: Pens) -> tuple[np.ndarray, np.ndarray]:
    """Mean of psi_k and the m neighbours' messages of the least loss (Onoszko et al. 2021).

    A message whose loss is not finite is not among them. n log n + n P, and n losses.
    """
    rows = np.arange(len(heard.own))
    judged = heard.judged.copy()
    judged[rows, heard.own] = np.inf
    chosen = smallest(judged, np.full(len(rows), options.m))
    chosen &= np.isfinite(judged)
    chosen[rows, heard.own] = True
    weight = chosen / np.count_nonzero(chosen, axis=1)[:, None]
    return weighted_sum(weight, heard.messages), weight


@dataclass
class Dac:
    """How choosy the softmax is."""

    temperature: Annotated[float, Ge(1e-9), "the lower, the more weight the least loss has"] = 1.0


@aggregate("dac", reports="weight", parameters=Dac, judged_by="sample")
def dac(heard: Heard, options: Dac) -> tuple[np.ndarray, np.ndarray]:
    """a_lk proportional to exp(1/(temperature L_lk)): what decentralised adaptive clustering samples, in expectation.

    Listo Zec et al. 2022. A message whose loss is not finite has weight 0. n P, and n losses.
    """
    finite = np.isfinite(heard.judged)
    similarity = 1.0 / (options.temperature * np.clip(heard.judged, _SMALLEST, _LARGEST))
    similarity[~finite] = 0.0
    similarity -= similarity.max(axis=1)[:, None]
    weight = normalised(np.exp(similarity) * finite, heard.own)
    return weighted_sum(weight, heard.messages), weight


@aggregate("fedfomo", reports="weight", judged_by="sample", compares=True)
def fedfomo(heard: Heard, options: NoParameters) -> tuple[np.ndarray, np.ndarray]:
    """a_lk proportional to max(0, L(theta_k,i-1) - L_lk)/norm(m_l - theta_k,i-1), one's own message among them.

    All 0: psi_k. Zhang et al. 2021. A message equal to the previous model, or of a loss that is not finite, has weight
    0. n P, and n + 1 losses.
    """
    distance = distances(heard.previous, heard.messages)
    with np.errstate(invalid="ignore", over="ignore"):
        gain = np.nan_to_num(heard.judged_previous[:, None] - heard.judged, nan=0.0, posinf=_LARGEST, neginf=0.0)
    gain *= (gain > 0.0) & np.isfinite(heard.judged) & (distance > 0.0) & heard.present
    promising = gain > 0.0
    greatest = gain.max(axis=1)[:, None]
    nearest = np.where(promising, distance, np.inf).min(axis=1)[:, None]
    share = np.zeros_like(gain)
    np.divide(gain, greatest, out=share, where=promising)
    share *= np.divide(nearest, distance, out=np.zeros_like(share), where=promising)
    weight = normalised(share, heard.own)
    return weighted_sum(weight, heard.messages), weight


@dataclass
class LossRobust:
    """What the median is taken over, and how much one neighbour may weigh."""

    window: Annotated[int, Ge(1), "iterations whose losses the median is taken over"] = 10
    cap: Annotated[float, Gt(0), Le(1), "greatest weight of any one neighbour"] = 0.25


@aggregate("loss-robust", reports="weight", parameters=LossRobust, judged_by="median")
def loss_robust(heard: Heard, options: LossRobust) -> tuple[np.ndarray, np.ndarray]:
    """a_lk = min(cap, a'_lk), the rest to oneself; a'_lk as in `loss` (eq. 10) on the median of L_lk over a window.

    One message of very low loss, or one sample on which it is low, cannot take over. As a median does not see one loss
    that is huge either, a'_lk = 0 also where the present L_lk is above every L_kk in the window; what did not come has
    no loss there. Ours. n P + n w log w, and n losses.
    """
    rows = np.arange(len(heard.own))
    share = 1.0 / np.maximum(heard.judged, _SMALLEST)
    share *= heard.judged <= heard.judged[rows, heard.own][:, None]
    share *= heard.present
    weight = np.minimum(normalised(share, heard.own), options.cap)
    weight[rows, heard.own] = 0.0
    weight[rows, heard.own] = np.maximum(1.0 - total(weight), 0.0)
    return weighted_sum(weight, heard.messages), weight


@dataclass
class FFilter:
    """What a loss is taken over, and how much work is allowed."""

    samples: Annotated[int, Ge(1), "M, last samples over which the loss of a message is averaged"] = 100
    most_subsets: Annotated[int, Ge(1), "subsets of neighbours that may be tried for an agent"] = 10_000


def _all_but_one(n: int, options: FFilter) -> int:
    return n - 1


def _few_subsets(n: int, b: int, options: FFilter) -> None:
    subsets = math.comb(n - 1, b)
    if subsets > options.most_subsets:
        raise UserError(
            f"rule f-filter tries every set of b = {b} of the {n - 1} neighbours of an agent with n = {n} messages: "
            f"{subsets} subsets, more than rule.f-filter.most_subsets = {options.most_subsets}"
        )


@aggregate(
    "f-filter",
    reports="weight",
    parameters=FFilter,
    judged_by="recent",
    stands=_all_but_one,
    distances=True,
    check=_few_subsets,
)
def f_filter(heard: Heard, options: FFilter) -> tuple[np.ndarray, np.ndarray]:
    """a_lk proportional to 1/D_lk over S = N_k \\ R; of all sets R of b neighbours that with the least risk estimate.

    The estimate is sum_{l in S, l != k} J_lk D_lk^-2 / (sum_{l in S} D_lk^-1)^2, J_lk the mean loss of m_lk on the last
    samples, D_lk the moving average of norm(theta_k,i-1 - m_lk)^2. No neighbour left (n - 1 <= b): psi_k. Equal
    estimates: the set first in lexicographic order is dropped. Li, Abbas, Koutsoukos 2019 (paper ref. 16).
    n binomial(n - 1, b) + n P, and n M losses.
    """
    rows = np.arange(len(heard.own))
    distance = np.clip(heard.distance, _SMALLEST, np.inf)
    nearest = np.minimum(distance.min(axis=1), _LARGEST)
    closeness = nearest[:, None] / distance
    risk = np.minimum(heard.judged, _LARGEST) * closeness * closeness
    neighbour = heard.present.copy()
    neighbour[rows, heard.own] = False
    places = (~neighbour).argsort(axis=1, kind="stable")
    count = heard.count - 1
    share = np.zeros_like(closeness)
    share[rows, heard.own] = closeness[rows, heard.own]
    for neighbours, b in sorted(set(zip(count.tolist(), heard.b.tolist(), strict=True))):
        if neighbours <= b:
            continue
        kept = _kept(neighbours, b)
        these = np.flatnonzero((count == neighbours) & (heard.b == b))[:, None]
        place = places[these[:, 0], :neighbours]
        whole = np.matmul(kept, closeness[these, place][:, :, None])[:, :, 0] + share[these, heard.own[these]]
        estimate = np.full_like(whole, np.inf)
        product = np.matmul(kept, risk[these, place][:, :, None])[:, :, 0]
        np.divide(product, whole * whole, out=estimate, where=whole > 1e-150)
        share[these, place] = kept[estimate.argmin(axis=1)] * closeness[these, place]
    weight = normalised(share, heard.own)
    return weighted_sum(weight, heard.messages), weight


@lru_cache(maxsize=64)
def _kept(neighbours: int, b: int) -> np.ndarray:
    """Which neighbours remain when b are dropped, every way: float64 0 or 1 (binomial(neighbours, b), neighbours)."""
    dropped = np.array(list(combinations(range(neighbours), b)), np.intp)
    kept = np.ones((len(dropped), neighbours))
    np.put_along_axis(kept, dropped, 0.0, axis=1)
    return kept
