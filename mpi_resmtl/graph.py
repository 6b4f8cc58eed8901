"""Who hears whom: topologies as edge lists, and the graph with its groups, attackers and positions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from mpi_resmtl import memory
from mpi_resmtl.errors import UserError
from mpi_resmtl.registry import Registry
from mpi_resmtl.streams import generator

GRAPHS: Registry[Topology] = Registry("graph")


@dataclass
class Graph:
    """The agents and all that is fixed about them; arrays over agents, but for `edge`."""

    edge: np.ndarray
    """(E, 2) int32 source, target; sorted by (target, source), each agent's edge to itself included."""
    byzantine: np.ndarray
    """(n,) bool"""
    group: np.ndarray
    """(n,) int32, the id of the agent's task."""
    position: np.ndarray | None = None
    """(n, 2) float64"""
    target: np.ndarray | None = None
    """(n, P) float64, the true model."""
    epoch: int = 0
    """Iterations in an epoch; 0 where the study has none."""

    @property
    def agents(self) -> int:
        """n."""
        return len(self.byzantine)


@dataclass(frozen=True)
class Topology:
    """A registered kind of graph: `pairs(n, parameters, position, seed)` gives (m, 2) int pairs source, target."""

    pairs: Callable
    parameters: type
    directed: bool
    most: Callable[[int, object, np.ndarray | None], int] | None
    """(n, parameters, position) -> as how many pairs the work of making them weighs at most; None: not known."""

    @property
    def __doc__(self) -> str:
        return self.pairs.__doc__


def topology(name: str, parameters: type, directed: bool = False, most: Callable | None = None) -> Callable:
    """Decorator: register a function that gives the pairs of a topology; undirected pairs are given once."""

    def register(pairs: Callable) -> Callable:
        GRAPHS.add(name, Topology(pairs, parameters, directed, most))
        return pairs

    return register


