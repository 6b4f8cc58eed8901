"""What a run is estimated to need, what the machine is found to have, and how the one is refused for the other."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpirun import alone, mpirun
from test_cli import refused

from mpi_resmtl import memory, storage
from mpi_resmtl.errors import UserError
from mpi_resmtl.graph import sorted_edges
from mpi_resmtl.partition import offsets, partition, shares


@given(data=st.data(), agents=st.integers(1, 12), directed=st.booleans())
def test_rows_and_edges_are_counted_as_the_partition_lays_them_out(data, agents, directed):
    ranks = data.draw(st.integers(1, agents))
    ends = st.integers(0, agents - 1)
    pairs = data.draw(st.lists(st.tuples(ends, ends), max_size=60))
    byzantine = np.array(data.draw(st.lists(st.booleans(), min_size=agents, max_size=agents)))
    edge = sorted_edges(np.array(pairs, int).reshape(-1, 2), agents, directed)
    held = memory.crossing(edge, byzantine, offsets(agents, ranks))
    parts = [partition(share, rank, byzantine) for rank, share in enumerate(shares(edge, byzantine, ranks))]
    assert held.agents.tolist() == [part.count for part in parts]
    lying = [sum(len(block.normal) for block in part.sent if block.rows.start < part.count) for part in parts]
    assert held.rows.tolist() == [part.rows + rows for part, rows in zip(parts, lying, strict=True)]
    assert held.edges.tolist() == [part.edges.stop - part.edges.start for part in parts]


MEASURED = """
import resource, sys
import mpi_resmtl.memory as memory
needs, told = memory.needs, []
memory.needs = lambda *arguments: told.append(needs(*arguments)) or told[0]
from mpi_resmtl.cli import main
status = main(sys.argv[1:])
print("estimated", *told[0], "taken", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(status)
"""

RUNS = {
    "many agents": ["fig1c", "task.agents=5000", "task.side=20", "iterations=200", "rules=loss"],
    "many edges": ["fig1c", "task.agents=1000", "graph.kind=complete", "iterations=10", "rules=loss"],
    "stacks and knowing attackers": [
        *("fig1c", "task.agents=600", "graph.kind=complete", "iterations=10"),
        *("rules=median", "byzantine.attack=little"),
    ],
    "a wide regression": [
        *("fig1c", "task.name=linear-regression", "task.dimension=2000", "task.covariance=decay", "iterations=10"),
        *("task.step_size=0.00001", "rules=loss", "byzantine.low=0", "byzantine.count=3"),
    ],
    "a long window": ["fig1c", "iterations=10", "rules=loss-robust", "rule.loss-robust.window=40000"],
    "batches": ["fig2a", "task.data=stand-in", "task.agents=4", "task.batch=60", "epochs=150", "rules=none"],
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_run_takes_what_is_estimated_within_a_factor_of_two_and_never_more(settings: list[str], tmp_path: Path):
    preset, *settings = settings
    program = [sys.executable, "-c", MEASURED]
    arguments = ["run", preset, *(word for s in settings for word in ("--set", s)), "--output", tmp_path / "out.h5"]
    done = mpirun(1, *arguments, program=program, timeout=300)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    estimated, taken = (int(words[words.index(name) + 1]) for name in ("estimated", "taken"))
    # A single process also has the pages that ranks of a host share.
    assert estimated / 2 < taken < estimated + 60e6


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_what_is_free_is_what_the_kernel_calls_available(tmp_path: Path):
    write(tmp_path / "proc", meminfo="MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 50 kB")
    assert memory.available(tmp_path / "proc", tmp_path) == 50 * 1024
    assert memory.available(tmp_path / "nowhere", tmp_path) is None


def test_limits_of_control_groups_count_those_of_their_parents_too_and_leave_out_kept_files(tmp_path: Path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc, meminfo="MemAvailable: 1000000 kB")
    write(proc / "self", cgroup="0::/job/step")
    write(groups / "job" / "step", memory__max="max", memory__current=10)
    assert memory.available(proc, groups) == 1000000 * 1024
    write(groups / "job", memory__max=5000, memory__current=3000, memory__stat="anon 900\ninactive_file 400")
    assert memory.available(proc, groups) == 2400
    write(groups / "job" / "step", memory__max=600, memory__current=700)
    assert memory.available(proc, groups) == 0


def test_limits_of_control_groups_of_version_one_count_also_where_a_container_mounts_its_own_as_root(tmp_path: Path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc, meminfo="MemAvailable: 1000000 kB")
    write(proc / "self", cgroup="5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/")
    root = dict(memory__usage_in_bytes=100, memory__stat="total_inactive_file 30")
    write(groups / "memory", memory__limit_in_bytes=1 << 63, **root)
    assert memory.available(proc, groups) == 1000000 * 1024
    write(groups / "memory", memory__limit_in_bytes=1000, **root)
    assert memory.available(proc, groups) == 930


def test_bytes_are_shown_as_people_read_them():
    assert [memory.shown(n) for n in (12, 1500, 23_400_000_000, 10**17, 10**20)] == [
        *("12 bytes", "1.5 kB", "23.4 GB", "100 PB", "1e+05 PB"),
    ]


TOO_LARGE = [
    (["task.agents=100000000000"], ["100000000000 agents with models of 2 parameters would take 44.8 TB"]),
    (["task.agents=1000000", "graph.kind=complete"], ["graph.kind = 'complete' of 1000000 agents", "120 TB"]),
    (["task.agents=1000000", "graph.kind=erdos-renyi"], ["graph.kind = 'erdos-renyi'", "TB"]),
    (["task.agents=300000"], ["graph.kind = 'geometric' of 300000 agents", "TB"]),
    (["iterations=1000000000000"], ["1000000000000 iterations takes", "TB of memory", "which has"]),
    (["iterations=1000000000000", "record.every=1000000", "record.weights=0", "record.models=10"], ["TB of memory"]),
    (["rules=loss-robust", "rule.loss-robust.window=1000000000000"], ["968 edges", "PB of memory"]),
    (["task.agents=1000", "task.side=10", "iterations=200000000"], ["the result takes", "TB", "record.every"]),
]


BY_SETTING = {settings[-1]: (settings, words) for settings, words in TOO_LARGE}


@pytest.mark.parametrize(
    ("ranks", "setting"),
    # What rank 0 alone and what all ranks find out, also on several ranks.
    [*((0, setting) for setting in BY_SETTING), (2, "task.agents=300000"), (2, "iterations=1000000000000")],
)
def test_what_the_machine_cannot_hold_is_refused_with_the_numbers(ranks: int, setting: str, tmp_path: Path):
    settings, words = BY_SETTING[setting]
    arguments = ["run", "fig1c", *(word for setting in settings for word in ("--set", setting))]
    done = mpirun(ranks, *arguments, cwd=tmp_path) if ranks else alone(*arguments, cwd=tmp_path)
    refused(done, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_the_process_counts(tmp_path: Path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
    program = [
        sys.executable,
        "-c",
        limit + "import sys; from mpi_resmtl.cli import main; sys.exit(main(sys.argv[1:]))",
    ]
    settings = ["--set", "rules=loss-robust", "--set", "rule.loss-robust.window=1000000"]
    refused(mpirun(1, "run", "fig1c", *settings, program=program, cwd=tmp_path), "rank 0", "(ulimit -v)")


def test_a_result_file_is_as_large_as_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mpi_resmtl import recorder
    from mpi_resmtl.graph import Graph

    n, edge = 9, sorted_edges(np.zeros((0, 2)), 9, True)
    numbers = dict(iterations=400, measures_every=3, weights_every=7, models_every=50, parameters=6, epoch=20)
    named = dict(measures=("loss",), epoch_measures=("test_loss",), agents=n, edges=len(edge), ranks=2)
    layout = recorder.Layout(dtype=np.dtype("f4"), **numbers, **named)
    rules = {"loss": recorder.Held(True, False), "krum": recorder.Held(False, True)}
    graph = Graph(edge, np.zeros(n, bool), np.zeros(n, np.int32), epoch=20)
    recorder.create(tmp_path / "out.h5", layout, graph, rules, recorder.About("", 0, "generated", "", "", "", []))
    with h5py.File(tmp_path / "out.h5") as file:
        found = []
        file["rule"].visititems(lambda name, item: found.append(getattr(item, "nbytes", 0)))
    traffic = 2 * layout.ranks * 16
    assert memory.file_size(layout, rules.values()) == sum(found) - traffic


def test_a_file_that_does_not_fit_on_the_disk_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"the result takes 1e\+03 PB"):
        storage.check_room(tmp_path / "out.h5", 10**18, "the result")
    storage.check_room(tmp_path / "out.h5", 1000, "the result")


def test_a_sweep_of_too_many_cells_is_refused_before_they_are_made(tmp_path: Path):
    numbers = ",".join(str(i) for i in range(400))
    settings = ["--set", f"seed={numbers}", "--set", f"byzantine.count={numbers}"]
    refused(alone("sweep", "fig1c", "--output", tmp_path / "out", *settings), "160000 cells are more than the 100000")
