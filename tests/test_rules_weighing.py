"""Rules that weigh messages by W, distance or loss are what their formulas say, whoever is computed beside whom."""

from __future__ import annotations

import types
from dataclasses import replace

import numpy as np
import oracle_weighing as oracle
import pytest
from hearing import aggregate, cases, close, each, heard
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_resmtl.bench.rules import byzfl_aggregators
from mpi_resmtl.errors import UserError
from mpi_resmtl.rules import RULES, Heard

EXACT = ("ties", "far", "normal")
BY_DISTANCE = ("ios", "monna", "balance", "clipped-gossip", "cs-plus")
BY_LOSS = ("ubar", "pens", "dac", "fedfomo", "loss-robust", "f-filter")
GOSSIP = ("metropolis", "mean-regularised", "oracle")
ALL = (*GOSSIP, *BY_DISTANCE, *BY_LOSS)

settings.register_profile("weighing", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("weighing")


def agrees(name: str, case: Heard, weights, tolerance: float = 1e-9, honest: bool = False, **parameters: float) -> None:
    """The rule's weights are `weights(messages, place of own, b, agent's row, places)`, its models their sums."""
    model, weight = aggregate(name, case, **parameters)
    for k, messages, places, b in each(case, name, honest):
        expected = weights(messages, list(places).index(case.own[k]), b, k, places)
        if expected is None:
            continue
        np.testing.assert_allclose(weight[k, places], [float(w) for w in expected], rtol=1e-9, atol=tolerance)
        close(model[k], oracle.combined(weight[k, places].tolist(), messages), messages)


@given(case=cases(parameters=(1, 2, 65, 300)))
def test_metropolis_takes_the_weights_of_the_graph(case: Heard):
    agrees("metropolis", case, lambda messages, own, b, k, places: case.metropolis[k, places])


@pytest.mark.parametrize("strength", [0.01, 0.5, 1.0])
@given(case=cases(parameters=(1, 65)))
def test_mean_regularised_moves_that_far_to_the_mean_of_the_neighbourhood(strength: float, case: Heard):
    agrees(
        "mean-regularised",
        case,
        lambda messages, own, b, k, places: oracle.mean_regularised(own, len(messages), strength),
        strength=strength,
    )


@given(case=cases(parameters=(1, 65)))
def test_the_oracle_averages_the_normal_agents_of_ones_own_group(case: Heard):
    agrees("oracle", case, lambda messages, own, b, k, places: oracle.oracle(own, case.friend[k, places].tolist()))


@given(case=cases(most=20, parameters=(1, 2, 65, 300), kinds=EXACT))
def test_monna_is_its_formula(case: Heard):
    agrees("monna", case, lambda messages, own, b, k, places: oracle.monna(messages, own, b), honest=True)


@settings(max_examples=40)
@given(case=cases(most=10, parameters=(1, 2, 9, 257), kinds=("normal",)))
def test_ios_is_its_formula(case: Heard):
    agrees(
        "ios",
        case,
        lambda messages, own, b, k, places: oracle.ios(messages, own, b, case.metropolis[k, places].tolist()),
        honest=True,
    )


def test_ios_drops_the_heavier_of_neighbours_equally_far_and_never_ones_own():
    """Degrees 1, 1 and 5 beside one's own 3: weights 1/4, 1/4 and 1/6. One's own is the farthest from the mean."""
    messages = np.array([[[5.0], [0.0], [0.0], [0.0]]])
    case = heard(messages, own=0, b=1, degree=np.array([[3, 1, 1, 5]]))
    _, weight = aggregate("ios", case)
    np.testing.assert_allclose(weight[0], np.array([1 / 3, 0, 1 / 4, 1 / 6]) / 0.75)
    _, weight = aggregate("ios", replace(case, b=np.array([2])))
    np.testing.assert_allclose(weight[0], np.array([1 / 3, 0, 0, 1 / 6]) / 0.5)


@pytest.mark.parametrize(("gamma", "kappa", "alpha"), [(0.3, 1.0, 0.5), (2.0, 0.3, 0.0), (1.1, 0.0, 1.0)])
@given(case=cases(parameters=(1, 2, 65), kinds=EXACT))
def test_balance_is_its_formula(gamma: float, kappa: float, alpha: float, case: Heard):
    agrees(
        "balance",
        case,
        lambda messages, own, b, k, places: oracle.balance(
            messages, own, gamma, kappa, alpha, case.iteration / case.iterations
        ),
        gamma=gamma,
        kappa=kappa,
        alpha=alpha,
    )


@pytest.mark.parametrize("name", ["clipped-gossip", "cs-plus"])
@given(case=cases(most=20, parameters=(1, 2, 65, 300), kinds=EXACT))
def test_clipping_is_its_formula(name: str, case: Heard):
    rule, tolerance = getattr(oracle, name.replace("-", "_")), 1e-9 if case.messages.dtype == np.float64 else 1e-6
    agrees(
        name,
        case,
        lambda messages, own, b, k, places: rule(messages, own, b, case.metropolis[k, places].tolist()),
        tolerance,
        honest=True,
    )


@pytest.mark.parametrize("name", ["clipped-gossip", "cs-plus"])
def test_a_clipped_message_pulls_no_farther_than_the_radius(name: str):
    generator = np.random.default_rng(3)
    messages = generator.normal(size=(5, 9, 3))
    at_once = aggregate(name, heard(messages, own=4, b=2))[0]
    for far in (1e3, 1e9, 1e300):
        pushed = messages.copy()
        pushed[:, 1] *= far
        model, _ = aggregate(name, heard(pushed, own=4, b=2))
        assert (np.linalg.norm(model - messages[:, 4], axis=1) < 10).all()
        assert (np.linalg.norm(model - at_once, axis=1) < 2).all()


@pytest.mark.parametrize(("rho", "alpha"), [(0.4, 0.5), (1.0, 0.0), (0.05, 0.25), (0.7, 1.0)])
@given(case=cases(most=20, parameters=(1, 2, 65), kinds=EXACT))
def test_ubar_is_its_formula(rho: float, alpha: float, case: Heard):
    agrees(
        "ubar",
        case,
        lambda messages, own, b, k, places: oracle.ubar(messages, own, case.judged[k, places].tolist(), rho, alpha),
        honest=True,
        rho=rho,
        alpha=alpha,
    )


@pytest.mark.parametrize("m", [1, 2, 50])
@given(case=cases(parameters=(1, 65)))
def test_pens_is_its_formula(m: int, case: Heard):
    agrees("pens", case, lambda messages, own, b, k, places: oracle.pens(case.judged[k, places].tolist(), own, m), m=m)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 1e6])
