"""What `bench step` says of the classification studies; figures that are times are only looked at for sense."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from mpirun import alone, mpirun

from mpi_resmtl import bench
from mpi_resmtl.bench import step
from mpi_resmtl.bench.peak import gemm_peak
from mpi_resmtl.tasks.digit_cnn import DigitCNN
from mpi_resmtl.tasks.linear_classifier import LinearClassifier

ACTIVITY = ("bench", "step", "--study", "activity-recognition", "--repeats", "1")
PHASES = {"adapt", "attack", "exchange", "evaluate", "combine", "measure", "record"}


@pytest.fixture
def nothing_found(tmp_path: Path) -> dict[str, str]:
    """An environment in which no data are found."""
    return {"MPI_RESMTL_DATA": "", "XDG_DATA_HOME": str(tmp_path / "share")}


def convolution(side: int, channels: int, filters: int) -> int:
    """Multiplications and additions of 3 x 3 filters, counted one by one, those of the zeros beyond the border too."""
    count = 0
    for _ in range(side * side):
        for _ in range(filters):
            for _ in range(3 * 3):
                count += 2 * channels
    return count


def test_a_forward_pass_counts_each_multiplication_and_addition_of_its_layers():
    layers = [convolution(28, 1, 32), convolution(14, 32, 64), convolution(7, 64, 64), 2 * 576 * 128, 2 * 128 * 10]
    assert step.operations("digit-classification", 3) == 3 * sum(layers) == 3 * 11_439_616
    assert step.operations("activity-recognition", 1) == 2 * 561 * 6


def test_layers_have_the_parameters_of_the_networks():
    networks = {"activity-recognition": LinearClassifier(561, 6), "digit-classification": DigitCNN()}
    for study, network in networks.items():
        sizes = [size for _, fan_in, outputs in step.LAYERS[study] for size in (fan_in * outputs, outputs)]
        assert tuple(sizes) == network.tensors


def test_bench_counts_and_times_the_activity_study(tmp_path: Path, nothing_found: dict[str, str]):
    done = alone(*ACTIVITY, "--json", tmp_path / "step.json", timeout=300, **nothing_found)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    (row,) = json.loads((tmp_path / "step.json").read_text())["step"]
    assert (row["study"], row["data"], row["agents"], row["edges"]) == ("activity-recognition", "stand-in", 30, 900)
    assert row["iterations"] % 20 == 0
    assert row["operations"]["evaluate"] == 900 * 10 * 2 * 561 * 6
    # 20 agents take every gradient step, 10 a tenth of theirs; a step counts three passes, the own loss one.
    steps = (row["operations"]["iteration"] - row["operations"]["evaluate"]) / (10 * 2 * 561 * 6) - 30
    assert 3 * 20 < steps < 3 * 22
    assert set(row["phases"]) == PHASES
    assert 0 < sum(row["phases"].values()) <= 1.01 * row["iteration"]["median"]
    assert 0 < row["share_of_peak"]["iteration"]["median"] < row["share_of_peak"]["evaluate"]["median"] < 1
    assert row["times_one_rank"] is None
    assert len(row["memory"]) == len(row["gemm_peak"]) == 1


def test_bench_on_two_ranks_compares_them_with_one(tmp_path: Path, nothing_found: dict[str, str]):
    done = mpirun(2, *ACTIVITY, "--json", tmp_path / "step.json", timeout=300, **nothing_found)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "step.json").read_text())["step"]
    assert row["ranks"] == len(row["memory"]) == len(row["gemm_peak"]) == 2
    assert row["operations"]["evaluate"] == 900 * 10 * 2 * 561 * 6
    # Of one repeat the ratio of medians is the median ratio.
    ratio = row["one_rank"]["median"] / row["iteration"]["median"]
    assert row["times_one_rank"]["median"] == pytest.approx(ratio)


def test_an_unknown_study_is_refused_with_the_nearest_right_name():
    done = alone("bench", "step", "--study", "target-localization,activity")
    assert done.returncode == 2
    assert "unknown study 'activity'; did you mean 'activity-recognition'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_repeats_are_refused():
    done = alone("bench", "step", "--repeats", "0")
    assert done.returncode == 2
    assert "--repeats 0: at least 1 is needed" in done.stderr


def test_the_peak_is_that_of_the_fastest_product(monkeypatch):
    class Comm:
        def Barrier(self) -> None: ...

    clock = iter(np.cumsum(np.tile([1.0, 0.5], 1000)))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(bench.peak, "perf_counter", lambda: next(clock))
    # Each product seems to take half a second, so the largest seems the fastest.
    assert gemm_peak(Comm()) == 2 * max(bench.peak._SIDES) ** 3 / 0.5


def test_figures_go_to_the_file_or_the_standard_output(tmp_path: Path, capsys):
    bench.deliver({"a": 1}, tmp_path / "x.json")
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    bench.deliver({"a": 1}, None)
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_bench_names_its_kinds():
    commands = argparse.ArgumentParser().add_subparsers()
    bench.add_parser(commands)
    asked = commands.choices["bench"].parse_args(["step", "--agents", "10,20"])
    assert (asked.agents, asked.study, asked.repeats) == ("10,20", "target-localization", None)


@pytest.mark.parametrize(
    ("kind", "options", "measures"),
    [
        ("step", ("--agents", "20"), 1),
        ("rules", ("--rules", "median", "--messages", "5", "--parameters", "20"), 3),
    ],
)
def test_a_report_is_compared_with_an_earlier_one(kind: str, options: tuple[str, ...], measures: int, tmp_path: Path):
    line = ("bench", kind, *options, "--repeats", "3")
    assert alone(*line, "--json", tmp_path / "one.json").returncode == 0
    done = alone(*line, "--json", tmp_path / "two.json", "--against", tmp_path / "one.json", "--tolerance", "1000")
    assert done.returncode == 0, done.stderr
    assert f"0 slower, 0 faster, {measures} same" in done.stderr
    changes = json.loads((tmp_path / "two.json").read_text())["against"]["changes"]
    assert {change["unit"] for change in changes} == {"s"}
    other = alone("bench", "record", "--against", tmp_path / "one.json")
    assert other.returncode == 2
    assert f"is of `bench {kind}`" in other.stderr
