"""Seconds by phase of an iteration."""

from time import perf_counter

PHASES = ("adapt", "attack", "exchange", "evaluate", "combine", "measure", "record")


class Stopwatch:
    """Time since the last lap goes to the phase that the next lap names; phases add up to all time."""

    def __init__(self):
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as `phase`."""
        now = perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def take(self) -> list[float]:
        """Seconds of each phase, in the order of PHASES, since the last take."""
        taken = [self.seconds[phase] for phase in PHASES]
        for phase in PHASES:
            self.seconds[phase] = 0.0
        return taken
