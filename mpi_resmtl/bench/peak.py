"""What a rank can multiply at best, to hold a network's arithmetic against."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

_SIDES = (768, 1024, 1536)
_TIMES = 4


def gemm_peak(comm: MPI.Comm) -> float:
    """Operations a second of this rank in float32 matrix products, while all ranks multiply at once; collective.

    A product of two N x N matrices counts 2 N^3. The fastest of several, N = 768 to 1536, by numpy's library and,
    where torch is loaded, by torch's; as many threads as the rank's libraries use.
    """
    best = 0.0
    for side in _SIDES:
        for product in _products(side):
            comm.Barrier()
            for _ in range(_TIMES):
                began = perf_counter()
                product()
                best = max(best, 2 * side**3 / (perf_counter() - began))
    return best


def _products(side: int) -> list[Callable[[], object]]:
    left, right = np.ones((2, side, side), np.float32)
    into = np.empty_like(left)
    products: list[Callable[[], object]] = [lambda: np.matmul(left, right, out=into)]
    torch = sys.modules.get("torch")
    if torch is not None:
        tensors = [torch.from_numpy(array) for array in (left, right, into)]
        products.append(lambda: torch.mm(tensors[0], tensors[1], out=tensors[2]))
    return products
