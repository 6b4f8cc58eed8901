"""Writes a batch script for SLURM from the template jobs/slurm.sh, checks it and submits it.

What is to be run is resolved and checked here, and written beside the results in DIR/jobs: one TOML for each result
file, `cells` with a line "RANKS NAME COMMAND" for each, the script, and `submitted.json`, from which `mpi-resmtl
status` knows which job runs what. Submitting the same again runs what is not there yet.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import Any

from mpi_resmtl import slurm
from mpi_resmtl.cells import differences, is_sweep, load, single
from mpi_resmtl.config import Experiment, resolve
from mpi_resmtl.errors import UserError
from mpi_resmtl.launch import add_plugin, plug_in

PROJECT = Path(__file__).resolve().parents[1]
TEMPLATE = PROJECT / "jobs" / "slurm.sh"
JOBS, SCRIPT, CELLS, SUBMITTED, SWEEP = "jobs", "job.sh", "cells", "submitted.json", "sweep.toml"
_LONGEST_WARNING = 120
"""Seconds before the limit that a job is warned, where it has eight minutes or more; else a quarter of its time."""
_EARLY = 60
"""Seconds that SLURM may be early with its warning."""


@dataclass(frozen=True)
class Cell:
    """One result file, or a whole sweep, that a job makes on so many ranks."""

    name: str
    ranks: int
    toml: str
    command: str = "run"

    @property
    def line(self) -> str:
        """Its line in DIR/jobs/cells."""
        return f"{self.ranks} {self.name} {self.command}"


@dataclass(frozen=True)
class Size:
    """What a job asks SLURM for."""

    nodes: int
    ranks_per_node: int
    threads: int
    seconds: int
    partition: str | None

    @property
    def ranks(self) -> int:
        """All ranks of the job."""
        return self.nodes * self.ranks_per_node


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `submit` to the command line."""
    submit = commands.add_parser("submit", help="write a batch script for SLURM and submit it")
    submit.add_argument("experiment", metavar="PRESET|SWEEP|FILE.toml")
    submit.add_argument("--nodes", type=int, default=1, metavar="N", help="(default %(default)s)")
    submit.add_argument("--ranks-per-node", type=int, required=True, metavar="M")
    submit.add_argument("--time", required=True, metavar="T", help="minutes, hours:minutes:seconds, days-hours")
    submit.add_argument("--threads", type=int, default=1, metavar="C", help="cores of a rank (default %(default)s)")
    submit.add_argument(
        "--array", nargs="?", type=int, const=0, metavar="K", help="a sweep as an array of K elements, or one a cell"
    )
    submit.add_argument("--groups", type=int, metavar="G", help="groups of ranks of a sweep without --array")
    submit.add_argument(
        "--scaling",
        choices=("strong", "weak"),
        help="on 1, 2, 4, ... ranks; weak: task.agents and byzantine.count are those of one rank",
    )
    submit.add_argument("--output", type=Path, metavar="DIR", help="folder of results and script (default: its name)")
    submit.add_argument("--partition", metavar="P")
    submit.add_argument("--account", metavar="A")
    submit.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION[=VALUE]", help="such as --sbatch qos=x"
    )
    submit.add_argument(
        "--launcher", metavar="COMMAND", help="'srun --mpi=pmix' (default where there is pmix) or mpirun"
    )
    submit.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as seed=0,1,2")
    submit.add_argument("--data-dir", metavar="DIR", help="where real data lie (default: $MPI_RESMTL_DATA)")
    submit.add_argument("--overwrite", action="store_true", help="replace what is in DIR of another run")
    submit.add_argument("--dry-run", action="store_true", help="write the script, show it, and do not submit it")
    add_plugin(submit)
    submit.set_defaults(command=_submit)


