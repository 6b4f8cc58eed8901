"""Digit classification (section 5.3 of the paper): MNIST and Synthetic Digits, a convolutional network an agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Len, Lt

from mpi_resmtl.data import digits, sources, standin
from mpi_resmtl.data.files import DataError
from mpi_resmtl.graph import Graph
from mpi_resmtl.streams import Stream, generator
from mpi_resmtl.tasks import TASKS, Scene, Size
from mpi_resmtl.tasks.classifier import Batches, ClassifierTask, Holdings, Samples
from mpi_resmtl.tasks.digit_cnn import DigitCNN

GROUPS = ("mnist", "synthetic-digits")
_READERS = {"mnist": digits.read_mnist, "synthetic-digits": digits.read_synthetic}
_SIZES = {"mnist": digits.mnist_size, "synthetic-digits": digits.synthetic_size}


@dataclass
class Parameters:
    """The study's own table."""

    name: Literal["digit-classification"] = "digit-classification"
    variant: Annotated[Literal["paper", "authors-code"], "which defaults the other switches have"] = "paper"
    agents: Annotated[int, Ge(2), "n; the first half has MNIST, the rest Synthetic Digits"] = 10
    step_size: Annotated[float, Gt(0), "of Adam"] = 0.001
    batch: Annotated[list[Annotated[int, Ge(1)]], Len(2, 2), "images of a sample, by group"] = field(
        default_factory=lambda: [64, 128]
    )
    train_images: Annotated[int, Ge(1), "of an agent"] = 2000
    test_images: Annotated[int, Ge(1), "of an agent"] = 400
    held_back: Annotated[
        float, Ge(0), Lt(1), "share of the training images that nobody trains on, for `loss-fresh` to judge by"
    ] = 0.0
    epoch_iterations: Annotated[int, Ge(1), "iterations in an epoch"] = 16
    train_images_measured: Annotated[int, Ge(1), "training images on which an epoch's train loss is measured"] = 400
    activity: Annotated[
        list[Annotated[float, Ge(0), Le(1)]], Len(1), "chance of a gradient step, by agent modulo their number"
    ] = field(default_factory=lambda: [1 / 2, 1 / 3, 1 / 4, 1 / 4, 1.0])
    flips: Annotated[bool, "synthetic training images are flipped left to right at random"] = False
    dealt_anew: Annotated[bool, "synthetic training images are dealt out to the agents anew each epoch"] = False
    data_dir: Annotated[str, "folder of the data; empty: $MPI_RESMTL_DATA or the user's data folder"] = ""
    data: Annotated[Literal["found", "stand-in"], "what is found there, else a stand-in; or always a stand-in"] = (
        "found"
    )


