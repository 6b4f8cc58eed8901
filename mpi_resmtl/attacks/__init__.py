"""Attacks: what Byzantine agents send. Functions of what the attacker may know, one message for each victim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpi_resmtl.registry import Registry

ATTACKS: Registry[Attack] = Registry("attack", __name__)

Messages = Callable[[int, np.ndarray], np.ndarray]
"""Iteration (from 0) and the rank's own intermediates (A, P) -> messages (M, P), one for each edge attackers speak on.

Of the intermediates an attack may use those of its own agents, if it `knows` "own".
"""


@dataclass(frozen=True)
class Stage:
    """Where a rank's attackers act: M edges to others, in (source, target) order."""

    seed: int
    agents: int
    parameters: int
    """P"""
    dtype: np.dtype
    tensors: tuple[int, ...]
    """Sizes of the model's tensors, which together are P."""
    byzantine: np.ndarray
    """(n,) bool"""
    source: np.ndarray
    """(M,) the attackers."""
    target: np.ndarray
    """(M,) their victims."""
    first_agent: int
    """The rank's first agent."""
    first: int
    """Number of such edges on lower ranks."""
    total: int
    """Number of such edges in the whole graph."""


@dataclass(frozen=True)
class Attack:
    """A registered attack: `prepare(parameters, stage)` checks both and returns the messages by iteration."""

    prepare: Callable[[object, Stage], Messages]
    parameters: type
    knows: Literal["nothing", "own", "heard", "victim", "all"]

    @property
    def __doc__(self) -> str:
        return self.prepare.__doc__


def attack(name: str, parameters: type, knows: Literal["nothing", "own", "heard", "victim", "all"]) -> Callable:
    """Decorator: register a function as the attack `name`."""

    def register(prepare: Callable) -> Callable:
        ATTACKS.add(name, Attack(prepare, parameters, knows))
        return prepare

    return register
