"""Attacks that lead a victim step by step to a goal (Li, Abbas, Koutsoukos 2020, "Resilient Distributed Diffusion in
Networks with Adversaries", the paper's reference 16).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le

from mpi_resmtl.attacks import Known, Laid, Messages, Remembered, Stage, attack
from mpi_resmtl.attacks.common import begins, finite, in_order, own

_PART_ELEMENTS = 2**18


@dataclass
class Drift:
    """Whereto and how fast; the goal of iteration i is goal + i step in every dimension."""

    r: Annotated[float, Gt(0), Le(1), "part of the way to the goal that a message is ahead of the victim"] = 0.02
    goal: Annotated[float, "the goal in every dimension; far off from what agents learn, to do harm"] = 0.0
    relative: Annotated[bool, "the goal counts from the victim's first model"] = False
    step: Annotated[float, "what the goal moves in an iteration (Delta)"] = 0.0

    def ahead(self, iteration: int) -> float:
        """goal_i + Delta / r."""
        return self.goal + iteration * self.step + self.step / self.r


@attack("drift", Drift, knows="victim")
def drift(parameters: Drift, stage: Stage) -> Messages:
    """theta_k + r (goal_i + Delta / r - theta_k), theta_k the victim's previous model (ref. 16, strong knowledge)."""
    victim, of_edge = np.unique(stage.target, return_inverse=True)
    r, state = stage.dtype.type(parameters.r), Remembered(start=Laid(of_edge=of_edge, places=len(victim)))

    @finite
    def messages(known: Known) -> np.ndarray:
        theta = known.previous.take(victim, axis=0)
        if begins(state, known):
            state["start"] = theta.copy() if parameters.relative else np.zeros_like(theta)
        goal = state["start"] + stage.dtype.type(parameters.ahead(known.iteration))
        return (theta + r * (goal - theta)).take(of_edge, axis=0)

    messages.state = state
    return messages


@dataclass
class DriftBlind(Drift):
    """As `drift`, and how fast the victim's weights are learnt."""

    weight_step: Annotated[float, Gt(0), Le(2), "mu_A times the squared norm of what was heard about p_k"] = 0.5


