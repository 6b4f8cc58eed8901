"""Seconds by phase of an iteration."""

from time import perf_counter

PHASES = ("adapt", "attack", "exchange", "evaluate", "combine", "measure", "record")
"""To keep models until their block is measured is part of "measure"; to keep and write what was found is "record"."""
_AFTER = {
    "adapt": "attack",
    "attack": "exchange",
    "exchange": "evaluate",
    "evaluate": "combine",
    "combine": "evaluate",
    "measure": "record",
    "record": "adapt",
}


class Stopwatch:
    """Time since the last lap goes to the phase that the next lap names; phases add up to all time."""

    def __init__(self):
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.last = perf_counter()
        """When the last lap was."""
        self.doing = "adapt"
        """What is being done now, for a watchdog: what mostly comes after the last lap, or what was put here since."""

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as `phase`."""
        now = perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now
        self.doing = _AFTER[phase]

    def take(self) -> list[float]:
        """Seconds of each phase, in the order of PHASES, since the last take."""
        taken = [self.seconds[phase] for phase in PHASES]
        for phase in PHASES:
            self.seconds[phase] = 0.0
        return taken
