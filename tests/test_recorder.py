"""The layout of result files."""

from __future__ import annotations

import numpy as np

from mpi_resmtl.recorder import Layout


def test_recorded_iterations_are_multiples_and_the_last():
    layout = Layout(25, 1, 10, 0, 2, np.dtype(float), ("loss",), 0, (), 4, 4, 1)
    assert layout.kept(10).tolist() == [10, 20, 25]
    assert layout.kept(25).tolist() == [25]
    assert layout.kept(40).tolist() == [25]
    assert layout.kept(0).tolist() == []
