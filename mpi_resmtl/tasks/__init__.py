"""Tasks: what agents learn. Models, samples, losses and measures of a rank's agents; no MPI, no result files."""

from __future__ import annotations

from collections.abc import Callable
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
    step_size: float
    """mu"""
    batch: int
    """Rows in the largest sample of any agent; 1 where a sample is one measurement."""
    labelled: bool
    """Whether samples have labels, which `mislabel` can change."""
    reveals: int
    """S, numbers in what `reveal` tells of an agent's sample, the same on every rank; 0: it cannot tell."""
    measures: tuple[str, ...]
    """Names of what `measure` gives."""
    gathers: bool
    """Whether `judge` takes a copy of the messages (E, P), for many agents at once, or all rows (R, P) as they lie."""
    lends: bool
    """Whether judging costs so much that ranks do it for one another (`lending`); then it has `inputs`, `judge_some`
    and `ahead` of `ClassifierTask` too."""
    epoch: int
    """Iterations after each of which `evaluate` is recorded; 0: never."""
    epoch_measures: tuple[str, ...]
    """Names of what `evaluate` gives."""
    keeps_intermediates: bool
    """Whether `measure` needs psi."""

    def start(self) -> np.ndarray:
        """Initial models (A, P); forgets all state of an earlier run (optimiser moments)."""

    def state(self) -> dict[str, np.ndarray]:
        """What else of an iteration the next depends on, by agent (A, ...): optimiser moments."""

    def resume(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave, after `start`."""

    def samples(self, block: int) -> Any:
        """The samples of iterations block * B and on."""

    def fresh(self, block: int) -> Any | None:
        """Samples likewise, of which the ith is one that nobody trained on when iteration i's messages are judged.

        Of streams the next iteration's, and of the last iteration of a recorded stream, after which there is nothing,
        its own sample again; of data sets batches of rows held back. None where nothing is held back.
        """

    def mislabel(self, agents: np.ndarray) -> None:
        """From now on these agents, rows of the rank's (m,), train on labels C-1-y in `adapt`, and no others do."""

    def adapt(self, samples: Any, i: int, theta: np.ndarray, psi: np.ndarray) -> None:
        """Local gradient step of all agents: psi <- theta - mu grad l(theta; sample i of the block)."""

    def lookahead(self, samples: Any, i: int, psi: np.ndarray) -> np.ndarray:
        """psi - mu grad l(psi; sample i of the block): (A, P)."""

    def judge(self, samples: Any, i: int, neighbourhoods: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        """Loss of each message on its target's sample: float64 (E,). Messages as `Neighbourhoods.gather` gives them."""

    def losses(self, samples: Any, theta: np.ndarray) -> np.ndarray:
        """Streaming loss of models (b, A, P) on the agents' samples of the block's first b iterations: (b, A)."""

    def own_losses(self, samples: Any, i: int, models: np.ndarray) -> np.ndarray:
        """What `judge` would find of one model an agent (A, P) as its own message: float64 (A,)."""

    def reveal(self, samples: Any, i: int) -> np.ndarray:
        """Each agent's sample i of the block as a flat row: floats (A, S)."""

    def loss_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """Loss of models (m, P) on revealed samples (m, S), row by row: float64 (m,)."""

    def gradient_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """Gradient of that loss: (m, P)."""

    def regression_at(self, revealed: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """u (m, P) and y (m,) where the loss of a model m is (y - u'm)^2; None for other losses."""

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
    data_note: str = ""
    """What is not as published in them."""
    position: np.ndarray | None = None
    target: np.ndarray | None = None
    edge: np.ndarray | None = None
    """(E, 2) where the task brings its own graph."""
    epoch: int = 0
    """Iterations in an epoch, of a study whose length is given in epochs."""
    length: int | None = None
    """Iterations after which the data end; None: never."""


@dataclass(frozen=True)
class Size:
    """How large a study is, in numbers that are known before anything is drawn or read; see `memory.needs`."""

    agents: int
    """n"""
    parameters: int
    """P"""
    itemsize: int
    """Bytes of a parameter."""
    block: int
    """Iterations whose samples are made at once."""
    sample: int
    """Bytes of an agent's sample."""
    gathers: bool
    """As `Task.gathers`."""
    data: int = 0
    """Bytes of an agent's data."""
    fixed: int = 0
    """Bytes that a rank takes however few agents it has: libraries, data that all ranks hold."""
    costs: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    """() -> (n,) what it costs each agent to judge one message, and (n,) what all else in an iteration costs, in the
    same unit; None: alike for all."""

    def work(self, edge: np.ndarray, byzantine: np.ndarray) -> np.ndarray | None:
        """(n,) what each agent has to do on a graph, edges (E, 2), byzantine (n,); None where it is alike for all."""
        if self.costs is None:
            return None
        judging, learning = self.costs()
        return learning + np.where(byzantine, 0, np.bincount(edge[:, 1], minlength=self.agents)) * judging


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
    def size(parameters: Any) -> Size:
        """How large it is; called on rank 0 before `scene`. Raises UserError."""

    @staticmethod
    def scene(parameters: Any, seed: int) -> Scene:
        """What is fixed about the agents; called on rank 0. Raises UserError."""

    @staticmethod
    def task(parameters: Any, graph: Graph, seed: int, first: int, count: int) -> Task:
        """The task of agents first to first + count - 1."""
