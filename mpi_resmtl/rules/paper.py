"""The rules of the paper (Li, Abbas, Koutsoukos, NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.rules import rule


@rule("none")
def none(neighbourhoods: Neighbourhoods, accumulated: np.ndarray) -> np.ndarray:
    """a_kk = 1: no cooperation."""
    weight = np.zeros(len(neighbourhoods.target))
    weight[neighbourhoods.own] = 1.0
    return weight


@rule("average", trusting=True)
def average(neighbourhoods: Neighbourhoods, accumulated: np.ndarray) -> np.ndarray:
    """a_lk = 1/abs(N_k), whatever was heard."""
    return neighbourhoods.spread(1.0 / neighbourhoods.size)


@dataclass
class Distance:
    """What a message is compared with."""

    anchor: Annotated[
        Literal["previous", "lookahead"],
        "theta~_k: `previous` theta_k,i-1 (the paper's choice), `lookahead` one more gradient step from psi_k,i",
    ] = "previous"


@rule("distance", judged_by="distance", parameters=Distance)
def distance(neighbourhoods: Neighbourhoods, accumulated: np.ndarray) -> np.ndarray:
    """a_lk proportional to 1/D_lk, D the moving average of norm(theta~_k - m_lk)^2 (eq. 4)."""
    return neighbourhoods.inverse_weights(accumulated)


@rule("loss-unfiltered", judged_by="loss")
def loss_unfiltered(neighbourhoods: Neighbourhoods, accumulated: np.ndarray) -> np.ndarray:
    """a_lk proportional to 1/phi_lk (eq. 9)."""
    return neighbourhoods.inverse_weights(accumulated)


@rule("loss", judged_by="loss")
def loss(neighbourhoods: Neighbourhoods, accumulated: np.ndarray) -> np.ndarray:
    """a_lk proportional to 1/phi_lk where phi_lk <= phi_kk, else 0 (eq. 10)."""
    return neighbourhoods.inverse_weights(accumulated, up_to_own=True)
