"""Attacks: what Byzantine agents send. Functions of what the attacker may know, one message for each victim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from mpi_resmtl.registry import Registry

ATTACKS: Registry[Attack] = Registry("attack", __name__)

Knowledge = Literal["nothing", "own", "heard", "victim", "all"]
"""What an attack may know, each level with those before it but for `heard`:
own: its own agent's intermediate, trained honestly; heard: what its agent heard in the last iteration; victim: the
intermediates, previous models and, if it asks for them, samples of the agents it speaks to; all: those of every normal
agent.
"""


class Sampled(Protocol):
    """How losses of models are computed on the samples of strangers: flat rows of S numbers, as a task reveals them."""

    def loss_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """Loss of models (m, P) on samples (m, S), row by row: float64 (m,)."""

    def gradient_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """Gradient of that loss (m, P)."""

    def regression_at(self, revealed: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """u (m, P) and y (m,) where the loss of m is (y - u'm)^2; None for other losses."""


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
    """(M,) their victims; victims may be Byzantine themselves, and then what they are sent does not matter."""
    first_agent: int
    """The rank's first agent."""
    count: int
    """Number of the rank's agents."""
    first: int
    """Number of such edges on lower ranks."""
    total: int
    """Number of such edges in the whole graph."""
    edge: np.ndarray
    """(E, 2) source, target of the whole graph, sorted by (target, source); empty where `nothing` or `own` is known."""
    iterations: int
    forgetting_factor: float
    """nu"""
    initial_accumulated_loss: float
    """phi_0"""
    sampled: Sampled | None
    """The task's losses on strangers' samples; None where the task cannot tell."""


class Known(NamedTuple):
    """What attackers know in one iteration; what the attack does not declare is None."""

    iteration: int
    """From 0."""
    own: np.ndarray | None = None
    """(a, P) intermediates of the rank's attackers, those in `Stage.source` in ascending order, trained honestly and
    alone."""
    heard: np.ndarray | None = None
    """(H, P) messages of the last iteration into the rank's attackers, on the edges `Stage.edge` has into them, sorted
    by (target, source), the attackers' own edges left out; zeros in iteration 0."""
    intermediate: np.ndarray | None = None
    """(n, P) psi_k of every normal agent, or of the rank's victims; rows of all others are 0."""
    previous: np.ndarray | None = None
    """(n, P) theta_k,i-1 likewise."""
    revealed: np.ndarray | None = None
    """(n, S) present samples likewise, for `Stage.sampled`."""


Messages = Callable[[Known], "np.ndarray | tuple[np.ndarray, np.ndarray]"]
"""What is known -> messages (M, P) of the models' dtype, one for each edge attackers speak on, in the stage's order; of
an attack that `omits` also which are sent: (M,) bool. It is called in every iteration; one that remembers has a
`Remembered` as its `state`, forgets it when iterations start anew, and goes on from it when it is put back."""


class Remembered(dict[str, np.ndarray]):
    """What an attack remembers: arrays by name, each about the edges that a rank's attackers speak or hear on.

    `laid` says how they are laid over edges, so that they can be kept for the whole graph and given back to any number
    of ranks. An array that is not named there is the same on every rank.
    """

    def __init__(self, **laid: Laid):
        super().__init__()
        self._laid = laid

    def kept(self) -> dict[str, dict[str, np.ndarray]]:
        """The arrays with a row for each of the edges that attackers speak on or hear on, or as they are.

        "spoken": (M, ...); "overheard": (H, ...); "alike".
        """
        found: dict[str, dict[str, np.ndarray]] = {"spoken": {}, "overheard": {}, "alike": {}}
        for name, values in self.items():
            laid = self._laid.get(name, _ALIKE)
            found[laid.by][name] = values if laid is _ALIKE else laid.spread(values)
        return found

    def put_back(self, kept: dict[str, dict[str, np.ndarray]]) -> None:
        """Remember what `kept` gave, on whatever ranks: the rows of this rank's edges."""
        self.clear()
        for by, arrays in kept.items():
            for name, values in arrays.items():
                self[name] = values if by == "alike" else self._laid[name].gathered(values)


@dataclass(frozen=True)
class Laid:
    """How an array lies over edges: `axis` counts edges, or sets of edges that have the same values."""

    by: Literal["spoken", "overheard", "alike"] = "spoken"
    """Edges from a rank's attackers (M,), or into them (H,), as in `Stage` and `Known`."""
    axis: int = 0
    of_edge: np.ndarray | None = None
    """(M,) the place of each edge along `axis`; None: its own."""
    places: int = 0
    """Along `axis`, with `of_edge`."""

    def spread(self, values: np.ndarray) -> np.ndarray:
        """A row for each edge."""
        rows = np.moveaxis(values, self.axis, 0)
        return rows if self.of_edge is None else rows.take(self.of_edge, axis=0)

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """The array whose rows by edge these are."""
        if self.of_edge is not None:
            every, rows = rows, np.zeros((self.places, *rows.shape[1:]), rows.dtype)
            rows[self.of_edge] = every
        return np.moveaxis(rows, 0, self.axis).copy()


_ALIKE = Laid("alike")


@dataclass(frozen=True)
class Attack:
    """A registered attack: `prepare(parameters, stage)` checks both and returns the messages by iteration."""

    prepare: Callable[[object, Stage], Messages]
    parameters: type
    knows: Knowledge
    """What it may know; less where its parameters have a `knows` of their own."""
    samples: bool
    """Whether it needs victims' samples; a task that cannot reveal them is refused at start-up."""
    omits: bool
    """Whether it may send nothing."""
    mislabels: bool
    """Whether its agents train on labels C-1-y."""

    def knowledge(self, parameters: object) -> Knowledge:
        """What it knows when its parameters are these."""
        return getattr(parameters, "knows", self.knows)

    @property
    def __doc__(self) -> str:
        return self.prepare.__doc__


def attack(
    name: str,
    parameters: type,
    knows: Knowledge,
    samples: bool = False,
    omits: bool = False,
    mislabels: bool = False,
) -> Callable:
    """Decorator: register a function as the attack `name`; arguments as in `Attack`."""

    def register(prepare: Callable) -> Callable:
        ATTACKS.add(name, Attack(prepare, parameters, knows, samples, omits, mislabels))
        return prepare

    return register
