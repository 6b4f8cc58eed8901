"""`bench exchange`, `record` and `scale` as a user runs them, small; of times only that they are there and add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import alone, mpirun

from mpi_resmtl.bench import scale

SMALL = ("exchange", "--bytes", "16,4096", "--degrees", "1,2,32", "--repeats", "2")


def shorter(value: Any) -> Any:
    """A report in which all that has a unit took a thousandth of the time."""
    if isinstance(value, list):
        return [shorter(part) for part in value]
    if not isinstance(value, dict):
        return value
    changed = {key: shorter(part) for key, part in value.items()}
    if "unit" in value:
        factor = 1e3 if value["unit"].endswith("/s") else 1e-3
        changed |= {key: factor * value[key] for key in ("median", "min", "max")}
        changed["quartiles"] = [factor * quartile for quartile in value["quartiles"]]
    return changed


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("exchange") / "x.json"
    done = mpirun(3, "bench", *SMALL, "--json", path, "--folder", path.parent)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    return path, done.stdout


def assert_measure(found: dict[str, Any], unit: str) -> None:
    assert found["unit"] == unit
    assert 0 < found["min"] <= found["quartiles"][0] <= found["median"] <= found["quartiles"][1] <= found["max"]


def test_exchange_times_every_size_at_every_degree_that_the_ranks_allow(exchange: tuple[Path, str]):
    path, printed = exchange
    report = json.loads(path.read_text())
    assert [(row["degree"], row["bytes"]) for row in report["exchange"]] == [(1, 16), (1, 4096), (2, 16), (2, 4096)]
    assert len(printed.splitlines()) == 2 + 4
    for row in report["exchange"]:
        assert row["shared"] is True
        for what in ("moved", "averaged"):
            assert list(row[what]) == ["exchange", "messages", "raw", "neighbour"]
            for times in row[what].values():
                assert_measure(times, "s")
                assert times["warm_up"] > 0
                assert times["calls"] >= 1
            for over in row[f"{what}_raw_over"].values():
                assert over["median"] > 0


def test_a_report_says_what_machine_and_what_ceilings(exchange: tuple[Path, str]):
    report = json.loads(exchange[0].read_text())
    assert (report["kind"], report["ranks"]) == ("exchange", 3)
    about = report["environment"]
    assert about["command"][:2] == ["bench", "exchange"]
    assert {"processor", "cores", "memory", "system", "load", "threads", "settings", "versions"} <= about.keys()
    machine = report["machine"]
    assert (machine["ranks"], sum(machine["nodes"])) == (3, 3)
    assert_measure(machine["gemm"], "operations/s")
    assert_measure(machine["copy"], "B/s")
    assert_measure(machine["product"], "s")
    assert_measure(machine["file"], "B/s")
    (within,) = machine["messages"].values()
    assert_measure(within["latency"], "s")
    assert_measure(within["bandwidth"], "B/s")


def test_a_run_that_is_slower_than_an_earlier_one_ends_with_status_3(exchange: tuple[Path, str], tmp_path: Path):
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(shorter(json.loads(exchange[0].read_text()))))
    again = ("bench", *SMALL, "--json", tmp_path / "x.json", "--folder", tmp_path)
    done = mpirun(3, *again, "--against", earlier)
    assert done.returncode == 3, done.stderr
    assert "slower: exchange bytes=16 degree=1 moved exchange" in done.stderr
    changes = json.loads((tmp_path / "x.json").read_text())["against"]["changes"]
    assert {change["verdict"] for change in changes} == {"slower"}
    done = mpirun(3, *again, "--against", exchange[0], "--tolerance", "1e5")
    assert done.returncode == 0, done.stderr
    assert "0 slower, 0 faster" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exchange",), "needs 2 ranks or more, there are 1; start it under mpirun -n 2"),
        (("exchange", "--bytes", "12"), "--bytes 12: a row has a multiple of 8 bytes"),
        (("exchange", "--bytes", "16,many"), "--bytes 16,many: expected numbers separated by commas"),
        (("exchange", "--degrees", "0"), "--degrees 0: the least possible is 1"),
        (("exchange", "--repeats", "0"), "--repeats 0: at least 1"),
        (("record", "--tolerance", "-1"), "--tolerance -1.0: a share of 0 or more"),
        (("record", "--folder", "/nowhere"), "--folder /nowhere: no such folder"),
        (("record", "--json", "/nowhere/x.json"), "the folder /nowhere does not exist"),
        (("record", "--megabytes", "nan"), "--megabytes nan: at least 1"),
        (("record", "--against", "/nowhere/x.json"), "--against /nowhere/x.json: No such file"),
        (("scale", "--sweep", "strong,week"), "unknown sweep 'week'; did you mean 'weak'?"),
        (("scale", "--study", "activity"), "unknown study 'activity'; did you mean 'activity-recognition'?"),
        (("scale", "--agents", "5"), "--agents 5: at least 20"),
        (("scale", "--edges", "1000,3"), "--edges 1000,3: the least possible is 20"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_timed(arguments: tuple[str, ...], message: str):
    done = alone("bench", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_option_is_told_once_whatever_the_number_of_ranks():
    done = mpirun(3, "bench", "scale", "--agents", "5")
    assert done.returncode == 2
    assert done.stderr.count("--agents 5: at least 20") == 1


def test_record_writes_the_bytes_of_its_datasets_and_leaves_nothing_behind(tmp_path: Path):
    path = tmp_path / "r.json"
    done = mpirun(2, "bench", "record", "--megabytes", "1", "--repeats", "2", "--json", path, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    rows = json.loads(path.read_text())["record"]
    assert len(done.stdout.splitlines()) == 1 + len(rows)
    assert [row["study"] for row in rows] == ["target-localization", "activity-recognition"]
    for row in rows:
        assert row["ranks"] == 2
        assert_measure(row["recorded"], "B/s")
        assert_measure(row["plain"], "B/s")
        assert_measure(row["layout"], "s")
    activity = rows[1]
    # Models alone: 30 agents, 3,372 parameters of 4 bytes, every iteration.
    models = activity["iterations"] * 30 * 3372 * 4
    assert models < activity["bytes"] < 1.2 * models + 2 * 30 * 3372 * 4


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    path = tmp_path_factory.mktemp("scale") / "s.json"
    options = ("--sweep", "strong,weak,few,edges", "--study", "target-localization,activity-recognition")
    sizes = ("--agents", "40", "--edges", "20,60", "--repeats", "2")
    done = mpirun(2, "bench", "scale", *options, *sizes, "--json", path, "--folder", path.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def test_scale_runs_on_ever_more_ranks_and_sizes(scaled: tuple[dict[str, Any], str]):
    report, printed = scaled
    rows = report["scale"]
    points = [(row["sweep"], row["study"].split("-")[0], row["ranks"], row["agents"]) for row in rows]
    assert points == [
        *(("strong", "target", ranks, 40) for ranks in (1, 2)),
        *(("strong", "activity", ranks, 30) for ranks in (1, 2)),
        *(("weak", "target", ranks, 40 * ranks) for ranks in (1, 2)),
        *(("few", "target", 1, agents) for agents in (100, 300)),
        *(("edges", "target", ranks, agents) for ranks in (1, 2) for agents in (20, 60)),
    ]
    assert [machine["ranks"] for machine in report["machine"]] == [1, 2]
    assert report["machine"][0]["messages"] == {}
    for machine in report["machine"]:
        assert [turns["agents"] for turns in machine["turns"]] == list(scale.TURNS)
        for turns in machine["turns"]:
            assert_measure(turns["work"], "s")
            assert turns["turn"]["median"] >= 0
        sizes = [table["bytes"] for table in machine["reading"]]
        assert sizes == sorted(sizes)
        for table in machine["reading"]:
            assert_measure(table["edge"], "s")
    assert len(printed.splitlines()) == 1 + len(rows) + 2
    for row in rows:
        assert_measure(row["iteration"], "s")
        assert row["iteration"]["iterations"] >= 1
        assert set(row["phases"]) == {"adapt", "attack", "exchange", "evaluate", "combine", "measure", "record"}
        assert row["work"]["median"] > 0
        assert row["traffic"]["messages"] == row["ranks"] - 1
        assert ("times_one_rank" in row) == (row["sweep"] in ("strong", "weak"))
    # The complete graph: every row to every other rank.
    assert rows[3]["traffic"]["bytes"] == 15 * 3372 * 4


def test_a_cost_in_proportion_has_slope_one_and_a_fixed_part_is_told_apart():
    def rows(fixed: float, each: float) -> list[dict[str, Any]]:
        made = []
        for edges in (10_000, 30_000, 1_000_000):
            cost = fixed + each * edges
            row = {"sweep": "edges", "study": "s", "ranks": 1, "agents": edges // 10, "edges": edges, "parameters": 2}
            row["iteration"] = {"median": cost}
            made.append(row | {"phases": {"evaluate": each * edges / 4, "combine": each * edges / 4}})
        return made

    (law,) = scale.proportions(rows(0.0, 5e-8), "edges")
    assert law["slope"] == pytest.approx(1.0)
    assert (law["from"], law["to"]) == (10_000, 1_000_000)
    (law,) = scale.proportions(rows(1e-3, 5e-8), "edges")
    assert law["slope"] < 0.9
    assert law["rule_slope"] == pytest.approx(1.0)
    assert (law["fixed"], law["each"]) == (pytest.approx(1e-3), pytest.approx(5e-8))
    assert law["error"] < 1e-9


def test_a_neighbourhood_is_measured_by_its_mean_size():
    row = {"sweep": "neighbourhood", "study": "s", "ranks": 1, "agents": 10, "phases": {"evaluate": 1, "combine": 1}}
    rows = [row | {"edges": edges, "iteration": {"median": edges * 1e-6}} for edges in (30, 90)]
    (law,) = scale.proportions(rows, "neighbourhood")
    assert (law["from"], law["to"], law["slope"]) == (3.0, 9.0, pytest.approx(1.0))
    assert scale.proportions(rows[:1], "neighbourhood") == []


@pytest.mark.parametrize(("most", "ladder"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_ranks_double_up_to_all(most: int, ladder: list[int]):
    assert scale.ranks_of(most) == ladder


def test_the_mean_of_rows_is_the_same_in_place_and_block_by_block():
    from mpi_resmtl.bench.exchange import _BLOCK, _mean

    rows = list(np.random.default_rng(0).normal(size=(3, _BLOCK + 5)))
    expected = (rows[0] + rows[1] + rows[2]) / 3
    _mean(rows, rows[0])
    np.testing.assert_allclose(rows[0], expected, rtol=1e-12)
