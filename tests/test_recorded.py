"""Recorded streams made here: they run like the oracle, and broken ones are refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpirun import alone, mpirun
from oracle import read_stream, simulate
from results import recorded_result

AGENTS, LENGTH = 8, 12


def write_stream(path: Path, model: str, messages: str = "constant", seed: int = 0) -> Path:
    """A random stream; `messages` of its two attackers: "constant", "changing" or "none"."""
    random = np.random.default_rng(seed)
    inputs, classes, batch = 5, 3, 4
    parameters = 2 if model == "location" else classes * inputs + classes
    heard = random.random((AGENTS, AGENTS)) < 0.6
    np.fill_diagonal(heard, True)
    target, source = np.argwhere(heard).T
    shuffled = random.permutation(len(source))
    dtype = np.float64 if model == "location" else np.float32
    with h5py.File(path, "w") as file:
        file.attrs.update(model=model, step_size=0.1, forgetting_factor=0.2, initial_accumulated_loss=3.0)
        file["graph/edge"] = np.stack([source, target], axis=1)[shuffled]
        file["agent/byzantine"] = [1, 5] if messages != "none" else np.zeros(0, int)
        file["agent/initial"] = random.random((AGENTS, parameters)).astype(dtype)
        if model == "location":
            file["agent/position"] = random.random((AGENTS, 2)) * 3
            file["stream/x"] = random.normal(size=(LENGTH, AGENTS, 2))
            file["stream/y"] = random.normal(10, 1, (LENGTH, AGENTS))
        else:
            file.attrs.update(optimizer="sgd", classes=classes)
            file["stream/x"] = random.normal(size=(LENGTH, AGENTS, batch, inputs)).astype(np.float32)
            file["stream/y"] = random.integers(0, classes, (LENGTH, AGENTS, batch))
            file["stream/active"] = random.random((LENGTH, AGENTS)) < 0.7
        if messages != "none":
            shape = (2, parameters) if messages == "constant" else (LENGTH, 2, parameters)
            file["attack/message"] = random.normal(size=shape)
    return path


@pytest.mark.parametrize("model", ["location", "linear-classifier"])
@pytest.mark.parametrize(("messages", "anchor", "seed"), [("constant", "previous", 1), ("changing", "lookahead", 2)])
def test_a_stream_of_ones_own_runs_like_the_oracle(model: str, messages: str, anchor: str, seed: int, tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", model, messages, seed)
    rules = ["none", "average", "distance", "loss-unfiltered", "loss"]
    settings = [f"task.file={path}", f"rules={','.join(rules)}", f"rule.distance.anchor={anchor}"]
    done = mpirun(2, "run", "recorded", *(w for s in settings for w in ("--set", s)), "--output", tmp_path / "out.h5")
    assert done.returncode == 0, done.stderr
    stream = read_stream(path)
    into_normal = ~np.isin(stream["edge"][:, 1], stream["byzantine"])
    normal = np.setdiff1d(np.arange(AGENTS), stream["byzantine"])
    tolerance = {"rtol": 1e-10} if model == "location" else {"rtol": 2e-5, "atol": 1e-6}
    for rule in rules:
        expected = simulate(stream, rule, anchor=anchor)
        found = recorded_result(tmp_path / "out.h5", rule, stream["edge"])
        np.testing.assert_allclose(found["weight"][:, into_normal], expected["weight"][:, into_normal], **tolerance)
        np.testing.assert_allclose(found["model"][:, normal], expected["model"][:, normal], **tolerance)
        np.testing.assert_allclose(found["loss"][:, normal], expected["loss"][:, normal], **tolerance)
        if "accumulated" in found:
            wanted = expected["accumulated"][:, into_normal]
            np.testing.assert_allclose(found["accumulated"][:, into_normal], wanted, **tolerance)


def test_another_attack_may_be_named_and_iterations_cut(tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", "location")
    settings = [f"task.file={path}", "byzantine.attack=uniform", "byzantine.count=3", "iterations=4", "rules=loss"]
    done = alone("run", "recorded", *(w for s in settings for w in ("--set", s)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "recorded.h5") as file:
        assert np.count_nonzero(file["graph/byzantine"]) == 3
        assert file["rule/loss/loss"].shape == (4, AGENTS)
        assert file.attrs["data"] == "recorded"
        assert len(file.attrs["data_sha256"]) == 64


@pytest.mark.parametrize("model", ["location", "linear-classifier"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, 1e-310])
def test_no_model_but_the_averages_is_harmed_by_messages_that_are_not_finite(model: str, bad: float, tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", model, "changing")
    with h5py.File(path, "r+") as file:
        message = file["attack/message"][()]
        message[::2, 0], message[1::3, 1, 1] = bad, bad
        file["attack/message"][...] = message
    rules = ["average", "distance", "loss-unfiltered", "loss"]
    settings = [f"task.file={path}", f"rules={','.join(rules)}"]
    done = alone("run", "recorded", *(w for s in settings for w in ("--set", s)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    stream = read_stream(path)
    normal = np.setdiff1d(np.arange(AGENTS), stream["byzantine"])
    for rule in rules:
        found = recorded_result(tmp_path / "recorded.h5", rule, stream["edge"])
        if rule == "average":
            assert np.isfinite(found["model"][:, normal]).all() == (
                (bad in (3e38, 1e-310) and model == "location") or bad == 1e-310
            )
            continue
        assert np.isfinite(found["model"][:, normal]).all(), rule
        if not np.isfinite(bad):
            heard_from = np.isin(stream["edge"][:, 0], [1]) & np.isin(stream["edge"][:, 1], normal)
            assert (found["weight"][::2, heard_from] == 0).all(), rule
        sums = np.stack([found["weight"][:, stream["edge"][:, 1] == k].sum(axis=1) for k in normal])
        np.testing.assert_allclose(sums, 1, rtol=1e-12)


def without(name: str) -> Callable:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def replaced(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def change(file: h5py.File) -> None:
        values = make(file[name][()])
        del file[name]
        file[name] = values

    return change


def attribute(name: str, value: object) -> Callable:
    return lambda file: file.attrs.__setitem__(name, value)


def put(values: np.ndarray, place: tuple, value: object) -> np.ndarray:
    values[place] = value
    return values


BROKEN = [
    ("location", without("stream/x"), "has no /stream/x"),
    ("location", without("agent/position"), "has no /agent/position"),
    ("location", without("attack/message"), "no /attack/message"),
    ("location", attribute("model", "tree"), "attribute model is 'tree'"),
    ("location", attribute("step_size", "fast"), "attribute step_size"),
    ("location", attribute("step_size", -1.0), "task.step_size = -1.0"),
    ("location", attribute("forgetting_factor", 2.0), "rule.forgetting_factor = 2.0"),
    ("location", replaced("graph/edge", lambda e: put(e, (3, 0), AGENTS)), "agents are 0 to 7"),
    ("location", replaced("graph/edge", lambda e: e[:, :1]), "/graph/edge"),
    ("location", replaced("agent/byzantine", lambda b: np.array([5, 1])), "ascending order"),
    ("location", replaced("agent/byzantine", lambda b: np.array([1, 99])), "99 is not an agent"),
    ("location", replaced("agent/initial", lambda a: put(a, (2, 0), np.nan)), "/agent/initial has values that are not"),
    ("location", replaced("agent/initial", lambda a: a[:, :1]), "/agent/initial"),
    ("location", replaced("agent/initial", lambda a: a[1:]), "do not fit"),
    ("location", replaced("stream/x", lambda x: put(x, (4, 2, 0), np.inf)), "not finite"),
    ("location", replaced("stream/x", lambda x: x[..., :1]), "which location does not take"),
    ("location", replaced("stream/y", lambda y: y[:-1]), "/stream/y"),
    ("location", replaced("attack/message", lambda m: m[:1]), "/attack/message is (1, 2)"),
    ("linear-classifier", replaced("stream/y", lambda y: put(y, (2, 3, 0), 3)), "labels outside 0 to 2"),
    ("linear-classifier", replaced("stream/y", lambda y: y.astype(float)), "float64 (12, 8, 4), expected integers"),
    ("linear-classifier", attribute("classes", 1), "attribute classes"),
    ("linear-classifier", attribute("classes", 4), "has 24"),
    ("linear-classifier", attribute("optimizer", "magic"), "task.optimizer = 'magic'"),
    ("linear-classifier", replaced("stream/active", lambda a: a[:, :2]), "/stream/active"),
]


def refused_run(path: Path, message: str, ranks: int = 0, *settings: str) -> None:
    arguments = ["run", "recorded", *(w for s in (f"task.file={path}", *settings) for w in ("--set", s))]
    done = mpirun(ranks, *arguments, cwd=path.parent) if ranks else alone(*arguments, cwd=path.parent)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("mpi-resmtl: ")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("model", "change", "message"), BROKEN, ids=[message for _, _, message in BROKEN])
def test_a_broken_stream_is_refused_in_one_line(model: str, change: Callable, message: str, tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", model)
    with h5py.File(path, "r+") as file:
        change(file)
    refused_run(path, message)


def test_a_broken_stream_is_refused_at_several_ranks_also_where_one_rank_alone_meets_it(tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", "linear-classifier")
    with h5py.File(path, "r+") as file:
        file["stream/y"][0, AGENTS - 1, 0] = 7
    refused_run(path, "labels outside 0 to 2", 3)


def test_a_truncated_stream_and_too_many_iterations_are_refused(tmp_path: Path):
    path = write_stream(tmp_path / "stream.h5", "location")
    refused_run(path, "iterations = 13", 0, f"iterations={LENGTH + 1}")
    path.write_bytes(path.read_bytes()[:3000])
    refused_run(path, "not a whole HDF5 file")
    path.write_bytes(b"")
    refused_run(path, "not a whole HDF5 file", 2)
