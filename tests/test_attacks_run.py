"""Attacks in whole runs: what does not travel counts for nothing, when attackers are honest, which are refused."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
import tomli_w
from mpirun import mpirun
from results import assert_identical, rule_datasets
from test_cli import refused

from mpi_resmtl.attacks import ATTACKS
from mpi_resmtl.partition import offsets
from mpi_resmtl.rules import RULES
from mpi_resmtl.streams import Stream

SMALL = ("task.agents=25", "task.noisy_agents=2", "byzantine.count=6", "rule.excess=cap")
BEGIN, END, LAST = 20, 30, 60


def run(path: Path, preset: str, ranks: int, *settings: str) -> Path:
    done = mpirun(ranks, "run", preset, *(w for s in settings for w in ("--set", s)), "--output", path)
    assert done.returncode == 0, done.stderr
    return path


def lies(file: h5py.File) -> tuple[np.ndarray, np.ndarray]:
    """Edges (E, 2), and which of them attackers speak on."""
    edge, byzantine = file["graph/edge"][()], file["graph/byzantine"][()].astype(bool)
    return edge, byzantine[edge[:, 0]] & (edge[:, 0] != edge[:, 1])


def silenced(edge: np.ndarray, lie: np.ndarray, iterations: int, probability: float) -> np.ndarray:
    """Which messages `silent` leaves out: (I, E) bool; a number an edge on which attackers speak, by source first."""
    order = np.flatnonzero(lie)[np.lexsort((edge[lie, 1], edge[lie, 0]))]
    omitted = np.zeros((iterations, len(edge)), bool)
    omitted[:, order] = Stream(0, "silence", len(order), 1).uniform(0)[:iterations, :, 0] < probability
    return omitted


def delayed(edge: np.ndarray, lie: np.ndarray, iterations: int, delay: int) -> np.ndarray:
    """Which messages `stale` leaves out: (I, E) bool."""
    return lie & (np.arange(iterations) < delay)[:, None]


def crossing(edge: np.ndarray, lie: np.ndarray, omitted: np.ndarray, agents: int, ranks: int) -> np.ndarray:
    """Messages and bytes that each rank sends in all iterations, counted edge by edge: (ranks, 2)."""
    owner = np.searchsorted(offsets(agents, ranks), np.arange(agents), side="right") - 1
    found = np.zeros((ranks, 2), np.int64)
    for left_out in omitted:
        rows = set()
        for e, (source, target) in enumerate(edge.tolist()):
            if owner[source] != owner[target] and not left_out[e]:
                rows.add((owner[source], owner[target], source, target if lie[e] else -1))
        for rank in range(ranks):
            mine = [row for row in rows if row[0] == rank]
            found[rank] += len({row[1] for row in mine}), 16 * len(mine)
    return found


OMISSIONS = [
    ("silent", "probability=0.4", lambda *graph: silenced(*graph, 12, 0.4)),
    ("silent", "probability=1", lambda *graph: silenced(*graph, 12, 1.0)),
    ("stale", "delay=5", lambda *graph: delayed(*graph, 12, 5)),
]
OMITTING = ("iterations=12", "record.weights=1", "rule.b=1", *SMALL)


@pytest.mark.parametrize(("attack", "setting", "left_out"), OMISSIONS)
def test_traffic_counts_what_was_sent_and_nothing_that_was_left_out(attack, setting, left_out, tmp_path: Path):
    settings = (f"byzantine.attack={attack}", f"byzantine.{setting}", "rules=none,loss", *OMITTING)
    with h5py.File(run(tmp_path / "out.h5", "fig1c", 3, *settings)) as file:
        edge, lie = lies(file)
        omitted, agents = left_out(edge, lie), len(file["graph/byzantine"])
        expected = crossing(edge, lie, omitted, agents, 3)
        everything = crossing(edge, lie, np.zeros_like(omitted), agents, 3)
        assert expected[:, 1].sum() < everything[:, 1].sum()
        for group in file["rule"].values():
            np.testing.assert_array_equal(group["traffic"][()], expected)


@pytest.mark.parametrize(("attack", "setting", "left_out"), OMISSIONS)
def test_a_missing_message_has_no_weight_and_no_share_in_any_rule(attack, setting, left_out, tmp_path: Path):
    rules = [name for name, rule in RULES.items() if rule.reports]
    settings = (f"byzantine.attack={attack}", f"byzantine.{setting}", f"rules={','.join(rules)}", *OMITTING)
    with h5py.File(run(tmp_path / "out.h5", "fig1c", 1, *settings)) as file:
        edge, lie = lies(file)
        normal = ~file["graph/byzantine"][()].astype(bool)
        heard = normal[edge[:, 1]]
        omitted = left_out(edge, lie)[:, heard]
        assert omitted.any()
        for rule, group in file["rule"].items():
            part = group["share" if RULES[rule].reports == "share" else "weight"][:, heard]
            assert (part[omitted] == 0).all(), rule
            total = np.array([np.bincount(edge[heard, 1], row) for row in part])
            np.testing.assert_allclose(total[:, normal], 1, atol=1e-9, err_msg=rule)
        assert (file["rule/average/weight"][:, heard][~omitted] > 0).all()


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Runs whose attackers lie never, from BEGIN on, until END, and in between; and one without attackers."""
    folder, found = tmp_path_factory.mktemp("timed"), {}
    common = (f"iterations={LAST}", "record.models=1", "record.weights=1", "rules=none,average,loss", *SMALL)
    for name, settings in {
        "nobody": ["byzantine.count=0"],
        "never": [f"byzantine.start={LAST}"],
        "from": [f"byzantine.start={BEGIN}"],
        "until": [f"byzantine.stop={END}"],
        "between": [f"byzantine.start={BEGIN}", f"byzantine.stop={END}"],
    }.items():
        path = run(folder / f"{name}.h5", "fig1c", 1, *common, *settings)
        with h5py.File(path) as file:
            graph = {key: file[f"graph/{key}"][()] for key in ("edge", "byzantine")}
        found[name] = rule_datasets(path) | graph
    return found


