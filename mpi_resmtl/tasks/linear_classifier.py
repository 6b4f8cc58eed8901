"""The linear classifier d -> C in PyTorch's order: weight (C, d), then bias (C,)."""

from __future__ import annotations

import numpy as np

from mpi_resmtl.tasks.classifier import cross_entropy


class LinearClassifier:
    """Softmax regression on flat float32 parameters; sizes do not depend on who else is on the rank."""

    def __init__(self, inputs: int, classes: int):
        self.inputs, self.classes = inputs, classes
        self.parameters = classes * inputs + classes

    def losses(self, models: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each model (L, P) on one batch x (B, d), y (B,): float64 (L,)."""
        return cross_entropy(self._logits(models, x), y)

    def gradient(self, model: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(softmax - one hot)' x / B for the weight, its mean for the bias: (P,)."""
        logits = self._logits(model[None], x)[0]
        error = np.exp(logits - logits.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(len(y)), y] -= 1.0
        error /= len(y)
        return np.concatenate([(error.T @ x).reshape(-1), error.sum(axis=0)])

    def _logits(self, models: np.ndarray, x: np.ndarray) -> np.ndarray:
        weight = models[:, : -self.classes].reshape(len(models), self.classes, self.inputs)
        return np.matmul(x, weight.transpose(0, 2, 1)) + models[:, None, -self.classes :]
