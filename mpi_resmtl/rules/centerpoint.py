"""The centerpoint: a point that every half-plane through it leaves with a third of the messages or more."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mpi_resmtl.rules import Heard, NoParameters, aggregate
from mpi_resmtl.rules.coordinatewise import middle_mean

_ELEMENTS = 2**17
"""Intersections held at a time."""
_ON_LINE = 1e-12
"""Distance from a line, relative to the message's from the middle, within which it is on it."""
_PARALLEL = 1e-12
_ROUNDING = 1e-9
_SHRINK = 0.125
"""Keeps lengths of lines from overflowing."""


@aggregate("centerpoint", reports=None, symmetric=True)
def centerpoint(heard: Heard, options: NoParameters) -> tuple[np.ndarray, None]:
    """P = 2: the mean of those candidates that have depth n/3 or more; does not use b.

    Candidates are the messages and the intersections of two lines through two messages each, all four different. The
    depth of a point is the least number of messages in a closed half-plane that holds it. Where all messages are on a
    line the candidates are the messages. Wang, Abbas, Koutsoukos 2019 (resilient vector consensus by centerpoints).
    n^4 a pair of coordinates; exact, by the interval of each line that lies deep enough.

    P > 2: the same for each pair of coordinates (1, 2), (3, 4), ...; the median of the last where P is odd. The
    guarantee is then each pair's by itself: the models' joint one is lost. n^4 P/2: seconds for 10 messages of P =
    100,000, and minutes for 30.
    """
    g, n, parameters = heard.messages.shape
    model = np.empty((g, parameters), heard.messages.dtype)
    if parameters % 2:
        model[:, -1:] = middle_mean(heard.messages[:, :, -1:], heard.present, heard.whole, (heard.count - 1) // 2)[0]
    pairs = parameters // 2
    some = max(1, _ELEMENTS // (n * n * (n - 1) * (n - 1) // 4 + n))
    for first in range(0, g * pairs, some):
        agent, pair = np.divmod(np.arange(first, min(first + some, g * pairs)), max(pairs, 1))
        points = np.stack([heard.messages[agent, :, 2 * pair], heard.messages[agent, :, 2 * pair + 1]], axis=2)
        deep = _deep_mean(points.astype(np.float64), heard.present[agent])
        model[agent, 2 * pair], model[agent, 2 * pair + 1] = deep.T
    return model, None


class _Pairs(NamedTuple):
    """The L lines through places i < j of n."""

    i: np.ndarray
    j: np.ndarray
    apart: np.ndarray
    """(L, L) bool: the second comes after the first and shares no place with it."""


@lru_cache(maxsize=8)
def _pairs(n: int) -> _Pairs:
    i, j = np.triu_indices(n, 1)
    meet = (i[:, None] == i) | (i[:, None] == j) | (j[:, None] == i) | (j[:, None] == j)
    return _Pairs(i, j, np.triu(~meet, 1))


def _deep_mean(points: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean of the candidates of depth n/3 or more among points (N, n, 2), some present (N, n): (N, 2).

    A point is too shallow exactly if it is strictly on one side of a line through two messages that has less than n/3
    of them strictly on that side, unless all are on a line; lines with n/3 on that side and the line together suffice.
    They cut an interval of positions s out of every line that meets the deep region. Should rounding leave no
    candidate, the result is the median.
    """
    rows = np.arange(len(points))
    small = points * _SHRINK
    middle = middle_mean(small, present, bool(present.all()), (present.sum(axis=1) - 1) // 2)[0]
    away = np.where(present[:, :, None], small - middle[:, None], np.inf)
    radius = np.abs(away).max(axis=2)
    order = radius.argsort(axis=1, kind="stable")
    away, radius = away[rows[:, None], order], radius[rows[:, None], order]
    count = present.sum(axis=1)
    here = np.arange(points.shape[1]) < count[:, None]
    away[~here] = 0.0
    radius[~here] = 0.0
    unit = radius[rows, (count - 1) // 2]
    unit = np.where(unit > 0.0, unit, np.where(radius.max(axis=1) > 0.0, radius.max(axis=1), 1.0))

    lines = _pairs(points.shape[1])
    step = away[:, lines.j] - away[:, lines.i]
    scale = np.abs(step).max(axis=2)
    valid = (scale > _ON_LINE * radius[:, lines.j]) & here[:, lines.j]
    step /= np.where(valid, scale, np.inf)[:, :, None]
    norm = np.sqrt(step[:, :, 0] ** 2 + step[:, :, 1] ** 2)
    norm[~valid] = 1.0
    step /= norm[:, :, None]
    x, y = step[:, :, 0], step[:, :, 1]
    begin = away[:, lines.i]
    offset = x * begin[:, :, 1] - y * begin[:, :, 0]

    # How far each message is to the left of each line: (N, L, n).
    left = x[:, :, None] * away[:, None, :, 1]
    left -= y[:, :, None] * away[:, None, :, 0]
    left -= offset[:, :, None]
    each = np.arange(len(lines.i))
    left[:, each, lines.i] = 0.0
    left[:, each, lines.j] = 0.0
    reach = radius[:, None] + radius[:, lines.i][:, :, None]
    reach *= _ON_LINE
    leftward = (left > reach) & here[:, None]
    rightward = (left < -reach) & here[:, None]
    deep = (count + 2) // 3
    number_left, number_right = leftward.sum(axis=2), rightward.sum(axis=2)
    not_left = valid & (number_left < deep[:, None])
    not_right = valid & (number_right < deep[:, None])
    flat = ~(valid & (number_left + number_right > 0)).any(axis=1)

    shallow = (leftward & not_left[:, :, None]) | (rightward & not_right[:, :, None])
    chosen = here & ~shallow.any(axis=1)
    for k in np.flatnonzero(flat):
        chosen[k] = _deep_on_line(away[k], int(count[k]), int(deep[k]))

    # Lines that bound the deep region, each with the region on its left.
    most = (count - deep)[:, None]
    side, bounds = _first_true(
        np.concatenate([not_right & (number_left <= most), not_left & (number_right <= most)], axis=1)
    )
    sign, line = np.where(side < len(each), 1.0, -1.0), side % max(len(each), 1)
    k = rows[:, None]
    slope = (sign * x[k, line])[:, :, None] * y[:, None]
    slope -= (sign * y[k, line])[:, :, None] * x[:, None]
    above = (left[k, line] * sign[:, :, None]).take(lines.i, axis=2)
    bounds = bounds[:, :, None] & valid[:, None]
    rising, falling = slope > _PARALLEL, slope < -_PARALLEL
    along = bounds & ~(rising | falling)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        s = -above / slope
    lowest = np.where(bounds & rising, s, -np.inf).max(axis=1, initial=-np.inf)
    highest = np.where(bounds & falling, s, np.inf).min(axis=1, initial=np.inf)
    beside = np.zeros_like(valid)
    if along.any():
        beside = (along & (above < -reach[k, line].take(lines.i, axis=2))).any(axis=1)
    slack = _ROUNDING * np.maximum(unit[:, None], np.minimum(np.abs(lowest), np.abs(highest)))
    lowest -= slack
    highest += slack
    through = valid & (lowest <= highest) & ~beside & ~flat[:, None]

    # Line a meets line b at begin_a + s step_a.
    k, a, b = np.nonzero(lines.apart & through[:, :, None] & through[:, None])
    slope = x[k, b] * y[k, a] - y[k, b] * x[k, a]
    meets = np.abs(slope) > _PARALLEL
    with np.errstate(over="ignore"):
        s = np.divide(-left[k, b, lines.i[a]], slope, out=np.full_like(slope, np.inf), where=meets)
    inside = meets & (s >= lowest[k, a]) & (s <= highest[k, a])
    k, a, s = k[inside], a[inside], s[inside]

    agent, place = np.nonzero(chosen)
    share = 1.0 / np.maximum(np.bincount(k, minlength=len(rows)) + chosen.sum(axis=1), 1)
    mean = np.empty((len(rows), 2))
    for axis in range(2):
        at_lines = (begin[k, a, axis] + s * step[k, a, axis]) * share[k]
        at_messages = away[agent, place, axis] * share[agent]
        mean[:, axis] = np.bincount(k, at_lines, len(rows)) + np.bincount(agent, at_messages, len(rows))
    mean += middle
    lowest = np.where(present[:, :, None], small, np.inf).min(axis=1)
    highest = np.where(present[:, :, None], small, -np.inf).max(axis=1)
    return np.clip(mean, lowest, highest, out=mean) / _SHRINK


def _first_true(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns with the true ones of each row (N, m) first, as many as the fullest row has, and which are true."""
    number = chosen.sum(axis=1)
    order = np.argsort(~chosen, axis=1, kind="stable")[:, : int(number.max(initial=0))]
    return order, np.arange(order.shape[1]) < number[:, None]


def _deep_on_line(points: np.ndarray, count: int, deep: int) -> np.ndarray:
    """Which of the first `count` points (n, 2), all on a line, have so many of them on both sides: bool (n,)."""
    chosen = np.zeros(len(points), bool)
    farthest = points[count - 1] - points[0]
    axis = int(np.abs(farthest).argmax())
    position = np.where(np.arange(len(points)) < count, points[:, axis] * np.sign(farthest[axis]), np.inf)
    ordered = np.sort(position)
    chosen[:count] = (position[:count] >= ordered[deep - 1]) & (position[:count] <= ordered[count - deep])
    return chosen
