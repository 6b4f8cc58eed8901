"""The exchange of messages between ranks: raw buffers, persistent point-to-point requests, edges of the graph only.

What attackers know of others goes over a communicator of its own (`Collusion`): it is neither the algorithm's traffic
nor its time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mpi4py import MPI

from mpi_resmtl.attacks import Knowledge, Known
from mpi_resmtl.judging import Moment
from mpi_resmtl.partition import Partition
from mpi_resmtl.tasks import Task

_TAG = 1


class Exchange:
    """Moves a rank's rows to the ranks that hear its agents, and theirs here; one message a pair of ranks and call.

    Receives are posted straight into the rows where neighbourhoods look them up, so a message is never copied on
    arrival. The communicator is a duplicate: nothing else can be taken for a message.
    """

    def __init__(self, comm: MPI.Comm, partition: Partition, rows: np.ndarray):
        """`rows` (partition.rows, P), C-contiguous; its first rows are the own agents' intermediates."""
        self._comm = comm.Dup()
        self._own = rows[: partition.count]
        self._packed = [
            (block.normal, rows[block.rows.start : block.rows.start + len(block.normal)]) for block in partition.sent
        ]
        received = [self._comm.Recv_init(rows[block.rows], source=block.peer, tag=_TAG) for block in partition.received]
        sent = [self._comm.Send_init(rows[block.rows], dest=block.peer, tag=_TAG) for block in partition.sent]
        self._requests = received + sent
        self.arrived = None
        self._messages_a_call = len(sent)
        self._bytes_a_call = sum(rows[block.rows].nbytes for block in partition.sent)
        self.messages = self.bytes = 0

    def start(self, sent: np.ndarray | None = None) -> None:
        """Pack the normal agents' rows and start all sends and receives; here every attacker speaks (`sent` None)."""
        for normal, packed in self._packed:
            self._own.take(normal, axis=0, out=packed, mode="clip")
        self.messages += self._messages_a_call
        self.bytes += self._bytes_a_call
        if self._requests:
            MPI.Prequest.Startall(self._requests)

    def finish(self) -> None:
        """Wait until every message has arrived and every buffer may be written again."""
        if self._requests:
            MPI.Request.Waitall(self._requests)

    def close(self) -> None:
        """Free the requests and the communicator; collective."""
        for request in self._requests:
            request.Free()
        self._comm.Free()


class PartialExchange:
    """The exchange where attackers may say nothing: rows that are not sent do not travel, and arrive as NaN.

    A message is a flag for each attacker's row, then the rows that are sent, so the receiver knows what it missed
    without waiting. Traffic counts the rows alone; the flags stand for the silence itself.
    """

    def __init__(self, comm: MPI.Comm, partition: Partition, rows: np.ndarray):
        """As `Exchange`."""
        self._comm, self._rows, self._partition = comm.Dup(), rows, partition
        self._row_bytes = rows.shape[1] * rows.itemsize
        self._inbox = [np.empty(b.attacks + rows[b.rows].nbytes, np.uint8) for b in partition.received]
        self._pending: list[MPI.Request] = []
        self._outbox: list[np.ndarray] = []
        self._has = np.ones(partition.heard_rows, bool)
        self.arrived: np.ndarray | None = None
        """(heard_rows,) which rows were sent; None: all."""
        self.messages = self.bytes = 0

    def start(self, sent: np.ndarray | None = None) -> None:
        """Send the normal agents' rows and those of attackers that speak: `sent` (M,) bool, None: all do."""
        part, rows = self._partition, self._rows
        if sent is None:
            sent = np.ones(len(part.spoken), bool)
        at_home = part.spoken_row < part.heard_rows
        rows[part.spoken_row[~sent]] = np.nan
        self._has[part.spoken_row[at_home]] = sent[at_home]
        self._pending = [
            self._comm.Irecv(inbox, source=block.peer, tag=_TAG)
            for inbox, block in zip(self._inbox, part.received, strict=True)
        ]
        self._outbox = []
        for block in part.sent:
            flags = sent[block.spoken]
            attacks = rows[block.rows][len(block.normal) :]
            said = np.concatenate([rows[: part.count].take(block.normal, axis=0), attacks[flags]])
            self._outbox.append(np.concatenate([flags.view(np.uint8), said.reshape(-1).view(np.uint8)]))
            self._pending.append(self._comm.Isend(self._outbox[-1], dest=block.peer, tag=_TAG))
            self.messages += bool(len(said))
            self.bytes += said.nbytes

    def finish(self) -> None:
        """Wait until every message has arrived, and put its rows where neighbourhoods look them up."""
        MPI.Request.Waitall(self._pending)
        for inbox, block in zip(self._inbox, self._partition.received, strict=True):
            flags = inbox[: block.attacks].astype(bool)
            target = self._rows[block.rows]
            normal = len(target) - block.attacks
            arrived = inbox[block.attacks :][: (normal + int(flags.sum())) * self._row_bytes]
            said = np.frombuffer(arrived.tobytes(), target.dtype).reshape(-1, target.shape[1])
            target[:normal] = said[:normal]
            target[normal:] = np.nan
            target[normal:][flags] = said[normal:]
            self._has[block.rows][normal:] = flags
        self.arrived = None if self._has.all() else self._has

    def close(self) -> None:
        """Free the communicator; collective."""
        self._comm.Free()


class Everyone:
    """Brings rows of all agents to every rank, over a communicator that the algorithm does not use."""

    def __init__(self, comm: MPI.Comm, offsets: np.ndarray):
        """`offsets` (ranks + 1,) first agent of each rank, and n."""
        self._comm, self._counts = comm.Dup(), np.diff(offsets)

    def rows(self, own: np.ndarray) -> np.ndarray:
        """The rows of all agents (n, S) from those of each rank's own (A, S), a copy; collective."""
        own = np.ascontiguousarray(own)
        if self._comm.size == 1:
            return own.copy()
        whole = np.empty((int(self._counts.sum()), own.shape[1]), own.dtype)
        self._comm.Allgatherv(own, (whole, self._counts * own.shape[1]))
        return whole

    def close(self) -> None:
        """Free the communicator; collective."""
        self._comm.Free()


class Collusion:
    """What a rank's attackers know of others."""

    def __init__(
        self, everyone: Everyone, partition: Partition, byzantine: np.ndarray, knows: Knowledge, nothing: np.ndarray
    ):
        """`byzantine` (n,) bool; `nothing` (H, P) zeros, what is heard before the first iteration."""
        self._everyone, self._knows = everyone, knows
        self._hidden = byzantine
        if knows == "victim":
            victims = np.zeros(len(byzantine), bool)
            victims[partition.spoken[:, 1]] = True
            self._hidden = byzantine | ~victims
        self.heard = self._nothing = nothing

    def add(self, known: Known, moment: Moment, task: Task, psi: np.ndarray, samples: bool) -> Known:
        """`known` with what the attack knows of others; `samples` too if it declares them; collective."""
        if moment.iteration == 0:
            self.heard = self._nothing
        if self._knows == "heard":
            return replace(known, heard=self.heard)
        return replace(
            known,
            intermediate=self._told(psi),
            previous=self._told(moment.theta),
            revealed=self._told(task.reveal(moment.samples, moment.i)) if samples else None,
        )

    def _told(self, own: np.ndarray) -> np.ndarray:
        """The rows of all agents, 0 for those that attackers are told nothing of."""
        whole = self._everyone.rows(own)
        whole[self._hidden] = 0
        return whole
