"""Figures 2, 3, 4 and the table, run as a user runs them: on a real short run and on digit runs made by hand."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import mpirun
from test_figures import assert_all_refused, assert_drawn, image, script

RULES = ("none", "average", "distance", "loss")
MEASURES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
BATCH = (64, 128)
EPOCHS = 12


@pytest.fixture(scope="module")
def activity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of activity recognition on the stand-in, 9 agents, 3 of them Byzantine."""
    path = tmp_path_factory.mktemp("runs") / "activity.h5"
    settings = ("epochs=2", "task.data=stand-in", "task.agents=9", "byzantine.count=3")
    done = mpirun(1, "run", "fig2b", *(word for pair in settings for word in ("--set", pair)), "--output", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short target localisation: no epochs, four groups."""
    path = tmp_path_factory.mktemp("runs") / "location.h5"
    done = mpirun(1, "run", "fig1c", "--set", "iterations=130", "--output", path)
    assert done.returncode == 0, done.stderr
    return path


def digits(path: Path, byzantine: tuple[int, ...]) -> Path:
    """A result file in the layout of digit classification: 0-4 in group 0, 5-9 in group 1, which has a loss apart."""
    numbers = np.random.default_rng(len(byzantine))
    group = np.repeat([0, 1], 5)
    attacked = np.isin(np.arange(10), byzantine)
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "mpi-resmtl/1"
        file.attrs["config"] = f'[task]\nname = "digit-classification"\nvariant = "paper"\nbatch = {list(BATCH)}\n'
        file.attrs["data"] = "real"
        file.attrs["rules"] = json.dumps(RULES)
        file["graph/edge"] = np.array([[source, target] for target in range(10) for source in range(10)])
        file["graph/byzantine"], file["graph/group"] = attacked, group
        fall = np.linspace(1.0, 0.1, EPOCHS)[:, None]
        for order, rule in enumerate(RULES):
            loss = (0.5 + group) * fall * (5 - order) / 5 * numbers.uniform(0.9, 1.1, (EPOCHS, 10))
            loss[:, attacked] = np.nan
            for measure in MEASURES:
                file[f"rule/{rule}/{measure}"] = loss if "loss" in measure else np.exp(-loss)
            file[f"rule/{rule}/loss"] = loss
    return path


@pytest.fixture(scope="module")
def digit_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Digit runs without attackers and with two; of the latter also one whose loss is multiplied by the batch size."""
    folder = tmp_path_factory.mktemp("digits")
    found = {name: digits(folder / f"{name}.h5", agents) for name, agents in {"a": (), "b": (2, 7)}.items()}
    found["multiplied"] = folder / "multiplied.h5"
    shutil.copy(found["b"], found["multiplied"])
    with h5py.File(found["multiplied"], "r+") as file:
        for rule in RULES:
            file[f"rule/{rule}/test_loss"][...] *= np.repeat(BATCH, 5)
    return found


@pytest.fixture(scope="module")
def drawn(activity: Path, digit_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of figures, which the scripts had to make."""
    folder = tmp_path_factory.mktemp("drawn") / "new"
    a, b, multiplied = digit_runs.values()
    run(
        ("figure2", activity, "-o", folder),
        ("figure3", b, a, "-o", folder),
        ("figure3", a, b, "-o", folder / "sorted"),
        ("figure4", b, "-o", folder),
        ("figure4", multiplied, "--paper-scale", "-o", folder / "scaled"),
    )
    return folder


@pytest.fixture(scope="module")
def tables(activity: Path, location: Path, digit_runs: dict[str, Path]) -> dict[str, list[str]]:
    """The lines of the same table in each format."""
    files = activity, digit_runs["b"], location
    formats = ("text", "csv", "markdown")
    done = run(*(("table", *files, "--format", name) for name in formats))
    return {name: each.stdout.splitlines() for name, each in zip(formats, done, strict=True)}


@pytest.fixture(scope="module")
def rows(tables: dict[str, list[str]]) -> list[dict[str, str]]:
    """The rows of the table as CSV."""
    return list(csv.DictReader(tables["csv"]))


def run(*calls: tuple) -> list[subprocess.CompletedProcess]:
    """Scripts with their arguments, two at a time; all succeed."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda call: script(*call), calls))
    for done in found:
        assert done.returncode == 0, done.stderr
    return found


def test_figures_have_a_panel_a_run_and_all_together_into_a_new_folder(drawn):
    names = ["figure2", "figure2a", "figure3", "figure3a", "figure3b", "figure4", "figure4a"]
    written = sorted(path.name for path in drawn.iterdir() if path.is_file())
    assert written == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png"))
    for name in names:
        assert_drawn(drawn / name)


def test_figures_are_the_same_to_the_byte_for_any_order_of_files(drawn):
    for path in drawn.glob("figure3*"):
        assert path.read_bytes() == (drawn / "sorted" / path.name).read_bytes()


def test_each_group_has_curves_of_its_own(drawn):
    assert (drawn / "figure3b.png").read_bytes() != (drawn / "figure4a.png").read_bytes()


def test_paper_scale_divides_the_loss_by_the_batch_of_the_agents_group(drawn):
    plain, scaled = (image.imread(drawn / folder / "figure4a.png") for folder in ("", "scaled"))
    right_of_the_label = np.s_[:, 60:]
    assert np.array_equal(plain[right_of_the_label], scaled[right_of_the_label])
    assert not np.array_equal(plain, scaled)


def test_a_stand_in_says_so_on_figures_and_in_the_table(drawn, rows):
    def red_at_the_top(name: str) -> int:
        red, green, blue = np.moveaxis(image.imread(drawn / f"{name}.png")[:40, ..., :3], -1, 0)
        return int(((red > 0.7) & (green < 0.3) & (blue < 0.3)).sum())

    assert red_at_the_top("figure2a") > 50
    assert red_at_the_top("figure3a") == 0
    kinds = {"activity.h5": "stand-in", "b.h5": "real", "location.h5": "generated"}
    assert {row["file"]: row["data"] for row in rows} == kinds


def test_table_has_a_row_a_rule_and_one_a_group_where_agents_share_tasks(rows):
    found = [(row["file"], row["attackers"], row["group"], row["agents"], row["rule"]) for row in rows[:12]]
    assert found == [("activity.h5", "3", "", "6", rule) for rule in RULES] + [
        ("b.h5", "2", group, "4", rule) for group in "01" for rule in RULES
    ]


def test_table_of_a_classification_agrees_with_the_last_epoch_in_the_file(rows, activity, digit_runs):
    of_the_agents = {"": np.arange(9), "0": [0, 1, 3, 4], "1": [5, 6, 8, 9]}
    with h5py.File(activity) as first, h5py.File(digit_runs["b"]) as second:
        of_the_agents[""] = np.flatnonzero(first["graph/byzantine"][()] == 0)
        for row in rows[:12]:
            recorded = (second if row["group"] else first)[f"rule/{row['rule']}"]
            last = {measure: recorded[measure][()][-1, of_the_agents[row["group"]]] for measure in MEASURES}
            assert float(row["test loss"]) == pytest.approx(np.mean(last["test_loss"]), rel=1e-12)
            assert float(row["test accuracy %"]) == pytest.approx(100 * np.mean(last["test_accuracy"]), rel=1e-12)
            assert float(row["worst agent %"]) == pytest.approx(100 * np.min(last["test_accuracy"]), rel=1e-12)
            assert float(row["train accuracy %"]) == pytest.approx(100 * np.mean(last["train_accuracy"]), rel=1e-12)
            assert row["streaming loss"] == row["msd"] == ""


def test_table_of_a_localisation_has_the_last_100_iterations_and_the_last_deviation(rows, location):
    assert len(rows) == 12 + 4 * len(RULES)
    with h5py.File(location) as file:
        byzantine, group = file["graph/byzantine"][()].astype(bool), file["graph/group"][()]
        for row in rows[12:]:
            chosen = ~byzantine & (group == int(row["group"]))
            loss = file[f"rule/{row['rule']}/loss"][30:130][:, chosen]
            msd = file[f"rule/{row['rule']}/msd"][129, chosen]
            assert float(row["streaming loss"]) == pytest.approx(loss.mean(), rel=1e-12)
            assert float(row["msd"]) == pytest.approx(msd.mean(), rel=1e-12)
            assert row["test loss"] == ""


def test_text_and_markdown_say_the_same_as_csv(rows, tables):
    text, markdown = tables["text"], tables["markdown"]
    assert len(text) == len(markdown) == 2 + len(rows)
    assert len({line.count("|") for line in markdown}) == 1
    assert [cell.strip() for cell in markdown[0].strip("|").split("|")] == list(rows[0])
    for row, line, marked in zip(rows, text[2:], markdown[2:], strict=True):
        cells = [cell.strip() for cell in marked.strip("|").split("|")]
        assert [cell for cell in cells if cell] == line.split()
        for cell, value in zip(cells, row.values(), strict=True):
            assert cell == value or float(cell) == pytest.approx(float(value), rel=5e-4, abs=0.05)


def test_what_has_no_epochs_groups_batch_or_such_a_rule_is_refused_in_one_line(
    activity, location, digit_runs, tmp_path
):
    no_batch = tmp_path / "no-batch.h5"
    lone = digits(tmp_path / "lone.h5", (0, 1, 2, 3, 4))
    shutil.copy(digit_runs["a"], no_batch)
    with h5py.File(no_batch, "r+") as file:
        file.attrs["config"] = '[task]\nname = "digit-classification"\n'
    out = tmp_path / "out"
    assert_all_refused(
        {
            ("figure2", location, "-o", out): ("location.h5", "no recorded test_loss", "not a classification"),
            ("figure2", activity, "--rules", "loss,median", "-o", out): ("'median'", "none, average, distance, loss"),
            ("figure3", activity, "-o", out): ("activity.h5", "no task groups"),
            ("figure3", lone, "-o", out): ("lone.h5", "group 0 are Byzantine"),
            ("figure4", no_batch, "--paper-scale", "-o", out): ("no-batch.h5", "task.batch"),
            ("table", activity, "--rules", "median"): ("'median'", "activity.h5"),
        }
    )
    assert not out.exists()
