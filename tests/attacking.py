"""Random worlds in which attacks are tried: stages of any number of ranks, and what their attackers know."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from oracle_attacks import World

from mpi_resmtl.attacks import ATTACKS, Known, Messages, Stage
from mpi_resmtl.graph import sorted_edges
from mpi_resmtl.partition import Partition, partition, shares

NU, PHI_0 = 0.3, 4.0


class Plane:
    """Samples (u, y) whose loss is (y - u'm)^2."""

    def loss_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """(y - u'm)^2"""
        return (revealed[:, -1] - (revealed[:, :-1] * models).sum(axis=1)) ** 2

    def gradient_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """-2 u (y - u'm)"""
        return -2 * revealed[:, :-1] * (revealed[:, -1:] - (revealed[:, :-1] * models).sum(axis=1, keepdims=True))

    def regression_at(self, revealed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """u and y"""
        return revealed[:, :-1], revealed[:, -1]


class Margin:
    """Samples (u, y) whose loss is log(1 + exp(-y u'm)): a classifier's, which is no regression."""

    def loss_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """log(1 + exp(-y u'm))"""
        margin = revealed[:, -1] * (revealed[:, :-1] * models).sum(axis=1)
        return np.logaddexp(0, -margin.astype(np.float64))

    def gradient_at(self, revealed: np.ndarray, models: np.ndarray) -> np.ndarray:
        """-y u / (1 + exp(y u'm))"""
        margin = revealed[:, -1:] * (revealed[:, :-1] * models).sum(axis=1, keepdims=True)
        return (-revealed[:, -1:] * revealed[:, :-1] / (1 + np.exp(margin))).astype(models.dtype)

    def regression_at(self, revealed: np.ndarray) -> None:
        """None"""
        return


@dataclass
class Fray:
    """A world, and what happens in it for some iterations."""

    edge: np.ndarray
    byzantine: np.ndarray
    psi: np.ndarray
    """(T, n, P) intermediates, attackers' too"""
    previous: np.ndarray
    """(T, n, P)"""
    revealed: np.ndarray
    """(T, n, P + 1)"""
    said: np.ndarray
    """(T, n, n, P) what l tells k, [t, l, k]"""
    sampled: Plane | Margin = field(default_factory=Plane)
    seed: int = 0

    @property
    def world(self) -> World:
        """As oracles see it."""
        n = len(self.byzantine)
        hears = [[int(s) for s, t in self.edge if t == k] for k in range(n)]
        return World(hears, self.byzantine.tolist())

    @property
    def iterations(self) -> range:
        """0 to T - 1."""
        return range(len(self.psi))

    def part(self, rank: int, ranks: int) -> Partition:
        """A rank's partition."""
        return partition(shares(self.edge, self.byzantine, ranks)[rank], rank, self.byzantine)

    def stage(self, rank: int = 0, ranks: int = 1) -> Stage:
        """A rank's stage."""
        part = self.part(rank, ranks)
        n, parameters = self.psi.shape[1:]
        return Stage(
            seed=self.seed,
            agents=n,
            parameters=parameters,
            dtype=self.psi.dtype,
            tensors=(parameters - parameters // 2, parameters // 2) if parameters > 1 else (1,),
            byzantine=self.byzantine,
            source=part.spoken[:, 0],
            target=part.spoken[:, 1],
            first_agent=part.first,
            count=part.count,
            first=part.spoken_first,
            total=part.spoken_total,
            edge=self.edge,
            iterations=len(self.psi),
            forgetting_factor=NU,
            initial_accumulated_loss=PHI_0,
            sampled=self.sampled,
        )

    def known(self, name: str, parameters: object, t: int, rank: int = 0, ranks: int = 1) -> Known:
        """What a rank's attackers know in iteration t by an attack's declaration, worked out agent by agent."""
        attack, part = ATTACKS[name], self.part(rank, ranks)
        knows = attack.knowledge(parameters)
        speakers = sorted({int(a) for a, _ in part.spoken})
        own = None if knows == "nothing" else self.psi[t][speakers]
        if knows in ("nothing", "own"):
            return Known(t, own)
        if knows == "heard":
            mine = range(part.first, part.first + part.count)
            into = [(s, k) for s, k in self.edge.tolist() if k in mine and self.byzantine[k] and s != k]
            told = [self.said[t - 1, s, k] if t else np.zeros(self.psi.shape[2]) for s, k in into]
            return Known(t, own, heard=np.array(told, self.psi.dtype).reshape(-1, self.psi.shape[2]))
        told = ~self.byzantine
        if knows == "victim":
            told = told & np.isin(np.arange(len(told)), part.spoken[:, 1])
        seen = [np.where(told[:, None], rows[t], 0).astype(rows.dtype) for rows in (self.psi, self.previous)]
        revealed = np.where(told[:, None], self.revealed[t], 0).astype(self.revealed.dtype) if attack.samples else None
        return Known(t, own, None, *seen, revealed)

    def messages(self, name: str, rank: int = 0, ranks: int = 1, **parameters: object) -> list[dict]:
        """What a rank's attackers send, iteration by iteration, by (attacker, victim); None: nothing."""
        attack, stage = ATTACKS[name], self.stage(rank, ranks)
        options = attack.parameters(**parameters)
        speak = attack.prepare(options, stage)
        return [spoken(speak, self.known(name, options, t, rank, ranks), stage) for t in self.iterations]


def spoken(speak: Messages, known: Known, stage: Stage) -> dict[tuple[int, int], np.ndarray | None]:
    """Messages by (attacker, victim), None where nothing is sent; their shape and type are as they must be."""
    with np.errstate(all="ignore"):
        said = speak(known)
    said, sent = said if isinstance(said, tuple) else (said, np.ones(len(stage.source), bool))
    assert said.shape == (len(stage.source), stage.parameters)
    assert said.dtype == stage.dtype
    pairs = zip(stage.source.tolist(), stage.target.tolist(), strict=True)
    return {pair: said[e].copy() if sent[e] else None for e, pair in enumerate(pairs)}


def fray(
    seed: int, parameters: int = 2, iterations: int = 4, dtype: type = np.float64, sampled=None, density: float = 0.5
) -> Fray:
    """A random directed graph of 3 to 12 agents, some of them Byzantine; everyone near 0 and drifting off."""
    random = np.random.default_rng(seed)
    n = int(random.integers(3, 13))
    edge = sorted_edges(np.argwhere(random.random((n, n)) < density), n, directed=True)
    byzantine = np.zeros(n, bool)
    byzantine[random.choice(n, int(random.integers(1, max(2, n - 1))), replace=False)] = True
    shape = (iterations, n, parameters)
    centre = np.arange(iterations)[:, None, None] * 0.2 + random.normal(size=(1, n, parameters))
    psi = (centre + 0.3 * random.normal(size=shape)).astype(dtype)
    said = psi[:, :, None] + 0.5 * byzantine[:, None, None] * random.normal(size=(iterations, n, n, parameters))
    samples = random.normal(size=(iterations, n, parameters + 1))
    if isinstance(sampled, Margin):
        samples[..., -1] = np.sign(samples[..., -1])
    return Fray(
        edge,
        byzantine,
        psi,
        (psi - 0.1 * random.normal(size=shape)).astype(dtype),
        samples.astype(dtype),
        said.astype(dtype),
        sampled or Plane(),
        seed,
    )
