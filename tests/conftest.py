"""What several tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

sys.path.insert(0, str(Path(__file__).parent))

SHARED = Path(os.environ.get("MPI_RESMTL_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))


def golden_streams() -> list[Path]:
    """Recorded streams with expected values, if they are on this machine."""
    return sorted(SHARED.glob("*.h5"))


@pytest.fixture(scope="session")
def stream(request: pytest.FixtureRequest) -> Path:
    """A golden stream by its name."""
    path = SHARED / f"{request.param}.h5"
    if not path.is_file():
        pytest.skip(f"no recorded stream {path.name} in {SHARED} (set MPI_RESMTL_GOLDEN)")
    return path
