"""Brute-force oracle: recorded streams run one agent, one neighbour, one number after another.

Written from the equations alone and independent of `mpi_resmtl`, so that agreement of the two has a meaning.
Symbols: n agents, P parameters, T iterations, E edges, k target, l source; theta model, psi intermediate,
m_lk message from l to k, a_lk weight, phi_lk accumulated loss, mu step size, nu forgetting factor, xi_k,i
sample of k at iteration i.

`python tests/oracle.py GOLDEN.h5 ...` compares the simulation with the values expected in each file.
"""

import argparse
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

RULES = ("none", "average", "distance", "loss-unfiltered", "loss")
ACCUMULATING_RULES = ("distance", "loss-unfiltered", "loss")

LossPosition = Literal["own", "neighbour"]
"""Whose position x judges the message of l at k: that of k, or of l (the slip of the published program)."""

Model = Any
"""One flat parameter vector: a list of floats (location) or a float32 array (networks)."""


def rule_weights(rule: str, neighbours: Sequence[int], own: int, accumulated: dict[int, float]) -> dict[int, float]:
    """Weights {l: a_lk} of agent k = `own` over its neighbourhood N_k = `neighbours`, k included.

    none             a_kk = 1
    average          a_lk = 1 / |N_k|
    distance         a_lk = (1 / D_lk) / sum_p 1 / D_pk
    loss-unfiltered  a_lk = (1 / phi_lk) / sum_p 1 / phi_pk
    loss             the same over those l with phi_lk <= phi_kk, all others 0

    `accumulated` is {l: D_lk} or {l: phi_lk}; `none` and `average` do not look at it. A value that is not
    finite counts as infinite and has reciprocal 0. Where a reciprocal is infinite the limit is taken: such
    neighbours share the weight equally. Where nobody qualifies a_kk = 1.
    """
    if rule == "none":
        return {source: 1.0 if source == own else 0.0 for source in neighbours}
    if rule == "average":
        return {source: 1.0 / len(neighbours) for source in neighbours}
    if rule not in ACCUMULATING_RULES:
        raise ValueError(f"unknown rule {rule!r}, not one of {RULES}")
    value = {}
    for source in neighbours:
        value[source] = accumulated[source] if math.isfinite(accumulated[source]) else math.inf
    reciprocal = {}
    for source in neighbours:
        if rule == "loss" and value[source] > value[own]:
            reciprocal[source] = 0.0
        else:
            reciprocal[source] = 1.0 / value[source] if value[source] > 0.0 else math.inf
    if max(reciprocal.values()) == math.inf:
        reciprocal = {source: float(reciprocal[source] == math.inf) for source in neighbours}
    total = sum(reciprocal.values())
    if total == 0.0:
        return rule_weights("none", neighbours, own, {})
    return {source: reciprocal[source] / total for source in neighbours}


class Location:
    """Target localisation; u = x[i][k] and d = y[i][k] are the regressor and the measurement of agent k."""

    def __init__(self, stream: dict[str, Any], loss_position: LossPosition) -> None:
        self.step_size = float(stream["step_size"])
        self.regressor = stream["x"].tolist()
        self.measurement = stream["y"].tolist()
        self.position = stream["position"].tolist()
        self.loss_position = loss_position

    def initial(self, row: NDArray[Any]) -> Model:
        """The row as a list of floats."""
        return row.tolist()

    def lookahead(self, k: int, i: int, model: Model) -> Model:
        """model + mu (q - model) with q = x_k + d u."""
        u, d, x = self.regressor[i][k], self.measurement[i][k], self.position[k]
        return [model[p] + self.step_size * (x[p] + d * u[p] - model[p]) for p in range(2)]

    def adapt(self, k: int, i: int, model: Model) -> Model:
        """psi = theta + mu (q - theta)."""
        return self.lookahead(k, i, model)

    def loss(self, k: int, i: int, model: Model, source: int) -> float:
        """(d_k + x_k.u_k - m.u_k)^2, or with the published program's slip (d_k + x_l.u_k - m.u_k)^2."""
        x = self.position[source if self.loss_position == "neighbour" else k]
        u, d = self.regressor[i][k], self.measurement[i][k]
        error = d + x[0] * u[0] + x[1] * u[1] - model[0] * u[0] - model[1] * u[1]
        return error * error

    def squared_distance(self, a: Model, b: Model) -> float:
        """norm(a - b)^2."""
        return (a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1])

    def combine(self, weights: dict[int, float], messages: dict[int, Model]) -> Model:
        """sum_l a_lk m_lk over the l with a_lk > 0."""
        combined = [0.0, 0.0]
        for source, weight in weights.items():
            if weight > 0.0:
                combined[0] += weight * messages[source][0]
                combined[1] += weight * messages[source][1]
        return combined


