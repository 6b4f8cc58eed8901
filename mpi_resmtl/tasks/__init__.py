"""Tasks: what agents learn. Models, samples, losses and measures of a rank's agents; no MPI, no result files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mpi_resmtl.graph import Graph
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.registry import Registry

TASKS: Registry[type[Study]] = Registry("task", __name__)


class Task(Protocol):
    """The agents of one rank at work; A agents, models of P parameters, blocks of B iterations."""

    parameters: int
    """P"""
    tensors: tuple[int, ...]
    """Sizes of the model's tensors."""
    dtype: np.dtype
    length: int
    """B, the same on every rank."""
    measures: tuple[str, ...]
    """Names of what `measure` gives."""
    gathers: bool
    """Whether `judge` takes a copy of the messages (E, P), for many agents at once, or all rows (R, P) as they lie."""
    epoch: int
    """Iterations after each of which `evaluate` is recorded; 0: never."""
    epoch_measures: tuple[str, ...]
    """Names of what `evaluate` gives."""
    keeps_intermediates: bool
    """Whether `measure` needs psi."""

    def start(self) -> np.ndarray:
        """Initial models (A, P); forgets all state of an earlier run (optimiser moments)."""

    def samples(self, block: int) -> Any:
        """The samples of iterations block * B and on."""

    def adapt(self, samples: Any, i: int, theta: np.ndarray, psi: np.ndarray) -> None:
        """Local gradient step of all agents: psi <- theta - mu grad l(theta; sample i of the block)."""

    def lookahead(self, samples: Any, i: int, psi: np.ndarray) -> np.ndarray:
        """psi - mu grad l(psi; sample i of the block): (A, P)."""

    def judge(self, samples: Any, i: int, neighbourhoods: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        """Loss of each message on its target's sample: float64 (E,). Messages as `Neighbourhoods.gather` gives them."""

    def measure(self, samples: Any, psi: np.ndarray | None, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Each measure (b, A) of psi and theta (b, A, P), the models of the block's first b iterations."""

    def evaluate(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Each epoch measure (A,) of the models (A, P)."""


@dataclass
class Scene:
    """What is drawn or read before there is a graph; arrays over all n agents."""

    group: np.ndarray
    """(n,) int32"""
    data: str
    """"generated", "recorded", "real" or "stand-in"."""
    data_sha256: str = ""
    position: np.ndarray | None = None
    target: np.ndarray | None = None
    edge: np.ndarray | None = None
    """(E, 2) where the task brings its own graph."""
    epoch: int = 0
    """Iterations in an epoch, of a study whose length is given in epochs."""
    length: int | None = None
    """Iterations after which the data end; None: never."""


class Study(Protocol):
    """A registered kind of task."""

    Parameters: type
    """Dataclass of its table in the configuration."""
    unit: str
    """"iterations" or "epochs": how its length is given."""

    @staticmethod
    def defaults(tables: dict[str, Any]) -> dict[str, Any]:
        """Tables that the study brings, over which those that the user wrote (`tables`) are laid."""

    @staticmethod
    def scene(parameters: Any, seed: int) -> Scene:
        """What is fixed about the agents; called on rank 0. Raises UserError."""

    @staticmethod
    def task(parameters: Any, graph: Graph, seed: int, first: int, count: int) -> Task:
        """The task of agents first to first + count - 1."""
