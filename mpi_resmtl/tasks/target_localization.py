"""Target localisation (section 5.1 of the paper): sensors in a plane, each follows one of several targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Len

from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import Graph
from mpi_resmtl.streams import Stream, block_length, generator
from mpi_resmtl.tasks import TASKS, Scene, Size
from mpi_resmtl.tasks.linear_regression import Constants
from mpi_resmtl.tasks.location import Judge, LocationTask, LossPosition, Noise, direction_to

Interval = Annotated[list[Annotated[float, Ge(0)]], Len(2, 2)]


DRAWN = 3
"""Random numbers of a sample."""


@dataclass
class Parameters:
    """The study's own table."""

    name: Literal["target-localization"] = "target-localization"
    variant: Annotated[Literal["paper", "authors-code"], "which defaults the other switches have"] = "paper"
    agents: Annotated[int, Ge(1), "n"] = 100
    side: Annotated[float, Gt(0), "sensors are uniform in [0, side]^2"] = 3.0
    targets: Annotated[
        list[Annotated[list[float], Len(2, 2)]], Len(1), "corner of the unit square a group's target lies in"
    ] = field(default_factory=lambda: [[10.0, 10.0], [10.0, 20.0], [20.0, 10.0], [20.0, 20.0]])
    step_size: Annotated[float, Gt(0), "mu"] = 0.1
    distance_noise: Annotated[Interval, "range of an agent's standard deviation of d"] = field(
        default_factory=lambda: [0.1, 0.2]
    )
    direction_noise: Annotated[Interval, "range of an agent's standard deviation of u"] = field(
        default_factory=lambda: [0.01, 0.02]
    )
    noisy_agents: Annotated[int, Ge(0), "agents, drawn at random, with a direction noise of their own"] = 5
    noisy_direction: Annotated[float, Ge(0), "their standard deviation of u"] = 0.1
    noise: Annotated[Literal["independent", "scalar"], "direction noise: one draw a component, or one draw on both"] = (
        "independent"
    )
    loss_position: Annotated[
        LossPosition, "whose position enters the loss of a neighbour's message; `neighbour` is a slip"
    ] = "own"
    judge: Annotated[Judge, "the loss by which messages are judged"] = "measurement"

    def __post_init__(self):
        for name in ("distance_noise", "direction_noise"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"task.{name} = [{low}, {high}]: the first is above the second")
        if self.noisy_agents > self.agents:
            raise UserError(f"task.noisy_agents = {self.noisy_agents} is more than the {self.agents} agents")


