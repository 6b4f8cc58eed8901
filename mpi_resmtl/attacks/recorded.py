"""Messages read from a recorded stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import h5py
import numpy as np

from mpi_resmtl.attacks import Messages, Stage, attack
from mpi_resmtl.errors import UserError


@dataclass
class Recorded:
    """Which file."""

    file: Annotated[str, "recorded stream with /attack/message"] = ""


@attack("recorded", Recorded, knows="nothing")
def recorded(parameters: Recorded, stage: Stage) -> Messages:
    """What /attack/message of a recorded stream says, (b, P) always or (T, b, P) by iteration; the same to all."""
    attackers = int(np.count_nonzero(stage.byzantine))
    which = np.cumsum(stage.byzantine)[stage.source] - 1
    with h5py.File(parameters.file, "r") as file:
        if "attack/message" not in file:
            raise UserError(f"{parameters.file}: has Byzantine agents but no /attack/message; name a byzantine.attack")
        message = file["attack/message"][()]
    if message.ndim not in (2, 3) or message.shape[-2:] != (attackers, stage.parameters):
        raise UserError(
            f"{parameters.file}: /attack/message is {message.shape}, expected ({attackers}, {stage.parameters}) "
            f"or (T, {attackers}, {stage.parameters})"
        )
    message = message.astype(stage.dtype)
    if message.ndim == 2:
        constant = message[which]
        return lambda known: constant
    return lambda known: message[known.iteration].take(which, axis=0)
