"""Ranks of a node judge messages for one another, so that none waits while another has more to do.

Agents differ in how large their samples are and in whether they take a gradient step, and ranks that hear each other
wait for each other in every iteration. Where a judgement costs much, as of a convolutional network, it pays to even
that out. A rank lends the judging of some messages: the samples to judge by lie in a window of shared memory, messages
are read in place already, and what comes back is a number a message. It is the same number to the bit whoever finds
it, and who finds it follows from counts of inputs, which all ranks of the node see alike, never from a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from mpi_resmtl.exchange import ALIGNED, Exchange, PartialExchange, aligned, lacking
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.tasks import Task

_JUDGED = 3
_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Loan:
    """Messages to one agent of one rank that another rank judges; ranks are those of the node."""

    owner: int
    helper: int
    agent: int
    """Which of the owner's agents that judge."""
    edges: slice
    """Of the agent's edges, counted from its first."""


def loans(inputs: list[np.ndarray], messages: list[np.ndarray], ahead: np.ndarray) -> list[Loan]:
    """Who judges what for whom, so that ranks have as much to do as whole judgements allow.

    By rank: `inputs` (N_r,) in a sample of each agent, `messages` (N_r,) that it judges, and what is `ahead` (R,) of
    the rank until it next waits for others, in inputs too. Those that have more to do than the mean lend the last
    messages of their last agents.
    """
    work = ahead + np.array([float(x @ m) for x, m in zip(inputs, messages, strict=True)])
    spare, found = work.mean() - work, []
    helpers = np.flatnonzero(spare > 0).tolist()
    for owner in np.flatnonzero(spare < 0).tolist():
        for agent in reversed(range(len(inputs[owner]))):
            left, cost = int(messages[owner][agent]), int(inputs[owner][agent])
            for helper in helpers:
                count = min(left, int(min(-spare[owner], spare[helper]) / cost + 0.5))
                if count > 0:
                    found.append(Loan(owner, helper, agent, slice(left - count, left)))
                    left -= count
                    spare[owner] += count * cost
                    spare[helper] -= count * cost
    return found


@dataclass(frozen=True)
class _Shown:
    """What a rank of the node shows the others in an iteration, in shared memory; N agents that judge, E messages."""

    ahead: np.ndarray
    """(1,) float64"""
    inputs: np.ndarray
    """(N,) int64: rows of each agent's sample."""
    x: np.ndarray
    """(N, B, d)"""
    y: np.ndarray
    """(N, B)"""
    judged: np.ndarray
    """(E,) float64: what others have judged for it."""


def open_lending(
    node: MPI.Comm, exchange: Exchange | PartialExchange, task: Task, tiles: list[Neighbourhoods]
) -> Lending | None:
    """Lending among the ranks of a node; None where nothing is to be lent; collective on `node`.

    Ranks lend where the task's judgements are worth it and there is room, and where their waits for messages are enough
    for all that they share: all of them hear each other, and nobody hears ranks of other nodes, whose messages have
    arrived only when the rank they are for has waited for them.
    """
    apt = task.lends and exchange.shared and exchange.beside == node.size - 1 > 0 and len(tiles) == 1
    if not node.allreduce(bool(apt and not exchange.partition.received), MPI.LAND):
        return None
    layout = node.allgather(_layout(task, tiles[0]))
    needed = ALIGNED + 2 * sum(size for _, size in layout)
    if not node.allreduce(lacking(needed) is None, MPI.LAND):
        return None
    try:
        window = MPI.Win.Allocate_shared(needed if node.rank == 0 else 0, 1, comm=node)
    except MPI.Exception:
        window = None
    if not node.allreduce(window is not None, MPI.LAND):
        return None
    return Lending(node, window, task, tiles[0], [shapes for shapes, _ in layout])


_Shapes = list[tuple[tuple[int, ...], str]]


def _layout(task: Task, tile: Neighbourhoods) -> tuple[_Shapes, int]:
    """Shapes and types of what a rank shows, and its bytes."""
    agents, batch = len(tile.size), task.batch
    shapes = [((1,), "f8"), ((agents,), "i8"), ((agents, batch, task.inputs), "f4"), ((agents, batch), "i8")]
    shapes.append(((len(tile.row),), "f8"))
    return shapes, sum(map(_room, shapes))


def _bytes(shape: tuple[tuple[int, ...], str]) -> int:
    return int(np.prod(shape[0])) * np.dtype(shape[1]).itemsize


