"""Reading result files in tests."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

UNREPEATABLE = ("seconds", "traffic")
"""Datasets of a rule that depend on the machine or the number of ranks."""


def rule_datasets(path: Path) -> dict[str, np.ndarray]:
    """Every dataset under /rule that must not depend on ranks or machine, by path."""
    found = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset) and name.rsplit("/", 1)[-1] not in UNREPEATABLE:
            found[name] = item[()]

    with h5py.File(path) as file:
        file["rule"].visititems(visit)
    return found


def assert_identical(path: Path, other: Path) -> None:
    """Both files hold the same datasets of rules, to the bit, NaN in the same places."""
    one, two = rule_datasets(path), rule_datasets(other)
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values.dtype == two[name].dtype, name
        assert values.tobytes() == two[name].tobytes(), f"{name} differs"


def recorded_result(path: Path, rule: str, edge: np.ndarray) -> dict[str, np.ndarray]:
    """What a run of a recorded stream found, in the shapes of the stream's /expected and its order of edges (E, 2)."""
    with h5py.File(path) as file:
        mine = [tuple(e) for e in file["graph/edge"][()].tolist()]
        place = {e: i for i, e in enumerate(mine)}
        order = [place[tuple(e)] for e in edge.tolist()]
        found = {name: item[()] for name, item in file[f"rule/{rule}"].items()}
    for name in ("weight", "accumulated"):
        if name in found:
            found[name] = found[name][:, order]
    return found