def _submit(asked: argparse.Namespace) -> int:
    for option in ("nodes", "ranks_per_node", "threads", "groups"):
        if (value := getattr(asked, option)) is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: expected 1 or more")
    size = Size(asked.nodes, asked.ranks_per_node, asked.threads, _limit(asked.time), asked.partition)
    plug_in(asked.plugin)
    if asked.data_dir is not None:
        asked.set.append(f"task.data_dir={json.dumps(str(Path(asked.data_dir).absolute()))}")
    if not asked.dry_run and not slurm.available():
        raise UserError(
            f"no SLURM on this machine: sbatch is not there; here: {_here(asked, size)}; "
            "or --dry-run to write the script for another machine"
        )
    cells, sweep = _cells(asked, size)
    folder = (asked.output or Path(Path(asked.experiment).stem)).absolute()
    if slurm.available():
        _check_size(size)
        _check_queue(folder)
    left = _left(cells, folder, asked.overwrite)
    elements = _elements(asked.array, len(left))
    if not left:
        print(f"{folder}: all of {len(cells)} there already")
        return 0
    script = _script(asked, size, folder, elements)
    if slurm.available() and (why := slurm.refusal(script)) is not None:
        raise UserError(f"SLURM refuses the job: {why}; it has {_those(slurm.partitions())}")
    path = _write(folder, left, sweep, script, asked.overwrite)
    if asked.dry_run:
        print(script, end="")
        print(f"not submitted{'' if slurm.available() else ', nor checked by SLURM'}; sbatch {path}", file=sys.stderr)
        return 0
    _submit_script(path, folder, left, elements, asked)
    return 0


def _limit(time: str) -> int:
    limit = slurm.seconds(time)
    if limit is None:
        raise UserError(f"--time {time}: expected a limit, such as 1:00:00")
    if limit < 60:
        raise UserError(f"--time {time}: SLURM counts in minutes; at least 1")
    return limit


def _here(asked: argparse.Namespace, size: Size) -> str:
    """The command that does on this machine what the job would do."""
    options = " ".join(f"--set {shlex.quote(setting)}" for setting in asked.set)
    what = f"{shlex.quote(asked.experiment)}{' ' if options else ''}{options}"
    if is_sweep(asked.experiment, asked.set):
        return f"mpirun -n {size.ranks} mpi-resmtl sweep {what} --output DIR"
    return f"mpirun -n {size.ranks} mpi-resmtl run {what}"


