"""The digit network: three convolutions (3x3, padding 1, each ReLU and 2x2 max pool) and two linear layers.

1 -> 32 -> 64 -> 64 channels, then 576 -> 128 (ReLU) -> 10: 130,890 parameters in PyTorch's order.
"""

from __future__ import annotations

import numpy as np

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
    parameters = sum(int(np.prod(shape)) for shape in _SHAPES)

    def __init__(self):
        import torch

        self._torch = torch

    def losses(self, models: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each model (L, P) on one batch x (B, 784), y (B,): float64 (L,)."""
        torch = self._torch
        images, labels = self._batch(x, y)
        with torch.inference_mode():
            return np.array([float(self._loss(self._views(model), images, labels)) for model in models])

    def gradient(self, model: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Gradient (P,) of the mean cross-entropy of a model (P,) on a batch."""
        torch = self._torch
        parameters = [view.requires_grad_() for view in self._views(model)]
        gradients = torch.autograd.grad(self._loss(parameters, *self._batch(x, y)), parameters)
        return np.concatenate([gradient.numpy().reshape(-1) for gradient in gradients])

    def _views(self, model: np.ndarray) -> list:
        flat, views, place = self._torch.from_numpy(model), [], 0
        for shape in _SHAPES:
            size = int(np.prod(shape))
            views.append(flat[place : place + size].view(shape))
            place += size
        return views

    def _batch(self, x: np.ndarray, y: np.ndarray) -> tuple:
        images = self._torch.from_numpy(x).view(-1, 1, 28, 28)
        return images.contiguous(memory_format=self._torch.channels_last), self._torch.from_numpy(y)

    def _loss(self, parameters: list, images, labels):
        functional = self._torch.nn.functional
        for layer in range(0, 6, 2):
            images = functional.conv2d(images, parameters[layer], parameters[layer + 1], padding=1)
            images = functional.relu(functional.max_pool2d(images, 2))
        hidden = functional.relu(functional.linear(images.flatten(1), parameters[6], parameters[7]))
        return functional.cross_entropy(functional.linear(hidden, parameters[8], parameters[9]), labels)