def test_until_an_attack_starts_not_a_bit_differs_from_a_run_without_it(timed: dict):
    for name in ("from", "between"):
        for dataset, values in timed["never"].items():
            if len(values) == LAST:
                assert timed[name][dataset][:BEGIN].tobytes() == values[:BEGIN].tobytes(), (name, dataset)
        for rule in ("average", "loss"):
            other, never = (timed[run][f"{rule}/model"][BEGIN] for run in (name, "never"))
            assert not np.array_equal(other, never, equal_nan=True), (name, rule)


@pytest.mark.parametrize(
    ("name", "lied"),
    [("never", range(0)), ("from", range(BEGIN, LAST)), ("until", range(END)), ("between", range(BEGIN, END))],
)
def test_before_and_after_an_attack_the_attackers_say_what_they_would_have_learnt_alone(
    name: str, lied: range, timed: dict
):
    """average's models are A m, with m = psi of normal agents and of attackers the models that `none` gives them."""
    found, alone = timed[name], timed["nobody"]["none/model"]
    normal = ~found["byzantine"].astype(bool)
    mixing = np.zeros((len(normal), len(normal)))
    source, target = found["edge"].T
    mixing[target, source] = 1 / np.bincount(target)[target]
    theta = found["average/model"]
    for i in range(1, LAST):
        step = alone[i] - 0.9 * alone[i - 1]
        message = np.where(normal[:, None], 0.9 * theta[i - 1] + step, alone[i])
        told = np.allclose(theta[i, normal], (mixing @ message)[normal], rtol=0, atol=1e-9)
        assert told == (i not in lied), i


LABELLED = [name for name, attack in ATTACKS.items() if attack.mislabels]
CELLS = {
    "target-localization": [name for name, _ in ATTACKS.items() if name not in ("recorded", *LABELLED)],
    "activity-recognition": [*LABELLED, "null-space", "sleeper"],
}
SWEEPS = {
    "target-localization": {
        "iterations": 8,
        "task": {"agents": 25, "noisy_agents": 2},
        "record": {"weights": 4, "models": 4},
    },
    "activity-recognition": {
        "epochs": 1,
        "task": {"agents": 7, "data": "stand-in"},
        "record": {"weights": 5},
    },
}


@pytest.mark.parametrize("task", SWEEPS)
def test_every_attack_gives_the_same_bits_on_1_2_and_5_ranks(task: str, tmp_path: Path):
    """`recorded` reads what is said from a file: tests/test_recorded.py."""
    sweep = SWEEPS[task] | {"rules": ["average", "loss"], "rule": {"excess": "cap"}}
    sweep["task"] = sweep["task"] | {"name": task}
    sweep["byzantine"] = {"count": 6 if task == "target-localization" else 3, "attack": CELLS[task], "start": 1}
    (tmp_path / "every.toml").write_text(tomli_w.dumps(sweep))
    for ranks in (1, 2, 5):
        words = ("sweep", tmp_path / "every.toml", "--groups", 1, "--output", tmp_path / str(ranks))
        done = mpirun(ranks, *words, timeout=300)
        assert done.returncode == 0, done.stderr
    for ranks in (2, 5):
        with open(tmp_path / str(ranks) / "index.csv", newline="") as file:
            cells = list(csv.DictReader(file))
        assert [cell["byzantine.attack"] for cell in cells] == CELLS[task]
        for cell in cells:
            assert_identical(tmp_path / "1" / cell["file"], tmp_path / str(ranks) / cell["file"])
    said = {rule_datasets(path)["average/model_final"].tobytes() for path in (tmp_path / "1").glob("*.h5")}
    assert len(said) == len(CELLS[task])


