"""The linear classifier d -> C in PyTorch's order: weight (C, d), then bias (C,)."""

from __future__ import annotations

import numpy as np

from mpi_resmtl.neighbourhoods import Neighbourhoods


class LinearClassifier:
    """Softmax regression on flat float32 parameters.

    The shapes of every product are those of one agent's batch and the messages that it hears, so results do not depend
    on who else is on the rank.
    """

    lends = False

    def __init__(self, inputs: int, classes: int):
        self.inputs, self.classes = inputs, classes
        self.tensors = (classes * inputs, classes)
        self.parameters = sum(self.tensors)

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

        An agent's messages are laid one below the other, so that one product (n C, d) by (d, B) takes them all. What
        the next agent hears from the same rows (on a complete graph all that normal agents say) is there already.
        """
        places = int(neighbourhoods.size.max())
        weight, heard = np.empty((places * self.classes, self.inputs), np.float32), np.full(places, -1)
        by_message = weight.reshape(places, -1)
        logits = np.empty((len(neighbourhoods.row), self.classes, x.shape[1]), np.float32)
        for k, edges in neighbourhoods.by_agent():
            row = neighbourhoods.row[edges]
            new = np.flatnonzero(heard[: len(row)] != row)
            by_message[new] = rows[row[new], : -self.classes]
            heard[new] = row[new]
            stacked = len(row) * self.classes
            np.matmul(weight[:stacked], x[k].T, out=logits[edges].reshape(stacked, -1))
        logits += rows[neighbourhoods.row, -self.classes :, None]
        return self._cross_entropy(logits, y[neighbourhoods.target])

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
