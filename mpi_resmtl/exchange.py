"""The exchange of messages between ranks: along edges of the graph only, raw buffers, nothing that could be run.

Between ranks of different nodes rows travel as messages over persistent point-to-point requests. Between ranks of one
node they do not travel at all: the rows of a node's ranks lie in one window of shared memory, where a neighbour's row
is read in place. Measured (`bench exchange`) on two and on four ranks of two cores, this is faster for every size of
row from 16 B to 64 MiB once the rows are read: what MPI copies twice (into the message and out of it, for large ones
once from process to process) has to be read once more by whoever averages it, and only that last reading is left.

What attackers know of others goes over a communicator of its own (`Collusion`): it is neither the algorithm's traffic
nor its time.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from math import gcd
from time import monotonic
from typing import Literal

import numpy as np
from mpi4py import MPI

from mpi_resmtl import survival
from mpi_resmtl.attacks import Knowledge, Known
from mpi_resmtl.errors import UserError
from mpi_resmtl.judging import Moment
from mpi_resmtl.partition import Block, Partition, apart, in_place
from mpi_resmtl.tasks import Task

_TAG = 1
_WRITTEN = 2
ALIGNED = 64
_SHARED_MEMORY = "/dev/shm"

Shared = Literal["auto", "on", "off"]
"""Whether ranks of a node read each other's rows in place: where there is room and anyone to hear, always or never."""


def open_exchange(
    comm: MPI.Comm,
    partition: Partition,
    parameters: int,
    dtype: np.dtype,
    shared: Shared = "auto",
    omits: bool = False,
    deadline: float = 0.0,
    survives: bool = False,
) -> Exchange | PartialExchange:
    """The exchange that suits; collective.

    `omits`: attackers may say nothing; `deadline`: seconds that an iteration waits for messages, 0: until they are
    there; `survives`: it goes on without ranks that die. With any of these no row is read in place. Raises UserError
    when rows cannot be shared.
    """
    if deadline or survives:
        return DeadlineExchange(comm, partition, parameters, dtype, deadline or math.inf, survives)
    if omits:
        return PartialExchange(comm, partition, parameters, dtype)
    if shared == "off":
        return Exchange(comm, partition, parameters, dtype)
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        return Exchange(comm, partition, parameters, dtype, shared_window(comm, node, partition, parameters, dtype))
    except _NoRoom as error:
        if shared == "on":
            raise UserError(f"exchange.shared = 'on': {error}") from None
        return Exchange(comm, partition, parameters, dtype)
    finally:
        node.Free()


@dataclass(frozen=True)
class _Turn:
    """The rows of an iteration and the requests that move them."""

    mine: np.ndarray
    heard: np.ndarray
    packed: list[tuple[np.ndarray, np.ndarray]]
    requests: list[MPI.Prequest]


