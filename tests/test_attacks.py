"""Each attack is what its formula says, whoever its victims are and on however many ranks its attackers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import oracle_attacks as oracle
import pytest
from attacking import NU, PHI_0, Fray, Margin, Plane, fray, spoken
from scipy import stats

from mpi_resmtl.attacks import ATTACKS
from mpi_resmtl.errors import UserError

WORLDS = range(8)
FEW = range(3)
SIZES = (1, 2, 3, 7)


def options(name: str, **parameters: object) -> object:
    return ATTACKS[name].parameters(**parameters)


def lists(values: np.ndarray) -> list:
    return np.asarray(values, np.float64).tolist()


def assert_said(found: list[dict], expected: Callable[[int, int, int], list[float] | None], world: Fray, rtol=1e-9):
    """Every message to a normal victim is the expected one."""
    pairs = world.world.edges()
    for t in world.iterations:
        for attacker, victim in pairs:
            message, wanted = found[t][attacker, victim], expected(t, attacker, victim)
            assert (message is None) == (wanted is None), (t, attacker, victim)
            if wanted is not None:
                margin = rtol * max(1.0, float(np.abs(wanted).max()))
                np.testing.assert_allclose(message, wanted, rtol=0, atol=margin, err_msg=f"{t} {attacker} {victim}")


def worlds(count: range = WORLDS, **kind: object) -> Iterator[Fray]:
    for seed in count:
        for parameters in SIZES:
            yield fray(100 * seed + parameters, parameters, **kind)


@pytest.mark.parametrize("over", ["neighbourhood", "all"])
@pytest.mark.parametrize("z", [None, 1.7])
def test_little_is_the_mean_less_z_deviations(over: str, z: float | None):
    for case in worlds():
        psi = lists(case.psi)
        found = case.messages("little", z=z, over=over)
        assert_said(found, lambda t, _, k, c=case, p=psi: oracle.little(c.world, k, p[t], z, over), case)


def test_little_takes_the_published_z():
    """Baruch et al.: 50 workers of which 24 are corrupt need 2 supporters, so z = Phi^-1(24/26)."""
    from mpi_resmtl.attacks.collusion import supporting_deviations

    (z,) = supporting_deviations(np.array([26]), np.array([24]))
    assert z == pytest.approx(stats.norm.ppf(24 / 26), rel=1e-12)
    assert supporting_deviations(np.array([3]), np.array([40])) == pytest.approx(stats.norm.ppf(2 / 3))


@pytest.mark.parametrize("over", ["neighbourhood", "all"])
def test_inner_product_turns_the_mean_update_round(over: str):
    for case in worlds():
        psi, previous = lists(case.psi), lists(case.previous)
        found = case.messages("inner-product", eps=0.7, over=over)
        expected = lambda t, _, k, c=case, p=psi, q=previous: oracle.inner_product(c.world, k, p[t], q[t], 0.7, over)  # noqa: E731
        assert_said(found, expected, case)


@pytest.mark.parametrize("over", ["neighbourhood", "all"])
def test_inner_product_finds_the_eps_that_carries_the_median_farthest(over: str):
    for case in worlds():
        psi, previous = lists(case.psi), lists(case.previous)
        found = case.messages("inner-product", search=True, over=over)
        world = case.world
        for t in case.iterations:
            for attacker, k in world.edges():
                wanted = oracle.inner_product_search(world, k, psi[t], previous[t], 0.5, over)
                np.testing.assert_allclose(found[t][attacker, k], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("over", ["neighbourhood", "all"])
def test_min_max_goes_as_far_as_two_normal_models_are_apart(over: str):
    for case in worlds():
        psi = lists(case.psi)
        found = case.messages("min-max", over=over)
        assert_said(found, lambda t, _, k, c=case, p=psi: oracle.min_max(c.world, k, p[t], over), case, 1e-7)


@pytest.mark.parametrize("over", ["neighbourhood", "all"])
def test_mimic_copies_the_farthest_agent_to_the_bit(over: str):
    for case in worlds():
        psi, found, world = lists(case.psi), case.messages("mimic", over=over), case.world
        for t in case.iterations:
            for attacker, k in world.edges():
                candidates = [case.psi[t, a].tobytes() for a in oracle.farthest(world, k, psi[t], over)]
                assert found[t][attacker, k].tobytes() in candidates
            if over == "all":
                assert len({message.tobytes() for message in found[t].values()}) <= 1


def test_mimic_copies_the_agent_it_is_given():
    for case in worlds(FEW):
        chosen, psi = int(np.flatnonzero(~case.byzantine)[-1]), lists(case.psi)
        assert_said(case.messages("mimic", agent=chosen), lambda t, _, k, p=psi, a=chosen: p[t][a], case, 0)


def test_dissensus_is_its_formula():
    for case in worlds():
        psi = lists(case.psi)
        found = case.messages("dissensus", eps=1.5)
        assert_said(found, lambda t, _, k, c=case, p=psi: oracle.dissensus(c.world, k, p[t], 1.5), case)


def test_isolation_leaves_gossip_with_the_victims_own_model():
    for case in worlds():
        world, found = case.world, case.messages("isolation")
        for t in case.iterations:
            for k in {victim for _, victim in world.edges()}:
                heard = {a: lists(case.psi[t, a]) for a in world.normal(k)}
                heard |= {liar: lists(found[t][liar, k]) for liar in world.liars(k)}
                np.testing.assert_allclose(oracle.gossip(world, k, heard), case.psi[t, k], rtol=1e-9, atol=1e-9)


def test_dissensus_of_eps_1_isolates_too_and_more_drives_the_victim_away():
    for case in worlds(FEW):
        world = case.world
        one, two = (case.messages("dissensus", eps=eps)[0] for eps in (1.0, 2.0))
        for k in {victim for _, victim in world.edges()}:
            honest = {a: lists(case.psi[0, a]) for a in world.normal(k)}
            own = np.array(honest[k])
            alone = oracle.gossip(world, k, honest | {liar: lists(one[liar, k]) for liar in world.liars(k)})
            np.testing.assert_allclose(alone, own, rtol=1e-9, atol=1e-9)
            driven = oracle.gossip(world, k, honest | {liar: lists(two[liar, k]) for liar in world.liars(k)})
            pull = np.array(oracle.pull(world, k, lists(case.psi[0])))
            np.testing.assert_allclose(driven - own, -pull, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_drift_is_a_step_ahead_of_the_victim_to_its_goal(relative: bool, step: float):
    for case in worlds(FEW):
        previous = lists(case.previous)
        found = case.messages("drift", r=0.1, goal=30.0, relative=relative, step=step)

        def expected(t: int, _: int, k: int, p=previous) -> list[float]:
            start = p[0][k] if relative else [0.0] * len(p[0][k])
            return oracle.drift(start, p[t][k], t, 0.1, 30.0, step)

        assert_said(found, expected, case)


@pytest.mark.parametrize("relative", [False, True])
def test_drift_blind_learns_the_victims_weights_from_what_it_heard(relative: bool):
    parameters = {"r": 0.1, "goal": 5.0, "step": 0.2, "weight_step": 0.9, "relative": relative}
    for case in worlds(iterations=7):
        world, o = case.world, options("drift-blind", **parameters)
        found = case.messages("drift-blind", **parameters)
        blind = {(a, k): oracle.Blind(world, a, k, o) for a, k in world.edges()}
        psi, said = lists(case.psi), lists(case.said)

        def expected(t: int, a: int, k: int, b=blind, p=psi, s=said, w=world) -> list[float]:
            heard = {speaker: s[t - 1][speaker][a] for speaker in w.hears[a] if speaker != a}
            return b[a, k](t, p[t][a], heard)

        assert_said(found, expected, case)


def test_drift_blind_finds_the_weights_of_a_victim_that_averages():
    """A victim that hears 3 colleagues and a liar and gives them weights .5 .3 .2 and 0: they are found to 1e-3."""
    from mpi_resmtl.attacks.drift import learn

    random, weight = np.random.default_rng(0), np.full((4, 1), 0.25)
    for _ in range(400):
        columns = random.normal(size=(4, 1, 30))
        spoken_next = np.einsum("j,jmp->mp", [0.0, 0.5, 0.3, 0.2], columns)
        weight = learn(weight, columns, spoken_next, np.ones((4, 1), bool), 1.0)
    np.testing.assert_allclose(weight[:, 0], [0.0, 0.5, 0.3, 0.2], atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_the_projection_on_the_simplex_is_the_nearest_point(size: int):
    from mpi_resmtl.attacks.drift import to_simplex

    points = np.random.default_rng(size).normal(scale=2, size=(size, 50))
    expected = [oracle.simplex(column) for column in points.T.tolist()]
    np.testing.assert_allclose(to_simplex(points).T, expected, atol=1e-12)
    points[0] = -np.inf
    if size > 1:
        assert (to_simplex(points)[0] == 0).all()
        np.testing.assert_allclose(to_simplex(points).sum(axis=0), 1)


def test_null_space_in_the_plane_turns_left_of_the_measurement():
    for seed in WORLDS:
        case = fray(seed, 2)
        psi, revealed = lists(case.psi), lists(case.revealed)
        expected = lambda t, _, k, p=psi, r=revealed: oracle.null_space_plane(p[t][k], r[t][k][:2], r[t][k][2], 5.0)  # noqa: E731
        assert_said(case.messages("null-space", c=5.0), expected, case)


@pytest.mark.parametrize("parameters", [2, 3, 10])
def test_null_space_has_no_loss_on_the_sample_and_is_c_away_from_the_nearest_model_that_has_none(parameters: int):
    for seed in WORLDS:
        case = fray(seed, parameters)
        found = case.messages("null-space", c=40.0)
        for t in case.iterations:
            for attacker, k in case.world.edges():
                u, y = case.revealed[t, k, :-1], case.revealed[t, k, -1]
                message = found[t][attacker, k]
                nearest = np.array(oracle.onto(lists(case.psi[t, k]), lists(u), float(y)))
                assert abs(y - u @ message) < 1e-9 * (1 + np.abs(u).sum() * np.abs(message).max())
                assert np.linalg.norm(message - nearest) == pytest.approx(40, rel=1e-9)


def test_null_space_keeps_an_edges_direction_where_there_are_many():
    case = fray(3, 400, density=0.8)
    found = case.messages("null-space", c=1e6)
    directions = {pair: [f[pair] / np.linalg.norm(f[pair]) for f in found] for pair in case.world.edges()}
    assert len(directions) > 3
    for one, (pair, mine) in enumerate(directions.items()):
        assert all(mine[0] @ other > 0.9 for other in mine)
        for other in list(directions)[one + 1 :]:
            assert abs(mine[0] @ directions[other][0]) < 0.3, (pair, other)


@pytest.mark.parametrize("origin", ["negated", "random"])
def test_null_space_fits_a_bad_model_to_a_classifiers_batch(origin: str):
    for seed in WORLDS:
        case = fray(seed, 5, sampled=Margin())
        found = case.messages("null-space", origin=origin, scale=3.0, below=0.4, steps=6)
        started = case.messages("null-space", origin=origin, scale=3.0, steps=0)
        for t in case.iterations:
            for attacker, k in case.world.edges():
                row, psi = case.revealed[t, k], lists(case.psi[t, k])
                loss = lambda m, r=row: float(Margin().loss_at(r[None], np.array([m]))[0])  # noqa: E731
                slope = lambda m, r=row: lists(Margin().gradient_at(r[None], np.array([m]))[0])  # noqa: E731
                begin = lists(started[t][attacker, k])
                if origin == "negated":
                    np.testing.assert_array_equal(begin, -3 * case.psi[t, k])
                else:
                    np.testing.assert_array_equal(begin, started[0][attacker, k])
                wanted = oracle.null_space_fitted(begin, psi, loss, slope, 0.4, 6)
                np.testing.assert_allclose(found[t][attacker, k], wanted, rtol=1e-8, atol=1e-9)


def test_null_spaces_random_bad_models_are_as_large_as_asked():
    case = fray(5, 3000, sampled=Margin())
    begin = np.array(list(case.messages("null-space", origin="random", scale=3.0, steps=0)[0].values()))
    assert begin.std() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("sampled", [Plane(), Margin()], ids=["regression", "classifier"])
def test_sleeper_spends_what_the_victims_moving_average_allows(sampled: Plane | Margin):
    spent = 0
    for case in worlds(iterations=15, sampled=sampled):
        o = options("sleeper", margin=0.5, reach=3.0, evaluations=6)
        found = case.messages("sleeper", margin=0.5, reach=3.0, evaluations=6)
        sleepers = {pair: oracle.Sleeper(o, NU, PHI_0) for pair in case.world.edges()}

        def expected(t: int, a: int, k: int, c=case, s=sleepers) -> list[float]:
            row, psi, own = c.revealed[t, k], lists(c.psi[t, k]), lists(c.psi[t, a])
            loss = lambda m: float(c.sampled.loss_at(row[None], np.array([m]))[0])  # noqa: E731

            def spend(model: list[float], budget: float) -> list[float]:
                if isinstance(c.sampled, Plane):
                    return oracle.spend_plane(model, lists(row[:-1]), float(row[-1]), budget)
                return oracle.spend_shrunk(model, loss, budget, 3.0, 6)

            return s[a, k](own, psi, loss, spend)

        assert_said(found, expected, case, 1e-7)
        for t in case.iterations:
            spent += sum(not np.array_equal(found[t][a, k], case.psi[t, a]) for a, k in case.world.edges())
    assert spent > 50


def test_a_sleepers_message_never_fails_the_filter_it_earned_its_way_through():
    for case in worlds(FEW, iterations=25):
        found = case.messages("sleeper", margin=0.0)
        for attacker, k in case.world.edges():
            own = heard = PHI_0
            for t in case.iterations:
                row = case.revealed[t, k][None]
                own = (1 - NU) * own + NU * float(Plane().loss_at(row, case.psi[t, k][None])[0])
                heard = (1 - NU) * heard + NU * float(Plane().loss_at(row, found[t][attacker, k][None])[0])
                assert heard <= own or np.array_equal(found[t][attacker, k], case.psi[t, attacker])


@pytest.mark.parametrize("over", ["neighbourhood", "all"])
def test_gaussian_of_no_deviation_is_its_centre(over: str):
    for case in worlds(FEW):
        psi, zeros = lists(case.psi), [0.0] * case.psi.shape[2]

        def middle(t: int, _: int, k: int, c=case, p=psi) -> list[float]:
            return oracle.mean([p[t][a] for a in c.world.among(k, over)[0]])

        assert_said(case.messages("gaussian", deviation=0.0, over=over), middle, case)
        assert_said(case.messages("gaussian", deviation=0.0, around="own"), lambda t, a, _, p=psi: p[t][a], case, 0)
        assert_said(case.messages("gaussian", deviation=0.0, around="zero"), lambda t, a, k, z=zeros: z, case, 0)


def test_gaussian_noise_is_normal_anew_for_each_edge_and_iteration_and_the_same_around_any_centre():
    case = fray(7, 50, iterations=40, density=0.9)
    zero, own, around = (case.messages("gaussian", deviation=2.0, around=a) for a in ("zero", "own", "mean"))
    centre = case.messages("gaussian", deviation=0.0)
    pairs = case.world.edges()
    noise = np.array([[found[pair] for pair in pairs] for found in zero])
    assert stats.kstest(noise.ravel() / 2, "norm").pvalue > 1e-3
    assert len(np.unique(noise)) == noise.size
    for t in case.iterations:
        for pair in pairs:
            np.testing.assert_allclose(own[t][pair] - case.psi[t, pair[0]], zero[t][pair], atol=1e-9)
            np.testing.assert_allclose(around[t][pair] - centre[t][pair], zero[t][pair], atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_uniform_noise_is_uniform_anew_for_each_edge_and_iteration(dtype: type):
    case = fray(8, 50, iterations=40, density=0.9, dtype=dtype)
    noise = np.array([list(found.values()) for found in case.messages("uniform", low=-2.0, high=3.0)])
    assert stats.kstest(noise.ravel(), stats.uniform(-2, 5).cdf).pvalue > 1e-3
    assert noise.min() >= -2
    assert noise.max() <= 3
    assert len(np.unique(noise)) > 0.98 * noise.size


def test_uniform_noise_may_be_drawn_once_or_be_the_same_to_all():
    case = fray(8, 5, density=0.9)
    fixed = case.messages("uniform", fixed=True)
    assert len({message.tobytes() for found in fixed for message in found.values()}) == len(fixed[0])
    same = case.messages("uniform", same_to_all=True)
    for found in same:
        assert len({message.tobytes() for message in found.values()}) == np.count_nonzero(case.byzantine)
    both = case.messages("uniform", fixed=True, same_to_all=True)
    assert len({message.tobytes() for f in both for message in f.values()}) == np.count_nonzero(case.byzantine)


def test_scaled_multiplies_each_tensor_of_the_own_model_by_one_number():
    case = fray(9, 10, density=0.9)
    found = case.messages("scaled", low=0.2, high=0.3)
    factors = []
    for t in case.iterations:
        for attacker, k in case.world.edges():
            ratio = found[t][attacker, k] / case.psi[t, attacker]
            for tensor in (ratio[:5], ratio[5:]):
                np.testing.assert_allclose(tensor, tensor[0], rtol=1e-12)
                factors.append(tensor[0])
    assert len(np.unique(np.round(factors, 12))) == len(factors)
    assert 0.2 <= min(factors) < 0.22
    assert 0.28 < max(factors) < 0.3


def test_constants_and_turned_round_models_are_what_they_say():
    for case in worlds(FEW):
        psi, size = lists(case.psi), case.psi.shape[2]
        assert_said(case.messages("zero"), lambda t, a, k, s=size: [0.0] * s, case, 0)
        assert_said(case.messages("same-value", value=-7.5), lambda t, a, k, s=size: [-7.5] * s, case, 0)
        assert_said(case.messages("sign-flip", scale=3.0), lambda t, a, k, p=psi: oracle.times(-3, p[t][a]), case)
        assert_said(case.messages("label-flip"), lambda t, a, k, p=psi: p[t][a], case, 0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_non_finite_says_everything_a_float_can_in_turn(dtype: type):
    case = fray(10, 3, iterations=10, dtype=dtype)
    found = case.messages("non-finite")
    for pair in case.world.edges():
        said = np.array([f[pair] for f in found])
        assert (said == said[:, :1]).all() or np.isnan(said).any()
        for turn in (said[:5, 0], said[5:, 0]):
            assert np.isnan(turn[0])
            assert turn[1] == np.inf
            assert turn[2] == -np.inf
            assert 0 < turn[3] < np.finfo(dtype).smallest_normal
            assert turn[4] == dtype(3e38)


def test_silent_keeps_its_own_model_to_itself_as_often_as_asked():
    case = fray(11, 2, iterations=400, density=0.9)
    found = case.messages("silent", probability=0.3)
    pairs = case.world.edges()
    silent = np.array([[f[pair] is None for pair in pairs] for f in found])
    assert stats.binomtest(int(silent.sum()), silent.size, 0.3).pvalue > 1e-3
    assert len({column.tobytes() for column in silent.T}) == len(pairs)
    psi = lists(case.psi)
    assert_said(found, lambda t, a, k, p=psi: None if found[t][a, k] is None else p[t][a], case, 0)
    assert all(message is None for f in case.messages("silent", probability=1.0) for message in f.values())
    assert all(message is not None for f in case.messages("silent", probability=0.0) for message in f.values())


@pytest.mark.parametrize("delay", [1, 3, 9])
def test_stale_says_what_it_would_have_said_some_iterations_ago(delay: int):
    case = fray(12, 3, iterations=8, density=0.7)
    psi = lists(case.psi)
    expected = lambda t, a, k: psi[t - delay][a] if t >= delay else None  # noqa: E731
    assert_said(case.messages("stale", delay=delay), expected, case, 0)


KINDS: list[tuple[str, dict]] = [
    ("uniform", {}),
    ("uniform", {"same_to_all": True}),
    ("scaled", {}),
    ("gaussian", {}),
    ("gaussian", {"around": "own"}),
    ("gaussian", {"around": "zero"}),
    ("gaussian", {"over": "all"}),
    ("zero", {}),
    ("same-value", {}),
    ("sign-flip", {}),
    ("label-flip", {}),
    ("little", {}),
    ("little", {"over": "all"}),
    ("inner-product", {}),
    ("inner-product", {"search": True}),
    ("min-max", {}),
    ("min-max", {"over": "all"}),
    ("mimic", {}),
    ("mimic", {"over": "all"}),
    ("dissensus", {}),
    ("isolation", {}),
    ("drift", {"relative": True}),
    ("drift-blind", {}),
    ("null-space", {}),
    ("sleeper", {"margin": 0.0}),
    ("non-finite", {}),
    ("silent", {}),
    ("stale", {"delay": 2}),
]
IDS = ["-".join([name, *(f"{key}={value}" for key, value in kind.items())]) for name, kind in KINDS]
SAMPLED = {"regression": Plane(), "classifier": Margin()}


def test_every_attack_is_among_those_tried():
    """`recorded` reads a file: tests/test_recorded.py."""
    assert {name for name, _ in ATTACKS.items()} - {"recorded"} == {name for name, _ in KINDS}


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
@pytest.mark.parametrize(
    ("parameters", "dtype", "sampled"), [(2, np.float64, "regression"), (37, np.float32, "classifier")]
)
def test_what_is_said_does_not_depend_on_which_ranks_the_attackers_are(
    name: str, kind: dict, parameters: int, dtype: type, sampled: str
):
    for seed in FEW:
        case = fray(seed, parameters, dtype=dtype, sampled=SAMPLED[sampled])
        whole = case.messages(name, **kind)
        for ranks in (2, 3, len(case.byzantine)):
            parts = [case.messages(name, rank, ranks, **kind) for rank in range(ranks)]
            for t in case.iterations:
                together = {pair: message for part in parts for pair, message in part[t].items()}
                assert together.keys() == whole[t].keys()
                for pair, message in whole[t].items():
                    if case.byzantine[pair[1]] and ATTACKS[name].knows == "victim":
                        continue
                    other = together[pair]
                    assert (message is None) == (other is None)
                    assert message is None or message.tobytes() == other.tobytes(), (ranks, t, pair)


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
def test_what_is_said_is_the_same_again_also_in_the_next_rules_run(name: str, kind: dict):
    case = fray(1, 3, iterations=9)
    first = case.messages(name, **kind)
    attack, stage = ATTACKS[name], case.stage()
    o = options(name, **kind)
    speak = attack.prepare(o, stage)
    for _ in range(2):
        for t in case.iterations:
            again = spoken(speak, case.known(name, o, t), stage)
            for pair, message in first[t].items():
                same = again[pair] is None if message is None else message.tobytes() == again[pair].tobytes()
                assert same, (t, pair)


@pytest.mark.parametrize(("name", "kind"), [k for k in KINDS if k[0] in ("drift", "drift-blind", "sleeper", "stale")])
def test_an_attack_that_remembers_goes_on_from_its_state(name: str, kind: dict):
    case = fray(2, 3, iterations=9)
    whole, o, stage = case.messages(name, **kind), options(name, **kind), case.stage()
    one, other = (ATTACKS[name].prepare(o, stage) for _ in range(2))
    for t in range(5):
        spoken(one, case.known(name, o, t), stage)
    other.state.update({key: value.copy() for key, value in one.state.items()})
    for t in range(5, 9):
        for pair, message in spoken(other, case.known(name, o, t), stage).items():
            assert (message is None) == (whole[t][pair] is None)
            assert message is None or message.tobytes() == whole[t][pair].tobytes()


@pytest.mark.parametrize(("name", "kind"), [k for k in KINDS if ATTACKS[k[0]].knows == "victim"])
def test_what_a_victim_is_told_does_not_depend_on_what_others_know(name: str, kind: dict):
    case = fray(3, 3, iterations=6, density=0.8)
    normal = np.flatnonzero(~case.byzantine)
    whole = case.messages(name, **kind)
    for k in normal:
        other = fray(3, 3, iterations=6, density=0.8)
        for values in (other.psi, other.previous, other.revealed):
            values[:, normal[normal != k]] = np.nan
        alone = other.messages(name, **kind)
        for t in case.iterations:
            for attacker, victim in case.world.edges():
                if victim == k:
                    assert whole[t][attacker, k].tobytes() == alone[t][attacker, k].tobytes()


@pytest.mark.parametrize(("name", "kind"), [k for k in KINDS if k[0] != "non-finite"])
@pytest.mark.parametrize(("dtype", "sampled"), [(np.float64, "regression"), (np.float32, "classifier")])
def test_messages_are_finite_however_huge_what_is_known(name: str, kind: dict, dtype: type, sampled: str):
    for power in (0.3, 0.6, 0.99):
        for seed in FEW:
            case = fray(seed, 3, iterations=6, dtype=dtype, sampled=SAMPLED[sampled])
            huge = dtype(np.finfo(dtype).max ** power)
            with np.errstate(over="ignore"):
                for values in (case.psi, case.previous, case.said):
                    values *= huge
                    np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max, out=values)
            for found in case.messages(name, **kind):
                assert all(m is None or np.isfinite(m).all() for m in found.values())


@pytest.mark.parametrize(("name", "kind"), [k for k in KINDS if ATTACKS[k[0]].knows not in ("nothing", "own")])
def test_messages_are_finite_when_victims_hold_nan(name: str, kind: dict):
    case = fray(4, 3, iterations=6, density=0.8)
    for values in (case.psi, case.previous):
        values[2, ~case.byzantine] = np.nan
        values[3, ~case.byzantine] = np.inf
    case.said[2:4] = np.nan
    for found in case.messages(name, **kind):
        assert all(np.isfinite(m).all() for m in found.values())


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("mimic", {"agent": 400}, "there are 0 to"),
        ("mimic", {"agent": "byzantine"}, "is Byzantine itself"),
    ],
)
def test_an_agent_that_cannot_be_copied_is_refused(name: str, kind: dict, message: str):
    case = fray(5)
    if kind["agent"] == "byzantine":
        kind = {"agent": int(np.flatnonzero(case.byzantine)[0])}
    with pytest.raises(UserError, match=f"attack mimic: byzantine.agent = {kind['agent']}.*{message}"):
        case.messages(name, **kind)


def test_null_space_of_one_parameter_is_refused():
    with pytest.raises(UserError, match="attack null-space: a model of 1 parameter"):
        fray(5, 1).messages("null-space")


def test_a_sleeper_against_losses_that_are_not_remembered_is_refused():
    from dataclasses import replace

    case = fray(5)
    attack = ATTACKS["sleeper"]
    with pytest.raises(UserError, match="forgetting_factor above 0"):
        attack.prepare(attack.parameters(), replace(case.stage(), forgetting_factor=0.0))
