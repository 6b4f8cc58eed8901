"""What is saved of a run, what survives kills, and what is said and done when a run cannot be saved or resumed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpirun import alone, command, mpirun, variables
from results import assert_identical
from soak import WAYS, soak

from mpi_resmtl import checkpoint
from mpi_resmtl.attacks import Laid, Remembered
from mpi_resmtl.checkpoint import Saved
from mpi_resmtl.errors import UserError
from mpi_resmtl.keeper import stages
from mpi_resmtl.recorder import Position
from mpi_resmtl.tasks.blocks import later
from mpi_resmtl.tasks.regression import Samples

SHORT = ["run", "fig1c", "--set", "iterations=60", "--set", "rules=none,loss", "--set", "record.models=20"]

STOPPED = """
import os, signal, sys
from mpi_resmtl import adversary, signals
signals._MOST_ITERATIONS, signals._SECONDS_BETWEEN_VOTES = 1, 0.0
speak = adversary.Adversary.speak
def stopping(self, moment, *rest):
    if moment.iteration == {iteration}:
        os.kill(os.getpid(), signal.{signal})
    return speak(self, moment, *rest)
adversary.Adversary.speak = stopping
from mpi_resmtl.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line, but that every rank gets a signal in some iteration."""


def stopping(iteration: int, number: str = "SIGUSR1") -> list[str]:
    """The program that is stopped in an iteration."""
    return [sys.executable, "-c", STOPPED.format(iteration=iteration, signal=number)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of SHORT."""
    path = tmp_path_factory.mktemp("unbroken") / "run.h5"
    assert alone(*SHORT, "--output", path).returncode == 0
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The output of a run of SHORT on two ranks that was stopped after two checkpoints."""
    output = tmp_path / "run.h5"
    done = mpirun(2, *SHORT, "--set", "checkpoint.every=20", "--output", output, program=stopping(50))
    assert done.returncode == 138, done.stderr
    return output


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """The run ended with one line that has these words, and nobody's traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("mpi-resmtl: ")]
    assert done.returncode not in (0, 143), done.stdout
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines
    assert "Traceback" not in done.stderr


def test_killed_runs_end_with_the_bits_of_unbroken_ones_however_they_are_killed(tmp_path: Path):
    # With this seed the first blow hits a rank in iteration 520 of 900, wherever the others fall on this machine.
    done = soak(tmp_path, kills=20, seed=7, names=["localisation", "attack with state", "activity"])
    assert done.kills == dict.fromkeys(WAYS, 4)
    assert done.from_checkpoint > 0


def test_how_often_a_run_is_saved_changes_no_bit(unbroken: Path, tmp_path: Path):
    for every in (1, 7):
        path = tmp_path / f"{every}.h5"
        assert alone(*SHORT, "--set", f"checkpoint.every={every}", "--output", path).returncode == 0
        assert_identical(unbroken, path)


def test_a_checkpoint_where_a_block_of_records_ends_changes_no_bit(tmp_path: Path):
    long = ["run", "fig1c", "--set", "iterations=4200", "--set", "rules=loss"]
    for name, every in (("whole", 0), ("saved", 2048)):
        done = mpirun(2, *long, "--set", f"checkpoint.every={every}", "--output", tmp_path / f"{name}.h5")
        assert done.returncode == 0, done.stderr
    assert_identical(tmp_path / "whole.h5", tmp_path / "saved.h5")


def test_two_checkpoints_are_kept_and_none_after_the_end(unbroken: Path, saved: Path):
    there = {path.name for path in saved.parent.iterdir()}
    assert there == {"run.h5.part", "run.h5.checkpoint", "run.h5.checkpoint.before"}
    newest, before = (checkpoint.read(path).position for path in checkpoint.left(saved))
    assert before == Position(0, 40)
    assert newest.rule == 0
    assert 50 <= newest.iteration < 60
    assert mpirun(2, *SHORT, "--resume", "--output", saved).returncode == 0
    assert [path.name for path in saved.parent.iterdir()] == ["run.h5"]
    assert_identical(unbroken, saved)


def test_traffic_of_a_run_resumed_on_as_many_ranks_is_that_of_an_unbroken_one(saved: Path, tmp_path: Path):
    whole = tmp_path / "whole.h5"
    assert mpirun(2, *SHORT, "--output", whole).returncode == 0
    assert mpirun(2, *SHORT, "--resume", "--output", saved).returncode == 0
    for rule in ("none", "loss"):
        np.testing.assert_array_equal(traffic(saved, rule), traffic(whole, rule))


