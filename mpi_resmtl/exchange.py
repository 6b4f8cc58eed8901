"""The exchange of messages between ranks: raw buffers, persistent point-to-point requests, edges of the graph only."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from mpi_resmtl.partition import Partition

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
        self.messages_a_call = len(sent)
        self.bytes_a_call = sum(rows[block.rows].nbytes for block in partition.sent)

    def start(self) -> None:
        """Pack the normal agents' rows and start all sends and receives."""
        for normal, packed in self._packed:
            self._own.take(normal, axis=0, out=packed, mode="clip")
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
