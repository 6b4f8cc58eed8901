"""Kills runs at random moments and resumes them on other numbers of ranks, until they end with the unbroken run's file.

    python tests/soak.py --kills 200

A run is started, killed, resumed, killed again and so on up to five times, then left to end. After every kill what was
saved has to be in the unfinished result file, to the bit; at the end, the whole file has to be that of a run on one
rank that nobody disturbed, and `mpi-resmtl verify` has to find nothing wrong with it.

The first blow of a run and half of the others come from within: a rank strikes in an iteration drawn from those that
are left, so that they fall there however fast the machine is. The rest come by the clock, anywhere from the start-up to
after the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from mpirun import alone, command, variables
from results import UNREPEATABLE, assert_identical

from mpi_resmtl import checkpoint
from mpi_resmtl.recorder import Position
from mpi_resmtl.verify import verify

_MPIRUN, _RANK = "getppid", "getpid"
WAYS = {
    "kill mpirun": (_MPIRUN, signal.SIGKILL),
    "kill a rank": (_RANK, signal.SIGKILL),
    "SIGTERM": (_MPIRUN, signal.SIGTERM),
    "SIGTERM to a rank": (_RANK, signal.SIGTERM),
    "SIGUSR1": (_MPIRUN, signal.SIGUSR1),
}
"""To whom a signal goes, as a rank finds its number, and which."""
_EVERY = 5
_RUN_ENDS_BY = 120.0
_MPIRUN_ENDS_BY = 20.0
"""Seconds after its last rank. Open MPI 4.1's mpirun may wait for itself without end in PMIx_server_finalize."""

_STRIKING = """
import os, sys
from mpi4py import MPI
from mpi_resmtl import adversary, signals
signals._MOST_ITERATIONS, signals._SECONDS_BETWEEN_VOTES = 1, 0.0
speak, left = adversary.Adversary.speak, {iterations}
def striking(*arguments):
    global left
    left -= 1
    if left == 0 and MPI.COMM_WORLD.Get_rank() == {rank}:
        os.kill(os.{target}(), {number})
    return speak(*arguments)
adversary.Adversary.speak = striking
from mpi_resmtl.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line, but that a rank sends itself or mpirun a signal after so many iterations."""


@dataclass
class Case:
    """A run that is to be killed."""

    preset: str
    settings: list[str]
    most_ranks: int = 5
    reference: Path | None = None
    iterating: float = 1.0
    """Seconds from when the result file appears until the run ends, about; ranks that share a core take longer."""
    iterations: int = 0
    """Of one rule."""
    rules: int = 0

    def arguments(self, output: Path) -> list[str]:
        """The command line of the run, without resuming."""
        pairs = [word for setting in (*self.settings, f"checkpoint.every={_EVERY}") for word in ("--set", setting)]
        return ["run", self.preset, *pairs, "--output", str(output)]

    def left(self, output: Path) -> int:
        """Iterations of all rules that a run has before it; 0: only the end of its file."""
        there = checkpoint.left(output)
        position = checkpoint.read(there[0]).position if there else Position(0, 0)
        return (self.rules - position.rule) * self.iterations - position.iteration


CASES = {
    "localisation": Case("fig1c", ["iterations=300", "record.models=50", "rules=none,loss,loss-robust"]),
    "attack with state": Case(
        "fig1c",
        [
            "iterations=100",
            "byzantine.attack=drift-blind",
            "byzantine.relative=true",
            "byzantine.count=6",
            "rule.b=2",
            "rule.excess=cap",
            "rules=none,distance,f-filter",
        ],
    ),
    "activity": Case(
        "fig2b", ["epochs=3", "task.agents=8", "byzantine.count=3", "task.data=stand-in", "rules=none,loss"], 4
    ),
}