class Network(ABC):
    """What the two classifiers share; float32 models, every sum in float64."""

    step_size: float

    def initial(self, row: NDArray[Any]) -> Model:
        """The row in float32."""
        return row.astype(np.float32)

    @abstractmethod
    def gradient(self, k: int, i: int, model: Model) -> Model:
        """grad l(model; xi_k,i)."""

    def lookahead(self, k: int, i: int, model: Model) -> Model:
        """model - mu grad l(model; xi_k,i), whatever the optimiser."""
        return (model - self.step_size * self.gradient(k, i, model)).astype(np.float32)

    def adapt(self, k: int, i: int, model: Model) -> Model:
        """psi = theta - mu grad l(theta; xi_k,i)."""
        return self.lookahead(k, i, model)

    def squared_distance(self, a: Model, b: Model) -> float:
        """norm(a - b)^2."""
        difference = a.astype(np.float64) - b
        return float(np.sum(difference * difference))

    def combine(self, weights: dict[int, float], messages: dict[int, Model]) -> Model:
        """sum_l a_lk m_lk over the l with a_lk > 0."""
        combined = np.zeros(len(next(iter(messages.values()))))
        for source, weight in weights.items():
            if weight > 0.0:
                combined += weight * messages[source].astype(np.float64)
        return combined.astype(np.float32)


class LinearClassifier(Network):
    """Softmax classifier; a model is the weight (classes, features) row by row, then the bias (classes)."""

    def __init__(self, stream: dict[str, Any], loss_position: LossPosition) -> None:
        self.step_size = float(stream["step_size"])
        self.inputs = stream["x"]
        self.labels = stream["y"]
        self.classes = int(stream["classes"])

    def log_probability(self, k: int, i: int, model: Model) -> NDArray[np.float64]:
        """z - log sum exp z with z = W x + b, for each of the sample's rows: (B, classes)."""
        inputs = self.inputs[i, k].astype(np.float64)
        weight = model[: -self.classes].reshape(self.classes, -1).astype(np.float64)
        logit = inputs @ weight.T + model[-self.classes :]
        logit = logit - logit.max(axis=1, keepdims=True)
        return logit - np.log(np.exp(logit).sum(axis=1, keepdims=True))

    def loss(self, k: int, i: int, model: Model, source: int) -> float:
        """Mean cross-entropy: -1/B sum_b log p(y_b | x_b)."""
        rows = np.arange(len(self.labels[i, k]))
        return float(-np.mean(self.log_probability(k, i, model)[rows, self.labels[i, k]]))

    def gradient(self, k: int, i: int, model: Model) -> Model:
        """dl/dz = (p - onehot(y)) / B, dl/dW = (dl/dz)^T x, dl/db = column sums of dl/dz."""
        inputs = self.inputs[i, k].astype(np.float64)
        error = np.exp(self.log_probability(k, i, model))
        error[np.arange(len(inputs)), self.labels[i, k]] -= 1.0
        error /= len(inputs)
        return np.concatenate([(error.T @ inputs).ravel(), error.sum(axis=0)])


