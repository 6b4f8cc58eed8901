"""Measures of cooperation, each against a plain computation from the recorded weights, models and samples."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import h5py
import numpy as np
import oracle
import pytest
from mpirun import alone, mpirun
from results import assert_identical

from mpi_resmtl.config import resolve
from mpi_resmtl.graph import Graph
from mpi_resmtl.tasks import TASKS
from mpi_resmtl.tasks.target_localization import _noise

SETTINGS = """
seed = 5
iterations = 30
rules = ["loss", "none", "median", "trimmed-mean", "krum", "average", "loss-fresh",
         "centerpoint", "central", "bucketed"]
[task]
name = "target-localization"
agents = 14
noisy_agents = 3
[graph]
kind = "erdos-renyi"
probability = 0.3
[byzantine]
count = 4
attack = "null-space"
c = 8.0
[rule]
excess = "cap"
[rule.bucketed]
uses = "median"
pre = "bucketing"
[record]
weights = 1
models = 1
"""
WITHOUT_PARTS = ("centerpoint", "central", "bucketed")
RULES = tomllib.loads(SETTINGS)["rules"]


def run(folder: Path, ranks: int, *settings: str, text: str = SETTINGS) -> Path:
    (folder / "small.toml").write_text(text)
    path = folder / f"{ranks}.h5"
    words = [word for setting in settings for word in ("--set", setting)]
    done = mpirun(ranks, "run", folder / "small.toml", *words, "--output", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("measures"), 2)


@pytest.fixture(scope="module")
def found(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Datasets of each rule."""
    with h5py.File(path) as file:
        return {rule: {name: item[()] for name, item in file[f"rule/{rule}"].items()} for rule in RULES}


@pytest.fixture(scope="module")
def graph(path: Path) -> Graph:
    with h5py.File(path) as file:
        names = ("edge", "byzantine", "group", "position", "target")
        return Graph(*(file[f"graph/{name}"][()] for name in names))


@pytest.fixture(scope="module")
def task(graph: Graph):
    experiment = resolve(tomllib.loads(SETTINGS), "here")
    return TASKS["target-localization"].task(experiment.task, graph, experiment.seed, 0, graph.agents)


def neighbours(graph: Graph, k: int) -> list[tuple[int, int]]:
    """(edge, source) of those that k hears, itself left out."""
    return [(e, source) for e, (source, target) in enumerate(graph.edge.tolist()) if target == k and source != k]


def test_the_graph_has_agents_with_and_without_byzantine_neighbours_and_friends(graph: Graph):
    normal = [k for k in range(graph.agents) if not graph.byzantine[k]]
    liars = [sum(graph.byzantine[source] for _, source in neighbours(graph, k)) for k in normal]
    assert min(liars) == 0
    assert max(liars) > 1
    friends = [sum(is_friend(graph, k, source) for _, source in neighbours(graph, k)) for k in normal]
    assert min(friends) == 0 < max(friends)


def is_friend(graph: Graph, k: int, source: int) -> bool:
    return not graph.byzantine[source] and graph.group[k] == graph.group[source]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in WITHOUT_PARTS])
def test_what_part_byzantine_and_like_minded_neighbours_have_follows_from_the_recorded_weights(found, graph, rule):
    part = found[rule].get("share", found[rule]["weight"])
    for i in range(30):
        for k in range(graph.agents):
            weight = sum(part[i, e] for e, source in neighbours(graph, k) if graph.byzantine[source])
            lies = [part[i, e] == 0 for e, source in neighbours(graph, k) if graph.byzantine[source]]
            friends = [part[i, e] == 0 for e, source in neighbours(graph, k) if is_friend(graph, k, source)]
            if graph.byzantine[k]:
                weight, lies, friends = math.nan, [], []
            for name, expected in (
                ("byzantine_weight", weight),
                ("true_positives", share(lies)),
                ("false_positives", share(friends)),
            ):
                assert found[rule][name][i, k] == pytest.approx(expected, rel=1e-12, nan_ok=True), (name, i, k)


def share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else math.nan


def test_no_cooperation_filters_everyone_and_the_average_no_one(found, graph):
    with_liars = np.isfinite(found["none"]["true_positives"][0])
    assert with_liars.any()
    for rule, byzantine, positives in (("none", 0.0, 1.0), ("average", None, 0.0)):
        assert (found[rule]["true_positives"][:, with_liars] == positives).all()
        assert set(np.unique(found[rule]["false_positives"][np.isfinite(found[rule]["false_positives"])])) == {
            positives
        }
        if byzantine is not None:
            assert np.nanmax(found[rule]["byzantine_weight"]) == byzantine


@pytest.mark.parametrize("rule", WITHOUT_PARTS)
def test_rules_that_cannot_say_what_part_a_message_had_have_no_such_measures(found, rule):
    for name in ("byzantine_weight", "true_positives", "false_positives"):
        assert found[rule][name].shape == (30, 14)
        assert np.isnan(found[rule][name]).all()


def risk(graph: Graph, model: np.ndarray) -> np.ndarray:
    """True risk (n,) of models (n, 2), agent by agent."""
    noise = _noise(resolve(tomllib.loads(SETTINGS), "here").task, 5, slice(0, graph.agents))
    agents = zip(model, graph.target, graph.position, noise.direction, noise.distance, strict=True)
    return np.array([oracle.location_risk(*(np.asarray(value).tolist() for value in agent)) for agent in agents])


