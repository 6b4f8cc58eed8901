"""Regressions: an agent's sample is one measurement y of its model along u, and the loss of m is (y - u'm)^2."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from mpi_resmtl import loops
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.tasks.blocks import Blocks, following


@dataclass(frozen=True)
class Samples:
    """A block of samples."""

    signal: np.ndarray
    """(B, P + 1, A) the components of u, then y."""


class Regression:
    """What tasks share whose samples are (u, y), of a stream that has no end or is recorded."""

    dtype = np.dtype(np.float64)
    gathers = True
    lends = False
    epoch = 0
    epoch_measures = ()
    batch = 1
    labelled = False

    def __init__(self, length: int, initial: np.ndarray, step_size: float):
        """`initial` (A, P); `_make(block)` of the task gives its samples."""
        self.length, self.step_size = length, step_size
        self.parameters = initial.shape[1]
        self.tensors, self.reveals = (self.parameters,), self.parameters + 1
        self._initial, self._blocks = initial, Blocks(self._make)

    def start(self) -> np.ndarray:
        """Initial models: float64 (A, P)."""
        return self._initial.copy()

    def state(self) -> dict[str, np.ndarray]:
        """Nothing: models are all that steps depend on."""
        return {}

    def resume(self, state: dict[str, np.ndarray]) -> None:
        """Nothing to go on from."""

    def samples(self, block: int) -> Samples:
        """The samples of iterations block * B and on."""
        return self._blocks[block]

    def fresh(self, block: int) -> Samples:
        """The next iterations' samples; after the last of a recorded stream nothing comes, and it stands again."""
        own, after = self._blocks[block], self._blocks[block + 1]
        return type(own)(*(following(getattr(own, f.name), getattr(after, f.name)) for f in fields(own)))

    def mislabel(self, agents: np.ndarray) -> None:
        """Measurements have no labels: raises ValueError for any agent."""
        if len(agents):
            raise ValueError(f"{type(self).__name__} has no labels to change")

    def judge(self, samples: Samples, i: int, neighbourhoods: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        """(y_k - u_k'm)^2 for each message (E, P) on its target's sample."""
        return loops.squared_residuals(samples.signal[i], neighbourhoods.agents, neighbourhoods.start, messages)

    def losses(self, samples: Samples, theta: np.ndarray) -> np.ndarray:
        """(y_k - u_k'theta_k)^2 of models (b, A, P) on the samples of the block's first b iterations: (b, A)."""
        return loops.own_squared_residuals(samples.signal, theta)

    def own_losses(self, samples: Samples, i: int, models: np.ndarray) -> np.ndarray:
        """(y_k - u_k'm)^2 of a model an agent (A, P): (A,)."""
        return self.losses(Samples(samples.signal[i : i + 1]), models[None])[0]

    def reveal(self, samples: Samples, i: int) -> np.ndarray:
        """u and y of each agent: float64 (A, P + 1)."""
        return samples.signal[i].T.copy(order="C")

    def loss_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """(y - u'm)^2 of models (m, P) on samples (m, P + 1): (m,), however messages are judged."""
        residual = _residual(revealed, models)
        return residual * residual

    def gradient_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """-2 u (y - u'm): (m, P)."""
        return (-2.0 * _residual(revealed, models))[:, None] * revealed[:, :-1]

    def regression_at(self, revealed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """u (m, P) and y (m,)."""
        return revealed[:, :-1], revealed[:, -1]


def _residual(revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
    """y - u'm: (m,), by rows, so that one of them does not depend on how many there are."""
    return revealed[:, -1] - np.multiply(revealed[:, :-1], models, order="C").sum(axis=1)
