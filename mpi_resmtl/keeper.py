"""When a run is saved and what of it, how signals end it, and where one begins that was saved before."""

from __future__ import annotations

import fcntl
import os
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from time import monotonic, perf_counter, sleep

import h5py
import numpy as np
from mpi4py import MPI

from mpi_resmtl import checkpoint, recorder
from mpi_resmtl.cells import differences
from mpi_resmtl.checkpoint import Files, Piece, Saved, State
from mpi_resmtl.combining import Combiner, ServerCombiner
from mpi_resmtl.config import Checkpoint, Experiment
from mpi_resmtl.diffusion import Rank
from mpi_resmtl.errors import UserError
from mpi_resmtl.launch import Stopped, together
from mpi_resmtl.partition import Partition
from mpi_resmtl.recorder import Position, Recorder
from mpi_resmtl.signals import Ballot, LooseVotes, Signals, Votes
from mpi_resmtl.stopwatch import Stopwatch

_SECONDS_FOR_THE_LOCK = 10.0


class Keeper:
    """Saves a run now and then, and when a signal ends it. Calls are collective but for `rule`."""

    def __init__(
        self,
        comm: MPI.Comm,
        settings: Checkpoint,
        files: Files,
        record: Recorder,
        rank: Rank,
        iterations: int,
        saved: Saved | None,
        signals: Signals,
        loose: bool = False,
    ):
        """`iterations` of each rule; `saved`: where the run goes on from; `signals` end it.

        `loose`: ranks do not wait for one another in every iteration.
        """
        self._comm, self._files, self._record, self._rank = comm, files, record, rank
        self._every, self._iterations, self._saved = settings.every, iterations, saved
        self._signals, self._votes = signals, (LooseVotes if loose else Votes)(comm, settings.minutes)
        self._next_vote, self._ballot = 1, Ballot(0, False, 0, 1)

    def rule(self, number: int, name: str, combiner: Combiner | ServerCombiner, clock: Stopwatch) -> None:
        """The rule that is to come, and what works for it."""
        self._number, self._name, self._combiner, self._clock = number, name, combiner, clock
        self._first = number * self._iterations

    def begin(self, theta: np.ndarray) -> int:
        """Put back what is saved of the rule, its models (A, P) among it; -> iterations of it that are done."""
        saved, self._saved, done = self._saved, None, 0
        if saved is not None:
            done = saved.position.iteration
            state = together(self._comm, lambda: checkpoint.load(saved.path, self._files.pieces))
            together(self._comm, lambda: self._put_back(saved.path, state, theta, done))
            self._next_vote = self._first + done + 1
            self._votes.begin(self._first + done)
        self._plan(done)
        return done

    def __call__(self, done: int, theta: np.ndarray) -> None:
        """Save the run if it is time to, after `done` iterations of the rule; raises Stopped after a signal."""
        self._clock.doing = "checkpoint"
        at = self._first + done
        if at >= self._next_vote:
            self._ballot = self._votes.vote(self._signals.received, at)
            self._next_vote = self._ballot.next
        decided = self._ballot if self._meeting == at else Ballot(0, False, at, at)
        number = decided.number
        if number or decided.due or (self._every > 0 and done % self._every == 0):
            self._files.write(self._state(theta), Position(self._number, done))
            self._votes.proposed = perf_counter()
        if number:
            where = f"iteration {done} of rule {self._name}"
            raise Stopped(number, f"{self._files.output} is saved at {where}; --resume goes on from there")
        self._plan(done)
        self._clock.lap("record")

    @property
    def _meeting(self) -> int:
        """When ranks do what they have agreed on: not after a rule's last iteration, but after the next one's first."""
        return self._ballot.at + (self._ballot.at % self._iterations == 0)

    def _plan(self, done: int) -> None:
        """When to be called next; not after the rule's last iteration, as all is recorded then."""
        self.next = max(self._next_vote - self._first, done + 1)
        if self._meeting > self._first + done:
            self.next = min(self.next, self._meeting - self._first)
        if self._every:
            self.next = min(self.next, done - done % self._every + self._every)
        if self.next >= self._iterations:
            self.next = 0

    def close(self) -> None:
        """Free what MPI keeps."""
        self._votes.close()

    def _state(self, theta: np.ndarray) -> State:
        """All that the rest of the run depends on; what is recorded is written to the result file."""
        kept, adversary = self._record.settle(self._rank.exchange), self._rank.adversary
        state: State = {
            "agent": {"theta": theta} | _under("task", self._rank.task.state()) | _under("record", kept["agent"]),
            "edge": _under("record", kept["edge"]),
            "rank": kept["rank"],
        }
        for name, judge in self._combiner.judges.items():
            state["edge"] |= _under(name, judge.state())
        for axis, arrays in adversary.state().items():
            state[axis] = state.get(axis, {}) | arrays
        return state

    def _put_back(self, path: Path, state: State, theta: np.ndarray, done: int) -> None:
        try:
            _same(state["agent"]["theta"], theta)
            theta[:] = state["agent"]["theta"]
            self._rank.task.resume(_of("task", state["agent"]))
            for name, judge in self._combiner.judges.items():
                judge.resume(_of(name, state["edge"]), done)
            self._rank.adversary.resume({axis: state[axis] for axis in ("spoken", "overheard", "alike")})
            kept = {axis: _of("record", state[axis]) for axis in ("agent", "edge")} | {"rank": state["rank"]}
            self._record.resume(done, kept, self._rank.exchange)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{path}: does not fit this run: {error}") from None


