"""Uniform noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from mpi_resmtl.attacks import Known, Messages, Stage, attack
from mpi_resmtl.errors import UserError
from mpi_resmtl.streams import Stream


@dataclass
class Uniform:
    """U[low, high) in each dimension."""

    low: Annotated[float, "lower bound"] = 0.0
    high: Annotated[float, "upper bound"] = 0.1
    fixed: Annotated[bool, "drawn once instead of anew each iteration"] = False
    same_to_all: Annotated[bool, "an attacker sends all its victims the same"] = False

    def __post_init__(self):
        if self.low > self.high:
            raise UserError(f"byzantine.low = {self.low} is above byzantine.high = {self.high}")


@attack("uniform", Uniform, knows="nothing")
def uniform(parameters: Uniform, stage: Stage) -> Messages:
    """U[low, high) per dimension, new each iteration and for each victim (the paper's attack)."""
    if parameters.same_to_all:
        number = np.cumsum(stage.byzantine)[stage.source] - 1
        first, stop = (int(number[0]), int(number[-1]) + 1) if len(number) else (0, 0)
        items = int(np.count_nonzero(stage.byzantine))
        stream = Stream(stage.seed, "attack", items, stage.parameters, first, stop - first)
        which = number - first
    else:
        stream = Stream(stage.seed, "attack", stage.total, stage.parameters, stage.first, len(stage.source))
        which = None
    return _Draws(parameters, stream, which, stage.dtype)


class _Draws:
    def __init__(self, parameters: Uniform, stream: Stream, which: np.ndarray | None, dtype: np.dtype):
        self._parameters, self._stream, self._which, self._dtype = parameters, stream, which, dtype
        self._block = -1

    def __call__(self, known: Known) -> np.ndarray:
        block, place = divmod(0 if self._parameters.fixed else known.iteration, self._stream.length)
        if block != self._block:
            low, high = self._parameters.low, self._parameters.high
            single = self._dtype == np.float32
            drawn = self._stream.uniform_single(block) if single else self._stream.uniform(block)
            drawn *= self._dtype.type(high - low)
            drawn += self._dtype.type(low)
            self._drawn = drawn if self._which is None else drawn.take(self._which, axis=1)
            self._block = block
        return self._drawn[place]
