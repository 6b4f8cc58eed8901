"""Attacks in plain loops over Python floats, from their formulas alone.

A world says who hears whom and who is Byzantine; a model is a list of numbers. Each attack is a function of the world,
an attacker l, its victim k and what is known, and returns the message l sends to k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

Model = list[float]


@dataclass
class World:
    """Agents 0 to n-1."""

    hears: list[list[int]]
    """Whom each agent hears, itself included."""
    byzantine: list[bool]

    def normal(self, k: int) -> list[int]:
        """The normal agents k hears, itself included if it is one."""
        return [a for a in sorted(self.hears[k]) if not self.byzantine[a]]

    def liars(self, k: int) -> list[int]:
        """The Byzantine agents k hears, itself left out."""
        return [a for a in sorted(self.hears[k]) if self.byzantine[a] and a != k]

    def edges(self) -> list[tuple[int, int]]:
        """(attacker, victim), the victims normal."""
        agents = range(len(self.hears))
        return sorted((a, k) for k in agents for a in self.liars(k) if not self.byzantine[k])

    def among(self, k: int, over: str) -> tuple[list[int], int]:
        """The normal agents that an attack on k looks at, and the number of Byzantine agents beside them."""
        if over == "neighbourhood":
            return self.normal(k), len(self.liars(k))
        everyone = [a for a, bad in enumerate(self.byzantine) if not bad]
        return everyone, len(self.byzantine) - len(everyone)

    def metropolis(self, k: int, other: int) -> float:
        """W_kl = 1 / (1 + max(deg_k, deg_l))."""
        return 1 / (1 + max(len(set(self.hears[a]) - {a}) for a in (k, other)))


def add(*models: Model) -> Model:
    """Their sum."""
    return [math.fsum(values) for values in zip(*models, strict=True)]


def times(factor: float, model: Model) -> Model:
    """factor m."""
    return [factor * value for value in model]


def minus(one: Model, other: Model) -> Model:
    """one - other."""
    return add(one, times(-1, other))


def dot(one: Model, other: Model) -> float:
    """one'other."""
    return math.fsum(x * y for x, y in zip(one, other, strict=True))


def distance(one: Model, other: Model) -> float:
    """norm(one - other)."""
    return math.dist(one, other)


def mean(models: Sequence[Model]) -> Model:
    """Their mean."""
    return times(1 / len(models), add(*models))


def deviation(models: Sequence[Model]) -> Model:
    """Their population standard deviation, coordinate by coordinate."""
    middle = mean(models)
    squares = [[value * value for value in minus(model, middle)] for model in models]
    return [math.sqrt(value) for value in mean(squares)]


def little(world: World, k: int, psi: list[Model], z: float | None, over: str) -> Model:
    """mean - z std, z = Phi^-1((n-b-s)/(n-b)), s = floor(n/2+1) - b; s >= 1 and z >= 0."""
    who, b = world.among(k, over)
    n = len(who) + b
    if z is None:
        s = max(1, math.floor(n / 2 + 1) - b)
        share = (n - b - s) / (n - b)
        z = NormalDist().inv_cdf(share) if share > 0.5 else 0.0
    models = [psi[a] for a in who]
    return minus(mean(models), times(z, deviation(models)))


def inner_product(world: World, k: int, psi: list[Model], previous: list[Model], eps: float, over: str) -> Model:
    """mean of the previous models - eps (mean update)."""
    who, _ = world.among(k, over)
    update = mean([minus(psi[a], previous[a]) for a in who])
    return minus(mean([previous[a] for a in who]), times(eps, update))