@TASKS.named("digit-classification")
class DigitClassification:
    """Five agents learn MNIST and five Synthetic Digits, at different rates, with one small network (section 5.3)."""

    Parameters = Parameters
    unit = "epochs"

    @staticmethod
    def defaults(tables: dict[str, Any]) -> dict[str, Any]:
        """Graph, attack and constants of the paper; with `variant = "authors-code"`, of its published program."""
        code = tables["task"].get("variant") == "authors-code"
        attack = tables.get("byzantine", {}).get("attack", "scaled" if code else "uniform")
        brought = {
            "epochs": 100,
            "task": {"flips": True, "dealt_anew": True} if code else {},
            "graph": {"kind": "complete"},
            "byzantine": {"attack": attack},
            "rule": {"forgetting_factor": 0.05, "initial_accumulated_loss": 1.0},
        }
        if attack in ("uniform", "scaled"):
            brought["byzantine"] |= {"low": 0.0, "high": 0.1}
        return brought

    @staticmethod
    def size(parameters: Parameters) -> Size:
        """Images in single precision, those of all synthetic agents where they are dealt anew; PyTorch."""
        image = 4 * digits.SIDE**2 + 8
        return Size(
            costs=partial(_costs, parameters),
            agents=parameters.agents,
            parameters=DigitCNN.parameters,
            itemsize=4,
            block=1,
            sample=image * max(parameters.batch),
            gathers=False,
            data=2 * image * (parameters.train_images + parameters.test_images),
            fixed=DigitCNN.memory + (2 * image * _synthetic_pool(parameters) if parameters.dealt_anew else 0),
        )

    @staticmethod
    def scene(parameters: Parameters, seed: int) -> Scene:
        """Groups 0 and 1; the data are a stand-in where either set is one."""
        found = [sources.find(group, _folder(parameters, group)) for group in GROUPS]
        for group, source in zip(GROUPS, found, strict=True):
            for split in ("train", "test"):
                _check_enough(parameters, group, split, source)
        return Scene(
            group=_groups(parameters),
            data="real" if all(source.kind == "real" for source in found) else "stand-in",
            data_sha256=" ".join(source.sha256 for source in found).strip(),
            data_note="; ".join(f"{source.name}: {source.note}" for source in found if source.note),
            epoch=parameters.epoch_iterations,
        )

    @staticmethod
    def task(parameters: Parameters, graph: Graph, seed: int, first: int, count: int) -> ClassifierTask:
        """Each agent's images are drawn once by the seed, disjoint; this rank reads those of its own agents."""
        network, own = DigitCNN(), range(first, first + count)
        holdings = [_holdings(parameters, seed, agent) for agent in own]
        group = _groups(parameters)
        awake = Stream(seed, "activity", graph.agents, 1, first, count)
        chance = np.resize(parameters.activity, graph.agents)[first : first + count]
        held_back = []
        if parameters.held_back:
            holdings, held_back = zip(*(h.hold_back(parameters.held_back) for h in holdings), strict=True)
        train = Batches([(h.train_x, h.train_y) for h in holdings], seed, "shuffle", first)
        fresh = Batches(held_back, seed, "fresh", first)
        pool = None
        if parameters.dealt_anew and group[first + count - 1] == 1:
            pool = _read(parameters, "synthetic-digits", "train", np.arange(_synthetic_pool(parameters)))

        def batch(iteration: int, agent: int) -> tuple[np.ndarray, np.ndarray]:
            k, kind = agent - first, group[agent]
            rows = train.rows(iteration, k, parameters.batch[kind])
            x, y = holdings[k].train_x, holdings[k].train_y
            if kind == 1 and pool is not None:
                epoch = iteration // parameters.epoch_iterations
                dealt = generator(seed, f"deal {epoch}").permutation(len(pool[1]))
                place = (agent - int(np.argmax(group))) * parameters.train_images
                rows, (x, y) = dealt[place + rows], pool
            x, y = x[rows], y[rows]
            if kind == 1 and parameters.flips:
                flipped = generator(seed, f"flip {agent} {iteration}").random(len(x)) < 0.5
                x[flipped] = x[flipped].reshape(-1, digits.SIDE, digits.SIDE)[:, :, ::-1].reshape(-1, digits.SIDE**2)
            return x, y

        def held(iteration: int, agent: int) -> tuple[np.ndarray, np.ndarray]:
            rows = fresh.rows(iteration, agent - first, parameters.batch[group[agent]])
            return tuple(part[rows] for part in held_back[agent - first])

        def draw(batch: Callable[[int, int], tuple[np.ndarray, np.ndarray]], block: int) -> Samples:
            pairs = [batch(block, agent) for agent in own]
            active = awake.uniform(block // awake.length)[block % awake.length, :, 0] < chance
            return Samples([[x for x, _ in pairs]], [[y for _, y in pairs]], active[None])

        return ClassifierTask(
            network,
            partial(draw, batch),
            1,
            initial=network.initial(
                Stream(seed, "initial", graph.agents, network.parameters, first, count).uniform(0)[0]
            ),
            step_size=parameters.step_size,
            optimizer="adam",
            batch=max(parameters.batch),
            epoch=graph.epoch,
            holdings=holdings,
            train_rows_measured=parameters.train_images_measured,
            draw_fresh=partial(draw, held) if held_back else None,
        )


def _costs(parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """In forward passes of an image; a gradient step counts three, the loss of the combined model one."""
    batch = np.array(parameters.batch, float)[_groups(parameters)]
    chance = np.resize(parameters.activity, parameters.agents)
    return batch, batch * (1.0 + 3.0 * chance)


def _groups(parameters: Parameters) -> np.ndarray:
    return (np.arange(parameters.agents) >= parameters.agents // 2).astype(np.int32)


def _synthetic_pool(parameters: Parameters) -> int:
    """Synthetic training images of all agents together."""
    return (parameters.agents - parameters.agents // 2) * parameters.train_images


def _holdings(parameters: Parameters, seed: int, agent: int) -> Holdings:
    kind = _groups(parameters)[agent]
    place = agent - (0 if kind == 0 else parameters.agents // 2)
    parts = []
    for split, count in (("train", parameters.train_images), ("test", parameters.test_images)):
        size = _size(parameters, GROUPS[kind], split)
        order = generator(seed, f"images {GROUPS[kind]} {split}").permutation(size)
        parts += _read(parameters, GROUPS[kind], split, order[place * count : (place + 1) * count])
    return Holdings(*parts)


def _folder(parameters: Parameters, group: str) -> Path | None:
    """The folder that has the images of a group, or None for the stand-in."""
    return sources.located(group, parameters.data_dir, parameters.data)


def _size(parameters: Parameters, group: str, split: str) -> int:
    folder = _folder(parameters, group)
    return standin.IMAGES[split] if folder is None else _SIZES[group](folder, split)


def _check_enough(parameters: Parameters, group: str, split: str, source: sources.Source) -> None:
    kind = GROUPS.index(group)
    images = parameters.train_images if split == "train" else parameters.test_images
    needed = int((_groups(parameters) == kind).sum()) * images
    size = _size(parameters, group, split)
    if size < needed:
        where = source.path or f"the stand-in for {group}"
        raise DataError(f"{where}: has {size} images to {split} with, the agents need {needed}")


def _read(parameters: Parameters, group: str, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (m, 784) and labels int64 (m,)."""
    folder = _folder(parameters, group)
    read = standin.digits if folder is None else _READERS[group]
    x, y = read(group, split, indices) if folder is None else read(folder, split, indices)
    return np.ascontiguousarray(x.reshape(len(x), -1), np.float32), y
