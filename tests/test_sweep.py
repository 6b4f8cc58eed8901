"""Sweeps as a user runs them: which cells a TOML with lists has, what is in the folder in the end, what is refused."""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import tomli_w
from mpirun import MPIRUN, alone, mpirun
from results import assert_identical
from test_cli import refused

from mpi_resmtl import cells
from mpi_resmtl.config import resolve
from mpi_resmtl.errors import UserError

SMALL = """
iterations = 12
rules = ["none", "loss", "median"]

[task]
name = "target-localization"
agents = 12
noisy_agents = 2

[rule]
excess = "cap"
"""
SWEEP = (
    "seed = [0, 1]\n"
    + SMALL
    + """
[graph]
kind = ["complete", "near"]

[graphs.near]
kind = "ring"
reach = 1

[byzantine]
count = [0, 3]
attack = ["uniform", "far"]

[attacks.far]
attack = "same-value"
value = 50.0
"""
)
NAMES = {
    f"{attack}-{graph}-seed{seed}"
    for attack in ("none-0", "uniform-3", "far-3")
    for graph in ("complete", "near")
    for seed in (0, 1)
}


def write(folder: Path, text: str, name: str = "small") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def index(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of the index by name of the cell."""
    with open(folder / "index.csv", newline="") as file:
        return {row["file"].removesuffix(".h5"): row for row in csv.DictReader(file)}


def written(folder: Path) -> dict[str, int]:
    """When each result file in a folder was written."""
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


def load(text: str, folder: Path, *settings: str) -> cells.Sweep:
    return cells.load(str(write(folder, text)), list(settings))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: two groups of one rank each."""
    folder = tmp_path_factory.mktemp("swept")
    done = mpirun(2, "sweep", write(folder, SWEEP), "--output", folder / "out")
    assert done.returncode == 0, done.stderr
    assert "12 cells in 2 groups of ranks" in done.stdout
    assert f"wrote {folder / 'out' / 'index.csv'}" in done.stdout
    return folder / "out"


def test_a_file_with_lists_runs_every_combination_once_and_without_attackers_no_attack(swept: Path):
    assert written(swept).keys() == index(swept).keys() == NAMES
    row = index(swept)["far-3-near-seed1"]
    assert list(row) == [
        "seed", "byzantine.count", "byzantine.attack", "graph.kind", "file", "state", "seconds", "message"
    ]  # fmt: skip
    assert list(row.values())[:6] == ["1", "3", "far", "near", "far-3-near-seed1.h5", "done"]
    assert 0 < float(row["seconds"]) < 60
    assert row["message"] == ""
    assert index(swept)["none-0-complete-seed0"]["byzantine.attack"] == "none"
    with h5py.File(swept / "far-3-near-seed1.h5") as file:
        config = tomllib.loads(file.attrs["config"])
        assert file["graph/byzantine"][()].sum() == 3
        assert len(file["graph/edge"]) == 12 * 3
    assert (config["seed"], config["byzantine"]["attack"], config["byzantine"]["value"]) == (1, "same-value", 50.0)
    assert sorted(path.name for path in swept.iterdir() if path.suffix != ".h5") == [".lock", "index.csv", "sweep.toml"]


@pytest.mark.parametrize(("name", "ranks"), [("far-3-near-seed1", 3), ("none-0-complete-seed0", 2)])
def test_a_cell_has_the_bits_of_the_same_experiment_by_run_at_any_number_of_ranks(
    swept: Path, name: str, ranks: int, tmp_path: Path
):
    attack, count, graph, seed = name.split("-")
    settings = [f"seed={seed[-1]}", f"byzantine.count={count}", f"graph.kind={graph}"]
    settings.append(f"byzantine.attack={attack if attack != 'none' else 'uniform'}")
    path = write(tmp_path, SWEEP)
    done = mpirun(ranks, "run", path, *(w for s in settings for w in ("--set", s)), "--output", tmp_path / "run.h5")
    assert done.returncode == 0, done.stderr
    assert_identical(swept / f"{name}.h5", tmp_path / "run.h5")


def test_what_is_finished_is_not_run_again_and_what_is_missing_comes_out_the_same(swept: Path, tmp_path: Path):
    again = shutil.copytree(swept, tmp_path / "again")
    lost = "uniform-3-near-seed0"
    (again / f"{lost}.h5").unlink()
    before, seconds = written(again), {name: row["seconds"] for name, row in index(again).items() if name != lost}
    done = mpirun(2, "sweep", write(tmp_path, SWEEP), "--output", again)
    assert done.returncode == 0, done.stderr
    assert "12 cells, 11 of them there already" in done.stdout
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if "done in" in line] == [lost]
    after = written(again)
    assert {name: after[name] for name in before} == before
    assert {name: row["seconds"] for name, row in index(again).items() if name != lost} == seconds
    assert_identical(again / f"{lost}.h5", swept / f"{lost}.h5")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_is_stopped_leaves_no_half_written_result_and_goes_on_where_it_was(
    number: signal.Signals, tmp_path: Path
):
    text = "seed = [0, 1, 2, 3, 4]\n" + SMALL.replace("iterations = 12", "iterations = 1500")
    path, folder = write(tmp_path, text), tmp_path / "out"
    command = [MPIRUN, "--oversubscribe", "-n", "2", sys.executable, "-m", "mpi_resmtl", "sweep", path]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    job = subprocess.Popen(
        [*map(str, command), "--output", str(folder), "--groups", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | allowed
    )  # fmt: skip
    wait_until(lambda: len(written(folder)) >= 2 and list(folder.glob("*.part")))
    states = [row["state"] for row in index(folder).values()]
    assert states.count("running") <= 1
    assert states.count("waiting") >= 1
    job.send_signal(number)
    job.wait(timeout=30)
    wait_until(lambda: is_free(folder))
    if number == signal.SIGTERM:
        states = [row["state"] for row in index(folder).values()]
        assert states.count("stopped") <= 1
        assert "failed" not in states

    before = written(folder)
    assert 2 <= len(before) < 5
    for name in before:
        with h5py.File(folder / f"{name}.h5") as file:
            assert file["rule/median/model_final"][()].any()
    done = mpirun(2, "sweep", path, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert f"5 cells, {len(before)} of them there already" in done.stdout
    after = written(folder)
    assert after.keys() == {f"seed{seed}" for seed in range(5)}
    assert {name: after[name] for name in before} == before
    assert {row["state"] for row in index(folder).values()} == {"done"}
    assert not list(folder.glob("*.part"))


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)


def is_free(folder: Path) -> bool:
    """Whether no sweep runs in a folder."""
    with open(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize(("groups", "each"), [(1, {4}), (3, {1, 2})])
def test_groups_split_the_ranks(groups: int, each: set[int], tmp_path: Path):
    path = write(tmp_path, "seed = [0, 1, 2, 3, 4, 5]\n" + SMALL)
    done = mpirun(4, "sweep", path, "--output", tmp_path / "out", "--groups", groups)
    assert done.returncode == 0, done.stderr
    ranks = [int(h5py.File(file).attrs["ranks"]) for file in (tmp_path / "out").glob("*.h5")]
    assert len(ranks) == 6
    assert set(ranks) <= each
    assert f"in {groups} groups" in done.stdout or groups == 1


def test_a_refused_cell_stops_no_other_and_the_status_is_2(tmp_path: Path):
    text = SMALL.replace('"median"', '"trimmed-mean"').replace('excess = "cap"', 'excess = "refuse"')
    path = write(tmp_path, text + "[byzantine]\ncount = [0, 7, 2]\n[graph]\nkind = 'complete'\n")
    done = mpirun(2, "sweep", path, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    why, last = (line for line in done.stderr.splitlines() if line.startswith("mpi-resmtl: "))
    assert f"1 of 3 cells were refused; {tmp_path / 'out' / 'index.csv'} says why" in last
    rows = index(tmp_path / "out")
    assert {name: row["state"] for name, row in rows.items()} == {
        "none-0": "done", "uniform-7": "refused", "uniform-2": "done"
    }  # fmt: skip
    for word in ("trimmed-mean", "12 messages", "b = 7"):
        assert word in rows["uniform-7"]["message"]
        assert word in why
    assert written(tmp_path / "out").keys() == {"none-0", "uniform-2"}


FAILING = """
import sys, mpi_resmtl.diffusion as diffusion
from mpi4py import MPI
from mpi_resmtl.recorder import Recorder
calls, end = 0, Recorder.end
def failing(self, theta, exchange):
    global calls
    calls += 1
    if calls == 5 and MPI.COMM_WORLD.rank == 1:
        raise RuntimeError("injected")
    end(self, theta, exchange)
Recorder.end = failing
from mpi_resmtl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_cell_that_fails_ends_the_job_and_the_index_says_why(tmp_path: Path):
    path = write(tmp_path, "seed = [0, 1, 2]\n" + SMALL)
    program = [sys.executable, "-c", FAILING]
    done = mpirun(2, "sweep", path, "--output", tmp_path / "out", "--groups", 1, program=program)
    assert done.returncode not in (0, 2)
    assert "rank 1 failed" in done.stderr
    rows = index(tmp_path / "out")
    assert [row["state"] for row in rows.values()] == ["done", "failed", "waiting"]
    assert rows["seed1"]["message"] == "RuntimeError: injected"
    assert written(tmp_path / "out").keys() == {"seed0"}
    assert mpirun(2, "sweep", path, "--output", tmp_path / "out").returncode == 0
    assert {row["state"] for row in index(tmp_path / "out").values()} == {"done"}


def test_two_sweeps_in_one_folder_at_a_time_are_refused(swept: Path, tmp_path: Path):
    with open(swept / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = mpirun(2, "sweep", write(tmp_path, SWEEP), "--output", swept)
    refused(done, "another sweep is running there")


def test_another_sweep_in_the_folder_is_refused_unless_it_is_taken_over_keeping_what_fits(swept: Path, tmp_path: Path):
    taken = shutil.copytree(swept, tmp_path / "taken")
    path, before = write(tmp_path, SWEEP), written(taken)
    more = ("--set", "seed=1,2", "--set", "graph.kind=['near']")
    done = mpirun(2, "sweep", path, "--output", taken, *more[:2])
    refused(done, "holds another sweep: seed = [0, 1] there, = [1, 2] asked for", "--overwrite")
    assert written(taken) == before
    done = mpirun(2, "sweep", path, "--output", taken, *more, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert index(taken).keys() == {name for name in NAMES if name.endswith("near-seed1")} | {
        f"{attack}-near-seed2" for attack in ("none-0", "uniform-3", "far-3")
    }
    after = written(taken)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3


def test_a_result_of_another_run_in_the_place_of_a_cells_is_refused_unless_it_may_be_replaced(tmp_path: Path):
    path, folder = write(tmp_path, "seed = [0, 1]\n" + SMALL), tmp_path / "out"
    folder.mkdir()
    other = write(tmp_path, SMALL, "other")
    run = alone("run", other, "--set", "iterations=5", "--output", folder / "seed1.h5")
    assert run.returncode == 0, run.stderr
    before = written(folder)
    done = alone("sweep", path, "--output", folder)
    refused(done, "seed1.h5: is there already, of another run", "iterations = 5 there, = 12 asked for")
    assert written(folder) == before
    assert not (folder / "index.csv").exists()
    (folder / "seed0.h5").write_text("nonsense")
    refused(alone("sweep", path, "--output", folder), "seed0.h5: is there already", "not a result file")
    done = alone("sweep", path, "--output", folder, "--overwrite")
    assert done.returncode == 0, done.stderr
    with h5py.File(folder / "seed1.h5") as file:
        assert len(file["rule/none/loss"]) == 12


def test_outputs_and_groups_that_cannot_be_are_refused(tmp_path: Path):
    path = write(tmp_path, "seed = [0, 1]\n" + SMALL)
    refused(mpirun(2, "sweep", path, "--output", tmp_path / "out", "--groups", 3), "--groups 3", "1 to", "2")
    refused(mpirun(2, "sweep", path, "--output", tmp_path / "out", "--groups", 0), "--groups 0")
    refused(alone("sweep", path, "--output", tmp_path / "no" / "out"), "does not exist")
    refused(alone("sweep", path, "--output", path), "is a file, not a folder")
    assert not (tmp_path / "out").exists()


def test_a_sweep_on_stand_in_data_says_so(tmp_path: Path):
    text = 'seed = [0, 1]\nepochs = 1\nrules = ["none"]\n[task]\nname = "activity-recognition"\nagents = 2\n'
    path = write(tmp_path, text + 'data = "stand-in"\n')
    done = alone("sweep", path, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the data are a stand-in") == 2


def test_run_says_how_to_run_a_sweep_and_sweep_how_to_run_an_experiment(tmp_path: Path):
    path = write(tmp_path, SWEEP)
    refused(mpirun(2, "run", path, "--output", tmp_path / "out.h5"), "is a sweep", f"mpi-resmtl sweep {path}")
    refused(alone("run", "fig1c", "--set", "seed=1,2"), "fig1c is a sweep, of seed", "mpi-resmtl sweep fig1c")
    done = mpirun(2, "sweep", "fig1c", "--output", tmp_path / "out")
    refused(done, "no key holds a list", "mpi-resmtl run fig1c")
    assert not (tmp_path / "out").exists()


def test_show_prints_a_whole_sweep_that_reads_back_as_itself(tmp_path: Path):
    shown = alone("show", write(tmp_path, SWEEP))
    assert shown.returncode == 0, shown.stderr
    tables = tomllib.loads(shown.stdout)
    assert (tables["seed"], tables["graph"]["kind"]) == ([0, 1], ["complete", "near"])
    assert tables["byzantine"] == {"count": [0, 3], "attack": ["uniform", "far"], "start": 0}
    assert tables["attacks"]["far"] == {"attack": "same-value", "value": 50.0}
    assert tables["attacks"]["uniform"] == {"low": 15.0, "high": 16.0, "fixed": False, "same_to_all": False}
    assert tables["graphs"] == {"near": {"kind": "ring", "reach": 1}}
    assert tables["record"] == {"every": 1, "weights": 10, "models": 0}
    (tmp_path / "again.toml").write_text(shown.stdout)
    assert alone("show", tmp_path / "again.toml").stdout == shown.stdout


@pytest.mark.parametrize(
    "text",
    [
        SWEEP,
        "seed = [3, 1]\n" + SMALL,
        SMALL + "[byzantine]\ncount = [1, 2]\nattack = 'far'\n[attacks.far]\nattack = 'same-value'\nvalue = 9.0\n",
        SMALL + "[byzantine]\nagents = [1, 2]\nattack = 'drift'\nr = [0.02, 0.5]\n",
        SMALL + "[byzantine]\ncount = [0]\n",
        SMALL + "[graph]\nkind = ['two', 'four']\n[graphs.two]\nkind = 'ring'\nreach = 1\n"
        "[graphs.four]\nkind = 'ring'\nreach = 2\n[byzantine]\ncount = 2\nattack = ['zero', 'mimic']\n",
        SMALL.replace("[rule]", "judge = ['position', 'measurement']\n[rule]") + "b = [1, 2]\n",
        SMALL.replace("[rule]", "[rule.loss-robust]\nwindow = [5, 9]\n[rule]").replace('"median"', '"loss-robust"'),
        SMALL.replace("[rule]", "variant = ['paper', 'authors-code']\n[rule]"),
    ],
)
def test_a_resolved_sweep_gives_the_same_cells(text: str, tmp_path: Path):
    first = load(text, tmp_path)
    again = load(first.toml, tmp_path)
    assert again.cells == first.cells
    assert again.toml == first.toml
    assert len({cell.config for cell in first.cells}) == len({cell.file for cell in first.cells}) == len(first.cells)
    for cell in first.cells:
        assert cell.experiment().toml() == cell.config


def test_a_cell_resolves_to_what_its_values_say(tmp_path: Path):
    base = tomllib.loads(SMALL)
    for cell in load(SWEEP, tmp_path).cells:
        attack, count = cell.values["byzantine.attack"], cell.values["byzantine.count"]
        byzantine = {"count": count}
        byzantine |= {"far": {"attack": "same-value", "value": 50.0}, "uniform": {"attack": "uniform"}}.get(attack, {})
        near = cell.values["graph.kind"] == "near"
        graph = {"kind": "ring", "reach": 1} if near else {"kind": "complete"}
        asked = base | {"seed": cell.values["seed"], "byzantine": byzantine, "graph": graph}
        assert cell.config == resolve(asked, "here").toml()


@pytest.mark.parametrize(
    ("addition", "names"),
    [
        ("seed = [7, 8]", ["seed7", "seed8"]),
        ("byzantine.count = [0, 3]", ["none-0", "uniform-3"]),
        ("byzantine.attack = ['zero', 'mimic']\nbyzantine.agents = [3, 4]", ["zero-2", "mimic-2"]),
        ("task.step_size = [0.1, 0.5]", ["step_size0.1", "step_size0.5"]),
        ("task.judge = ['position', 'measurement']", ["judge-position", "judge-measurement"]),
        ("byzantine.same_to_all = [true, false]\nbyzantine.count = 1", ["same_to_all-true", "same_to_all-false"]),
        (
            "rule.ubar.alpha = [0.1]\nrule.monna.alpha = [0.1, 1.0]".replace("monna", "balance"),
            ["rule.balance.alpha0.1-rule.ubar.alpha0.1", "rule.balance.alpha1.0-rule.ubar.alpha0.1"],
        ),
    ],
)
def test_cells_are_named_by_what_is_swept(addition: str, names: list[str], tmp_path: Path):
    text = tomli_w.dumps(merged(tomllib.loads(SMALL), tomllib.loads(addition)))
    assert [cell.name for cell in load(text, tmp_path).cells] == names


def merged(base: dict, over: dict) -> dict:
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return base | over | both


def test_settings_narrow_a_sweep_and_a_name_that_they_take_out_is_no_mistake(tmp_path: Path):
    narrowed = load(SWEEP, tmp_path, "byzantine.attack=uniform", "graph.kind=complete", "byzantine.count=0,3,4")
    assert [cell.name for cell in narrowed.cells if cell.values["seed"] == 1] == [
        "none-0-seed1", "uniform-3-seed1", "uniform-4-seed1"
    ]  # fmt: skip
    settings = ["seed=1", "byzantine.attack=far", "graph.kind=near", "byzantine.count=3"]
    one = cells.single(str(tmp_path / "small.toml"), settings)
    (same,) = [cell for cell in load(SWEEP, tmp_path).cells if cell.name == "far-3-near-seed1"]
    assert one.toml() == same.config


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("seed = []", ["seed = []", "empty"]),
        ("seed = [1, 2, 1]", ["seed", "1 twice"]),
        ("seed = [[1, 2], [3]]", ["seed", "plain values"]),
        ("seed = [1, -2]", ["seed = -2"]),
        ("seed = [1, 2]\niteration = 3", ["iteration", "iterations"]),
        ("task.name = ['target-localization', 'recorded']", ["one task"]),
        ("byzantine.count = [1, 2]\nbyzantine.agents = [3]", ["byzantine.count = [1, 2]", "byzantine.agents = [3]"]),
        ("byzantine.attack = ['zero', 'mimic']", ["nobody is Byzantine", "byzantine.count"]),
        ("byzantine.attack = ['zero', 'mimic']\nbyzantine.count = 0", ["nobody is Byzantine"]),
        ("byzantine.attack = ['zero', 'mimci']\nbyzantine.count = 1", ["unknown attack 'mimci'", "'mimic'"]),
        ("byzantine.attack = ['uniform', 'drift']\nbyzantine.count = 1\nbyzantine.r = 0.1", ["byzantine.r", "uniform"]),
        ("byzantine.cuont = [1, 2]", ["byzantine.cuont", "byzantine.count"]),
        ("seed = [1, 2]\nattacks.zero.value = 1", ["[attacks.zero]", "byzantine.attack is not given"]),
        ("seed = [1]\nattacks.zero = 1", ["[attacks.NAME]"]),
        ("graph.kind = ['ring', 'star']\ngraphs.rnig.reach = 2", ["[graphs.rnig]", "ring, star"]),
        ("graph.kind = ['ring', 'star']\ngraphs.ring.reach = [1, 2]", ["[graphs.ring]", "two tables"]),
        ("graph.kind = ['ring', 'star']\ngraphs.ring.kind = 'torus'", ["ring means something already"]),
        ("byzantine.count = [1]\nbyzantine.attack = 'none'\nattacks.none.attack = 'zero'", ["none means something"]),
        ("byzantine.count = [1]\nbyzantine.attack = 'a'\nattacks.a = {attack = 'zreo'}", ["unknown attack 'zreo'"]),
        ("byzantine.count = [1]\nbyzantine.attack = 'a'\nattacks.a.attack = 3", ["[attacks.a] attack = 3"]),
        ("byzantine.attack = ['a b', 'a_b']\nbyzantine.count = 1\nattacks.'a b'.attack = 'zero'\n"
         "attacks.a_b.attack = 'mimic'", ["the same file a_b-1.h5"]),
        ("seed = [1]\nbyzantine = 3", ["byzantine is a table, not 3"]),
        ("seed = [1]\ngraph = []", ["graph is a table, not []"]),
    ],
)  # fmt: skip
def test_contradictions_are_refused_before_anything_runs(addition: str, words: list[str], tmp_path: Path):
    tables = merged(tomllib.loads(SMALL), tomllib.loads(addition))
    with pytest.raises(UserError) as error:
        load(tomli_w.dumps(tables), tmp_path)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_contradiction_is_one_line_and_status_2_on_many_ranks(tmp_path: Path):
    path = write(tmp_path, SWEEP.replace("count = [0, 3]", "count = 0"))
    refused(mpirun(3, "sweep", path, "--output", tmp_path / "out"), "nobody is Byzantine")
    assert not (tmp_path / "out").exists()
