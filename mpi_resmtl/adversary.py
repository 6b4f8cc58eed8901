"""The Byzantine agents of a rank at work: when they attack, what they are told and what they say."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpi_resmtl.attacks import Attack, Knowledge, Known, Messages
from mpi_resmtl.exchange import Collusion
from mpi_resmtl.judging import Moment
from mpi_resmtl.partition import Partition
from mpi_resmtl.tasks import Task


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
            known = replace(known, own=own.take(self.speakers, axis=0))
        if self.collusion is not None:
            known = self.collusion.add(known, moment, task, own, self.attack.samples)
        attacking = self.start <= moment.iteration and (self.stop is None or moment.iteration < self.stop)
        said = self.messages(known)
        said, sent = said if self.attack.omits else (said, None)
        if not attacking:
            said, sent = own.take(partition.spoken[:, 0] - partition.first, axis=0), None
        rows[partition.spoken_rows] = said
        return sent

    def listen(self, heard: np.ndarray, psi: np.ndarray, theta: np.ndarray, partition: Partition) -> None:
        """After the exchange: attackers keep what they heard and the models they trained."""
        if self.collusion is not None:
            self.collusion.heard = heard.take(partition.overheard_row, axis=0)
        if self.trains.size:
            theta[self.trains] = psi[self.trains]