class Exchange:
    """Brings the rows of other ranks' agents to where this rank's agents look them up; one message a pair of ranks.

    An iteration: `turn`, write the own rows, `start`, do what needs no neighbour, `finish`, read `heard`.

    Messages are received straight into the rows where neighbourhoods look them up and sent straight from the own rows
    where these are a run; else they are packed. The communicator is a duplicate: nothing else can be taken for a
    message. `messages` and `bytes` count what graph and partition imply, in whatever way the rows are brought.

    **Rows that are read in place do not change while they are read.** There are two arrays of rows, and iterations use
    them in turns. In `start` of iteration i a rank tells every rank of its node with which it shares an edge, in either
    direction, "i is written", with an empty message; in `finish` it waits for theirs. (1) Nobody reads rows of i before
    they are written: reading comes after `finish`. (2) Nobody writes while others read: the array of iteration i is
    written again in iteration i + 2, after `finish` of i + 1, hence after every neighbour's `start` of i + 1, and that
    neighbour had done all its reading of i before. So one wait an iteration does for both. A window's
    memory is made consistent by `Win.Sync` before telling and after waiting, as MPI asks.

    A Byzantine agent has a row of its own for each victim, as in messages: what it writes for one no other one reads.
    `heard` is read-only, so that nothing that judges or combines can change what a neighbour reads.
    """

    arrived: np.ndarray | None = None
    """(H,) which rows were sent; None: all, as here."""
    behind = False
    """Whether others have gone on without this rank, which stands still until it is where they are; here they wait."""
    missed: np.ndarray | None = None
    """(H,) how often each row did not come in time; None: there is no deadline."""
    beside: int
    """Other ranks of the node whose rows are read in place, or that read this one's."""

    def __init__(
        self, comm: MPI.Comm, partition: Partition, parameters: int, dtype: np.dtype, node: Window | None = None
    ):
        """Rows are (parameters,) of `dtype`, 0 at first; collective. `node` None: all ranks exchange messages."""
        self._comm, self._window = comm.Dup(), None
        self._messages_a_call = len(partition.sent)
        sent_rows = sum(block.rows.stop - block.rows.start for block in partition.sent)
        self._bytes_a_call = sent_rows * parameters * np.dtype(dtype).itemsize
        self.messages = self.bytes = 0
        if node is None:
            self.partition, self.parts = partition, [slice(0, partition.heard_rows)]
            mine, peers = [np.zeros((partition.rows, parameters), dtype)], []
            heard = mine
        else:
            self.partition, self.parts, self._window = node.partition, node.parts, node.window
            mine, heard, peers = node.mine, node.arrays, node.peers
        self.beside = len(peers)
        told = [self._comm.Recv_init(_NOTHING, source=peer, tag=_WRITTEN) for peer in peers]
        told += [self._comm.Send_init(_NOTHING, dest=peer, tag=_WRITTEN) for peer in peers]
        self._turns = [self._turn(own, all_, told) for own, all_ in zip(mine, heard, strict=True)]
        self._number = -1
        self.turn()

    @property
    def shared(self) -> bool:
        """Whether rows of this node's other ranks are read in place."""
        return self._window is not None

    def _turn(self, mine: np.ndarray, heard: np.ndarray, told: list[MPI.Prequest]) -> _Turn:
        part, heard = self.partition, heard.view()
        heard.flags.writeable = False
        packed = [
            (block.normal, mine[block.rows.start : block.rows.start + len(block.normal)])
            for block in part.sent
            if block.rows.start >= part.count
        ]
        received = [self._comm.Recv_init(mine[block.rows], source=block.peer, tag=_TAG) for block in part.received]
        sent = [self._comm.Send_init(mine[block.rows], dest=block.peer, tag=_TAG) for block in part.sent]
        return _Turn(mine, heard, packed, received + sent + told)

    def turn(self) -> None:
        """Begin an iteration: from now on `mine` is to be written and, after `finish`, `heard` to be read.

        `mine` (partition.rows, P): own intermediates, attackers' messages, and what is packed of both. `heard` (H, P):
        the rows that the partition's `row` and `overheard_row` mean.
        """
        self._number = (self._number + 1) % len(self._turns)
        self._now = self._turns[self._number]
        self.mine, self.heard = self._now.mine, self._now.heard

    def start(self, sent: np.ndarray | None = None) -> None:
        """Pack the normal agents' rows and start all sends and receives; here every attacker speaks (`sent` None)."""
        now = self._now
        for normal, packed in now.packed:
            now.mine.take(normal, axis=0, out=packed, mode="clip")
        self.messages += self._messages_a_call
        self.bytes += self._bytes_a_call
        if self._window is not None:
            self._window.Sync()
        if now.requests:
            MPI.Prequest.Startall(now.requests)

    def finish(self) -> None:
        """Wait until every message has arrived, every row is written and every buffer may be written again."""
        if self._now.requests:
            MPI.Request.Waitall(self._now.requests)
        if self._window is not None:
            self._window.Sync()

    def close(self) -> None:
        """Free the requests, the window and the communicator; collective. The rows are gone."""
        for request in {id(request): request for turn in self._turns for request in turn.requests}.values():
            request.Free()
        self._turns, self._now, self.mine, self.heard = [], None, None, None
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()
        self._comm.Free()


