"""The model of scaling: its counts against a real partition, its times against made-up measurements, its figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from test_figures import ANALYSIS, load

from mpi_resmtl.graph import sorted_edges
from mpi_resmtl.partition import partition, shares
from mpi_resmtl.streams import block_length

image = pytest.importorskip("matplotlib.image")

scaling = load("scaling")

MACHINE = scaling.Machine(
    cores=2,
    memory=2**34,
    work={1: 40e-6, 2: 50e-6, 4: 100e-6},
    turns={1: [(4e-5, 0.0), (4e-3, 0.0)], 2: [(5e-5, 2e-6), (5e-3, 3e-6)], 4: [(1e-4, 2e-5), (1e-2, 6e-5)]},
    messages={2: {"within": (1e-6, 1e-7, 1e10)}, 4: {"within": (4e-6, 2e-7, 5e9)}},
    placed={1: 1, 2: 2, 4: 4},
    reading={ranks: [(1e4, 1e-9 * ranks), (1e6, 3e-9 * ranks)] for ranks in (1, 2, 4)},
)
SPARSE = scaling.Model("target-localization", 50e-6, 0.0, 5e-8, 16, 9.0, block=1e-4)
COMPLETE = scaling.Model("activity-recognition", 30e-6, 1e-5, 2e-6, 13_488, None)


def spread(value: float, unit: str = "s") -> dict[str, Any]:
    return {"median": value, "quartiles": [0.9 * value, 1.1 * value], "min": value, "max": value, "unit": unit}


def made_report(factor: float = 1.0) -> dict[str, Any]:
    """What `bench scale` would say if the two models were right, but for `factor` on more than one rank."""
    rows = []
    for model, agents in ((SPARSE, (1_000, 10_000, 100_000)), (COMPLETE, (30,))):
        for n in agents:
            for ranks in (1, 2, 4):
                time = model.time(MACHINE, n, ranks) * (1.0 if ranks == 1 else factor)
                edges = int(model.edges(n))
                half = model.edge * edges / 2
                phases = {"adapt": model.agent * n, "evaluate": half, "combine": half}
                row = {"sweep": "strong", "study": model.study, "ranks": ranks, "agents": n, "edges": edges}
                row["block"] = block_length(n, 3)
                row["work"] = spread(MACHINE.work[ranks])
                rows.append(row | {"row_bytes": model.row_bytes, "iteration": spread(time), "phases": phases})
    machine = [
        {
            "ranks": ranks,
            "nodes": [ranks],
            "product": spread(MACHINE.work[ranks]),
            "turns": [{"work": spread(seconds), "turn": spread(turn)} for seconds, turn in MACHINE.turns[ranks]],
            "reading": [{"bytes": size, "edge": spread(seconds)} for size, seconds in MACHINE.reading[ranks]],
            "messages": {
                where: dict(zip(("latency", "overhead", "bandwidth"), map(spread, link), strict=True))
                for where, link in MACHINE.messages.get(ranks, {}).items()
            },
        }
        for ranks in (1, 2, 4)
    ]
    about = {"cores": MACHINE.cores, "memory": MACHINE.memory}
    return {"kind": "scale", "environment": about, "machine": machine, "scale": rows}


def script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ANALYSIS / "scaling.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("ranks", [2, 8, 40])
def test_peers_and_rows_are_those_of_a_random_regular_graph_in_the_mean(ranks: int):
    n, nobody = 2_000, np.zeros(2_000, bool)
    edge = sorted_edges(np.array(networkx.random_regular_graph(9, n, seed=0).edges), n, directed=False)
    parts = [partition(s, r, nobody) for r, s in enumerate(shares(edge, nobody, ranks))]
    peers = np.mean([len(part.received) for part in parts])
    rows = np.mean([sum(b.rows.stop - b.rows.start for b in part.received) for part in parts])
    found_peers, found_rows = SPARSE.traffic(n, ranks)
    assert found_peers == pytest.approx(peers, rel=0.02)
    assert found_peers * found_rows == pytest.approx(rows, rel=0.02)


def test_in_a_complete_graph_every_rank_hears_all_rows_of_all_others():
    assert COMPLETE.traffic(30, 3) == (2.0, 10.0)
    assert COMPLETE.traffic(30, 1) == (0.0, 0.0)
    assert COMPLETE.edges(30) == 900


def test_within_a_node_peers_are_told_and_no_bytes_move():
    assert COMPLETE.communicate(MACHINE, 30, 1) == 0.0
    assert COMPLETE.communicate(MACHINE, 30, 2) == pytest.approx(1e-6)
    four_cores = scaling.replace(MACHINE, cores=4)
    assert COMPLETE.communicate(four_cores, 30, 4) == pytest.approx(4e-6 + 2 * 2e-7)


def test_where_ranks_share_cores_telling_takes_what_was_measured():
    # The longer they compute, the longer it takes, by the logarithm of that.
    assert COMPLETE.compute(MACHINE, 30, 4) == pytest.approx(1475e-6)
    assert COMPLETE.communicate(MACHINE, 30, 4) == pytest.approx(2e-5 + 4e-5 * np.log10(14.75) / 2)
    # With a core for each there is one other rank on the node, and two on others.
    afar = 1e-6 + 1e-7 + 2 * 7.5 * 13_488 * 2 / 1e10
    assert COMPLETE.communicate(MACHINE.beyond(), 30, 4) == pytest.approx(1e-6 + afar)


def test_across_nodes_rows_take_their_bytes_over_the_bandwidth_that_a_node_shares():
    cluster = scaling.replace(MACHINE.beyond(), network=(2e-6, 5e-7, 1e9))
    # Six ranks on three nodes: one peer near, four far, five rows of each.
    rows = 4 * 5 * 13_488 * 2 / 1e9
    assert COMPLETE.communicate(cluster, 30, 6) == pytest.approx(1e-6 + 2e-6 + 3 * 5e-7 + rows)


def test_more_ranks_than_cores_compute_as_slowly_as_they_were_measured_and_on_more_nodes_as_fast_as_one_a_core():
    assert MACHINE.slowdown(4) == pytest.approx(2.5)
    assert MACHINE.beyond().slowdown(4) == MACHINE.beyond().slowdown(10_000) == pytest.approx(1.25)
    # 2^14 numbers are drawn at once, three an agent: a block has four iterations.
    work = 1.25 * (50e-6 + 1e-4 / 4 + 5e-8 * 10_000 / 2)
    assert SPARSE.compute(MACHINE, 1_000, 2) == pytest.approx(work + 5_000 * SPARSE.reading(MACHINE, 1_000, 2))


def test_an_edge_takes_of_memory_what_was_measured_for_as_many_rows_as_a_rank_hears():
    assert MACHINE.edge(1e5, 2) == pytest.approx(4e-9)
    assert MACHINE.edge(1e3, 2) == 2e-9
    assert MACHINE.edge(1e9, 4) == 12e-9
    # More ranks than were measured with a core each have one each.
    assert MACHINE.beyond().edge(1e9, 4) == MACHINE.beyond().edge(1e9, 10_000) == 6e-9
    assert SPARSE.reading(MACHINE, 6_250, 1) == pytest.approx(2e-9)
    assert SPARSE.reading(MACHINE, 6_250, 2) < MACHINE.edge(6_250 * 16, 2)
    assert COMPLETE.reading(MACHINE, 30, 2) == 0.0


def test_the_rank_that_has_most_agents_decides_unless_ranks_judge_for_one_another():
    assert COMPLETE.compute(MACHINE, 30, 4) == pytest.approx(2.5 * (30e-6 + 8 * 1e-5 + 8 * 30 * 2e-6))
    lending = scaling.replace(COMPLETE, lends=True)
    assert lending.compute(MACHINE, 30, 4) == pytest.approx(2.5 * (30e-6 + 7.5 * 1e-5 + 7.5 * 30 * 2e-6))


def test_communication_overtakes_at_the_first_number_of_ranks_where_it_takes_longer():
    cluster = MACHINE.beyond()
    model = scaling.Model("target-localization", 1e-7, 0.0, 5e-8, 16, 9.0)
    at = model.overtakes(cluster, 10_000)
    assert model.communicate(cluster, 10_000, at) > model.compute(cluster, 10_000, at)
    before = int(scaling.RANKS[at > scaling.RANKS].max())
    assert model.communicate(cluster, 10_000, before) <= model.compute(cluster, 10_000, before)
    assert scaling.Model("target-localization", 1.0, 0.0, 5e-8, 16, 9.0).overtakes(cluster, 10_000) is None


def test_models_are_found_again_from_the_times_they_predict():
    report = made_report()
    machine = scaling.machine_of(report)
    assert machine == MACHINE
    sparse, complete = scaling.models_of(report, machine)
    found = (sparse.fixed, sparse.block, sparse.edge)
    assert found == (pytest.approx(50e-6), pytest.approx(1e-4), pytest.approx(5e-8))
    assert (complete.fixed, complete.agent) == (pytest.approx(30e-6), pytest.approx(1e-5))
    for check in scaling.checks(report, machine, [sparse, complete]):
        assert check.error == pytest.approx(0.0, abs=1e-9)


def test_a_machine_that_was_slower_for_a_while_changes_no_model_and_no_error():
    report = made_report()
    machine = scaling.machine_of(report)
    for number, row in enumerate(report["scale"]):
        row["work"] = spread(row["work"]["median"] * (1 + number % 3))
        row["phases"] = {phase: seconds * (1 + number % 3) for phase, seconds in row["phases"].items()}
        times = {model.study: model for model in (SPARSE, COMPLETE)}[row["study"]]
        slowdown = row["work"]["median"] / machine.alone
        row["iteration"] = spread(times.time(machine, row["agents"], row["ranks"], slowdown))
    models = scaling.models_of(report, machine)
    assert models[0].edge == pytest.approx(5e-8)
    assert [check.error for check in scaling.checks(report, machine, models)] == pytest.approx([0.0] * 12, abs=1e-9)


def test_the_figure_is_drawn_and_the_errors_are_told(tmp_path: Path):
    (tmp_path / "made.json").write_text(json.dumps(made_report(factor=2.0)))
    done = script(tmp_path / "made.json", "-o", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert "4 of 12 within 30%; the worst is -50%" in done.stdout
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["scaling.pdf", "scaling.png"]
    pixels = np.rint(image.imread(tmp_path / "new" / "scaling.png")[..., :3] * 255).astype(int)
    vivid = np.ptp(pixels, axis=2) > 60
    assert len(np.unique(pixels[vivid] // 64, axis=0)) >= 4
    assert vivid.mean() > 0.002
    assert (tmp_path / "new" / "scaling.pdf").read_bytes().startswith(b"%PDF")


def test_a_network_that_is_assumed_changes_the_prediction_and_not_the_check(tmp_path: Path):
    (tmp_path / "made.json").write_text(json.dumps(made_report()))
    found = [script(tmp_path / "made.json", "-o", tmp_path, *more) for more in ((), ("--network", "500,50,0.1"))]
    plain, slow = (done.stdout.splitlines() for done in found)
    assert [line for line in plain if "strong" in line] == [line for line in slow if "strong" in line] != []
    (before,), (after,) = ([x for x in lines if x.startswith("activity, 10,000 agents")] for lines in (plain, slow))
    assert before.endswith("from 10,000 ranks on")
    assert int(after.split("from ")[1].split(" ranks")[0].replace(",", "")) < 1_000


def without(key: str) -> str:
    report = made_report()
    del report[key]
    return json.dumps(report)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, (), "No such file"),
        ("{", (), "is not JSON"),
        ('{"kind": "exchange"}', (), "is not a report of `mpi-resmtl bench scale --json`"),
        (without("machine"), (), "is damaged: KeyError: 'machine'"),
        (json.dumps(made_report() | {"scale": []}), (), "has no study on one rank"),
        (json.dumps(made_report() | {"machine": made_report()["machine"][:1]}), (), "nothing says what messages cost"),
        (json.dumps(made_report()), ("--network", "1,2"), "--network 1,2: expected three numbers"),
        (json.dumps(made_report()), ("--network", "1,2,0"), "--network 1,2,0: expected three numbers"),
    ],
)
def test_a_report_that_cannot_be_used_is_refused_in_one_line(
    content: str | None, arguments: tuple[str, ...], message: str, tmp_path: Path
):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    done = script(path, "-o", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
