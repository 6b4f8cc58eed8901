"""Classifiers: agents with labelled batches, cross-entropy, SGD or Adam; the network itself is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mpi_resmtl.neighbourhoods import Neighbourhoods

Optimizer = Literal["sgd", "adam"]


class Network(Protocol):
    """A classifier as a function of flat parameters, in the order of PyTorch's `parameters()`.

    What it finds of one agent must not depend on which others are on the rank: same shapes, one thread.
    """

    parameters: int
    """P"""
    tensors: tuple[int, ...]
    """Sizes of its tensors."""

    def gradients(self, models: np.ndarray, x: Sequence, y: Sequence, active: np.ndarray) -> np.ndarray:
        """Gradients (A, P) of the mean cross-entropy of models (A, P) on batches x[k] (B, d), y[k] (B,).

        Rows of agents that are not `active` (A,) are 0.
        """

    def losses(self, models: np.ndarray, x: Sequence, y: Sequence) -> np.ndarray:
        """Mean cross-entropy of each agent's model (A, P) on its own batch: float64 (A,)."""

    def judge(self, rows: np.ndarray, neighbourhoods: Neighbourhoods, x: Sequence, y: Sequence) -> np.ndarray:
        """Mean cross-entropy of each message, a row of `rows` (R, P), on its target's batch: float64 (E,)."""

    def evaluate(self, model: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of a model (P,) on data x (N, d), y (N,)."""


@dataclass(frozen=True)
class Samples:
    """A block of batches: x[i][k] float32 (B, d) and y[i][k] int64 (B,) of iteration i and agent k."""

    x: Sequence
    y: Sequence
    active: np.ndarray
    """(b, A) bool: whether the agent takes its gradient step."""


@dataclass(frozen=True)
class Holdings:
    """An agent's data: train_x float32 (N, d), train_y int64 (N,), and the same to test on."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


EPOCH_MEASURES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class ClassifierTask:
    """Agents that learn the parameters of one network each; `draw(block)` gives their batches."""

    dtype = np.dtype(np.float32)
    measures = ("loss",)
    gathers = False
    epoch_measures = EPOCH_MEASURES
    keeps_intermediates = False

    def __init__(
        self,
        network: Network,
        draw: Callable[[int], Samples],
        length: int,
        initial: np.ndarray,
        step_size: float,
        optimizer: Optimizer,
        epoch: int = 0,
        holdings: Sequence[Holdings] = (),
        train_rows_measured: int | None = None,
    ):
        """`initial` (A, P) float32; with `epoch` > 0 iterations in an epoch, `holdings` are measured after each."""
        self.parameters, self.tensors = network.parameters, network.tensors
        self.length, self.epoch = length, epoch
        self._network, self._draw, self._initial = network, draw, initial
        self._step_size, self._adam = np.float32(step_size), optimizer == "adam"
        self._holdings, self._train_rows_measured = holdings, train_rows_measured

    def start(self) -> np.ndarray:
        """Initial models: float32 (A, P); the optimiser's moments begin anew."""
        if self._adam:
            self._optimizer = Adam(self._initial.shape, float(self._step_size))
        return self._initial.copy()

    def samples(self, block: int) -> Samples:
        """The batches of iterations block * length and on."""
        return self._draw(block)

    def adapt(self, samples: Samples, i: int, theta: np.ndarray, psi: np.ndarray) -> None:
        """psi <- theta after the optimiser's step, for the agents that are active."""
        gradients = self._network.gradients(theta, samples.x[i], samples.y[i], samples.active[i])
        if self._adam:
            psi[...] = theta
            for k in np.flatnonzero(samples.active[i]):
                self._optimizer.step(k, psi[k], gradients[k])
        else:
            np.multiply(gradients, -self._step_size, out=psi)
            psi += theta

    def lookahead(self, samples: Samples, i: int, psi: np.ndarray) -> np.ndarray:
        """psi - mu grad l(psi; sample): (A, P), whatever the optimiser."""
        everyone = np.ones(len(psi), bool)
        return psi - self._step_size * self._network.gradients(psi, samples.x[i], samples.y[i], everyone)

    def judge(self, samples: Samples, i: int, neighbourhoods: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each message on its target's batch: float64 (E,)."""
        return self._network.judge(messages, neighbourhoods, samples.x[i], samples.y[i])

    def measure(self, samples: Samples, psi: np.ndarray | None, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Streaming loss (b, A) of the combined models (b, A, P) on the agents' batches."""
        pairs = enumerate(theta)
        return {"loss": np.stack([self._network.losses(m, samples.x[i], samples.y[i]) for i, m in pairs])}

    def evaluate(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Loss and accuracy of each model (A, P) on its agent's training (or their first rows) and test data: (A,)."""
        some = slice(self._train_rows_measured)
        train = [self._network.evaluate(m, h.train_x[some], h.train_y[some]) for m, h in self._with_data(theta)]
        test = [self._network.evaluate(m, h.test_x, h.test_y) for m, h in self._with_data(theta)]
        columns = np.concatenate([np.array(train), np.array(test)], axis=1).T
        return dict(zip(EPOCH_MEASURES, columns, strict=True))

    def _with_data(self, theta: np.ndarray):
        return zip(theta, self._holdings, strict=True)


class Adam:
    """Adam with PyTorch's defaults (Kingma and Ba 2015): one row of moments an agent, and a step count of its own."""

    def __init__(self, shape: tuple[int, int], step_size: float, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self._mean = np.zeros(shape, np.float32)
        self._square = np.zeros(shape, np.float32)
        self._steps = np.zeros(shape[0], np.int64)
        self._step_size, self._beta1, self._beta2, self._epsilon = step_size, beta1, beta2, epsilon

    def step(self, k: int, model: np.ndarray, gradient: np.ndarray) -> None:
        """One step of agent k's model (P,), in place; its moments move on."""
        self._steps[k] += 1
        mean, square, t = self._mean[k], self._square[k], int(self._steps[k])
        mean += np.float32(1 - self._beta1) * (gradient - mean)
        square *= np.float32(self._beta2)
        square += np.float32(1 - self._beta2) * (gradient * gradient)
        root = np.sqrt(square)
        root *= np.float32(1 / (1 - self._beta2**t) ** 0.5)
        root += np.float32(self._epsilon)
        model -= np.float32(self._step_size / (1 - self._beta1**t)) * (mean / root)


class Shuffled:
    """An endless sequence of an agent's rows: all of them in a random order, then all in another, and so on."""

    def __init__(self, rows: int, random: Callable[[int], np.random.Generator]):
        """`random(pass)` gives the generator of a pass over the rows."""
        self._rows, self._random = rows, random
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, iteration: int, size: int) -> np.ndarray:
        """Rows (size,) of iteration (from 0)."""
        places = np.arange(iteration * size, (iteration + 1) * size)
        first = int(places[0]) // self._rows
        for p in range(first, int(places[-1]) // self._rows + 1):
            if p not in self._orders:
                self._orders = {q: order for q, order in self._orders.items() if q >= first}
                self._orders[p] = self._random(p).permutation(self._rows)
        return np.array([self._orders[p // self._rows][p % self._rows] for p in places.tolist()])
