"""A run from configuration to result file, on all ranks together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mpi4py import MPI

from mpi_resmtl import recorder
from mpi_resmtl.attacks import ATTACKS, Messages, Stage
from mpi_resmtl.config import Experiment
from mpi_resmtl.diffusion import Rank, diffuse
from mpi_resmtl.errors import UserError
from mpi_resmtl.exchange import Exchange
from mpi_resmtl.graph import Graph, build_edges, choose_byzantine
from mpi_resmtl.launch import on_root, together
from mpi_resmtl.neighbourhoods import tiles
from mpi_resmtl.partition import Partition, Share, partition, shares
from mpi_resmtl.progress import Progress, silent
from mpi_resmtl.rules import RULES
from mpi_resmtl.tasks import TASKS, Task


@dataclass
class Plan:
    """What rank 0 works out and every rank is told; `graph` comes without its edges."""

    experiment: Experiment
    graph: Graph
    edges: int
    data: str
    data_sha256: str


def plan(experiment: Experiment, ranks: int) -> tuple[Plan, list[Share]]:
    """Draw or read the scene, build the graph and cut it into shares; rank 0 alone."""
    study = TASKS[experiment.task.name]
    scene = study.scene(experiment.task, experiment.seed)
    agents = len(scene.group)
    if scene.length is not None and experiment.iterations > scene.length:
        raise UserError(f"iterations = {experiment.iterations}: the data last for {scene.length}")
    edge = scene.edge
    if edge is None:
        edge = build_edges(experiment.topology, experiment.graph, agents, scene.position, experiment.seed)
    who = experiment.byzantine
    byzantine = choose_byzantine(agents, who.count, who.agents, experiment.seed)
    if byzantine.all():
        raise UserError(f"all {agents} agents are Byzantine: nobody is left to learn")
    cut = shares(edge, byzantine, ranks)
    if experiment.epochs is not None:
        experiment.iterations = experiment.epochs * scene.epoch
    graph = Graph(edge, byzantine, scene.group, scene.position, scene.target, scene.epoch)
    return Plan(experiment, graph, len(edge), scene.data, scene.data_sha256), cut


def prepare(comm: MPI.Comm, load: Callable[[], Experiment]) -> tuple[Plan, Graph | None, Rank]:
    """Everything a rank needs before the first iteration, and on rank 0 the graph with its edges; collective."""
    planned, cut = on_root(comm, lambda: plan(load(), comm.size)) or (None, None)
    graph = None
    if comm.rank == 0:
        graph = planned.graph
        planned.graph = replace(graph, edge=graph.edge[:0])
    planned = comm.bcast(planned)
    share = comm.scatter(cut)
    part, task, attack = together(comm, lambda: _local(planned, share, comm.rank))
    rows = np.zeros((part.rows, task.parameters), task.dtype)
    own = planned.graph.byzantine[part.first : part.first + part.count]
    knowing = ATTACKS[planned.experiment.byzantine.attack].knows != "nothing"
    rank = Rank(
        attackers=np.flatnonzero(own & knowing),
        partition=part,
        task=task,
        attack=attack,
        exchange=Exchange(comm, part, rows),
        rows=rows,
        tiles=list(tiles(part.target, part.source, part.row, part.first, task.parameters, task.gathers)),
    )
    return planned, graph, rank


def _local(planned: Plan, share: Share, number: int) -> tuple[Partition, Task, Messages]:
    """What a rank makes by itself, and a user's data may be wrong in; nothing collective."""
    experiment, known = planned.experiment, planned.graph
    part = partition(share, number, known.byzantine)
    study = TASKS[experiment.task.name]
    task = study.task(experiment.task, known, experiment.seed, part.first, part.count)
    stage = Stage(
        seed=experiment.seed,
        agents=known.agents,
        parameters=task.parameters,
        dtype=task.dtype,
        tensors=task.tensors,
        byzantine=known.byzantine,
        source=part.spoken[:, 0],
        target=part.spoken[:, 1],
        first_agent=part.first,
        first=part.spoken_first,
        total=part.spoken_total,
    )
    return part, task, ATTACKS[experiment.byzantine.attack].prepare(experiment.attack, stage)


def open_recorder(comm: MPI.Comm, planned: Plan, graph: Graph | None, rank: Rank, path: Path) -> recorder.Recorder:
    """Lay out the result file at `path` and open it on all ranks; collective."""
    experiment, task = planned.experiment, rank.task
    layout = recorder.Layout(
        iterations=experiment.iterations,
        weights_every=experiment.record.weights,
        models_every=experiment.record.models,
        parameters=task.parameters,
        dtype=task.dtype,
        measures=task.measures,
        epoch=task.epoch,
        epoch_measures=task.epoch_measures if task.epoch else (),
        agents=planned.graph.agents,
        edges=planned.edges,
        ranks=comm.size,
    )
    accumulates = {name: RULES[name].judged_by is not None for name in experiment.rules}

    def create() -> None:
        about = recorder.About(experiment.toml(), experiment.seed, planned.data, planned.data_sha256)
        recorder.create(path, layout, graph, accumulates, about)

    on_root(comm, create)
    return recorder.Recorder(comm, path, layout, rank.partition, planned.graph.byzantine)


def diffuse_rule(
    rank: Rank, name: str, experiment: Experiment, record: recorder.Recorder, progress: Callable[[int], None] = silent
) -> None:
    """Run one rule of an experiment; numbers that overflow are an attack's doing and handled where they matter."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        diffuse(
            rank,
            name,
            RULES[name],
            experiment.options[name],
            experiment.iterations,
            experiment.rule.forgetting_factor,
            experiment.rule.initial_accumulated_loss,
            record,
            progress,
        )


def run(comm: MPI.Comm, load: Callable[[], Experiment], output: Path, overwrite: bool) -> None:
    """Run every rule of an experiment and write the result file; collective. Raises Refused after a user's error."""
    on_root(comm, lambda: recorder.check_output(output, overwrite))
    planned, graph, rank = prepare(comm, load)
    experiment = planned.experiment
    if comm.rank == 0 and planned.data == "stand-in":
        print(f"{output.stem}: the data are a stand-in; see `mpi-resmtl data status`", flush=True)
    record = open_recorder(comm, planned, graph, rank, recorder.temporary(output))
    if comm.rank == 0 and not record.parallel:
        print("mpi-resmtl: h5py has no MPI; rank 0 gathers and writes the result file", file=sys.stderr, flush=True)
    for name in experiment.rules:
        if comm.rank:
            diffuse_rule(rank, name, experiment, record)
        else:
            progress = Progress(f"{output.stem}: {name}", experiment.iterations)
            diffuse_rule(rank, name, experiment, record, progress)
            progress.end()
    record.close()
    rank.exchange.close()
    comm.Barrier()
    if comm.rank == 0:
        recorder.finish(output)
        print(f"{output.stem}: wrote {output}", flush=True)
    comm.Barrier()
