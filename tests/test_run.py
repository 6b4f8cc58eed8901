"""What a whole run under mpirun gives: the same for any number of ranks, all of it; and how it fails."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from mpirun import mpirun
from results import assert_identical, rule_datasets

from mpi_resmtl import loops
from mpi_resmtl.partition import offsets

ALL_RULES = "rules=none,average,distance,loss-unfiltered,loss"


def run(folder: Path, preset: str, ranks: int, *settings: str) -> Path:
    path = folder / f"{preset}-{ranks}.h5"
    done = mpirun(ranks, "run", preset, *(w for s in settings for w in ("--set", s)), "--output", path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("iterations in") == len(json.loads(h5py.File(path).attrs["rules"]))
    return path


@pytest.fixture(scope="module")
def fig1c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("run"), "fig1c", 1, "iterations=100", "record.models=30", ALL_RULES)


@pytest.mark.parametrize("ranks", [2, 3, 7, 100])
def test_results_do_not_depend_on_the_number_of_ranks(fig1c: Path, ranks: int, tmp_path: Path):
    assert_identical(fig1c, run(tmp_path, "fig1c", ranks, "iterations=100", "record.models=30", ALL_RULES))


@pytest.mark.parametrize("settings", [["task.variant=authors-code"], ["rule.distance.anchor=lookahead"],
                                      ["graph.kind=star", "task.judge=position"]])  # fmt: skip
def test_no_switch_makes_results_depend_on_ranks(settings: list[str], tmp_path: Path):
    one, three = (run(tmp_path, "fig1c", ranks, "iterations=40", *settings) for ranks in (1, 3))
    assert_identical(one, three)


@pytest.mark.parametrize(
    ("preset", "settings"), [("fig1c", ["iterations=60"]), ("fig2b", ["epochs=1", "task.data=stand-in"])]
)
def test_reading_rows_in_place_changes_no_bit_and_no_count(preset: str, settings: list[str], tmp_path: Path):
    found = []
    for way in ("on", "off"):
        (tmp_path / way).mkdir()
        found.append(run(tmp_path / way, preset, 3, f"exchange.shared={way}", *settings))
    assert_identical(*found)
    with h5py.File(found[0]) as one, h5py.File(found[1]) as two:
        for rule in one["rule"]:
            np.testing.assert_array_equal(one[f"rule/{rule}/traffic"], two[f"rule/{rule}/traffic"])


def test_an_agent_that_loses_no_message_does_not_feel_that_others_do(tmp_path: Path):
    rare = ["task.agents=60", "task.side=8.0", "byzantine.count=1", "byzantine.attack=non-finite"]
    one, four = (run(tmp_path, "fig1c", ranks, "iterations=100", *rare) for ranks in (1, 4))
    assert_identical(one, four)


def test_running_again_gives_the_same_bits_and_another_seed_others(fig1c: Path, tmp_path: Path):
    assert_identical(fig1c, run(tmp_path, "fig1c", 1, "iterations=100", "record.models=30", ALL_RULES))
    other = rule_datasets(run(tmp_path, "fig1c", 2, "seed=1", "iterations=100", ALL_RULES))
    assert not np.array_equal(other["loss/loss"], rule_datasets(fig1c)["loss/loss"], equal_nan=True)


def test_the_one_normal_agent_of_figure_1d_ends_as_if_alone_to_the_bit(tmp_path: Path):
    """At first its own model is so bad that lies pass the filter; what they did is forgotten by iteration 400."""
    found = rule_datasets(run(tmp_path, "fig1d", 2, "record.weights=1"))
    alone = np.isfinite(found["none/model_final"][:, 0])
    assert np.count_nonzero(alone) == 1
    for name in ("loss", "msd", "risk_before", "risk_after"):
        assert found[f"loss/{name}"][400:].tobytes() == found[f"none/{name}"][400:].tobytes()
    assert found["loss/model_final"].tobytes() == found["none/model_final"].tobytes()
    listening = np.flatnonzero(np.nanmax(found["loss/weight"], axis=1) < 1)
    assert not listening.size or listening.max() < 100
    assert (found["average/loss"][-100:, alone] > 1).all()


def test_byzantine_agents_hold_no_result_and_normal_ones_hold_all(fig1c: Path):
    with h5py.File(fig1c) as file:
        byzantine, edge = file["graph/byzantine"][()], file["graph/edge"][()]
        assert np.count_nonzero(byzantine) == 20
        for rule, group in file["rule"].items():
            for name in ("loss", "msd", "risk_before", "risk_after"):
                values = group[name][()]
                assert np.isnan(values[:, byzantine]).all(), (rule, name)
                assert np.isfinite(values[:, ~byzantine]).all(), (rule, name)
            assert np.isnan(group["model_final"][()]).all(axis=1).tolist() == byzantine.tolist()
            assert np.isnan(group["weight"][()]).all(axis=0).tolist() == byzantine[edge[:, 1]].tolist()


def test_recorded_weights_sum_to_one_and_follow_from_the_recorded_losses(fig1c: Path):
    with h5py.File(fig1c) as file:
        byzantine, edge = file["graph/byzantine"][()], file["graph/edge"][()]
        group = file["rule/loss"]
        weight, accumulated = group["weight"][()], group["accumulated"][()]
        for k in np.flatnonzero(~byzantine):
            into = edge[:, 1] == k
            own = accumulated[:, into & (edge[:, 0] == k)]
            share = np.where(accumulated[:, into] <= own, 1 / accumulated[:, into], 0)
            np.testing.assert_allclose(weight[:, into], share / share.sum(axis=1, keepdims=True), rtol=1e-12)


def test_the_file_says_what_made_it(fig1c: Path):
    with h5py.File(fig1c) as file:
        attrs = dict(file.attrs)
        config = tomllib.loads(attrs["config"])
        assert attrs["schema"] == "mpi-resmtl/1"
        assert (attrs["ranks"], attrs["seed"], attrs["data"]) == (1, 0, "generated")
        assert config["record"] == {"every": 1, "weights": 10, "models": 30}
        versions = json.loads(attrs["versions"])
        libraries = {"python", "numpy", "torch", "mpi4py", "mpi", "h5py", "hdf5"}
        assert versions.keys() == libraries | {"mpi_resmtl", "git", "loops"}
        assert versions["loops"] == loops.IN_USE
        assert file["weight_iteration"][()].tolist() == list(range(10, 101, 10))
        assert file["model_iteration"][()].tolist() == [30, 60, 90, 100]
        assert file["rule/loss/model"].shape == (4, 100, 2)
        np.testing.assert_array_equal(file["rule/loss/model"][-1], file["rule/loss/model_final"][()])
        for rule in file["rule"].values():
            seconds = rule["seconds"][()]
            assert seconds.shape == (10, 1, 7)
            assert (seconds >= 0).all()
            assert seconds.sum() > 0


def test_xarray_opens_the_file_with_named_dimensions(fig1c: Path):
    with xarray.open_dataset(fig1c, group="rule/loss", engine="h5netcdf") as data:
        assert data.loss.dims == ("iteration", "agent")
        assert data.weight.dims == ("weight_iteration", "edge")
        assert data.seconds.dims == ("weight_iteration", "rank", "phase")
        assert data.loss.sel(iteration=100).shape == (100,)
    with xarray.open_dataset(fig1c, group="graph", engine="h5netcdf") as data:
        assert data.edge.dims == ("edge", "endpoint")
    with xarray.open_datatree(fig1c, engine="h5netcdf") as tree:
        rule = tree["rule/loss"]
        assert rule.weight_iteration.values.tolist() == list(range(10, 101, 10))
        assert rule.seconds.sel(phase=b"exchange").dims == ("weight_iteration", "rank")


def implied_traffic(edge: np.ndarray, byzantine: np.ndarray, ranks: int, row_bytes: int) -> np.ndarray:
    """Messages and bytes each rank sends an iteration, counted edge by edge: (ranks, 2)."""
    owner = np.searchsorted(offsets(len(byzantine), ranks), np.arange(len(byzantine)), side="right") - 1
    rows = set()
    for source, target in edge.tolist():
        if owner[source] != owner[target]:
            rows.add((owner[source], owner[target], source, target if byzantine[source] else -1))
    found = np.zeros((ranks, 2), int)
    for rank in range(ranks):
        mine = [row for row in rows if row[0] == rank]
        found[rank] = len({row[1] for row in mine}), len(mine) * row_bytes
    return found


@pytest.mark.parametrize(("kind", "ranks"), [("geometric", 2), ("geometric", 7), ("ring", 5), ("star", 4)])
def test_traffic_is_what_the_graph_and_the_partition_imply_to_the_byte(kind: str, ranks: int, tmp_path: Path):
    path = run(tmp_path, "fig1c", ranks, "iterations=7", f"graph.kind={kind}")
    with h5py.File(path) as file:
        per_iteration = implied_traffic(file["graph/edge"][()], file["graph/byzantine"][()], ranks, 16)
        for rule in file["rule"].values():
            np.testing.assert_array_equal(rule["traffic"][()], 7 * per_iteration)
    if kind == "ring":
        assert (per_iteration[:, 0] == 2).all()


def test_without_mpi_in_h5py_the_same_file_is_gathered_with_one_line_of_warning(fig1c: Path, tmp_path: Path):
    program = [sys.executable, "-c", GATHERED]
    path = tmp_path / "gathered.h5"
    settings = ["--set", "iterations=100", "--set", "record.models=30", "--set", ALL_RULES]
    done = mpirun(3, "run", "fig1c", *settings, "--output", path, program=program)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("h5py has no MPI") == 1
    assert_identical(fig1c, path)


GATHERED = """
import sys, types, h5py
h5py.get_config = lambda: types.SimpleNamespace(mpi=False)
from mpi_resmtl.cli import main
sys.exit(main(sys.argv[1:]))
"""

FAILING = """
import sys, mpi_resmtl.exchange as exchange
from mpi4py import MPI
calls, finish = 0, exchange.Exchange.finish
def failing(self):
    global calls
    calls += 1
    if calls == 5 and MPI.COMM_WORLD.rank == {rank}:
        {what}
    finish(self)