def _cells(asked: argparse.Namespace, size: Size) -> tuple[list[Cell], str | None]:
    """What is to be run, resolved and checked, and the TOML of a sweep whose cells these are; raises UserError."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", Path(asked.experiment).stem)
    if not is_sweep(asked.experiment, asked.set):
        for option in ("array", "groups"):
            if getattr(asked, option) is not None:
                raise UserError(
                    f"--{option}: {asked.experiment} is no sweep; give a key a list, such as --set seed=0,1,2"
                )
        if asked.scaling is not None:
            cells = _scaling(asked, size.ranks)
        else:
            cells = [Cell(name, size.ranks, single(asked.experiment, asked.set).toml())]
        _check_plans(cells, size)
        return cells, None
    if asked.scaling is not None:
        raise UserError(
            f"--scaling {asked.scaling}: {asked.experiment} is a sweep; a study of scaling has one experiment"
        )
    whole = load(asked.experiment, asked.set)
    cells = [Cell(cell.name, size.ranks, cell.config) for cell in whole.cells]
    if asked.array is not None:
        if asked.groups is not None:
            raise UserError("--groups: every element of an --array works on its cells one after the other")
        _check_plans(cells, size)
        return cells, whole.toml
    groups = asked.groups or min(size.ranks, len(cells))
    if groups > size.ranks:
        raise UserError(f"--groups {groups}: expected 1 to the number of ranks, {size.ranks}")
    _check_plans([replace(cell, ranks=ceil(size.ranks / groups)) for cell in cells], size, groups)
    return [Cell(name, size.ranks, whole.toml, "sweep")], None


def _scaling(asked: argparse.Namespace, ranks: int) -> list[Cell]:
    """One cell for each power of two up to the number of ranks, and for that."""
    counts = sorted({ranks, *(2**k for k in range(ranks.bit_length()))})
    base = single(asked.experiment, asked.set)
    if base.record.weights == 0:
        raise UserError("--scaling: seconds are recorded every record.weights iterations; set it above 0")
    cells = []
    for count in counts:
        experiment = single(asked.experiment, asked.set)
        if asked.scaling == "weak":
            _check_weak(base)
            experiment.task.agents *= count
            experiment.byzantine.count *= count
        cells.append(Cell(f"{asked.scaling}-{count}", count, experiment.toml()))
    return cells


def _check_weak(experiment: Experiment) -> None:
    task = experiment.task
    if not any(field.name == "agents" for field in fields(task)):
        raise UserError(f"--scaling weak: the number of agents of {task.name} is fixed; use --scaling strong")
    if experiment.byzantine.agents is not None:
        raise UserError(
            "--scaling weak: byzantine.agents names attackers of one size; give byzantine.count, those of a rank"
        )


def _check_plans(cells: list[Cell], size: Size, groups: int | None = None) -> None:
    """Raise UserError where a cell cannot run as it is, or on its number of ranks."""
    import mpi4py

    # A login node is no place to start MPI; the plan needs but its constants.
    mpi4py.rc.initialize = False
    from mpi_resmtl.run import plan

    for cell in cells:
        prefix = f"{cell.name}: " if len(cells) > 1 else ""
        try:
            planned, _ = plan(_experiment(cell), 1)
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
        agents = planned.graph.agents
        if cell.ranks > agents:
            more = f"; or --groups {groups * ceil(cell.ranks / agents)}" if groups else ""
            raise UserError(
                f"{prefix}{cell.ranks} ranks are more than the {agents} agents; {_fewer(size, agents)}{more}"
            )


def _experiment(cell: Cell) -> Experiment:
    return resolve(tomllib.loads(cell.toml), cell.name)


def _fewer(size: Size, ranks: int) -> str:
    """Options for at most so many ranks."""
    nodes = min(size.nodes, ranks)
    return f"at most {ranks}, such as --nodes {nodes} --ranks-per-node {min(size.ranks_per_node, ranks // nodes)}"


def _left(cells: list[Cell], folder: Path, overwrite: bool) -> list[Cell]:
    """The cells whose results are not there; raises UserError where the folder holds something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: is a file, not a folder")
    if not folder.parent.is_dir():
        raise UserError(f"--output {folder}: the folder {folder.parent} does not exist")
    if overwrite:
        return [cell for cell in cells if not _same(folder, cell)]
    for cell in cells:
        written, result = folder / JOBS / f"{cell.name}.toml", folder / f"{cell.name}.h5"
        if written.exists() and (differ := _differences(written.read_text(), cell.toml)):
            raise UserError(f"{folder}: holds another run of {cell.name}: {differ}; --overwrite replaces it")
        if result.exists() and not _same(folder, cell):
            raise UserError(f"{result}: is there already, of another run; --overwrite replaces it")
    return [cell for cell in cells if not (folder / f"{cell.name}.h5").exists()]


def _same(folder: Path, cell: Cell) -> bool:
    """Whether a cell's result is there, and of its configuration."""
    import h5py

    try:
        with h5py.File(folder / f"{cell.name}.h5") as file:
            return not _differences(file.attrs["config"], cell.toml)
    except (OSError, KeyError):
        return False


def _differences(there: str, asked: str) -> str:
    try:
        return differences(there, asked)
    except tomllib.TOMLDecodeError as error:
        return f"not TOML: {error}"


