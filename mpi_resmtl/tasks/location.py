"""The location model: an agent measures direction and distance to a target and estimates where it is (P = 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpi_resmtl import loops
from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.tasks import regression
from mpi_resmtl.tasks.regression import Regression

LossPosition = Literal["own", "neighbour"]
Judge = Literal["measurement", "position"]


@dataclass(frozen=True)
class Samples(regression.Samples):
    """A block of samples; y is d + x_k.u, so that the loss of m is (d + x_k.u - m.u)^2."""

    q: np.ndarray
    """(B, A, 2) x_k + d u, where the sample says the target is."""


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the measurements: direction (A,), distance (A,)."""

    direction: np.ndarray
    distance: np.ndarray
    scalar: bool
    """The direction's noise is one number added to both components, instead of one for each."""


def closed_form_risk(model: np.ndarray, target: np.ndarray, position: np.ndarray, noise: Noise) -> np.ndarray:
    """E (d + x.u - m.u)^2 over u = e + v_u and d: (w - m)' (e e' + C) (w - m) + s_d^2.

    `model` (b, A, 2), `target` and `position` (A, 2) -> (b, A). C is s_u^2 times the identity, or times the matrix
    of ones where the noise is scalar; d + x.u - m.u = (w - m).u + v_d.
    """
    towards = direction_to(target, position)
    return loops.location_risks(model, target, towards, noise.direction**2, noise.distance**2, noise.scalar)


def direction_to(target: np.ndarray, position: np.ndarray) -> np.ndarray:
    """e = (w - x) / norm(w - x): (A, 2)."""
    away = target - position
    return away / np.sqrt((away * away).sum(axis=-1, keepdims=True))


class LocationTask(Regression):
    """Agents first to first + A - 1 of n; `draw(block)` gives u (B, A, 2) and d (B, A)."""

    def __init__(
        self,
        draw: Callable[[int], tuple[np.ndarray, np.ndarray]],
        length: int,
        initial: np.ndarray,
        position: np.ndarray,
        first: int,
        step_size: float,
        target: np.ndarray | None = None,
        noise: Noise | None = None,
        loss_position: LossPosition = "own",
        judge: Judge = "measurement",
    ):
        """`initial` (A, 2) own models; `position` (n, 2) of all agents; `target` (A, 2), `noise` where known."""
        super().__init__(length, initial, step_size)
        self.draw = draw
        self._all_positions, self._position = position, position[first : first + len(initial)]
        self._target, self._noise = target, noise
        self._loss_position, self._judge = loss_position, judge
        self._offsets: dict[Neighbourhoods, np.ndarray] = {}
        self.measures = ("loss",)
        if target is not None:
            self.measures += ("msd",)
            if noise is not None:
                self.measures += ("risk_before", "risk_after")
        self.keeps_intermediates = "risk_before" in self.measures

    def _make(self, block: int) -> Samples:
        u, d = self.draw(block)
        q, signal = loops.location_samples(np.ascontiguousarray(u.swapaxes(1, 2)), d, self._position)
        return Samples(q=q, signal=signal)

    def adapt(self, samples: Samples, i: int, theta: np.ndarray, psi: np.ndarray) -> None:
        """psi = theta + mu (q - theta)."""
        loops.step_towards(samples.q[i], self.step_size, theta, psi)

    def lookahead(self, samples: Samples, i: int, psi: np.ndarray) -> np.ndarray:
        """psi + mu (q - psi): (A, 2)."""
        return psi + self.step_size * (samples.q[i] - psi)

    def judge(self, samples: Samples, i: int, neighbourhoods: Neighbourhoods, messages: np.ndarray) -> np.ndarray:
        """(d_k + x_k.u_k - m.u_k)^2 for each message (E, 2), or norm(q_k - m)^2 where messages are judged by position.

        With `loss_position = "neighbour"` x_l stands for x_k in a neighbour's loss, the published program's slip.
        """
        if self._judge == "position":
            error = messages.T - samples.q[i].T.take(neighbourhoods.target, axis=1)
            return error[0] * error[0] + error[1] * error[1]
        if self._loss_position == "neighbour":
            messages = messages - self._offset(neighbourhoods)
        return loops.squared_residuals(samples.signal[i], neighbourhoods.agents, neighbourhoods.start, messages)

    def own_losses(self, samples: Samples, i: int, models: np.ndarray) -> np.ndarray:
        """(d_k + x_k.u_k - m.u_k)^2, or norm(q_k - m)^2, of a model an agent (A, 2): (A,)."""
        if self._judge == "position":
            error = models - samples.q[i]
            return error[:, 0] * error[:, 0] + error[:, 1] * error[:, 1]
        return super().own_losses(samples, i, models)

    def measure(self, samples: Samples, psi: np.ndarray | None, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Streaming loss of theta on the agent's sample; squared deviation and true risk where they can be known."""
        found = {"loss": self.losses(samples, theta)}
        if self._target is not None:
            found["msd"] = loops.own_squared_distances(theta, self._target)
            if self._noise is not None:
                found["risk_before"] = closed_form_risk(psi, self._target, self._position, self._noise)
                found["risk_after"] = closed_form_risk(theta, self._target, self._position, self._noise)
        return found

    def _offset(self, neighbourhoods: Neighbourhoods) -> np.ndarray:
        """x_l - x_k on each edge: (E, 2)."""
        if neighbourhoods not in self._offsets:
            speaker = self._all_positions[neighbourhoods.source]
            self._offsets[neighbourhoods] = speaker - self._position[neighbourhoods.target]
        return self._offsets[neighbourhoods]
