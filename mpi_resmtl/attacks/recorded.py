"""Messages read from a recorded stream."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
    message = _read(parameters.file)
    fits = message.ndim in (2, 3) and message.shape[-2:] == (attackers, stage.parameters)
    if not fits:
        raise UserError(
            f"{parameters.file}: /attack/message is {message.shape}, expected ({attackers}, {stage.parameters}) "
            f"or (T, {attackers}, {stage.parameters})"
        )
    if message.dtype.kind not in "fiu":
        raise UserError(f"{parameters.file}: /attack/message is of type {message.dtype}, expected numbers")
    if message.ndim == 3 and len(message) < stage.iterations:
        raise UserError(
            f"iterations = {stage.iterations}: /attack/message of {parameters.file} lasts for {len(message)}"
        )
    message = message.astype(stage.dtype)
    if message.ndim == 2:
        constant = message[which]
        return lambda known: constant
    return lambda known: message[known.iteration].take(which, axis=0)


def _read(name: str) -> np.ndarray:
    if not name:
        raise UserError("attack recorded needs its file: --set byzantine.file=FILE")
    if not Path(name).is_file():
        raise UserError(f"byzantine.file: no such file: {name}")
    try:
        with h5py.File(name, "r") as file:
            if not isinstance(file.get("attack/message"), h5py.Dataset):
                raise UserError(f"{name}: has Byzantine agents but no /attack/message; name a byzantine.attack")
            return file["attack/message"][()]
    except OSError as error:
        raise UserError(f"{name}: not a whole HDF5 file: {str(error).splitlines()[0]}") from None
