"""Result files of every study pass; each kind of damage to one is found, at its place."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, mpirun
from test_recorded import put, write_stream

from mpi_resmtl.rules import RULES

PAPER = "none,average,distance,loss-unfiltered,loss"
EXPONENTIAL = ("mda", "f-filter", "bulyan")
"""Rules that small neighbourhoods of many attackers are too large or too small for."""


def run(path: Path, ranks: int, preset: str, *settings: str, program=None, status: int = 0) -> Path:
    arguments = ["run", preset, *(word for s in settings for word in ("--set", s)), "--output", path]
    done = mpirun(ranks, *arguments, program=program, timeout=300)
    assert done.returncode == status, done.stderr
    return path


def problems(path: Path) -> list[str]:
    """What is wrong with a file of which it is known that reading it does no harm."""
    from mpi_resmtl.verify.file import ResultFile

    with h5py.File(path) as file:
        return list(ResultFile(file).problems())


SMALL = ("task.agents=12", "task.noisy_agents=2", "graph.kind=ring", "graph.reach=2", "byzantine.agents=[3,4]")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ("iterations=20", "record.weights=4", "record.models=5", f"rules={PAPER},median,loss-robust,centerpoint")
    return run(tmp_path_factory.mktemp("verify") / "whole.h5", 3, "fig1c", *SMALL, *settings, "rule.excess=cap")


ALL = ",".join(name for name, _ in RULES.items() if name not in EXPONENTIAL)
RUNS = {
    "all rules": (3, "fig1c", "iterations=25", f"rules={ALL}", "rule.excess=cap"),
    "before another rule": (
        *(2, "fig1c", "iterations=12", "rules=mixed,bags,none", "rule.excess=cap", "rule.mixed.uses=loss"),
        *("rule.mixed.pre=nnm", "rule.bags.uses=median", "rule.bags.pre=bucketing"),
    ),
    "records now and then": (7, "fig1c-authors-code", "iterations=50", "record.every=7", "record.models=20"),
    "no weights": (2, "fig1d", "iterations=30", "record.weights=0", f"rules={PAPER}"),
    "linear regression": (
        *(2, "fig1c", "task.name=linear-regression", "task.covariance=spectrum", "task.groups=2", "iterations=40"),
        *("byzantine.count=3", "byzantine.low=1", "byzantine.high=2", "record.models=9"),
    ),
    "activities": (2, "fig2b", "task.data=stand-in", "task.agents=4", "byzantine.count=1", "epochs=2"),
    "activities held back": (
        *(
            1,
            "fig2a",
            "task.data=stand-in",
            "task.agents=3",
            "epochs=1",
            "rules=none,loss,loss-fresh",
            "record.every=3",
        ),
    ),
    "digits": (
        *(2, "fig3-4b", "task.data=stand-in", "task.agents=4", "task.train_images=64", "task.test_images=20"),
        *("task.batch=[8,16]", "byzantine.agents=[1]", "epochs=2", "task.epoch_iterations=2", "rules=none,loss"),
    ),
    "who says nothing": (3, "fig1c", "iterations=30", "byzantine.attack=silent", f"rules={PAPER}"),
    "who says NaN": (
        2,
        "fig1c",
        "iterations=30",
        "byzantine.attack=non-finite",
        f"rules={PAPER},krum",
        "rule.excess=cap",
    ),
    "own models lost": (1, "fig1c", "iterations=400", "task.step_size=9.0", "rules=none,loss"),
    "one agent": (1, "fig1c", "task.agents=1", "task.noisy_agents=0", "byzantine.count=0", "iterations=1"),
    "messages only": (4, "fig1c", "iterations=10", "exchange.shared=off", "graph.kind=erdos-renyi"),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_wrote_is_right(name: str, tmp_path: Path):
    ranks, preset, *settings = RUNS[name]
    assert problems(run(tmp_path / "out.h5", ranks, preset, *settings)) == []


@pytest.mark.parametrize("model", ["location", "linear-classifier"])
def test_what_a_run_of_a_recorded_stream_wrote_is_right_wherever_the_stream_is_now(model: str, tmp_path: Path):
    stream = write_stream(tmp_path / "stream.h5", model, "changing")
    path = run(tmp_path / "out.h5", 2, "recorded", f"task.file={stream}")
    stream.unlink()
    assert problems(path) == []


def test_what_serial_h5py_gathered_is_right(tmp_path: Path):
    serial = "import sys, types, h5py; h5py.get_config = lambda: types.SimpleNamespace(mpi=False); "
    serial += "from mpi_resmtl.cli import main; sys.exit(main(sys.argv[1:]))"
    settings = ("iterations=20", "record.models=9", "rules=none,loss,median")
    path = run(tmp_path / "out.h5", 3, "fig1c", *settings, program=[sys.executable, "-c", serial])
    assert problems(path) == []


def test_the_cells_of_a_sweep_are_right(tmp_path: Path):
    settings = ("seed=[1,2]", "byzantine.count=[0,5]", "iterations=12", "rules=none,loss")
    words = [word for setting in settings for word in ("--set", setting)]
    done = alone("sweep", "fig1c", *words, "--output", tmp_path / "sweep")
    assert done.returncode == 0, done.stderr
    cells = sorted((tmp_path / "sweep").rglob("*.h5"))
    assert len(cells) == 4
    assert [problems(path) for path in cells] == [[]] * 4


STOPPING = """
import os, signal, sys
from mpi4py import MPI
from mpi_resmtl import exchange, signals
signals._MOST_ITERATIONS = 1
calls, finish = 0, exchange.Exchange.finish
def stopping(self):
    global calls
    calls += 1
    if calls == 31 and MPI.COMM_WORLD.rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    finish(self)