def inner_product_search(world: World, k: int, psi: list[Model], previous: list[Model], eps: float, over: str) -> Model:
    """The same for the least of eps 2^-4 to eps 2^11 that carries the median, lies included, farthest from the mean."""
    who, b = world.among(k, over)
    middle = mean([psi[a] for a in who])
    best, farthest = [], -1.0
    for power in range(-4, 12):
        message = inner_product(world, k, psi, previous, eps * 2.0**power, over)
        moved = distance(median([psi[a] for a in who] + [message] * b), middle)
        if moved > farthest * (1 + 1e-12) + 1e-300:
            best, farthest = message, moved
    return best


def median(models: Sequence[Model]) -> Model:
    """Coordinate by coordinate; of an even number the mean of the two in the middle."""
    found = []
    for values in zip(*models, strict=True):
        ordered = sorted(values)
        found.append((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
    return found


def min_max(world: World, k: int, psi: list[Model], over: str) -> Model:
    """mean - gamma std with the largest gamma, found by halving, of greatest distance to a model <= that of two."""
    models = [psi[a] for a in world.among(k, over)[0]]
    middle, spread = mean(models), deviation(models)
    widest = max(distance(one, other) for one in models for other in models)

    def fits(gamma: float) -> bool:
        return max(distance(minus(middle, times(gamma, spread)), model) for model in models) <= widest

    low, high = 0.0, 1.0
    if not any(spread):
        return middle
    while fits(high):
        high *= 2
    for _ in range(60):
        half = (low + high) / 2
        low, high = (half, high) if fits(half) else (low, half)
    return minus(middle, times(low, spread))


def farthest(world: World, k: int, psi: list[Model], over: str) -> list[int]:
    """The agent, or several as far but for rounding, farthest from the victim, or over all from the mean of all."""
    who, _ = world.among(k, over)
    centre = psi[k] if over == "neighbourhood" else mean([psi[a] for a in who])
    far = {a: distance(psi[a], centre) for a in who}
    return [a for a in who if far[a] >= max(far.values()) * (1 - 1e-12)]


def pull(world: World, k: int, psi: list[Model]) -> Model:
    """sum over normal l of W_kl (m_l - p_k)."""
    return add(*(times(world.metropolis(k, a), minus(psi[a], psi[k])) for a in world.normal(k)))


def dissensus(world: World, k: int, psi: list[Model], eps: float) -> Model:
    """p_k - eps sum_normal W_kl (m_l - p_k) / sum_byz W_kb."""
    weight = math.fsum(world.metropolis(k, liar) for liar in world.liars(k))
    return minus(psi[k], times(eps / weight, pull(world, k, psi)))


def gossip(world: World, k: int, heard: dict[int, Model]) -> Model:
    """sum W_kl m_l over k's neighbourhood, W_kk = 1 - the rest."""
    weights = {a: world.metropolis(k, a) for a in heard if a != k}
    weights[k] = 1 - math.fsum(weights.values())
    return add(*(times(weights[a], model) for a, model in heard.items()))


def drift(start: Model, theta: Model, iteration: int, r: float, goal: float, step: float) -> Model:
    """theta + r (goal_i + Delta / r - theta), the goal counted from `start`."""
    ahead = [s + goal + iteration * step + step / r for s in start]
    return add(theta, times(r, minus(ahead, theta)))


class Blind:
    """`drift-blind` of one attacker on one victim, iteration by iteration."""

    def __init__(self, world: World, attacker: int, k: int, options):
        hears = [a for a in world.hears[attacker] if a != attacker]
        self.told = [a for a in world.normal(k) if a in hears]
        self.hears_victim = k in hears
        self.k, self.options = k, options
        self.weight = [1 / (len(self.told) + 1)] * (len(self.told) + 1)
        self.before: list[Model] | None = None
        self.last: list[Model] | None = None
        self.said: Model | None = None
        self.start: Model | None = None

    def __call__(self, iteration: int, own: Model, heard: dict[int, Model]) -> Model:
        """`heard`: what the attacker heard in the last iteration, by speaker."""
        if self.said is None:
            self.said = own
            return own
        columns = [self.said, *(heard[a] for a in self.told)]
        if self.last is not None and self.hears_victim:
            self.learn(self.last, heard[self.k])
        estimate = add(*(times(w, column) for w, column in zip(self.weight, columns, strict=True)))
        if self.start is None:
            self.start = estimate if self.options.relative else [0.0] * len(estimate)
        o = self.options
        self.last, self.said = columns, drift(self.start, estimate, iteration, o.r, o.goal, o.step)
        return self.said

    def learn(self, columns: list[Model], spoken: Model) -> None:
        """A <- projection of A + mu P'e, e = p_k - P A, mu = weight_step / norm(P - p_k 1')^2."""
        error = minus(spoken, add(*(times(w, column) for w, column in zip(self.weight, columns, strict=True))))
        squares = math.fsum(distance(column, spoken) ** 2 for column in columns)
        if squares == 0:
            return
        mu = self.options.weight_step / squares
        self.weight = simplex([w + mu * dot(column, error) for w, column in zip(self.weight, columns, strict=True)])


def simplex(point: Sequence[float]) -> list[float]:
    """The nearest point with entries >= 0 of sum 1: max(x - t, 0), t found by halving."""
    low, high = min(point) - 1, max(point)
    for _ in range(200):
        half = (low + high) / 2
        low, high = (half, high) if math.fsum(max(x - half, 0) for x in point) > 1 else (low, half)
    return [max(x - low, 0) for x in point]


def onto(model: Model, u: Model, y: float) -> Model:
    """p + (y - u'p) u / norm(u)^2."""
    return add(model, times((y - dot(u, model)) / dot(u, u), u))


def null_space_plane(model: Model, u: Model, y: float, c: float) -> Model:
    """`onto` + c u_perp in two dimensions, u_perp the unit vector 90 degrees left of u."""
    norm = math.sqrt(dot(u, u))
    return add(onto(model, u, y), times(c / norm, [-u[1], u[0]]))


def null_space_fitted(
    origin: Model, psi: Model, loss: Callable[[Model], float], gradient: Callable, below: float, steps: int
) -> Model:
    """From `origin`, steps of length loss / norm(gradient) until the loss is at most `below` times that of psi."""
    model = origin
    for _ in range(steps):
        value, slope = loss(model), gradient(model)
        if value <= below * loss(psi) or not any(slope):
            break
        model = minus(model, times(value / dot(slope, slope), slope))
    return model


class Sleeper:
    """`sleeper` of one attacker on one victim: both accumulated losses, and when to spend what has been saved."""

    def __init__(self, options, nu: float, initial: float):
        self.options, self.nu = options, nu
        self.own = self.heard = initial

    def __call__(self, own: Model, psi: Model, loss: Callable[[Model], float], spend: Callable) -> Model:
        """`spend(psi, budget)` -> the model of greatest loss within the budget."""
        nu = self.nu
        self.own = (1 - nu) * self.own + nu * loss(psi)
        message = own
        budget = (self.own - (1 - nu) * self.heard) / nu
        if budget - loss(own) > self.options.margin * self.own:
            spent = spend(psi, (1 - 1e-6) * budget)
            if loss(spent) <= budget:
                message = spent
        self.heard = (1 - nu) * self.heard + nu * loss(message)
        return message


def spend_plane(psi: Model, u: Model, y: float, budget: float) -> Model:
    """p_k + (y + budget^1/2 - u'p_k) u / norm(u)^2."""
    return onto(psi, u, y + math.sqrt(budget))


def spend_shrunk(psi: Model, loss: Callable[[Model], float], budget: float, reach: float, evaluations: int) -> Model:
    """(1 - t) psi_k, t the largest tried in [0, reach] that stays within the budget."""
    low, high = 0.0, reach
    for _ in range(evaluations):
        half = (low + high) / 2
        low, high = (half, high) if loss(times(1 - half, psi)) <= budget else (low, half)
    return times(1 - low, psi)
