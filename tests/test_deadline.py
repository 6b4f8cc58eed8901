"""Whole runs with a deadline: what is late is missing and counted, and a rank that was stopped takes part again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, command, mpirun, variables
from results import assert_identical
from soak import children

STOPPED = 2
"""The rank that is stopped."""


def ranks(job: subprocess.Popen) -> dict[int, int]:
    """Process of each rank of an mpirun by its number, as far as they have started."""
    found = {}
    for pid in children(job.pid):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        variables = dict(word.split(b"=", 1) for word in words if b"=" in word)
        number = variables.get(b"OMPI_COMM_WORLD_RANK", variables.get(b"PMI_RANK"))
        if number is not None:
            found[int(number)] = pid
    return found


def stop_for(pid: int, seconds: float) -> None:
    """Stop a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def started(*arguments: object) -> tuple[subprocess.Popen, dict[int, int]]:
    """A run on three ranks, and these, once it has begun with its iterations."""
    output = Path(arguments[-1])
    job = subprocess.Popen(
        command(3, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables()
    )
    part, begun = output.with_name(f"{output.name}.part"), time.monotonic()
    while not part.exists() or len(ranks(job)) < 3:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() - begun < 60
        time.sleep(0.02)
    time.sleep(0.5)
    return job, ranks(job)


def asked(*settings: str) -> list[str]:
    """Arguments that set these."""
    return [word for setting in settings for word in ("--set", setting)]


def test_a_rank_that_is_stopped_is_missed_and_takes_part_again(tmp_path: Path):
    output = tmp_path / "stopped.h5"
    settings = asked("rules=loss,average", "iterations=30000", "record.every=100", "exchange.deadline=0.3")
    job, there = started("run", "fig1c", *settings, "--output", output)
    stop_for(there[STOPPED], 1.0)
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    assert "messages were late and are missing" in said
    checked = alone("verify", output)
    assert checked.returncode == 0, checked.stdout
    with h5py.File(output) as file:
        missing = np.concatenate([file[f"rule/{rule}/missing"][()] for rule in ("loss", "average")])
        edge, byzantine = file["graph/edge"][()], file["graph/byzantine"][()]
        owner = edge * 3 // 100
        hears = ~byzantine[edge[:, 1]]
        lost = owner[:, 0] != owner[:, 1]
        own = edge[:, 0] == edge[:, 1]
        assert np.isnan(missing[:, ~hears]).all()
        assert missing[:, hears & lost & (owner == STOPPED).any(axis=1)].sum() > 0
        stood = missing[:, hears & own & (owner[:, 1] == STOPPED)]
        assert stood.sum() > 0
        # All have come together again before the run ends.
        assert missing[-1, hears].sum() == 0
        assert np.isfinite(file["rule/loss/loss"][:, ~byzantine]).all()


@pytest.mark.parametrize("attack", ["uniform", "silent", "drift-blind"])
def test_a_deadline_that_nobody_misses_changes_no_bit(attack: str, tmp_path: Path):
    settings = asked("rules=loss,median", "iterations=60", f"byzantine.attack={attack}", "rule.excess=cap")
    plain, timed = tmp_path / "plain.h5", tmp_path / "timed.h5"
    assert mpirun(2, "run", "fig1c", *settings, "--output", plain).returncode == 0
    done = mpirun(3, "run", "fig1c", *settings, "--set", "exchange.deadline=60", "--output", timed)
    assert done.returncode == 0, done.stderr
    assert "late" not in done.stdout
    with h5py.File(timed, "r+") as file:
        for rule in ("loss", "median"):
            values = file[f"rule/{rule}/missing"][()]
            assert np.nansum(values) == 0
            del file[f"rule/{rule}/missing"]
    assert_identical(plain, timed)


def test_a_run_with_a_deadline_is_saved_and_goes_on_from_there(tmp_path: Path):
    plain, saved = tmp_path / "plain.h5", tmp_path / "saved.h5"
    settings = asked("rules=none,loss", "iterations=30000", "record.every=100", "exchange.deadline=60")
    job, there = started("run", "fig1c", *settings, "--output", saved)
    os.kill(there[1], signal.SIGUSR1)
    said = job.communicate(timeout=120)[0]
    assert job.returncode, said
    assert "--resume goes on from there" in said
    done = mpirun(2, "run", "fig1c", *settings, "--resume", "--output", saved)
    assert done.returncode == 0, done.stderr
    assert mpirun(1, "run", "fig1c", *settings, "--output", plain).returncode == 0
    assert_identical(plain, saved)
    assert alone("verify", saved).returncode == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["rules=none,central"], "exchange.deadline = 0.5: the server of rule central waits for every agent"),
        (["byzantine.attack=little"], "attack little is told the models of every rank's agents"),
        (["exchange.shared=on"], "rows that are read in place have none"),
        (["exchange.deadline=-1"], "exchange.deadline"),
        (["exchange.deadline=nan"], "exchange.deadline"),
        (["exchange.deadline=inf"], "exchange.deadline"),
    ],
)
def test_what_a_deadline_cannot_be_kept_with_is_refused(settings: list[str], told: str, tmp_path: Path):
    done = alone("run", "fig1c", *asked("exchange.deadline=0.5", *settings), "--output", tmp_path / "x.h5")
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
