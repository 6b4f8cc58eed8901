"""What agents hear, made up for tests of rules: messages of all kinds, some missing, and what is held against them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from mpi_resmtl.rules import RULES, Heard


def heard(
    messages: np.ndarray,
    present: np.ndarray | None = None,
    b: int = 0,
    own: int | np.ndarray | None = None,
    degree: np.ndarray | None = None,
    **fields,
) -> Heard:
    """Messages (g, n, P), those not present replaced by 0; b lowered later, own the first that is present.

    `degree` (g, n) neighbours of each that speaks, by default as many as everyone has in a complete graph; `fields` of
    `Heard` replace what they have by default.
    """
    g, n, parameters = messages.shape
    present = np.ones((g, n), bool) if present is None else present
    own = present.argmax(axis=1) if own is None else np.broadcast_to(own, g).astype(np.intp)
    degree = np.full((g, n), n - 1) if degree is None else degree
    rows = np.arange(g)
    metropolis = np.where(present, 1.0 / (1.0 + np.maximum(degree, degree[rows, own][:, None])), 0.0)
    metropolis[rows, own] = 0.0
    metropolis[rows, own] = 1.0 - metropolis.sum(axis=1)
    made = Heard(
        messages=np.ascontiguousarray(np.where(present[:, :, None], messages, 0).astype(messages.dtype)),
        present=present,
        whole=bool(present.all()),
        own=own,
        previous=np.zeros((g, parameters), messages.dtype),
        metropolis=metropolis,
        friend=present,
        judged=None,
        distance=None,
        judged_previous=None,
        b=np.full(g, b, np.intp),
        agent=np.arange(g),
        iteration=0,
        iterations=1,
        seed=0,
        reported=True,
    )
    return replace(made, **fields)


def lowered(given: Heard, name: str, **parameters: float) -> Heard:
    """The same with b lowered to what the rule can stand, as the suite does it."""
    rule = RULES[name]
    if rule.stands is None:
        return given
    most = [max(0, rule.stands(n, rule.parameters(**parameters))) for n in given.count.tolist()]
    return replace(given, b=np.minimum(given.b, most))


def aggregate(name: str, given: Heard, **parameters: float) -> tuple[np.ndarray, np.ndarray | None]:
    """The rule's results with b lowered to what it can stand; checks what holds for every rule."""
    rule = RULES[name]
    given, options = lowered(given, name, **parameters), rule.parameters(**parameters)
    before = given.messages.copy()
    model, part = rule.aggregate(given, options)
    np.testing.assert_array_equal(given.messages, before)
    assert model.shape == given.previous.shape
    assert model.dtype == given.messages.dtype
    assert np.isfinite(model).all()
    if rule.reports is None:
        assert part is None
        return model, None
    assert part.shape == given.present.shape
    assert (part >= 0).all()
    assert (part[~given.present] == 0).all()
    np.testing.assert_allclose(part.sum(axis=1), 1.0, rtol=1e-9)
    bare = rule.aggregate(replace(given, reported=False), options)[0]
    np.testing.assert_array_equal(bare, model)
    return model, part


@st.composite
def cases(
    draw,
    most: int = 40,
    parameters: tuple[int, ...] = (1, 2, 3, 65, 300),
    g: int = 4,
    kinds: tuple[str, ...] = ("ties", "normal", "huge", "tiny", "far"),
) -> Heard:
    """Several agents' messages of one kind, some missing, and all that rules may ask for beside them.

    ties: small integers; normal: N(0, 1); huge and tiny: integers times a large and a small power of two; far: less
    than a third of them huge.
    """
    n = draw(st.integers(1, most))
    size = draw(st.sampled_from(parameters))
    kind = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from((np.float64, np.float32)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    messages = generator.integers(-3, 4, (g, n, size)).astype(np.float64)
    if kind == "normal":
        messages = generator.normal(size=(g, n, size))
    large = (2.0**1000, 2.0**-1000) if dtype == np.float64 else (2.0**120, 2.0**-120)
    if kind == "huge":
        messages *= large[0]
    if kind == "tiny":
        messages *= large[1]
    if kind == "far":
        messages[:, : (n - 1) // 3] *= large[0]
    present = np.ones((g, n), bool) if draw(st.booleans()) else generator.random((g, n)) < 0.7
    own = generator.integers(0, n, g) if draw(st.booleans()) else np.full(g, draw(st.integers(0, n - 1)))
    present[np.arange(g), own] = True
    degree = generator.integers(1, 2 * n + 1, (g, n))
    degree[np.arange(g), own] = n - 1
    judged, distance = (held_against(generator, present) for _ in range(2))
    return heard(
        messages.astype(dtype),
        present,
        b=draw(st.integers(0, n // 2)),
        own=own,
        degree=degree,
        friend=present & (generator.random((g, n)) < 0.5),
        previous=generator.integers(-3, 4, (g, size)).astype(dtype),
        judged=judged,
        distance=np.maximum(distance, 1e-3),
        judged_previous=generator.integers(0, 9, g) / 4.0,
        iteration=draw(st.integers(0, 9)),
        iterations=10,
    )


def held_against(generator: np.random.Generator, present: np.ndarray) -> np.ndarray:
    """Losses of the messages present (g, n): many equal, some 0, some very large; inf where none is."""
    values = generator.choice([0.0, 0.25, 0.5, 1.0, 1.5, 1e-30, 1e30], present.shape)
    values = np.where(generator.random(present.shape) < 0.5, values, generator.random(present.shape))
    return np.where(present, values, np.inf)


def each(given: Heard, name: str, honest: bool = False) -> list[tuple[int, list[list[float]], np.ndarray, int]]:
    """For each agent: its row, its messages, their places, and b as lowered for the rule.

    With `honest`, without agents that hear more than b messages from very far, or speak from there, as floats do not
    tell how far exactly.
    """
    given, found = lowered(given, name), []
    for k in range(len(given.messages)):
        places, b = np.flatnonzero(given.present[k]), int(given.b[k])
        size = np.abs(given.messages[k, places]).max(axis=1)
        far = size > 1e30
        if honest and far.any() and (far.sum() > b or far[places == given.own[k]].any()):
            continue
        found.append((k, given.messages[k, places].tolist(), places, b))
    return found


def close(actual: np.ndarray, expected: list, messages: list[list[float]]) -> None:
    """Agreement to rounding, relative to the largest value in each coordinate."""
    eps = 2e-12 if actual.dtype == np.float64 else 2e-5
    size = np.abs(np.array(messages)).max(axis=0)
    np.testing.assert_array_less(np.abs(actual - np.array([float(x) for x in expected])), eps * size + 1e-300)
