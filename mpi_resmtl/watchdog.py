"""Reports a rank that hangs, with the phase it hangs in, and ends the job."""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from types import FrameType

from mpi_resmtl.stopwatch import Stopwatch

STATUS = 124
"""Exit status of a job that a watchdog ends, as of the command `timeout`."""
_SECONDS_TO_SPEAK = 1.0


class Watchdog:
    """A thread that looks now and then how long this rank has been in the same phase.

    Ranks that wait for one that hangs are as still as that one: all of them speak, and what each is in tells which it
    is. A rank that the system has stopped cannot speak; then it is the one that does not.
    """

    def __init__(self, seconds: float, rank: int):
        """`seconds` that a phase may take."""
        self._seconds, self._rank, self._worker = seconds, rank, threading.get_ident()
        self._ended = threading.Event()
        self.enter("start-up")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def enter(self, phase: str) -> None:
        """A phase that no stopwatch tells of begins."""
        self._clock, self._where = Stopwatch(), ""
        self._clock.doing = phase

    def follow(self, clock: Stopwatch, rule: str) -> None:
        """From now on this stopwatch tells the phases, of a rule."""
        self._clock, self._where = clock, f" of rule {rule}"

    def end(self) -> None:
        """Watch no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        # Looks are counted, not seconds: while a job is suspended its threads do not look.
        step, still, last = min(1.0, self._seconds / 4), 0.0, 0.0
        while not self._ended.wait(step):
            clock = self._clock
            still, last = still + step if clock.last == last else 0.0, clock.last
            if still > self._seconds:
                phase = f"phase {clock.doing}{self._where}"
                told = (
                    f"rank {self._rank} has been in {phase} for {still:.0f} s{self._place()}; the watchdog ends the job"
                )
                # In one piece, or ranks that speak at once would mix their lines.
                os.write(sys.stderr.fileno(), f"mpi-resmtl: {told}\n".encode())
                sleep(_SECONDS_TO_SPEAK)
                os._exit(STATUS)

    def _place(self) -> str:
        """Where in the program the rank is."""
        frame: FrameType | None = sys._current_frames().get(self._worker)
        package = Path(__file__).parent
        while frame is not None and not Path(frame.f_code.co_filename).is_relative_to(package):
            frame = frame.f_back
        if frame is None:
            return ""
        return f", at {Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"


class NoWatchdog:
    """Takes a watchdog's place and watches nothing."""

    def enter(self, phase: str) -> None:
        """Whatever begins does not matter."""

    def follow(self, clock: Stopwatch, rule: str) -> None:
        """Whatever is timed does not matter."""

    def end(self) -> None:
        """Nothing ends."""


NO_WATCHDOG = NoWatchdog()


@contextmanager
def watching(seconds: float | None, rank: int) -> Iterator[Watchdog | NoWatchdog]:
    """A watchdog while this is entered; None: nobody watches."""
    watchdog = NO_WATCHDOG if seconds is None else Watchdog(seconds, rank)
    try:
        yield watchdog
    finally:
        watchdog.end()


def add_watchdog(parser: argparse.ArgumentParser) -> None:
    """Add `--watchdog` to a command."""
    what = f"end the job, with status {STATUS}, when a rank is in one phase for so long, start-up included"
    parser.add_argument("--watchdog", type=_seconds, metavar="SECONDS", help=what)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds above 0")
    return seconds