def _room(shape: tuple[tuple[int, ...], str]) -> int:
    return -(-_bytes(shape) // ALIGNED) * ALIGNED


class Lending:
    """Judges a rank's messages together with the other ranks of its node.

    An iteration: `offer` before `Exchange.start`, `judge` after `Exchange.finish`. What ranks show each other has two
    halves, used in turns like the rows of `Exchange`, and its waits are what keeps one half from being written while it
    is read: whoever writes it again has waited for all others of the node once since they read it.
    """

    def __init__(self, node: MPI.Comm, window: MPI.Win, task: Task, tile: Neighbourhoods, layout: list[_Shapes]):
        """`tile`: all that this rank's agents judge; `layout`: what each rank shows in the window; collective."""
        self._comm, self._task, self._tile = node.Dup(), task, tile
        self._begin, self._messages, self._row = zip(
            *self._comm.allgather((tile.start, tile.size, tile.row)), strict=True
        )
        self._window = window
        memory, place = aligned(self._comm, self._window), 0
        self._halves: list[list[_Shown]] = [[], []]
        for half in self._halves:
            for shapes in layout:
                arrays = []
                for shape in shapes:
                    arrays.append(memory[place : place + _bytes(shape)].view(shape[1]).reshape(shape[0]))
                    place += _room(shape)
                half.append(_Shown(*arrays))
        self._number = 0
        others = [rank for rank in range(node.size) if rank != node.rank]
        self._tell = {rank: self._comm.Send_init(_NOTHING, dest=rank, tag=_JUDGED) for rank in others}
        self._hear = {rank: self._comm.Recv_init(_NOTHING, source=rank, tag=_JUDGED) for rank in others}

    def offer(self, samples: Any, i: int, iteration: int) -> None:
        """Show the others the ith samples of a block, which this rank's agents judge by in an iteration (from 0)."""
        self._number = 1 - self._number
        shown = self._halves[self._number][self._comm.rank]
        shown.ahead[0] = self._task.ahead(iteration)
        for n, k in enumerate(self._tile.agents.tolist()):
            x, y = samples.x[i][k], samples.y[i][k]
            shown.inputs[n] = len(y)
            shown.x[n, : len(y)], shown.y[n, : len(y)] = x, y

    def judge(self, rows: np.ndarray) -> np.ndarray:
        """Loss of each message, `rows` (H, P) as heard, on its target's offered sample: float64 (E,)."""
        half, own = self._halves[self._number], self._comm.rank
        ahead = np.array([shown.ahead[0] for shown in half])
        found = loans([shown.inputs for shown in half], list(self._messages), ahead)
        # What others wait for comes first.
        borrowed = [loan for loan in found if loan.helper == own]
        for loan in borrowed:
            begin = int(self._begin[loan.owner][loan.agent])
            edges = slice(begin + loan.edges.start, begin + loan.edges.stop)
            half[loan.owner].judged[edges] = self._judge(half, loan.owner, loan.agent, edges, rows)
        told = [self._tell[rank] for rank in dict.fromkeys(loan.owner for loan in borrowed)]
        self._window.Sync()
        MPI.Prequest.Startall(told)

        lent = [loan for loan in found if loan.owner == own]
        awaited = [self._hear[rank] for rank in dict.fromkeys(loan.helper for loan in lent)]
        MPI.Prequest.Startall(awaited)
        kept = self._tile.size.copy()
        for loan in lent:
            kept[loan.agent] = min(kept[loan.agent], loan.edges.start)
        loss = np.empty(len(self._tile.row))
        for n, (begin, count) in enumerate(zip(self._tile.start.tolist(), kept.tolist(), strict=True)):
            edges = slice(begin, begin + count)
            loss[edges] = self._judge(half, own, n, edges, rows)
        MPI.Request.Waitall(told + awaited)
        self._window.Sync()
        for loan in lent:
            begin = int(self._tile.start[loan.agent])
            edges = slice(begin + loan.edges.start, begin + loan.edges.stop)
            loss[edges] = half[own].judged[edges]
        return loss

    def _judge(self, half: list[_Shown], rank: int, agent: int, edges: slice, rows: np.ndarray) -> np.ndarray:
        shown = half[rank]
        inputs = int(shown.inputs[agent])
        x, y = shown.x[agent, :inputs], shown.y[agent, :inputs]
        return self._task.judge_some(rows, self._row[rank][edges], x, y)

    def close(self) -> None:
        """Free the requests, the window and the communicator; collective on the node."""
        for request in [*self._tell.values(), *self._hear.values()]:
            request.Free()
        self._halves = []
        self._window.Unlock_all()
        self._window.Free()
        self._comm.Free()
