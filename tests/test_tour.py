"""The notebook runs from top to bottom."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from mpirun import variables
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "analysis" / "tour.ipynb"


def test_the_notebook_runs_from_top_to_bottom_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(TOUR, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    tree, table = (o["data"]["text/plain"] for o in outputs if "average" in o.get("data", {}).get("text/plain", ""))
    assert "xarray.DataTree" in tree
    assert len(table.splitlines()) == 6