def test_traffic_of_a_run_resumed_on_other_ranks_is_what_each_of_them_sent(saved: Path, tmp_path: Path):
    three, stopped_at = tmp_path / "three.h5", checkpoint.read(checkpoint.newest(saved)).position.iteration
    assert mpirun(3, *SHORT, "--output", three).returncode == 0
    two = tmp_path / "two.h5"
    assert mpirun(2, *SHORT, "--output", two).returncode == 0
    assert mpirun(3, *SHORT, "--resume", "--output", saved).returncode == 0
    expected = traffic(three, "none") * (60 - stopped_at) // 60
    expected[:2] += traffic(two, "none") * stopped_at // 60
    np.testing.assert_array_equal(traffic(saved, "none"), expected)
    np.testing.assert_array_equal(traffic(saved, "loss"), traffic(three, "loss"))
    with h5py.File(saved) as file:
        assert file.attrs["ranks"] == 3
        assert f'"iteration": {stopped_at}, "ranks": 3' in file.attrs["stages"]


def traffic(path: Path, rule: str) -> np.ndarray:
    with h5py.File(path) as file:
        return file[f"rule/{rule}/traffic"][()]


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_ends_a_run_with_one_line_and_a_status_of_its_own(name: str, status: int, tmp_path: Path):
    output = tmp_path / "run.h5"
    line = [*stopping(30, name), *SHORT, "--output", str(output)]
    done = subprocess.run(line, capture_output=True, text=True, env=variables(), timeout=60)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1
    assert f"stopped by {name}" in done.stderr
    assert "--resume goes on" in done.stderr
    assert not output.exists()


def test_mpirun_forwards_what_ends_a_run(unbroken: Path, tmp_path: Path):
    """Open MPI hands SIGUSR1 on, and makes SIGTERM of SIGTERM and SIGINT; its own status after these is 1.

    It then waits for a second, or what it is told (here and in jobs/env.sh), and as long again once ranks end.
    """
    patient = variables() | {"OMPI_MCA_odls_base_sigkill_timeout": "5"}
    output = tmp_path / "run.h5"
    arguments = ["run", "fig1c", "--set", "iterations=4000000", "--set", "rules=loss", "--set", "record.every=10000"]
    arguments += ["--set", "record.weights=0"]
    for number, status in ((signal.SIGUSR1, 138), (signal.SIGTERM, 1), (signal.SIGINT, 1)):
        resume = ["--resume"] if checkpoint.left(output) else []
        line = command(2, *arguments, "--set", "checkpoint.every=2000", "--output", output, *resume)
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=patient)
        began = time.time()
        while not (checkpoint.newest(output).exists() and checkpoint.newest(output).stat().st_mtime > began):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
        assert process.returncode in (status, 128 + number), told
        assert told.count("mpi-resmtl: stopped by") == 1, told


def test_a_finished_run_resumed_says_so_and_changes_nothing(unbroken: Path):
    before = unbroken.read_bytes()
    done = mpirun(2, *SHORT, "--resume", "--output", unbroken)
    assert done.returncode == 0, done.stderr
    assert "is finished already" in done.stdout
    assert unbroken.read_bytes() == before
    refused(alone(*SHORT, "--set", "seed=1", "--resume", "--output", unbroken), "seed = 0 there, = 1 asked for")


def test_without_a_checkpoint_a_run_starts_at_its_beginning(unbroken: Path, tmp_path: Path):
    output = tmp_path / "run.h5"
    output.with_name("run.h5.part").write_text("of a run that was killed before it saved anything")
    done = alone(*SHORT, "--resume", "--output", output)
    assert done.returncode == 0, done.stderr
    assert "there is no checkpoint" in done.stdout
    assert_identical(unbroken, output)


def test_what_was_saved_is_not_lost_by_a_run_that_does_not_resume_it(saved: Path):
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    refused(alone(*SHORT, "--output", saved), "--resume goes on with it", "--overwrite")
    refused(alone(*SHORT, "--set", "byzantine.count=7", "--resume", "--output", saved), "byzantine.count = 20 there")
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before
    done = alone(*SHORT, "--overwrite", "--output", saved)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in saved.parent.iterdir()] == ["run.h5"]