def _elements(array: int | None, cells: int) -> int:
    """Elements of the array; 1 without one."""
    if array is None:
        return 1
    if array < 0:
        raise UserError(f"--array {array}: expected 1 or more elements")
    elements = min(array or cells, cells)
    if slurm.available() and elements > (most := slurm.largest_array()):
        raise UserError(f"an array of {elements} elements: SLURM allows {most}; --array {most}")
    return elements


def _check_size(size: Size) -> None:
    """Raise UserError where the partition cannot run a job of this size."""
    every = slurm.partitions()
    if size.partition is None:
        # What the user wrote into the template may name one; then SLURM's own check has to do.
        named = re.search(r"^#SBATCH --partition=(\S+)", _template(), re.MULTILINE)
        chosen = [p for p in every if (p.name == named[1] if named else p.default)]
    else:
        chosen = [p for p in every if p.name == size.partition]
        if not chosen:
            raise UserError(f"--partition {size.partition}: SLURM has {_those(every)}")
    for partition in chosen:
        _check_partition(size, partition, every)


def _check_partition(size: Size, partition: slurm.Partition, every: list[slurm.Partition]) -> None:
    largest = max((cpus for _, cpus in partition.nodes), default=0)
    many = sum(many for many, _ in partition.nodes)
    others = [p for p in every if p != partition]
    if partition.seconds is not None and size.seconds > partition.seconds:
        limit = slurm.clock(partition.seconds)
        longer = [p for p in others if p.seconds is None or p.seconds >= size.seconds]
        where = f", or --partition {longer[0].name}" if longer else ""
        raise UserError(
            f"--time {slurm.clock(size.seconds)}: partition {partition.name} allows {limit}; --time {limit}{where} "
            "(a job whose time is up goes on where it was, in another turn)"
        )
    if size.ranks_per_node * size.threads > largest:
        at_most = largest // size.threads
        fits = f"--ranks-per-node {at_most}" if at_most else f"--threads {largest}"
        nodes = ceil(size.ranks / at_most) if at_most else many + 1
        spread = f", or --nodes {nodes} --ranks-per-node {ceil(size.ranks / nodes)}" if nodes <= many else ""
        raise UserError(
            f"{size.ranks_per_node} ranks a node of {size.threads} core{'s' if size.threads > 1 else ''} each: "
            f"nodes of partition {partition.name} have {largest} CPUs; {fits}{spread}"
        )
    if size.nodes > many:
        nodes = f"{many} node{'s' if many != 1 else ''}"
        raise UserError(f"--nodes {size.nodes}: partition {partition.name} has {nodes}; --nodes {many}")


def _those(partitions: Iterable[slurm.Partition]) -> str:
    return "the partitions " + "; ".join(map(str, partitions))


def _check_queue(folder: Path) -> None:
    """Raise UserError where a job of the folder is still in the queue."""
    queue = slurm.queue()
    for job in submitted(folder):
        for number, there in queue.items():
            if number.partition("_")[0] == job["job"] and there.state in slurm.WAITING + slurm.RUNNING:
                raise UserError(f"{folder}: its job {number} is {there.state}; wait, or stop it: scancel {job['job']}")


def submitted(folder: Path) -> list[dict[str, Any]]:
    """What was submitted from a folder, the oldest first."""
    path = folder / JOBS / SUBMITTED
    return json.loads(path.read_text()) if path.exists() else []


def _template() -> str:
    try:
        return TEMPLATE.read_text()
    except OSError as error:
        raise UserError(f"{TEMPLATE}: {error.strerror}; submit works from a checkout of the project") from None