_NOTHING = np.empty(0, np.uint8)


class _NoRoom(Exception):
    """Rows cannot be shared, and why."""


@dataclass(frozen=True)
class Window:
    """The rows of the ranks of one node in shared memory, two arrays of them."""

    window: MPI.Win
    partition: Partition
    """Of this rank, its `row` and `overheard_row` being rows of the whole node's arrays."""
    parts: list[slice]
    """What of these arrays this rank's agents hear or own."""
    arrays: list[np.ndarray]
    """(H, P)"""
    mine: list[np.ndarray]
    """(partition.rows, P): this rank's rows of each array."""
    peers: list[int]
    """Other ranks of the node that share an edge with this one."""


def shared_window(
    comm: MPI.Comm, node: MPI.Comm, partition: Partition, parameters: int, dtype: np.dtype
) -> Window | None:
    """The window of the ranks of `node`, part of `comm`; None where none of them hear each other; collective.

    Raises _NoRoom on every rank of `comm` when there is not enough memory on any node.
    """
    ranks, dtype = node.allgather(comm.rank), np.dtype(dtype)
    others = set(ranks) - {comm.rank}
    peers = sorted(others & {block.peer for block in partition.sent + partition.received})
    talk = node.allreduce(bool(peers), MPI.LOR)
    own, attack = apart(partition, others)
    # Small rows of two ranks never share a cache line.
    together = ALIGNED // gcd(ALIGNED, parameters * dtype.itemsize) if parameters * dtype.itemsize < ALIGNED else 1
    counts = node.allgather(-(-own.rows // together) * together)
    shape = (2, sum(counts), parameters)
    needed = int(np.prod(shape)) * dtype.itemsize + ALIGNED
    _agree(comm, lacking(needed) if talk else None)
    window, error = None, None
    if talk:
        try:
            window = MPI.Win.Allocate_shared(needed if node.rank == 0 else 0, 1, comm=node)
        except MPI.Exception as raised:
            error = raised.Get_error_string()
    _agree(comm, error)
    if window is None:
        return None

    first_row = dict(zip(ranks, np.concatenate([[0], np.cumsum(counts)[:-1]]).tolist(), strict=True))
    attacks = dict(zip(ranks, node.alltoall([attack.get(rank, 0) for rank in ranks]), strict=True))
    here = first_row[comm.rank]
    own, parts = in_place(partition, own, first_row, attacks, here)
    arrays = list(aligned(node, window)[: needed - ALIGNED].view(dtype).reshape(shape))
    mine = [array[here : here + own.rows] for array in arrays]
    for rows in mine:
        rows[:] = 0
    node.Barrier()
    return Window(window, own, parts, arrays, mine, peers)


def aligned(node: MPI.Comm, window: MPI.Win) -> np.ndarray:
    """The memory of a window that the first rank of `node` allocated, from where it is aligned on; collective."""
    window.Lock_all(MPI.MODE_NOCHECK)
    memory = np.frombuffer(window.Shared_query(0)[0], np.uint8)
    return memory[node.bcast(-memory.ctypes.data % ALIGNED) :]


def lacking(needed: int) -> str | None:
    """What to say when this node has less shared memory left than is needed (bytes); None: it has enough."""
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    left = found.f_bavail * found.f_frsize
    if needed <= left:
        return None
    return (
        f"a node needs {needed:,} bytes of shared memory and {_SHARED_MEMORY} has {left:,} left; make it larger, use "
        "more nodes, or let ranks exchange messages with exchange.shared = off"
    )


def _agree(comm: MPI.Comm, error: str | None) -> None:
    """Raise _NoRoom on all ranks with the first error of any; collective."""
    errors = [e for e in comm.allgather(error) if e is not None]
    if errors:
        raise _NoRoom(errors[0])


class PartialExchange:
    """The exchange where attackers may say nothing: rows that are not sent do not travel, and arrive as NaN.

    A message is a flag for each attacker's row, then the rows that are sent, so the receiver knows what it missed
    without waiting. Traffic counts the rows alone; the flags stand for the silence itself.
    """

    shared, behind = False, False
    missed: np.ndarray | None = None

    def __init__(self, comm: MPI.Comm, partition: Partition, parameters: int, dtype: np.dtype):
        """As `Exchange`."""
        self._comm, self.partition = comm.Dup(), partition
        self.mine = rows = np.zeros((partition.rows, parameters), dtype)
        self.heard, self.parts = rows.view(), [slice(0, partition.heard_rows)]
        self.heard.flags.writeable = False
        self._row_bytes = rows.shape[1] * rows.itemsize
        self._inbox = [np.empty(self._largest(block), np.uint8) for block in partition.received]
        self._pending: list[MPI.Request] = []
        self._outbox: list[np.ndarray] = []
        self._has = np.ones(partition.heard_rows, bool)
        self.arrived: np.ndarray | None = None
        """(heard_rows,) which rows were sent; None: all."""
        self.messages = self.bytes = 0

    def _largest(self, block: Block) -> int:
        """Bytes of a message in which everyone speaks."""
        return block.attacks + (block.rows.stop - block.rows.start) * self._row_bytes

    def turn(self) -> None:
        """Begin an iteration; the rows are always the same."""

    def start(self, sent: np.ndarray | None = None) -> None:
        """Send the normal agents' rows and those of attackers that speak: `sent` (M,) bool, None: all do."""
        sent = self._silence(sent)
        self._pending = [
            self._comm.Irecv(inbox, source=block.peer, tag=_TAG)
            for inbox, block in zip(self._inbox, self.partition.received, strict=True)
        ]
        self._outbox = []
        for block in self.partition.sent:
            flags, said = self._said(block, sent)
            self._outbox.append(np.concatenate([flags, said]))
            self._pending.append(self._comm.Isend(self._outbox[-1], dest=block.peer, tag=_TAG))
            self._count(said)

    def _silence(self, sent: np.ndarray | None) -> np.ndarray:
        """Which attackers speak (M,), with NaN in the rows of those that do not."""
        part = self.partition
        if sent is None:
            sent = np.ones(len(part.spoken), bool)
        at_home = part.spoken_row < part.heard_rows
        self.mine[part.spoken_row[~sent]] = np.nan
        self._has[part.spoken_row[at_home]] = sent[at_home]
        return sent

    def _said(self, block: Block, sent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What goes to a peer, as bytes: flags of attackers, and the rows of those that speak."""
        flags = sent[block.spoken]
        attacks = self.mine[block.rows][len(block.normal) :]
        said = np.concatenate([self.mine[: self.partition.count].take(block.normal, axis=0), attacks[flags]])
        return flags.view(np.uint8), said.reshape(-1).view(np.uint8)

    def _count(self, said: np.ndarray) -> None:
        self.messages += bool(len(said))
        self.bytes += said.nbytes

    def finish(self) -> None:
        """Wait until every message has arrived, and put its rows where neighbourhoods look them up."""
        MPI.Request.Waitall(self._pending)
        for inbox, block in zip(self._inbox, self.partition.received, strict=True):
            self._take(inbox, block)
        self.arrived = None if self._has.all() else self._has

    def _take(self, message: np.ndarray, block: Block) -> None:
        """Put the rows of a message, flags first, where neighbourhoods look them up."""
        flags = message[: block.attacks].astype(bool)
        target = self.mine[block.rows]
        normal = len(target) - block.attacks
        arrived = message[block.attacks :][: (normal + int(flags.sum())) * self._row_bytes]
        said = np.frombuffer(arrived.tobytes(), target.dtype).reshape(-1, target.shape[1])
        target[:normal] = said[:normal]
        target[normal:] = np.nan
        target[normal:][flags] = said[normal:]
        self._has[block.rows][:normal] = True
        self._has[block.rows][normal:] = flags

    def close(self) -> None:
        """Free the communicator; collective."""
        self._comm.Free()


@dataclass
class _From:
    """What comes from a peer: one message is being received, or is held until its iteration."""

    block: Block
    message: np.ndarray
    request: MPI.Prequest
    holds: int = -1
    """The iteration of the message that is held; -1: it is still to come."""
    given_up: bool = False
    """Whether nothing has come since this rank last waited for it in vain."""
    dead: bool = False
    """Whether the peer has died."""


@dataclass
class _To:
    """What goes to a peer: places for messages, and requests that end when the peer takes them."""

    block: Block
    messages: list[np.ndarray]
    requests: list[MPI.Request] = field(default_factory=lambda: [MPI.REQUEST_NULL] * _PLACES)
    unsent: bool = False
    """Whether there was no place yet for this iteration's message."""
    given_up: bool = False
    """Whether nothing has been taken since this rank last waited for it in vain."""
    dead: bool = False


class DeadlineExchange(PartialExchange):
    """The exchange that waits so many seconds an iteration and no more; a row that is late is missing, and NaN.

    **No late message is taken for a later one.** Each begins with the number of its iteration, counted over the whole
    run. MPI keeps the order of messages between two ranks, so a receiver throws away those of iterations that are
    over, takes that of the present one, and holds the first of a later one until its time has come: that one says, too,
    that no message of the present iteration will come any more.

    **A rank that is silent costs one deadline.** Who has waited for a peer in vain does not wait for it again before
    something has come from it. **It is not buried in messages:** sends are synchronous, complete only when they are
    being received, and there are two places for each peer; while both are taken, nothing is sent to it.

    **A rank that comes back catches up.** From a message of an iteration more than one ahead it learns that others went
    on without it. Its agents stand still (`stand_still`) until that iteration and take part again from there; others,
    who have heard of it by then, wait for it. **One that has died** stays silent.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        partition: Partition,
        parameters: int,
        dtype: np.dtype,
        seconds: float,
        survives: bool = False,
    ):
        """As `Exchange`; `seconds` from `start` that `finish` may wait; `survives`: a peer may die."""
        super().__init__(comm, partition, parameters, dtype)
        self.seconds, self._survives, self._number, self._until = seconds, survives, -1, -1
        self.missed = np.zeros(partition.heard_rows, np.int64)
        self._from = [
            _From(block, inbox, self._comm.Recv_init(inbox, source=block.peer, tag=_TAG))
            for inbox, block in zip(self._inbox, partition.received, strict=True)
        ]
        self._to = [
            _To(block, [np.empty(self._largest(block), np.uint8) for _ in range(_PLACES)]) for block in partition.sent
        ]
        for link in self._from:
            link.request.Start()

    def _largest(self, block: Block) -> int:
        return _NUMBER.itemsize + super()._largest(block)

    @property
    def behind(self) -> bool:
        """Whether others have gone on without this rank in the iteration that has begun."""
        return self._number < self._until

    def turn(self) -> None:
        """Begin an iteration; see where others are."""
        self._number += 1
        self._receive()
        ahead = max((link.holds for link in self._from), default=-1)
        if ahead > self._number + 1:
            self._until = max(self._until, ahead)

    def stand_still(self) -> None:
        """Let an iteration pass in which all is missed, one's own row too."""
        self.missed += 1

    def start(self, sent: np.ndarray | None = None) -> None:
        """As `PartialExchange`, to peers that take what is sent to them."""
        self._started = monotonic()
        self._speaks = self._silence(sent)
        for link in self._to:
            link.unsent = True
            self._send(link)

    def finish(self) -> None:
        """Wait for messages until the deadline, and put their rows where neighbourhoods look them up."""
        while True:
            self._receive()
            for link in self._to:
                if link.unsent:
                    self._send(link)
            awaited = [link for link in self._from if link.holds < 0 and not link.given_up and not link.dead]
            awaited += [link for link in self._to if link.unsent and not link.given_up and not link.dead]
            if not awaited:
                break
            if monotonic() - self._started > self.seconds:
                for link in awaited:
                    link.given_up = True
                break
            os.sched_yield()
        for link in self._from:
            if link.holds == self._number:
                self._take(link.message[_NUMBER.itemsize :], link.block)
                self._go_on(link)
            else:
                self.mine[link.block.rows] = np.nan
                self._has[link.block.rows] = False
                self.missed[link.block.rows] += 1
        self.arrived = None if self._has.all() else self._has

    def _send(self, link: _To) -> None:
        """Send this iteration's message to a peer if there is a place for it."""
        ended = [self._ended(link, request) for request in link.requests]
        if link.dead or not any(ended):
            return
        place = ended.index(True)
        flags, said = self._said(link.block, self._speaks)
        message = link.messages[place][: _NUMBER.itemsize + len(flags) + len(said)]
        message[: _NUMBER.itemsize].view(_NUMBER)[0] = self._number
        np.concatenate([flags, said], out=message[_NUMBER.itemsize :])
        try:
            link.requests[place] = self._comm.Issend(message, dest=link.block.peer, tag=_TAG)
        except MPI.Exception as error:
            self._bury(link, error)
            return
        link.unsent = link.given_up = False
        self._count(said)

    def _receive(self) -> None:
        """Take what has come: what is of iterations that are over is thrown away."""
        for link in self._from:
            while link.holds < self._number:
                if link.holds >= 0:
                    self._go_on(link)
                if link.dead or not self._ended(link, link.request):
                    break
                link.holds, link.given_up = int(link.message[: _NUMBER.itemsize].view(_NUMBER)[0]), False

    def _go_on(self, link: _From) -> None:
        link.holds = -1
        try:
            link.request.Start()
        except MPI.Exception as error:
            self._bury(link, error)

    def _ended(self, link: _From | _To, request: MPI.Request) -> bool:
        """Whether a request has ended; where it cannot any more, the peer is known to be dead."""
        try:
            return request.Test()
        except MPI.Exception as error:
            self._bury(link, error)
            return False

    def _bury(self, link: _From | _To, error: MPI.Exception) -> None:
        """The peer is dead from now on; raises the error where that is not what it says."""
        if not self._survives:
            raise error
        link.dead = survival.has_died(error)

    def drain(self) -> None:
        """Wait until peers that live have taken all that was sent to them."""
        while not all([link.dead or self._ended(link, request) for link in self._to for request in link.requests]):
            os.sched_yield()

    def close(self) -> None:
        """Free the communicator once all that was sent has been received; collective."""
        self._number = np.iinfo(_NUMBER).max
        requests = [request for link in self._to for request in link.requests]
        ended = None
        while ended is None or not ended.Test():
            self._receive()
            if ended is None and MPI.Request.Testall(requests):
                ended = self._comm.Ibarrier()
            os.sched_yield()
        for link in self._from:
            link.request.Cancel()
            link.request.Wait()
            link.request.Free()
        super().close()


_NUMBER = np.dtype(np.int64)
_PLACES = 2


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
            return known._replace(heard=self.heard)
        return known._replace(
            intermediate=self._told(psi),
            previous=self._told(moment.theta),
            revealed=self._told(task.reveal(moment.samples, moment.i)) if samples else None,
        )

    def _told(self, own: np.ndarray) -> np.ndarray:
        """The rows of all agents, 0 for those that attackers are told nothing of."""
        whole = self._everyone.rows(own)
        whole[self._hidden] = 0
        return whole
