"""The command line as a user meets it: what works, and how wrong input is refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, mpirun
from results import assert_identical

SHORT = ("--set", "iterations=20")


def refused(done, *words: str) -> None:
    """The run ended with status 2 and one line of ours that has these words."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("mpi-resmtl: ")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in done.stderr


def test_list_names_every_preset_task_rule_attack_and_graph():
    done = alone("list")
    assert done.returncode == 0
    named = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert named >= {"fig1b", "fig1c", "fig1d", "fig1c-authors-code", "recorded", "target-localization"}
    assert named >= {"none", "average", "distance", "loss-unfiltered", "loss", "uniform", "geometric", "small-world"}
    assert all(len(line.split()) > 1 for line in done.stdout.splitlines() if line.startswith("  "))


@pytest.mark.parametrize("preset", ["fig1b", "fig1c", "fig1d", "fig1c-authors-code"])
def test_show_prints_the_resolved_configuration_that_reads_back_as_itself(preset: str, tmp_path: Path):
    shown = alone("show", preset).stdout
    (tmp_path / "again.toml").write_text(shown)
    assert alone("show", tmp_path / "again.toml").stdout == shown
    tables = tomllib.loads(shown)
    assert tables["iterations"] == 500
    assert tables["rule"] == {
        "forgetting_factor": 0.1,
        "initial_accumulated_loss": 10.0,
        "excess": "refuse",
        "distance": {"anchor": "previous"},
    }


def test_the_variant_of_the_published_program_names_each_of_its_switches():
    paper, code = (tomllib.loads(alone("show", name).stdout) for name in ("fig1c", "fig1c-authors-code"))
    assert (paper["graph"]["kind"], code["graph"]["kind"]) == ("geometric", "geometric-directed")
    assert (paper["task"]["noise"], code["task"]["noise"]) == ("independent", "scalar")
    assert (paper["task"]["loss_position"], code["task"]["loss_position"]) == ("own", "neighbour")
    assert (paper["byzantine"]["fixed"], code["byzantine"]["fixed"]) == (False, True)
    assert (paper["byzantine"]["same_to_all"], code["byzantine"]["same_to_all"]) == (False, True)
    switched = alone("show", "fig1c", "--set", "task.variant=authors-code").stdout
    assert tomllib.loads(switched) == code


def test_a_run_without_mpirun_is_a_run_on_one_rank(tmp_path: Path):
    assert alone("run", "fig1c", *SHORT, cwd=tmp_path).returncode == 0
    assert mpirun(1, "run", "fig1c", *SHORT, "--output", "one.h5", cwd=tmp_path).returncode == 0
    assert_identical(tmp_path / "fig1c.h5", tmp_path / "one.h5")


