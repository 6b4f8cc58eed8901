"""How much memory a run needs, and how much the machine has: what cannot work is refused before it is tried.

An estimate counts the arrays that grow with agents, edges, parameters, data or recording, and leaves out what a rank
needs anyhow beyond a constant. It is meant to be right within a factor of two.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_resmtl.errors import UserError
from mpi_resmtl.streams import recorded_block

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_resmtl.config import Experiment, Use
    from mpi_resmtl.recorder import Held, Layout
    from mpi_resmtl.tasks import Size

RANK = 55 << 20
"""Bytes of a rank that has nothing to do: interpreter, numpy, MPI, HDF5; ranks of a host share libraries."""
AGENT = 400
"""Bytes that rank 0 takes for an agent while it makes the graph."""
PAIR = 120
"""Bytes that rank 0 takes for a pair of neighbours while it makes the graph."""
_STACK = 2**20
"""Numbers in a stack of neighbourhoods, and in the differences within it."""
_UNLIMITED = 1 << 60
"""Limits above this are none."""


def available(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that processes on this host may still take: what is free, or what control groups leave; None: unknown."""
    found = [free for free in (_free(proc), *_left_by_groups(proc, cgroups)) if free is not None]
    return min(found, default=None)


def _free(proc: Path) -> int | None:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_by_groups(proc: Path, cgroups: Path) -> Iterable[int]:
    """What the limits of this process's control groups, and of those above them, leave, versions 1 and 2."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            root, limit, used, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        parts = [part for part in own.split("/") if part not in ("", "..")]
        # In a container the folder of the group is often mounted as the root.
        for depth in range(len(parts), -1, -1):
            folder = root.joinpath(*parts[:depth])
            most, taken = _number(folder / limit), _number(folder / used)
            if most is not None and taken is not None and most < _UNLIMITED:
                # Files that were read are kept as long as nobody needs the memory.
                yield max(0, most - taken + _named(folder / "memory.stat", cache))


def _number(path: Path) -> int | None:
    words = "".join(_lines(path)).strip()
    return int(words) if words.isdigit() else None


def _named(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _lines(path) if line.split()[:1] == [name]), 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def allowed() -> int | None:
    """Bytes that this process may still take by its own limit (`ulimit -v`); None: no limit."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    size = _lines(Path("/proc/self/statm"))
    if soft == resource.RLIM_INFINITY or not size:
        return None
    return max(0, soft - int(size[0].split()[0]) * resource.getpagesize())


def require(needed: int, what: str) -> None:
    """Raise UserError when `needed` bytes, for `what`, are more than this process can have."""
    for there in (available(), allowed()):
        if there is not None and needed > there:
            raise UserError(f"{what} would take {shown(needed)} of memory, this machine has {shown(there)} left")


def shown(count: int) -> str:
    """A number of bytes as people read it."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if count < 1000 or unit == "PB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


@dataclass(frozen=True)
class Crossing:
    """What each rank holds and exchanges: integers (ranks,)."""

    agents: np.ndarray
    rows: np.ndarray
    """Rows of models, as `partition` lays them out, or a few more: runs of own rows are sent from where they lie."""
    edges: np.ndarray
    """Edges into the rank's agents."""