def test_keys_that_change_no_result_may_change_when_a_run_is_resumed(unbroken: Path, saved: Path):
    others = ["--set", "checkpoint.every=3", "--set", "exchange.shared=off"]
    assert mpirun(2, *SHORT, *others, "--resume", "--output", saved).returncode == 0
    assert_identical(unbroken, saved)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(unbroken: Path, saved: Path):
    flip(checkpoint.newest(saved), checkpoint.newest(saved).stat().st_size - 100)
    done = mpirun(2, *SHORT, "--resume", "--output", saved)
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stdout
    assert_identical(unbroken, saved)


def test_without_a_whole_checkpoint_or_what_was_recorded_nothing_is_resumed(saved: Path):
    part = saved.with_name("run.h5.part")
    part.rename(part.with_suffix(".away"))
    refused(alone(*SHORT, "--resume", "--output", saved), "run.h5.part is missing")
    part.write_bytes(b"not HDF5")
    refused(alone(*SHORT, "--resume", "--output", saved), "what was recorded cannot be read")
    for path in checkpoint.left(saved):
        os.truncate(path, path.stat().st_size // 2)
    refused(mpirun(2, *SHORT, "--resume", "--output", saved), "--overwrite starts anew")


def test_every_flipped_bit_of_the_values_in_a_checkpoint_is_found(saved: Path):
    path = checkpoint.newest(saved)
    with h5py.File(path) as file:
        theta = file["agent/theta"]
        place, size = theta.id.get_offset(), theta.nbytes
    for byte in np.random.default_rng(0).integers(place, place + size, 10).tolist():
        flip(path, byte)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read(path)
        flip(path, byte)
    assert checkpoint.read(path).path == path


def test_two_runs_do_not_write_the_same_output_at_once(tmp_path: Path):
    output = tmp_path / "run.h5"
    long = ["iterations=4000000", "record.every=10000", "record.weights=0", "record.models=0"]
    arguments = [*SHORT, *(word for setting in long for word in ("--set", setting)), "--output", str(output)]
    first = subprocess.Popen([sys.executable, "-m", "mpi_resmtl", *arguments], env=variables(), stderr=subprocess.PIPE)
    while not output.with_name("run.h5.part").exists():
        time.sleep(0.05)
    refused(alone(*SHORT, "--output", output), "another run is writing it")
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)


def test_gathered_results_are_saved_and_resumed_too(unbroken: Path, tmp_path: Path):
    output = tmp_path / "run.h5"
    serial = "import sys, types, h5py\nh5py.get_config = lambda: types.SimpleNamespace(mpi=False)\n"
    program = [sys.executable, "-c", serial + STOPPED.format(iteration=33, signal="SIGTERM")]
    done = mpirun(2, *SHORT, "--output", output, program=program)
    assert done.returncode in (1, 143)
    with h5py.File(output.with_name("run.h5.part")) as file:
        position = checkpoint.read(checkpoint.newest(output)).position
        known = np.isfinite(file["rule/none/loss"][()]).any(axis=1)
        assert known.tolist() == [i < position.iteration for i in range(60)]
    again = [sys.executable, "-c", serial + "from mpi_resmtl.cli import main\nsys.exit(main(sys.argv[1:]))"]
    assert mpirun(3, *SHORT, "--resume", "--output", output, program=again).returncode == 0
    assert_identical(unbroken, output)


def test_the_moments_of_adam_are_saved(tmp_path: Path):
    pytest.importorskip("torch")
    small = {
        "epochs": 1,
        "task.epoch_iterations": 8,
        "task.data": "stand-in",
        "task.agents": 4,
        "task.train_images": 64,
        "task.test_images": 16,
        "task.train_images_measured": 16,
        "task.batch": "[8,8]",
        "rules": "loss",
        "byzantine.count": 0,
    }
    arguments = ["run", "fig3-4a", *(word for key, value in small.items() for word in ("--set", f"{key}={value}"))]
    unbroken, output = tmp_path / "unbroken.h5", tmp_path / "run.h5"
    done = alone(*arguments, "--output", unbroken)
    assert done.returncode == 0, done.stderr
    assert mpirun(2, *arguments, "--output", output, program=stopping(4)).returncode == 138
    with h5py.File(checkpoint.newest(output)) as file:
        assert file["agent/task steps"][()].max() > 1
    assert alone(*arguments, "--resume", "--output", output).returncode == 0
    assert_identical(unbroken, output)


