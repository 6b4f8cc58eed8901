"""Linear regression in a network (multi-task estimation of the paper's ref. 16): Gaussian regressors, known noise.

An agent measures y = u'w_k + v and estimates its own true model w_k; u ~ N(0, R_k) and v ~ N(0, s_k^2) independent. The
risk is quadratic, so all that the paper assumes of it holds and is known: see `Constants`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Len, Lt

from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import Graph
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.streams import Stream, block_length, generator
from mpi_resmtl.tasks import TASKS, Scene, Size, regression
from mpi_resmtl.tasks.regression import Regression

_FEW = 64
"""Parameters up to which messages are judged component by component, many agents at once."""

Interval = Annotated[list[Annotated[float, Ge(0)]], Len(2, 2)]


@dataclass
class Parameters:
    """The study's own table."""

    name: Literal["linear-regression"] = "linear-regression"
    agents: Annotated[int, Ge(1), "n"] = 20
    dimension: Annotated[int, Ge(1), "P, components of u"] = 10
    groups: Annotated[int, Ge(1), "groups of agents, each with a true model of its own"] = 1
    spread: Annotated[float, Ge(0), "distance of a group's true model from the centre of all"] = 1.0
    within: Annotated[float, Ge(0), "distance of an agent's own true model from its group's"] = 0.0
    covariance: Annotated[
        Literal["identity", "decay", "spectrum"],
        "R: the identity; correlation^abs(i-j); or eigenvalues in random directions",
    ] = "identity"
    correlation: Annotated[float, Gt(-1), Lt(1), "of neighbouring components of u, for `decay`"] = 0.5
    condition: Annotated[
        float, Ge(1), "largest over smallest eigenvalue, for `spectrum`; between them evenly in log, mean 1"
    ] = 10.0
    eigenvalues: Annotated[
        list[Annotated[float, Gt(0)]] | None, "the P eigenvalues themselves, for `spectrum`, instead of `condition`"
    ] = None
    regressor_variance: Annotated[Interval, "range of the factor of an agent's own covariance, R_k = factor R"] = field(
        default_factory=lambda: [1.0, 1.0]
    )
    noise: Annotated[Interval, "range of an agent's standard deviation of v"] = field(
        default_factory=lambda: [0.1, 0.2]
    )
    step_size: Annotated[float, Gt(0), "mu of psi = theta + mu u (y - u'theta)"] = 0.01
    side: Annotated[float, Gt(0), "agents are uniform in [0, side]^2, for graphs that need positions"] = 3.0

    def __post_init__(self):
        for name in ("regressor_variance", "noise"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"task.{name} = [{low}, {high}]: the first is above the second")
        if self.regressor_variance[0] == 0:
            raise UserError("task.regressor_variance: an agent whose u is always 0 cannot learn")
        if self.groups > self.agents:
            raise UserError(f"task.groups = {self.groups} is more than the {self.agents} agents")
        if self.eigenvalues is not None:
            if self.covariance != "spectrum":
                raise UserError(f"task.eigenvalues is for covariance = 'spectrum', not {self.covariance!r}")
            if len(self.eigenvalues) != self.dimension:
                raise UserError(
                    f"task.eigenvalues has {len(self.eigenvalues)} numbers; task.dimension = {self.dimension}"
                )


@dataclass(frozen=True)
class Constants:
    """What the paper assumes of each agent's risk; arrays (n,).

    Of the function that `adapt` descends, r(m) = E (y - u'm)^2 / 2 = ((w - m)'R(w - m) + s^2)/2 with Hessian R; for the
    loss (y - u'm)^2 by which messages are judged, m and L are twice, sigma^2 four times these, c the same.
    """

    m: np.ndarray
    """Strong convexity: the least eigenvalue of R."""
    L: np.ndarray
    """Lipschitz constant of the gradient: the greatest eigenvalue of R."""
    sigma_squared: np.ndarray
    """With c: E norm(g - grad r)^2 <= sigma^2 + c norm(grad r)^2, g = -u (y - u'm) an agent's gradient.

    sigma^2 = s^2 tr R, the noise at the true model.
    """
    c: np.ndarray
    """1 + tr R / m."""