exchange.Exchange.finish = stopping
from mpi_resmtl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_what_a_run_wrote_that_was_resumed_on_other_ranks_is_right(tmp_path: Path):
    settings = (*SMALL, "iterations=20", "record.weights=3", "rules=none,loss,average")
    arguments = ["run", "fig1c", *(word for s in settings for word in ("--set", s)), "--output", tmp_path / "out.h5"]
    stopped = mpirun(4, *arguments, program=[sys.executable, "-c", STOPPING])
    assert "--resume goes on" in stopped.stderr
    part = alone("verify", tmp_path / "out.h5.part")
    assert (part.returncode, part.stdout.count("\n")) == (1, 1)
    assert "is not finished" in part.stdout
    done = mpirun(2, *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert problems(tmp_path / "out.h5") == []
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["ranks"] == 4
        assert file["rule/loss/traffic"][2, 0] < file["rule/loss/traffic"][0, 0]


def changed(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    """Other values in a dataset."""

    def change(file: h5py.File) -> None:
        file[name][...] = make(file[name][()])

    return change


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def configured(old: str, new: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        assert old in file.attrs["config"]
        file.attrs["config"] = file.attrs["config"].replace(old, new)

    return change


def swapped(values: np.ndarray, one: tuple, other: tuple) -> np.ndarray:
    values[one], values[other] = values[other].copy(), values[one].copy()
    return values


# In the small file agent k hears k-2 to k+2 around the circle, so edge 5 k + j is the jth of them in agent order; 3 and
# 4 are Byzantine. Edges 40 to 44 are into agent 8, from 6, 7, 8, 9 and 10; edge 15 goes from 1 to 3.
DAMAGE = [
    (attribute("seed", 5), "attribute seed is 5"),
    (attribute("ranks", 2), "attributes ranks = 2 and stages"),
    (attribute("stages", "[]"), "stages = [] do not fit"),
    (attribute("rules", '["none"]'), "attribute rules is ['none']"),
    (attribute("versions", "{}"), "attribute versions"),
    (attribute("data", "invented"), "attribute data is 'invented'"),
    (attribute("data_sha256", "abc"), "attribute data_sha256"),
    (attribute("created", "yesterday"), "attribute created is 'yesterday'"),
    (attribute("config", "[[["), "attribute config: attribute config: not TOML"),
    (lambda file: file.attrs.__delitem__("run"), "attribute run is not there"),
    (configured("iterations = 20", "iterations = 21"), "/iteration ends with 20, iterations = 21"),
    (configured("iterations = 20", "iterationz = 20"), "unknown key 'iterationz'"),
    (configured("agents = 12", "agents = 13"), "12 agents with models of 2 parameters, its configuration 13"),
    (configured("reach = 2", "reach = 1"), "/graph/edge is not the graph 'ring' of 12 agents"),
    (configured("weights = 4", "weights = 5"), "/weight_iteration has the shape (5,), expected (4,)"),
    (configured("    3,\n    4,\n", "    3,\n    5,\n"), "/graph/byzantine is not byzantine.agents = [3, 5]"),
    (changed("graph/edge", lambda e: put(e, (7, 0), 12)), "/graph/edge 7 is 12 -> 1; agents are 0 to 11"),
    (changed("graph/edge", lambda e: swapped(e, (8,), (9,))), "/graph/edge 9 is not behind the one before"),
    (changed("graph/edge", lambda e: put(e, (42, 0), 1)), "/graph/edge 42"),
    (changed("graph/byzantine", lambda b: put(b, (3,), False)), "/graph/byzantine is not byzantine.agents"),
    (changed("graph/group", lambda g: put(g, (0,), 9)), "/graph/target of agent"),
    (changed("graph/group", lambda g: put(g, (0,), -1)), "/graph/group of agent 0 is -1"),
    (changed("graph/position", lambda p: put(p, (2, 1), np.inf)), "/graph/position of agent 2 is not finite"),
    (changed("graph/target", lambda t: put(t, (2, 1), 3.0)), "/graph/target of agent 2 is not that of its group"),
    (changed("iteration", lambda i: put(i, (3,), 5)), "/iteration 3 is 5, expected 4"),
    (changed("weight_iteration", lambda i: put(i, (0,), 3)), "/weight_iteration 0 is 3, expected 4"),
    (changed("agent", lambda a: a[::-1]), "/agent 0 is 11, expected 0"),
    (changed("phase", lambda p: p[::-1]), "/phase 0 is record, expected adapt"),
    (changed("rule/loss/msd", lambda v: v * (1 + 1e-6)), "/rule/loss/msd, iteration 5, agent 0: is"),
    (changed("rule/distance/weight", lambda w: swapped(w, (2, 40), (2, 41))), "iteration 12, edge 6 -> 8: is"),
    (changed("rule/loss-unfiltered/weight", lambda w: swapped(w, (2, 40), (2, 44))), "rule loss-unfiltered gives"),
    (changed("rule/none/weight", lambda w: swapped(w, (0, 40), (0, 42))), "/rule/none/weight, iteration 4, edge 6"),
]

NUMBERS = [
    ("loss/loss", (4, 7), np.nan, "iteration 5, agent 7: is not finite"),
    ("loss/loss", (4, 7), -1e-9, "iteration 5, agent 7: is -1e-09, expected a number that is not below 0"),
    ("none/loss", (-1, 7), np.inf, "iteration 20, agent 7: is not finite"),
    ("loss/loss", (4, 3), 0.5, "iteration 5, agent 3: is there, though the agent is Byzantine"),
    ("loss/risk_after", (9, 6), 1e4, "iteration 10, agent 6: 10000, the model says"),
    ("loss/risk_after", (9, 6), 1e-5, "iteration 10, agent 6: 1e-05, the model says"),
    ("loss/risk_before", (0, 6), -1.0, "iteration 1, agent 6: is -1"),
    ("loss/weight", (2, 40), 0.9, "iteration 12, agent 8: weights sum to"),
    ("average/weight", (0, slice(40, 42)), [0.1, 0.3], "iteration 4, edge 6 -> 8: is 0.1, rule average gives 0.2"),
    ("loss/weight", (1, 15), 0.2, "iteration 8, edge 1 -> 3: is there, though the target is Byzantine"),
    ("loss/weight", (0, 40), np.nan, "iteration 4, edge 6 -> 8: is nan, expected 0 to 1"),
    ("loss/weight", (0, slice(40, 42)), [-0.5, 1.5], "iteration 4, edge 6 -> 8: is -0.5, expected 0 to 1"),
    ("centerpoint/weight", (0, 40), 0.5, "iteration 4, edge 6 -> 8: is 0.5, expected NaN"),
    ("median/share", (0, 40), 2.0, "iteration 4, edge 6 -> 8: is 2, expected 0 to 1"),
    ("loss-robust/weight", (4, slice(40, 45)), [0.3, 0.3, 0.0, 0.2, 0.2], "iteration 20, edge"),
    ("loss/accumulated", (1, 41), np.nan, "iteration 8, edge 7 -> 8: is nan"),
    ("loss/accumulated", (1, 41), -1.0, "iteration 8, edge 7 -> 8: is -1"),
    ("loss/accumulated", (1, 41), 1e-6, "iteration 8, edge 7 -> 8: is 1e-06, but"),
    ("loss/accumulated", (1, 15), 1.0, "iteration 8, edge 1 -> 3: is there"),
    ("loss/byzantine_weight", (0, 5), 0.9, "iteration 4, agent 5: is 0.9, /weight says"),
    ("average/true_positives", (0, 5), 1.0, "iteration 4, agent 5: is 1, /weight says 0"),
    ("average/false_positives", (3, 1), 0.5, "iteration 16, agent 1: is 0.5, /weight says 0"),
    ("loss/regret", (7,), 0.25, "agent 7: is 0.25, the means say"),
    ("none/regret", (7,), 1e-3, "agent 7: is 0.001, the means say 0"),
    ("loss/descent", (7,), 0.33, "agent 7: is 0.33, risks say"),
    ("loss/model", (0, 5, 1), np.nan, "iteration 5, agent 5: is not finite, but the last model is"),
    ("loss/model", (0, 4, 0), 1.0, "iteration 5, agent 4: is there"),
    ("loss/seconds", (1, 2, 3), -0.5, "iteration 8, rank 2, evaluate: is -0.5"),
    ("loss/seconds", (1, 2, 3), np.nan, "iteration 8, rank 2, evaluate: is nan"),
]
DAMAGE += [
    (changed(f"rule/{name}", lambda v, place=place, value=value: put(v, place, value)), f"/rule/{name}, {message}")
    for name, place, value, message in NUMBERS
]
OTHERS = [
    ("loss/accumulated", (4, 42), 1e6, "/rule/loss/weight, iteration 20, edge"),
    ("loss/model", (-1, 5, 1), 1.0, "/rule/loss/model_final is not the last of /rule/loss/model"),
    ("loss/model_final", (5, 0), np.nan, "/rule/loss/model_final is not the last of /rule/loss/model"),
    ("loss/traffic", (1, 1), 7, "/rule/loss/traffic of rank 1: 7 bytes, graph and ranks imply"),
    ("loss/traffic", (2, 0), 0, "/rule/loss/traffic of rank 2: 0 messages, graph and ranks imply"),
]
DAMAGE += [
    (changed(f"rule/{name}", lambda v, place=place, value=value: put(v, place, value)), message)
    for name, place, value, message in OTHERS
]


@pytest.mark.parametrize(("change", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_damage_is_found_at_its_place(whole: Path, change: Callable, message: str, tmp_path: Path):
    path = tmp_path / "damaged.h5"
    shutil.copy(whole, path)
    with h5py.File(path, "r+") as file:
        change(file)
    found = problems(path)
    assert any(message in problem for problem in found), found
    assert len(found) <= 4, found


def test_the_file_that_damage_is_done_to_was_right(whole: Path):
    assert problems(whole) == []


def deleted(file: h5py.File, name: str) -> None:
    del file[name]


def cut(file: h5py.File, name: str) -> None:
    values = file[name][()]
    del file[name]
    file[name] = values[:-1]


def cast(file: h5py.File, name: str) -> None:
    values = file[name][()]
    del file[name]
    file[name] = values.astype("f4" if values.dtype.kind == "f" and values.dtype.itemsize == 8 else "S9")


def detached(file: h5py.File, name: str) -> None:
    values = file[name][()]
    del file[name]
    file[name] = values


@pytest.mark.parametrize("how", [deleted, cut, cast, detached])
def test_every_dataset_is_missed_when_it_is_gone_or_of_another_shape_or_type(
    whole: Path, how: Callable, tmp_path: Path
):
    names: list[str] = []
    with h5py.File(whole) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    several = {name for name in names if name.startswith("rule/") and "/loss/" not in name}
    assert len(names) > 100
    for name in sorted(set(names) - several):
        path = tmp_path / "damaged.h5"
        shutil.copy(whole, path)
        with h5py.File(path, "r+") as file:
            how(file, name)
        found = problems(path)
        # Without a scale all that lies along it is wrong as well.
        assert any(f"/{name}" in problem or f"'{name}'" in problem for problem in found), (name, found)


def test_every_number_of_a_normal_agent_that_is_lost_or_of_a_byzantine_one_that_is_there_is_found(
    whole: Path, tmp_path: Path
):
    random = np.random.default_rng(0)
    for name in ("loss", "median"):
        with h5py.File(whole) as file:
            kinds = {key: item[()] for key, item in file[f"rule/{name}"].items() if item.dtype.kind == "f"}
        for key, values in kinds.items():
            for lost in (True, False):
                places = np.argwhere(np.isfinite(values) if lost else np.isnan(values))
                if not len(places):
                    continue
                path = tmp_path / "damaged.h5"
                shutil.copy(whole, path)
                with h5py.File(path, "r+") as file:
                    place = tuple(random.choice(places))
                    file[f"rule/{name}/{key}"][place] = np.nan if lost else 0.5
                assert problems(path), (name, key, place, lost)


def test_the_command_says_what_was_checked_what_is_wrong_and_what_cannot_be_read(whole: Path, tmp_path: Path):
    done = alone("verify", whole)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    for word in (str(whole), "whole: target-localization, 8 rules, 12 agents (2 Byzantine), 20 iterations, 3 ranks"):
        assert word in line
    damaged = tmp_path / "damaged.h5"
    shutil.copy(whole, damaged)
    with h5py.File(damaged, "r+") as file:
        for rule in file["rule"].values():
            rule["loss"][3, 5] = np.nan
            rule["traffic"][0] = 0
    done = alone("verify", whole, damaged)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert "whole: " in lines[0]
    assert all(line.startswith(f"{damaged}: /rule/") for line in lines[1:11])
    assert lines[11] == f"{damaged}: and more"
    torn = tmp_path / "torn.h5"
    torn.write_bytes(whole.read_bytes()[:40_000])
    done = alone("verify", torn, whole, tmp_path / "nowhere.h5")
    assert done.returncode == 2
    assert "whole: " in done.stdout
    told = done.stderr.splitlines()
    assert [line.startswith("mpi-resmtl: ") for line in told] == [True, True]
    assert "not a whole HDF5 file" in told[0]
    assert "no such file" in told[1]


def test_a_stream_is_no_result_file(tmp_path: Path):
    done = alone("verify", write_stream(tmp_path / "stream.h5", "location"))
    assert done.returncode == 2
    assert "is not a result file" in done.stderr


def test_verifying_starts_no_mpi(whole: Path):
    program = "import sys; from mpi_resmtl.cli import main; status = main(sys.argv[1:]); from mpi4py import MPI; "
    command = [sys.executable, "-c", f"{program} print(MPI.Is_initialized()); sys.exit(status)", "verify", str(whole)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
