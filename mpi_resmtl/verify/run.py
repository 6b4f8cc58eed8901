"""What a result file says of its run, and what follows from that for every rule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mpi_resmtl.config import Experiment, Use
from mpi_resmtl.partition import offsets
from mpi_resmtl.tasks.linear_regression import covariance

PHASES = ("adapt", "attack", "exchange", "evaluate", "combine", "measure", "record")
TOLERANCE = 1e-9
"""Relative error that rounding may make."""

Problems = Iterator[str]
"""What is wrong, one line each."""


class RunOfFile:
    """What a file says of its run: configuration, graph and scales."""

    def __init__(self, experiment: Experiment, ranks: int, stages: list[dict], lost: list[dict], survives: bool):
        """`lost`: ranks that have died in the run; `survives`: they might have."""
        self.experiment, self.ranks, self.stages, self.lost = experiment, ranks, stages, lost
        self.task, self.rules = experiment.task.name, experiment.rules
        self.order = sorted(self.rules, key=lambda name: self.use(name).rule.name != "none")
        self.position = self.target = self.work = None
        self.deadline = survives or experiment.exchange.deadline > 0

    def use(self, name: str) -> Use:
        """How a rule is used."""
        return self.experiment.uses[name]

    def look_at_edges(self) -> None:
        """What neighbourhoods follow from the edges, which are sorted and whole."""
        source, target = self.edge.T.astype(np.int64)
        self.keys = target * self.n + source
        self.size = np.bincount(target, minlength=self.n)
        alive = np.ones(self.n, bool)
        for rank in self.lost:
            alive[rank["first"] : rank["stop"]] = False
        # What dead agents found before is not looked at.
        self.normal = np.flatnonzero(~self.byzantine & alive)
        hears = (~self.byzantine & alive)[target]
        self.into = np.flatnonzero(hears)
        """(F,) edges into normal agents."""
        self.source, self.hearer = source[hears], target[hears]
        self.start = np.flatnonzero(np.diff(self.hearer, prepend=-1))
        """(m,) the first of them into each normal agent."""
        self.own = np.flatnonzero(self.source == self.hearer)
        """(m,) of these the one from itself."""
        self.own_of = self.own.repeat(self.size[self.normal])
        self.from_byzantine = self.byzantine[self.source]
        same = self.group[self.source] == self.group[self.hearer]
        self.from_friend = ~self.from_byzantine & same & (self.source != self.hearer)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum over each normal agent's edges: (..., F) -> (..., m)."""
        return np.add.reduceat(values, self.start, axis=-1)

    def segments(self, number: int) -> list[tuple[int, int, int]]:
        """Of the rule that runs as such a number: after which iteration, and up to which, how many ranks work."""
        begun = [(self.order.index(stage["rule"]), stage["iteration"], stage["ranks"]) for stage in self.stages]
        found = []
        for place, (rule, iteration, ranks) in enumerate(begun):
            first = iteration if rule == number else 0
            stop = self.iterations
            if place + 1 < len(begun) and begun[place + 1][0] == number:
                stop = begun[place + 1][1]
            ended = place + 1 < len(begun) and begun[place + 1][0] < number
            if rule <= number and not ended and first < stop:
                found.append((first, stop, ranks))
        return found

    def traffic(self, ranks: int) -> tuple[np.ndarray, np.ndarray]:
        """Messages and rows that each rank sends an iteration, at least and at most: (ranks, 2) both."""

        bounds = offsets(self.n, ranks, self.work)
        owner = np.arange(ranks).repeat(np.diff(bounds))
        source, target = self.edge.T.astype(np.int64)
        across = owner[source] != owner[target]
        source, target = source[across], target[across]
        lies = self.byzantine[source]
        # A normal agent's row goes to a rank once, an attacker's once for each victim.
        rows = np.stack([source, owner[target], np.where(lies, target, -1), lies], axis=1)
        rows = np.unique(rows, axis=0)
        found = []
        for some in (rows[rows[:, 3] == 0], rows):
            pairs = np.unique(np.stack([owner[some[:, 0]], some[:, 1]], axis=1), axis=0)
            messages = np.bincount(pairs[:, 0], minlength=ranks)
            found.append(np.stack([messages, np.bincount(owner[some[:, 0]], minlength=ranks)], axis=1))
        return found[0], found[1]


def risk_bounds(run: RunOfFile, error: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Between what true risks lie whose model minus truth is `error` (b, m, P), whatever the noise; None: unknown."""
    parameters = run.experiment.task
    with np.errstate(over="ignore", invalid="ignore"):
        squared = (error * error).sum(axis=2)
        if run.task == "target-localization" and run.position is not None:
            towards = (run.target - run.position)[run.normal]
            towards = towards / np.linalg.norm(towards, axis=1, keepdims=True)
            along = (error * towards).sum(axis=2) ** 2
            noisy = error.sum(axis=2) ** 2 if parameters.noise == "scalar" else squared
            # Rounding of the sum may go either way.
            slack = 1e-12 * (squared + noisy)
            direction = [
                *parameters.direction_noise,
                *([parameters.noisy_direction] if parameters.noisy_agents else []),
            ]
            low, high = parameters.distance_noise
            least = along + min(direction) ** 2 * noisy + low**2 - slack
            return least, along + max(direction) ** 2 * noisy + high**2 + slack
        if run.task == "linear-regression":
            eigenvalues = covariance(parameters, run.experiment.seed).eigenvalues
            (low, high), (least, most) = parameters.regressor_variance, parameters.noise
            return low * eigenvalues.min() * squared + least**2, high * eigenvalues.max() * squared + most**2
    return None


def kept(iterations: int, every: int) -> np.ndarray:
    """Iterations (from 1) of which one in `every` is recorded, and the last; none where `every` is 0."""
    if every == 0:
        return np.zeros(0, np.int64)
    return np.append(np.arange(every, iterations, every), iterations)
