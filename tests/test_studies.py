"""The two classification studies: presets run, epochs are measured, results depend neither on ranks nor on rules."""

from __future__ import annotations

import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, mpirun
from results import assert_identical, rule_datasets

from mpi_resmtl.attacks import ATTACKS, Known, Stage
from mpi_resmtl.data import standin
from mpi_resmtl.tasks.linear_classifier import LinearClassifier

SMALL = {
    "fig2": ["task.data=stand-in", "epochs=1"],
    "fig3-4": [
        *("task.data=stand-in", "epochs=1", "task.epoch_iterations=3", "task.batch=[8, 16]", "task.train_images=40"),
        *("task.test_images=30", "task.train_images_measured=20"),
    ],
}


def run(folder: Path, preset: str, ranks: int, *settings: str) -> Path:
    path = folder / f"{preset}-{ranks}.h5"
    settings = (*SMALL["fig2" if preset.startswith("fig2") else "fig3-4"], *settings)
    arguments = ["run", preset, *(w for s in settings for w in ("--set", s)), "--output", path]
    done = mpirun(ranks, *arguments, timeout=300) if ranks else alone(*arguments, timeout=300)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize(
    ("preset", "ranks", "rules"),
    [
        ("fig2b", (2, 5, 10), "none,average,distance,loss"),
        ("fig2a-authors-code", (3,), "loss"),
        ("fig2b-authors-code", (2,), "average,loss"),
        ("fig3-4b", (2, 10), "average,loss"),
        ("fig3-4b-authors-code", (2,), "distance"),
    ],
)
def test_results_do_not_depend_on_the_number_of_ranks(preset: str, ranks: tuple[int], rules: str, tmp_path: Path):
    one = run(tmp_path, preset, 1, f"rules={rules}")
    for number in ranks:
        assert_identical(one, run(tmp_path, preset, number, f"rules={rules}"))


def test_the_one_normal_agent_among_29_attackers_learns_as_if_alone_to_the_bit(tmp_path: Path):
    found = rule_datasets(run(tmp_path, "fig2-29", 2, "epochs=5"))
    for name in ("test_loss", "train_accuracy", "model_final"):
        assert found[f"loss/{name}"].tobytes() == found[f"none/{name}"].tobytes()
    assert (np.nanmin(found["average/test_loss"]) > 2 * np.nanmax(found["none/test_loss"][-1])).all()


def test_an_epoch_is_measured_on_each_agents_own_data(tmp_path: Path):
    path = run(tmp_path, "fig2b", 2, "rules=none", "epochs=2")
    with h5py.File(path) as file:
        rule, config = file["rule/none"], tomllib.loads(file.attrs["config"])
        assert config["epochs"] == 2
        assert file.attrs["data"] == "stand-in"
        byzantine = file["graph/byzantine"][()]
        assert rule["test_loss"].shape == (2, 30)
        fewest = min(int(len(standin.activity(subject)[1]) * 0.75) for subject in range(1, 31))
        assert rule["loss"].shape[0] == 2 * (fewest // 10)
        for k in np.flatnonzero(~byzantine)[:5]:
            x, y = standin.activity(int(k) + 1)
            network = LinearClassifier(561, 6)
            all_loss, all_accuracy = network.evaluate(rule["model_final"][k], x, y)
            train = int(0.75 * len(y))
            parts = np.array([train, len(y) - train]) / len(y)
            for name, whole in (("loss", all_loss), ("accuracy", all_accuracy)):
                found = rule[f"train_{name}"][-1, k] * parts[0] + rule[f"test_{name}"][-1, k] * parts[1]
                assert found == pytest.approx(whole, rel=1e-5)
        assert np.isnan(rule["test_accuracy"][:, byzantine]).all()


def test_agents_that_are_multiples_of_three_seldom_learn(tmp_path: Path):
    path = run(tmp_path, "fig2a", 2, "rules=none", "task.activity=0", "record.models=1")
    model = h5py.File(path)["rule/none/model"][()]
    moved = (np.diff(model, axis=0) != 0).any(axis=2)
    assert not moved[:, ::3].any()
    assert moved[:, 1::3].all()
    assert moved[:, 2::3].all()


def test_the_published_programs_attack_scales_each_tensor_of_the_attackers_own_model():
    attack, random = ATTACKS["scaled"], np.random.default_rng(0)
    byzantine = np.array([False, True, True])
    source, target = np.array([1, 1, 2, 2]), np.array([0, 2, 0, 1])
    stage = Stage(
        seed=0,
        agents=3,
        parameters=10,
        dtype=np.dtype(np.float32),
        tensors=(6, 4),
        byzantine=byzantine,
        source=source,
        target=target,
        first_agent=0,
        count=3,
        first=0,
        total=4,
        edge=np.empty((0, 2), np.int32),
        iterations=10,
        forgetting_factor=0.1,
        initial_accumulated_loss=1.0,
        sampled=None,
    )
    messages = attack.prepare(attack.parameters(), stage)
    own = random.normal(size=(3, 10)).astype(np.float32)
    fifth, sixth = (messages(Known(i, own[1:])) for i in (5, 6))
    ratio = fifth / own[source]
    for tensor in (ratio[:, :6], ratio[:, 6:]):
        np.testing.assert_allclose(tensor, np.broadcast_to(tensor[:, :1], tensor.shape), rtol=1e-5)
        assert ((tensor >= 0) & (tensor < 0.1)).all()
    assert len(np.unique(ratio[:, 0])) == len(np.unique(ratio[:, 9])) == 4
    assert (sixth != fifth).all()


@pytest.mark.parametrize("preset", ["fig2a", "fig2b", "fig2-29", "fig3-4a", "fig3-4b", "fig3-4-extreme"])
def test_every_preset_has_both_variants_and_reads_back_as_itself(preset: str, tmp_path: Path):
    for name in (preset, f"{preset}-authors-code"):
        shown = alone("show", name).stdout
        (tmp_path / "again.toml").write_text(shown)
        assert alone("show", tmp_path / "again.toml").stdout == shown
        tables = tomllib.loads(shown)
        assert tables["epochs"] == (50 if preset.startswith("fig2") else 100)
        scaled = name.startswith("fig3-4") and name.endswith("authors-code")
        assert tables["byzantine"]["attack"] == ("scaled" if scaled else "uniform")


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("fig2a", ["iterations=5"], "is given in epochs"),
        ("fig1c", ["epochs=5"], "is given in iterations"),
        ("fig2a", ["task.data=stand-in", "task.batch=400"], "more than the 2"),
        ("fig2a", ["task.data_dir=nowhere"], "nowhere"),
        ("fig3-4a", ["task.data=stand-in", "task.train_images=2001"], "the agents need 10005"),
    ],
)
def test_what_a_study_cannot_do_is_refused_in_one_line(preset: str, settings: list[str], message: str, tmp_path: Path):
    done = alone("run", preset, *(w for s in settings for w in ("--set", s)), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpi-resmtl: ")]
    assert message in line
    assert list(tmp_path.iterdir()) == []
