"""When a benchmark is called slower than an earlier one: pure logic on made-up reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_resmtl.bench import against, ratio, spread
from mpi_resmtl.errors import UserError


def report(seconds: list[float], rates: list[float] | None = None, **row) -> dict:
    """A report of one row."""
    found = {"bytes": 16, "shared": True, "moved": {"raw": spread(seconds, "s")}, "share": spread([0.5])} | row
    if rates is not None:
        found["recorded"] = spread(rates, "B/s")
    return {"kind": "exchange", "environment": {"processor": "p"}, "ranks": 2, "exchange": [found]}


def verdicts(now: dict, before: dict, tolerance: float = 0.05) -> list[str]:
    return [change["verdict"] for change in against.compare(now, before, tolerance)]


def test_measures_are_named_by_what_they_are_of():
    names = [name for name, _ in against.measures(report([1.0, 2.0], rates=[3.0], degree=4, study="x"))]
    assert names == ["exchange bytes=16 degree=4 study=x moved raw", "exchange bytes=16 degree=4 study=x recorded"]


def test_more_seconds_are_slower_and_fewer_faster():
    before = report([1.0, 1.01, 1.02])
    assert verdicts(report([1.2, 1.21, 1.22]), before) == ["slower"]
    assert verdicts(report([0.8, 0.81, 0.82]), before) == ["faster"]
    assert verdicts(before, before) == ["same"]


def test_of_what_is_a_second_less_is_slower():
    before = report([1.0], rates=[100.0, 101.0, 102.0])
    assert verdicts(report([1.0], rates=[50.0, 51.0, 52.0]), before) == ["same", "slower"]
    assert verdicts(report([1.0], rates=[150.0, 151.0, 152.0]), before) == ["same", "faster"]


def test_what_lies_within_the_quartiles_or_the_tolerance_is_noise():
    before = report([1.0, 1.0, 1.0, 2.0, 2.0])
    assert verdicts(report([1.5, 1.6, 1.7, 1.8, 1.9]), before) == ["same"]
    steady = report([1.0, 1.0, 1.0])
    assert verdicts(report([1.04, 1.04, 1.04]), steady) == ["same"]
    assert verdicts(report([1.04, 1.04, 1.04]), steady, tolerance=0.01) == ["slower"]


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=9), st.lists(st.floats(0.01, 100), min_size=3, max_size=9))
def test_what_is_slower_one_way_is_faster_the_other(one: list[float], other: list[float]):
    (there,), (back,) = verdicts(report(one), report(other)), verdicts(report(other), report(one))
    assert {"slower": "faster", "faster": "slower", "same": "same"}[there] == back


def test_rows_are_compared_with_those_of_the_same_sizes_only():
    before = report([1.0], bytes=16)
    with pytest.raises(UserError, match="no measure in common"):
        against.compare(report([1.0], bytes=32), before, 0.05)
    both = {**before, "exchange": before["exchange"] + report([5.0], bytes=32)["exchange"]}
    assert verdicts(both, before) == ["same"]


def test_what_has_no_unit_is_not_compared():
    assert "share" not in " ".join(name for name, _ in against.measures(report([1.0])))


def test_the_text_begins_with_what_is_slower_and_names_another_processor():
    now, before = report([3.0, 3.0], rates=[10.0]), report([1.0, 1.0], rates=[5.0])
    before["environment"]["processor"] = "older"
    lines = against.told(against.compare(now, before, 0.05), now, before).splitlines()
    assert lines[0] == "note: processor was 'older', is 'p'"
    assert lines[1] == "slower: exchange bytes=16 moved raw: 1 -> 3 s, 3.00 times the time"
    assert lines[2].startswith("faster: exchange bytes=16 recorded: 5 -> 10 B/s, 0.50 times")
    assert lines[-1] == "1 slower, 1 faster, 0 same within the noise"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[1]", "was not written by"),
        ('{"kind": "exchange"}', "was not written by"),
        (json.dumps({"kind": "scale", "environment": {}}), "is of `bench scale`, this is `bench exchange`"),
        (json.dumps({"kind": "exchange", "environment": {}, "exchange": [{"moved": {"raw": 1}}]}), "has no measure"),
        (
            '{"kind": "exchange", "environment": {}, "exchange": [{"a": {"unit": "s", "median": null}}]}',
            "has no measure",
        ),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_an_earlier_file_that_cannot_be_used_is_refused(content: str | None, message: str, tmp_path: Path):
    path = tmp_path / "earlier.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        against.read(path, "exchange")


def test_a_spread_has_median_ends_and_quartiles():
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0], "s")
    assert found == {"median": 3.0, "min": 1.0, "max": 5.0, "quartiles": [2.0, 4.0], "unit": "s"}
    assert spread([7.0]) == {"median": 7.0, "min": 7.0, "max": 7.0, "quartiles": [7.0, 7.0]}


def test_a_ratio_is_taken_turn_by_turn():
    assert ratio({"seconds": [1.0, 20.0, 3.0]}, {"seconds": [2.0, 10.0, 3.0]})["median"] == 1.0
