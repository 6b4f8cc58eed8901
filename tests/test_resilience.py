"""The resilience matrix, run as a user runs it on a small real sweep."""

from __future__ import annotations

import csv
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, mpirun
from test_figures import assert_all_refused, assert_drawn, assert_refused, image, script

SWEEP = """
seed = [0, 1]
iterations = 60
rules = ["none", "loss", "average", "oracle", "median"]
[task]
name = "target-localization"
agents = 40
[byzantine]
count = [0, 4, 8]
attack = ["uniform", "non-finite", "null-space"]
[rule]
excess = "cap"
[record]
every = 10
weights = 60
"""
RULES = ("loss", "average", "oracle", "median")
ATTACKS = ("uniform", "non-finite", "null-space")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resilience")
    (folder / "sweep.toml").write_text(SWEEP)
    done = mpirun(2, "sweep", folder / "sweep.toml", "--output", folder / "swept")
    assert done.returncode == 0, done.stderr
    return folder / "swept"


@pytest.fixture(scope="module")
def drawn(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script makes of the sweep."""
    folder = tmp_path_factory.mktemp("figures")
    done = script("resilience", swept, "-o", folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "not done" not in done.stdout
    return folder


@pytest.fixture
def changed(swept: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of the sweep whose index has one expression replaced."""

    def change(pattern: str, by: str) -> Path:
        folder = tmp_path / f"changed{len(list(tmp_path.iterdir()))}"
        shutil.copytree(swept, folder)
        text = (folder / "index.csv").read_text()
        (folder / "index.csv").write_text(re.sub(pattern, by, text))
        assert (folder / "index.csv").read_text() != text
        return folder

    return change


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def at_the_end(path: Path, rule: str, name: str = "msd") -> float:
    """Mean over the normal agents of what is recorded at the last iterations, 50 and 60."""
    with h5py.File(path) as file:
        kept = np.isin(file["iteration"][()], [50, 60])
        normal = np.flatnonzero(~file["graph/byzantine"][()].astype(bool))
        values = file[f"rule/{rule}/{name}"][()][kept][:, normal]
    return sum(float(v) for v in values.ravel()) / values.size


def test_every_value_is_the_mean_that_the_result_files_hold(swept: Path, drawn: Path):
    table = rows(drawn / "resilience.csv")
    assert len(table) == 14 * 5
    for row in table:
        name = f"{row['attack']}-{row['attackers']}-seed{row['seed']}"
        value, alone_ = at_the_end(swept / f"{name}.h5", row["rule"]), at_the_end(swept / f"{name}.h5", "none")
        assert float(row["mean squared deviation"]) == pytest.approx(value, rel=1e-12, nan_ok=True)
        expected = value / alone_ if math.isfinite(value) else math.inf
        assert float(row["relative"]) == pytest.approx(expected, rel=1e-12)
    broken = {row["relative"] for row in table if row["rule"] == "average" and row["attack"] == "non-finite"}
    assert broken == {"inf"}


def ratios(drawn: Path, attackers: int, rule: str) -> dict[str, dict[int, float]]:
    """By attack and seed."""
    found = {attack: {} for attack in ATTACKS}
    for row in rows(drawn / "resilience.csv"):
        if (row["attackers"], row["rule"]) == (str(attackers), rule):
            found[row["attack"]][int(row["seed"])] = float(row["relative"])
    return found


def geometric_mean(values: list[float]) -> float:
    return math.inf if math.inf in values else math.prod(values) ** (1 / len(values))


@pytest.mark.parametrize("attackers", [4, 8])
def test_scores_are_clipped_geometric_means_with_their_range_over_the_seeds(drawn: Path, attackers: int):
    ranked = [row for row in rows(drawn / "ranking.csv") if row["attackers"] == str(attackers)]
    assert {row["rule"] for row in ranked} == set(RULES)
    assert ranked[0]["rule"] == "oracle"
    scores = [float(row["score"]) for row in ranked[1:]]
    assert scores == sorted(scores)
    for row in ranked:
        by_attack = ratios(drawn, attackers, row["rule"])
        by_seed = [
            geometric_mean([min(max(by_attack[attack][seed], 0.01), 100.0) for attack in ATTACKS]) for seed in (0, 1)
        ]
        assert float(row["score"]) == pytest.approx(geometric_mean(by_seed), rel=1e-12)
        assert float(row["least"]) == pytest.approx(min(by_seed), rel=1e-12)
        assert float(row["largest"]) == pytest.approx(max(by_seed), rel=1e-12)
        means = {attack: geometric_mean(list(by_attack[attack].values())) for attack in ATTACKS}
        assert row["worst attack"] == max(means, key=means.__getitem__)
        assert float(row["worst"]) == pytest.approx(max(means.values()), rel=1e-12)
        assert row["helps"] == str(sum(mean < 1 for mean in means.values()))


def test_markdown_has_the_ranking_and_the_matrix_of_each_number_of_attackers(drawn: Path):
    text = (drawn / "resilience.md").read_text()
    assert text.count("## Target localization") == 2
    (line,) = [line for line in text.splitlines() if line.startswith("| average | ") and "non-finite (∞)" in line][:1]
    assert line.split(" | ")[3] == "0 of 3"
    matrix = text[text.index("8 of 40 agents") :]
    heads = next(line for line in matrix.splitlines() if line.startswith("| rule | no attack"))
    names = [cell.strip() for cell in heads.strip("|").split("|")]
    assert sorted(names[2:]) == sorted(ATTACKS)
    (loss,) = [line for line in matrix.splitlines() if line.startswith("| loss |") and " of 3" not in line]
    cells = dict(zip(names, (cell.strip() for cell in loss.strip("|").split("|")), strict=True))
    for attack in ATTACKS:
        mean = geometric_mean(list(ratios(drawn, 8, "loss")[attack].values()))
        assert cells[attack] in (f"{mean:.2f}".removeprefix("0"), f"{mean:.1f}", f"{mean:.0f}", f"{mean:.0e}".replace(
            "e+0", "e").replace("e+", "e"))  # fmt: skip


@pytest.mark.parametrize("name", ["resilience-4", "resilience-8", "ranking", "breakdown"])
def test_figures_show_something(drawn: Path, name: str):
    if name == "ranking":
        pixels = image.imread(drawn / "ranking.png")[..., :3]
        assert pixels.std() > 0.05
        assert (drawn / "ranking.pdf").read_bytes().startswith(b"%PDF")
    else:
        assert_drawn(drawn / name)


def test_the_heat_map_is_green_where_cooperation_helps_and_red_where_it_harms(drawn: Path):
    pixels = np.rint(image.imread(drawn / "resilience-8.png")[..., :3] * 255).astype(int)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    assert ((red > green + 60) & (red > blue + 60)).mean() > 0.05
    assert ((green > red + 20) & (green > blue)).mean() > 0.02


def test_another_measure_and_rules_are_drawn_when_asked_for(swept: Path, drawn: Path, tmp_path: Path):
    done = script("resilience", swept, "-o", tmp_path, "--measure", "risk", "--rules", "median,none")
    assert done.returncode == 0, done.stderr
    for row in rows(tmp_path / "resilience.csv"):
        if (row["attack"], row["seed"], row["rule"]) == ("null-space", "1", "loss"):
            value = at_the_end(swept / f"null-space-{row['attackers']}-seed1.h5", "loss", "risk_after")
            assert float(row["true risk"]) == pytest.approx(value, rel=1e-12)
    assert (tmp_path / "breakdown.png").read_bytes() != (drawn / "breakdown.png").read_bytes()


def test_cells_that_are_not_done_are_noted_and_left_out(changed, tmp_path: Path):
    folder = changed(r"(uniform-8-seed1.h5),done,[\d.]+", r"\1,refused,")
    (folder / "uniform-8-seed1.h5").unlink()
    done = script("resilience", folder, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "note: 1 of 14 cells are not done: 1 refused" in done.stdout
    assert "1 of 14 cells are not done" in (tmp_path / "out" / "resilience.md").read_text()
    kept = {(row["attack"], row["attackers"], row["seed"]) for row in rows(tmp_path / "out" / "resilience.csv")}
    assert len(kept) == 13
    assert ("uniform", "8", "1") not in kept


def test_other_swept_keys_have_figures_of_their_own_and_stand_ins_are_said_on_the_face(tmp_path: Path):
    text = """
epochs = 1
rules = ["none", "average"]
[task]
name = "activity-recognition"
data = "stand-in"
agents = 3
step_size = [0.01, 0.1]
[byzantine]
count = 1
"""
    (tmp_path / "activity.toml").write_text(text)
    done = alone("sweep", tmp_path / "activity.toml", "--output", tmp_path / "swept")
    assert done.returncode == 0, done.stderr
    done = script("resilience", tmp_path / "swept", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "resilience.md").read_text()
    assert "**Stand-in data.**" in text
    assert "task.step_size = 0.1, 1 of 3 agents Byzantine" in text
    for step_size in ("0.01", "0.1"):
        path = tmp_path / "out" / f"resilience-{step_size}-1.png"
        pixels = np.rint(image.imread(path)[..., :3] * 255).astype(int)
        top = pixels[: len(pixels) // 8]
        assert (abs(top - [0xD3, 0x00, 0x1F]).sum(axis=2) < 30).any()
    for row in rows(tmp_path / "out" / "resilience.csv"):
        (file,) = (tmp_path / "swept").glob(f"*step_size{row['task.step_size']}.h5")
        with h5py.File(file) as result:
            normal = ~result["graph/byzantine"][()].astype(bool)
            accuracy = result[f"rule/{row['rule']}/test_accuracy"][()][-1, normal].mean()
        assert float(row["test error"]) == pytest.approx(1 - accuracy, rel=1e-12)


def test_wrong_input_is_refused_in_one_line(swept: Path, changed, tmp_path: Path):
    empty, foreign, other = tmp_path / "empty", tmp_path / "foreign", tmp_path / "other"
    empty.mkdir()
    foreign.mkdir()
    (foreign / "index.csv").write_text("a,b\n1,2\n")
    shutil.copytree(swept, other)
    with h5py.File(other / "uniform-4-seed0.h5", "r+") as file:
        file.attrs["schema"] = "mpi-resmtl/9"
    missing = changed(r"uniform-4-seed0.h5", "gone.h5")
    waiting = changed(r",done,[\d.]*", ",waiting,")
    out = tmp_path / "out"
    assert_all_refused(
        {
            ("resilience", empty, "-o", out): ("not the folder of a sweep", "index.csv"),
            ("resilience", foreign, "-o", out): ("not the index of a sweep", "'seed'"),
            ("resilience", other, "-o", out): ("'mpi-resmtl/9'", "uniform-4-seed0.h5"),
            ("resilience", missing, "-o", out): ("gone.h5", "no such file"),
            ("resilience", waiting, "-o", out): ("no cell is done", "14 waiting"),
            ("resilience", swept, "--measure", "accuracy", "-o", out): ("test_accuracy", "it has msd, risk"),
            ("resilience", swept, "--rules", "loss,krum", "-o", out): ("'krum'", "none, loss, average"),
        }
    )
    assert not out.exists()
    file = tmp_path / "file"
    file.write_text("")
    assert_refused(script("resilience", swept, "-o", file / "out"), "cannot be written")


def test_a_sweep_without_no_cooperation_is_refused(tmp_path: Path):
    (tmp_path / "sweep.toml").write_text(SWEEP.replace('"none", ', "").replace("count = [0, 4, 8]", "count = 4"))
    done = alone("sweep", tmp_path / "sweep.toml", "--set", "iterations=10", "--output", tmp_path / "swept")
    assert done.returncode == 0, done.stderr
    assert_refused(script("resilience", tmp_path / "swept", "-o", tmp_path / "out"), "no rule 'none' to compare with")
