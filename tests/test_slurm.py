"""Runs submitted to a real SLURM give what mpirun gives; status and submit know what became of them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import h5py
import pytest
from mpirun import alone, mpirun
from results import assert_identical
from slurm import CPUS, MAX_ARRAY, Cluster, started, until  # noqa: F401  (the fixture `cluster`)
from test_readme import OF_JOBS, shown

PROJECT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "mpi_resmtl")
SHORT = ("--set", "iterations=40", "--set", "rules=none,loss")
SEEDS = ("--set", "seed=0,1,2,3,4,5")
LONG = ("--set", "iterations=200000", "--set", "rules=loss", "--set", "record.every=1000", "--set", "record.weights=0")
"""Some ten seconds on one rank."""
FAILING = "seed3"


@dataclass
class Submitted:
    """A folder of results and the job that fills it."""

    folder: Path
    job: str


def program(cluster: Cluster, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`mpi-resmtl arguments` where there is a SLURM."""
    return cluster.run(*PROGRAM, *arguments, cwd=cwd)


def submit(cluster: Cluster, *arguments: object, cwd: Path) -> Submitted:
    """`mpi-resmtl submit arguments`; the folder is the last of them."""
    done = program(cluster, "submit", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return Submitted(cwd / str(arguments[-1]), re.match(r"job (\d+): ", done.stdout)[1])


def table(cluster: Cluster, folder: Path) -> tuple[int, list[list[str]]]:
    """The exit status of `mpi-resmtl status` and its lines, split into words."""
    done = program(cluster, "status", folder, cwd=folder)
    assert "Traceback" not in done.stderr
    return done.returncode, [line.split() for line in done.stdout.splitlines()]


def running(cluster: Cluster, mine: Submitted) -> None:
    """Wait until a job's run has begun."""
    log = mine.folder / "jobs" / "fig1c.log"
    until(lambda: log.exists() and "the run starts" in log.read_text(), 120, cluster.logs)


def gone_on(mine: Submitted) -> bool:
    """Whether a job's run has gone on where it was saved, and not begun anew."""
    return "fig1c.h5: goes on after iteration " in (mine.folder / "jobs" / "fig1c.log").read_text()


@pytest.fixture(scope="module")
def work(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Submitted]:
    """One job of each kind, all submitted at once; each test waits for its own."""
    cwd = tmp_path_factory.mktemp("slurm jobs")
    (cwd / "told.py").write_text(
        "import os\n"
        "rank, threads = (os.environ.get(name) for name in ('OMPI_COMM_WORLD_RANK', 'OMP_NUM_THREADS'))\n"
        "open(f'rank{rank}', 'w').write(f'{threads} ' + ' '.join(map(str, sorted(os.sched_getaffinity(0)))))\n"
    )
    two, short = ("--nodes", 2, "--ranks-per-node", 2), ("--time", 10, *SHORT, "--output")
    one = ("--ranks-per-node", 2, *short)
    limit = submit(cluster, "fig1c", "--time", 1, "--ranks-per-node", 1, *LONG, "--output", "limit", cwd=cwd)
    running(cluster, limit)
    # Its minute goes by while the others work.
    cluster.asked("scancel", "--signal=STOP", f"{limit.job}.0")
    found = {
        "limit": limit,
        "srun": submit(cluster, "fig1c", *two, *short, "srun", cwd=cwd),
        "mpirun": submit(cluster, "fig1c", "--launcher", "mpirun", *two, *short, "mpirun", cwd=cwd),
        "array": submit(cluster, "fig1c", "--array", "--sbatch", "hold", *SEEDS, *one, "array", cwd=cwd),
        "sweep": submit(cluster, "fig1c", "--groups", 2, *SEEDS, *one, "sweep", cwd=cwd),
        "strong": submit(cluster, "fig1c", "--scaling", "strong", *two, *short, "strong", cwd=cwd),
        "weak": submit(cluster, "fig1c", "--scaling", "weak", "--set", "byzantine.count=2", *one, "weak", cwd=cwd),
        "threads": submit(
            cluster, "fig1c", "--threads", 2, "--launcher", "mpirun", "--plugin", "told", *one, "threads", cwd=cwd
        ),
    }
    # What was checked when it was submitted can still go wrong where it runs.
    (found["array"].folder / "jobs" / f"{FAILING}.toml").write_text("seed = -1\n")
    cluster.asked("scontrol", "release", found["array"].job)
    script = (PROJECT / "jobs" / "slurm.sh", "run", "fig1c", *SHORT)
    grown = ("--set", "task.agents=%n")
    by_hand = ("sbatch", "--parsable", "--time=10", "--ntasks-per-node=2", f"--output={cwd}/hand-%j.log")
    for name, options, arguments in (
        ("hand", ("--array=4-5",), (*script, "--set", "seed=%a", "--output", cwd / "hand-%a.h5")),
        (
            "hand-scaling",
            ("--nodes=2",),
            (script[0], "--ranks", "1,3", "--agents", "50", *script[1:], *grown, "--output", cwd / "hand-%r.h5"),
        ),
    ):
        found[name] = Submitted(cwd, cluster.asked(*by_hand, *options, *arguments, cwd=PROJECT).strip())
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory):
    """A function: the result file of fig1c with some settings from a plain mpirun on two ranks."""
    cwd = tmp_path_factory.mktemp("plain")

    def run(*settings: str) -> Path:
        name = "-".join(settings).replace("=", "_") or "fig1c"
        if not (cwd / f"{name}.h5").exists():
            options = [part for setting in settings for part in ("--set", setting)]
            done = mpirun(2, "run", "fig1c", *SHORT, *options, "--output", f"{name}.h5", cwd=cwd)
            assert done.returncode == 0, done.stderr
        return cwd / f"{name}.h5"

    return run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result file of the long run, never stopped."""
    path = tmp_path_factory.mktemp("unbroken") / "fig1c.h5"
    done = mpirun(1, "run", "fig1c", *LONG, "--output", path)
    assert done.returncode == 0, done.stderr
    return path


def test_a_job_that_hits_its_time_limit_is_saved_and_requeued_and_ends_right(cluster: Cluster, work, unbroken: Path):
    mine = work["limit"]
    log = mine.folder / "jobs" / "fig1c.log"
    until(lambda: "warned that the time is up" in log.read_text(), 90, cluster.logs)
    cluster.asked("scancel", "--signal=CONT", f"{mine.job}.0")
    assert cluster.wait(mine.job) == ["COMPLETED"], log.read_text()
    assert "stopped by SIGUSR1" in log.read_text()
    assert "goes back into the queue" in log.read_text()
    assert gone_on(mine)
    assert_identical(mine.folder / "fig1c.h5", unbroken)
    assert "Restarts=1" in cluster.asked("scontrol", "show", "job", mine.job)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_job_on_two_nodes_gives_the_bits_that_mpirun_gives(launcher: str, cluster: Cluster, work, plain):
    mine = work[launcher]
    assert cluster.wait(mine.job) == ["COMPLETED"], (mine.folder / "jobs" / "fig1c.log").read_text()
    assert_identical(mine.folder / "fig1c.h5", plain())
    with h5py.File(mine.folder / "fig1c.h5") as file:
        assert file.attrs["ranks"] == 4
    script = (mine.folder / "jobs" / "job.sh").read_text()
    assert "#SBATCH --nodes=2\n" in script
    assert "#SBATCH --ntasks-per-node=2\n" in script
    assert table(cluster, mine.folder) == (
        0,
        [
            ["cell", "ranks", "state", "job", "SLURM"],
            ["fig1c", "4", "done", mine.job, "COMPLETED"],
            ["1", "cell:", "1", "done"],
        ],
    )


def test_an_array_of_six_tells_the_one_cell_that_fails_and_submitting_again_runs_just_that(
    cluster: Cluster, work, plain
):
    mine = work["array"]
    assert sorted(cluster.wait(mine.job)) == ["COMPLETED"] * 5 + ["FAILED"]
    status, (_, *rows, total) = table(cluster, mine.folder)
    assert status == 1
    assert total == ["6", "cells:", "5", "done,", "1", "failed"]
    assert {row[0]: row[2] for row in rows} == {f"seed{n}": "failed" if n == 3 else "done" for n in range(6)}
    (wrong,) = [row for row in rows if row[2] == "failed"]
    assert wrong[3:5] == [f"{mine.job}_3", "FAILED"]
    assert "exit status 2: mpi-resmtl:" in " ".join(wrong)
    for seed in (0, 5):
        assert_identical(mine.folder / f"seed{seed}.h5", plain(f"seed={seed}"))

    again = ("submit", "fig1c", "--array", *SEEDS, "--ranks-per-node", 2, "--time", 10, *SHORT, "--output", mine.folder)
    done = program(cluster, *again, cwd=mine.folder.parent)
    assert done.returncode == 2
    assert "holds another run of seed3" in done.stderr
    done = program(cluster, *again[:-2], "--overwrite", *again[-2:], cwd=mine.folder.parent)
    assert done.returncode == 0, done.stderr
    job = re.match(r"job (\d+): an array of 1 for 1 cells", done.stdout)[1]
    assert cluster.wait(job) == ["COMPLETED"]
    assert_identical(mine.folder / "seed3.h5", plain("seed=3"))
    status, (*_, total) = table(cluster, mine.folder)
    assert (status, total) == (0, ["6", "cells:", "6", "done"])
    assert "there already" in program(cluster, *again, cwd=mine.folder.parent).stdout
    swept = program(cluster, "sweep", mine.folder / "sweep.toml", "--output", mine.folder, cwd=mine.folder)
    assert "6 cells, 6 of them there already" in swept.stdout, swept.stderr


def test_a_sweep_in_one_job_runs_its_cells_side_by_side(cluster: Cluster, work, plain):
    mine = work["sweep"]
    assert cluster.wait(mine.job) == ["COMPLETED"]
    log = (mine.folder / "jobs" / "fig1c.log").read_text()
    assert "6 cells in 2 groups of ranks" in log
    assert_identical(mine.folder / "seed5.h5", plain("seed=5"))
    status, (_, *rows, total) = table(cluster, mine.folder)
    assert (status, total) == (0, ["6", "cells:", "6", "done"])
    assert {row[3] for row in rows} == {mine.job}


def test_strong_scaling_runs_one_experiment_on_more_and_more_ranks(cluster: Cluster, work, plain):
    mine = work["strong"]
    assert cluster.wait(mine.job) == ["COMPLETED"]
    for ranks in (1, 2, 4):
        assert_identical(mine.folder / f"strong-{ranks}.h5", plain())
    status, lines = table(cluster, mine.folder)
    assert status == 0
    measured = lines[lines.index(["3", "cells:", "3", "done"]) + 2 :]
    assert [(int(row[0]), int(row[1])) for row in measured] == [(1, 100), (2, 100), (4, 100)]
    assert [float(measured[0][3]), measured[0][4]] == [1.0, "100%"]
    first, last = float(measured[0][2]), float(measured[-1][2])
    assert float(measured[-1][3]) == pytest.approx(first / last, rel=0.02, abs=0.01)


def test_weak_scaling_grows_the_agents_with_the_ranks(cluster: Cluster, work, plain):
    mine = work["weak"]
    assert cluster.wait(mine.job) == ["COMPLETED"]
    assert_identical(mine.folder / "weak-2.h5", plain("task.agents=200", "byzantine.count=4"))
    _, lines = table(cluster, mine.folder)
    assert [row[:2] for row in lines[-2:]] == [["1", "100"], ["2", "200"]]


def test_ranks_get_the_threads_and_cores_that_slurm_grants(cluster: Cluster, work, plain):
    mine = work["threads"]
    assert cluster.wait(mine.job) == ["COMPLETED"], (mine.folder / "jobs" / "fig1c.log").read_text()
    assert_identical(mine.folder / "fig1c.h5", plain())
    for rank in (0, 1):
        threads, *cores = (mine.folder.parent / f"rank{rank}").read_text().split()
        assert threads == "2"
        assert len(cores) <= 2


def test_the_template_runs_by_hand_as_an_array_over_seeds(cluster: Cluster, work, plain):
    mine = work["hand"]
    assert cluster.wait(mine.job) == ["COMPLETED"] * 2
    for seed in (4, 5):
        assert_identical(mine.folder / f"hand-{seed}.h5", plain(f"seed={seed}"))


def test_the_template_runs_by_hand_as_a_study_of_scaling(cluster: Cluster, work, plain):
    mine = work["hand-scaling"]
    assert cluster.wait(mine.job) == ["COMPLETED"]
    for ranks in (1, 3):
        assert_identical(mine.folder / f"hand-{ranks}.h5", plain(f"task.agents={50 * ranks}"))


@pytest.mark.parametrize(("launcher", "nodes"), [("srun --mpi=pmix", 1), ("mpirun", 2)])
def test_a_cancelled_job_leaves_a_state_from_which_submitting_it_again_goes_on(
    launcher: str, nodes: int, cluster: Cluster, tmp_path: Path, unbroken: Path
):
    options = ("--time", 10, "--nodes", nodes, "--ranks-per-node", 1, "--launcher", launcher, *LONG)
    mine = submit(cluster, "fig1c", *options, "--output", "cancelled", cwd=tmp_path)
    running(cluster, mine)
    sleep(1)
    cluster.asked("scancel", mine.job)
    assert cluster.wait(mine.job) == ["CANCELLED"]
    assert (mine.folder / "fig1c.h5.checkpoint").exists()
    status, (_, row, _) = table(cluster, mine.folder)
    assert (status, row[2:5]) == (0, ["stopped", mine.job, "CANCELLED"])
    again = submit(cluster, "fig1c", *options, "--output", "cancelled", cwd=tmp_path)
    assert cluster.wait(again.job) == ["COMPLETED"], (mine.folder / "jobs" / "fig1c.log").read_text()
    assert gone_on(mine)
    assert_identical(mine.folder / "fig1c.h5", unbroken)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It ended with status 2 and one line of ours that has these words."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line


WRONG = [
    (["--partition", "nope"], ["--partition nope", "main (2 nodes of 4 CPUs, up to 01:00:00)", "long (1 node"]),
    (["--nodes", "3"], ["--nodes 3", "partition main has 2 nodes; --nodes 2"]),
    (["--nodes", "2", "--partition", "long"], ["partition long has 1 node; --nodes 1"]),
    (["--ranks-per-node", str(CPUS + 1)], ["have 4 CPUs", "--ranks-per-node 4, or --nodes 2 --ranks-per-node 3"]),
    (["--threads", "3"], ["2 ranks a node of 3 cores each", "have 4 CPUs", "--ranks-per-node 1, or --nodes 2"]),
    (["--threads", "5"], ["have 4 CPUs", "--threads 4"]),
    (
        ["--time", "2:00:00"],
        ["partition main allows 01:00:00", "--time 01:00:00, or --partition long"],
    ),
    (["--time", "soon"], ["--time soon", "minutes, hours:minutes:seconds"]),
    (["--time", "0:30"], ["--time 0:30", "at least 1"]),
    (["--time", "UNLIMITED"], ["--time UNLIMITED", "expected a limit"]),
    (
        ["--set", "checkpoint.minutes=30"],
        ["--time 00:10:00 is over before a run is saved", "checkpoint.minutes = 30", "or --set checkpoint.minutes="],
    ),
    (["--nodes", "0"], ["--nodes 0", "1 or more"]),
    (["--sbatch", "constraint=gpu"], ["SLURM refuses the job", "feature", "partitions main"]),
    (["--sbatch", "nonsense=1"], ["SLURM refuses the job", "nonsense"]),
    (
        ["--nodes", "2", "--set", "task.agents=3", "--set", "byzantine.count=0", "--set", "task.noisy_agents=0"],
        ["4 ranks are more than the 3 agents", "at most 3, such as --nodes 2 --ranks-per-node 1"],
    ),
    (["--array"], ["--array: fig1c is no sweep", "--set seed=0,1,2"]),
    (["--array", "--set", f"seed={','.join(map(str, range(30)))}"], ["30 elements", f"--array {MAX_ARRAY}"]),
    (["--array", "-1", "--set", "seed=0,1"], ["--array -1"]),
    (["--groups", "3", "--set", "seed=0,1"], ["--groups 3", "the number of ranks, 2"]),
    (["--set", "seed=0,1", "--set", "byzantine.count=0,100"], ["uniform-100-seed0: all 100 agents are Byzantine"]),
    (["--scaling", "strong", "--set", "seed=0,1"], ["--scaling strong", "is a sweep"]),
    (["--scaling", "weak", "--set", "byzantine.agents=1"], ["byzantine.agents", "give byzantine.count"]),
    (["--set", "itrations=5"], ["did you mean 'iterations'?"]),
    (["--output", "no/such/folder"], ["the folder", "does not exist"]),
    (["--output", "file"], ["is a file, not a folder"]),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_what_cannot_run_is_refused_before_anything_is_submitted(
    options: list[str], words: list[str], cluster: Cluster, tmp_path: Path
):
    (tmp_path / "file").write_text("precious")
    before = cluster.asked("squeue", "--noheader", "--format=%i")
    sane = ("--nodes", "1", "--ranks-per-node", "2", "--time", "10", "--output", tmp_path / "results")
    refused(program(cluster, "submit", "fig1c", *sane, *options, cwd=tmp_path), *words)
    assert set(cluster.asked("squeue", "--noheader", "--format=%i").split()) <= set(before.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_dry_run_writes_the_script_and_submits_nothing_and_sbatch_takes_it(cluster: Cluster, tmp_path: Path, plain):
    sane = ("--ranks-per-node", 2, "--time", "1:00", "--account", "mine", "--sbatch", "qos=long queue", *SHORT)
    done = program(cluster, "submit", "fig1c", *sane, "--dry-run", "--output", "dry", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "dry" / "jobs" / "job.sh"
    assert done.stdout == path.read_text()
    assert f"not submitted; sbatch {path}" in done.stderr
    for line in ("--account=mine", '--qos="long queue"', "--time=00:01:00", "--signal=B:USR1@15"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert not (tmp_path / "dry" / "jobs" / "submitted.json").exists()
    refused(program(cluster, "status", "dry", cwd=tmp_path), "neither a sweep nor anything that was submitted")
    job = cluster.asked("sbatch", "--parsable", path, cwd="/").strip()
    assert cluster.wait(job) == ["COMPLETED"]
    assert_identical(tmp_path / "dry" / "fig1c.h5", plain())


def test_a_folder_whose_job_is_in_the_queue_takes_no_second_one(cluster: Cluster, tmp_path: Path):
    options = ("--ranks-per-node", 2, "--time", 10, "--sbatch", "hold", "--output", "held")
    mine = submit(cluster, "fig1c", *options, cwd=tmp_path)
    status, (_, row, _) = table(cluster, mine.folder)
    assert (status, row[2:5]) == (0, ["waiting", mine.job, "PENDING"])
    refused(program(cluster, "submit", "fig1c", *options, cwd=tmp_path), f"job {mine.job} is PENDING", "scancel")
    cluster.asked("scancel", mine.job)
    status, (_, row, _) = table(cluster, mine.folder)
    assert (status, row[2:5]) == (0, ["stopped", mine.job, "CANCELLED"])
    assert submit(cluster, "fig1c", *options, cwd=tmp_path).job != mine.job


NO_SLURM = {"PATH": f"{Path(sys.executable).parent}:/nowhere"}


@pytest.mark.parametrize("system", ["workstation", "slurm"])
def test_checks_of_reframe_find_the_known_values(system: str, cluster: Cluster, tmp_path: Path):
    """Not those of speed, which another program on the machine would disturb."""
    command = [Path(sys.executable).with_name("reframe"), "-C", PROJECT / "jobs" / "reframe_settings.py"]
    command += ["--system", system, "-c", PROJECT / "jobs" / "reframe_checks.py", "-n", "Figure1c", "-r"]
    done = cluster.run(*command, "--prefix", tmp_path, cwd=tmp_path)
    assert "Ran 2/2 test case(s) from 2 check(s) (0 failure(s)" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout


def test_the_commands_of_readme_that_submit_a_job_run_as_they_are_written(cluster: Cluster, tmp_path: Path):
    asked, told = (shlex.split(line) for line in shown() if line.startswith(OF_JOBS))
    done = program(cluster, *asked[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert cluster.wait(re.match(r"job (\d+): ", done.stdout)[1]) == ["COMPLETED"]
    done = program(cluster, *told[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    with h5py.File(tmp_path / "job" / "fig1c.h5") as file:
        assert file.attrs["ranks"] == 4


def test_without_slurm_submit_says_what_works_here_and_a_dry_run_writes_the_script(tmp_path: Path):
    sane = ("submit", "fig1c", "--nodes", 2, "--ranks-per-node", 3, "--time", 60)
    done = alone(*sane, "--set", "seed=3", cwd=tmp_path, **NO_SLURM)
    refused(done, "no SLURM on this machine", "mpirun -n 6 mpi-resmtl run fig1c --set seed=3", "--dry-run")
    assert list(tmp_path.iterdir()) == []
    refused(alone(*sane, "--set", "seed=3,4", cwd=tmp_path, **NO_SLURM), "mpi-resmtl sweep fig1c --set seed=3,4")
    done = alone(*sane, "--dry-run", cwd=tmp_path, **NO_SLURM)
    assert done.returncode == 0, done.stderr
    assert "nor checked by SLURM" in done.stderr
    assert "#SBATCH --nodes=2\n" in (tmp_path / "fig1c" / "jobs" / "job.sh").read_text()


def test_without_slurm_status_tells_what_the_jobs_noted(tmp_path: Path):
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    names = ["a", "b", "c", "d", "e"]
    record = {"job": "7", "array": True, "elements": 5, "scaling": None, "cells": names, "ranks": [2] * 5}
    (jobs / "submitted.json").write_text(json.dumps([record | {"sweep": False}]))
    (jobs / "a.toml").write_text("seed = 1\n")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["config"] = "seed = 1\n"
    for name, noted in (("b", "running 7_1"), ("c", "ended 7_2 1"), ("d", "stopped 7_3")):
        (jobs / f"{name}.state").write_text(noted)
    (jobs / "b.log").write_text("b: loss: 10 of 40\n")
    (jobs / "c.log").write_text("started\nmpi-resmtl: the disk is full\nmpirun noticed\n")
    done = alone("status", tmp_path, **NO_SLURM)
    assert done.returncode == 1
    assert [line.split()[:4] for line in done.stdout.splitlines()[1:6]] == [
        ["a", "2", "done", "7_0"],
        ["b", "2", "running", "7_1"],
        ["c", "2", "failed", "7_2"],
        ["d", "2", "stopped", "7_3"],
        ["e", "2", "waiting", "7_4"],
    ]
    assert "exit status 1: mpi-resmtl: the disk is full" in done.stdout
    assert done.stdout.splitlines()[-1] == "5 cells: 1 done, 1 running, 1 waiting, 1 stopped, 1 failed"


def test_ranks_that_do_not_know_of_one_another_are_refused(tmp_path: Path):
    done = alone("run", "fig1c", cwd=tmp_path, MPI_RESMTL_RANKS=2)
    refused(done, "2 ranks were started, but MPI sees 1", "launcher")
    assert list(tmp_path.iterdir()) == []