@given(case=cases(parameters=(1, 65)))
def test_dac_is_its_formula(temperature: float, case: Heard):
    agrees(
        "dac",
        case,
        lambda messages, own, b, k, places: oracle.dac(case.judged[k, places].tolist(), temperature),
        temperature=temperature,
    )


@given(case=cases(parameters=(1, 2, 65, 300), kinds=("ties", "normal")))
def test_fedfomo_is_its_formula(case: Heard):
    agrees(
        "fedfomo",
        case,
        lambda messages, own, b, k, places: oracle.fedfomo(
            messages, own, case.judged[k, places].tolist(), case.previous[k].tolist(), float(case.judged_previous[k])
        ),
        tolerance=1e-9 if case.messages.dtype == np.float64 else 1e-6,
    )


@pytest.mark.parametrize("cap", [0.01, 0.25, 1.0])
@given(case=cases(parameters=(1, 65)))
def test_loss_robust_is_its_formula(cap: float, case: Heard):
    agrees(
        "loss-robust",
        case,
        lambda messages, own, b, k, places: oracle.loss_robust(case.judged[k, places].tolist(), own, cap),
        cap=cap,
    )


@settings(max_examples=100)
@given(case=cases(most=9, parameters=(1, 65)))
def test_f_filter_is_its_formula(case: Heard):
    """Where two sets have all but equal estimates, rounding may take either: such agents are left out."""

    def weights(messages, own, b, k, places):
        losses, distances = case.judged[k, places].tolist(), case.distance[k, places].tolist()
        if 0 < b < len(messages) - 1:
            least = oracle.risk_estimates(losses, distances, own, b)
            if len(least) > 1 and least[1] <= least[0] * (1 + 1e-9):
                return None
        return oracle.f_filter(losses, distances, own, b)

    agrees("f-filter", case, weights)


def test_f_filter_drops_the_first_of_sets_that_are_equally_good():
    case = heard(np.zeros((1, 4, 1)), own=2, b=1, judged=np.ones((1, 4)), distance=np.ones((1, 4)))
    np.testing.assert_allclose(aggregate("f-filter", case)[1], [[0, 1 / 3, 1 / 3, 1 / 3]])


