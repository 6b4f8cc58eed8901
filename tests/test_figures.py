"""The figure scripts, run as a user runs them, on real runs."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
from mpirun import mpirun

image = pytest.importorskip("matplotlib.image")

ANALYSIS = Path(__file__).parents[1] / "analysis"
RULES = "none,average,distance,loss"
ATTACKERS = {"fig1b": 0, "fig1c": 20, "fig1d": 99}


def script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """`python analysis/NAME.py arguments`."""
    command = [sys.executable, ANALYSIS / f"{name}.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)


def load(name: str) -> ModuleType:
    """A script as a module; what it imports from its folder must not be mistaken for the tests' modules."""
    ours = sys.modules.pop("results", None)
    sys.path.insert(0, str(ANALYSIS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ANALYSIS))
        sys.modules.pop("results", None)
        if ours is not None:
            sys.modules["results"] = ours


def assert_drawn(path: Path) -> None:
    """PATH.png shows something in several colours and PATH.pdf is one."""
    pixels = np.rint(image.imread(path.with_suffix(".png"))[..., :3] * 255).astype(int)
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 10
    vivid = np.ptp(pixels, axis=2) > 60
    assert len(np.unique(pixels[vivid] // 64, axis=0)) >= 4
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """Exit status 2, one line that has the words, nothing drawn."""
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "wrote" not in done.stdout
    for word in words:
        assert word in done.stderr


def assert_all_refused(cases: dict[tuple, tuple[str, ...]]) -> None:
    """Each script with its arguments is refused in its words; two at a time."""
    with ThreadPoolExecutor(2) as pool:
        for done, words in zip(pool.map(lambda case: script(*case), cases), cases.values(), strict=True):
            assert_refused(done, *words)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run of each part of Figure 1."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for preset in ATTACKERS:
        found[preset] = folder / f"{preset}.h5"
        settings = ("--set", "iterations=60", "--set", f"rules={RULES}")
        done = mpirun(2, "run", preset, *settings, "--output", found[preset])
        assert done.returncode == 0, done.stderr
    return found


@pytest.fixture
def changed(runs: dict[str, Path], tmp_path: Path) -> Callable[[Callable[[h5py.File], object]], Path]:
    """A copy of the run of fig1c after a change."""

    def make(change: Callable[[h5py.File], object]) -> Path:
        path = tmp_path / "changed.h5"
        shutil.copy(runs["fig1c"], path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


@pytest.fixture(scope="session")
def figures(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of Figure 1, which the script had to make."""
    folder = tmp_path_factory.mktemp("drawn") / "new" / "figures"
    done = script("figure1", runs["fig1d"], runs["fig1b"], runs["fig1c"], "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_figure1_draws_the_network_and_a_panel_a_run_into_a_new_folder(figures):
    names = ["figure1", "figure1a", "figure1b", "figure1c", "figure1d"]
    assert sorted(path.name for path in figures.iterdir()) == sorted(f"{n}.{e}" for n in names for e in ("pdf", "png"))
    for name in names:
        assert_drawn(figures / name)


def test_figure1_is_the_same_to_the_byte_for_any_order_of_files(runs, figures, tmp_path):
    done = script("figure1", *runs.values(), "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    for path in figures.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_a_stand_in_says_so_on_the_figure(changed, figures, tmp_path):
    done = script("weights", changed(lambda file: file.attrs.modify("data", "stand-in")), "-o", tmp_path)
    assert done.returncode == 0, done.stderr

    def red_at_the_top(path: Path) -> int:
        red, green, blue = np.moveaxis(image.imread(path)[:40, ..., :3], -1, 0)
        return int(((red > 0.7) & (green < 0.3) & (blue < 0.3)).sum())

    assert red_at_the_top(figures / "figure1b.png") == 0
    assert red_at_the_top(tmp_path / "weights-loss.png") > 50


def test_weights_are_drawn_and_their_total_agrees_with_the_file(runs, tmp_path):
    done = script("weights", runs["fig1c"], "-o", tmp_path, "--rule", "average", "--iteration", 20)
    assert done.returncode == 0, done.stderr
    assert_drawn(tmp_path / "weights-average-20")
    with h5py.File(runs["fig1c"]) as file:
        byzantine, group = file["graph/byzantine"][()].astype(bool), file["graph/group"][()]
        edges = file["graph/edge"][()].tolist()
    normal = [k for k in range(len(group)) if not byzantine[k]]
    heard = {k: [source for source, target in edges if target == k] for k in normal}
    to_byzantine = np.mean([np.mean([byzantine[s] for s in heard[k]]) for k in normal])
    to_others = np.mean([np.mean([not byzantine[s] and group[s] != group[k] for s in heard[k]]) for k in normal])
    line = done.stdout.splitlines()[0]
    assert f"Byzantine neighbours {to_byzantine:.4f}, to normal agents of other groups {to_others:.4f} " in line
    assert "average, iteration 20" in line


def test_a_file_that_is_no_whole_run_is_refused_in_one_line(runs, changed, tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(runs["fig1c"].read_bytes()[:100_000])
    growing = tmp_path / "run.h5.part"
    shutil.copy(runs["fig1c"], growing)
    other = changed(lambda file: file.attrs.modify("schema", "mpi-resmtl/0"))
    out = tmp_path / "out"
    assert_all_refused(
        {
            ("figure1", text, "-o", out): ("text.h5", "not a whole HDF5 file"),
            ("weights", cut, "-o", out): ("cut.h5", "not a whole HDF5 file"),
            ("figure1", growing, "-o", out): ("run.h5.part", "not finished"),
            ("weights", tmp_path / "nowhere.h5", "-o", out): ("nowhere.h5", "no such file"),
            ("figure1", other, "-o", out): ("'mpi-resmtl/0'", "'mpi-resmtl/1'"),
            ("weights", other, "-o", out): ("'mpi-resmtl/0'", "'mpi-resmtl/1'"),
        }
    )
    assert not out.exists()


def test_a_run_that_stopped_in_its_last_rule_is_refused(changed, tmp_path):
    def stop(file: h5py.File) -> None:
        for measure in ("loss", "seconds"):
            file[f"rule/loss/{measure}"][-1] = np.nan

    assert_refused(script("figure1", changed(stop), "-o", tmp_path / "out"), "not finished", "loss")


def test_a_rule_that_diverged_is_drawn_and_not_taken_for_unfinished(changed, tmp_path):
    def diverge(file: h5py.File) -> None:
        file["rule/average/loss"][5:] = np.nan

    done = script("figure1", changed(diverge), "--rules", "average,loss", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert_drawn(tmp_path / "figure1b")


def test_a_rule_or_weights_that_are_missing_are_refused(runs, changed, tmp_path):
    def forget(file: h5py.File) -> None:
        del file["rule/none/weight"]
        file["rule/loss/weight"][...] = np.nan

    run, forgotten, out = runs["fig1c"], changed(forget), tmp_path / "out"
    assert_all_refused(
        {
            ("figure1", run, "--rules", "none,median", "-o", out): ("'median'", "none, average, distance, loss"),
            ("weights", run, "--rule", "median", "-o", out): ("'median'", "fig1c.h5"),
            ("weights", run, "--iteration", 7, "-o", out): ("iteration 7", "10, 20, 30"),
            ("weights", forgotten, "--rule", "none", "-o", out): ("record.weights",),
            ("weights", forgotten, "-o", out): ("'loss' has no weights",),
        }
    )
    assert not out.exists()


def test_an_output_folder_that_cannot_be_made_is_refused(runs, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(script("figure1", runs["fig1c"], "-o", tmp_path / "file" / "figures"), "cannot be written")