def _script(asked: argparse.Namespace, size: Size, folder: Path, elements: int) -> str:
    """The template, filled in."""
    array = asked.array is not None
    warning = min(_LONGEST_WARNING, size.seconds // 4)
    log = str(folder / JOBS / "slurm").replace("%", "%%") + ("-%A_%a.log" if array else "-%j.log")
    options = {
        "job-name": Path(asked.experiment).stem,
        "nodes": str(size.nodes),
        "ntasks-per-node": str(size.ranks_per_node),
        "cpus-per-task": str(size.threads),
        "time": slurm.clock(size.seconds),
        "signal": f"B:USR1@{warning}",
        "output": log,
        "chdir": str(Path.cwd()),
    }
    options |= {"array": f"0-{elements - 1}"} if array else {}
    options |= {"exclusive": ""} if asked.scaling is not None else {}
    options |= {name: value for name in ("partition", "account") if (value := getattr(asked, name)) is not None}
    for option in asked.sbatch:
        name, _, value = option.removeprefix("--").partition("=")
        options[name] = value
    launcher = asked.launcher
    if launcher is None and slurm.available() and not slurm.launches_with_pmix():
        launcher = "mpirun"
    plugins = " ".join(f"--plugin {shlex.quote(name)}" for name in asked.plugin)
    variables = {
        "project": shlex.quote(str(PROJECT)),
        "venv": shlex.quote(sys.prefix),
        "folder": shlex.quote(str(folder)),
        "elements": str(elements),
        "options": f"({plugins})",
        **({"groups": str(asked.groups)} if asked.groups else {}),
        **({"launcher": shlex.quote(launcher)} if launcher is not None else {}),
    }
    return fill(_template(), options, variables)


def fill(template: str, options: dict[str, str], variables: dict[str, str]) -> str:
    """A batch script with `#SBATCH --OPTION=VALUE` lines and `VARIABLE=VALUE` lines set; options it lacks are added."""
    lines = template.splitlines()
    for name, value in options.items():
        line = f"#SBATCH --{name}={_quoted(value)}" if value else f"#SBATCH --{name}"
        at = [i for i, old in enumerate(lines) if re.match(rf"#SBATCH --{re.escape(name)}(=|\s|$)", old)]
        if at:
            lines[at[0]] = line
        else:
            last = max(i for i, old in enumerate(lines) if old.startswith("#SBATCH "))
            lines.insert(last + 1, line)
    for name, value in variables.items():
        at = [i for i, old in enumerate(lines) if re.match(rf"{name}=", old)]
        if not at:
            raise UserError(f"{TEMPLATE}: has no line {name}=...")
        lines[at[0]] = f"{name}={value}"
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """An option's value as SLURM reads it from a script."""
    return f'"{value}"' if re.search(r"\s", value) else value


def _write(folder: Path, cells: list[Cell], sweep: str | None, script: str, overwrite: bool) -> Path:
    """Write all that a job needs, and what `mpi-resmtl sweep` knows a folder by; -> the script's path."""
    jobs = folder / JOBS
    try:
        jobs.mkdir(parents=True, exist_ok=True)
        if sweep is not None:
            (folder / SWEEP).write_text(sweep)
        for cell in cells:
            if overwrite and cell.command == "run":
                (folder / f"{cell.name}.h5").unlink(missing_ok=True)
            (jobs / f"{cell.name}.toml").write_text(cell.toml)
            (jobs / f"{cell.name}.state").unlink(missing_ok=True)
        (jobs / CELLS).write_text("".join(f"{cell.line}\n" for cell in cells))
        (jobs / SCRIPT).write_text(script)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    return jobs / SCRIPT


def _submit_script(path: Path, folder: Path, cells: list[Cell], elements: int, asked: argparse.Namespace) -> None:
    number = slurm.submit(path)
    record = {
        "job": number,
        "array": asked.array is not None,
        "elements": elements,
        "scaling": asked.scaling,
        "cells": [cell.name for cell in cells],
        "ranks": [cell.ranks for cell in cells],
        "sweep": cells[0].command == "sweep",
    }
    (folder / JOBS / SUBMITTED).write_text(json.dumps([*submitted(folder), record], indent=1))
    what = f"an array of {elements} for {len(cells)} cells" if asked.array is not None else f"{len(cells)} to run"
    print(f"job {number}: {what}; mpi-resmtl status {folder}")