def constants(eigenvalues: np.ndarray, noise: np.ndarray) -> Constants:
    """Constants of agents with eigenvalues (n, P) of R_k > 0 and standard deviations (n,) of v.

    With e = w - m the gradient noise is (R - uu')e - uv. For Gaussian u, E uu'Auu' = 2RAR + R tr(RA) for symmetric A,
    so its squared norm is e'(R^2 + R tr R)e + s^2 tr R in expectation (see `gradient_noise`); norm(grad r)^2 = e'R^2 e,
    and e'Re <= e'R^2 e / m.
    """
    least, trace = eigenvalues.min(axis=1), eigenvalues.sum(axis=1)
    return Constants(least, eigenvalues.max(axis=1), noise * noise * trace, 1.0 + trace / least)


def gradient_noise(covariance: np.ndarray, error: np.ndarray, noise: float) -> np.ndarray:
    """Covariance (P, P) of g = -u (y - u'm) where e = w - m (P,): R (e'Re) + Re e'R + s^2 R, u ~ N(0, R)."""
    along = covariance @ error
    return covariance * (error @ along + noise * noise) + np.outer(along, along)


@dataclass(frozen=True)
class Covariance:
    """R = F F', shared by all agents up to their own factor."""

    factor: np.ndarray | None
    """F (P, P); None: the identity."""
    eigenvalues: np.ndarray
    """(P,) of R."""

    def shaped(self, z: np.ndarray) -> np.ndarray:
        """F z for each z of (b, A, P), which have the covariance R where those of z have the identity.

        Agent by agent, so that the bits do not depend on how many there are.
        """
        return z if self.factor is None else _by_agent(z, self.factor.T)

    def squared(self, error: np.ndarray) -> np.ndarray:
        """e'Re for each e of (b, A, P): (b, A)."""
        along = error if self.factor is None else _by_agent(error, self.factor)
        return np.multiply(along, along, order="C").sum(axis=-1)


