"""Rules that give each message a weight, in plain loops, from their formulas alone.

An agent's messages are a list of lists of numbers in agent order, k the place of its own among them; W, losses and
distances are lists of numbers beside it. What comes back are weights, one a message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations

from oracle_robust import squared_distance

Number = float | Fraction
Messages = Sequence[Sequence[Number]]


def combined(weights: Sequence[Number], messages: Messages) -> list[Number]:
    """sum of weight times message, exactly."""
    pairs = list(zip(map(Fraction, weights), messages, strict=True))
    return [sum(w * Fraction(m[p]) for w, m in pairs) for p in range(len(messages[0]))]


def all_to(place: int, n: int) -> list[int]:
    """All the weight to one."""
    return [int(l == place) for l in range(n)]  # noqa: E741


def mean_over(chosen: Sequence[int], n: int) -> list[Fraction]:
    """The same weight to each of the chosen."""
    return [Fraction(int(place in chosen), len(chosen)) for place in range(n)]


def blended(accepted: Sequence[int], k: int, n: int, alpha: float) -> list[Fraction]:
    """alpha to oneself, the rest to those accepted in equal parts; all to oneself where nobody is."""
    if not accepted:
        return all_to(k, n)
    return [
        Fraction(alpha) if place == k else (1 - Fraction(alpha)) * int(place in accepted) / len(accepted)
        for place in range(n)
    ]


def proportional(shares: Sequence[Number], k: int) -> list[Fraction]:
    """Shares divided by their sum; all to oneself where that is 0."""
    total = sum(map(Fraction, shares))
    return [Fraction(share) / total for share in shares] if total else all_to(k, len(shares))


def nearest_first(messages: Messages, anchor: Sequence[Number], among: Sequence[int]) -> list[int]:
    """Places `among` in the order of their distance from the anchor, the first of equals first."""
    return sorted(among, key=lambda place: (squared_distance(messages[place], anchor), place))


def mean_regularised(k: int, n: int, strength: float) -> list[Fraction]:
    """psi - s (psi - mean)."""
    pull = Fraction(strength)
    return [pull / n + (1 - pull) * int(place == k) for place in range(n)]


def oracle(k: int, friend: Sequence[bool]) -> list[Fraction]:
    """Mean over the friends and oneself."""
    return mean_over([place for place in range(len(friend)) if friend[place] or place == k], len(friend))


def monna(messages: Messages, k: int, b: int) -> list[Fraction]:
    """Mean of the n - b messages nearest one's own."""
    n = len(messages)
    others = nearest_first(messages, messages[k], [place for place in range(n) if place != k])
    return mean_over([k, *others[: n - b - 1]], n)


def ios(messages: Messages, k: int, b: int, metropolis: Sequence[float]) -> list[Fraction]:
    """b times: drop the neighbour farthest from the weighted mean of the set, the heavier of equals."""
    weights = [Fraction(w) for w in metropolis]
    for _ in range(b):
        weights = proportional(weights, k)
        mean = combined(weights, messages)
        left = [place for place in range(len(messages)) if place != k and weights[place]]
        if left:
            worst = max(left, key=lambda place: (squared_distance(messages[place], mean), weights[place], -place))
            weights[worst] = Fraction(0)
    return proportional(weights, k)


def balance(messages: Messages, k: int, gamma: float, kappa: float, alpha: float, done: float) -> list[Fraction]:
    """Neighbours within gamma exp(-kappa done) norm(p) of p."""
    radius = gamma * math.exp(-kappa * done) * math.hypot(*messages[k])
    near = [place for place in range(len(messages)) if place != k and math.dist(messages[place], messages[k]) <= radius]
    return blended(near, k, len(messages), alpha)


def heaviest(metropolis: Sequence[float], k: int, b: int) -> Fraction:
    """The greatest weight that b neighbours have together."""
    return sum(sorted((Fraction(w) for place, w in enumerate(metropolis) if place != k), reverse=True)[:b], Fraction(0))


def left_after(messages: Messages, k: int, metropolis: Sequence[float], taken: Fraction) -> list[int]:
    """Places left after messages were taken from the far end, the heavier of equals first, until that weight is gone.

    `taken` may be missed by a billionth of itself.
    """
    order = sorted(
        range(len(messages)),
        key=lambda place: (squared_distance(messages[place], messages[k]), metropolis[place], place),
    )
    gone = Fraction(0)
    while order and gone < taken * (1 - Fraction(1, 10**9)):
        gone += Fraction(metropolis[order.pop()])
    return order


def clipped(messages: Messages, k: int, metropolis: Sequence[float], squared_radius: Number | None) -> list[float]:
    """p + sum W (m - p) min(1, tau / norm(m - p)) as weights; None: nothing is clipped."""
    weights = [float(w) for w in metropolis]
    for place, message in enumerate(messages):
        squared = squared_distance(message, messages[k])
        if squared_radius is not None and squared > squared_radius:
            weights[place] *= math.sqrt(Fraction(squared_radius) / squared)
    weights[k] = 1.0 - math.fsum(w for place, w in enumerate(weights) if place != k)
    return weights