exchange.Exchange.finish = failing
from mpi_resmtl.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("what", ["raise RuntimeError('injected')", "sys.exit('injected')"])
def test_an_exception_on_one_rank_ends_the_job_soon_with_its_traceback(what: str, rank: int, tmp_path: Path):
    program = [sys.executable, "-c", FAILING.format(rank=rank, what=what)]
    began = time.monotonic()
    done = mpirun(3, "run", "fig1c", "--output", tmp_path / "out.h5", program=program, timeout=30)
    assert time.monotonic() - began < 10
    assert done.returncode not in (0, 2)
    assert f"rank {rank} failed" in done.stderr
    assert "Traceback" in done.stderr
    assert "injected" in done.stderr
    assert not (tmp_path / "out.h5").exists()


SPYING = """
import sys, numpy as np, mpi_resmtl.diffusion as diffusion
from mpi4py import MPI
seen, gather = {}, diffusion.Neighbourhoods.gather
def spy(self, rows):
    messages = gather(self, rows)
    first = int(np.load(sys.argv[-1])[MPI.COMM_WORLD.rank])
    for source, target, message in zip(self.source, self.target, messages):
        seen.setdefault((int(source), int(target) + first), message.tobytes())
    return messages
diffusion.Neighbourhoods.gather = spy
from mpi_resmtl.cli import main
status = main(sys.argv[1:-1])
every = MPI.COMM_WORLD.gather(seen)
if MPI.COMM_WORLD.rank == 0:
    import pickle
    pickle.dump({k: v for part in every for k, v in part.items()}, open(sys.argv[-1] + ".seen", "wb"))
sys.exit(status)
"""


