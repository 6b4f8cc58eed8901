"""Attacks by agents who know all normal agents' models and act together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from mpi_resmtl.attacks import Known, Messages, Stage, attack
from mpi_resmtl.attacks.common import (
    Over,
    Surroundings,
    by_set,
    centred,
    finite,
    in_order,
    mean,
    number,
    shared_surroundings,
    surroundings,
)

_CANDIDATES = 2.0 ** np.arange(-4, 12)


@dataclass
class Little:
    """How far from the mean."""

    z: Annotated[float | None, "standard deviations; none given: the formula's"] = None
    over: Over = "neighbourhood"


@attack("little", Little, knows="all")
def little(parameters: Little, stage: Stage) -> Messages:
    """mean - z std over the normal agents, z = Phi^-1((n-b-s)/(n-b)), s = floor(n/2+1) - b (Baruch et al. 2019).

    n agents in the neighbourhood, b of them Byzantine; std is the population's. s is 1 at least, as where attackers
    have the majority, and z is 0 at least.
    """
    around = shared_surroundings(stage, parameters.over)

    def build(part: Surroundings):
        z = supporting_deviations(part.normal, part.byzantine) if parameters.z is None else parameters.z
        factor = np.broadcast_to(z, part.normal.shape)[:, None].astype(stage.dtype)

        def message(known: Known) -> np.ndarray:
            middle, difference = centred(part, known.intermediate)
            return middle - factor * _deviation(part, difference)

        return message

    message = by_set(stage, around, build)
    return finite(lambda known: message(known).take(around.of_edge, axis=0))


def supporting_deviations(normal: np.ndarray, byzantine: np.ndarray) -> np.ndarray:
    """z of `little` for sets of `normal` = n-b and `byzantine` = b agents: float64."""
    from scipy.special import ndtri

    normal = np.maximum(normal, 1)
    supporters = np.maximum((normal + byzantine) // 2 + 1 - byzantine, 1)
    return ndtri(np.maximum((normal - supporters) / normal, 0.5))


def _deviation(around: Surroundings, difference: np.ndarray) -> np.ndarray:
    """Population's standard deviation (V, P) from differences from the mean (J, V, P)."""
    return np.sqrt(in_order(difference * difference) / number(around, difference.dtype))


@dataclass
class InnerProduct:
    """How far against the update."""

    eps: Annotated[float, Gt(0), "factor of the mean update"] = 0.5
    search: Annotated[bool, "take the worst of eps/16, eps/8, ..., 2048 eps instead, for each set and iteration"] = (
        False
    )
    over: Over = "neighbourhood"


@attack("inner-product", InnerProduct, knows="all")
def inner_product(parameters: InnerProduct, stage: Stage) -> Messages:
    """mean of the previous models - eps (mean update) over the normal agents (Xie, Koyejo, Gupta 2020).

    update = psi - previous. The search takes, of eps 2^-4 to eps 2^11, the least that carries the coordinate-wise
    median of the neighbourhood (all its Byzantine agents sending this message) farthest from the normal agents' mean,
    as the published line searches do with the rule they are aimed at (Guerraoui et al., ByzFL).
    """
    around = shared_surroundings(stage, parameters.over)
    tried = (parameters.eps * _CANDIDATES).astype(stage.dtype)

    def build(part: Surroundings):
        median = _median_against(part) if parameters.search else None

        def message(known: Known) -> np.ndarray:
            previous = mean(part, known.previous)
            middle = mean(part, known.intermediate)
            update = middle - previous
            if median is None:
                return previous - stage.dtype.type(parameters.eps) * update
            candidates = previous - tried[:, None, None] * update
            moved = median(known.intermediate, candidates) - middle
            moved *= moved
            worst = moved.sum(axis=-1).argmax(axis=0)
            return candidates[worst, np.arange(len(worst))]

        return message

    message = by_set(stage, around, build)
    return finite(lambda known: message(known).take(around.of_edge, axis=0))


