"""The digit network: three convolutions (3x3, padding 1, each ReLU and 2x2 max pool) and two linear layers.

1 -> 32 -> 64 -> 64 channels, then 576 -> 128 (ReLU) -> 10: 130,890 parameters in PyTorch's order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from mpi_resmtl.neighbourhoods import Neighbourhoods

_EVALUATED_AT_ONCE = 200
_SHAPES = (
    (32, 1, 3, 3), (32,),
    (64, 32, 3, 3), (64,),
    (64, 64, 3, 3), (64,),
    (128, 576), (128,),
    (10, 128), (10,),
)  # fmt: skip


class DigitCNN:
    """The network as a function of a flat row, of which torch's tensors are views."""

    inputs, classes = 28 * 28, 10
    lends = True
    tensors = tuple(int(np.prod(shape)) for shape in _SHAPES)
    parameters = sum(int(np.prod(shape)) for shape in _SHAPES)
    memory = 500 << 20
    """Bytes that PyTorch takes."""

    def __init__(self):
        import torch

        self._torch = torch
        # Rows that are heard are read-only; a network only reads what it judges.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)

    def initial(self, uniform: np.ndarray) -> np.ndarray:
        """PyTorch's default initial values, U(-1/sqrt(fan in), 1/sqrt(fan in)), from U[0, 1) (A, P): float32 (A, P)."""
        fan_in = [int(np.prod(shape[1:])) for shape in _SHAPES[::2] for _ in range(2)]
        bound = np.repeat(np.array(fan_in) ** -0.5, self.tensors)
        return (bound * (2.0 * uniform - 1.0)).astype(np.float32)

    def gradients(self, models: np.ndarray, x: Sequence, y: Sequence, active: np.ndarray) -> np.ndarray:
        """Gradients (A, P) of the mean cross-entropy on batches x[k] (B, 784), y[k] (B,); 0 where not active."""
        torch, gradients = self._torch, np.zeros_like(models)
        for k in np.flatnonzero(active):
            parameters = [view.requires_grad_() for view in self._views(models[k])]
            loss = self._loss(parameters, *self._batch(x[k], y[k]))
            found = torch.autograd.grad(loss, parameters)
            np.concatenate([gradient.numpy().reshape(-1) for gradient in found], out=gradients[k])
        return gradients

    def losses(self, models: np.ndarray, x: Sequence, y: Sequence) -> np.ndarray:
        """Mean cross-entropy of each agent's model (A, P) on its own batch: float64 (A,)."""
        with self._torch.inference_mode():
            return np.array([self._one_loss(m, self._batch(x[k], y[k])) for k, m in enumerate(models)])

    def judge(self, rows: np.ndarray, neighbourhoods: Neighbourhoods, x: Sequence, y: Sequence) -> np.ndarray:
        """Mean cross-entropy of each message on its target's batch: float64 (E,)."""
        loss = np.empty(len(neighbourhoods.row))
        for k, edges in neighbourhoods.by_agent():
            loss[edges] = self.judge_some(rows, neighbourhoods.row[edges], x[k], y[k])
        return loss

    def judge_some(self, rows: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of `which` (m,) rows on one batch: float64 (m,)."""
        with self._torch.inference_mode():
            batch = self._batch(x, y)
            return np.array([self._one_loss(rows[row], batch) for row in which])

    def evaluate(self, model: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of a model (P,) on data x (N, 784), y (N,)."""
        torch, cross_entropy = self._torch, self._torch.nn.functional.cross_entropy
        views, total, right = self._views(model), 0.0, 0
        with torch.inference_mode():
            for start in range(0, len(x), _EVALUATED_AT_ONCE):
                part = slice(start, start + _EVALUATED_AT_ONCE)
                images, labels = self._batch(x[part], y[part])
                logits = self._logits(views, images)
                total += float(cross_entropy(logits, labels, reduction="sum"))
                right += int((logits.argmax(dim=1) == labels).sum())
        return total / len(x), right / len(x)

    def _one_loss(self, model: np.ndarray, batch: tuple) -> float:
        return float(self._loss(self._views(model), *batch))

    def _views(self, model: np.ndarray) -> list:
        flat, views, place = self._torch.from_numpy(model), [], 0
        for shape in _SHAPES:
            size = int(np.prod(shape))
            views.append(flat[place : place + size].view(shape))
            place += size
        return views

    def _batch(self, x: np.ndarray, y: np.ndarray) -> tuple:
        """Images as (B, 1, 28, 28) whose strides are those of channels last, and labels."""
        return self._torch.from_numpy(x).view(-1, 28, 28, 1).permute(0, 3, 1, 2), self._torch.from_numpy(y)

    def _loss(self, parameters: list, images, labels):
        return self._torch.nn.functional.cross_entropy(self._logits(parameters, images), labels)

    def _logits(self, parameters: list, images):
        """Pooling before ReLU gives the same numbers with a quarter of the work; channels last halve the time."""
        functional, last = self._torch.nn.functional, self._torch.channels_last
        for layer in range(0, 6, 2):
            weight = parameters[layer].contiguous(memory_format=last)
            images = functional.conv2d(images, weight, parameters[layer + 1], padding=1)
            images = functional.relu(functional.max_pool2d(images, 2))
        hidden = functional.relu(functional.linear(images.flatten(1), parameters[6], parameters[7]))
        return functional.linear(hidden, parameters[8], parameters[9])
