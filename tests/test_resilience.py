"""The arena's figures and ranking say what is in the result files of a real sweep."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import mpirun
from test_figures import assert_drawn, assert_refused, script

SWEEP = """
seed = [0, 1]
iterations = 60
rules = ["none", "average", "loss"]
task.name = "target-localization"
byzantine.count = [0, 20]
byzantine.attack = ["uniform", "null-space"]
record.every = 5
"""


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a small sweep."""
    folder = tmp_path_factory.mktemp("arena")
    (folder / "small.toml").write_text(SWEEP)
    done = mpirun(2, "sweep", folder / "small.toml", "--output", folder / "cells")
    assert done.returncode == 0, done.stderr
    return folder / "cells"


def ratio(path: Path, rule: str, measure: str) -> float:
    """The measure over that of `none` in the last 100 iterations, from the file alone."""
    with h5py.File(path) as file:
        normal = ~file["graph/byzantine"][()].astype(bool)
        found, alone = (file[f"rule/{name}/{measure}"][()][:, normal].mean() for name in (rule, "none"))
    return found / alone


def test_heat_maps_curves_and_ranking_are_written(arena: Path, tmp_path: Path):
    done = script("resilience", arena, "-o", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    for name in ("resilience-20", "breakdown"):
        assert_drawn(tmp_path / "figures" / name)


@pytest.mark.parametrize(("asked", "measure"), [((), "msd"), (("--measure", "risk"), "risk_after")])
def test_the_ranking_holds_the_ratios_of_the_files(asked: tuple[str, ...], measure: str, arena: Path, tmp_path: Path):
    done = script("resilience", arena, "-o", tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "ranking.csv", newline="") as file:
        rows = {(int(row["attackers"]), row["rule"]): row for row in csv.DictReader(file)}
    with open(arena / "index.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    for rule in ("average", "loss"):
        by_attack = {
            attack: [ratio(arena / c["file"], rule, measure) for c in cells if c["byzantine.attack"] == attack]
            for attack in ("uniform", "null-space")
        }
        worst = max(by_attack, key=lambda attack: np.median(by_attack[attack]))
        row = rows[20, rule]
        assert row["worst attack"] == worst
        assert float(row["worst"]) == pytest.approx(np.median(by_attack[worst]), rel=1e-9)
        assert float(row["worst, greatest seed"]) == pytest.approx(max(by_attack[worst]), rel=1e-9)
    lines = (tmp_path / "ranking.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)


def test_what_is_no_sweep_is_refused_in_a_line(arena: Path, tmp_path: Path):
    assert_refused(script("resilience", tmp_path / "nowhere"), "nowhere", "not the folder of a sweep")
    assert_refused(script("resilience", arena, "--rules", "loss,los"), "no rule 'los'")
    (tmp_path / "index.csv").write_text("file,state\nx.h5,done\n")
    assert_refused(script("resilience", tmp_path), "index.csv", "byzantine.attack")
    (tmp_path / "index.csv").write_text("file,state,byzantine.attack,byzantine.count\nx.h5,waiting,zero,1\n")
    assert_refused(script("resilience", tmp_path), "none of its 1 cells is finished")
