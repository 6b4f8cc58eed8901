"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from mpi_resmtl import __version__  # noqa: E402  (one thread a rank has to be asked for before numpy loads)
from mpi_resmtl.errors import UserError  # noqa: E402
from mpi_resmtl.launch import USER_ERROR, add_plugin, on_ranks, plug_in, refuse, together  # noqa: E402
from mpi_resmtl.watchdog import add_watchdog, watching  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run the command that `arguments` (default: those of the process) ask for; the exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        return asked.command(asked)
    except UserError as error:
        print(f"mpi-resmtl: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        # The reader, such as head, has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mpi-resmtl", description="Byzantine-resilient multi-task learning on MPI.")
    parser.add_argument("--version", action="version", version=f"mpi-resmtl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a preset or a TOML file, under mpirun or alone")
    run.add_argument("experiment", metavar="PRESET|FILE.toml")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as byzantine.count=20")
    run.add_argument("--output", type=Path, metavar="FILE", help="result file (default: PRESET.h5)")
    run.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    survive = (
        "go on without the agents of ranks that die (Open MPI 5 under mpirun --with-ft ulfm); saves no checkpoints"
    )
    run.add_argument("--survive", action="store_true", help=survive)
    add_watchdog(run)
    run.add_argument("--data-dir", metavar="DIR", help="where real data lie (default: $MPI_RESMTL_DATA)")
    add_plugin(run)
    run.set_defaults(command=_run)

    listing = commands.add_parser("list", help="presets, tasks, rules, attacks and graphs")
    add_plugin(listing)
    listing.set_defaults(command=_list)

    show = commands.add_parser("show", help="the whole resolved configuration as TOML")
    show.add_argument("experiment", metavar="PRESET|FILE.toml")
    show.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    add_plugin(show)
    show.set_defaults(command=_show)

    data = commands.add_parser("data", help="what data are where, downloads, generated stand-ins")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    for name, what, names in (
        ("status", "what is found, whether it is real, its size and checksum", None),
        ("fetch", "download a published data set", ("har", "mnist", "synthetic-digits")),
        ("make", "write a generated stand-in in the published layout", ("har", "digits")),
    ):
        action = actions.add_parser(name, help=what)
        if names is not None:
            action.add_argument("name", choices=names)
        action.add_argument("--data-dir", metavar="DIR", help="default: $MPI_RESMTL_DATA or the user's data folder")
        action.set_defaults(command=_data, action=name)

    from mpi_resmtl import bench, status, submit, sweep, verify

    sweep.add_parser(commands)
    submit.add_parser(commands)
    status.add_parser(commands)
    verify.add_parser(commands)
    bench.add_parser(commands)
    return parser


def _run(asked: argparse.Namespace) -> int:
    def action(comm) -> None:
        from mpi_resmtl import survival
        from mpi_resmtl.cells import single
        from mpi_resmtl.run import run
        from mpi_resmtl.signals import Signals

        if asked.data_dir is not None:
            asked.set.append(f"task.data_dir={json.dumps(asked.data_dir)}")
        output = asked.output or Path(Path(asked.experiment).stem + ".h5")
        if asked.survive and asked.resume:
            refused = "--survive saves nothing on the way, so there is nothing to --resume"
            together(comm, lambda: refuse(refused))
        # A signal while data are read is one to save the run after its first iteration.
        catching = nullcontext() if asked.survive else Signals()
        with catching as signals, watching(asked.watchdog, comm.rank) as watchdog:

            def whole() -> None:
                load = partial(single, asked.experiment, asked.set)
                run(
                    comm,
                    load,
                    output,
                    asked.overwrite,
                    resume=asked.resume,
                    signals=signals,
                    watchdog=watchdog,
                    survives=asked.survive,
                )

            if asked.survive:
                survival.ended(whole)
            whole()

    return on_ranks(action, asked.plugin)


def _show(asked: argparse.Namespace) -> int:
    from mpi_resmtl.cells import shown

    plug_in(asked.plugin)
    print(shown(asked.experiment, asked.set), end="")
    return 0


def _data(asked: argparse.Namespace) -> int:
    from mpi_resmtl.data import sources, standin

    folder = sources.target_dir(asked.data_dir)
    if asked.action == "status":
        print(f"{folder}{'' if folder.is_dir() else ' (not there)'}")
        for found in sources.status(folder):
            where = found.path or "a study makes a stand-in"
            about = f"{found.kind:<9} {found.bytes:>11,} bytes  checksum {found.checksum or '-'}"
            print(f"  {found.name:<17} {about}  {where}")
            if found.sha256:
                print(f"  {'':<17} sha256 {found.sha256}")
            if found.note:
                print(f"  {'':<17} {found.note}")
        return 0
    make = sources.fetch if asked.action == "fetch" else standin.make
    for path in make(asked.name, folder):
        print(path)
    return 0


def _list(asked: argparse.Namespace) -> int:
    from mpi_resmtl.attacks import ATTACKS
    from mpi_resmtl.config import presets
    from mpi_resmtl.graph import GRAPHS
    from mpi_resmtl.registry import summary
    from mpi_resmtl.rules import RULES
    from mpi_resmtl.tasks import TASKS

    plug_in(asked.plugin)
    print("presets")
    for name, text in sorted(presets().items()):
        print(f"  {name:<22} {text.splitlines()[0].removeprefix('# ')}")
    for title, registry in (("tasks", TASKS), ("rules", RULES), ("attacks", ATTACKS), ("graphs", GRAPHS)):
        print(title)
        for name, part in registry.items():
            print(f"  {name:<22} {summary(part)}")
    return 0
