"""Signals that end a run in good order, and how ranks agree on the iteration in which they do."""

from __future__ import annotations

import signal
from time import perf_counter

import numpy as np
from mpi4py import MPI

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_SECONDS_BETWEEN_VOTES = 0.1
_MOST_ITERATIONS = 2000


class Signals:
    """While it is entered, SIGTERM, SIGUSR1 and SIGINT are kept in mind only; a second SIGINT ends the process."""

    def __init__(self):
        self.received = 0
        """The signal's number; 0: none yet."""

    def __enter__(self) -> Signals:
        self._earlier = {number: signal.signal(number, self._receive) for number in CAUGHT}
        return self

    def __exit__(self, *ignored: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = self.received or number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


class Votes:
    """What ranks have to say to one another in certain iterations, and no rank waits for.

    In an iteration of a vote ranks learn what they said in the last one, the same on all, and say what they have to say
    now: a reduction that needs no waiting goes on meanwhile. Votes are about a tenth of a second apart.
    """

    def __init__(self, comm: MPI.Comm, minutes: float):
        """Rank 0 proposes something every so many `minutes`; 0: never."""
        self._comm, self._seconds = comm.Dup(), 60.0 * minutes if comm.rank == 0 and minutes else np.inf
        self._said, self._heard = np.zeros(3), np.zeros(3)
        self._then = self.proposed = perf_counter()
        self._request = self._comm.Iallreduce(self._said, self._heard, MPI.MAX)

    def vote(self, received: int, iterations: int) -> tuple[int, bool, int]:
        """What was said at the last vote, `iterations` ago: a signal or 0, whether rank 0's time had come.

        With it comes the number of iterations until the next vote. `received` is what this rank has to say; collective.
        """
        self._request.Wait()
        number, proposed, pace = self._heard.tolist()
        now = perf_counter()
        self._said[:] = received, now - self.proposed >= self._seconds, (now - self._then) / iterations
        self._then = now
        self._request = self._comm.Iallreduce(self._said, self._heard, MPI.MAX)
        ahead = int(_SECONDS_BETWEEN_VOTES / pace) if pace else 1
        return int(number), bool(proposed), min(max(1, ahead), _MOST_ITERATIONS)

    def close(self) -> None:
        """End the last vote and free the communicator; collective."""
        self._request.Wait()
        self._comm.Free()
