"""A run from configuration to result file, on all ranks together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mpi4py import MPI

from mpi_resmtl import hdf5, memory, recorder
from mpi_resmtl.adversary import Adversary
from mpi_resmtl.attacks import ATTACKS, Messages, Stage
from mpi_resmtl.combining import Combiner, Method, ServerCombiner
from mpi_resmtl.config import Experiment
from mpi_resmtl.diffusion import Rank, diffuse
from mpi_resmtl.errors import UserError
from mpi_resmtl.exchange import Collusion, Everyone, Exchange, PartialExchange
from mpi_resmtl.graph import Graph, build_edges, choose_byzantine
from mpi_resmtl.judging import Judge
from mpi_resmtl.launch import on_root, refuse, together
from mpi_resmtl.neighbourhoods import tiles
from mpi_resmtl.partition import Partition, Share, partition, shares
from mpi_resmtl.progress import Progress, silent
from mpi_resmtl.stopwatch import Stopwatch
from mpi_resmtl.tasks import TASKS, Scene, Task


@dataclass
class Plan:
    """What rank 0 works out and every rank is told; `graph` has its edges only where attackers need them."""

    experiment: Experiment
    graph: Graph
    edges: int
    degree: np.ndarray
    """(n,) neighbours of each agent, itself left out."""
    scene: Scene
    """What the study says of itself; without its arrays."""
    needs: list[int]
    """Bytes of memory that each rank takes, estimated."""


def plan(experiment: Experiment, ranks: int) -> tuple[Plan, list[Share]]:
    """Draw or read the scene, build the graph and cut it into shares; rank 0 alone."""
    study = TASKS[experiment.task.name]
    for parameters in (experiment.task, experiment.attack):
        hdf5.examine_inputs(parameters)
    size = study.size(experiment.task)
    memory.require(memory.AGENT * size.agents, f"a graph of {size.agents} agents")
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
    _settle_b(experiment, graph)
    alone = replace(scene, position=None, target=None, edge=None)
    degree = np.bincount(edge[:, 1], minlength=agents) - 1
    held = memory.crossing(edge, byzantine, cut[0].offsets)
    knowing = byzantine.any() and ATTACKS[who.attack].knows not in ("nothing", "own")
    needs = memory.needs(experiment, size, held, int(degree.max()) + 1, knowing)
    return Plan(experiment, graph, len(edge), degree, alone, needs), cut


def _settle_b(experiment: Experiment, graph: Graph) -> None:
    """Set `rule.b` where it is not given, and see that every rule can stand it."""
    source, target = graph.edge.T
    hears = np.flatnonzero(~graph.byzantine)
    if experiment.rule.b is None:
        liars = np.bincount(target[graph.byzantine[source]], minlength=graph.agents)
        experiment.rule.b = int(liars[hears].max(initial=0))
    sizes = np.bincount(target, minlength=graph.agents)[hears]
    for name in experiment.rules:
        method(experiment, name).check(sizes, hears, experiment.rule.excess == "cap")


def method(experiment: Experiment, name: str) -> Method:
    """The rule that an experiment runs under a name."""
    use = experiment.uses[name]
    return Method(name, use.rule, use.options, experiment.rule.b, use.pre, use.bucket)


def prepare(comm: MPI.Comm, load: Callable[[], Experiment]) -> tuple[Plan, Graph | None, Rank]:
    """Everything a rank needs before the first iteration, and on rank 0 the graph with its edges; collective."""
    planned, cut = on_root(comm, lambda: plan(load(), comm.size)) or (None, None)
    graph = None
    if comm.rank == 0:
        graph = planned.graph
        if ATTACKS[planned.experiment.byzantine.attack].knows in ("nothing", "own"):
            planned.graph = replace(graph, edge=graph.edge[:0])
    planned = comm.bcast(planned)
    share = comm.scatter(cut)
    length = planned.experiment.iterations
    what = f"a run of {planned.graph.agents} agents with {planned.edges} edges and {length} iterations"
    wrong = memory.check(comm, planned.needs, what)
    together(comm, lambda: refuse(wrong))
    part, task, messages = together(comm, lambda: _local(planned, share, comm.rank))
    who, rows = planned.experiment.byzantine, np.zeros((part.rows, task.parameters), task.dtype)
    attack = ATTACKS[who.attack]
    own = planned.graph.byzantine[part.first : part.first + part.count]
    trains = attack.knows != "nothing" or who.start > 0 or who.stop is not None
    everyone, collusion = Everyone(comm, share.offsets), None
    if attack.knows not in ("nothing", "own") and planned.graph.byzantine.any():
        overheard = np.zeros((len(part.overheard_row), task.parameters), task.dtype)
        collusion = Collusion(everyone, planned.graph.byzantine, overheard)
    rank = Rank(
        partition=part,
        task=task,
        adversary=Adversary(attack, messages, who.start, who.stop, collusion, np.flatnonzero(own & trains)),
        everyone=everyone,
        exchange=(PartialExchange if attack.omits else Exchange)(comm, part, rows),
        rows=rows,
        tiles=list(tiles(part.target, part.source, part.row, part.first, task.parameters, task.gathers)),
    )
    if attack.mislabels:
        task.mislabel(np.flatnonzero(own))
    return planned, graph, rank


def _local(planned: Plan, share: Share, number: int) -> tuple[Partition, Task, Messages]:
    """What a rank makes by itself, and a user's data may be wrong in; nothing collective."""
    experiment, known = planned.experiment, planned.graph
    part = partition(share, number, known.byzantine)
    study = TASKS[experiment.task.name]
    task = study.task(experiment.task, known, experiment.seed, part.first, part.count)
    for name, use in experiment.uses.items():
        if use.rule.judged_by == "fresh" and task.fresh(0) is None:
            raise UserError(f"rule {name} needs samples that nobody trained on: set task.held_back above 0")
    attack = ATTACKS[experiment.byzantine.attack]
    if attack.samples and not task.reveals:
        raise UserError(f"attack {experiment.byzantine.attack} needs its victims' samples, which this task cannot tell")
    if attack.mislabels and not task.labelled:
        raise UserError(f"attack {experiment.byzantine.attack} needs labels; {experiment.task.name} has none")
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
        edge=known.edge,
        iterations=experiment.iterations,
        forgetting_factor=experiment.rule.forgetting_factor,
        initial_accumulated_loss=experiment.rule.initial_accumulated_loss,
        sampled=task if task.reveals else None,
    )
    return part, task, attack.prepare(experiment.attack, stage)


