"""Classifiers: agents with labelled batches, cross-entropy, SGD or Adam; the network itself is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mpi_resmtl.neighbourhoods import Neighbourhoods

Optimizer = Literal["sgd", "adam"]


class Network(Protocol):
    """A classifier as a function of flat parameters, in the order of PyTorch's `parameters()`."""

    parameters: int
    classes: int

    def losses(self, models: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each model (L, P) on one batch x (B, d), y (B,): float64 (L,)."""

    def gradient(self, model: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Gradient (P,) of the mean cross-entropy of a model (P,) on a batch."""


@dataclass(frozen=True)
class Samples:
    """A block of batches."""

    x: np.ndarray
    """(b, A, B, d) float32"""
    y: np.ndarray
    """(b, A, B) int64"""
    active: np.ndarray | None
    """(b, A) bool: whether the agent takes its gradient step; None: always."""


class ClassifierTask:
    """Agents that learn the parameters of one network each; `draw(block)` gives their batches."""

    dtype = np.dtype(np.float32)
    measures = ("loss",)
    keeps_intermediates = False

    def __init__(
        self,
        network: Network,
        draw: Callable[[int], Samples],
        length: int,
        initial: np.ndarray,
        step_size: float,
        optimizer: Optimizer,
    ):
        """`initial` (A, P) float32."""
        self.parameters, self.length = network.parameters, length
        self._network, self._draw, self._initial = network, draw, initial
        self._step_size, self._adam = step_size, optimizer == "adam"

    def start(self) -> np.ndarray:
        """Initial models: float32 (A, P); the optimiser's moments begin anew."""
        if self._adam:
            self._optimizer = Adam(self._initial.shape, self._step_size)
        return self._initial.copy()

    def samples(self, block: int) -> Samples:
        """The batches of iterations block * length and on."""
        return self._draw(block)

    def adapt(self, samples: Samples, i: int, theta: np.ndarray, psi: np.ndarray) -> None:
        """psi <- theta after the optimiser's step, for the agents that are active."""
        for k, model in enumerate(theta):
            if samples.active is not None and not samples.active[i, k]:
                psi[k] = model
                continue
            gradient = self._network.gradient(model, samples.x[i, k], samples.y[i, k])
            if self._adam:
                psi[k] = self._optimizer.step(k, model, gradient)
            else:
                psi[k] = model - np.float32(self._step_size) * gradient

    def lookahead(self, samples: Samples, i: int, psi: np.ndarray) -> np.ndarray:
        """psi - mu grad l(psi; sample): (A, P)."""
        ahead = psi.copy()
        for k, model in enumerate(psi):
            ahead[k] -= np.float32(self._step_size) * self._network.gradient(model, samples.x[i, k], samples.y[i, k])
        return ahead

    def judge(self, samples: Samples, i: int, neighbourhoods: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each message (E, P) on its target's batch: float64 (E,)."""
        loss = np.empty(len(messages))
        ends = neighbourhoods.start + neighbourhoods.size
        for start, end in zip(neighbourhoods.start, ends, strict=True):
            k = neighbourhoods.target[start]
            loss[start:end] = self._network.losses(messages[start:end], samples.x[i, k], samples.y[i, k])
        return loss

    def measure(self, samples: Samples, psi: np.ndarray | None, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Streaming loss (b, A) of the combined models (b, A, P) on the agents' batches."""
        loss = np.empty(theta.shape[:2])
        for i, models in enumerate(theta):
            for k, model in enumerate(models):
                loss[i, k] = self._network.losses(model[None], samples.x[i, k], samples.y[i, k])[0]
        return {"loss": loss}


class Adam:
    """Adam with PyTorch's defaults (Kingma and Ba 2015): one row of moments an agent, and a step count of its own."""

    def __init__(self, shape: tuple[int, int], step_size: float, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self._mean = np.zeros(shape, np.float32)
        self._square = np.zeros(shape, np.float32)
        self._steps = np.zeros(shape[0], np.int64)
        self._step_size, self._beta1, self._beta2, self._epsilon = step_size, beta1, beta2, epsilon

    def step(self, k: int, model: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The model (P,) of agent k after one step; its moments move on."""
        self._steps[k] += 1
        mean, square, t = self._mean[k], self._square[k], int(self._steps[k])
        mean += np.float32(1 - self._beta1) * (gradient - mean)
        square *= np.float32(self._beta2)
        square += np.float32(1 - self._beta2) * (gradient * gradient)
        root = np.sqrt(square)
        root *= np.float32(1 / (1 - self._beta2**t) ** 0.5)
        root += np.float32(self._epsilon)
        return model - np.float32(self._step_size / (1 - self._beta1**t)) * (mean / root)


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean cross-entropy over a batch: logits (..., B, C), labels (B,) -> float64 (...)."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits).sum(axis=-1))
    return (total - np.take_along_axis(logits, np.broadcast_to(y[:, None], (*logits.shape[:-1], 1)), -1)[..., 0]).mean(
        -1
    )
