"""Human activity recognition (section 5.2 of the paper): one subject an agent, a linear classifier each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from mpi_resmtl.data import activity, sources, standin
from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import Graph
from mpi_resmtl.streams import Stream, block_length, generator
from mpi_resmtl.tasks import TASKS, Scene, Size
from mpi_resmtl.tasks.classifier import Batches, ClassifierTask, Holdings, Samples
from mpi_resmtl.tasks.linear_classifier import LinearClassifier


@dataclass
class Parameters:
    """The study's own table."""

    name: Literal["activity-recognition"] = "activity-recognition"
    variant: Annotated[Literal["paper", "authors-code"], "which defaults the other switches have"] = "paper"
    agents: Annotated[int, Ge(1), Le(30), "subjects 1 to n"] = 30
    step_size: Annotated[float, Gt(0), "mu"] = 0.01
    batch: Annotated[int, Ge(1), "rows of a sample"] = 10
    train_share: Annotated[float, Gt(0), Lt(1), "of a subject's rows, the rest is to test on"] = 0.75
    held_back: Annotated[
        float, Ge(0), Lt(1), "share of the training rows that nobody trains on, for `loss-fresh` to judge by"
    ] = 0.0
    activity: Annotated[
        float, Ge(0), Le(1), "chance that an agent whose number is a multiple of 3 takes its gradient step"
    ] = 0.1
    data_dir: Annotated[str, "folder of the data; empty: $MPI_RESMTL_DATA or the user's data folder"] = ""
    data: Annotated[Literal["found", "stand-in"], "what is found there, else a stand-in; or always a stand-in"] = (
        "found"
    )


@TASKS.named("activity-recognition")
class ActivityRecognition:
    """Thirty subjects' smartphones tell six activities apart, some of them seldom learning (section 5.2)."""

    Parameters = Parameters
    unit = "epochs"

    @staticmethod
    def defaults(tables: dict[str, Any]) -> dict[str, Any]:
        """Graph, attack and constants of the paper; with `variant = "authors-code"`, of its published program."""
        code = tables["task"].get("variant") == "authors-code"
        brought = {
            "epochs": 50,
            "task": {"activity": 1 / 11} if code else {},
            "graph": {"kind": "complete"},
            "rule": {"forgetting_factor": 0.001 if code else 0.05, "initial_accumulated_loss": 1.0},
        }
        if tables.get("byzantine", {}).get("attack", "uniform") == "uniform":
            brought["byzantine"] = {"attack": "uniform", "low": 0.0, "high": 0.1}
        return brought

    @staticmethod
    def size(parameters: Parameters) -> Size:
        """A subject has some 340 rows; reading the set takes its text and its numbers."""
        row = 4 * activity.FEATURES + 8
        return Size(
            agents=parameters.agents,
            parameters=(activity.FEATURES + 1) * activity.CLASSES,
            itemsize=4,
            block=block_length(parameters.agents, 1),
            sample=row * parameters.batch,
            gathers=False,
            data=2 * 410 * row,
            fixed=150 << 20,
        )

    @staticmethod
    def scene(parameters: Parameters, seed: int) -> Scene:
        """An epoch is what the agent with the fewest training rows can see without seeing a row twice."""
        source = sources.find("har", sources.located("har", parameters.data_dir, parameters.data))
        fewest = min(len(y) for _, y in _rows(parameters, 0, parameters.agents))
        epoch = _training_rows(fewest, parameters) // parameters.batch
        if epoch == 0:
            held = _training_rows(fewest, parameters)
            raise UserError(f"task.batch = {parameters.batch} is more than the {held} training rows of some agent")
        return Scene(
            group=np.arange(parameters.agents, dtype=np.int32),
            data="real" if source.kind == "real" else "stand-in",
            data_sha256=source.sha256,
            data_note=source.note,
            epoch=epoch,
        )

    @staticmethod
    def task(parameters: Parameters, graph: Graph, seed: int, first: int, count: int) -> ClassifierTask:
        """Rows of a subject are shuffled by the seed, then cut in training and test data, the same for every rule."""
        network = LinearClassifier(activity.FEATURES, activity.CLASSES)
        holdings, held_back = [], []
        for number, (x, y) in enumerate(_rows(parameters, first, count), first):
            order = generator(seed, f"split {number}").permutation(len(y))
            cut = int(len(y) * parameters.train_share)
            own = Holdings(x[order[:cut]], y[order[:cut]], x[order[cut:]], y[order[cut:]])
            if parameters.held_back:
                own, kept = own.hold_back(parameters.held_back)
                held_back.append(kept)
            holdings.append(own)
        seldom = np.arange(first, first + count) % 3 == 0
        awake = Stream(seed, "activity", graph.agents, 1, first, count)
        train = Batches([(h.train_x, h.train_y) for h in holdings], seed, "shuffle", first)
        fresh = Batches(held_back, seed, "fresh", first) if held_back else None

        def draw(batches: Batches, block: int) -> Samples:
            iterations = range(block * awake.length, (block + 1) * awake.length)
            x = np.empty((len(iterations), count, parameters.batch, activity.FEATURES), np.float32)
            y = np.empty((len(iterations), count, parameters.batch), np.int64)
            for i, iteration in enumerate(iterations):
                for k in range(count):
                    batches.take(iteration, k, parameters.batch, x[i, k], y[i, k])
            return Samples(x, y, ~seldom | (awake.uniform(block)[..., 0] < parameters.activity))

        bound = activity.FEATURES**-0.5
        initial = Stream(seed, "initial", graph.agents, network.parameters, first, count).uniform(0)[0]
        return ClassifierTask(
            network,
            partial(draw, train),
            awake.length,
            initial=(bound * (2.0 * initial - 1.0)).astype(np.float32),
            step_size=parameters.step_size,
            optimizer="sgd",
            batch=parameters.batch,
            epoch=graph.epoch,
            holdings=holdings,
            draw_fresh=None if fresh is None else partial(draw, fresh),
        )


def _training_rows(rows: int, parameters: Parameters) -> int:
    """Rows that an agent with so many trains on."""
    cut = int(rows * parameters.train_share)
    return cut - (max(1, round(parameters.held_back * cut)) if parameters.held_back else 0)


def _rows(parameters: Parameters, first: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """x float32 (rows, 561) and y int64 (rows,) of the subjects of some agents."""
    subjects = range(first + 1, first + count + 1)
    folder = sources.located("har", parameters.data_dir, parameters.data)
    if folder is None:
        return [standin.activity(subject) for subject in subjects]
    found = activity.read_subjects(folder, subjects)
    return [found[subject] for subject in subjects]