@pytest.mark.parametrize("same_to_all", [False, True])
def test_an_attacker_really_sends_different_bytes_to_different_victims(same_to_all: bool, tmp_path: Path):
    import pickle

    firsts, path = tmp_path / "firsts.npy", tmp_path / "out.h5"
    np.save(firsts, offsets(100, 3)[:-1])
    settings = [
        "--set",
        "iterations=1",
        "--set",
        "rules=average",
        "--set",
        f"byzantine.same_to_all={same_to_all}".lower(),
    ]
    program = [sys.executable, "-c", SPYING]
    done = mpirun(3, "run", "fig1c", *settings, "--output", path, firsts, program=program)
    assert done.returncode == 0, done.stderr
    seen = pickle.loads(Path(f"{firsts}.seen").read_bytes())
    with h5py.File(path) as file:
        byzantine = file["graph/byzantine"][()]
    for attacker in np.flatnonzero(byzantine):
        heard = [message for (source, _), message in seen.items() if source == attacker]
        assert len(heard) > 1
        assert len(set(heard)) == (1 if same_to_all else len(heard))
        assert all((np.frombuffer(m) >= 15).all() and (np.frombuffer(m) < 16).all() for m in heard)
    for agent in np.flatnonzero(~byzantine):
        assert len({message for (source, _), message in seen.items() if source == agent}) == 1