def crossing(edge: np.ndarray, byzantine: np.ndarray, offsets: np.ndarray) -> Crossing:
    """From the edges (E, 2), who is Byzantine (n,) and the first agent of each rank and n (ranks + 1,)."""
    ranks, agents = len(offsets) - 1, np.diff(offsets)
    owner = np.arange(ranks).repeat(agents)
    source, target = edge.T
    speaker, hearer = owner[source], owner[target]
    attack = byzantine[source] & (source != target)
    across = ~attack & (speaker != hearer)
    once = np.unique(source[across].astype(np.int64) * ranks + hearer[across])
    rows = agents.astype(np.int64)
    rows += np.bincount(owner[once // ranks], minlength=ranks) + np.bincount(once % ranks, minlength=ranks)
    away = attack & (speaker != hearer)
    rows += np.bincount(speaker[attack], minlength=ranks) + np.bincount(hearer[away], minlength=ranks)
    return Crossing(agents, rows, np.bincount(hearer, minlength=ranks))


def needs(experiment: Experiment, size: Size, held: Crossing, widest: int, knowing: bool) -> list[int]:
    """Bytes that each rank will take at most; plain integers, as what a user asks for may be any number.

    `widest` is the size of the largest neighbourhood; `knowing`: attackers are told of everyone's models.
    """
    models = size.parameters * size.itemsize
    record, length = experiment.record, experiment.iterations
    uses = experiment.uses.values()
    block = min(length, recorded_block(size.agents))
    ahead = size.gathers or any(use.rule.judged_by == "fresh" for use in uses)
    samples = min(3, -(-length // size.block) + ahead)

    fixed = RANK + size.fixed
    fixed += 16 * _kept(length, record.every) + 16 * _kept(length, record.weights) + 100 * _kept(length, record.models)
    if any(use.rule.aggregate is not None or use.pre for use in uses):
        fixed += 8 * size.itemsize * max(_STACK, widest * size.parameters) + 8 * widest * widest
    if knowing or any(use.rule.serve is not None for use in uses):
        fixed += 4 * size.agents * models + (2 * size.agents * size.sample if knowing else 0)

    # Models before and after, the first ones, gradients, moments; and the data learnt from.
    agent = 7 * models + size.data
    # The models of a block are kept until they are measured, the samples of the last blocks and the next.
    agent += min(size.block, length) * (1 + size.gathers) * models + samples * size.block * size.sample
    agent += 2 * 8 * 10 * max(1, block // record.every)
    agent += min(length, _largest(uses, "recent", "samples")) * size.sample

    edge = 200 + (2 * 8 * 3 * max(1, block // record.weights) if record.weights else 0)
    edge += 24 * size.parameters if size.gathers else 0
    window = _largest(uses, "median", "window")
    edge += 8 * window + 16 * min(window, length)
    # What ranks of a node judge by for one another they show each other, twice.
    agent += 0 if size.gathers or experiment.exchange.shared == "off" else 2 * size.sample
    # Ranks that read each other's rows in place have two arrays of them.
    row = models * (1 if experiment.exchange.shared == "off" else 2)
    return [
        fixed + agent * agents + edge * edges + row * rows
        for agents, edges, rows in zip(held.agents.tolist(), held.edges.tolist(), held.rows.tolist(), strict=True)
    ]


def file_size(layout: Layout, rules: Iterable[Held]) -> int:
    """Bytes of a result file's datasets, without what HDF5 adds."""
    length, n, model = layout.iterations, layout.agents, layout.parameters * layout.dtype.itemsize
    measured, weighed = _kept(length, layout.measures_every), _kept(length, layout.weights_every)
    epochs = length // layout.epoch if layout.epoch else 0
    rule = 8 * n * (len(layout.measures) * measured + 3 * _kept(length, layout.parts_every) + 2)
    rule += 8 * n * epochs * len(layout.epoch_measures) + 56 * layout.ranks * weighed
    rule += n * model * (_kept(length, layout.models_every) + 1)
    return sum(rule + 8 * layout.edges * weighed * (1 + held.shares + held.accumulated) for held in rules)


def _largest(uses: Iterable[Use], judged_by: str, option: str) -> int:
    """The largest value that rules judged in one way have for one of their own parameters."""
    return max((getattr(use.options, option, 0) for use in uses if use.rule.judged_by == judged_by), default=0)


def _kept(iterations: int, every: int) -> int:
    return -(-iterations // every) if every else 0


_ranks_here = 0


def settle(comm: MPI.Comm) -> None:
    """Count the ranks that share this host's memory, before a sweep splits them in groups; collective."""
    global _ranks_here
    _ranks_here = max(_ranks_here, _host(comm).size)


def check(comm: MPI.Comm, needed: list[int], what: str) -> str | None:
    """What is wrong where `needed` bytes (ranks,) are more than some host has for its ranks; None: enough; collective.

    Where other ranks of the host work on something else, these may take their share of it.
    """
    import mpi4py.MPI as mpi

    host = _host(comm)
    here = np.empty(host.size, np.int64)
    host.Allgather(np.array([comm.rank], np.int64), here)
    host.Free()
    total, own = sum(needed[rank] for rank in here), needed[comm.rank]
    there, limit = available(), allowed()
    if there is not None:
        there = there * len(here) // max(_ranks_here, len(here))
    # Other ranks may have begun to take theirs before this one looks.
    comm.Barrier()
    if there is not None and total > there:
        ranks = f"its {len(here)} ranks" if len(here) > 1 else "it"
        return (
            f"{what} takes {shown(total)} of memory on {mpi.Get_processor_name()}, which has {shown(there)} for {ranks}"
        )
    if limit is not None and own > limit:
        return f"{what} takes {shown(own)} of memory on rank {comm.rank}, which may take {shown(limit)} (ulimit -v)"
    return None


def _host(comm: MPI.Comm) -> MPI.Comm:
    import mpi4py.MPI as mpi

    return comm.Split_type(mpi.COMM_TYPE_SHARED, comm.rank)
