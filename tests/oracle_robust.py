"""Robust aggregation rules in plain loops, from their formulas alone.

Messages are lists of lists of numbers, floats or exact fractions; results are lists of numbers. `by_column` lifts what
is defined for one coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations

Number = float | Fraction
Message = Sequence[Number]


def by_column(rule: Callable[..., tuple[Number, list[Number]]], messages: Sequence[Message], *arguments: int):
    """A rule for one coordinate on each: (model, mean share of each message)."""
    results = [rule([m[p] for m in messages], *arguments) for p in range(len(messages[0]))]
    share = [sum(result[1][place] for result in results) / len(results) for place in range(len(messages))]
    return [result[0] for result in results], share


def mean_of(values: Sequence[Number], chosen: Sequence[int]) -> tuple[Number, list[Number]]:
    """Mean of the chosen values and each value's share in it."""
    mean = sum(Fraction(values[place]) for place in chosen) / len(chosen)
    return mean, [Fraction(list(chosen).count(place), len(chosen)) for place in range(len(values))]


def ascending(values: Sequence[Number]) -> list[int]:
    """Places in the order of their values; of equals, the first first."""
    return sorted(range(len(values)), key=lambda place: (values[place], place))


def median(values: Sequence[Number]) -> tuple[Number, list[Number]]:
    """The middle value, or the mean of the two in the middle."""
    n, order = len(values), ascending(values)
    return mean_of(values, [order[n // 2]] if n % 2 else order[n // 2 - 1 : n // 2 + 1])


def trimmed_mean(values: Sequence[Number], b: int) -> tuple[Number, list[Number]]:
    """Mean without the b least and the b greatest."""
    return mean_of(values, ascending(values)[b : len(values) - b])


def meamed(values: Sequence[Number], b: int) -> tuple[Number, list[Number]]:
    """Mean of the n - b values nearest the median."""
    middle = median(values)[0]
    return mean_of(values, ascending([abs(Fraction(value) - middle) for value in values])[: len(values) - b])


def squared_distance(one: Message, other: Message) -> Number:
    """norm(one - other)^2."""
    return sum((Fraction(x) - Fraction(y)) ** 2 for x, y in zip(one, other, strict=True))


def squared_distances(messages: Sequence[Message], among: Sequence[int]) -> dict[tuple[int, int], Number]:
    """norm(m_i - m_j)^2 for all i and j among the places."""
    apart = {}
    for i, j in combinations(among, 2):
        apart[i, j] = apart[j, i] = squared_distance(messages[i], messages[j])
    return apart


def krum_order(messages: Sequence[Message], among: Sequence[int], nearest: int) -> list[int]:
    """Places `among` in the order of their sum of squared distances to the `nearest` others of them."""
    score = {}
    for place in among:
        score[place] = sum(
            sorted(squared_distance(messages[place], messages[j]) for j in among if j != place)[:nearest]
        )
    return sorted(among, key=lambda place: (score[place], place))


def krum(messages: Sequence[Message], b: int, own: int) -> int:
    """The place of the message that Krum selects; one's own where there are fewer than three."""
    n = len(messages)
    return own if n < 3 else krum_order(messages, range(n), n - b - 2)[0]


def multi_krum(messages: Sequence[Message], b: int, own: int, m: int) -> set[int]:
    """The places of the m best by Krum's score; m = 0: n - b - 2."""
    n = len(messages)
    return {own} if n < 3 else set(krum_order(messages, range(n), n - b - 2)[: m or n - b - 2])


def mda(messages: Sequence[Message], b: int) -> set[int]:
    """The first (n - b)-subset of least diameter."""
    n = len(messages)
    apart = squared_distances(messages, range(n))
    least, best = None, None
    for subset in combinations(range(n), n - b):
        diameter = max([apart[pair] for pair in combinations(subset, 2)], default=0)
        if least is None or diameter < least:
            least, best = diameter, subset
    return set(best)


def bulyan(messages: Sequence[Message], b: int) -> tuple[list[Number], list[Number]]:
    """Per coordinate the mean of the n - 4b values nearest the median of n - 2b messages selected by Krum."""
    n = len(messages)
    left, selected = list(range(n)), []
    for _ in range(n - 2 * b):
        best = krum_order(messages, left, max(len(left) - b - 2, 1))[0]
        left.remove(best)
        selected.append(best)
    selected.sort()
    model, share = by_column(meamed, [messages[place] for place in selected], 2 * b)
    return model, [share[selected.index(place)] if place in selected else 0 for place in range(n)]


def sum_of_distances(point: Message, messages: Sequence[Message]) -> float:
    """What the geometric median has the least of."""
    return math.fsum(math.dist(point, m) for m in messages)


def geometric_median(messages: Sequence[Message], steps: int = 2000) -> list[float]:
    """Weiszfeld's algorithm from the mean, with the step of Vardi and Zhang on a message; a fixed number of steps."""
    n, dimensions = len(messages), range(len(messages[0]))
    z = [math.fsum(m[p] for m in messages) / n for p in dimensions]
    for _ in range(steps):
        distance = [math.dist(z, m) for m in messages]
        other = [place for place in range(n) if distance[place] > 0.0]
        if not other:
            return z
        total = math.fsum(1.0 / distance[place] for place in other)
        target = [math.fsum(messages[place][p] / distance[place] for place in other) / total for p in dimensions]
        pull = math.hypot(
            *[math.fsum((messages[place][p] - z[p]) / distance[place] for place in other) for p in dimensions]
        )
        here = n - len(other)
        if here and pull <= here:
            return z
        stay = here / pull if here else 0.0
        z = [stay * z[p] + (1.0 - stay) * target[p] for p in dimensions]
    return z


def cross(a: Message, b: Message, c: Message) -> Number:
    """Twice the area of the triangle a b c, positive where c is to the left of a -> b."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def depth(point: Message, messages: Sequence[Message]) -> int:
    """The least number of messages in a closed half-plane that holds the point.

    Its edge may be taken through the point, turned until it touches a message and then a little on: of the messages on
    the edge either those ahead of the point or those behind it stay in, and those on the point always do.
    """
    least = len(messages)
    here = sum(1 for m in messages if list(m) == list(point))
    for other in messages:
        if list(other) == list(point):
            continue
        side = [cross(point, other, m) for m in messages]
        along = [sum((m[p] - point[p]) * (other[p] - point[p]) for p in range(2)) for m in messages]
        ahead = sum(1 for s, a in zip(side, along, strict=True) if s == 0 and a > 0)
        behind = sum(1 for s, a in zip(side, along, strict=True) if s == 0 and a < 0)
        left, right = sum(1 for s in side if s > 0), sum(1 for s in side if s < 0)
        least = min(least, here + min(left, right) + min(ahead, behind))
    return least


def centerpoint(messages: Sequence[Message]) -> list[Number]:
    """Mean of the candidates of depth n/3 or more: messages, and intersections of lines through two pairs of them."""
    points = [[Fraction(x) for x in m] for m in messages]
    candidates = [*points]
    for pairs in combinations(combinations(range(len(points)), 2), 2):
        if len({*pairs[0], *pairs[1]}) < 4:
            continue
        (a, b), (c, d) = ([points[place] for place in pair] for pair in pairs)
        slope = (b[0] - a[0]) * (d[1] - c[1]) - (b[1] - a[1]) * (d[0] - c[0])
        if slope != 0:
            s = ((c[0] - a[0]) * (d[1] - c[1]) - (c[1] - a[1]) * (d[0] - c[0])) / slope
            candidates.append([a[p] + s * (b[p] - a[p]) for p in range(2)])
    deep = [q for q in candidates if 3 * depth(q, points) >= len(points)]
    return [sum(q[p] for q in deep) / len(deep) for p in range(2)]
