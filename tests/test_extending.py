"""README's examples of one's own rule, attack and data, and of reading results, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, mpirun

import mpi_resmtl
from mpi_resmtl.errors import UserError

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(marker: str) -> str:
    """The one indented block of README that holds the marker."""
    found = [b for b in re.findall(r"(?:^(?: {4}.*)?\n)+", README, re.M) if marker in b]
    assert len(found) == 1, f"{marker!r} stands in {len(found)} blocks"
    return "\n".join(line.removeprefix("    ") for line in found[0].splitlines()) + "\n"


@pytest.fixture(scope="module")
def fig1c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "fig1c.h5"
    done = mpirun(2, "run", "fig1c", "--set", "iterations=50", "--output", path)
    assert done.returncode == 0, done.stderr
    return path


def test_the_example_of_a_rule_and_an_attack_runs_on_several_ranks(tmp_path: Path):
    (tmp_path / "mine.py").write_text(block("@rule("))
    listed = alone("list", "--plugin", "mine", cwd=tmp_path).stdout
    assert "nearest-half" in listed
    assert "echo" in listed
    settings = ["rules=none,nearest-half", "byzantine.attack=echo", "byzantine.count=20", "iterations=30"]
    outputs = []
    for ranks in (1, 3):
        outputs.append(tmp_path / f"{ranks}.h5")
        words = [w for s in settings for w in ("--set", s)]
        done = mpirun(ranks, "run", "fig1b", "--plugin", "mine", *words, "--output", outputs[-1], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, three = (h5py.File(path)["rule/nearest-half/model_final"][()] for path in outputs)
    assert one.tobytes() == three.tobytes()
    alone_ = h5py.File(outputs[0])["rule/none/model_final"][()]
    assert (one[np.isfinite(one)] != alone_[np.isfinite(one)]).any()


def test_the_example_of_data_of_ones_own_runs(tmp_path: Path):
    program = tmp_path / "stream.py"
    program.write_text(block("h5py.File("))
    subprocess.run([sys.executable, program], cwd=tmp_path, check=True)
    done = mpirun(2, "run", "recorded", "--set", "task.file=mine.h5", "--output", "out.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(h5py.File(tmp_path / "out.h5")["rule/loss/loss"][()]).all()


def test_the_example_of_reading_results_draws_a_plot(fig1c: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(fig1c.parent)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict = {}
    exec(block("open_results("), names)
    assert names["loss"].dims == ("iteration", "agent")
    assert len(names["table"]) == 50 * 100
    assert names["table"]["loss"].notna().sum() == 50 * 80


def test_results_are_read_only_when_they_are_looked_at(fig1c: Path):
    with mpi_resmtl.open_results(fig1c) as results:
        data = results["rule/loss"]
        assert not data["model_final"].variable._in_memory
        assert data["loss"].attrs["long_name"].startswith("streaming loss")
        assert data["weight"].dims == ("weight_iteration", "edge")
        assert results.attrs["seed"] == 0


def test_what_is_not_a_result_file_is_refused_with_its_name(tmp_path: Path):
    text = tmp_path / "notes.h5"
    text.write_text("not HDF5")
    with pytest.raises(UserError, match=r"notes\.h5"):
        mpi_resmtl.open_results(text)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(UserError, match=r"other\.h5: is not a result file"):
        mpi_resmtl.open_results(other)


@pytest.mark.parametrize("text", ["raise OSError('no licence')", "def :"])
@pytest.mark.parametrize("ranks", [None, 2])
def test_a_plugin_that_fails_is_said_in_a_line(text: str, ranks: int | None, tmp_path: Path):
    (tmp_path / "bad.py").write_text(text)
    words = ("run", "fig1b", "--plugin", "bad")
    done = alone(*words, cwd=tmp_path) if ranks is None else mpirun(ranks, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("mpi-resmtl: --plugin bad: ") == 1
    assert "Traceback" not in done.stderr