@dataclass
class Soak:
    """What was done so far."""

    folder: Path
    random: random.Random
    kills: Counter = field(default_factory=Counter)
    from_checkpoint: int = 0
    """How often a run went on from one."""
    ends: int = 0
    hung: int = 0
    """How often mpirun did not end when all ranks had."""

    def unbroken(self, name: str, case: Case) -> None:
        """Run a case undisturbed on one rank."""
        case.reference = self.folder / f"{name.replace(' ', '-')}.h5"
        done = alone(*case.arguments(case.reference), timeout=600)
        assert done.returncode == 0, done.stderr
        case.iterating = 2.0 * sum(map(float, re.findall(r"iterations in ([0-9.]+) s", done.stdout)))
        with h5py.File(case.reference, "r") as file:
            case.iterations, case.rules = len(file["iteration"]), len(json.loads(file.attrs["rules"]))

    def chain(self, case: Case, kills: int) -> None:
        """Start a run, kill it so many times, and let it end."""
        output = self.folder / f"run-{self.ends}.h5"
        killed = 0
        while killed < kills:
            ranks = self.random.randint(1, case.most_ranks)
            way = min(WAYS, key=lambda way: (self.kills[way], self.random.random()))
            left = case.left(output)
            within = left > 0 and (killed == 0 or self.random.random() < 0.5)
            program = self._striking(left, ranks, way) if within else None
            with tempfile.TemporaryFile("w+") as said:
                job = self._start(case, output, ranks, resume=killed > 0, said=said, program=program)
                if not within:
                    self._wait(job, output, case)
                pids = set(children(job.pid))
                if struck := within or job.poll() is None:
                    self.kills[way] += 1
                    killed += 1
                if struck and not within:
                    target, number = WAYS[way]
                    os.kill(self.random.choice(sorted(pids)) if target == _RANK and pids else job.pid, number)
                status = self._end(job, pids)
                wait_for_end(pids)
                said.seek(0)
                told = said.read()
            if output.exists():
                # It has ended before the blow fell, or in spite of it.
                break
            assert status != 0, told
            assert "Error" not in told, told
            assert "Traceback" not in told, told
            check_unfinished(output, case.reference)
        ranks = self.random.randint(1, case.most_ranks)
        with tempfile.TemporaryFile("w+") as said:
            hung = self.hung
            status = self._end(self._start(case, output, ranks, resume=True, said=said), set())
            said.seek(0)
            assert status == 0 or self.hung > hung, said.read()
        self.ends += 1
        assert_identical(case.reference, output)
        assert (found := verify(output).problems) == [], found
        left = sorted(path.name for path in output.parent.glob(f"{output.name}*"))
        assert left == [output.name], left
        output.unlink()

    def _striking(self, left: int, ranks: int, way: str) -> list[str]:
        """The program of a run that is struck from within, in one of the iterations that are left to it."""
        iterations, rank, (target, number) = self.random.randint(1, left), self.random.randrange(ranks), WAYS[way]
        told = _STRIKING.format(iterations=iterations, rank=rank, target=target, number=int(number))
        return [sys.executable, "-c", told]

    def _start(self, case: Case, output: Path, ranks: int, resume: bool, said, program=None) -> subprocess.Popen:
        self.from_checkpoint += resume and bool(checkpoint.left(output))
        arguments = [*case.arguments(output), *(["--resume"] if resume else [])]
        return subprocess.Popen(
            command(ranks, *arguments, program=program),
            stdout=said,
            stderr=said,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=variables(),
        )

    def _wait(self, job: subprocess.Popen, output: Path, case: Case) -> None:
        """Until a random moment: mostly after the result file is there, now and then in the start-up."""
        if self.random.random() < 0.1:
            time.sleep(self.random.uniform(0.2, 2.0))
            return
        part, began = output.with_name(f"{output.name}.part"), time.time()
        while job.poll() is None and not (part.exists() and part.stat().st_mtime > began):
            time.sleep(0.01)
        time.sleep(self.random.uniform(0.0, case.iterating))

    def _end(self, job: subprocess.Popen, ranks: set[int]) -> int:
        """Wait until a job has ended, or its ranks have and mpirun never will; -> its status, and all ranks it had."""
        began = since = time.monotonic()
        while (status := job.poll()) is None:
            now = time.monotonic()
            assert now - began < _RUN_ENDS_BY
            ranks.update(children(job.pid))
            if any(map(alive, ranks)):
                since = now
            elif now - since > _MPIRUN_ENDS_BY:
                job.kill()
                self.hung += 1
                return job.wait()
            time.sleep(0.02)
        return status


def wait_for_end(ranks: set[int]) -> None:
    """Until these processes have ended, as those of a killed mpirun do a moment after it."""
    began = time.monotonic()
    while any(map(alive, ranks)):
        assert time.monotonic() - began < _RUN_ENDS_BY
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The ranks of an mpirun; none where the process is a rank itself, or is gone."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in found]


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def check_unfinished(output: Path, reference: Path) -> None:
    """What was saved is in the unfinished result file, as the unbroken run's has it."""
    part = output.with_name(f"{output.name}.part")
    there = checkpoint.left(output)
    if not there:
        return
    saved = checkpoint.read(there[0])
    if shutil.which("h5dump"):
        dumped = subprocess.run(["h5dump", "-H", str(part)], capture_output=True, text=True)
        assert dumped.returncode == 0, dumped.stderr
        assert "iteration" in dumped.stdout
    with h5py.File(part, "r") as found, h5py.File(reference, "r") as wanted:
        for number, rule in enumerate(json.loads(found.attrs["rules"])):
            for name, values in found["rule"][rule].items():
                if name in UNREPEATABLE or number > saved.position.rule:
                    continue
                rows = len(values)
                if number == saved.position.rule:
                    along = values.dims[0][0].name.removeprefix("/")
                    rows = np.count_nonzero(found[along][()] <= saved.position.iteration) if "iteration" in along else 0
                expected = wanted["rule"][rule][name][:rows]
                assert values[:rows].tobytes() == expected.tobytes(), f"{rule}/{name} up to {saved.position}"


def soak(folder: Path, kills: int, seed: int, names: list[str], tell=lambda text: None) -> Soak:
    """Kill runs of these cases so many times in all, and check every one."""
    done = Soak(folder, random.Random(seed))
    for name in names:
        done.unbroken(name, CASES[name])
    while sum(done.kills.values()) < kills:
        name = names[done.ends % len(names)]
        left = kills - sum(done.kills.values())
        done.chain(CASES[name], min(left, done.random.randint(1, 5)))
        tell(f"{sum(done.kills.values())} kills {dict(done.kills)}, {done.ends} runs ended with the same bits")
    return done


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES), help="of " + ", ".join(CASES))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = soak(Path(folder), asked.kills, asked.seed, asked.cases.split(","), lambda text: print(text, flush=True))
    kills, seconds = sum(done.kills.values()), time.monotonic() - began
    print(f"{kills} kills, {done.ends} runs, all the same to the bit, {seconds:.0f} s")
    print(f"mpirun had to be ended {done.hung} times after its ranks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
