"""Mutated inputs of every kind run or are refused, those among them that did not once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).with_name("fuzz.py")
KINDS = ("stream", "result", "checkpoint", "har", "mnist", "digits", "config")
FOUND = {
    # Unfinished result files whose datasets are of another shape or packed, in which a resumed run wrote.
    # Then checkpoints whose configuration is no TOML, or whose sums are a text.
    "checkpoint": (6, 7, 13, 16, "9/32", "13/13"),
    # Positions of another type.
    "stream": ("8/6",),
    # Result files that are damaged, empty or of other shapes, of which analysis/table.py showed a traceback.
    # Then one in which the HDF5 library loops.
    "result": (0, 11, 29, 54, 60, 92, "11/44"),
    # A list of 50,000 values, looked for values that are in it twice in quadratic time; a table in place of a name.
    "config": ("1/38", "4/42"),
}


def test_a_few_mutated_inputs_of_each_kind_and_all_that_found_something_are_read_or_refused():
    also = ",".join(f"{kind}:{index}" for kind, indices in FOUND.items() for index in indices)
    command = [sys.executable, FUZZ, "--count", str(8 * len(KINDS)), "--also", also]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " cases, 0 failed" in done.stdout
    told = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines() if " cases: " in line}
    assert told.keys() == set(KINDS)
    assert min(told.values()) >= 8
