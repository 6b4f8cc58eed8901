"""The Byzantine agents of a rank at work: when they attack, what they are told and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_resmtl.attacks import Attack, Knowledge, Known, Messages, Remembered
from mpi_resmtl.exchange import Collusion
from mpi_resmtl.judging import Moment
from mpi_resmtl.partition import Partition
from mpi_resmtl.tasks import Task

_HEARD = "collusion heard"


@dataclass(frozen=True)
class Adversary:
    """A rank's attackers: honest until iteration `start` and from iteration `stop` on."""

    attack: Attack
    messages: Messages
    start: int
    stop: int | None
    knows: Knowledge
    collusion: Collusion | None
    """Brings what is known of others; None for attacks that know nothing of them."""
    speakers: np.ndarray
    """(a,) own agents that are Byzantine and speak to others."""
    trains: np.ndarray
    """Own agents that are Byzantine and learn, alone, what they are to know or to say while they are honest."""

    def speak(self, moment: Moment, task: Task, rows: np.ndarray, partition: Partition) -> np.ndarray | None:
        """Write the attackers' messages into the rank's rows; -> which are sent (M,) bool, None: all; collective."""
        own = rows[: partition.count]
        known = Known(moment.iteration)
        if self.knows != "nothing":
            known = known._replace(own=own.take(self.speakers, axis=0))
        if self.collusion is not None:
            known = self.collusion.add(known, moment, task, own, self.attack.samples)
        attacking = self.start <= moment.iteration and (self.stop is None or moment.iteration < self.stop)
        said = self.messages(known)
        said, sent = said if self.attack.omits else (said, None)
        if not attacking:
            said, sent = own.take(partition.spoken[:, 0] - partition.first, axis=0), None
        rows[partition.spoken_rows] = said
        return sent

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """What later messages depend on, by axis: "spoken" (M, ...), "overheard" (H, ...) and "alike"."""
        remembered = getattr(self.messages, "state", Remembered()).kept()
        if self.knows == "heard" and self.collusion is not None:
            remembered["overheard"][_HEARD] = self.collusion.heard
        return remembered

    def resume(self, state: dict[str, dict[str, np.ndarray]]) -> None:
        """Go on from what `state` gave."""
        if self.knows == "heard" and self.collusion is not None:
            self.collusion.heard = state["overheard"].pop(_HEARD)
        if hasattr(self.messages, "state"):
            self.messages.state.put_back(state)

    def listen(
        self,
        heard: np.ndarray,
        arrived: np.ndarray | None,
        psi: np.ndarray,
        theta: np.ndarray,
        partition: Partition,
    ) -> None:
        """After the exchange: attackers keep the models they trained and what they heard last from each.

        `arrived` (rows,) bool says what they heard now; None: all.
        """
        if self.collusion is not None:
            now = heard.take(partition.overheard_row, axis=0)
            if arrived is not None:
                missing = ~arrived[partition.overheard_row]
                now[missing] = self.collusion.heard[missing]
            self.collusion.heard = now
        if self.trains.size:
            theta[self.trains] = psi[self.trains]