def sorted_edges(pairs: np.ndarray, agents: int, directed: bool) -> np.ndarray:
    """Edge list (E, 2) int32 with self edges and without repeats, sorted by (target, source), from (m, 2) pairs."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    if not directed:
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
    # Sorting is many times as fast as `np.unique`, which hashes.
    key = np.sort(np.concatenate([pairs[:, 1] * agents + pairs[:, 0], np.arange(agents) * (agents + 1)]))
    key = key[np.flatnonzero(np.diff(key, prepend=-1))]
    return np.stack([key % agents, key // agents], axis=1).astype(np.int32)


def build_edges(kind: str, parameters: object, agents: int, position: np.ndarray | None, seed: int) -> np.ndarray:
    """The edge list of the graph table; raises UserError when the topology does not suit the agents."""
    chosen = GRAPHS[kind]
    if chosen.most is not None:
        pairs = chosen.most(agents, parameters, position)
        memory.require(memory.PAIR * pairs, f"graph.kind = {kind!r} of {agents} agents")
    return sorted_edges(chosen.pairs(agents, parameters, position, seed), agents, chosen.directed)


def choose_byzantine(agents: int, count: int, chosen: list[int] | None, seed: int) -> np.ndarray:
    """(n,) bool: the agents named, or else `count` drawn at random."""
    byzantine = np.zeros(agents, bool)
    if chosen is not None:
        outside = [k for k in chosen if not 0 <= k < agents]
        if outside:
            raise UserError(f"byzantine.agents: {outside[0]} is not an agent; there are 0 to {agents - 1}")
        byzantine[chosen] = True
    elif count > agents:
        raise UserError(f"byzantine.count = {count} is more than the {agents} agents")
    else:
        byzantine[generator(seed, "byzantine").choice(agents, count, replace=False)] = True
    return byzantine


@dataclass
class Geometric:
    """Agents within a radius hear each other."""

    radius: Annotated[float, Gt(0), "greatest distance between neighbours"] = 1.0
    neighbours: Annotated[int, Ge(1), "greatest size of a neighbourhood, oneself included"] = 10


def _tree(position: np.ndarray | None):
    from scipy.spatial import cKDTree

    if position is None:
        raise UserError("a geometric graph needs agents with positions; this task has none")
    return cKDTree(position)


def _close(agents: int, parameters: Geometric, position: np.ndarray | None) -> int:
    tree = _tree(position)
    return int(tree.count_neighbors(tree, parameters.radius) - agents) // 2


def _close_pairs(parameters: Geometric, position: np.ndarray | None) -> np.ndarray:
    """All pairs (m, 2) within the radius, each once; O(n log n + m)."""
    return _tree(position).query_pairs(parameters.radius, output_type="ndarray")


def _rank_in_group(group: np.ndarray, priority: np.ndarray) -> np.ndarray:
    """Place (0, 1, ...) of each entry among those of its group by ascending priority."""
    # One key to sort by takes a fraction of the time of two; within a group priorities differ.
    order = np.argsort(group.astype(np.int64) * (int(priority.max(initial=0)) + 1) + priority)
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    place = np.arange(len(group)) - first.repeat(np.diff(first, append=len(group)))
    rank = np.empty_like(place)
    rank[order] = place
    return rank


@topology("geometric", Geometric, most=_close)
def geometric(agents: int, parameters: Geometric, position: np.ndarray | None, seed: int) -> np.ndarray:
    """Undirected: pairs within a radius, taken in random order while both ends have room.

    A pair among the first that either end has room for is certain to be taken in any sequential pass, so whole rounds
    of them are taken at once; the result is that of the sequential pass.
    """
    left = _close_pairs(parameters, position)
    priority = generator(seed, "graph").permutation(len(left))
    room = np.full(agents, parameters.neighbours - 1)
    taken = []
    while len(left):
        ends, both = left.T.reshape(-1), np.tile(priority, 2)
        within = _rank_in_group(ends, both) < room[ends]
        accept = within[: len(left)] & within[len(left) :]
        taken.append(left[accept])
        room -= np.bincount(left[accept].reshape(-1), minlength=agents)
        keep = ~accept & (room[left] > 0).all(axis=1)
        left, priority = left[keep], priority[keep]
    return np.concatenate(taken) if taken else left


@topology("geometric-directed", Geometric, directed=True, most=_close)
def geometric_directed(agents: int, parameters: Geometric, position: np.ndarray | None, seed: int) -> np.ndarray:
    """Directed: each agent hears a random choice of those within a radius, as in the published program."""
    close = _close_pairs(parameters, position)
    pairs = np.concatenate([close, close[:, ::-1]])
    rank = _rank_in_group(pairs[:, 1], generator(seed, "graph").permutation(len(pairs)))
    return pairs[rank < parameters.neighbours - 1]


@dataclass
class Plain:
    """No parameters."""


@topology("complete", Plain, most=lambda n, parameters, position: n * n)
def complete(agents: int, parameters: Plain, position: np.ndarray | None, seed: int) -> np.ndarray:
    """Everyone hears everyone."""
    return np.argwhere(np.triu(np.ones((agents, agents), bool), 1))


@topology("star", Plain, most=lambda n, parameters, position: n)
def star(agents: int, parameters: Plain, position: np.ndarray | None, seed: int) -> np.ndarray:
    """Agent 0 and all others hear each other."""
    return np.stack([np.zeros(agents - 1, int), np.arange(1, agents)], axis=1)


@dataclass
class Ring:
    """A circle of agents."""

    reach: Annotated[int, Ge(1), "neighbours on either side"] = 1


@topology("ring", Ring, most=lambda n, parameters, position: n * min(parameters.reach, n // 2))
def ring(agents: int, parameters: Ring, position: np.ndarray | None, seed: int) -> np.ndarray:
    """Each agent and its next ones around a circle hear each other."""
    k = np.arange(agents)
    steps = range(1, min(parameters.reach, agents // 2) + 1)
    return np.concatenate([np.stack([k, (k + s) % agents], axis=1) for s in steps] or [np.empty((0, 2), int)])


@dataclass
class Torus:
    """A periodic grid."""

    rows: Annotated[int, Ge(0), "rows of the grid; 0: the divisor of n nearest below its root"] = 0


@topology("torus", Torus, most=lambda n, parameters, position: 2 * n)
def torus(agents: int, parameters: Torus, position: np.ndarray | None, seed: int) -> np.ndarray:
    """Four neighbours on a grid whose opposite sides are joined."""
    rows = parameters.rows or max(r for r in range(1, int(agents**0.5) + 1) if agents % r == 0)
    if agents % rows:
        raise UserError(f"graph.rows = {rows} does not divide the {agents} agents of a torus")
    k = np.arange(agents).reshape(rows, -1)
    below, right = np.roll(k, -1, axis=0), np.roll(k, -1, axis=1)
    pairs = np.stack([np.concatenate([k.ravel(), k.ravel()]), np.concatenate([below.ravel(), right.ravel()])], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


@dataclass
class ErdosRenyi:
    """Independent random edges."""

    probability: Annotated[float, Ge(0), Le(1), "chance of each undirected edge"] = 0.1


@topology("erdos-renyi", ErdosRenyi, most=lambda n, parameters, position: int(4 * n * (parameters.probability * n + 1)))
def erdos_renyi(agents: int, parameters: ErdosRenyi, position: np.ndarray | None, seed: int) -> np.ndarray:
    """Every pair hears each other with one probability."""
    import networkx

    drawn = networkx.fast_gnp_random_graph(agents, parameters.probability, seed=generator(seed, "graph"))
    return np.array(drawn.edges, int).reshape(-1, 2)


@dataclass
class SmallWorld:
    """A rewired ring (Watts and Strogatz 1998)."""

    neighbours: Annotated[int, Ge(2), "neighbours on the ring before rewiring, oneself left out"] = 4
    rewiring: Annotated[float, Ge(0), Le(1), "chance that an edge is rewired"] = 0.1


@topology("small-world", SmallWorld, most=lambda n, parameters, position: 4 * n * (min(parameters.neighbours, n) + 1))
def small_world(agents: int, parameters: SmallWorld, position: np.ndarray | None, seed: int) -> np.ndarray:
    """A ring with some edges rewired at random (Watts and Strogatz 1998)."""
    import networkx

    if parameters.neighbours > agents:
        raise UserError(f"graph.neighbours = {parameters.neighbours} is more than the {agents} agents")
    drawn = networkx.watts_strogatz_graph(
        agents, parameters.neighbours, parameters.rewiring, seed=generator(seed, "graph")
    )
    return np.array(drawn.edges, int).reshape(-1, 2)


@dataclass
class FromFile:
    """A graph of one's own."""

    file: Annotated[str, "text file, one `source target` a line, # starts a comment"] = ""
    directed: Annotated[bool, "an edge is heard one way only"] = True


