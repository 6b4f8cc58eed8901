"""Runs the tests in tests/mpi under mpirun."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mpirun import mpirun


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_what_ranks_do_together_is_right_at_several_numbers_of_ranks(ranks: int):
    program = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", Path(__file__).parent / "mpi"]
    done = mpirun(ranks, program=program)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" passed") == ranks
