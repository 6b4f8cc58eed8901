"""What SLURM's own commands say: partitions, the queue, whether it would take a job, and a job's number."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mpi_resmtl.errors import UserError

_SECONDS_FOR_AN_ANSWER = 60
_UNLIMITED = ("infinite", "UNLIMITED")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "STOPPED", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING")


@dataclass(frozen=True)
class Partition:
    """One partition."""

    name: str
    default: bool
    up: bool
    seconds: int | None
    """The longest time of a job; None: any."""
    nodes: tuple[tuple[int, int], ...]
    """How many nodes of how many CPUs each."""

    def __str__(self) -> str:
        limit = "any time" if self.seconds is None else f"up to {clock(self.seconds)}"
        nodes = ", ".join(f"{many} node{'s' if many > 1 else ''} of {cpus} CPUs" for many, cpus in self.nodes)
        return f"{self.name} ({nodes or 'no nodes'}, {limit}{'' if self.up else ', down'})"


@dataclass(frozen=True)
class Job:
    """A job, or an element of an array, in the queue or not long out of it."""

    state: str
    reason: str


def available() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("sbatch") is not None


def seconds(time: str) -> int | None:
    """A time as SLURM writes it ("90", "1:30:00", "2-12", ...; minutes where it is one number), in seconds.

    None: any. Raises UserError.
    """
    if time in _UNLIMITED:
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        raise UserError(f"--time {time}: expected minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, *numbers = found.groups()
    first, second, third = (int(number or 0) for number in numbers)
    if days is not None:
        return int(days) * 86400 + first * 3600 + second * 60 + third
    return first * 60 + second if numbers[2] is None else first * 3600 + second * 60 + third


def clock(seconds: int) -> str:
    """Seconds as SLURM writes them."""
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def partitions() -> list[Partition]:
    """Every partition; raises UserError where SLURM does not answer."""
    found: dict[str, Partition] = {}
    for line in _asked("sinfo", "--noheader", "--all", "--format=%P|%a|%l|%D|%c").splitlines():
        name, up, limit, many, cpus = line.split("|")
        before = found.get(name)
        # Nodes of several sizes: "16+" where one line is of all of them.
        nodes = ((int(many), int(cpus.rstrip("+"))),) if int(many) else ()
        found[name] = Partition(
            name.rstrip("*"), name.endswith("*"), up == "up", seconds(limit), (before.nodes if before else ()) + nodes
        )
    return list(found.values())


def queue() -> dict[str, Job]:
    """The user's jobs by number ("12", or "12_3" for an element of an array); raises UserError as `partitions`."""
    user = f"--user={os.getuid()}"
    lines = _asked("squeue", "--noheader", "--array", "--states=all", user, "--format=%i|%T|%r").splitlines()
    return {number: Job(state, reason) for number, state, reason in (line.split("|") for line in lines)}


def largest_array() -> int:
    """How many elements an array may have; raises UserError as `partitions`."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _asked("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else 1001


def launches_with_pmix() -> bool:
    """Whether `srun --mpi=pmix` starts MPI ranks here."""
    # srun writes the list to its standard error.
    done = _run("srun", "--mpi=list")
    return re.search(r"\bpmix\b", done.stdout + done.stderr) is not None


def refusal(script: str) -> str | None:
    """Why SLURM would not take a batch script, in its own words; None where it would."""
    done = _run("sbatch", "--test-only", input=script)
    if done.returncode == 0:
        return None
    return _complaint(done)


def submit(path: Path) -> str:
    """Submit a batch script; -> the job's number. Raises UserError."""
    return _asked("sbatch", "--parsable", str(path)).strip().partition(";")[0]


def _asked(*command: str) -> str:
    done = _run(*command)
    if done.returncode != 0:
        raise UserError(f"SLURM does not answer: {command[0]}: {_complaint(done)}")
    return done.stdout


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = [re.sub(r"^\w+: (error: )?(?=\S)", "", line) for line in lines] or [f"exit status {done.returncode}"]
    return "; ".join(dict.fromkeys(told))


def _run(*command: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, input=input, timeout=_SECONDS_FOR_AN_ANSWER)
    except FileNotFoundError:
        raise UserError(f"no SLURM on this machine: {command[0]} is not there") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"SLURM does not answer: {command[0]} took more than {_SECONDS_FOR_AN_ANSWER} s") from None
