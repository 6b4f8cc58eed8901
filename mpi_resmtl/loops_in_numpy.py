"""The loops over edges in numpy, for machines without a compiler, and the description of those in C.

A neighbourhood's edges lie together. Sums over them run in agent order, one term after the other from 0 on, which
fixes every bit: `_loops.c` gives the same. Models are float64 where nothing else is said; C wants arrays that are
C-contiguous and places that are intp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_SMALLEST = 1e-290
"""Keeps 1/phi, and sums of it over a neighbourhood, finite."""
_EQUAL_WEIGHTS = 1e-9
"""Sums of weights this close, relatively, are equal."""
_LANES, _BLOCK = 32, 4096
"""Sums that are added side by side in the precision of the messages, and coordinates after which they are put away."""
_TWO_PI = 6.283185307179586
_ROUNDING = 6755399441055744.0
"""To a number this large, small ones are added as whole numbers."""
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_LOGARITHM = (
    *(6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01),
    *(1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01),
)
_SINE = (
    *(-1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04),
    *(2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10),
)
_COSINE = (
    *(4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05),
    *(-2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11),
)


def philox(key: np.ndarray, counter: int, counters: int) -> np.ndarray:
    """Philox4x64-10 (Salmon et al. 2011): the 4 words of each counter after `counter`, for a key (2,): uint64."""
    return np.random.Philox(key=key, counter=counter).random_raw(4 * counters)


def normal(words: np.ndarray, used: int) -> np.ndarray:
    """Independent N(0, 1) (Box and Muller 1958), to the same bits on all machines: uint64 (n, 2h) -> (n, used).

    The words' 53 upper bits are u in [0, 1). Of u from the first h columns and v from the last, `used`, h to 2h,
    columns have sqrt(-2 log(1 - u)) cos(2 pi v), and then as many with sin. Logarithm, sine and cosine are fdlibm's
    (Sun Microsystems 1993), every operation rounded by itself.
    """
    half = words.shape[1] // 2
    radius, angle = 1.0 - _fraction(words[:, :half]), _fraction(words[:, half:])
    np.sqrt(-2.0 * _logarithm(radius), out=radius)
    shifted = 4.0 * angle + _ROUNDING
    quarter = shifted.view(np.uint64)
    x = (angle - 0.25 * (shifted - _ROUNDING)) * _TWO_PI
    z = x * x
    cosine = (1.0 - 0.5 * z) + z * z * _polynomial(z, _COSINE)
    sine = x + x * z * _polynomial(z, _SINE)
    odd = (quarter & np.uint64(1)) == 1
    drawn = np.empty((len(words), used))
    drawn[:, :half] = radius * _negated(np.where(odd, sine, cosine), quarter + np.uint64(1))
    drawn[:, half:] = (radius * _negated(np.where(odd, cosine, sine), quarter))[:, : used - half]
    return drawn


def _fraction(words: np.ndarray) -> np.ndarray:
    return (words >> np.uint64(11)).view(np.int64) * 2.0**-53


def _negated(values: np.ndarray, quarter: np.ndarray) -> np.ndarray:
    """Those in the third and fourth quarter of a turn negated."""
    return (values.view(np.uint64) ^ (quarter & np.uint64(2)) << np.uint64(62)).view(np.float64)


def _logarithm(value: np.ndarray) -> np.ndarray:
    bits = value.view(np.uint64)
    mantissa = bits & np.uint64(2**52 - 1)
    above = (mantissa + np.uint64(0x95F6400000000)) & np.uint64(2**52)
    f = (mantissa | (above ^ np.uint64(0x3FF << 52))).view(np.float64) - 1.0
    k = ((bits >> np.uint64(52)) + (above >> np.uint64(52))).view(np.int64) - 1023.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even, odd = w * _polynomial(w, _LOGARITHM[1::2]), z * _polynomial(w, _LOGARITHM[::2])
    half = 0.5 * f * f
    return k * _LN2_HIGH - ((half - (s * (half + (odd + even)) + k * _LN2_LOW)) - f)


def _polynomial(z: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """c_1 + z (c_2 + z (...)), by Horner's rule."""
    total = np.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= z
        total += coefficient
    return total


def all_finite(models: np.ndarray) -> bool:
    """Whether no number of float64 or float32 models (R, P) is NaN or Inf."""
    # One sum of squares tells unless it overflows, as NaN and Inf survive it.
    return math.isfinite(np.vdot(models, models)) or bool(np.isfinite(models).all())