@pytest.mark.parametrize("rule", RULES)
def test_regret_is_the_mean_true_risk_of_the_recorded_models_above_that_of_no_cooperation(found, graph, rule):
    mean, alone = (np.mean([risk(graph, model) for model in found[name]["model"]], axis=0) for name in (rule, "none"))
    expected = np.where(graph.byzantine, math.nan, mean - alone)
    np.testing.assert_allclose(found[rule]["regret"], expected, rtol=1e-9, atol=1e-12)
    assert rule != "none" or (found[rule]["regret"][~graph.byzantine] == 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_descent_is_the_share_of_iterations_whose_combination_did_not_raise_the_true_risk(found, graph, task, rule):
    theta, psi, descents = task.start(), np.empty((graph.agents, 2)), np.zeros(graph.agents)
    for i, model in enumerate(found[rule]["model"]):
        task.adapt(task.samples(i // task.length), i % task.length, theta, psi)
        before, after = risk(graph, psi), risk(graph, model)
        alike = np.isclose(before, after, rtol=1e-12)
        descents += np.where(alike, 1, after < before)
        theta = model
    np.testing.assert_allclose(found[rule]["descent"], np.where(graph.byzantine, math.nan, descents / 30), atol=1e-12)
    assert rule != "none" or (found[rule]["descent"][~graph.byzantine] == 1).all()
    assert rule != "average" or (found[rule]["descent"][~graph.byzantine] < 0.5).any()


@pytest.mark.parametrize("rule", RULES)
def test_fresh_loss_is_that_of_the_combined_model_on_the_next_iterations_sample(found, graph, task, rule):
    for i, models in enumerate(found[rule]["model"]):
        block, place = divmod(i + 1, task.length)
        u, d = (values[place] for values in task.draw(block))
        for k in np.flatnonzero(~graph.byzantine):
            x, y = (u[k] * (graph.position[k] - models[k])).tolist()
            expected = (float(d[k]) + x + y) ** 2
            assert found[rule]["fresh_loss"][i, k] == pytest.approx(expected, rel=1e-9, abs=1e-20), (i, k)
    assert np.isnan(found[rule]["fresh_loss"][:, graph.byzantine]).all()


@pytest.mark.parametrize("ranks", [1, 3, 14])
def test_measures_do_not_depend_on_the_number_of_ranks(path: Path, ranks: int, tmp_path: Path):
    assert_identical(path, run(tmp_path, ranks))


def test_measures_over_the_run_count_every_iteration_however_few_are_recorded(found, tmp_path: Path):
    seldom = run(tmp_path, 2, "record.every=7", "record.weights=0", "record.models=0")
    with h5py.File(seldom) as file:
        assert file["iteration"][()].tolist() == [7, 14, 21, 28, 30]
        assert file["part_iteration"][()].tolist() == [10, 20, 30]
        for rule in RULES:
            for name in ("regret", "descent"):
                assert file[f"rule/{rule}/{name}"][()].tobytes() == found[rule][name].tobytes()
            kept = np.array([7, 14, 21, 28, 30]) - 1
            for name in ("fresh_loss", "risk_after"):
                assert file[f"rule/{rule}/{name}"][()].tobytes() == found[rule][name][kept].tobytes()
            weight = file[f"rule/{rule}/byzantine_weight"][()]
            assert weight.tobytes() == found[rule]["byzantine_weight"][[9, 19, 29]].tobytes()


def test_without_no_cooperation_there_is_no_regret(tmp_path: Path):
    with h5py.File(run(tmp_path, 1, "rules=loss,average", "iterations=3")) as file:
        for rule in ("loss", "average"):
            assert np.isnan(file[f"rule/{rule}/regret"][()]).all()
            assert np.isfinite(file[f"rule/{rule}/descent"][()]).any()


def test_where_the_true_risk_is_unknown_regret_is_of_streaming_loss_and_descent_is_not_known(tmp_path: Path):
    text = """
epochs = 1
rules = ["loss-fresh", "none"]
[task]
name = "activity-recognition"
agents = 4
data = "stand-in"
[byzantine]
agents = [2]
"""
    (tmp_path / "activity.toml").write_text(text)
    for name, rules in (("with", "loss-fresh,none"), ("without", "average,none")):
        done = alone("run", "activity.toml", "--set", f"rules={rules}", "--output", f"{name}.h5", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "with.h5") as file:
        loss = {rule: item["loss"][()].mean(axis=0) for rule, item in file["rule"].items()}
        for rule, item in file["rule"].items():
            np.testing.assert_allclose(item["regret"][()], loss[rule] - loss["none"], rtol=1e-9, atol=1e-14)
            assert np.isnan(item["descent"][()]).all()
            assert np.isfinite(item["fresh_loss"][()]).all(axis=0).tolist() == [True, True, False, True]
            assert not np.array_equal(item["fresh_loss"][:, 0], item["loss"][:, 0])
    with h5py.File(tmp_path / "without.h5") as file:
        assert "fresh_loss" not in file["rule/average"]