def _median_against(around: Surroundings):
    """Coordinate-wise median of each set's h models and b copies of a message, for messages (C, V, P): (C, V, P).

    The k-th smallest of h sorted numbers x and b copies of v is v clipped to [x_(k-b), x_k], where x_k is -inf for
    k < 1 and inf for k > h.
    """
    count = around.normal + around.byzantine
    column = np.arange(len(count))
    empty = ~around.present
    middles = [(count - 1) // 2 + 1, count // 2 + 1]

    def median(rows: np.ndarray, messages: np.ndarray) -> np.ndarray:
        members = rows.take(around.member, axis=0)
        members[empty] = np.inf
        members.sort(axis=0)
        edge = np.full((1, *members.shape[1:]), np.inf, members.dtype)
        ordered = np.concatenate([-edge, members, edge], axis=0)
        bounds = [
            np.clip(
                messages,
                ordered[np.maximum(k - around.byzantine, 0), column],
                ordered[np.minimum(k, around.normal + 1), column],
            )
            for k in middles
        ]
        return 0.5 * bounds[0] + 0.5 * bounds[1]

    return median


@dataclass
class MinMax:
    """Whose models."""

    over: Over = "neighbourhood"


@attack("min-max", MinMax, knows="all")
def min_max(parameters: MinMax, stage: Stage) -> Messages:
    """mean - gamma std over the normal agents, the largest gamma that stays among them (Shejwalkar, Houmansadr 2021).

    gamma is the greatest with norm(mean - gamma std - m_i) <= D for every normal i, D the greatest distance between
    two: with c_i = m_i - mean, the least over i of the positive root of
    norm(std)^2 gamma^2 + 2 (c_i'std) gamma + norm(c_i)^2 - D^2 = 0.
    """
    around = shared_surroundings(stage, parameters.over)

    def build(part: Surroundings):
        def message(known: Known) -> np.ndarray:
            middle, difference = centred(part, known.intermediate)
            deviation = _deviation(part, difference)
            squared = (deviation * deviation).sum(axis=-1, dtype=np.float64)
            along = (difference * deviation).sum(axis=-1, dtype=np.float64)
            norm = (difference * difference).sum(axis=-1, dtype=np.float64)
            room = _squared_diameter(part, difference) - norm
            root = np.sqrt(along * along + squared * np.maximum(room, 0.0)) - along
            least = np.where(part.present, root, np.inf).min(axis=0)
            gamma = np.divide(least, squared, out=np.zeros_like(squared), where=(squared > 0.0) & (part.normal > 0))
            return middle - gamma[:, None].astype(stage.dtype) * deviation

        return message

    message = by_set(stage, around, build)
    return finite(lambda known: message(known).take(around.of_edge, axis=0))


def _squared_diameter(around: Surroundings, models: np.ndarray) -> np.ndarray:
    """Greatest squared distance between two members' models (J, V, P): float64 (V,)."""
    greatest = np.zeros(models.shape[1])
    for place in range(len(models) - 1):
        apart = models[place + 1 :] - models[place]
        apart *= apart
        squared = apart.sum(axis=-1, dtype=np.float64)
        squared[~(around.present[place + 1 :] & around.present[place])] = 0.0
        np.maximum(greatest, squared.max(axis=0), out=greatest)
    return greatest


@dataclass
class Dissensus:
    """How hard to push."""

    eps: Annotated[float, Ge(0), "1: the victim learns nothing; above: it is driven from its neighbours"] = 1.5


@attack("dissensus", Dissensus, knows="all")
def dissensus(parameters: Dissensus, stage: Stage) -> Messages:
    """p_k - eps sum_normal W_kl (m_l - p_k) / sum_byz W_kb, W Metropolis weights (He, Karimireddy, Jaggi 2022)."""
    around = surroundings(stage)
    source, target = stage.edge.T
    byzantine = stage.byzantine[source] & (source != target)
    weight = _metropolis(stage, source[byzantine], target[byzantine])
    total = np.bincount(target[byzantine], weights=weight, minlength=stage.agents)
    factor = (parameters.eps / total[around.victim])[:, None].astype(stage.dtype)
    pull = by_set(stage, around, lambda part: _pull(stage, part))

    @finite
    def messages(known: Known) -> np.ndarray:
        message = known.intermediate.take(around.victim, axis=0) - factor * pull(known)
        return message.take(around.of_edge, axis=0)

    return messages


@dataclass
class Isolation:
    """No parameters."""


@attack("isolation", Isolation, knows="all")
def isolation(parameters: Isolation, stage: Stage) -> Messages:
    """p_k - sum_normal W_kl (m_l - p_k) / (b W_kb), so that sum W_kl m_l = p_k: the victim sees no one.

    The correction is shared equally by the victim's b Byzantine neighbours; W are Metropolis weights.
    """
    around = surroundings(stage)
    weight = _metropolis(stage, stage.source, stage.target)
    factor = (1.0 / (around.byzantine[around.of_edge] * weight))[:, None].astype(stage.dtype)
    pull = by_set(stage, around, lambda part: _pull(stage, part))
    victim = around.victim[around.of_edge]

    @finite
    def messages(known: Known) -> np.ndarray:
        return known.intermediate.take(victim, axis=0) - factor * pull(known).take(around.of_edge, axis=0)

    return messages


def _metropolis(stage: Stage, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """W_kl = 1 / (1 + max(deg_k, deg_l)) for edges l -> k, deg the number of others an agent hears: float64."""
    degree = np.bincount(stage.edge[:, 1], minlength=stage.agents) - 1
    return 1.0 / (1.0 + np.maximum(degree[source], degree[target]))


def _pull(stage: Stage, around: Surroundings):
    """sum_normal W_kl (m_l - p_k) for each victim, from what is known: (V, P)."""
    weight = around.present * _metropolis(stage, around.member, around.victim)
    weight = weight[..., None].astype(stage.dtype)

    def pull(known: Known) -> np.ndarray:
        difference = known.intermediate.take(around.member, axis=0)
        difference -= known.intermediate.take(around.victim, axis=0)
        difference *= weight
        return in_order(difference)

    return pull