@attack("drift-blind", DriftBlind, knows="heard")
def drift_blind(parameters: DriftBlind, stage: Stage) -> Messages:
    """theta~_k + r (goal_i + Delta / r - theta~_k), theta~_k an estimate from what was heard (ref. 16, weak knowledge).

    The victim's model is taken for a combination P A of messages P that the attacker knows: those it heard from the
    normal agents who speak to both, the victim's among them, and its own to the victim. Since p_k, what the victim says
    next, differs from P A by one gradient step only, the weights are learnt from e = p_k - P A:
    A <- projection on the simplex of A + mu_A P'e, mu_A = weight_step / norm(P - p_k 1')^2. They start equal. The first
    message is the attacker's own intermediate, and a victim that the attacker does not hear keeps equal weights.
    """
    edgewise = dict.fromkeys(("said", "said before", "start"), Laid())
    model, state = own(stage), Remembered(weight=Laid(axis=1), heard=Laid("overheard"), **edgewise)
    size = max(1, _PART_ELEMENTS // max(1, stage.parameters * int(np.bincount(stage.edge[:, 1]).max(initial=1))))
    parts = [slice(first, first + size) for first in range(0, len(stage.source), size)]
    overheard = overhear(stage)
    row, present, victim, hears = overheard.row, overheard.present, overheard.victim, overheard.hears

    @finite
    def messages(known: Known) -> np.ndarray:
        message = model(known)
        nothing = np.zeros((1, stage.parameters), stage.dtype)
        heard = np.concatenate([known.heard, nothing])
        if begins(state, known):
            state["weight"] = present / present.sum(axis=0, dtype=stage.dtype)
        else:
            heard_before = np.concatenate([state["heard"], nothing])
            for part in parts:
                weight, said = state["weight"][:, part], state["said"][part]
                if "said before" in state:
                    before = _columns(heard_before, row[:, part], state["said before"][part])
                    spoken = heard.take(victim[part], axis=0)
                    learnt = learn(weight, before, spoken, present[:, part], parameters.weight_step)
                    np.copyto(weight, learnt, where=hears[part])
                columns = _columns(heard, row[:, part], said)
                columns *= weight[..., None]
                message[part] = in_order(columns)
            if "start" not in state:
                state["start"] = message.copy() if parameters.relative else np.zeros_like(message)
            goal = state["start"] + stage.dtype.type(parameters.ahead(known.iteration))
            message += stage.dtype.type(parameters.r) * (goal - message)
            state["said before"] = state["said"]
        state["heard"], state["said"] = known.heard, np.nan_to_num(message)
        return message

    messages.state = state
    return messages


@dataclass(frozen=True)
class Overheard:
    """For each edge l -> k the rows of `Known.heard` that tell l of k; row H, past the last, is 0."""

    row: np.ndarray
    """(J, M) intp: messages to l of normal agents who speak to k too; H in empty places, of which there are so many
    that J is the same on every rank."""
    present: np.ndarray
    """(J + 1, M) bool: the place of l's own message, which always is there, and those of `row`."""
    victim: np.ndarray
    """(M,) intp: k's message to l; H where there is none."""
    hears: np.ndarray
    """(M,) bool: whether there is one."""


def overhear(stage: Stage) -> Overheard:
    """What a rank's attackers overhear."""
    source, target = stage.edge.astype(np.intp).T
    local = (target >= stage.first_agent) & (target < stage.first_agent + stage.count)
    into = np.flatnonzero(local & stage.byzantine[target] & (source != target))
    row_of = {(int(source[e]), int(target[e])): row for row, e in enumerate(into)}
    start = np.searchsorted(target, np.arange(stage.agents + 1))
    rows, victims = [], []
    for attacker, victim in zip(stage.source.tolist(), stage.target.tolist(), strict=True):
        spoken = source[start[victim] : start[victim + 1]]
        told = [row_of.get((int(a), attacker)) for a in spoken if not stage.byzantine[a]]
        rows.append([row for row in told if row is not None])
        victims.append(row_of.get((victim, attacker), len(into)))
    most = int(np.bincount(target[~stage.byzantine[source]], minlength=1).max())
    row = np.full((most, len(rows)), len(into), np.intp)
    for edge, known in enumerate(rows):
        row[: len(known), edge] = known
    victim = np.array(victims, np.intp)
    present = np.concatenate([np.ones((1, len(rows)), bool), row < len(into)])
    return Overheard(row, present, victim, victim < len(into))


def _columns(heard: np.ndarray, row: np.ndarray, said: np.ndarray) -> np.ndarray:
    """P (J + 1, m, P): the own message, then those heard."""
    return np.concatenate([said[None], heard.take(row, axis=0)])


def learn(weight: np.ndarray, columns: np.ndarray, spoken: np.ndarray, present: np.ndarray, step: float) -> np.ndarray:
    """One step of A (J, m) on norm(p_k - P A)^2, projected on the simplex; P (J, m, P), p_k (m, P).

    As A sums to 1 and the projection does not see what is added to all of A alike, P - p_k 1' stands for P.
    """
    difference = columns - spoken
    difference *= present[..., None]
    error = in_order(difference * weight[..., None])
    gradient = (difference * error).sum(axis=-1)
    difference *= difference
    norm = in_order(difference.sum(axis=-1))
    stepped = weight - np.divide(step, norm, out=np.zeros_like(norm), where=norm > 0.0) * gradient
    projected = to_simplex(np.where(present, stepped, -np.inf))
    return np.where(np.isfinite(in_order(projected)), projected, weight)


def to_simplex(points: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex to each column of (J, m); -inf gives 0 (Duchi et al. 2008)."""
    ordered = -np.sort(-points, axis=0)
    excess = np.cumsum(ordered, axis=0) - 1.0
    place = np.arange(1, len(points) + 1)[:, None]
    kept = np.maximum((ordered * place > excess).sum(axis=0), 1)
    threshold = excess[kept - 1, np.arange(points.shape[1])] / kept
    return np.maximum(points - threshold, 0.0).astype(points.dtype, copy=False)
