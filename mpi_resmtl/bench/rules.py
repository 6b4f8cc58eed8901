"""`bench rules`: robust aggregates against byzfl's, on one thread and the same messages."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import thread_time
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_resmtl.bench import add_options, measured, numbers, spread
from mpi_resmtl.errors import unknown

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_resmtl.rules import Heard

_SAMPLE = 0.005
"""Seconds that a timed sample takes at least, in as many calls as that needs.

All seconds are processor time of this thread, so that other work on the machine disturbs them little.
"""

Call = Callable[[], object]


def _theirs(library: ModuleType, rule: str, b: int) -> Callable[[Any], object]:
    """What byzfl has that does the same work: `CenteredClipping` in one step for `clipped-gossip`."""
    return {
        "median": lambda: library.Median(),
        "trimmed-mean": lambda: library.TrMean(b),
        "geometric-median": lambda: library.GeometricMedian(),
        "krum": lambda: library.Krum(b),
        "multi-krum": lambda: library.MultiKrum(b),
        "clipped-gossip": lambda: library.CenteredClipping(),
        "nnm": lambda: library.NNM(b),
    }[rule]()


RULES = ("median", "trimmed-mean", "geometric-median", "krum", "multi-krum", "clipped-gossip", "nnm")


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add `bench rules` to the command line."""
    rules = kinds.add_parser(
        "rules", help="processor time of robust aggregates, one agent's, beside byzfl's if it is installed"
    )
    rules.add_argument("--rules", default=",".join(RULES), help="separated by commas (default %(default)s)")
    rules.add_argument("--messages", default="10,50", help="messages an agent hears (default %(default)s)")
    rules.add_argument("--parameters", default="3372,130890", help="of a model, float32 (default %(default)s)")
    add_options(rules, 11)
    rules.set_defaults(command=_rules)


def _rules(asked: argparse.Namespace) -> int:
    names = asked.rules.split(",")
    for name in names:
        if name not in RULES:
            raise unknown("rule to time", name, RULES)
    messages = numbers(asked.messages, "--messages", least=5)
    parameters = numbers(asked.parameters, "--parameters")

    def measure(comm: MPI.Comm) -> dict[str, Any]:
        return {"rules": _table(names, messages, parameters, asked.repeats)} if comm.rank == 0 else {}

    return measured(asked, "rules", measure)


def _table(names: list[str], messages: list[int], parameters: list[int], repeats: int) -> list[dict[str, Any]]:
    """Time every rule in every size and print a line each."""
    library = byzfl_aggregators()
    if library is None:
        print("byzfl is not installed (pip install --no-deps byzfl; it needs torch and scipy): our times alone")
    print(_HEADER if library else _HEADER[: _HEADER.index("  byzfl")])
    rows = []
    for n in messages:
        for size in parameters:
            for name in names:
                rows.append(race(name, n, size, repeats, library))
                print(_line(rows[-1]), flush=True)
    return rows


def race(name: str, n: int, parameters: int, repeats: int, library: ModuleType | None) -> dict[str, Any]:
    """Times of one rule on n messages of `parameters`, a fifth of them Byzantine; ours and byzfl's take turns.

    Messages are N(0, 1) a parameter, the Byzantine ones N(5, 1). byzfl is given them as numpy and as torch arrays, and
    the faster of the two counts: how many times faster ours is, is the median over the turns. Processor seconds a call.
    """
    b = n // 5
    heard = _heard(n, parameters, b)
    runners = {"ours": _ours(name, heard)}
    if library is not None:
        import torch

        torch.set_num_threads(1)
        array = heard.messages[0]
        runners["byzfl_numpy"] = partial(_theirs(library, name, b), array)
        runners["byzfl_torch"] = partial(_theirs(library, name, b), torch.from_numpy(array))
    times = {who: [] for who in runners}
    calls = {who: _calls(run) for who, run in runners.items()}
    for _ in range(repeats):
        for who, run in runners.items():
            times[who].append(_sample(run, calls[who]))
    found = {"rule": name, "messages": n, "parameters": parameters, "b": b}
    found |= {who: spread(values, "s") for who, values in times.items()}
    if library is not None:
        best = min((times["byzfl_numpy"], times["byzfl_torch"]), key=statistics.median)
        found["times_faster"] = statistics.median(
            theirs / ours for theirs, ours in zip(best, times["ours"], strict=True)
        )
    return found


def _heard(n: int, parameters: int, b: int) -> Heard:
    from mpi_resmtl.rules import Heard

    messages = np.random.default_rng(0).standard_normal((1, n, parameters), np.float32)
    messages[0, n - b :] += 5
    present = np.ones((1, n), bool)
    return Heard(
        messages=messages,
        present=present,
        whole=True,
        own=np.zeros(1, np.intp),
        previous=messages[:, 0],
        metropolis=present / n,
        friend=present,
        judged=None,
        distance=None,
        judged_previous=None,
        b=np.full(1, b, np.intp),
        agent=np.zeros(1, np.intp),
        iteration=0,
        iterations=1,
        seed=0,
        reported=False,
    )


def _ours(name: str, heard: Heard) -> Call:
    from mpi_resmtl.rules import RULES as registered
    from mpi_resmtl.rules.mixing import nnm

    if name == "nnm":
        return lambda: nnm(heard.messages, heard.present, heard.b)
    rule = registered[name]
    # byzfl's Multi-Krum averages n - b messages.
    options = rule.parameters(m=int(heard.count[0] - heard.b[0])) if name == "multi-krum" else rule.parameters()
    return lambda: rule.aggregate(heard, options)


def _calls(run: Call) -> int:
    """Calls that a sample needs, after one call to warm up."""
    run()
    return max(1, round(_SAMPLE / _sample(run, 1)))


def _sample(run: Call, calls: int) -> float:
    """Processor seconds a call."""
    began = thread_time()
    for _ in range(calls):
        run()
    return (thread_time() - began) / calls


def byzfl_aggregators() -> ModuleType | None:
    """byzfl's aggregators, None where it or torch is not installed.

    Importing byzfl itself would import torchvision and data sets, which aggregating does not need; so they are imported
    as if the package had nothing else in it.
    """
    package = importlib.util.find_spec("byzfl")
    if package is None or importlib.util.find_spec("torch") is None:
        return None
    bare = ModuleType("byzfl")
    bare.__path__ = list(package.submodule_search_locations)
    with _in_place_of("byzfl", bare):
        return importlib.import_module("byzfl.aggregators")


@contextmanager
def _in_place_of(name: str, module: ModuleType) -> Iterator[None]:
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


_HEADER = (
    "rule              messages  parameters   CPU us (min-max)               byzfl numpy us  torch us  times faster"
)


def _line(row: dict[str, Any]) -> str:
    ours = row["ours"]
    line = f"{row['rule']:<18}{row['messages']:>8}{row['parameters']:>12}   " + (
        f"{ours['median'] * 1e6:.0f} ({ours['min'] * 1e6:.0f}-{ours['max'] * 1e6:.0f})".ljust(29)
    )
    if "times_faster" in row:
        numpy_, torch_ = (row[who]["median"] * 1e6 for who in ("byzfl_numpy", "byzfl_torch"))
        line += f"{numpy_:>16.0f}{torch_:>10.0f}{row['times_faster']:>14.2f}"
    return line.rstrip()
