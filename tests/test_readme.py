"""Every command that README shows, run as it is written there, one after the other in a fresh copy of the project.

What takes long is made short by a program named `mpi-resmtl` that stands before the real one and adds settings to it.
Left out are the commands that set up an environment (`jobs/setup.sh`, `jobs/workstation.sh`, `tests/run.sh`), as these
tests run in one, and those that submit jobs, which tests/test_slurm.py runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mpirun import variables

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
COMMANDS = ("mpi-resmtl", "run_mpi", "python", "bash", "sbatch", "source", "pip")
SET_UP = ("bash jobs/workstation.sh", "bash tests/run.sh")
OF_JOBS = ("sbatch ", "mpi-resmtl submit ", "mpi-resmtl status ")
DIGITS = {
    "epochs": 1,
    "task.epoch_iterations": 2,
    "task.train_images": 32,
    "task.test_images": 16,
    "task.train_images_measured": 16,
    "task.batch": "[4,8]",
}
SHORTER = {
    "run fig1": {"iterations": 50},
    "run fig2": {"epochs": 1, "task.data": "stand-in"},
    "run fig3-4": DIGITS | {"task.data": "stand-in"},
    "sweep theory-regression": {"seed": "0,1,2", "iterations": 60, "byzantine.count": "0,5"},
    "run regression-groups": {"iterations": 40},
    "sweep arena-localisation": {
        "iterations": 20,
        "rules": "none,loss,median",
        "byzantine.attack": "uniform,null-space",
        "byzantine.count": "0,20",
        "seed": "0,1",
    },
}
OPTIONS = {
    "bench step": ["--agents", "100", "--repeats", "1"],
    "bench rules": ["--parameters", "100", "--repeats", "1"],
    "bench exchange": ["--bytes", "16", "--repeats", "1"],
    "bench record": ["--megabytes", "1", "--repeats", "1"],
    "bench scale --json": ["--repeats", "1", "--agents", "100", "--edges", "100,200", "--study", "target-localization"],
    "bench scale --sweep": ["--repeats", "1"],
}
SHIM = """#!{python}
import os, sys
asked = " ".join(sys.argv[1:])
more = [word for start, words in {more!r} for word in words if asked.startswith(start)]
os.execv({real!r}, [{real!r}, *sys.argv[1:], *more])
"""


def shown() -> list[str]:
    """The command lines in README's indented blocks, in their order."""
    lines = [line.removeprefix("    ") for line in README.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.split(" ")[0] in COMMANDS]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's files, with the program that makes long commands short beside it."""
    folder = tmp_path_factory.mktemp("readme") / "mpi_resmtl"
    for name in ("analysis", "jobs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shim = folder.parent / "bin" / "mpi-resmtl"
    shim.parent.mkdir()
    more = [(start, [w for k, v in keys.items() for w in ("--set", f"{k}={v}")]) for start, keys in SHORTER.items()]
    real = str(Path(sys.executable).with_name("mpi-resmtl"))
    shim.write_text(SHIM.format(python=sys.executable, real=real, more=[*more, *OPTIONS.items()]))
    shim.chmod(0o755)
    return folder


def test_readme_shows_the_commands_that_are_looked_for():
    commands = shown()
    assert set(SET_UP) <= set(commands)
    assert sum(command.startswith("python analysis/") for command in commands) >= 8
    for start in (*SHORTER, *OPTIONS):
        assert any(start in command for command in commands) or start in ("bench rules", "run fig1"), start


def test_every_command_of_readme_runs_as_it_is_written(copy: Path):
    lines = [line for line in shown() if line not in SET_UP and not line.startswith(OF_JOBS)]
    script = ["set -e", "source jobs/env.sh", f'PATH="{copy.parent}/bin:$PATH"']
    script += [part for line in lines for part in (f"echo {_quoted('== ' + line)} >&2", line)]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=copy,
        env=variables() | {"VENV": str(Path(sys.executable).parents[1]), "MPI_RESMTL_DATA": str(copy / "no data")},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert re.findall(r"^== (.*)$", done.stderr, re.M) == lines
    for name in re.findall(r"-o (\S+\.html)", README):
        assert (copy / name).stat().st_size > 10_000
    drawn = {path.name for path in (copy / "figures").glob("*.png")}
    assert {"figure2.png", "figure3.png", "figure4.png", "ranking.png", "theorem1.png", "cost.png"} <= drawn


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_folders_that_readme_names_are_there():
    for name in set(re.findall(r"`((?:jobs|analysis|tests|mpi_resmtl)/[\w./-]*)`", README)):
        assert (PROJECT / name).exists(), name