def test_a_sweep_that_is_stopped_goes_on_within_its_cells(tmp_path: Path):
    file = tmp_path / "sweep.toml"
    file.write_text('seed = [0, 1]\niterations = 60\nrules = ["none", "loss"]\n[task]\nname = "target-localization"\n')
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = mpirun(2, "sweep", file, "--output", whole)
    assert done.returncode == 0, done.stderr
    done = mpirun(2, "sweep", file, "--output", stopped, program=stopping(30))
    assert done.returncode == 138, done.stderr
    assert done.stderr.count("mpi-resmtl: stopped by SIGUSR1") == 1
    assert ",stopped," in (stopped / "index.csv").read_text()
    assert len(list(stopped.glob("*.checkpoint"))) == 2
    done = mpirun(3, "sweep", file, "--output", stopped)
    assert done.returncode == 0, done.stderr
    for path in whole.glob("*.h5"):
        assert_identical(path, stopped / path.name)
    assert sorted(path.name for path in stopped.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path):
    """A folder on a disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_for_which_the_disk_is_too_small_is_refused_before_it_starts(small_disk: Path):
    done = mpirun(2, *SHORT, "--set", "iterations=3000", "--output", small_disk / "run.h5")
    refused(done, "the result takes", "MB", "left; record.every")
    assert list(small_disk.iterdir()) == []


def test_when_the_disk_fills_up_the_run_ends_with_one_line_and_the_last_checkpoint_is_good(
    unbroken: Path, small_disk: Path
):
    output = small_disk / "run.h5"
    assert mpirun(2, *SHORT, "--set", "checkpoint.every=20", "--output", output, program=stopping(30)).returncode == 138
    position = checkpoint.read(checkpoint.newest(output)).position
    free = os.statvfs(small_disk)
    (small_disk / "others").write_bytes(bytes(free.f_bavail * free.f_frsize - 4096))
    done = mpirun(2, *SHORT, "--set", "checkpoint.every=5", "--resume", "--output", output)
    refused(done, "run.h5.checkpoint", "is good")
    assert checkpoint.read(checkpoint.newest(output)).position == position
    (small_disk / "others").unlink()
    assert mpirun(3, *SHORT, "--resume", "--output", output).returncode == 0
    assert_identical(unbroken, output)


def test_a_limit_on_the_size_of_files_is_met_with_one_line(unbroken: Path, saved: Path):
    size = saved.with_name("run.h5.part").stat().st_size

    def limited(bytes_: int, *arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "mpi_resmtl", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            # Otherwise Open MPI itself needs a file of several megabytes.
            env=variables() | {"PMIX_MCA_gds": "hash"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_)),
        )

    refused(limited(size // 2, *SHORT, "--output", saved.with_name("other.h5")), "other.h5.part", "ulimit -f")
    refused(limited(size - 1000, *SHORT, "--output", saved.with_name("other.h5")), "other.h5.part", "ulimit -f")
    refused(limited(2048, *SHORT, "--output", saved.with_name("other.h5")), "other.h5.part", "ulimit -f")
    assert not list(saved.parent.glob("other*"))
    refused(limited(size // 2, *SHORT, "--resume", "--output", saved), "run.h5.part", "ulimit -f")
    assert mpirun(3, *SHORT, "--resume", "--output", saved).returncode == 0
    assert_identical(unbroken, saved)


def test_a_folder_that_cannot_be_written_is_met_with_one_line(small_disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(mpirun(2, *SHORT, "--output", small_disk / "run.h5"), "cannot be written", "Read-only")


HANGING = """
import sys, time
from mpi4py import MPI
from mpi_resmtl import adversary
speak = adversary.Adversary.speak
def hanging(self, moment, *rest):
    while moment.iteration == 20 and MPI.COMM_WORLD.rank == 1:
        time.sleep(0.01)
    return speak(self, moment, *rest)
adversary.Adversary.speak = hanging
from mpi_resmtl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_watchdog_tells_in_which_phase_a_rank_hangs_and_ends_the_job(tmp_path: Path):
    program = [sys.executable, "-c", HANGING]
    done = mpirun(3, *SHORT, "--watchdog", 4, "--output", tmp_path / "run.h5", program=program, timeout=60)
    assert done.returncode == 124, done.stderr
    assert "rank 1 has been in phase attack of rule none" in done.stderr
    assert done.stderr.count("in phase attack") == 1
    assert "Traceback" not in done.stderr