@TASKS.named("target-localization")
class TargetLocalization:
    """Sensors estimate the place of their group's target from noisy distances and directions (section 5.1)."""

    Parameters = Parameters
    unit = "iterations"

    @staticmethod
    def defaults(tables: dict[str, Any]) -> dict[str, Any]:
        """Graph, attack and constants of the paper; with `variant = "authors-code"`, of its published program."""
        code = tables["task"].get("variant") == "authors-code"
        brought = {
            "iterations": 500,
            "graph": {"kind": "geometric-directed" if code else "geometric"},
            "rule": {"forgetting_factor": 0.1, "initial_accumulated_loss": 10.0},
        }
        if code:
            brought["task"] = {"noise": "scalar", "loss_position": "neighbour"}
        if tables.get("byzantine", {}).get("attack", "uniform") == "uniform":
            once = {"fixed": True, "same_to_all": True} if code else {}
            brought["byzantine"] = {"attack": "uniform", "low": 15.0, "high": 16.0} | once
        return brought

    @staticmethod
    def size(parameters: Parameters) -> Size:
        """Two parameters and three numbers a sample, which are also kept as q and signal."""
        block = block_length(parameters.agents, DRAWN)
        return Size(parameters.agents, 2, 8, block, 8 * (3 + 5 + 6), gathers=True)

    @staticmethod
    def scene(parameters: Parameters, seed: int) -> Scene:
        """Positions uniform in the square; agents in equal runs to the targets."""
        n, corners = parameters.agents, np.array(parameters.targets)
        group = (np.arange(n) * len(corners) // n).astype(np.int32)
        targets = corners + generator(seed, "target").random(corners.shape)
        position = parameters.side * generator(seed, "position").random((n, 2))
        return Scene(group=group, data="generated", position=position, target=targets[group])

    @staticmethod
    def task(parameters: Parameters, graph: Graph, seed: int, first: int, count: int) -> LocationTask:
        """Samples d = (w - x).u + v_d, u = e + v_u with e = (w - x)/norm(w - x); v ~ N(0, an agent's deviation)."""
        noise = _noise(parameters, seed, slice(first, first + count))
        own = slice(first, first + count)
        towards = direction_to(graph.target[own], graph.position[own]).T.copy()
        away_x, away_y = (graph.target[own] - graph.position[own]).T
        stream = Stream(seed, "sample", parameters.agents, DRAWN, first, count)

        def draw(block: int) -> tuple[np.ndarray, np.ndarray]:
            normal = stream.normal_by_component(block)
            u = noise.direction * (normal[:, :1] if noise.scalar else normal[:, :2])
            u = u + towards
            d = away_x * u[:, 0] + away_y * u[:, 1]
            d += noise.distance * normal[:, 2]
            return u.swapaxes(1, 2), d

        return LocationTask(
            draw,
            stream.length,
            initial=generator(seed, "initial").random((parameters.agents, 2))[own],
            position=graph.position,
            first=first,
            step_size=parameters.step_size,
            target=graph.target[own],
            noise=noise,
            loss_position=parameters.loss_position,
            judge=parameters.judge,
        )


def _noise(parameters: Parameters, seed: int, own: slice) -> Noise:
    random = generator(seed, "noise")
    distance = random.uniform(*parameters.distance_noise, parameters.agents)
    direction = random.uniform(*parameters.direction_noise, parameters.agents)
    direction[random.choice(parameters.agents, parameters.noisy_agents, replace=False)] = parameters.noisy_direction
    return Noise(direction[own], distance[own], parameters.noise == "scalar")


def noise_of(parameters: Parameters, seed: int) -> Noise:
    """The measurements' noise of every agent of a study."""
    return _noise(parameters, seed, slice(None))


def constants_of(parameters: Parameters, seed: int) -> Constants:
    """What the paper assumes of every agent's risk r(m) = E (d + x.u - m.u)^2 / 2, which `adapt` does not descend.

    u ~ N(e, C), norm(e) = 1, has M = E uu' = ee' + C, so r has the Hessian M: m is at most the noise across e. The
    stochastic gradient -u ((w - m).u + v_d) has noise of covariance N(w - m) + s_d^2 M with
    trace N(a) = a'(M tr M + M^2 - 2ee')a, since E norm(u)^2 uu' = M tr M + 2M^2 - 2ee' (Isserlis); c is the greatest
    ratio of that to norm(Ma)^2, infinite where M is singular.
    """
    scene, noise = TargetLocalization.scene(parameters, seed), noise_of(parameters, seed)
    e = direction_to(scene.target, scene.position)
    shape = np.ones((2, 2)) if noise.scalar else np.eye(2)
    outer = e[:, :, None] * e[:, None, :]
    hessian = outer + (noise.direction**2)[:, None, None] * shape
    eigenvalues, vectors = np.linalg.eigh(hessian)
    trace = eigenvalues.sum(axis=1)
    spread = hessian * trace[:, None, None] + hessian @ hessian - 2 * outer
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = (vectors / eigenvalues[:, None, :]) @ vectors.swapaxes(1, 2)
        relative = inverse @ spread @ inverse
    singular = ~np.isfinite(relative).all(axis=(1, 2))
    relative[singular] = 0.0
    c = np.where(singular, np.inf, np.linalg.eigvalsh(relative)[:, -1])
    return Constants(np.maximum(eigenvalues[:, 0], 0.0), eigenvalues[:, 1], noise.distance**2 * trace, c)
