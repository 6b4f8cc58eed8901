"""The arena's figures and ranking say what is in the result files of a real sweep."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import mpirun
from test_figures import assert_refused, image, script

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


def relative(path: Path, rule: str, measure: str) -> float:
    """The measure over that of `none` in the last fifth of the run, from the file alone."""
    with h5py.File(path) as file:
        normal = ~file["graph/byzantine"][()].astype(bool)
        late = file["iteration"][()] > 48
        found, alone = (file[f"rule/{name}/{measure}"][()][late][:, normal].mean() for name in (rule, "none"))
    return found / alone


def test_a_heat_map_a_ranking_and_curves_are_drawn(arena: Path, tmp_path: Path):
    done = script("resilience", arena, "-o", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    for name in ("resilience-20", "ranking", "breakdown"):
        drawn = tmp_path / "figures" / name
        pixels = image.imread(drawn.with_suffix(".png"))[..., :3]
        assert pixels.std() > 0.05
        assert np.ptp(pixels, axis=2).max() > 0.2
        assert drawn.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert "null-space" in (tmp_path / "figures" / "resilience.md").read_text()


@pytest.mark.parametrize(("asked", "measure"), [((), "msd"), (("--measure", "risk"), "risk_after")])
def test_the_numbers_are_the_ratios_of_the_files(asked: tuple[str, ...], measure: str, arena: Path, tmp_path: Path):
    done = script("resilience", arena, "-o", tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "resilience.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(arena / "index.csv", newline="") as file:
        cells = {(c["byzantine.count"], c["byzantine.attack"], c["seed"]): c["file"] for c in csv.DictReader(file)}
    assert len(rows) == len(cells) * 3
    for row in rows:
        path = arena / cells[row["attackers"], row["attack"], row["seed"]]
        assert float(row["relative"]) == pytest.approx(relative(path, row["rule"], measure), rel=1e-9)


def test_what_is_no_sweep_is_refused_in_a_line(arena: Path, tmp_path: Path):
    assert_refused(script("resilience", tmp_path / "nowhere"), "nowhere", "not the folder of a sweep")
    assert_refused(script("resilience", arena, "--rules", "loss,los"), "no rule 'los'")
    (tmp_path / "index.csv").write_text("file,state\nx.h5,done\n")
    assert_refused(script("resilience", tmp_path), "index.csv", "not the index of a sweep")
