"""A run from configuration to result file, on all ranks together."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from mpi4py import MPI

from mpi_resmtl import checkpoint, hdf5, memory, recorder, survival
from mpi_resmtl.adversary import Adversary
from mpi_resmtl.attacks import ATTACKS, Knowledge, Messages, Stage
from mpi_resmtl.checkpoint import Files, Saved
from mpi_resmtl.combining import Combiner, Method, ServerCombiner
from mpi_resmtl.config import Experiment
from mpi_resmtl.diffusion import KEEPLESS, Keepless, Rank, diffuse
from mpi_resmtl.errors import UserError
from mpi_resmtl.exchange import Collusion, Everyone, open_exchange
from mpi_resmtl.graph import Graph, build_edges, choose_byzantine
from mpi_resmtl.judging import Judge
from mpi_resmtl.keeper import Keeper, Start, pieces, stages, start, unlock
from mpi_resmtl.launch import Refused, Stopped, on_root, refuse, together
from mpi_resmtl.lending import open_lending
from mpi_resmtl.neighbourhoods import tiles
from mpi_resmtl.partition import Partition, Share, partition, shares
from mpi_resmtl.progress import Progress, silent
from mpi_resmtl.signals import Signals
from mpi_resmtl.stopwatch import Stopwatch
from mpi_resmtl.storage import DESCRIPTION, check_room
from mpi_resmtl.tasks import TASKS, Scene, Task
from mpi_resmtl.watchdog import NO_WATCHDOG, NoWatchdog, Watchdog

_DATASETS = 20
"""No more datasets than this are in a result file at the root and in "graph", and for a rule."""
_RECORD_LESS = "; record.every, record.weights and record.models say what is recorded"


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


def plan(experiment: Experiment, ranks: int, survives: bool = False) -> tuple[Plan, list[Share]]:
    """Draw or read the scene, build the graph and cut it into shares; rank 0 alone."""
    study = TASKS[experiment.task.name]
    for parameters in (experiment.task, experiment.attack):
        hdf5.examine_inputs(parameters)
    size = study.size(experiment.task)
    drawn = memory.AGENT * size.agents + 3 * size.agents * size.parameters * size.itemsize + size.fixed
    memory.require(drawn, f"{size.agents} agents with models of {size.parameters} parameters")
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
    cut = shares(edge, byzantine, ranks, size.work(edge, byzantine))
    if experiment.epochs is not None:
        experiment.iterations = experiment.epochs * scene.epoch
    graph = Graph(edge, byzantine, scene.group, scene.position, scene.target, scene.epoch)
    _settle_b(experiment, graph)
    if experiment.exchange.deadline or survives:
        _see_that_nobody_waits(experiment, graph)
    alone = replace(scene, position=None, target=None, edge=None)
    degree = np.bincount(edge[:, 1], minlength=agents) - 1
    held = memory.crossing(edge, byzantine, cut[0].offsets)
    knowing = byzantine.any() and _knowledge(experiment) not in ("nothing", "own")
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


def _see_that_nobody_waits(experiment: Experiment, graph: Graph) -> None:
    """Raise UserError where ranks would wait for all others in every iteration in spite of a deadline or deaths."""
    deadline = experiment.exchange.deadline
    asked = f"exchange.deadline = {deadline:g}" if deadline else "--survive"
    if experiment.exchange.shared == "on":
        raise UserError(f"{asked}: rows that are read in place have none; leave exchange.shared = on away")
    for name in experiment.rules:
        if experiment.uses[name].rule.serve is not None:
            raise UserError(f"{asked}: the server of rule {name} waits for every agent")
    if graph.byzantine.any() and _knowledge(experiment) in ("victim", "all"):
        raise UserError(f"{asked}: attack {experiment.byzantine.attack} is told the models of every rank's agents")


def method(experiment: Experiment, name: str) -> Method:
    """The rule that an experiment runs under a name."""
    use = experiment.uses[name]
    return Method(name, use.rule, use.options, experiment.rule.b, use.pre, use.bucket)


def prepare(comm: MPI.Comm, load: Callable[[], Experiment], survives: bool = False) -> tuple[Plan, Graph | None, Rank]:
    """Everything a rank needs before the first iteration, and on rank 0 the graph with its edges; collective."""
    planned, cut = on_root(comm, lambda: plan(load(), comm.size, survives)) or (None, None)
    graph = None
    if comm.rank == 0:
        graph = planned.graph
        if _knowledge(planned.experiment) in ("nothing", "own"):
            planned.graph = replace(graph, edge=graph.edge[:0])
    planned = comm.bcast(planned)
    share = comm.scatter(cut)
    length = planned.experiment.iterations
    what = f"a run of {planned.graph.agents} agents with {planned.edges} edges and {length} iterations"
    wrong = memory.check(comm, planned.needs, what)
    together(comm, lambda: refuse(wrong))
    part, task, messages = together(comm, lambda: _local(planned, share, comm.rank))
    who = planned.experiment.byzantine
    attack, how, knows = ATTACKS[who.attack], planned.experiment.exchange, _knowledge(planned.experiment)
    ways = how.shared, attack.omits, how.deadline, survives
    exchange = together(comm, lambda: open_exchange(comm, part, task.parameters, task.dtype, *ways))
    part = exchange.partition
    own = planned.graph.byzantine[part.first : part.first + part.count]
    trains = knows != "nothing" or who.start > 0 or who.stop is not None
    everyone, collusion = Everyone(comm, share.offsets), None
    if knows not in ("nothing", "own") and planned.graph.byzantine.any():
        nothing = np.zeros((len(part.overheard_row), task.parameters), task.dtype)
        collusion = Collusion(everyone, part, planned.graph.byzantine, knows, nothing)
    edges = list(tiles(part.target, part.source, part.row, part.first, task.parameters, task.gathers))
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    lending = open_lending(node, exchange, task, edges)
    node.Free()
    rank = Rank(
        task=task,
        adversary=Adversary(
            attack,
            messages,
            who.start,
            who.stop,
            knows,
            collusion,
            speakers=np.unique(part.spoken[:, 0]) - part.first,
            trains=np.flatnonzero(own & trains),
        ),
        everyone=everyone,
        exchange=exchange,
        tiles=edges,
        lending=lending,
    )
    if attack.mislabels:
        task.mislabel(np.flatnonzero(own))
    return planned, graph, rank


def _knowledge(experiment: Experiment) -> Knowledge:
    return ATTACKS[experiment.byzantine.attack].knowledge(experiment.attack)


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
        count=part.count,
        first=part.spoken_first,
        total=part.spoken_total,
        edge=known.edge,
        iterations=experiment.iterations,
        forgetting_factor=experiment.rule.forgetting_factor,
        initial_accumulated_loss=experiment.rule.initial_accumulated_loss,
        sampled=task if task.reveals else None,
    )
    return part, task, attack.prepare(experiment.attack, stage)


def open_recorder(
    comm: MPI.Comm,
    planned: Plan,
    graph: Graph | None,
    rank: Rank,
    path: Path,
    saved: Saved | None = None,
    survives: bool = False,
) -> tuple[recorder.Recorder, recorder.Layout, recorder.About | None]:
    """Lay out the result file at `path`, or carry over what was `saved` of it, and open it on all ranks; collective.

    -> also the file's layout and, on rank 0, what it says of the run.
    """
    experiment, task, scene = planned.experiment, rank.task, planned.scene
    fresh = ("fresh_loss",) if task.fresh(0) is not None else ()
    before = [] if saved is None else saved.stages
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
        ranks=max([comm.size, *(stage["ranks"] for stage in before)]),
        deadline=rank.exchange.missed is not None,
    )

    def lay_out() -> recorder.About:
        about = recorder.About(
            experiment.toml(),
            experiment.seed,
            scene.data,
            scene.data_sha256,
            scene.data_note,
            run=uuid.uuid4().hex if saved is None else saved.run,
            stages=stages(saved, order(experiment), comm.size),
        )
        rules = {name: _held(experiment, name) for name in experiment.rules}
        if saved is not None:
            laid_out_for = recorder.stages(path, about.run)
            ranks = max(stage["ranks"] for stage in laid_out_for)
            recorder.check(path, replace(layout, ranks=ranks), graph, rules)
            if laid_out_for == about.stages:
                return about
        new = path if saved is None else path.with_name(f"{path.name}.new")
        described = DESCRIPTION * _DATASETS * (1 + len(rules))
        check_room(new, memory.file_size(layout, rules.values()) + described, "the result", _RECORD_LESS)
        try:
            recorder.create(new, layout, graph, rules, about)
            if saved is not None:
                recorder.fill(new, layout, order(experiment), path, saved.position)
                os.replace(new, path)
            elif not h5py.get_config().mpi:
                recorder.fill(new, layout, order(experiment))
        except UserError:
            new.unlink(missing_ok=True)
            raise
        return about

    about = on_root(comm, lay_out)
    missed = rank.exchange.missed
    return recorder.Recorder(comm, path, layout, rank.partition, planned.graph, missed, survives), layout, about


def order(experiment: Experiment) -> list[str]:
    """The rules in the order in which they run: no cooperation first, as the others are measured against it."""
    return sorted(experiment.rules, key=lambda name: experiment.uses[name].rule.name != "none")


def _held(experiment: Experiment, name: str) -> recorder.Held:
    rule = experiment.uses[name].rule
    return recorder.Held(accumulated=rule.judged_by is not None, shares=rule.reports == "share")


def diffuse_rule(
    planned: Plan,
    rank: Rank,
    name: str,
    record: recorder.Recorder,
    progress: Callable[[int], None] = silent,
    tell: Callable[[dict[str, float]], None] = silent,
    keeper: Keeper | Keepless = KEEPLESS,
    watchdog: Watchdog | NoWatchdog = NO_WATCHDOG,
) -> None:
    """Run one rule of an experiment; numbers that overflow are an attack's doing and handled where they matter.

    `progress` is called with each iteration that is done, `tell` as in `Recorder.begin`; `keeper` saves the run
    and `watchdog` watches it.
    """
    experiment, task, clock = planned.experiment, rank.task, Stopwatch()
    used = method(experiment, name)
    numbers = (experiment.rule.forgetting_factor, experiment.rule.initial_accumulated_loss, used.options)
    edges = len(rank.partition.source)
    # What is judged after mixing is not what other ranks hear.
    lending = None if used.pre == "nnm" else rank.lending
    judge = Judge(task, edges, used.rule.judged_by, *numbers, lending)
    if used.rule.serve is not None:
        combiner = ServerCombiner(used, judge, rank.everyone, rank.exchange, task.step_size, clock)
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
    record.begin(name, used.rule.name == "none", _held(experiment, name), task, clock, tell)
    keeper.rule(order(experiment).index(name), name, combiner, clock)
    watchdog.follow(clock, name)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        diffuse(rank, combiner, experiment.iterations, record, clock, progress, keeper)


def run(
    comm: MPI.Comm,
    load: Callable[[], Experiment],
    output: Path,
    overwrite: bool,
    quiet: bool = False,
    resume: bool = False,
    signals: Signals | None = None,
    watchdog: Watchdog | NoWatchdog = NO_WATCHDOG,
    survives: bool = False,
) -> None:
    """Run every rule of an experiment and write the result file; collective.

    `quiet`: say nothing on the console but errors and that the data are a stand-in. `resume`: go on from where an
    earlier run was saved. `signals`: entered already; None: they are caught while iterations go on. `survives`: go on
    without ranks that die, and save nothing on the way; to be called by `survival.ended`. Raises Refused
    after a user's error, and Stopped when a signal has ended the run, which is saved then.
    """
    watchdog.enter("start-up")
    begun = on_root(comm, lambda: start(output, load(), overwrite, resume))
    try:
        told = begun is not None and not quiet
        if survives:
            _survive(comm, begun, output, told, watchdog)
        else:
            _run(comm, begun, output, told, signals, watchdog)
    finally:
        if begun is not None and begun.lock is not None:
            unlock(output, begun.lock)


def _run(
    comm: MPI.Comm,
    begun: Start | None,
    output: Path,
    told: bool,
    signals: Signals | None,
    watchdog: Watchdog | NoWatchdog,
) -> None:
    """As `run`, from where rank 0 has found that it begins."""
    if told:
        for remark in begun.remarks:
            print(remark, flush=True)
    saved, finished = comm.bcast(None if begun is None else (begun.saved, begun.finished))
    if finished:
        return
    planned, graph, rank = prepare(comm, lambda: begun.experiment)
    experiment = planned.experiment
    if comm.rank == 0 and planned.scene.data == "stand-in":
        print(f"{output.stem}: the data are a stand-in; see `mpi-resmtl data status`", flush=True)
    together(comm, lambda: _same_data(saved, planned.scene))
    record, layout, about = open_recorder(comm, planned, graph, rank, recorder.temporary(output), saved)
    if told and not record.parallel:
        print("mpi-resmtl: h5py has no MPI; rank 0 gathers and writes the result file", file=sys.stderr, flush=True)
    axes = pieces(comm, rank.partition, planned.graph.agents, layout.ranks)
    files = Files(comm, output, axes, about)
    ended: Exception | None = None
    with ExitStack() as caught:
        caught_signals = signals or caught.enter_context(Signals())
        loose = experiment.exchange.deadline > 0
        asked = experiment.checkpoint, files, record, rank, experiment.iterations, saved, caught_signals, loose
        keeper = Keeper(comm, *asked)
        try:
            _diffuse_rules(planned, rank, record, keeper, saved, output.stem if told else None, watchdog)
        except (Stopped, Refused) as error:
            ended = error
    watchdog.enter("end")
    keeper.close()
    late = record.close()
    rank.close()
    comm.Barrier()
    if comm.rank == 0 and ended is None:
        recorder.finish(output)
        checkpoint.remove(output)
    comm.Barrier()
    if ended is not None:
        raise ended
    if told:
        _tell_end(output, late)


def _survive(comm: MPI.Comm, begun: Start | None, output: Path, told: bool, watchdog: Watchdog | NoWatchdog) -> None:
    """As `_run`, going on without ranks that die once there is a result file."""
    together(comm, survival.check)
    planned, graph, rank = prepare(comm, lambda: begun.experiment, survives=True)
    if comm.rank == 0 and planned.scene.data == "stand-in":
        print(f"{output.stem}: the data are a stand-in; see `mpi-resmtl data status`", flush=True)
    record, _, _ = open_recorder(comm, planned, graph, rank, recorder.temporary(output), survives=True)
    comm.Barrier()
    try:
        _diffuse_rules(planned, rank, record, KEEPLESS, None, output.stem if told else None, watchdog)
        watchdog.enter("end")
        late = record.close()
    except survival.WriterDied:
        # Others have to come as far before they notice it too.
        rank.exchange.drain()
        raise
    rank.exchange.drain()
    if comm.rank == 0:
        recorder.finish(output)
        checkpoint.remove(output)
    if told:
        _tell_end(output, late)


def _tell_end(output: Path, late: int) -> None:
    """Say that a run has ended, and how many messages were late or came no more."""
    if late:
        print(f"{output.stem}: {late:,} messages are missing; /rule/NAME/missing says which", flush=True)
    print(f"{output.stem}: wrote {output}", flush=True)


def _diffuse_rules(
    planned: Plan,
    rank: Rank,
    record: recorder.Recorder,
    keeper: Keeper | Keepless,
    saved: Saved | None,
    label: str | None,
    watchdog: Watchdog | NoWatchdog,
) -> None:
    """Run the rules of an experiment that are not done; progress is told under `label`, None: not."""
    experiment, alone = planned.experiment, rank.partition.count == planned.graph.agents
    first, begun = (0, 0) if saved is None else (saved.position.rule, saved.position.iteration)
    for name in order(experiment)[first:]:
        if label is None:
            diffuse_rule(planned, rank, name, record, keeper=keeper, watchdog=watchdog)
        else:
            whose = "" if alone else "rank 0's agents"
            progress = Progress(f"{label}: {name}", experiment.iterations, whose, begun)
            diffuse_rule(planned, rank, name, record, progress, progress.found, keeper, watchdog)
            progress.end()
        begun = 0


def _same_data(saved: Saved | None, scene: Scene) -> None:
    """Raise UserError where a run that was saved had other data."""
    if saved is not None and saved.data_sha256 != scene.data_sha256:
        raise UserError(f"{saved.path}: the data have changed since: their sha256 was {saved.data_sha256 or 'none'}")
