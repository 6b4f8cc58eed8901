"""Runs that go on without ranks that are killed, under an MPI library with fault tolerance."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, mpirun, variables
from results import assert_identical
from test_deadline import TELLING, asked, ranks, wait_for
from test_figures import script

BESIDE = Path(sys.prefix) / "fault-tolerant" / "bin"
needs_ulfm = pytest.mark.skipif(
    not (BESIDE / "mpirun").exists(), reason="Open MPI 5 could not be installed by jobs/setup.sh --test"
)


def started(folder: Path, count: int, *arguments: object) -> tuple[subprocess.Popen, dict[int, int]]:
    """A surviving run on so many ranks with attackers that tell how far it is, and these ranks, once it iterates."""
    (folder / "telling.py").write_text(TELLING)
    line = [BESIDE / "mpirun", "--oversubscribe", "--with-ft", "ulfm", "-n", count, BESIDE / "python"]
    line += ["-m", "mpi_resmtl", "run", "fig1c", "--plugin", "telling", "--set", "byzantine.attack=telling"]
    line += [*arguments, "--survive"]
    others = {name: value for name, value in variables().items() if not name.startswith("OMPI_MCA_")}
    job = subprocess.Popen(
        list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=others, cwd=folder
    )
    wait_for(folder / "iterates", job)
    return job, ranks(job)


@needs_ulfm
@pytest.mark.parametrize("killed", [(2,), (1, 3)])
def test_a_run_goes_on_without_ranks_that_are_killed(killed: tuple[int, ...], tmp_path: Path):
    output = tmp_path / "survived.h5"
    settings = asked("rules=none,loss", "iterations=10000", "record.every=100")
    job, there = started(tmp_path, 4, *settings, "--output", output)
    for rank in killed:
        os.kill(there[rank], signal.SIGKILL)
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    for rank in killed:
        first, stop = 25 * rank, 25 * rank + 25
        assert f"rank {rank} has died in rule none; its agents {first} to {stop - 1} are silent from now on" in said
    with h5py.File(output) as file:
        lost = json.loads(file.attrs["lost"])
        assert [(one["rank"], one["first"], one["stop"]) for one in lost] == [(r, 25 * r, 25 * r + 25) for r in killed]
        byzantine, edge = file["graph/byzantine"][()], file["graph/edge"][()]
        rank = np.arange(100) // 25
        dead = np.isin(rank, killed)
        loss, missing = file["rule/loss/loss"][()], file["rule/loss/missing"][()]
        assert np.isfinite(loss[:, ~byzantine & ~dead]).all()
        assert np.isnan(loss[:, dead]).all()
        into = ~byzantine[edge[:, 1]] & ~dead[edge[:, 1]]
        # Of the dead all messages are missing in all iterations between records, of the others none.
        every = 10.0 * dead[edge[into, 0]]
        np.testing.assert_array_equal(missing[:, into], np.broadcast_to(every, missing[:, into].shape))
    checked = alone("verify", "--plugin", "telling", output, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    shown = script("table", output, "--format", "csv")
    assert shown.returncode == 0, shown.stderr
    rows = list(csv.DictReader(shown.stdout.splitlines()))
    assert sum(int(row["agents"]) for row in rows if row["rule"] == "loss") == np.count_nonzero(~byzantine & ~dead)
    for odd in (
        "[1]",
        "x",
        '[{"rank": 9, "first": 0, "stop": 1}]',
        '[{"rank": 1, "first": 0.5, "stop": 1, "rule": "loss"}]',
    ):
        with h5py.File(output, "r+") as file:
            file.attrs["lost"] = odd
        checked = alone("verify", "--plugin", "telling", output, cwd=tmp_path)
        assert checked.returncode == 1, checked.stderr
        assert "attribute lost" in checked.stdout
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob("*.lock"))


@needs_ulfm
def test_a_rank_that_fails_ends_itself_alone(tmp_path: Path):
    output = tmp_path / "survived.h5"
    failing = "if known.iteration == 2000 and stage.first_agent == 66: raise RuntimeError('rank 2 has had enough')"
    plugin = TELLING.replace("        return np", f"        {failing}\n        return np").replace("telling", "failing")
    (tmp_path / "failing.py").write_text(plugin)
    settings = [*asked("rules=loss", "iterations=4000", "record.every=100"), "--plugin", "failing"]
    job, _ = started(tmp_path, 3, *settings, *asked("byzantine.attack=failing"), "--output", output)
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    assert "RuntimeError: rank 2 has had enough" in said
    assert "rank 2 has died in rule loss; its agents 66 to 99 are silent from now on" in said
    with h5py.File(output) as file:
        assert [one["rank"] for one in json.loads(file.attrs["lost"])] == [2]


@needs_ulfm
def test_a_run_that_loses_nobody_is_as_without(tmp_path: Path):
    survived, plain = tmp_path / "survived.h5", tmp_path / "plain.h5"
    settings = asked("rules=none,loss", "iterations=300")
    job, _ = started(tmp_path, 3, *settings, "--output", survived)
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    same = ["run", "fig1c", "--plugin", "telling", *asked("byzantine.attack=telling"), *settings]
    assert mpirun(2, *same, "--output", plain, cwd=tmp_path).returncode == 0
    with h5py.File(survived, "r+") as file:
        assert json.loads(file.attrs["lost"]) == []
        for rule in ("none", "loss"):
            assert np.nansum(file[f"rule/{rule}/missing"][()]) == 0
            del file[f"rule/{rule}/missing"]
    assert_identical(plain, survived)


@needs_ulfm
def test_without_rank_0_that_writes_the_file_the_run_ends_in_one_line(tmp_path: Path):
    output = tmp_path / "ended.h5"
    job, there = started(tmp_path, 3, *asked("rules=loss", "iterations=100000", "record.every=100"), "--output", output)
    os.kill(there[0], signal.SIGKILL)
    said = job.communicate(timeout=120)[0]
    assert job.returncode != 0
    assert f"mpi-resmtl: rank 0, which writes {output}.part, has died" in said
    assert "Traceback" not in said
    assert not output.exists()


def test_where_no_run_can_survive_that_is_said(tmp_path: Path):
    done = alone("run", "fig1c", "--survive", "--output", tmp_path / "x.h5")
    assert done.returncode == 2
    assert "--survive needs an MPI library with fault tolerance" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    done = alone("run", "fig1c", "--survive", "--resume", "--output", tmp_path / "x.h5")
    assert done.returncode == 2
    assert "nothing to --resume" in done.stderr
