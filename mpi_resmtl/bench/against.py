"""What has changed between two runs of a benchmark, and whether it is more than noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpi_resmtl.errors import UserError

SLOWER = 3
"""Exit status when something has become slower."""

_ABOUT = ("environment", "against")


def read(path: Path, kind: str) -> dict[str, Any]:
    """An earlier report of the same kind; raises UserError."""
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--against {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"--against {path}: is not JSON") from None
    if not isinstance(report, dict) or not isinstance(report.get("environment"), dict) or "kind" not in report:
        raise UserError(f"--against {path}: was not written by `mpi-resmtl bench ... --json`")
    if report["kind"] != kind:
        raise UserError(f"--against {path}: is of `bench {report['kind']}`, this is `bench {kind}`")
    if not dict(measures(report)):
        raise UserError(f"--against {path}: has no measure to compare with")
    return report


def measures(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every measure of a report with a name that says what it is of: its rows' words and whole numbers, then its place.

    A measure has a `unit`, a `median` and `quartiles`.
    """
    for key, value in report.items():
        if key not in _ABOUT:
            yield from _within(value, f"{key}")


def _within(value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, list):
        for row in value:
            if isinstance(row, dict):
                about = [f"{k}={v}" for k, v in row.items() if isinstance(v, str | int) and not isinstance(v, bool)]
                yield from _within(row, " ".join([name, *about]))
    elif isinstance(value, dict):
        if _is_measure(value):
            yield name, value
            return
        for key, part in value.items():
            yield from _within(part, f"{name} {key}")


def _is_measure(value: dict[str, Any]) -> bool:
    def numbers(*found: Any) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)

    quartiles = value.get("quartiles")
    return (
        isinstance(value.get("unit"), str)
        and numbers(value.get("median"))
        and isinstance(quartiles, list)
        and len(quartiles) == 2
        and numbers(*quartiles)
    )


def compare(now: dict[str, Any], before: dict[str, Any], tolerance: float) -> list[dict[str, Any]]:
    """What is in both reports: name, unit, both medians, `times` as slow as before and the verdict.

    "slower": the median is slower by more than `tolerance` (a share) and the quartiles do not overlap; "faster" is the
    same the other way round; else "same". Of seconds more is slower, of what is "a second" less. Raises UserError when
    nothing is in both.
    """
    earlier, changes = dict(measures(before)), []
    for name, new in measures(now):
        old = earlier.get(name)
        if old is None or old["unit"] != new["unit"] or old["median"] <= 0 or new["median"] <= 0:
            continue
        rate = new["unit"].endswith("/s")
        slow, fast = (old, new) if rate else (new, old)
        times = slow["median"] / fast["median"]
        apart = _apart(new["quartiles"], old["quartiles"])
        verdict = "same"
        if apart and times > 1 + tolerance:
            verdict = "slower"
        elif apart and 1 / times > 1 + tolerance:
            verdict = "faster"
        changes.append(
            {
                "name": name,
                "unit": new["unit"],
                "before": old["median"],
                "now": new["median"],
                "times": times,
                "verdict": verdict,
            }
        )
    if not changes:
        raise UserError("--against: no measure in common; other ranks, sizes or options?")
    return changes


def _apart(one: list[float], other: list[float]) -> bool:
    return one[0] > other[1] or other[0] > one[1]


def told(changes: list[dict[str, Any]], now: dict[str, Any], before: dict[str, Any]) -> str:
    """The comparison as lines of text, what has become slower first."""
    lines = [
        f"note: {key} was {before['environment'].get(key)!r}, is {now['environment'].get(key)!r}"
        for key in ("processor", "cores", "versions")
        if before["environment"].get(key) != now["environment"].get(key)
    ]
    for verdict in ("slower", "faster"):
        found = sorted((c for c in changes if c["verdict"] == verdict), key=lambda c: -abs(c["times"] - 1))
        for change in found:
            values = f"{change['before']:.3g} -> {change['now']:.3g} {change['unit']}"
            lines.append(f"{verdict}: {change['name']}: {values}, {change['times']:.2f} times the time")
    counts = {v: sum(c["verdict"] == v for c in changes) for v in ("slower", "faster", "same")}
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + " within the noise")
    return "\n".join(lines)
