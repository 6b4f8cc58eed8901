"""Whole runs with a deadline: what is late is missing and counted, and a rank that was stopped takes part again."""

from __future__ import annotations

import os
import re
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
from test_figures import script

STOPPED = 2
"""The rank that is stopped."""
TELLING = """
from pathlib import Path
from mpi_resmtl.attacks import attack
from mpi_resmtl.rules import NoParameters
import numpy as np

@attack("telling", NoParameters, knows="nothing")
def telling(parameters, stage):
    def say(known):
        if known.iteration == 100:
            Path("iterates").touch()
        if known.iteration == 6000 and stage.first_agent == 0:
            Path("goes-on").touch()
        return np.full((len(stage.source), stage.parameters), 1e3, stage.dtype)
    return say
"""
"""Rank 0 tells that it has gone on without the stopped rank."""


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


def wait_for(path: Path, job: subprocess.Popen) -> None:
    """Until a file is there."""
    begun = time.monotonic()
    while not path.exists():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() - begun < 100
        time.sleep(0.005)


def started(folder: Path, *arguments: object) -> tuple[subprocess.Popen, dict[int, int]]:
    """A run on three ranks with attackers that tell how far it is, and these ranks, once it iterates."""
    (folder / "telling.py").write_text(TELLING)
    line = command(3, "run", "fig1c", "--plugin", "telling", "--set", "byzantine.attack=telling", *arguments)
    job = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables(), cwd=folder
    )
    wait_for(folder / "iterates", job)
    return job, ranks(job)


def asked(*settings: str) -> list[str]:
    """Arguments that set these."""
    return [word for setting in settings for word in ("--set", setting)]


def test_a_rank_that_is_stopped_is_missed_and_takes_part_again(tmp_path: Path):
    output = tmp_path / "stopped.h5"
    settings = asked("rules=loss,average", "iterations=10000", "record.every=100", "exchange.deadline=0.3")
    job, there = started(tmp_path, *settings, "--output", output)
    os.kill(there[STOPPED], signal.SIGSTOP)
    wait_for(tmp_path / "goes-on", job)
    os.kill(there[STOPPED], signal.SIGCONT)
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    assert "messages are missing; /rule/NAME/missing says which" in said
    checked = alone("verify", "--plugin", "telling", output, cwd=tmp_path)
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
        totals = [int(np.nansum(missing[:, ~own])), int(np.nansum(missing[:, own]))]
        # All have come together again before the run ends.
        assert missing[-1, hears].sum() == 0
        assert np.isfinite(file["rule/loss/loss"][:, ~byzantine]).all()
    page = tmp_path / "page.html"
    done = script("report", output, "-o", page)
    assert done.returncode == 0, done.stderr
    shown = page.read_text().partition("messages that were late")[2].partition("</table>")[0]
    numbers = list(map(int, re.findall("<td>([0-9]+)</td>", shown)))
    assert [sum(numbers[0::2]), sum(numbers[1::2])] == totals


@pytest.mark.parametrize("attack", ["uniform", "silent", "drift-blind"])
def test_a_deadline_that_nobody_misses_changes_no_bit(attack: str, tmp_path: Path):
    settings = asked("rules=loss,median", "iterations=60", f"byzantine.attack={attack}", "rule.excess=cap")
    plain, timed = tmp_path / "plain.h5", tmp_path / "timed.h5"
    assert mpirun(2, "run", "fig1c", *settings, "--output", plain).returncode == 0
    done = mpirun(3, "run", "fig1c", *settings, "--set", "exchange.deadline=60", "--output", timed)
    assert done.returncode == 0, done.stderr
    assert "missing" not in done.stdout
    with h5py.File(timed, "r+") as file:
        for rule in ("loss", "median"):
            values = file[f"rule/{rule}/missing"][()]
            assert np.nansum(values) == 0
            del file[f"rule/{rule}/missing"]
    assert_identical(plain, timed)


def test_a_run_with_a_deadline_is_saved_and_goes_on_from_there(tmp_path: Path):
    plain, saved = tmp_path / "plain.h5", tmp_path / "saved.h5"
    settings = asked("rules=none,loss", "iterations=10000", "record.every=100", "exchange.deadline=60")
    job, there = started(tmp_path, *settings, "--output", saved)
    os.kill(there[1], signal.SIGUSR1)
    said = job.communicate(timeout=120)[0]
    assert job.returncode, said
    assert "--resume goes on from there" in said
    same = ["run", "fig1c", "--plugin", "telling", *asked("byzantine.attack=telling"), *settings]
    done = mpirun(2, *same, "--resume", "--output", saved, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mpirun(1, *same, "--output", plain, cwd=tmp_path).returncode == 0
    assert_identical(plain, saved)


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
