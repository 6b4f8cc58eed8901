"""Random streams keyed by (seed, purpose, agent), never by rank.

A stream is one Philox counter sequence whose key comes from (seed, purpose). Every number in it has a fixed place:
blocks of iterations follow one another, inside a block the items (agents, or edges), inside an item its iterations.
A rank seeks to the places of its own items, so results do not depend on the number of ranks, and the iteration
number is all the state there is.
"""

from __future__ import annotations

import numpy as np

from mpi_resmtl import loops

_WORDS_A_COUNTER = 4


def block_length(items: int, width: int, words: int = 2**14, longest: int = 1024) -> int:
    """Iterations in a block of `words` numbers at most: a power of two up to `longest`, set by the experiment alone.

    The default keeps what is computed from a block in the cache.
    """
    fitting = max(1, words // max(1, items * width))
    return min(longest, 1 << (fitting.bit_length() - 1))


def recorded_block(agents: int) -> int:
    """Iterations whose records are written at a time: a multiple of any other block's."""
    return block_length(agents, 1, words=2**20, longest=4096)


class Stream:
    """`width` numbers an iteration for each of `items` items, of which this rank uses `count` from `first` on.

    Bits are those of `Philox.random_raw`, which numpy keeps stable between releases (NEP 19).
    """

    def __init__(self, seed: int, purpose: str, items: int, width: int, first: int = 0, count: int | None = None):
        sequence = np.random.SeedSequence(entropy=seed, spawn_key=tuple(purpose.encode()))
        self._key = sequence.generate_state(2, np.uint64)
        self._items, self._width, self._first = items, width, first
        self._count = items - first if count is None else count
        self.length = block_length(items, width)

    def uniform(self, block: int) -> np.ndarray:
        """Independent U[0, 1): float64 (length, count, width)."""
        return self._by_iteration(self._uniform(block, self._width), self._width)

    def uniform_single(self, block: int) -> np.ndarray:
        """Independent U[0, 1) in single precision, two from a word: float32 (length, count, width)."""
        words = -(-self.length * self._width // 2)
        halves = self._words(block, words).view(np.uint32)
        single = (halves >> np.uint32(8)).astype(np.float32)
        single *= np.float32(2.0**-24)
        return self._by_iteration(single, self._width)

    def normal(self, block: int) -> np.ndarray:
        """Independent N(0, 1): float64 (length, count, width)."""
        return self._by_iteration(self._normal(block), self._width)

    def normal_by_component(self, block: int) -> np.ndarray:
        """The same numbers as (length, width, count)."""
        return np.ascontiguousarray(self._normal(block).T).reshape(self.length, self._width, self._count)

    def _normal(self, block: int) -> np.ndarray:
        """A block agent by agent, two from two words: float64 (count, length * width)."""
        words = 2 * self.length * (-(-self._width // 2))
        return loops.normal(np.ascontiguousarray(self._words(block, words)[:, :words]), self.length * self._width)

    def _uniform(self, block: int, width: int) -> np.ndarray:
        """A block of `width` numbers an iteration, agent by agent: float64 (count, length * width)."""
        used = self.length * width
        raw = self._words(block, used)
        raw >>= np.uint64(11)
        # Signed: below 2^53 it is the same, and processors convert it faster.
        return raw.view(np.int64)[:, :used] * 2.0**-53

    def _words(self, block: int, used: int) -> np.ndarray:
        """Raw bits of a block, agent by agent: uint64 (count, `used` or a few more)."""
        counters = -(-used // _WORDS_A_COUNTER)
        place = (block * self._items + self._first) * counters
        raw = loops.philox(self._key, place, self._count * counters)
        return raw.reshape(self._count, counters * _WORDS_A_COUNTER)

    def _by_iteration(self, numbers: np.ndarray, width: int) -> np.ndarray:
        """(count, length * width or more) -> contiguous (length, count, width)."""
        # An iteration's numbers as one element: numpy transposes few large elements faster than many small ones.
        together = numbers[:, : self.length * width].view(f"V{width * numbers.itemsize}")
        return np.ascontiguousarray(together.T).view(numbers.dtype).reshape(self.length, self._count, width)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A numpy generator for what is drawn once for all agents, alike on every rank (graph, attackers, places)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=tuple(purpose.encode()))))
