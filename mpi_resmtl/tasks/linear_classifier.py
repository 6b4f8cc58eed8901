"""The linear classifier d -> C in PyTorch's order: weight (C, d), then bias (C,)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_resmtl.neighbourhoods import Neighbourhoods


class LinearClassifier:
    """Softmax regression on flat float32 parameters.

    Every product is one (C, d) by (d, B) for one model and one batch, however many are computed together, so results
    do not depend on who else is on the rank.
    """

    def __init__(self, inputs: int, classes: int):
        self.inputs, self.classes = inputs, classes
        self.tensors = (classes * inputs, classes)
        self.parameters = sum(self.tensors)
        self._shared: dict[Neighbourhoods, _Shared] = {}

    def gradients(self, models: np.ndarray, x: np.ndarray, y: np.ndarray, active: np.ndarray) -> np.ndarray:
        """(softmax - one hot)' x / B for the weight, its mean for the bias: (A, P); x (A, B, d), y (A, B)."""
        error = self._logits(models, x)
        error -= error.max(axis=1, keepdims=True)
        np.exp(error, out=error)
        error /= error.sum(axis=1, keepdims=True)
        agent, batch = np.ogrid[: len(y), : y.shape[1]]
        error[agent, y, batch] -= 1.0
        error *= active[:, None, None] / np.float32(y.shape[1])
        gradients = np.empty_like(models)
        np.matmul(error, x, out=self._weight(gradients))
        np.sum(error, axis=2, out=gradients[:, -self.classes :])
        return gradients

    def losses(self, models: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each agent's model (A, P) on its batch, x (A, B, d), y (A, B): float64 (A,)."""
        return self._cross_entropy(self._logits(models, x), y)

    def judge(self, rows: np.ndarray, neighbourhoods: Neighbourhoods, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each message on its target's batch: float64 (E,).

        Where all agents of the rank hear the same rows (the normal agents of a complete graph), these are multiplied
        with all batches where they lie; other rows, each victim's own, are gathered agent by agent.
        """
        loss = np.empty(len(neighbourhoods.row))
        if neighbourhoods not in self._shared:
            self._shared[neighbourhoods] = _shared_runs(neighbourhoods)
        shared = self._shared[neighbourhoods]
        hearing = x[neighbourhoods.agents]
        table = loss.reshape(len(hearing), -1) if shared.runs else None
        for row, column in shared.runs:
            logits = self._logits(rows[row][None], hearing[:, None])
            table[:, column] = self._cross_entropy(logits, y[neighbourhoods.agents][:, None])
        for k, edges in neighbourhoods.by_agent():
            left = edges if shared.left is None else edges.start + shared.left
            if shared.left is None or len(shared.left):
                logits = self._logits(rows.take(neighbourhoods.row[left], axis=0), x[k])
                loss[left] = self._cross_entropy(logits, y[k])
        return loss

    def evaluate(self, model: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of a model (P,) on data x (N, d), y (N,)."""
        logits = self._logits(model[None], x)
        accuracy = float((logits[0].argmax(axis=0) == y).mean())
        return float(self._cross_entropy(logits, y)[0]), accuracy

    def _weight(self, models: np.ndarray) -> np.ndarray:
        return models[..., : -self.classes].reshape(*models.shape[:-1], self.classes, self.inputs)

    def _logits(self, models: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(..., C, B) of models (..., P) and batches (..., B, d)."""
        logits = np.matmul(self._weight(models), np.swapaxes(x, -1, -2))
        logits += models[..., -self.classes :, None]
        return logits

    @staticmethod
    def _cross_entropy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean over the batch: logits (..., C, B), labels (..., B) -> float64 (...)."""
        classes = np.ascontiguousarray(np.moveaxis(logits, -2, 0))
        classes -= classes.max(axis=0)
        label = np.broadcast_to(y, classes.shape[1:])
        right = np.take_along_axis(classes, label[None], axis=0)[0]
        np.exp(classes, out=classes)
        return (np.log(classes.sum(axis=0)) - right).mean(axis=-1, dtype=np.float64)


@dataclass(frozen=True)
class _Shared:
    """How the edges of a rank's agents split into rows that all of them hear, and others."""

    runs: list[tuple[slice, slice]]
    """Rows that follow one another, and the places in each neighbourhood of who speaks there."""
    left: np.ndarray | None
    """Places in each neighbourhood of the others; None: all."""


def _shared_runs(neighbourhoods: Neighbourhoods) -> _Shared:
    agents, size = len(neighbourhoods.start), neighbourhoods.size
    if agents < 2 or (size != size[0]).any():
        return _Shared([], None)
    row, source = (a.reshape(agents, -1) for a in (neighbourhoods.row, neighbourhoods.source))
    if (source != source[0]).any():
        return _Shared([], None)
    same = (row == row[0]).all(axis=0)
    places = np.flatnonzero(same)
    breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(row[0][places]) != 1)) + 1
    runs = [
        (slice(int(row[0][run[0]]), int(row[0][run[-1]]) + 1), slice(int(run[0]), int(run[-1]) + 1))
        for run in np.split(places, breaks)
        if len(run)
    ]
    return _Shared(runs, np.flatnonzero(~same))
