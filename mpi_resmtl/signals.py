"""Signals that end a run in good order, and how ranks agree on the iteration in which they do."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from mpi4py import MPI

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_SECONDS_BETWEEN_VOTES = 0.1
_MOST_ITERATIONS = 2000
_ENDS, _GOES_ON = 0.0, 1.0
_PROMISED = 10
"""Iterations in which ranks learn what the others have promised."""
_NEVER = 2**62
"""No run comes to this iteration."""


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


@dataclass(frozen=True)
class Ballot:
    """What ranks agree on, the same on all but for `next`; iterations are counted over the whole run."""

    number: int
    """A signal that ends the run; 0: none."""
    due: bool
    """Whether rank 0's time has come."""
    at: int
    """The iteration after which all do what is to be done."""
    next: int
    """The iteration after which this rank votes again."""


class Votes:
    """What ranks have to say to one another in certain iterations, and no rank waits for.

    In an iteration of a vote ranks learn what they said in the last one, the same on all, and say what they have to say
    now: a reduction that needs no waiting goes on meanwhile. Votes are about a tenth of a second apart.
    """

    _BEGINS = 0.0

    def __init__(self, comm: MPI.Comm, minutes: float):
        """Rank 0 proposes something every so many `minutes`; 0: never."""
        self._comm, self._seconds = comm.Dup(), 60.0 * minutes if comm.rank == 0 and minutes else np.inf
        self._said, self._heard = np.zeros(3), np.zeros(3)
        self._then = self.proposed = perf_counter()
        self._at = 0
        self._say(0, False, self._BEGINS)

    def begin(self, at: int) -> None:
        """The run starts, or goes on, after iteration `at`."""
        self._at = at

    def vote(self, received: int, at: int) -> Ballot:
        """What was said at the last vote; `received` is what this rank has to say after iteration `at`; collective."""
        self._request.Wait()
        number, due, pace = self._heard.tolist()
        now = perf_counter()
        mine = (now - self._then) / (at - self._at)
        self._then, self._at = now, at
        self._say(received, bool(due), mine)
        return Ballot(int(number), bool(due), at, at + _ahead(pace))

    def _say(self, received: int, was_due: bool, third: float) -> None:
        due = not was_due and perf_counter() - self.proposed >= self._seconds
        self._said[:] = received, due, third
        self._request = self._comm.Iallreduce(self._said, self._heard, MPI.MAX)

    def close(self) -> None:
        """End the last vote and free the communicator; collective."""
        self._request.Wait()
        self._comm.Free()


def _ahead(pace: float) -> int:
    """Iterations until the next vote, when one takes `pace` seconds; 0: unknown."""
    return min(max(1, int(_SECONDS_BETWEEN_VOTES / pace) if pace else 1), _MOST_ITERATIONS)


class LooseVotes(Votes):
    """Votes of ranks that do not wait for one another, so that each has come to another iteration when it votes.

    A rank says what it has to say now and then, once the last vote has ended. Where something is to be done, each rank
    promises not to go on beyond an iteration a little ahead of it before it knows what all have promised, and the
    farthest of these is where they do it. None is kept waiting for that by one that waits itself.
    """

    _BEGINS = _GOES_ON

    def __init__(self, comm: MPI.Comm, minutes: float):
        """As `Votes`."""
        super().__init__(comm, minutes)
        self._asks, self._meets = True, None
        self._promised, self._agreed = np.zeros((2, 1), np.int64)

    def vote(self, received: int, at: int) -> Ballot:
        """As `Votes`; to be called in every iteration."""
        nothing = Ballot(0, False, at, at + 1)
        if self._meets is not None:
            if not self._meets.Test():
                if at < self._promised[0]:
                    return nothing
                self._meets.Wait()
            self._meets = None
            number, due, _ = self._heard.tolist()
            self._say(received, bool(due), _GOES_ON)
            meeting = int(self._agreed[0])
            return Ballot(int(number), bool(due), meeting, meeting + 2)
        now = perf_counter()
        if self._asks and self._request.Test():
            self._asks, self._then = False, now
            if self._heard[:2].any():
                self._meet(at + _PROMISED)
        elif not self._asks and now - self._then > _SECONDS_BETWEEN_VOTES:
            self._say(received, False, _GOES_ON)
        return nothing

    def _say(self, received: int, was_due: bool, third: float) -> None:
        super()._say(received, was_due, third)
        self._asks = True

    def _meet(self, at: int) -> None:
        self._promised[0] = at
        self._meets = self._comm.Iallreduce(self._promised, self._agreed, MPI.MAX)

    def close(self) -> None:
        """Vote until all ranks have come to an end; collective."""
        if self._meets is not None:
            self._meets.Wait()
        if self._meets is not None or not self._asks:
            self._say(0, True, _ENDS)
        self._request.Wait()
        while self._heard[2] == _GOES_ON:
            if self._heard[:2].any():
                self._meet(_NEVER)
                self._meets.Wait()
            self._say(0, True, _ENDS)
            self._request.Wait()
        self._comm.Free()