class DigitCnn(Network):
    """Three convolutions and two linear layers in PyTorch; a network and an Adam an agent, moments kept."""

    def __init__(self, stream: dict[str, Any], loss_position: LossPosition) -> None:
        import torch

        self.torch = torch
        self.step_size = float(stream["step_size"])
        agents, batch = stream["y"].shape[1:]
        self.images = torch.tensor(stream["x"]).reshape(-1, agents, batch, 1, 28, 28)
        self.labels = torch.tensor(stream["y"]).long()
        self.networks = [self.network() for _ in range(agents)]
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=self.step_size) for net in self.networks]
        self.scratch = self.network()

    def network(self) -> Any:
        """conv 1-32, 32-64, 64-64 (3x3, padding 1; each ReLU, 2x2 max pool), linear 576-128, ReLU, 128-10."""
        nn = self.torch.nn
        layers: list[Any] = []
        for channels, filters in ((1, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10)]
        return nn.Sequential(*layers)

    def sample_loss(self, k: int, i: int, model: Model, network: Any) -> Any:
        """Mean cross-entropy of `model`, set as the parameters of `network`, as a tensor."""
        vector = self.torch.tensor(model)
        self.torch.nn.utils.vector_to_parameters(vector, network.parameters())
        return self.torch.nn.functional.cross_entropy(network(self.images[i, k]), self.labels[i, k])

    def loss(self, k: int, i: int, model: Model, source: int) -> float:
        """Mean cross-entropy of `model` on the sample."""
        with self.torch.no_grad():
            return float(self.sample_loss(k, i, model, self.scratch))

    def gradient(self, k: int, i: int, model: Model) -> Model:
        """Gradient of the mean cross-entropy, by autograd."""
        loss = self.sample_loss(k, i, model, self.scratch)
        parts = self.torch.autograd.grad(loss, list(self.scratch.parameters()))
        return self.torch.cat([part.reshape(-1) for part in parts]).numpy()

    def adapt(self, k: int, i: int, model: Model) -> Model:
        """psi = theta - mu m / (sqrt(v) + 1e-8), Adam with bias-corrected moments m, v of agent k."""
        network, optimizer = self.networks[k], self.optimizers[k]
        optimizer.zero_grad()
        self.sample_loss(k, i, model, network).backward()
        optimizer.step()
        return self.torch.nn.utils.parameters_to_vector(network.parameters()).detach().numpy().copy()


TASKS: dict[str, Any] = {"location": Location, "linear-classifier": LinearClassifier, "digit-cnn": DigitCnn}


