"""How a rule's models come about on a rank: weights over edges, or aggregates over stacks of agents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mpi_resmtl.errors import UserError
from mpi_resmtl.exchange import Everyone, Exchange, PartialExchange
from mpi_resmtl.graph import Graph
from mpi_resmtl.judging import Judge, Moment
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.rules import Heard, Mixing, Rule
from mpi_resmtl.rules.mixing import bucketing, nnm
from mpi_resmtl.stacks import Stack, heard, stacks
from mpi_resmtl.stopwatch import Stopwatch


@dataclass(frozen=True)
class Method:
    """A rule as an experiment uses it."""

    name: str
    """Of its results."""
    rule: Rule
    options: object
    """The rule's own parameters."""
    b: int
    """Byzantine neighbours to stand."""
    pre: Mixing = ""
    """What is done to messages before the rule sees them."""
    bucket: int = 2
    """Messages in a bucket."""

    def places(self, messages: int) -> int:
        """What the rule is given of so many messages."""
        return -(-messages // self.bucket) if self.pre == "bucketing" else messages

    def stands(self, messages: int) -> int | None:
        """The greatest b that the rule can stand with so many messages, possibly below 0; None: it does not use b."""
        if self.rule.stands is None:
            return messages - 1 if self.pre == "nnm" else None
        return self.rule.stands(self.places(messages), self.options)

    def lowered(self, counts: np.ndarray) -> np.ndarray:
        """b, lowered to what the rule can stand with these numbers of messages: intp, of the same shape."""
        table = {n: self.stands(n) for n in np.unique(counts).tolist()}
        caps = [self.b if table[n] is None else max(0, min(self.b, table[n])) for n in counts.tolist()]
        return np.array(caps, np.intp)

    def check(self, sizes: np.ndarray, agents: np.ndarray, cap: bool) -> None:
        """Raise UserError where a neighbourhood, `sizes` (N,) of `agents` (N,), is too small for b or too large."""
        for n in np.unique(sizes).tolist():
            most = self.stands(n)
            who = f"agent {agents[sizes == n].min()} hears {n} messages, itself included"
            if most is not None and most < self.b and not cap:
                raise UserError(
                    f"rule {self.name}: {who}, with which it can stand {max(most, 0)} Byzantine neighbours, not "
                    f"b = {self.b}; lower rule.b, or let it be lowered there with rule.excess = cap"
                )
            if self.rule.check is not None:
                try:
                    self.rule.check(self.places(n), self.b if most is None else max(0, min(self.b, most)), self.options)
                except UserError as error:
                    raise UserError(f"rule {self.name}: {who}: {error}") from None


class Combiner:
    """Combines what a rank's agents hear, by one method; `part` (E_r,) is what each message had in the result."""

    def __init__(
        self,
        method: Method,
        judge: Judge,
        distances: Judge | None,
        tiles: list[Neighbourhoods],
        first: int,
        graph: Graph,
        degree: np.ndarray,
        parameters: int,
        seed: int,
        iterations: int,
        own_losses: Callable[[Moment], np.ndarray],
        clock: Stopwatch,
    ):
        """`distances` judges by distance for rules that need it too; `own_losses` those of the previous models."""
        self._method, self.judge, self._distances, self._own_losses = method, judge, distances, own_losses
        self._seed, self._iterations, self._clock = seed, iterations, clock
        self.part = np.full(len(judge.held), np.nan)
        dense = method.rule.aggregate is not None or method.pre
        self._tiles = [
            (t, list(stacks(t, first, graph, degree, parameters, method.lowered)) if dense else []) for t in tiles
        ]
        self._judges = method.rule.weigh is not None or method.rule.judged_by is not None or distances is not None
        if method.pre == "nnm":
            self._mixed = [_mixed(tile, dense) for tile, dense in self._tiles]

    @property
    def judges(self) -> dict[str, Judge]:
        """All that holds something against edges, by name."""
        return {"judge": self.judge} | ({} if self._distances is None else {"distances": self._distances})

    def __call__(
        self,
        moment: Moment,
        rows: np.ndarray,
        finite: np.ndarray | None,
        arrived: np.ndarray | None,
        reported: bool,
    ) -> None:
        """theta <- what the method makes of the rows that agents hear.

        `finite` and `arrived` (rows,) bool, None: all are; what did not arrive is not finite. A `trusting` rule takes
        all that arrived. `reported` says whether `part` will be looked at.
        """
        rule, theta = self._method.rule, moment.theta
        taken = arrived if rule.trusting and not self._method.pre else finite
        self.judge.begin(moment)
        if self._distances is not None:
            self._distances.begin(moment)
        compared = self._own_losses(moment) if rule.compares else None
        for number, (tile, dense) in enumerate(self._tiles):
            usable = None if taken is None else _usable(taken, tile)
            seen, heard_rows = tile, rows
            if self._method.pre == "nnm":
                heard_rows = self._nearest_means(dense, rows, usable, len(tile.row))
                seen, dense = self._mixed[number]
            messages = seen.gather(heard_rows) if self._judges else heard_rows
            usable = self.judge(seen, messages, usable)
            if self._distances is not None:
                usable = self._distances(seen, messages, usable)
            self._clock.lap("evaluate")
            if rule.weigh is not None:
                a = rule.weigh(seen, self.judge.held[tile.edges])
                if usable is not None:
                    a = _without(seen, a, usable, messages)
                seen.combine(a, messages, theta)
                if reported:
                    self.part[tile.edges] = a
            else:
                for stack in dense:
                    self._aggregate(moment, tile, stack, heard_rows, usable, compared, reported)
            self._clock.lap("combine")

    def stand_still(self) -> None:
        """Give each agent's own message all of the part, as where models stay what they are."""
        if self._method.rule.reports is not None:
            for tile, _ in self._tiles:
                part = self.part[tile.edges]
                part[:] = 0.0
                part[tile.own] = 1.0

    def _aggregate(self, moment, tile, stack: Stack, rows, usable, compared, reported: bool) -> None:
        method, held = self._method, self.judge.held[tile.edges]
        judged = method.rule.judged_by is not None
        given = heard(
            stack,
            rows,
            moment.theta,
            usable,
            method.lowered,
            judged=self._held(stack, held, usable) if judged else None,
            distance=self._held(stack, self._distances.held[tile.edges], usable) if self._distances else None,
            judged_previous=None if compared is None else compared[stack.agents],
            iteration=moment.iteration,
            iterations=self._iterations,
            seed=self._seed,
            reported=reported,
        )
        if method.pre == "bucketing":
            given = self._in_buckets(given)
        model, part = method.rule.aggregate(given, method.options)
        moment.theta[stack.agents] = model
        edges = slice(tile.edges.start + stack.edges.start, tile.edges.start + stack.edges.stop)
        self.part[edges] = np.nan if part is None or method.pre == "bucketing" else stack.collect(part)

    @staticmethod
    def _held(stack: Stack, held: np.ndarray, usable: np.ndarray | None) -> np.ndarray:
        return stack.spread(held if usable is None else np.where(usable, held, np.inf), np.inf)

    def _nearest_means(self, dense: list[Stack], rows: np.ndarray, usable: np.ndarray | None, edges: int) -> np.ndarray:
        """Each message of a tile replaced by the mean of its nearest: rows (E, P)."""
        mixed = np.empty((edges, rows.shape[1]), rows.dtype)
        for stack in dense:
            changed = {} if usable is None else stack.without(usable, self._method.lowered)
            present = changed.get("present", stack.present)
            means = nnm(stack.messages(rows, changed.get("present")), present, changed.get("b", stack.b))
            mixed[stack.edges] = means.reshape(-1, rows.shape[1])[stack.slot]
        return mixed

    def _in_buckets(self, given: Heard) -> Heard:
        messages, present = bucketing(
            given.messages, given.present, given.agent, given.iteration, self._seed, self._method.bucket
        )
        counts = given.present.sum(axis=1)
        return replace(
            given,
            messages=messages,
            present=present,
            whole=bool(present.all()),
            b=self._method.lowered(counts),
            own=np.zeros_like(given.own),
        )


class ServerCombiner:
    """The server's part: everyone's model goes to it, and its answer comes back; the graph does not matter."""

    def __init__(
        self,
        method: Method,
        judge: Judge,
        everyone: Everyone,
        exchange: Exchange | PartialExchange,
        step_size: float,
        clock: Stopwatch,
    ):
        self._method, self.judge, self._everyone, self._clock = method, judge, everyone, clock
        self._exchange, partition = exchange, exchange.partition
        self._step_size, self._own = step_size, slice(partition.first, partition.first + partition.count)
        self.part = np.full(len(judge.held), np.nan)
        first = np.unique(partition.spoken[:, 0], return_index=True)[1]
        self._liars, self._lies = partition.spoken[first, 0] - partition.first, partition.spoken_row[first]

    @property
    def judges(self) -> dict[str, Judge]:
        """Nothing: a server holds nothing against anyone."""
        return {}

    def __call__(
        self,
        moment: Moment,
        rows: np.ndarray,
        finite: np.ndarray | None,
        arrived: np.ndarray | None,
        reported: bool,
    ) -> None:
        """theta <- the server's answer; it hears from an attacker what its first victim hears, 0 where that is NaN."""
        said = moment.psi.copy()
        said[self._liars] = self._exchange.mine[self._lies]
        said[~np.isfinite(said).all(axis=1)] = 0
        models = self._everyone.rows(said)
        moment.theta[:] = self._method.rule.serve(models, self._step_size, self._method.options)[self._own]
        self._clock.lap("combine")


def _mixed(tile: Neighbourhoods, dense: list[Stack]) -> tuple[Neighbourhoods, list[Stack]]:
    """The same neighbourhoods where each edge has a row of its own, in the order of edges."""
    row = np.arange(len(tile.row))
    moved = []
    for stack in dense:
        own = row[stack.edges][
            np.flatnonzero(np.isin(stack.slot, np.arange(len(stack.own)) * stack.row.shape[1] + stack.own))
        ]
        places = own.repeat(stack.row.shape[1])
        places[stack.slot] = row[stack.edges]
        moved.append(replace(stack, row=places.reshape(stack.row.shape)))
    return replace(tile, row=row), moved


def _usable(taken: np.ndarray, tile: Neighbourhoods) -> np.ndarray:
    """Which messages may have weight (E,); one's own always may."""
    usable = taken[tile.row]
    usable[tile.own] = True
    return usable


def _without(tile: Neighbourhoods, weight: np.ndarray, usable: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """Weights with 0 on what is not usable, their sum 1 again; gathered copies of such messages become 0.

    Weights of agents that can use all they hear stay as they are, so that they do not depend on who shares the tile.
    """
    usable = usable.copy()
    usable[tile.own] = True
    if tile.gathered:
        messages[~usable] = 0.0
    loses = tile.spread(np.logical_and.reduceat(usable, tile.start)) == 0
    left = np.where(usable, weight, 0.0)
    lonely = tile.total(left) == 0.0
    left[tile.own[lonely]] = 1.0
    return np.where(loses, tile.normalise(left), weight)
