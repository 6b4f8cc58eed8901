"""Recorded streams give the values an independent program computed, at several numbers of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpirun import mpirun
from oracle import deviations, read_expected, read_stream
from results import recorded_result

TOLERANCE = {
    "location": dict.fromkeys(("model", "loss", "weight"), 1e-9),
    "linear-classifier": {"weight": 1e-6, "accumulated": 1e-6, "model_last": 1e-6},
    "digit-cnn": {"weight": 1e-5, "accumulated": 1e-5, "model_last_sampled": 1e-4, "model_norm": 1e-4},
}
"""Section 7 of the design: relative for the location, absolute for the networks."""

LOCATION = [
    "target_localization_seed0_byzantine0",
    "target_localization_seed0_byzantine20",
    "target_localization_seed1_byzantine99",
]
NETWORKS = ["activity_recognition_seed5", "digit_classification_seed2"]
CASES = [(s, r, p) for s in LOCATION for r in (1, 2, 3, 4, 5) for p in ("own", "neighbour")]
CASES += [(s, r, "own") for s in NETWORKS for r in (1, 2, 5)]


@pytest.mark.parametrize(("stream", "ranks", "position"), CASES, indirect=["stream"])
def test_a_golden_stream_gives_what_is_expected(stream: Path, ranks: int, position: str, tmp_path: Path):
    output = tmp_path / "out.h5"
    settings = [f"task.file={stream}", "rules=none,average,distance,loss", f"task.loss_position={position}"]
    done = mpirun(ranks, "run", "recorded", *(w for s in settings for w in ("--set", s)), "--output", output)
    assert done.returncode == 0, done.stderr
    recorded, compared = read_stream(stream), 0
    for (where, rule), expected in read_expected(stream).items():
        if where != position:
            continue
        found = deviations(recorded, recorded_result(output, rule, recorded["edge"]), expected)
        for name, deviation in found.items():
            assert deviation <= TOLERANCE[recorded["model"]][name], f"{rule}: {name} is off by {deviation}"
            compared += 1
    assert compared
