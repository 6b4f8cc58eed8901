"""Attacks that need little or no knowledge: noise, constants, the own model turned round, numbers that break things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from mpi_resmtl.attacks import Knowledge, Known, Messages, Stage, attack
from mpi_resmtl.attacks.common import Over, by_set, drawn, finite, mean, own, shared_surroundings
from mpi_resmtl.streams import Stream


@dataclass
class Gaussian:
    """N(0, deviation^2) in each dimension around a centre."""

    deviation: Annotated[float, Ge(0), "standard deviation of the noise"] = 1.0
    around: Annotated[Literal["mean", "zero", "own"], "centre: normal agents' mean, 0 or the attacker's own model"] = (
        "mean"
    )
    over: Over = "neighbourhood"

    @property
    def knows(self) -> Knowledge:
        """What the centre takes."""
        return {"mean": "all", "zero": "nothing", "own": "own"}[self.around]


@attack("gaussian", Gaussian, knows="all")
def gaussian(parameters: Gaussian, stage: Stage) -> Messages:
    """N(0, s^2) per dimension, new each iteration and for each victim, added to the normal mean, 0 or one's own."""
    stream = Stream(stage.seed, "attack", stage.total, stage.parameters, stage.first, len(stage.source))
    noise = drawn(stream.normal, stream.length)
    deviation = parameters.deviation
    if parameters.around == "mean":
        around = shared_surroundings(stage, parameters.over)
        middle = by_set(stage, around, lambda part: lambda known: mean(part, known.intermediate))
        centre = lambda known: middle(known).take(around.of_edge, axis=0)  # noqa: E731
    elif parameters.around == "own":
        centre = own(stage)
    else:
        centre = lambda known: 0.0  # noqa: E731

    @finite
    def messages(known: Known) -> np.ndarray:
        return (deviation * noise(known.iteration) + centre(known)).astype(stage.dtype, copy=False)

    return messages


@dataclass
class Zero:
    """No parameters."""


@attack("zero", Zero, knows="nothing")
def zero(parameters: Zero, stage: Stage) -> Messages:
    """0 in each dimension."""
    return _constant(stage, 0.0)


@dataclass
class SameValue:
    """One number."""

    value: Annotated[float, "c"] = 1.0


@attack("same-value", SameValue, knows="nothing")
def same_value(parameters: SameValue, stage: Stage) -> Messages:
    """c in each dimension."""
    return _constant(stage, parameters.value)


def _constant(stage: Stage, value: float) -> Messages:
    bounded = np.clip(value, np.finfo(stage.dtype).min, np.finfo(stage.dtype).max)
    message = np.full((len(stage.source), stage.parameters), bounded, stage.dtype)
    return lambda known: message


@dataclass
class SignFlip:
    """How far the other way."""

    scale: Annotated[float, Ge(0), "s"] = 1.0


@attack("sign-flip", SignFlip, knows="own")
def sign_flip(parameters: SignFlip, stage: Stage) -> Messages:
    """-s psi, the attacker's own intermediate turned round (Li, Xu, Chen, Giannakis, Ling 2019)."""
    model, scale = own(stage), stage.dtype.type(-parameters.scale)

    @finite
    def messages(known: Known) -> np.ndarray:
        return scale * model(known)

    return messages


@dataclass
class NonFinite:
    """No parameters."""


@attack("non-finite", NonFinite, knows="nothing")
def non_finite(parameters: NonFinite, stage: Stage) -> Messages:
    """NaN, Inf, -Inf, the smallest subnormal number and 3e38 in every dimension, in turn by iteration."""
    values = np.array([np.nan, np.inf, -np.inf, np.finfo(stage.dtype).smallest_subnormal, 3e38], stage.dtype)
    shape = (len(stage.source), stage.parameters)
    return lambda known: np.broadcast_to(values[known.iteration % len(values)], shape)