def _same(found: np.ndarray, wanted: np.ndarray) -> None:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ValueError(f"models are {found.dtype} {found.shape}, not {wanted.dtype} {wanted.shape}")


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix} {name}": values for name, values in arrays.items()}


def _of(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{prefix} "): v for name, v in arrays.items() if name.startswith(f"{prefix} ")}


def pieces(comm: MPI.Comm, partition: Partition, agents: int, ranks: int) -> dict[str, Piece]:
    """A rank's piece of each axis along which states lie; `ranks` is the number that has columns; collective.

    agent: all agents; edge: edges into normal agents; spoken: edges from Byzantine agents to others; overheard: edges
    from others into Byzantine agents; rank: the last one has those after it too.
    """
    counts = np.array([len(partition.source), len(partition.overheard_row)])
    before, total = np.zeros_like(counts), np.zeros_like(counts)
    comm.Exscan(counts, before)
    comm.Allreduce(counts, total)
    ears, mouths = (Piece(*map(int, piece)) for piece in zip(before, before + counts, total, strict=True))
    spoken = partition.spoken_first
    return {
        "agent": Piece(partition.first, partition.first + partition.count, agents),
        "edge": ears,
        "spoken": Piece(spoken, spoken + len(partition.spoken), partition.spoken_total),
        "overheard": mouths,
        "rank": Piece(comm.rank, ranks if comm.rank == comm.size - 1 else comm.rank + 1, ranks),
    }


@dataclass
class Start:
    """Where a run begins, as rank 0 finds it."""

    experiment: Experiment
    saved: Saved | None
    """The checkpoint that it goes on from."""
    finished: bool
    """Whether there is nothing left to do."""
    lock: TextIOWrapper | None
    """Held while the run writes."""
    remarks: list[str]
    """What the user should know."""


def start(output: Path, experiment: Experiment, overwrite: bool, resume: bool) -> Start:
    """See what is at an output, lock it, and remove what a new run replaces; rank 0 alone. Raises UserError.

    `resume`: go on from the newest whole checkpoint, if there is one; with `overwrite`, only where it fits.
    """
    recorder.check_output(output, overwrite or resume)
    if resume and output.exists() and not (checkpoint.left(output) and recorder.temporary(output).exists()):
        differ = _differs(output, experiment)
        if not differ:
            # A run that was killed once its file had its name has left what it locked and saved.
            lock = _lock(output)
            checkpoint.remove(output)
            unlock(output, lock)
            return Start(experiment, None, True, None, [f"{output} is finished already; nothing is left to resume"])
        if not overwrite:
            raise UserError(f"--resume: {output} is of another run: {differ}")
    lock = _lock(output)
    try:
        return _start_locked(output, experiment, overwrite, resume, lock)
    except UserError:
        unlock(output, lock)
        raise


def _start_locked(output: Path, experiment: Experiment, overwrite: bool, resume: bool, lock: TextIOWrapper) -> Start:
    """As `start`, where the run is not finished."""
    there, remarks = checkpoint.left(output), []
    if resume and there:
        saved = None
        try:
            saved, remarks = _usable(output, there, experiment)
        except UserError:
            if not overwrite:
                raise
        if saved is not None:
            return Start(experiment, saved, False, lock, remarks)
    elif resume:
        remarks = [f"{output}: there is no checkpoint; the run starts at its beginning"]
    elif there and not overwrite:
        raise UserError(f"{output}: a run that did not end is there; --resume goes on with it, --overwrite starts anew")
    checkpoint.remove(output)
    return Start(experiment, None, False, lock, remarks)


def _usable(output: Path, there: list[Path], experiment: Experiment) -> tuple[Saved, list[str]]:
    """The newest whole checkpoint, and what is to be said of others; raises UserError where there is none."""
    remarks = []
    for path in there:
        try:
            saved = checkpoint.read(path)
        except UserError as error:
            remarks.append(str(error))
            continue
        differ = differences(saved.config, experiment.toml())
        if differ:
            raise UserError(f"{path} is of another run: {differ}; --overwrite starts anew")
        if not recorder.temporary(output).exists():
            raise UserError(f"{recorder.temporary(output)} is missing, and what was recorded before {path} with it")
        rule = experiment.rules[saved.position.rule]
        return saved, [*remarks, f"{output}: goes on after iteration {saved.position.iteration} of rule {rule}"]
    raise UserError(f"{'; '.join(remarks)}; --overwrite starts anew")


def _differs(output: Path, experiment: Experiment) -> str:
    """How a result file's configuration differs from an experiment's; empty where it does not."""
    try:
        with h5py.File(output, "r") as file:
            return differences(file.attrs["config"], experiment.toml())
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError):
        return "it is not a whole result file"


