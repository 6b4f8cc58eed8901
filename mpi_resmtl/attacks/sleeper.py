"""The attack on judgement by a moving average: earn trust, spend it at once, earn it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from mpi_resmtl.attacks import Known, Laid, Messages, Remembered, Stage, attack
from mpi_resmtl.attacks.common import begins, finite, own
from mpi_resmtl.attacks.null_space import onto
from mpi_resmtl.errors import UserError

_SPENT = 1.0 - 1e-6
"""Part of the budget that is used, so that rounding does not carry phi_lk above phi_kk."""


@dataclass
class Sleeper:
    """When to wake; `reach` and `evaluations` are for losses other than a regression's."""

    margin: Annotated[float, Ge(0), "how many times phi_kk the budget has to be above the honest message's loss"] = 1.0
    reach: Annotated[float, Gt(0), "farthest model tried: psi_k - reach psi_k"] = 4.0
    evaluations: Annotated[int, Ge(1), "halvings of the way there, one loss each"] = 8


@attack("sleeper", Sleeper, knows="victim", samples=True)
def sleeper(parameters: Sleeper, stage: Stage) -> Messages:
    """Honest until phi_lk is low, then one message of the greatest loss that passes for the victim's, again and again.

    The attacker keeps phi_lk and phi_kk as the victim does, from phi_0 on. A message of loss up to
    (phi_kk - (1 - nu) phi_lk) / nu, its budget, leaves phi_lk <= phi_kk. When that is more than the loss of the honest
    message, the attacker's own intermediate, by margin phi_kk, it is spent. Loss (y - u'm)^2: on
    p_k + (y + budget^1/2 - u'p_k) u / norm(u)^2. Other losses: on (1 - t) psi_k, the largest t found by halving
    [0, reach] that stays within the budget.
    """
    nu = stage.forgetting_factor
    if nu == 0.0:
        raise UserError("attack sleeper needs rule.forgetting_factor above 0: with 0 nothing is held against a message")
    victim, of_edge = np.unique(stage.target, return_inverse=True)
    model, state = own(stage), Remembered(own=Laid(of_edge=of_edge, places=len(victim)), heard=Laid())
    prey = ~stage.byzantine[stage.target]

    @finite
    def messages(known: Known) -> np.ndarray:
        if begins(state, known):
            state["own"] = np.full(len(victim), stage.initial_accumulated_loss)
            state["heard"] = np.full(len(of_edge), stage.initial_accumulated_loss)
        revealed, psi = known.revealed.take(victim, axis=0), known.intermediate.take(victim, axis=0)
        accumulate(state["own"], _loss(stage, revealed, psi), nu)

        message = model(known)
        loss = _loss(stage, revealed.take(of_edge, axis=0), message)
        phi = state["own"].take(of_edge)
        budget = (phi - (1.0 - nu) * state["heard"]) / nu
        awake = np.flatnonzero(prey & (budget - loss > parameters.margin * phi))
        if len(awake):
            at = of_edge[awake]
            spent, cost = _spend(parameters, stage, revealed[at], psi[at], _SPENT * budget[awake])
            within = cost <= budget[awake]
            message[awake[within]], loss[awake[within]] = spent[within], cost[within]
        accumulate(state["heard"], loss, nu)
        return message

    messages.state = state
    return messages


def accumulate(phi: np.ndarray, loss: np.ndarray, nu: float) -> None:
    """phi <- (1 - nu) phi + nu loss in place, but for a loss that is not finite."""
    np.copyto(phi, (1.0 - nu) * phi + nu * loss, where=np.isfinite(loss))


def _loss(stage: Stage, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
    return np.asarray(stage.sampled.loss_at(revealed, models), np.float64) if len(models) else np.zeros(0)


def _spend(
    parameters: Sleeper, stage: Stage, revealed: np.ndarray, psi: np.ndarray, budget: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Models (m, P) of about the losses `budget` (m,) on the victims' samples, and their losses."""
    regression = stage.sampled.regression_at(revealed)
    if regression is not None:
        u, y = regression
        spent = onto(psi, u, y + np.sqrt(budget))[0].astype(stage.dtype, copy=False)
        return spent, _loss(stage, revealed, spent)
    low, high = np.zeros(len(psi)), np.full(len(psi), parameters.reach)
    cost = _loss(stage, revealed, psi)
    for _ in range(parameters.evaluations):
        middle = 0.5 * (low + high)
        tried = _loss(stage, revealed, _shrunk(psi, middle))
        within = tried <= budget
        low, high = np.where(within, middle, low), np.where(within, high, middle)
        cost = np.where(within, tried, cost)
    return _shrunk(psi, low), cost


def _shrunk(models: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(1 - t) m."""
    return (1.0 - t)[:, None].astype(models.dtype) * models