def _written(agents: int, parameters: FromFile, position: np.ndarray | None) -> int:
    """A line has four characters at least."""
    return _file(parameters).stat().st_size // 4


def _file(parameters: FromFile) -> Path:
    path = Path(parameters.file)
    try:
        if parameters.file and path.is_file():
            return path
    except OSError as error:
        raise UserError(f"graph.file: {error.strerror}: {parameters.file[:200]!r}") from None
    raise UserError(f"graph.file: no such file: {parameters.file!r}")


@topology("file", FromFile, directed=True, most=_written)
def from_file(agents: int, parameters: FromFile, position: np.ndarray | None, seed: int) -> np.ndarray:
    """Edges read from a text file, one `source target` a line."""
    path = _file(parameters)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="loadtxt: input contained no data")
            pairs = np.loadtxt(path, dtype=np.int64, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise UserError(f"graph.file {path}: expected two agent numbers a line: {error}") from None
    if pairs.size and pairs.shape[1] != 2:
        raise UserError(f"graph.file {path}: expected two agent numbers a line, found {pairs.shape[1]}")
    check_agents(pairs, agents, f"graph.file {path}")
    return pairs if parameters.directed else np.concatenate([pairs, pairs[:, ::-1]])


def check_agents(pairs: np.ndarray, agents: int, where: str) -> None:
    """Raise UserError for the first pair with an agent out of range."""
    outside = np.flatnonzero((pairs < 0).any(axis=1) | (pairs >= agents).any(axis=1))
    if len(outside):
        source, target = pairs[outside[0]]
        raise UserError(f"{where}: edge {outside[0]} is {source} -> {target}; agents are 0 to {agents - 1}")


@topology("recorded", Plain)
def recorded(agents: int, parameters: Plain, position: np.ndarray | None, seed: int) -> np.ndarray:
    """The graph of a recorded stream's own file."""
    raise UserError("graph.kind = 'recorded' is for recorded streams; choose another graph")
