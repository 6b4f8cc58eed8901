"""The attack of the published program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from mpi_resmtl.attacks import Known, Messages, Stage, attack
from mpi_resmtl.attacks.common import own
from mpi_resmtl.errors import UserError
from mpi_resmtl.streams import Stream


@dataclass
class Scaled:
    """U[low, high) for each tensor of the model."""

    low: Annotated[float, "smallest factor"] = 0.0
    high: Annotated[float, "greatest factor"] = 0.1

    def __post_init__(self):
        if self.low > self.high:
            raise UserError(f"byzantine.low = {self.low} is above byzantine.high = {self.high}")


@attack("scaled", Scaled, knows="own")
def scaled(parameters: Scaled, stage: Stage) -> Messages:
    """The attacker's own model, each tensor times one U[0, 0.1), anew each iteration (the published program's)."""
    model = own(stage)
    stream = Stream(stage.seed, "attack", stage.total, len(stage.tensors), stage.first, len(stage.source))

    def messages(known: Known) -> np.ndarray:
        block, place = divmod(known.iteration, stream.length)
        factor = parameters.low + (parameters.high - parameters.low) * stream.uniform(block)[place]
        return model(known) * factor.astype(stage.dtype).repeat(stage.tensors, axis=1)

    return messages
