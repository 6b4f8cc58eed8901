"""Blocks of samples, each made once, and the same samples one iteration later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Generic, TypeVar

import numpy as np

Block = TypeVar("Block")


class Blocks(Generic[Block]):
    """Blocks by number. The last two are kept, so that looking one block ahead makes none of them twice."""

    def __init__(self, make: Callable[[int], Block]):
        self._make = make
        self._kept: dict[int, Block] = {}

    def __getitem__(self, block: int) -> Block:
        if block not in self._kept:
            made = self._make(block)
            self._kept = {number: kept for number, kept in self._kept.items() if number == block - 1} | {block: made}
        return self._kept[block]


def following(block: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Each element's successor: `block` (b, ...) without its first, and the first of the block `after` it (b', ...).

    Where nothing follows, b' = 0, the last is its own successor.
    """
    if len(block) == len(after) == 1:
        return after
    return np.concatenate([block[1:], after[:1] if len(after) else block[-1:]])


def later(samples: Any, start: int) -> Any:
    """The same samples, a dataclass whose every field has a block's iterations first, from iteration `start` on.

    None stays None.
    """
    if samples is None or start == 0:
        return samples
    return type(samples)(*(getattr(samples, field.name)[start:] for field in fields(samples)))