def test_label_flip_teaches_attackers_the_opposite_and_them_alone(tmp_path: Path):
    """Whom nobody heeds changes no bit of `none`; whoever averages learns far less than from honest attackers."""
    common = ("epochs=2", "task.agents=6", "task.data=stand-in", "byzantine.count=2", "rules=none,average,loss")
    honest, flipped = (
        rule_datasets(run(tmp_path / f"{name}.h5", "fig2b", 1, *common, *settings))
        for name, settings in (
            ("honest", ["byzantine.start=1000"]),
            ("flipped", ["byzantine.attack=label-flip"]),
        )
    )
    for dataset, values in honest.items():
        if dataset.startswith("none/"):
            assert flipped[dataset].tobytes() == values.tobytes(), dataset
    learnt, mistaught = (np.nanmean(found["average/test_accuracy"][-1]) for found in (honest, flipped))
    assert mistaught < 0.5 * learnt


SECRETIVE = """
from dataclasses import dataclass
from typing import Literal
from mpi_resmtl.tasks import TASKS
from mpi_resmtl.tasks.target_localization import Parameters, TargetLocalization

@dataclass
class Silent(Parameters):
    name: Literal["secretive"] = "secretive"

@TASKS.named("secretive")
class Secretive(TargetLocalization):
    "Target localisation that tells nobody's samples."

    Parameters = Silent

    @staticmethod
    def task(*given):
        task = TargetLocalization.task(*given)
        task.reveals = 0
        return task
"""


@pytest.mark.parametrize(
    ("preset", "settings", "words"),
    [
        ("fig1c", ["byzantine.attack=label-flip"], ["label-flip", "needs labels", "target-localization has none"]),
        ("fig1c", ["task.name=secretive", "byzantine.attack=null-space"], ["null-space", "needs its victims' samples"]),
        ("fig1c", ["task.name=secretive", "byzantine.attack=sleeper"], ["sleeper", "needs its victims' samples"]),
        ("regression", ["task.dimension=1", "byzantine.attack=null-space"], ["null-space", "a model of 1 parameter"]),
        ("fig1c", ["byzantine.attack=sleeper", "rule.forgetting_factor=0"], ["sleeper", "forgetting_factor above 0"]),
        ("fig1c", ["byzantine.attack=mimic", "byzantine.agent=100"], ["byzantine.agent = 100", "there are 0 to 99"]),
    ],
)
def test_an_attack_that_lacks_what_it_needs_is_refused_in_a_line(
    preset: str, settings: list[str], words: list[str], tmp_path: Path
):
    (tmp_path / "secretive.py").write_text(SECRETIVE)
    pairs = [word for setting in settings for word in ("--set", setting)]
    ranks = 2 if preset == "regression" else 1
    done = mpirun(ranks, "run", preset, *pairs, "--plugin", "secretive", "--output", tmp_path / "out.h5", cwd=tmp_path)
    refused(done, *words)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    "attack",
    [
        ["attack=non-finite"],
        ["attack=same-value", "value=3e38", "start=100", "stop=101"],
        ["attack=same-value", "value=1e308", "start=100", "stop=101"],
        ["attack=same-value", "value=1e5", "start=100", "stop=101"],
    ],
)
def test_no_loss_is_so_huge_that_a_median_does_not_see_it(attack: list[str], tmp_path: Path):
    """One message far off among many of low loss has no weight, and the rule ends better than no cooperation."""
    settings = ("iterations=200", "record.weights=1", "rules=none,loss-robust", "rule.excess=cap")
    path = run(tmp_path / "out.h5", "fig1c", 1, *settings, *(f"byzantine.{s}" for s in attack))
    with h5py.File(path) as file:
        _, lie = lies(file)
        normal = ~file["graph/byzantine"][()].astype(bool)
        alone, robust = (file[f"rule/{name}/msd"][-50:][:, normal].mean() for name in ("none", "loss-robust"))
        weight = file["rule/loss-robust/weight"][()]
    attacked = slice(100, 101) if len(attack) > 1 else slice(4, None, 5)
    assert np.nanmax(weight[attacked][:, lie]) == 0
    assert robust < 0.5 * alone
