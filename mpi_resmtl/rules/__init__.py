"""Rules: how an agent weighs what it hears. Pure functions of arrays, no MPI, no files.

A rule sees the neighbourhoods and, a number for each edge, what is held against the message: the exponential moving
average phi_lk of its loss or D_lk of its distance. It returns weights a_lk >= 0 that sum to 1 over each neighbourhood.
A message that is missing or not finite gets weight 0 afterwards, unless the rule is `trusting`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.registry import Registry

RULES: Registry[Rule] = Registry("rule", __name__)


@dataclass
class NoParameters:
    """No parameters."""


@dataclass(frozen=True)
class Rule:
    """A registered rule: `weigh(neighbourhoods, accumulated (E,)) -> (E,)` float64 weights."""

    weigh: Callable[[Neighbourhoods, np.ndarray], np.ndarray]
    judged_by: Literal["loss", "distance"] | None
    """What is accumulated about each message; None: nothing."""
    parameters: type
    trusting: bool

    @property
    def __doc__(self) -> str:
        return self.weigh.__doc__


def rule(
    name: str,
    judged_by: Literal["loss", "distance"] | None = None,
    parameters: type = NoParameters,
    trusting: bool = False,
) -> Callable:
    """Decorator: register a function as the rule `name`."""

    def register(weigh: Callable) -> Callable:
        RULES.add(name, Rule(weigh, judged_by, parameters, trusting))
        return weigh

    return register