def gather(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The messages rows[row]: (R, P), (E,) -> (E, P), a copy; here stored parameter by parameter, which suits numpy."""
    return np.ascontiguousarray(rows.take(row, axis=0).T).T


def squared_residuals(signal: np.ndarray, agent: np.ndarray, start: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """(y_k - u_k'm)^2, summed parameter by parameter: u and y (P + 1, A), messages (E, P) -> (E,).

    `agent` (N,) is the k of each neighbourhood, `start` (N,) its first edge.
    """
    *u, residual = signal.take(agent, axis=1).repeat(_sizes(start, len(messages)), axis=1)
    for component, m in zip(u, messages.T, strict=True):
        component *= m
        residual -= component
    residual *= residual
    return residual


def squared_distances(anchor: np.ndarray, agent: np.ndarray, start: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """norm(m - anchor_k)^2, summed parameter by parameter: (A, P), messages (E, P) -> (E,); k as above."""
    squared, sizes = np.zeros(len(messages)), _sizes(start, len(messages))
    for point, m in zip(anchor.T, messages.T, strict=True):
        difference = m - point.take(agent).repeat(sizes)
        difference *= difference
        squared += difference
    return squared


def average_in(held: np.ndarray, value: np.ndarray, forgetting_factor: float) -> bool:
    """held <- (1 - nu) held + nu value, in place, (E,); False, and nothing done, where a value is not finite."""
    if not np.isfinite(value).all():
        return False
    held *= 1.0 - forgetting_factor
    held += value * forgetting_factor
    return True


def normalise(share: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Shares (E,) divided by their sum over each neighbourhood, whose first edge is in `start` (N,)."""
    sizes = _sizes(start, len(share))
    return share / _totals(share, sizes).repeat(sizes)


def inverse_weights(held: np.ndarray, start: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Weights proportional to 1/held (E,) over each neighbourhood, whose first edge is in `start` (N,).

    Where `own` (N,), the edge from each target to itself, is given, 0 on edges against which more is held.
    """
    share = 1.0 / np.maximum(held, _SMALLEST)
    if own is not None:
        share *= held <= held.take(own).repeat(_sizes(start, len(held)))
    return normalise(share, start)


def weighted_sums(
    weight: np.ndarray, messages: np.ndarray, start: np.ndarray, row: np.ndarray, models: np.ndarray
) -> None:
    """models[row_k] <- sum_l a_lk m_lk.

    Weights (E,), messages (E, P), first edge of each neighbourhood (N,), its row (N,), models (A, P).
    """
    sizes = _sizes(start, len(weight))
    for model, m in zip(models.T, messages.T, strict=True):
        model[row] = _totals(weight * m, sizes)


def _sizes(start: np.ndarray, edges: int) -> np.ndarray:
    return np.diff(start, append=edges)


def _totals(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Sums in order over runs of `sizes` (N,): (N,)."""
    return np.bincount(np.arange(len(sizes)).repeat(sizes), values, len(sizes))


def step_towards(point: np.ndarray, share: float, models: np.ndarray, moved: np.ndarray) -> None:
    """moved <- models + share (point - models), all (A, P)."""
    np.subtract(point, models, out=moved)
    moved *= share
    moved += models


def own_squared_residuals(signal: np.ndarray, models: np.ndarray) -> np.ndarray:
    """(y_k - u_k'm_k)^2, summed parameter by parameter: u and y (B, P + 1, A), models (b, A, P), b <= B -> (b, A)."""
    *u, y = np.moveaxis(signal[: len(models)], 1, 0)
    residual = y
    for component, m in zip(u, by_component(models), strict=True):
        residual = residual - component * m
    return residual * residual


def own_squared_distances(models: np.ndarray, target: np.ndarray) -> np.ndarray:
    """norm(w_k - m_k)^2, summed parameter by parameter: models (b, A, P), w (A, P) -> (b, A)."""
    squared = np.zeros(models.shape[:2])
    for w, m in zip(target.T, by_component(models), strict=True):
        difference = w - m
        difference *= difference
        squared += difference
    return squared


def location_samples(u: np.ndarray, d: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q = x_k + d u (B, A, 2), and u with the reading x_k.u + d (B, 3, A), of u (B, 2, A), d (B, A), x (A, 2)."""
    q, signal = np.empty((len(u), u.shape[2], 2)), np.empty((len(u), 3, u.shape[2]))
    signal[:, :2] = u
    for p, x in enumerate(position.T):
        np.add(d * u[:, p], x, out=q[..., p])
    x, y = position.T
    np.add(x * u[:, 0] + y * u[:, 1], d, out=signal[:, 2])
    return q, signal


def location_risks(
    models: np.ndarray,
    target: np.ndarray,
    towards: np.ndarray,
    direction_variance: np.ndarray,
    distance_variance: np.ndarray,
    scalar: bool,
) -> np.ndarray:
    """(e'(w - m))^2 + s_u^2 c + s_d^2, c = norm(w - m)^2 or, where `scalar`, the square of the sum of w - m.

    Models m (b, A, 2), target w and towards e (A, 2), variances s_u^2 and s_d^2 (A,) -> (b, A).
    """
    x, y = (w - m for w, m in zip(target.T, by_component(models), strict=True))
    along = x * towards[:, 0] + y * towards[:, 1]
    noisy = (x + y) * (x + y) if scalar else x * x + y * y
    return along * along + direction_variance * noisy + distance_variance


def by_component(models: np.ndarray) -> np.ndarray:
    """(b, A, P) -> (P, b, A), a copy, on which numpy is several times faster where P is small."""
    return np.ascontiguousarray(np.moveaxis(models, -1, 0))


def large_squared_distances(anchor: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """norm(anchor_k - m_lk)^2 of float32 or float64: (g, P), (g, n, P) -> float64 (g, n).

    Every 32nd square is added in the precision of the messages, over 4096 coordinates, and all that in float64.
    """
    g, n, parameters = messages.shape
    squared = np.empty((g, n))
    for k in range(g):
        lanes = np.zeros((n, _LANES))
        for first in range(0, parameters, _BLOCK):
            difference = messages[k, :, first : first + _BLOCK] - anchor[k, first : first + _BLOCK]
            difference *= difference
            filled = np.zeros((-(-difference.shape[1] // _LANES), n, _LANES), messages.dtype)
            padded = np.pad(difference, ((0, 0), (0, len(filled) * _LANES - difference.shape[1])))
            filled[:] = padded.reshape(n, -1, _LANES).swapaxes(0, 1)
            lanes += np.add.reduce(filled, axis=0)
        squared[k] = np.add.accumulate(lanes, axis=1)[:, -1]
    return squared


def middle_sums(messages: np.ndarray, first: int, kept: int) -> np.ndarray:
    """Per coordinate the sum of the values that sort to first .. first + kept - 1, in that order from 0 on.

    Finite float32 or float64 (n, P) -> (P,) of that dtype. C finds them by a network of minima and maxima, n log^2 n P.
    """
    total = np.zeros_like(messages[0])
    for row in np.sort(messages, axis=0)[first : first + kept]:
        total += row
    return total


def weiszfeld(
    product: np.ndarray, weight: np.ndarray, floor: float, least: float, tolerance: float, most_steps: int
) -> np.ndarray | None:
    """Weiszfeld's steps from weights w (n,) of points whose products are G (n, n): new weights.

    w <- 1 / d / sum of 1 / d, d_l^2 = G_ll - 2 (G w)_l + w'G w, at least `floor`, until a step is within the tolerance.
    None where the sum of the first d is not below `least`.
    """
    turned, distance = _distances_from(product, weight, floor)
    if not _sum(distance) < least:
        return None
    for _ in range(most_steps):
        moved = 1.0 / distance
        moved /= _sum(moved)
        before = turned
        turned, distance = _distances_from(product, moved, floor)
        step = _sum((moved - weight) * (turned - before))
        weight = moved
        if step <= tolerance * tolerance:
            break
    return weight


def _distances_from(product: np.ndarray, weight: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """G w and d, both (n,)."""
    turned = np.add.reduce(product * weight[:, None], axis=0)
    squared = (product.diagonal() - 2.0 * turned) + _sum(weight * turned)
    return turned, np.sqrt(np.where(squared > floor, squared, floor))


def _sum(values: np.ndarray) -> float:
    """In order, which numpy's own is not."""
    return np.add.accumulate(values)[-1]


def clipped_weights(
    distance: np.ndarray, metropolis: np.ndarray, own: np.ndarray, b: np.ndarray, squares: bool
) -> np.ndarray:
    """W_kl min(1, tau / d_l), what that takes from neighbours given to oneself: (g, n), (g, n), (g,), (g,) -> (g, n).

    W_b is the sum of the b greatest W_kl of neighbours; where it is 0 nothing is clipped. Messages are left after those
    of at least W_b of weight, 2 W_b unless `squares`, are taken from the far end, of equally far the heavier first. tau
    is the greatest distance left, 0 if none is, or tau^2 = sum W_kl d_l^2 / W_b over those left where `squares`.
    """
    rows = np.arange(len(own))
    heaviest = metropolis.copy()
    heaviest[rows, own] = 0.0
    heaviest = np.sort(heaviest, axis=1)[:, ::-1].cumsum(axis=1)
    byzantine = np.where(b > 0, heaviest[rows, b - 1], 0.0)

    order = np.lexsort((metropolis, distance), axis=1)[:, ::-1]
    far, weight = np.take_along_axis(distance, order, axis=1), np.take_along_axis(metropolis, order, axis=1)
    gone = np.zeros_like(weight)
    weight[:, :-1].cumsum(axis=1, out=gone[:, 1:])
    taken = (byzantine if squares else 2.0 * byzantine) * (1.0 - _EQUAL_WEIGHTS)
    far *= gone >= taken[:, None]
    radius = far.max(axis=1)
    if squares:
        radius = np.maximum(radius, np.finfo(np.float64).tiny)
        far /= radius[:, None]
        share = np.add.accumulate(weight * far * far, axis=1)[:, -1]
        radius *= np.sqrt(np.divide(share, byzantine, out=np.zeros_like(share), where=byzantine > 0.0))
    radius[byzantine <= 0.0] = np.inf

    clipped = np.ones_like(distance)
    np.divide(radius[:, None], distance, out=clipped, where=distance > radius[:, None])
    clipped *= metropolis
    clipped[rows, own] = 0.0
    clipped[rows, own] = np.maximum(1.0 - np.add.accumulate(clipped, axis=1)[:, -1], 0.0)
    return clipped
