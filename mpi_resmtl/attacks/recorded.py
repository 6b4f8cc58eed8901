"""Messages read from a recorded stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from mpi_resmtl import hdf5
from mpi_resmtl.attacks import Messages, Stage, attack
from mpi_resmtl.errors import UserError


@dataclass
class Recorded:
    """Which file."""

    file: Annotated[str, hdf5.Input(), "recorded stream with /attack/message"] = ""


@attack("recorded", Recorded, knows="nothing")
def recorded(parameters: Recorded, stage: Stage) -> Messages:
    """What /attack/message of a recorded stream says, (b, P) always or (T, b, P) by iteration; the same to all."""
    attackers = int(np.count_nonzero(stage.byzantine))
    which = np.cumsum(stage.byzantine)[stage.source] - 1
    if not parameters.file:
        raise UserError("attack recorded needs its file: --set byzantine.file=FILE")
    path = "attack/message"
    with hdf5.opened(parameters.file) as file:
        if path not in file:
            raise UserError(f"{parameters.file}: has Byzantine agents but no /{path}; name a byzantine.attack")
        found = hdf5.dataset(file, parameters.file, path)
        if found.ndim not in (2, 3) or found.shape[-2:] != (attackers, stage.parameters):
            raise UserError(
                f"{parameters.file}: /{path} is {found.shape}, expected ({attackers}, {stage.parameters}) "
                f"or (T, {attackers}, {stage.parameters})"
            )
        if found.ndim == 3 and len(found) < stage.iterations:
            raise UserError(f"{parameters.file}: /{path} lasts for {len(found)} of the {stage.iterations} iterations")
        # Messages may hold anything: what is too large for the models' precision arrives as inf.
        with np.errstate(over="ignore"):
            message = found[()].astype(stage.dtype)
    if message.ndim == 2:
        constant = message[which]
        return lambda known: constant
    return lambda known: message[known.iteration].take(which, axis=0)
