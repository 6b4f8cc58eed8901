"""How far a run is: a bar on a terminal, a line now and then in a log; on rank 0 alone."""

from __future__ import annotations

import sys
from time import monotonic

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Progress of one rule; call it with each iteration (from 0) that is done."""

    def __init__(self, label: str, iterations: int):
        self._label, self._iterations = label, iterations
        self._began = self._said = monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=iterations, desc=label, unit="it", leave=False)

    def __call__(self, iteration: int) -> None:
        """Iteration (from 0) is done."""
        if self._bar is not None:
            self._bar.update()
        elif monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = monotonic()
            done, taken = iteration + 1, self._said - self._began
            left = taken / done * (self._iterations - done)
            print(f"{self._label}: {done}/{self._iterations} iterations, about {left:.0f} s left", flush=True)

    def end(self) -> None:
        """The rule is done."""
        if self._bar is not None:
            self._bar.close()
        print(f"{self._label}: {self._iterations} iterations in {monotonic() - self._began:.2f} s", flush=True)


def silent(iteration: int) -> None:
    """What other ranks call."""