def test_a_toml_file_of_ones_own_runs(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(
        'rules = ["loss"]\niterations = 5\n[task]\nname = "target-localization"\nagents = 12\n'
        '[graph]\nkind = "ring"\nreach = 2\n[byzantine]\nagents = [1, 5]\nlow = -1.0\nhigh = 1\n'
    )
    done = mpirun(2, "run", "mine.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "mine.h5") as file:
        assert np.flatnonzero(file["graph/byzantine"]).tolist() == [1, 5]
        assert len(file["graph/edge"]) == 12 * 5


WRONG = [
    (["fig1x"], ["preset", "'fig1x'", "did you mean 'fig1"]),
    (["nowhere.toml"], ["nowhere.toml", "No such file"]),
    (["fig1c", "--set", "rules=none,los"], ["rule", "'los'", "did you mean 'loss'?"]),
    (["fig1c", "--set", "task.stepsize=1"], ["key 'task.stepsize'", "did you mean 'task.step_size'?"]),
    (["fig1c", "--set", "itrations=1"], ["key 'itrations'", "did you mean 'iterations'?"]),
    (["fig1c", "--set", "rule.distance.ancor=previous"], ["did you mean 'rule.distance.anchor'?"]),
    (["fig1c", "--set", "byzantine.lwo=1"], ["did you mean 'byzantine.low'?"]),
    (["fig1c", "--set", "graph.kind=geometrc"], ["graph 'geometrc'", "did you mean 'geometric'?"]),
    (["fig1c", "--set", "byzantine.attack=unifrom"], ["attack 'unifrom'", "did you mean 'uniform'?"]),
    (["fig1c", "--set", "task.name=target"], ["task 'target'"]),
    (["fig1c", "--set", "task.step_size=0"], ["task.step_size = 0", "greater than 0"]),
    (["fig1c", "--set", "task.step_size=inf"], ["task.step_size", "finite"]),
    (["fig1c", "--set", "rule.forgetting_factor=1.5"], ["rule.forgetting_factor = 1.5", "less than or equal to 1"]),
    (["fig1c", "--set", "iterations=ten"], ["iterations = 'ten'", "integer"]),
    (["fig1c", "--set", "seed=-1"], ["seed = -1", "greater than or equal to 0"]),
    (["fig1c", "--set", "seed=9223372036854775808"], ["seed = 9223372036854775808", "less than or equal to"]),
    (["fig1c", "--set", "task.noise=pink"], ["task.noise = 'pink'", "independent"]),
    (["fig1c", "--set", "byzantine.low=20"], ["byzantine.low = 20.0", "byzantine.high"]),
    (["fig1c", "--set", "byzantine.count=101"], ["byzantine.count = 101", "100 agents"]),
    (["fig1c", "--set", "byzantine.count=100"], ["nobody is left"]),
    (["fig1c", "--set", "byzantine.agents=100"], ["100 is not an agent"]),
    (["fig1c", "--set", "task=3"], ["task is a table"]),
    (["fig1c", "--set", "nonsense"], ["expected key=value"]),
    (["recorded"], ["task.file=FILE"]),
    (["recorded", "--set", "task.file=nowhere.h5"], ["no such file", "nowhere.h5"]),
    (["fig1c", "--output", "no/such/folder/out.h5"], ["folder no/such/folder does not exist"]),
    (["fig1c", "--output", "there.h5"], ["there.h5", "exists already", "--overwrite"]),
    (["fig1c", "--output", "."], ["is a folder"]),
]


@pytest.mark.parametrize(
    ("ranks", "arguments", "words"), [(0, *case) for case in WRONG] + [(3, *case) for case in WRONG[::5]]
)
def test_wrong_input_is_refused_in_one_line(ranks: int, arguments: list[str], words: list[str], tmp_path: Path):
    (tmp_path / "there.h5").write_text("precious")
    before = sorted(tmp_path.iterdir())
    done = mpirun(ranks, "run", *arguments, cwd=tmp_path) if ranks else alone("run", *arguments, cwd=tmp_path)
    refused(done, *words)
    assert (tmp_path / "there.h5").read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == before


def test_more_ranks_than_agents_are_refused(tmp_path: Path):
    few = ("--set", "task.agents=2", "--set", "task.noisy_agents=0", "--set", "byzantine.count=0", *SHORT)
    refused(mpirun(3, "run", "fig1c", *few, cwd=tmp_path), "3 ranks are more than the 2 agents")
    assert mpirun(2, "run", "fig1c", *few, cwd=tmp_path).returncode == 0


def test_an_output_that_exists_is_replaced_when_asked(tmp_path: Path):
    (tmp_path / "out.h5").write_text("old")
    done = mpirun(2, "run", "fig1c", *SHORT, "--output", "out.h5", "--overwrite", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    assert h5py.is_hdf5(tmp_path / "out.h5")


def test_who_is_byzantine_is_given_by_number_or_by_name_and_what_is_set_counts():
    named = tomllib.loads(alone("show", "fig2b").stdout)["byzantine"]
    assert len(named["agents"]) == 10
    counted = tomllib.loads(alone("show", "fig2b", "--set", "byzantine.count=5").stdout)["byzantine"]
    assert counted["count"] == 5
    assert "agents" not in counted
    chosen = alone("show", "fig1c", "--set", "byzantine.agents=3,4").stdout
    assert tomllib.loads(chosen)["byzantine"]["agents"] == [3, 4]
    assert tomllib.loads(chosen)["byzantine"]["count"] == 0


def test_show_and_unknown_commands_end_with_status_two():
    refused(alone("show", "fig9"), "preset 'fig9'")
    assert alone("dance").returncode == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not toml = = 1", "not TOML"),
        ("rules = []\n[task]\nname='target-localization'", "rules = []"),
        ("", "task.name"),
    ],
)
def test_a_wrong_toml_file_is_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "mine.toml").write_text(content)
    refused(alone("run", "mine.toml", cwd=tmp_path), message)


def test_bench_measures_an_iteration_beside_a_plain_loop_and_refuses_what_it_cannot_do(tmp_path: Path):
    done = alone("bench", "step", "--agents", "20", "--repeats", "2", "--json", tmp_path / "step.json", timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "step.json").read_text())
    (row,) = found["step"]
    assert row["agents"] == 20
    assert row["iteration"]["min"] <= row["iteration"]["median"] <= row["iteration"]["max"]
    assert row["speed_up"]["median"] > 1
    assert found["environment"]["versions"]["numpy"] == np.__version__
    assert len(done.stdout.splitlines()) == 2
    refused(alone("bench", "step", "--agents", "many"), "--agents many")
    refused(alone("bench", "step", "--json", tmp_path / "no" / "step.json"), "does not exist")
