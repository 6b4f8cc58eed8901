"""What fools judgement by one sample, and what does not: the claims of tests/null_space.py with two seeds."""

from __future__ import annotations

from pathlib import Path

import null_space


def test_loss_is_fooled_by_null_space_and_fresh_samples_alone_do_not_help(tmp_path: Path):
    null_space.check_measurement(null_space.measured(tmp_path, "measurement", 2))


def test_fresh_samples_judged_by_position_are_not_worse_than_no_cooperation_under_any_attack(tmp_path: Path):
    null_space.check_position(null_space.measured(tmp_path, "position", 2))