def test_f_filter_drops_the_neighbours_that_make_the_estimate_large():
    """A message that is near but of a great loss goes, one that is far has little weight anyway."""
    judged, distance = np.array([[1.0, 1.0, 100.0, 1.0, 1.0]]), np.array([[1.0, 1.0, 0.5, 1.0, 30.0]])
    case = heard(np.zeros((1, 5, 2)), own=0, b=1, judged=judged, distance=distance)
    shares = np.array([1, 1, 0, 1, 1 / 30])
    np.testing.assert_allclose(aggregate("f-filter", case)[1][0], shares / shares.sum())


def test_f_filter_refuses_too_many_subsets_by_number():
    check, options = RULES["f-filter"].check, RULES["f-filter"].parameters()
    check(10, 4, options)
    with pytest.raises(UserError, match=r"b = 15 of the 30 neighbours .* n = 31 .* 155117520 subsets, .* = 10000"):
        check(31, 15, options)
    check(31, 15, RULES["f-filter"].parameters(most_subsets=10**9))


@pytest.mark.parametrize("name", ALL)
@given(case=cases(parameters=(1, 2, 9, 300)))
def test_models_lie_between_the_messages_whatever_their_size(name: str, case: Heard):
    if name == "f-filter" and len(case.present[0]) > 12:
        case = replace(case, b=np.minimum(case.b, 1))
    model, _ = aggregate(name, case)
    for k, messages, _, _ in each(case, name):
        size = np.abs(np.array(messages)).max(axis=0) * 1e-5 + 1e-300
        assert (model[k] <= np.max(messages, axis=0) + size).all()
        assert (model[k] >= np.min(messages, axis=0) - size).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [1, 2, 66, 258])
def test_results_stay_finite_for_the_largest_values(name: str, dtype: type, parameters: int):
    largest = float(np.finfo(dtype).max)
    generator = np.random.default_rng(parameters)
    values = np.array([largest, -largest, 1.0, largest / 3, 0.0, 5e-324])
    held = np.array([0.0, 5e-324, 1.0, 1.7e308])
    for n in (2, 5, 9):
        for messages in (np.full((3, n, parameters), largest), generator.choice(values, (3, n, parameters))):
            judged, distance = generator.choice(held, (2, 3, n))
            case = heard(
                messages.astype(dtype),
                b=2,
                own=1,
                judged=judged,
                distance=np.maximum(distance, 5e-324),
                judged_previous=np.array([0.0, 1.7e308, np.inf]),
                previous=messages[:, 0].astype(dtype),
            )
            model, _ = aggregate(name, case)
            slack = np.abs(messages).max(axis=1) * 1e-5
            assert (model / 2 <= messages.max(axis=1) / 2 + slack).all()
            assert (model / 2 >= messages.min(axis=1) / 2 - slack).all()


@pytest.mark.parametrize("name", ALL)
@given(case=cases(most=14, parameters=(1, 2, 9, 65, 300), g=12, kinds=("normal", "far", "ties")))
def test_bits_do_not_depend_on_who_else_is_computed_or_on_empty_places(name: str, case: Heard):
    together = aggregate(name, case)
    for k in range(len(case.own)):
        here = case.present[k]
        by_place = {field: getattr(case, field)[k : k + 1, here] for field in ("friend", "judged", "distance")}
        alone = replace(
            heard(case.messages[k : k + 1, here], own=int(np.count_nonzero(here[: case.own[k]]))),
            metropolis=case.metropolis[k : k + 1, here],
            b=case.b[k : k + 1],
            previous=case.previous[k : k + 1],
            judged_previous=case.judged_previous[k : k + 1],
            iteration=case.iteration,
            iterations=case.iterations,
            **by_place,
        )
        model, weight = aggregate(name, alone)
        assert model[0].tobytes() == together[0][k].tobytes()
        assert weight[0].tobytes() == together[1][k, here].tobytes()


def moved(case: Heard, order: np.ndarray) -> Heard:
    """The same with the neighbours in another order."""
    fields = {f: getattr(case, f)[:, order] for f in ("present", "metropolis", "friend", "judged", "distance")}
    place = np.argsort(order)[case.own]
    return replace(case, messages=np.ascontiguousarray(case.messages[:, order]), own=place, **fields)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=30)