def _by_agent(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows (b, A, P) times matrix (P, P), one product an agent: (b, A, P)."""
    each = np.matmul(np.ascontiguousarray(rows.transpose(1, 0, 2)), np.ascontiguousarray(matrix))
    return np.ascontiguousarray(each.transpose(1, 0, 2))


def covariance(parameters: Parameters, seed: int) -> Covariance:
    """R of the study's table; the directions of `spectrum` are uniform (Haar)."""
    size = parameters.dimension
    if parameters.covariance == "identity":
        return Covariance(None, np.ones(size))
    if parameters.covariance == "decay":
        i = np.arange(size)
        matrix = parameters.correlation ** np.abs(i - i[:, None]).astype(np.float64)
        return Covariance(np.linalg.cholesky(matrix), np.linalg.eigvalsh(matrix))
    if parameters.eigenvalues is not None:
        eigenvalues = np.array(parameters.eigenvalues)
    else:
        eigenvalues = parameters.condition ** -np.linspace(0.0, 1.0, size)
        eigenvalues /= eigenvalues.mean()
    direction, triangle = np.linalg.qr(generator(seed, "covariance").normal(size=(size, size)))
    direction *= np.sign(np.diagonal(triangle))
    return Covariance(direction * np.sqrt(eigenvalues), eigenvalues)


def agents_of(parameters: Parameters, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every agent the factor of its covariance and the standard deviation of v: (n,), (n,)."""
    random = generator(seed, "noise")
    factor = random.uniform(*parameters.regressor_variance, parameters.agents)
    return factor, random.uniform(*parameters.noise, parameters.agents)


def constants_of(parameters: Parameters, seed: int) -> Constants:
    """The constants of every agent of a study."""
    factor, noise = agents_of(parameters, seed)
    return constants(factor[:, None] * covariance(parameters, seed).eigenvalues, noise)


@dataclass(frozen=True)
class Samples(regression.Samples):
    """A block of samples."""

    regressor: np.ndarray
    """(B, A, P) u by rows."""


class LinearRegressionTask(Regression):
    """Agents whose samples `draw(block)` gives, u (B, A, P) and y (B, A), and whose true models are known."""

    measures = ("loss", "msd", "risk_before", "risk_after")
    keeps_intermediates = True

    def __init__(
        self,
        draw: Callable[[int], tuple[np.ndarray, np.ndarray]],
        length: int,
        target: np.ndarray,
        shape: Covariance,
        factor: np.ndarray,
        noise: np.ndarray,
        step_size: float,
    ):
        """`target` (A, P); R_k = `factor`_k times the covariance `shape`; `noise` (A,) deviations of v."""
        super().__init__(length, np.zeros_like(target), step_size)
        self.gathers = self.parameters <= _FEW
        self.draw = draw
        self._target, self._shape, self._factor, self._noise = target, shape, factor, noise

    def _make(self, block: int) -> Samples:
        u, y = self.draw(block)
        signal = np.empty((len(u), self.parameters + 1, u.shape[1]))
        signal[:, :-1], signal[:, -1] = u.transpose(0, 2, 1), y
        return Samples(signal=signal, regressor=u)

    def adapt(self, samples: Samples, i: int, theta: np.ndarray, psi: np.ndarray) -> None:
        """psi = theta + mu u (y - u'theta): mu times the gradient of half the loss (y - u'theta)^2 is taken off."""
        residual = samples.signal[i, -1] - _dot(samples.regressor[i], theta)
        np.multiply(samples.regressor[i], (self.step_size * residual)[:, None], out=psi)
        psi += theta

    def lookahead(self, samples: Samples, i: int, psi: np.ndarray) -> np.ndarray:
        """psi + mu u (y - u'psi): (A, P)."""
        ahead = np.empty_like(psi)
        self.adapt(samples, i, psi, ahead)
        return ahead

    def judge(self, samples: Samples, i: int, neighbourhoods: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        """(y_k - u_k'm)^2 for each message on its target's sample: (E,)."""
        if self.gathers:
            return super().judge(samples, i, neighbourhoods, messages)
        loss = np.empty(len(neighbourhoods.row))
        for k, edges in neighbourhoods.by_agent():
            heard = messages.take(neighbourhoods.row[edges], axis=0)
            loss[edges] = samples.signal[i, -1, k] - _dot(heard, samples.regressor[i, k])
        loss *= loss
        return loss

    def losses(self, samples: Samples, theta: np.ndarray) -> np.ndarray:
        """(y_k - u_k'theta_k)^2 of models (b, A, P) on the samples of the block's first b iterations: (b, A)."""
        residual = samples.signal[: len(theta), -1] - _dot(samples.regressor[: len(theta)], theta)
        return residual * residual

    def own_losses(self, samples: Samples, i: int, models: np.ndarray) -> np.ndarray:
        """(y_k - u_k'm)^2 of a model an agent (A, P): (A,)."""
        residual = samples.signal[i, -1] - _dot(samples.regressor[i], models)
        return residual * residual

    def measure(self, samples: Samples, psi: np.ndarray, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Streaming loss of theta; squared distance from the true model; true risk before and after combination."""
        error = theta - self._target
        return {
            "loss": self.losses(samples, theta),
            "msd": _dot(error, error),
            "risk_before": self.risk(psi),
            "risk_after": self.risk(theta),
        }

    def risk(self, models: np.ndarray) -> np.ndarray:
        """E (y - u'm)^2 = (w - m)'R_k(w - m) + s_k^2 of models (b, A, P): (b, A)."""
        return self._factor * self._shape.squared(models - self._target) + self._noise**2


def _dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products along the last axis, by rows, so that one of them does not depend on how many there are."""
    return np.multiply(one, other, order="C").sum(axis=-1)


@TASKS.named("linear-regression")
class LinearRegression:
    """Agents estimate their group's linear model from noisy measurements along Gaussian regressors (ref. 16)."""

    Parameters = Parameters
    unit = "iterations"

    @staticmethod
    def defaults(tables: dict[str, Any]) -> dict[str, Any]:
        """Everyone hears everyone; attackers speak uniform noise well away from the true models."""
        brought = {
            "iterations": 1000,
            "graph": {"kind": "complete"},
            "rule": {"forgetting_factor": 0.1, "initial_accumulated_loss": 10.0},
        }
        if tables.get("byzantine", {}).get("attack", "uniform") == "uniform":
            brought["byzantine"] = {"attack": "uniform", "low": 3.0, "high": 4.0}
        return brought

    @staticmethod
    def size(parameters: Parameters) -> Size:
        """Samples as they are drawn, by rows and by component; the covariance and what it is made from."""
        n, size = parameters.agents, parameters.dimension
        square = 0 if parameters.covariance == "identity" else 5 * 8 * size * size
        block = block_length(n, size + 1)
        return Size(n, size, 8, block, 4 * 8 * (size + 1), gathers=size <= _FEW, fixed=square)

    @staticmethod
    def scene(parameters: Parameters, seed: int) -> Scene:
        """Agents in equal runs to the groups; true models at their distances from a centre ~ N(0, I)."""
        n, size = parameters.agents, parameters.dimension
        _check_stability(parameters, seed)
        group = (np.arange(n) * parameters.groups // n).astype(np.int32)
        random = generator(seed, "target")
        centre = random.normal(size=size)
        groups = centre + parameters.spread * _directions(random, parameters.groups, size)
        target = groups[group] + parameters.within * _directions(random, n, size)
        position = parameters.side * generator(seed, "position").random((n, 2))
        return Scene(group=group, data="generated", position=position, target=target)

    @staticmethod
    def task(parameters: Parameters, graph: Graph, seed: int, first: int, count: int) -> LinearRegressionTask:
        """Samples u = sqrt(factor_k) F z, y = u'w_k + s_k z'; z and z' standard normal. All models start at 0."""
        own = slice(first, first + count)
        size, target, shape = parameters.dimension, graph.target[own], covariance(parameters, seed)
        factor, noise = (values[own] for values in agents_of(parameters, seed))
        stream = Stream(seed, "sample", parameters.agents, size + 1, first, count)
        scale = np.sqrt(factor)[:, None]

        def draw(block: int) -> tuple[np.ndarray, np.ndarray]:
            normal = stream.normal(block)
            u = scale * shape.shaped(normal[..., :-1])
            return u, _dot(u, target) + noise * normal[..., -1]

        return LinearRegressionTask(draw, stream.length, target, shape, factor, noise, parameters.step_size)


def _directions(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Uniform unit vectors: (count, P)."""
    drawn = random.normal(size=(count, size))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _check_stability(parameters: Parameters, seed: int) -> None:
    """Raise UserError where the steps of an agent alone would grow without bound in mean square.

    For Gaussian u they shrink if and only if mu lambda_max < 1 and sum mu lambda / (1 - mu lambda) < 2 (Feuer and
    Weinstein 1985).
    """
    eigenvalues = agents_of(parameters, seed)[0].max() * covariance(parameters, seed).eigenvalues
    step = parameters.step_size * eigenvalues
    if step.max() >= 1.0 or (step / (1.0 - step)).sum() >= 2.0:
        safe = 2.0 / (eigenvalues.sum() + 2.0 * eigenvalues.max())
        raise UserError(
            f"task.step_size = {parameters.step_size}: an agent alone would diverge, since the covariance of its u has "
            f"trace {eigenvalues.sum():.4g} and largest eigenvalue {eigenvalues.max():.4g}; below {safe:.3g} none does"
        )
