"""Says which cells of a folder are done, running, waiting or failed, and what SLURM says of their jobs."""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpi_resmtl import slurm
from mpi_resmtl.errors import UserError
from mpi_resmtl.submit import JOBS, same, submitted

STATES = ("done", "running", "waiting", "stopped", "failed")
_INDEX = "index.csv"
_HEADER = ("cell", "ranks", "state", "job", "SLURM", "")
_FAILED = 1
"""Exit status where a cell failed."""


@dataclass(frozen=True)
class Standing:
    """How it stands with a cell."""

    cell: str
    ranks: int | None
    state: str
    """One of STATES; stopped: submitting it again goes on with it."""
    job: str = ""
    slurm: str = ""
    """What SLURM says of the job."""
    told: str = ""
    """Why, or how far it is."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `status` to the command line."""
    status = commands.add_parser("status", help="which runs of a folder are done, running, failed")
    status.add_argument("folder", type=Path, metavar="DIR", help="of a sweep or of what was submitted")
    status.set_defaults(command=_status)


def _status(asked: argparse.Namespace) -> int:
    standings = standing(asked.folder)
    rows = [_HEADER, *((s.cell, str(s.ranks or ""), s.state, s.job, s.slurm, s.told) for s in standings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    counts = Counter(s.state for s in standings)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    print(f"{len(standings)} cell{'s' if len(standings) != 1 else ''}: {told}")
    for line in _scaling(asked.folder):
        print(line)
    return _FAILED if counts["failed"] else 0


def standing(folder: Path) -> list[Standing]:
    """How it stands with every cell of a folder; raises UserError where it is none of a sweep or of submitted jobs."""
    jobs = submitted(folder)
    if not jobs:
        if not (folder / _INDEX).exists():
            raise UserError(f"{folder}: neither a sweep nor anything that was submitted")
        return _of_sweep(folder, None)
    queue = slurm.queue() if slurm.available() else None
    found: dict[str, Standing] = {}
    for job in jobs:
        for place, (name, ranks) in enumerate(zip(job["cells"], job["ranks"], strict=True)):
            number = f"{job['job']}_{place % job['elements']}" if job["array"] else job["job"]
            own = _of_cell(folder, name, ranks, number, queue)
            whole = job["sweep"] and (folder / _INDEX).exists()
            # A later job takes over the cells that it has from an earlier one.
            found |= {s.cell: s for s in (_of_sweep(folder, own) if whole else [own])}
    return list(found.values())


def _of_cell(folder: Path, name: str, ranks: int, number: str, queue: dict[str, slurm.Job] | None) -> Standing:
    """How it stands with a cell: by its result, what its job noted, and the queue (None: there is no SLURM here)."""
    noted, number, *rest = _noted(folder, name) or ("", number)
    job = (queue or {}).get(number)
    says = "" if job is None else job.state + (f" ({job.reason})" if job.reason not in ("", "None") else "")

    def cell(state: str, told: str = "") -> Standing:
        return Standing(name, ranks, state, number, says, told)

    asked = folder / JOBS / f"{name}.toml"
    if (noted == "ended" and rest == ["0"]) or (asked.exists() and same(folder / f"{name}.h5", asked.read_text())):
        return cell("done")
    if noted == "ended":
        return cell("failed", f"exit status {' '.join(rest)}: {_last_line(folder, name, number)}")
    if job is not None and job.state in slurm.WAITING:
        return cell("waiting", "to go on where it was" if noted else "")
    if noted == "running" and (queue is None or (job is not None and job.state in slurm.RUNNING)):
        return cell("running", _last_line(folder, name, number))
    if queue is None or (job is not None and job.state in slurm.RUNNING):
        return cell("stopped" if noted == "stopped" else "waiting", "" if noted else "its job has not come to it")
    if noted == "stopped" or (job is None and not noted) or (job is not None and job.state == "CANCELLED"):
        return cell("stopped", "submit it again to go on" if noted else "never begun; submit it again")
    return cell("failed", f"its job ended without a word: {_last_line(folder, name, number)}")


def _noted(folder: Path, name: str) -> list[str] | None:
    """What a cell's job noted of it: a word, the job's number, and an exit status."""
    path = folder / JOBS / f"{name}.state"
    return path.read_text().split() if path.exists() else None


def _last_line(folder: Path, name: str, number: str) -> str:
    """What the program said last of a cell; its error, where it has told one."""
    for path in (folder / JOBS / f"{name}.log", folder / JOBS / f"slurm-{number}.log"):
        if path.exists():
            lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
            told = [line for line in lines if line.startswith("mpi-resmtl: ")] or lines
            if told:
                return told[-1]
    return f"nothing is in {path}"


def _of_sweep(folder: Path, job: Standing | None) -> list[Standing]:
    """How it stands with the cells of a sweep, by its index and the standing of the job that runs it, if one does."""
    with open(folder / _INDEX, newline="") as file:
        rows = list(csv.DictReader(file))
    return list(_by_index(rows, job))


def _by_index(rows: list[dict[str, str]], job: Standing | None) -> Iterator[Standing]:
    over = job is not None and job.state not in ("running", "waiting")
    for row in rows:
        state = {"refused": "failed"}.get(row["state"], row["state"])
        told = row["message"]
        if over and state in ("running", "waiting"):
            state, told = job.state if job.state != "done" else "stopped", job.told
        number, says = (job.job, job.slurm) if job is not None else ("", "")
        yield Standing(row["file"].removesuffix(".h5"), job.ranks if job else None, state, number, says, told)


def _scaling(folder: Path) -> Iterator[str]:
    """The tables of studies of scaling: seconds an iteration of all rules together, by ranks."""
    import h5py

    for kind in ("strong", "weak"):
        cells = {
            name: ranks
            for job in submitted(folder)
            if job["scaling"] == kind
            for name, ranks in zip(job["cells"], job["ranks"], strict=True)
        }
        found = []
        for name, ranks in sorted(cells.items(), key=lambda item: item[1]):
            path = folder / f"{name}.h5"
            if path.exists():
                with h5py.File(path) as file:
                    found.append((ranks, _seconds(file), len(file["graph/byzantine"])))
        if not found:
            continue
        first_ranks, first, _ = found[0]
        yield f"{kind} scaling: ranks, agents, ms an iteration, {'speed-up, ' if kind == 'strong' else ''}efficiency"
        for ranks, own, agents in found:
            speed_up = first / own * first_ranks
            sizes = f"{ranks:>6} {agents:>8} {own * 1e3:>10.3f}"
            if kind == "strong":
                yield f"{sizes} {speed_up:>7.2f} {speed_up / ranks:>6.0%}"
            else:
                yield f"{sizes} {first / own:>6.0%}"


def _seconds(file) -> float:
    """Seconds an iteration of a result file, all rules together, of the slowest rank at each."""
    total = 0.0
    for rule in file["rule"].values():
        seconds = rule["seconds"][()]
        total += seconds.sum(axis=2).max(axis=1).sum() / file["weight_iteration"][-1]
    return total