def _lock_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.lock")


def _lock(output: Path) -> TextIOWrapper:
    """Lock an output against other runs; ranks of a killed one may need a moment until they are gone."""
    patience = monotonic() + _SECONDS_FOR_THE_LOCK
    while True:
        lock = open(_lock_path(output), "w")  # noqa: SIM115  (held until the run ends)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            if monotonic() > patience:
                raise UserError(f"--output {output}: another run is writing it") from None
            sleep(0.1)
            continue
        except OSError:
            # A file system without locks: nothing guards against a second run.
            return lock
        with suppress(FileNotFoundError):
            if os.path.samestat(_lock_path(output).stat(), os.fstat(lock.fileno())):
                return lock
        lock.close()  # the run that held it has ended and removed it


def unlock(output: Path, lock: TextIOWrapper) -> None:
    """Let others write an output."""
    _lock_path(output).unlink(missing_ok=True)
    lock.close()


def stages(saved: Saved | None, rules: list[str], ranks: int) -> list[dict]:
    """Where a run starts or goes on: what it was, and on how many ranks it is from here on, where that is new."""
    if saved is None:
        return [{"rule": rules[0], "iteration": 0, "ranks": ranks}]
    if saved.stages[-1]["ranks"] == ranks:
        return saved.stages
    at = saved.position
    return [*saved.stages, {"rule": rules[at.rule], "iteration": at.iteration, "ranks": ranks}]
