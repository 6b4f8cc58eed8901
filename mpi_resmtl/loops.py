"""The loops over edges: those in C where the package was built with a compiler, else those in numpy, to the same bits.

`loops_in_numpy` says what they do. `MPI_RESMTL_LOOPS=numpy` keeps the ones in C out of use.
"""

from __future__ import annotations

import os

from mpi_resmtl import loops_in_numpy

try:
    from mpi_resmtl import _loops
except ImportError:
    _loops = None

IN_USE = "numpy" if _loops is None or os.environ.get("MPI_RESMTL_LOOPS") == "numpy" else "C"
_chosen = _loops if IN_USE == "C" else loops_in_numpy

philox = _chosen.philox
normal = _chosen.normal
all_finite = _chosen.all_finite
gather = _chosen.gather
squared_residuals = _chosen.squared_residuals
squared_distances = _chosen.squared_distances
average_in = _chosen.average_in
normalise = _chosen.normalise
inverse_weights = _chosen.inverse_weights
weighted_sums = _chosen.weighted_sums
step_towards = _chosen.step_towards
own_squared_residuals = _chosen.own_squared_residuals
own_squared_distances = _chosen.own_squared_distances
location_samples = _chosen.location_samples
location_risks = _chosen.location_risks
large_squared_distances = _chosen.large_squared_distances
middle_sums = _chosen.middle_sums
weiszfeld = _chosen.weiszfeld
clipped_weights = _chosen.clipped_weights
