"""Runs that were killed go on where they were saved, on any number of ranks, to the unbroken run's file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mpirun import alone, command, mpirun, variables
from results import assert_identical
from soak import CASES, soak

from mpi_resmtl import checkpoint

SHORT = ("--set", "iterations=100", "--set", "rules=none,loss")


def test_twenty_killed_runs_end_with_the_bits_of_unbroken_ones(tmp_path: Path):
    done = soak(tmp_path, kills=20, seed=1, names=list(CASES))
    assert sum(done.kills.values()) >= 20
    assert done.from_checkpoint > 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_run_and_says_so(number: signal.Signals, status: int, tmp_path: Path):
    output, whole = tmp_path / "run.h5", tmp_path / "whole.h5"
    settings = ("--set", "iterations=100000", "--set", "record.every=100", "--set", "rules=none,loss")
    job = subprocess.Popen(
        command(2, "run", "fig1c", *settings, "--output", output),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables(),
        start_new_session=True,
    )
    part = tmp_path / "run.h5.part"
    while not part.exists():
        assert job.poll() is None
        time.sleep(0.02)
    time.sleep(1.0)
    os.kill(job.pid, number)
    told = job.communicate(timeout=30)[0]
    assert job.returncode in (status, 1), told
    assert told.count("is saved at iteration") == 1
    assert "Traceback" not in told
    assert checkpoint.left(output)
    assert not output.exists()
    done = mpirun(3, "run", "fig1c", *settings, "--output", output, "--resume", timeout=300)
    assert done.returncode == 0, done.stderr
    assert alone("run", "fig1c", *settings, "--output", whole, timeout=300).returncode == 0
    assert_identical(output, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.h5", "whole.h5"]


def test_a_finished_run_resumed_stays_as_it_is(tmp_path: Path):
    output = tmp_path / "run.h5"
    assert alone("run", "fig1c", *SHORT, "--output", output).returncode == 0
    before = output.read_bytes()
    done = mpirun(2, "run", "fig1c", *SHORT, "--output", output, "--resume")
    assert done.returncode == 0, done.stderr
    assert "finished already" in done.stdout + done.stderr
    assert output.read_bytes() == before