def open_recorder(comm: MPI.Comm, planned: Plan, graph: Graph | None, rank: Rank, path: Path) -> recorder.Recorder:
    """Lay out the result file at `path` and open it on all ranks; collective."""
    experiment, task = planned.experiment, rank.task
    fresh = ("fresh_loss",) if task.fresh(0) is not None else ()
    layout = recorder.Layout(
        iterations=experiment.iterations,
        measures_every=experiment.record.every,
        weights_every=experiment.record.weights,
        models_every=experiment.record.models,
        parameters=task.parameters,
        dtype=task.dtype,
        measures=task.measures + fresh,
        epoch=task.epoch,
        epoch_measures=task.epoch_measures if task.epoch else (),
        agents=planned.graph.agents,
        edges=planned.edges,
        ranks=comm.size,
    )

    def create() -> None:
        scene = planned.scene
        about = recorder.About(experiment.toml(), experiment.seed, scene.data, scene.data_sha256, scene.data_note)
        held = {name: _held(experiment, name) for name in experiment.rules}
        memory.check_disk(memory.file_size(layout, held.values()), path.parent)
        recorder.create(path, layout, graph, held, about)

    on_root(comm, create)
    return recorder.Recorder(comm, path, layout, rank.partition, planned.graph)


def _held(experiment: Experiment, name: str) -> recorder.Held:
    rule = experiment.uses[name].rule
    return recorder.Held(accumulated=rule.judged_by is not None, shares=rule.reports == "share")


def diffuse_rule(
    planned: Plan, rank: Rank, name: str, record: recorder.Recorder, progress: Callable[[int], None] = silent
) -> None:
    """Run one rule of an experiment; numbers that overflow are an attack's doing and handled where they matter."""
    experiment, task, clock = planned.experiment, rank.task, Stopwatch()
    used = method(experiment, name)
    numbers = (experiment.rule.forgetting_factor, experiment.rule.initial_accumulated_loss, used.options)
    edges = len(rank.partition.source)
    judge = Judge(task, edges, used.rule.judged_by, *numbers)
    if used.rule.serve is not None:
        combiner = ServerCombiner(used, judge, rank.everyone, rank.partition, task.step_size, clock)
    else:
        combiner = Combiner(
            used,
            judge,
            Judge(task, edges, "distance", *numbers) if used.rule.distances else None,
            rank.tiles,
            rank.partition.first,
            planned.graph,
            planned.degree,
            task.parameters,
            experiment.seed,
            experiment.iterations,
            lambda moment: task.own_losses(moment.samples, moment.i, moment.theta),
            clock,
        )
    record.begin(name, used.rule.name == "none", _held(experiment, name), task, clock)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        diffuse(rank, combiner, experiment.iterations, record, clock, progress)


def run(comm: MPI.Comm, load: Callable[[], Experiment], output: Path, overwrite: bool, quiet: bool = False) -> None:
    """Run every rule of an experiment and write the result file; collective. Raises Refused after a user's error.

    `quiet`: say nothing on the console but errors.
    """
    on_root(comm, lambda: recorder.check_output(output, overwrite))
    planned, graph, rank = prepare(comm, load)
    experiment = planned.experiment
    told = comm.rank == 0 and not quiet
    if told and planned.scene.data == "stand-in":
        print(f"{output.stem}: the data are a stand-in; see `mpi-resmtl data status`", flush=True)
    record = open_recorder(comm, planned, graph, rank, recorder.temporary(output))
    if told and not record.parallel:
        print("mpi-resmtl: h5py has no MPI; rank 0 gathers and writes the result file", file=sys.stderr, flush=True)
    for name in experiment.rules:
        if not told:
            diffuse_rule(planned, rank, name, record)
        else:
            progress = Progress(f"{output.stem}: {name}", experiment.iterations)
            diffuse_rule(planned, rank, name, record, progress)
            progress.end()
    record.close()
    rank.close()
    comm.Barrier()
    if comm.rank == 0:
        recorder.finish(output)
    if told:
        print(f"{output.stem}: wrote {output}", flush=True)
    comm.Barrier()
