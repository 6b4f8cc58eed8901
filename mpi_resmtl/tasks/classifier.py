"""Classifiers: agents with labelled batches, cross-entropy, SGD or Adam; the network itself is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.streams import generator
from mpi_resmtl.tasks.blocks import Blocks

Optimizer = Literal["sgd", "adam"]


class Network(Protocol):
    """A classifier as a function of flat parameters, in the order of PyTorch's `parameters()`.

    What it finds of one agent must not depend on which others are on the rank: same shapes, one thread.
    """

    inputs: int
    """d"""
    classes: int
    """C"""
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

    lends: bool
    """Whether it has `judge_some`, which finds what `judge` finds, to the bit."""

    def judge_some(self, rows: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of `which` (m,) of the rows (R, P) on one batch x (B, d), y (B,): float64 (m,)."""

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

    def hold_back(self, share: float) -> tuple[Holdings, tuple[np.ndarray, np.ndarray]]:
        """What is left when the last `share` of the training rows, one at least, is taken away; x and y of those."""
        left = len(self.train_y) - max(1, round(share * len(self.train_y)))
        kept = Holdings(self.train_x[:left], self.train_y[:left], self.test_x, self.test_y)
        return kept, (self.train_x[left:], self.train_y[left:])


EPOCH_MEASURES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class ClassifierTask:
    """Agents that learn the parameters of one network each; `draw(block)` gives their batches."""

    dtype = np.dtype(np.float32)
    measures = ("loss",)
    gathers = False
    epoch_measures = EPOCH_MEASURES
    keeps_intermediates = False
    labelled = True

    def __init__(
        self,
        network: Network,
        draw: Callable[[int], Samples],
        length: int,
        initial: np.ndarray,
        step_size: float,
        optimizer: Optimizer,
        batch: int,
        epoch: int = 0,
        holdings: Sequence[Holdings] = (),
        train_rows_measured: int | None = None,
        draw_fresh: Callable[[int], Samples] | None = None,
    ):
        """`initial` (A, P) float32; with `epoch` > 0 iterations in an epoch, `holdings` are measured after each.

        `batch` rows in the largest sample of any agent of the study. `draw_fresh(block)` gives the batches that nobody
        trained on; None where nothing is held back.
        """
        self.parameters, self.tensors = network.parameters, network.tensors
        self.length, self.epoch, self.batch = length, epoch, batch
        self.step_size, self._adam = step_size, optimizer == "adam"
        self.reveals = batch * (network.inputs + 1)
        self.inputs, self.lends = network.inputs, network.lends
        self._network, self._initial = network, initial
        self._blocks = Blocks(draw)
        self._fresh_blocks = None if draw_fresh is None else Blocks(draw_fresh)
        self._holdings, self._train_rows_measured = holdings, train_rows_measured
        self._mislabelled = np.zeros(len(initial), bool)

    def start(self) -> np.ndarray:
        """Initial models: float32 (A, P); the optimiser's moments begin anew."""
        if self._adam:
            self._optimizer = Adam(self._initial.shape, self.step_size)
        return self._initial.copy()

    def state(self) -> dict[str, np.ndarray]:
        """Moments (A, P) float32 and steps (A,) int64 of Adam."""
        return self._optimizer.state() if self._adam else {}

    def resume(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave, after `start`."""
        if self._adam:
            self._optimizer.resume(**state)

    def samples(self, block: int) -> Samples:
        """The batches of iterations block * length and on."""
        return self._blocks[block]

    def fresh(self, block: int) -> Samples | None:
        """Batches likewise that nobody trained on; None where nothing is held back."""
        return None if self._fresh_blocks is None else self._fresh_blocks[block]

    def mislabel(self, agents: np.ndarray) -> None:
        """From now on these agents, rows of the rank's (m,), train on labels C-1-y, and no others do."""
        self._mislabelled[:] = False
        self._mislabelled[agents] = True

    def adapt(self, samples: Samples, i: int, theta: np.ndarray, psi: np.ndarray) -> None:
        """psi <- theta after the optimiser's step, for the agents that are active."""
        labels = samples.y[i]
        if self._mislabelled.any():
            flipped = zip(labels, self._mislabelled.tolist(), strict=True)
            labels = [self._network.classes - 1 - y if wrong else y for y, wrong in flipped]
            if not isinstance(samples.y[i], list):
                labels = np.stack(labels)
        gradients = self._network.gradients(theta, samples.x[i], labels, samples.active[i])
        if self._adam:
            psi[...] = theta
            for k in np.flatnonzero(samples.active[i]):
                self._optimizer.step(k, psi[k], gradients[k])
        else:
            np.multiply(gradients, np.float32(-self.step_size), out=psi)
            psi += theta

    def lookahead(self, samples: Samples, i: int, psi: np.ndarray) -> np.ndarray:
        """psi - mu grad l(psi; sample): (A, P), whatever the optimiser."""
        everyone = np.ones(len(psi), bool)
        return psi - np.float32(self.step_size) * self._network.gradients(psi, samples.x[i], samples.y[i], everyone)

    def judge(self, samples: Samples, i: int, neighbourhoods: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each message on its target's batch: float64 (E,)."""
        return self._network.judge(messages, neighbourhoods, samples.x[i], samples.y[i])

    def judge_some(self, rows: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """What `judge` finds of `which` (m,) of the rows (R, P) on one agent's batch: float64 (m,)."""
        return self._network.judge_some(rows, which, x, y)

    def ahead(self, iteration: int) -> float:
        """Inputs that pass forward through the agents' networks from an iteration's judging to the next one's.

        One's own batch for the streaming loss, an epoch's measures, and three times the next batch of agents that take
        a gradient step then.
        """
        block, i = divmod(iteration, self.length)
        passes = sum(len(y) for y in self._blocks[block].y[i])
        if self.epoch and (iteration + 1) % self.epoch == 0:
            most = self._train_rows_measured
            passes += sum(len(h.train_y[:most]) + len(h.test_y) for h in self._holdings)
        block, i = divmod(iteration + 1, self.length)
        later = self._blocks[block]
        if i < len(later.y):
            active = later.active[i].tolist()
            passes += 3 * sum(len(y) for y, steps in zip(later.y[i], active, strict=True) if steps)
        return float(passes)

    def losses(self, samples: Samples, theta: np.ndarray) -> np.ndarray:
        """Streaming loss (b, A) of models (b, A, P) on the agents' batches."""
        return np.stack([self.own_losses(samples, i, models) for i, models in enumerate(theta)])

    def own_losses(self, samples: Samples, i: int, models: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of a model an agent (A, P) on its batch: float64 (A,)."""
        return self._network.losses(models, samples.x[i], samples.y[i])

    def reveal(self, samples: Samples, i: int) -> np.ndarray:
        """Each agent's labels, -1 where its batch has fewer rows than the largest, and inputs: float32 (A, S)."""
        revealed = np.zeros((len(samples.y[i]), self.reveals), np.float32)
        revealed[:, : self.batch] = -1.0
        for row, x, y in zip(revealed, samples.x[i], samples.y[i], strict=True):
            row[: len(y)] = y
            row[self.batch : self.batch + x.size] = x.reshape(-1)
        return revealed

    def loss_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of models (m, P) on revealed batches (m, S), row by row: float64 (m,)."""
        found = [self._network.losses(model[None], *batch) for model, batch in self._with_batches(revealed, models)]
        return np.concatenate(found) if found else np.zeros(0)

    def gradient_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """Gradient of that loss: float32 (m, P)."""
        one, gradients = np.ones(1, bool), np.empty_like(models)
        for k, (model, batch) in enumerate(self._with_batches(revealed, models)):
            gradients[k] = self._network.gradients(model[None], *batch, one)[0]
        return gradients

    def regression_at(self, revealed: np.ndarray) -> None:
        """None: the loss is a cross-entropy."""
        return

    def _with_batches(self, revealed: np.ndarray, models: np.ndarray):
        """Each model with the batch that is revealed beside it, x (1, B, d) and y (1, B)."""
        for row, model in zip(revealed, models, strict=True):
            rows = int(np.count_nonzero(row[: self.batch] >= 0.0))
            y = row[:rows].astype(np.int64)
            x = row[self.batch : self.batch + rows * self._network.inputs].reshape(1, rows, self._network.inputs)
            yield model, (x, y[None])

    def measure(self, samples: Samples, psi: np.ndarray | None, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Streaming loss (b, A) of the combined models (b, A, P) on the agents' batches."""
        return {"loss": self.losses(samples, theta)}

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

    def state(self) -> dict[str, np.ndarray]:
        """First and second moments (A, P) and steps taken (A,)."""
        return {"mean": self._mean, "square": self._square, "steps": self._steps}

    def resume(self, mean: np.ndarray, square: np.ndarray, steps: np.ndarray) -> None:
        """Go on from what `state` gave."""
        self._mean[:], self._square[:], self._steps[:] = mean, square, steps

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


class Batches:
    """Batches of several agents' rows, each agent's in an endless shuffled sequence of its own."""

    def __init__(self, data: Sequence[tuple[np.ndarray, np.ndarray]], seed: int, purpose: str, first: int):
        """`data` x (N, d) and y (N,) of agents `first` and on; passes are keyed by (seed, purpose, agent, pass)."""
        self._data = data
        self._shuffled = [
            Shuffled(len(y), lambda p, k=k: generator(seed, f"{purpose} {k} {p}"))
            for k, (_, y) in enumerate(data, first)
        ]

    def rows(self, iteration: int, k: int, size: int) -> np.ndarray:
        """Which rows (size,) the kth agent sees in an iteration (from 0)."""
        return self._shuffled[k].batch(iteration, size)

    def take(self, iteration: int, k: int, size: int, x: np.ndarray, y: np.ndarray) -> None:
        """Copy them into x (size, d) and y (size,)."""
        rows = self.rows(iteration, k, size)
        self._data[k][0].take(rows, axis=0, out=x, mode="clip")
        self._data[k][1].take(rows, out=y, mode="clip")
