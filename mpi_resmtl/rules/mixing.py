"""What may be done to messages before a rule sees them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mpi_resmtl.rules.distances import pairwise_squares, shrunk_squares
from mpi_resmtl.rules.sums import mixed, smallest

_WORDS_A_COUNTER = 4
_PLACES = 16
"""Places whose random numbers stand side by side."""


def nnm(messages: np.ndarray, present: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Each message replaced by the mean of the n - b nearest it, itself included; empty places stay 0.

    (g, n, P), bool (g, n), intp (g,) -> (g, n, P). Of messages equally near, the first counts as nearer. Nearest
    neighbour mixing (Allouah et al. 2023). n^2 P.
    """
    g, n, _ = messages.shape
    squares = pairwise_squares(messages, present)
    far = np.isinf(squares) & present[:, :, None] & present[:, None]
    squares[:, np.arange(n), np.arange(n)] = -1.0
    whole = present.all()
    if not whole:
        squares[np.broadcast_to(~present[:, None], squares.shape)] = np.nan
    count = np.maximum(present.sum(axis=1) - b, 1)
    finer = np.where(far, shrunk_squares(messages, present), 0.0).reshape(g * n, n) if far.any() else None
    near = smallest(squares.reshape(g * n, n), count.repeat(n), finer).reshape(g, n, n)
    if not whole:
        near &= present[:, :, None]
        near &= present[:, None]
    return mixed(near / count[:, None, None], messages, present, present)


def bucketing(
    messages: np.ndarray, present: np.ndarray, agent: np.ndarray, iteration: int, seed: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random buckets of `size` messages averaged, the last of what is left over: (g, n, P) -> (g, ceil(n/size), P).

    The second result says which places of the first are filled, the first ones; the rest are 0. Each agent's
    permutation is drawn anew each iteration from a stream keyed by (seed, "bucketing", agent, iteration). Karimireddy,
    He, Jaggi 2022. (n^2/size) P.
    """
    g, n, _ = messages.shape
    words = _words(agent, iteration, n, seed)
    words[~present] = np.iinfo(np.uint64).max
    order = words.argsort(axis=1, kind="stable")
    count = present.sum(axis=1)
    position = np.arange(n)
    bucket = position // size
    members = np.clip(count[:, None] - bucket * size, 1, size)
    weight = np.zeros((g, -(-n // size), n))
    weight[np.arange(g)[:, None], bucket, order] = (position < count[:, None]) / members
    filled = np.arange(weight.shape[1]) * size < count[:, None]
    return mixed(weight, messages, filled, present), filled


@lru_cache(maxsize=8)
def _key(seed: int) -> np.ndarray:
    return np.random.SeedSequence(entropy=seed, spawn_key=tuple(b"bucketing")).generate_state(2, np.uint64)


def _words(agent: np.ndarray, iteration: int, places: int, seed: int) -> np.ndarray:
    """63 random bits for each agent and place, uint64 (g, places): each has its own place in one Philox sequence."""
    first = int(agent.min())
    span = int(agent.max()) - first + 1
    counters = _PLACES // _WORDS_A_COUNTER
    parts = []
    for part in range(-(-places // _PLACES)):
        counter = first * counters + (part << 64) + (iteration << 128)
        raw = np.random.Philox(key=_key(seed), counter=counter).random_raw(span * _PLACES)
        parts.append(raw.reshape(span, _PLACES).take(agent - first, axis=0))
    words = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return words[:, :places] >> np.uint64(1)