def test_a_watchdog_lets_a_run_that_gets_on_alone(unbroken: Path, tmp_path: Path):
    done = mpirun(2, *SHORT, "--watchdog", 30, "--output", tmp_path / "run.h5")
    assert done.returncode == 0, done.stderr
    assert_identical(unbroken, tmp_path / "run.h5")
    assert "expected seconds above 0" in alone(*SHORT, "--watchdog", "0").stderr


@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_checks_of_pieces_add_up_to_that_of_the_whole(pieces: int, rows: int, width: int, random):
    values = np.array([random.random() for _ in range(rows * width)]).reshape(rows, width)
    cuts = sorted(random.randint(0, rows) for _ in range(pieces - 1))
    parts = np.split(values, cuts)
    firsts = [0, *cuts]
    total = sum(checkpoint._check(part, first) for part, first in zip(parts, firsts, strict=True)) % 2**64
    assert total == checkpoint._check(values, 0)


def test_what_an_attack_remembers_fits_any_cut_of_its_edges():
    """Two attackers on one rank, then on one each; the victim 7 of both has one row."""
    target = np.array([3, 7, 7, 9])
    victim, of_edge = np.unique(target, return_inverse=True)
    both = Remembered(start=Laid(of_edge=of_edge, places=3), past=Laid(axis=1), heard=Laid("overheard"))
    both |= {"start": np.array([[30.0], [70.0], [90.0]]), "past": np.arange(8.0).reshape(2, 4), "i": np.array(5)}
    both["heard"] = np.arange(3.0)
    kept = both.kept()
    assert kept["spoken"]["start"].ravel().tolist() == [30, 70, 70, 90]
    for some, overheard in ((slice(0, 2), slice(0, 1)), (slice(2, 4), slice(1, 3))):
        victim, of_edge = np.unique(target[some], return_inverse=True)
        one = Remembered(start=Laid(of_edge=of_edge, places=2), past=Laid(axis=1), heard=Laid("overheard"))
        one.put_back(
            {
                "spoken": {name: values[some] for name, values in kept["spoken"].items()},
                "overheard": {"heard": kept["overheard"]["heard"][overheard]},
                "alike": kept["alike"],
            }
        )
        assert one["start"].ravel().tolist() == (10 * victim).tolist()
        assert one["past"].tolist() == both["past"][:, some].tolist()
        assert one["heard"].tolist() == both["heard"][overheard].tolist()
        assert one["i"] == 5


def test_later_samples_are_those_of_the_rest_of_the_block():
    samples = Samples(np.arange(12.0).reshape(4, 3, 1))
    assert later(samples, 3).signal.ravel().tolist() == [9, 10, 11]
    assert later(samples, 0) is samples
    assert later(None, 2) is None


def test_a_stage_begins_where_a_run_goes_on_with_another_number_of_ranks():
    rules = ["none", "loss"]
    first = stages(None, rules, 2)
    at = Saved(Path(), "", Position(1, 30), "", first, "")
    assert stages(at, rules, 2) == first
    assert stages(at, rules, 5) == [*first, {"rule": "loss", "iteration": 30, "ranks": 5}]


def test_what_a_run_left_that_was_killed_after_it_had_ended_is_removed(unbroken: Path, tmp_path: Path):
    output = shutil.copy(unbroken, tmp_path / "run.h5")
    for left in ("lock", "checkpoint", "checkpoint.before"):
        (tmp_path / f"run.h5.{left}").touch()
    done = alone(*SHORT, "--resume", "--output", output)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_what_was_recorded_is_not_gone_on_with_where_it_is_laid_out_otherwise(saved: Path, tmp_path: Path):
    others = [
        (1, "rule/none/loss", {"dtype": "f4"}),
        (2, "rule/loss/msd", {"shape": (1, 1, 1), "chunks": None}),
        (3, "rule/none/weight", {"compression": "gzip"}),
        (1, "graph/edge", {"shape": (3, 2)}),
    ]
    for number, (ranks, name, options) in enumerate(others):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in saved.parent.glob("run.h5.*"):
            shutil.copy(path, folder)
        with h5py.File(folder / "run.h5.part", "r+") as file:
            kept = {"shape": file[name].shape, "dtype": file[name].dtype, "chunks": file[name].chunks}
            del file[name]
            file.create_dataset(name, **(kept | options))
        refused(mpirun(ranks, *SHORT, "--resume", "--output", folder / "run.h5"), "run.h5.part", f"/{name}")