@given(case=cases(most=14, parameters=(1, 2, 65, 300), kinds=("normal",)), seed=st.integers(0, 2**32))
def test_the_order_of_neighbours_does_not_matter(name: str, case: Heard, seed: int):
    generator = np.random.default_rng(seed)
    # No two losses alike, since of equals the first in agent order counts as the least.
    judged = np.where(case.present, generator.random(case.present.shape), np.inf)
    case = replace(case, judged=judged, distance=np.where(case.present, 0.1 + judged, np.inf))
    order = generator.permutation(case.present.shape[1])
    model, weight = aggregate(name, case)
    other, weights = aggregate(name, moved(case, order))
    tolerance = 1e-5 if case.messages.dtype == np.float32 else 1e-9
    np.testing.assert_allclose(other, model, atol=tolerance)
    np.testing.assert_allclose(weights, weight[:, order], atol=tolerance)


@pytest.mark.parametrize("name", [name for name in ALL if name != "balance"])
@pytest.mark.parametrize("parameters", [1, 2, 66, 300])
def test_a_translation_of_all_messages_translates_the_result(name: str, parameters: int):
    generator = np.random.default_rng(5)
    messages, previous = generator.normal(size=(6, 9, parameters)), generator.normal(size=(6, parameters))
    shift = generator.normal(size=parameters) * 10
    judged, distance = generator.random((2, 6, 9))
    fields = {"judged": judged, "distance": distance, "judged_previous": generator.random(6), "b": 2, "own": 3}
    model, weight = aggregate(name, heard(messages, previous=previous, **fields))
    other, weights = aggregate(name, heard(messages + shift, previous=previous + shift, **fields))
    np.testing.assert_allclose(other, model + shift, atol=1e-9)
    np.testing.assert_allclose(weights, weight, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("parameters", [3, 66, 300])
def test_the_order_of_coordinates_does_not_matter(name: str, parameters: int):
    generator = np.random.default_rng(7)
    messages, previous = generator.normal(size=(6, 9, parameters)), generator.normal(size=(6, parameters))
    order = generator.permutation(parameters)
    judged, distance = generator.random((2, 6, 9))
    fields = {"judged": judged, "distance": distance, "judged_previous": generator.random(6), "b": 2, "own": 3}
    model, _ = aggregate(name, heard(messages, previous=previous, **fields))
    other, _ = aggregate(name, heard(messages[:, :, order], previous=previous[:, order], **fields))
    np.testing.assert_allclose(other, model[:, order], atol=1e-11)


@pytest.mark.parametrize("name", ALL)
def test_rules_that_use_b_say_how_much_they_stand(name: str):
    stands = {"ios": 8, "monna": 9, "clipped-gossip": 9, "cs-plus": 9, "f-filter": 9}
    rule = RULES[name]
    assert not rule.symmetric
    assert rule.reports == "weight"
    assert (rule.stands and rule.stands(10, rule.parameters())) == stands.get(name)


@pytest.mark.parametrize("name", ALL)
def test_alone_an_agent_keeps_its_own_model_to_the_bit(name: str):
    messages = np.random.default_rng(1).normal(size=(3, 1, 300))
    fields = {"judged": np.ones((3, 1)), "distance": np.ones((3, 1)), "judged_previous": np.zeros(3)}
    model, _ = aggregate(name, heard(messages, **fields))
    assert model.tobytes() == messages[:, 0].tobytes()


@pytest.fixture(scope="module")
def byzfl() -> types.ModuleType:
    """Its aggregators."""
    return byzfl_aggregators()


@pytest.mark.parametrize("parameters", [2, 66, 300])
@pytest.mark.parametrize("n", [5, 8, 21])
@pytest.mark.parametrize("f", [1, 2])
def test_byzfl_agrees_where_it_has_the_rule(byzfl: types.ModuleType, parameters: int, n: int, f: int):
    messages = np.random.default_rng(n).normal(size=(1, n, parameters))
    case = heard(messages, own=2, b=f)
    monna, _ = aggregate("monna", case)
    np.testing.assert_allclose(monna[0], byzfl.MoNNA(f, idx=2)(messages[0]), rtol=1e-9)
    # Its clipping is around a centre of one's choice, with a radius above 0 of one's choice; ours chooses both.
    pushed = messages.copy()
    pushed[0, -f:] += 40
    for name in ("clipped-gossip", "cs-plus"):
        model, weight = aggregate(name, heard(pushed, own=2, b=f))
        distance = np.linalg.norm(pushed[0] - pushed[0, 2], axis=1)
        cut = n * weight[0] < 1 - 1e-9
        assert cut[-f:].all()
        radius = float((n * weight[0] * distance)[cut].max())
        theirs = byzfl.CenteredClipping(tau=max(radius, 1e-12))
        theirs.m = pushed[0, 2].copy()
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(model[0], theirs(pushed[0]), rtol=1e-9, atol=1e-11)