def clipped_gossip(messages: Messages, k: int, b: int, metropolis: Sequence[float]) -> list[float]:
    """tau^2 = sum over those left after W_b is gone of W norm(m - p)^2, divided by W_b."""
    byzantine = heaviest(metropolis, k, b)
    if not byzantine:
        return clipped(messages, k, metropolis, None)
    left = left_after(messages, k, metropolis, byzantine)
    total = sum(Fraction(metropolis[place]) * squared_distance(messages[place], messages[k]) for place in left)
    return clipped(messages, k, metropolis, total / byzantine)


def cs_plus(messages: Messages, k: int, b: int, metropolis: Sequence[float]) -> list[float]:
    """tau is the greatest distance left after 2 W_b is gone."""
    byzantine = heaviest(metropolis, k, b)
    if not byzantine:
        return clipped(messages, k, metropolis, None)
    left = left_after(messages, k, metropolis, 2 * byzantine)
    return clipped(
        messages, k, metropolis, max((squared_distance(messages[p], messages[k]) for p in left), default=Fraction(0))
    )


def ubar(messages: Messages, k: int, losses: Sequence[float], rho: float, alpha: float) -> list[Fraction]:
    """Of the rho n nearest neighbours, those whose loss is not above one's own."""
    neighbours = [place for place in range(len(messages)) if place != k]
    tried = max(1, math.floor(Fraction(rho).limit_denominator(1000) * len(neighbours)))
    nearest = nearest_first(messages, messages[k], neighbours)[:tried]
    return blended([place for place in nearest if losses[place] <= losses[k]], k, len(messages), alpha)


def pens(losses: Sequence[float], k: int, m: int) -> list[Fraction]:
    """Mean of oneself and the m neighbours of least loss, the first of equals first."""
    neighbours = sorted((losses[place], place) for place in range(len(losses)) if place != k)
    return mean_over([k, *(place for _, place in neighbours[:m])], len(losses))


def dac(losses: Sequence[float], temperature: float, smallest: float = 1e-290) -> list[float]:
    """Softmax of 1/loss."""
    similarity = [1.0 / (temperature * max(loss, smallest)) for loss in losses]
    greatest = max(similarity)
    share = [math.exp(s - greatest) for s in similarity]
    return [s / math.fsum(share) for s in share]


def fedfomo(messages: Messages, k: int, losses: Sequence[float], previous: Sequence[float], before: float):
    """max(0, loss of the previous model - loss) / norm(m - previous), divided by their sum."""
    shares = []
    for message, loss in zip(messages, losses, strict=True):
        distance = math.dist(message, previous)
        shares.append(max(0.0, before - loss) / distance if distance else 0.0)
    return proportional(shares, k)


def loss_robust(losses: Sequence[float], k: int, cap: float, smallest: float = 1e-290) -> list[Fraction]:
    """Weights of eq. 10, no neighbour's above the cap; what is cut off goes to oneself."""
    shares = [1 / Fraction(max(loss, smallest)) if loss <= losses[k] else 0 for loss in losses]
    weights = [min(w, Fraction(cap)) for w in proportional(shares, k)]
    weights[k] = 1 - sum(w for place, w in enumerate(weights) if place != k)
    return weights


def f_filter(losses: Sequence[float], distances: Sequence[float], k: int, b: int) -> list[Fraction]:
    """1/D over S = N without R; of all R of b neighbours that of the least sum J D^-2 / (sum D^-1)^2."""
    n = len(losses)
    neighbours = [place for place in range(n) if place != k]
    if len(neighbours) <= b:
        return all_to(k, n)
    close = [1 / Fraction(d) for d in distances]
    least: Callable[[tuple[int, ...]], Fraction] = lambda dropped: (  # noqa: E731
        sum(Fraction(losses[place]) * close[place] ** 2 for place in neighbours if place not in dropped)
        / sum(close[place] for place in range(n) if place not in dropped) ** 2
    )
    best = min(combinations(neighbours, b), key=least)
    return proportional([0 if place in best else close[place] for place in range(n)], k)


def risk_estimates(losses: Sequence[float], distances: Sequence[float], k: int, b: int) -> list[Fraction]:
    """What `f_filter` minimises, for every set, in ascending order."""
    neighbours = [place for place in range(len(losses)) if place != k]
    close = [1 / Fraction(d) for d in distances]
    return sorted(
        sum(Fraction(losses[p]) * close[p] ** 2 for p in neighbours if p not in dropped)
        / sum(close[p] for p in range(len(losses)) if p not in dropped) ** 2
        for dropped in combinations(neighbours, b)
    )