@np.errstate(over="ignore", invalid="ignore")
def simulate(
    stream: dict[str, Any],
    rule: str,
    loss_position: LossPosition = "own",
    anchor: Literal["previous", "lookahead"] = "previous",
    iterations: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Run `rule` on a recorded stream; model (T,n,P), loss (T,n), weight and accumulated (T,E) in file order.

    psi_k   = theta_k,i-1 - mu grad l(theta_k,i-1; xi_k,i), theta_k,i-1 itself where k is inactive
    m_lk    = psi_l, or the recorded attack message of a Byzantine l
    phi_lk <- (1 - nu) phi_lk + nu L_lk, begun at initial_accumulated_loss for every edge, where
    L_lk    = l(m_lk; xi_k,i), or norm(theta~_k - m_lk)^2 for rule `distance` (self edge included)
    a_lk    by `rule_weights`
    theta_k = sum_l a_lk m_lk
    loss    = l(theta_k; xi_k,i), from k's own position whatever `loss_position`

    Anchors of `distance`: "previous", theta~_k = theta_k,i-1; "lookahead", the one-step-ahead point of the
    paper's section 3 and of the adaptive weights of Chen et al., theta~_k = psi_k - mu grad l(psi_k; xi_k,i):
    one more plain gradient step from the intermediate on the same sample, whether k is active or not and
    whatever the optimiser; for location psi + mu (q - psi).

    A message with a NaN or Inf has L_lk = inf, hence phi_lk = inf and weight 0 ever after. All results of
    Byzantine agents are NaN, and `accumulated` is NaN for rules that accumulate nothing.
    """
    task = TASKS[stream["model"]](stream, loss_position)
    total, agents = stream["y"].shape[:2]
    iterations = total if iterations is None else iterations
    nu = float(stream["forgetting_factor"])
    edge = stream["edge"].tolist()
    attacker_row = {k: row for row, k in enumerate(stream["byzantine"].tolist())}
    normal = [k for k in range(agents) if k not in attacker_row]
    neighbourhood: dict[int, dict[int, int]] = {k: {} for k in range(agents)}
    for index, (source, target) in enumerate(edge):
        neighbourhood[target][source] = index

    result = {
        "model": np.full((iterations, agents, stream["initial"].shape[1]), np.nan, stream["initial"].dtype),
        "loss": np.full((iterations, agents), np.nan),
        "weight": np.full((iterations, len(edge)), np.nan),
        "accumulated": np.full((iterations, len(edge)), np.nan),
    }
    model = {k: task.initial(stream["initial"][k]) for k in normal}
    accumulated = [float(stream["initial_accumulated_loss"])] * len(edge)
    for i in range(iterations):
        sent = {}
        for k in normal:
            active = stream["active"] is None or stream["active"][i, k]
            sent[k] = task.adapt(k, i, model[k]) if active else model[k]
        for k, row in attacker_row.items():
            message = stream["message"]
            sent[k] = task.initial(message[i, row] if message.ndim == 3 else message[row])
        finite = {k: bool(np.all(np.isfinite(sent[k]))) for k in sent}

        combined = {}
        for k in normal:
            sources = sorted(neighbourhood[k])
            origin = model[k]
            if rule == "distance" and anchor == "lookahead":
                origin = task.lookahead(k, i, sent[k])
            phi = {}
            if rule in ACCUMULATING_RULES:
                for source in sources:
                    if not finite[source]:
                        new = math.inf
                    elif rule == "distance":
                        new = task.squared_distance(origin, sent[source])
                    else:
                        new = task.loss(k, i, sent[source], source)
                    index = neighbourhood[k][source]
                    accumulated[index] = (1.0 - nu) * accumulated[index] + nu * new
                    phi[source] = accumulated[index]
                    result["accumulated"][i, index] = phi[source]
            weights = rule_weights(rule, sources, k, phi)
            for source in sources:
                result["weight"][i, neighbourhood[k][source]] = weights[source]
            combined[k] = task.combine(weights, sent)
            result["model"][i, k] = combined[k]
            result["loss"][i, k] = task.loss(k, i, combined[k], k)
        model = combined
    return result


def read_stream(path: str | Path) -> dict[str, Any]:
    """Attributes and datasets of a recorded stream by their last names; what is absent is None or empty."""
    with h5py.File(path) as file:
        stream: dict[str, Any] = dict(file.attrs)
        names = ("graph/edge", "agent/byzantine", "agent/initial", "agent/position", "agent/target")
        for name in (*names, "stream/x", "stream/y", "stream/active", "attack/message"):
            stream[name.split("/")[1]] = file[name][()] if name in file else None
    if stream["byzantine"] is None:
        stream["byzantine"] = np.zeros(0, np.int64)
    return stream


def read_expected(path: str | Path) -> dict[tuple[LossPosition, str], dict[str, NDArray[Any]]]:
    """{(loss position, rule): {name: values}} of a golden file, with `parameter_index` if it is there."""
    expected = {}
    with h5py.File(path) as file:
        for position in get_args(LossPosition):
            for rule, group in file["expected"].get(position, {}).items():
                expected[position, rule] = {name: group[name][()] for name in group}
                if "parameter_index" in file["expected"]:
                    expected[position, rule]["parameter_index"] = file["expected/parameter_index"][()]
    return expected


TOLERANCE: dict[str, dict[str, float]] = {
    "location": {"weight": 1e-9, "accumulated": 1e-9, "model": 1e-9, "loss": 1e-9},
    "linear-classifier": {"weight": 1e-6, "accumulated": 1e-6, "model_last": 1e-6},
    "digit-cnn": {"weight": 1e-5, "accumulated": 1e-5, "model_last_sampled": 1e-4, "model_norm": 1e-4},
}
"""Agreement asked for, relative for location and absolute for the networks."""


def deviations(
    stream: dict[str, Any], result: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]
) -> dict[str, float]:
    """Largest deviation from each expected dataset over normal agents.

    Location: |a - b| / |b| element by element, except the loss, the square of a difference that may vanish:
    |a - b| / max(b, 1). The networks: |a - b|.
    """
    normal = np.setdiff1d(np.arange(stream["y"].shape[1]), stream["byzantine"])
    into_normal = np.isin(stream["edge"][:, 1], normal)
    found = {}
    for name, values in expected.items():
        if name == "parameter_index":
            continue
        if name in ("weight", "accumulated"):
            actual, wanted = result[name][:, into_normal], values[:, into_normal]
        elif name == "model_last":
            actual, wanted = result["model"][-1, normal], values[normal]
        elif name == "model_last_sampled":
            actual, wanted = result["model"][-1][normal][:, expected["parameter_index"]], values[normal]
        elif name == "model_norm":
            actual = np.linalg.norm(result["model"][:, normal].astype(np.float64), axis=-1)
            wanted = values[:, normal]
        else:
            actual, wanted = result[name][:, normal], values[:, normal]
        gap = np.abs(actual.astype(np.float64) - wanted)
        if stream["model"] == "location":
            scale = np.maximum(wanted, 1.0) if name == "loss" else np.abs(wanted)
            gap = np.divide(gap, scale, out=gap, where=gap > 0.0)
        found[name] = float(gap.max())
    return found


def location_risk(
    model: Sequence[float],
    target: Sequence[float],
    position: Sequence[float],
    sigma_u: float,
    sigma_d: float,
    noise: Literal["independent", "scalar"] = "independent",
) -> float:
    """E (d + x.u - m.u)^2, u = e + v_u, e = (w - x) / norm(w - x), d = (w - x).u + v_d.

    The error is (w - m).u + v_d, hence
    independent  ((w - m).e)^2 + s_u^2 norm(w - m)^2 + s_d^2               v_u ~ N(0, s_u^2) on each component
    scalar       ((w - m).e)^2 + s_u^2 (w_1 - m_1 + w_2 - m_2)^2 + s_d^2   one v_u on both components
    s_u and s_d are standard deviations.
    """
    error = (target[0] - model[0], target[1] - model[1])
    away = (target[0] - position[0], target[1] - position[1])
    along = (error[0] * away[0] + error[1] * away[1]) / math.hypot(*away)
    if noise == "independent":
        spread = error[0] ** 2 + error[1] ** 2
    elif noise == "scalar":
        spread = (error[0] + error[1]) ** 2
    else:
        raise ValueError(f"unknown noise {noise!r}, not 'independent' or 'scalar'")
    return along**2 + sigma_u**2 * spread + sigma_d**2


def location_risk_sampled(
    model: Sequence[float],
    target: Sequence[float],
    position: Sequence[float],
    sigma_u: float,
    sigma_d: float,
    noise: Literal["independent", "scalar"],
    generator: np.random.Generator,
    samples: int = 100_000,
) -> tuple[float, float]:
    """Monte-Carlo mean of the loss (d + x.u - m.u)^2 and the standard error of that mean."""
    m, w, x = np.asarray(model, float), np.asarray(target, float), np.asarray(position, float)
    components = 2 if noise == "independent" else 1
    u = (w - x) / np.linalg.norm(w - x) + generator.normal(0.0, sigma_u, (samples, components))
    d = u @ (w - x) + generator.normal(0.0, sigma_d, samples)
    loss = (d + u @ x - u @ m) ** 2
    return float(loss.mean()), float(loss.std(ddof=1) / math.sqrt(samples))


def main() -> int:
    """Print each file's deviations; 0 if all are within tolerance."""
    parser = argparse.ArgumentParser(description="compare the oracle with golden files")
    parser.add_argument("files", nargs="+", type=Path, metavar="GOLDEN.h5")
    agree = True
    for path in parser.parse_args().files:
        stream = read_stream(path)
        iterations = len(stream["y"])
        # Imports torch, where it is needed, before the clock starts.
        simulate(stream, "none", iterations=1)
        print(f"{path.name}: {stream['model']}, {iterations} iterations")
        for (position, rule), expected in read_expected(path).items():
            start = time.perf_counter()
            result = simulate(stream, rule, position)
            milliseconds = (time.perf_counter() - start) / iterations * 1e3
            found = deviations(stream, result, expected)
            within = all(value <= TOLERANCE[stream["model"]][name] for name, value in found.items())
            agree = agree and within
            listed = "  ".join(f"{name} {value:.1e}" for name, value in sorted(found.items()))
            verdict = "agrees" if within else "DIFFERS"
            print(f"  {position:9} {rule:9} {verdict:7} {milliseconds:8.2f} ms/iteration  {listed}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
