"""What collusion does to robust rules where all agents have one task, in numbers: linear regression, 20 agents."""

from __future__ import annotations

import csv

import h5py
import pytest
import tomli_w
from mpirun import mpirun

SEEDS = (0, 1)
ATTACKS = ("little", "inner-product", "min-max")
RULES = ("none", "average", "krum", "median", "trimmed-mean", "loss")


@pytest.fixture(scope="module")
def msd(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str, str], list[float]]:
    """(attackers, attack, rule) -> mean squared deviation in the last 100 iterations, by seed."""
    folder = tmp_path_factory.mktemp("collusion")
    sweep = {
        "seed": list(SEEDS),
        "iterations": 1000,
        "rules": list(RULES),
        "task": {"name": "linear-regression"},
        "byzantine": {"count": [0, 4, 8], "attack": list(ATTACKS)},
        "record": {"weights": 1000},
    }
    (folder / "collusion.toml").write_text(tomli_w.dumps(sweep))
    done = mpirun(2, "sweep", folder / "collusion.toml", "--output", folder / "out")
    assert done.returncode == 0, done.stderr
    with open(folder / "out" / "index.csv", newline="") as file:
        cells = sorted(csv.DictReader(file), key=lambda cell: int(cell["seed"]))
    found: dict[tuple[int, str, str], list[float]] = {}
    for cell in cells:
        with h5py.File(folder / "out" / cell["file"]) as file:
            normal = ~file["graph/byzantine"][()].astype(bool)
            for rule, group in file["rule"].items():
                key = int(cell["byzantine.count"]), cell["byzantine.attack"], rule
                found.setdefault(key, []).append(group["msd"][-100:][:, normal].mean())
    return found


def worse(msd: dict, attackers: int, attack: str, rule: str) -> float:
    """How many times the attack multiplies the rule's squared deviation, in the seed where it does so least."""
    attacked, free = msd[attackers, attack, rule], msd[0, "none", rule]
    return min(a / f for a, f in zip(attacked, free, strict=True))


def against_none(msd: dict, attackers: int, attack: str, rule: str) -> list[float]:
    """The rule's squared deviation over that of agents who stay alone, by seed."""
    return [a / n for a, n in zip(msd[attackers, attack, rule], msd[attackers, attack, "none"], strict=True)]


def test_without_attack_averaging_is_ten_times_better_than_staying_alone(msd: dict):
    assert max(against_none(msd, 0, "none", "average")) < 0.1


@pytest.mark.parametrize(
    ("attack", "rule", "least"),
    [
        # Measured, seeds 0 to 2: at least 750, 31 and 1e7 times.
        ("little", "average", 200),
        ("inner-product", "average", 10),
        ("min-max", "average", 1e6),
        # At least 5e7, 4e4 and 1e17 times.
        ("little", "krum", 1e6),
        ("inner-product", "krum", 1e4),
        ("min-max", "krum", 1e12),
        # At least 1e9, 2e5 and 4e11 times.
        ("little", "median", 1e7),
        ("inner-product", "median", 5e4),
        ("min-max", "median", 1e9),
        # At least 1e10, 9e6 and 6e13 times.
        ("little", "trimmed-mean", 1e8),
        ("inner-product", "trimmed-mean", 1e6),
        ("min-max", "trimmed-mean", 1e11),
    ],
)
def test_8_colluders_of_20_break_rules_that_ask_who_is_far(attack: str, rule: str, least: float, msd: dict):
    assert worse(msd, 8, attack, rule) > least
    assert min(against_none(msd, 8, attack, rule)) > 1.5


@pytest.mark.parametrize(
    ("attack", "rule", "least"),
    [
        # Measured, seeds 0 to 2: 553, 2.2, 282, 815, 3.5e5 and 955 times at least.
        ("min-max", "average", 150),
        ("inner-product", "krum", 1.5),
        ("inner-product", "median", 100),
        ("inner-product", "trimmed-mean", 200),
        ("min-max", "trimmed-mean", 1e5),
        ("min-max", "median", 300),
        # Mild, as the formula's z is 0.16 here: 2.0 and 14 times.
        ("little", "average", 1.5),
        ("little", "trimmed-mean", 5),
    ],
)
def test_4_of_20_are_enough_for_some(attack: str, rule: str, least: float, msd: dict):
    assert worse(msd, 4, attack, rule) > least


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("attackers", [4, 8])
def test_the_loss_rule_stays_as_good_as_without_attack(attack: str, attackers: int, msd: dict):
    """Measured, seeds 0 to 2: 0.90 to 1.35 times its own without attack, 0.70 to 1.03 times that of `none`."""
    ratios = zip(msd[attackers, attack, "loss"], msd[0, "none", "loss"], strict=True)
    assert max(attacked / free for attacked, free in ratios) < 1.6
    assert max(against_none(msd, attackers, attack, "loss")) < 1.2
