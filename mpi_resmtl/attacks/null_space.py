"""The attack on judgement by one sample: messages without loss there and bad everywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from mpi_resmtl.attacks import Known, Messages, Stage, attack
from mpi_resmtl.attacks.common import finite
from mpi_resmtl.errors import UserError
from mpi_resmtl.streams import Stream


@dataclass
class NullSpace:
    """How far off; `c` is for regressions, the others for all other losses."""

    c: Annotated[float, "distance across u"] = 5.0
    origin: Annotated[Literal["negated", "random"], "bad model to begin with: -scale psi_k, or N(0, scale^2)"] = (
        "negated"
    )
    scale: Annotated[float, Gt(0), "size of the bad model"] = 1.0
    below: Annotated[float, Gt(0), "part of the victim's own loss that the message's has to reach"] = 0.5
    steps: Annotated[int, Ge(0), "gradient steps at most"] = 20


@attack("null-space", NullSpace, knows="victim", samples=True)
def null_space(parameters: NullSpace, stage: Stage) -> Messages:
    """Nearly no loss on the victim's present sample, and as far away as asked elsewhere.

    Loss (y - u'm)^2: p_k + (y - u'p_k) u / norm(u)^2 + c u_perp, u_perp a unit vector across u: u turned by 90 degrees
    where P = 2, else what is left of a random direction that each edge keeps. Other losses: from a bad model, gradient
    steps on the victim's batch until the loss is `below` times the victim's own or less, each of length
    loss / norm(gradient) (Polyak 1969, for a least loss of 0); the same to the victim from every attacker.
    """
    if stage.parameters == 1:
        raise UserError("attack null-space: a model of 1 parameter has no direction that a sample does not see")
    edges = stage.first, len(stage.source)
    across = _across(stage, *edges) if stage.parameters > 2 else None
    fitted = _fitted(parameters, stage)

    @finite
    def messages(known: Known) -> np.ndarray:
        regression = stage.sampled.regression_at(known.revealed.take(stage.target, axis=0))
        if regression is None:
            return fitted(known)
        message, unit = onto(known.intermediate.take(stage.target, axis=0), *regression)
        if across is None:
            turned = np.stack([-unit[:, 1], unit[:, 0]], axis=1)
        else:
            turned = across() - unit * (across() * unit).sum(axis=1, keepdims=True)
            turned /= np.sqrt((turned * turned).sum(axis=1, keepdims=True))
        return (message + parameters.c * turned).astype(stage.dtype, copy=False)

    return messages


def onto(models: np.ndarray, u: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m + (y - u'm) u / norm(u)^2 (m, P), the nearest models without loss, and u / norm(u); where u is 0, m and 0."""
    norm = np.sqrt((u * u).sum(axis=1, keepdims=True))
    norm[norm == 0.0] = np.inf
    unit = u / norm
    residual = y[:, None] - (u * models).sum(axis=1, keepdims=True)
    return models + residual / norm * unit, unit


def _across(stage: Stage, first: int, count: int):
    """Random directions (M, P), drawn when first asked for, as networks need none."""
    kept: list[np.ndarray] = []

    def directions() -> np.ndarray:
        if not kept:
            stream = Stream(stage.seed, "null-space", stage.total, stage.parameters, first, count)
            kept.append(stream.normal(0)[0])
        return kept[0]

    return directions


def _fitted(parameters: NullSpace, stage: Stage):
    """Bad models fitted to the victims' batches: what is known -> (M, P)."""
    victim, of_edge = np.unique(stage.target, return_inverse=True)
    normal = np.flatnonzero(~stage.byzantine[victim])
    drawn: list[np.ndarray] = []

    def origin(psi: np.ndarray) -> np.ndarray:
        if parameters.origin == "negated":
            return stage.dtype.type(-parameters.scale) * psi
        if not drawn:
            streams = (Stream(stage.seed, "null-space", stage.agents, stage.parameters, int(k), 1) for k in victim)
            models = [parameters.scale * stream.normal(0)[0, 0] for stream in streams]
            drawn.append(np.array(models, stage.dtype).reshape(-1, stage.parameters))
        return drawn[0].copy()

    def fitted(known: Known) -> np.ndarray:
        revealed, psi = known.revealed.take(victim, axis=0), known.intermediate.take(victim, axis=0)
        model, wanted, working = origin(psi), np.zeros(len(victim)), normal
        if len(working):
            wanted[working] = parameters.below * stage.sampled.loss_at(revealed[working], psi[working])
        for _ in range(parameters.steps if len(working) else 0):
            loss = stage.sampled.loss_at(revealed[working], model[working])
            high = np.isfinite(loss) & (loss > wanted[working])
            working, loss = working[high], loss[high]
            if not len(working):
                break
            gradient = stage.sampled.gradient_at(revealed[working], model[working])
            squared = (gradient * gradient).sum(axis=1, dtype=np.float64)
            length = np.divide(loss, squared, out=np.zeros_like(loss), where=squared > 0.0)
            model[working] -= length[:, None].astype(stage.dtype) * gradient
        return model.take(of_edge, axis=0)

    return fitted
