"""Nothing that another rank or a file says is ever unpickled once a run has started."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from mpirun import mpirun

import mpi_resmtl

PICKLING = {"send", "recv", "isend", "irecv", "sendrecv", "bcast", "scatter", "gather", "allgather", "alltoall"}
PICKLING |= {"reduce", "allreduce", "scan", "exscan"}
AT_START = {
    "run.prepare",
    "run._run",
    "sweep.run",
    "checkpoint.Files.__post_init__",
    "recorder.Recorder.__init__",
    "exchange.shared_window",
    "exchange._agree",
    "exchange.aligned",
    "lending.open_lending",
    "lending.Lending.__init__",
}
"""What may tell ranks of one job anything, before the first iteration; the measuring of `bench` is left out."""


def calls() -> list[tuple[str, ast.Call]]:
    """Every call of a method or function of a module in the package, with where it stands."""
    root, found = Path(mpi_resmtl.__file__).parent, []
    for path in sorted(root.rglob("*.py")):
        if "bench" in path.relative_to(root).as_posix():
            continue

        def visit(node: ast.AST, where: str) -> None:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                where = f"{where}.{node.name}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                found.append((where, node))
            for child in ast.iter_child_nodes(node):
                visit(child, where)

        visit(ast.parse(path.read_text()), path.relative_to(root).with_suffix("").as_posix().replace("/", "."))
    return found


def test_ranks_tell_one_another_objects_at_start_only():
    communicators = {"comm", "_comm", "node", "group", "host"}
    pickling = set()
    for where, call in calls():
        owner = call.func.value
        name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        if call.func.attr in PICKLING and name in communicators:
            pickling.add(where)
    assert pickling == AT_START


def test_no_file_is_read_in_a_way_that_could_run_code():
    for where, call in calls():
        owner = call.func.value
        name = getattr(owner, "id", "")
        keywords = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
        if (name, call.func.attr) == ("np", "load"):
            assert keywords["allow_pickle"] is False, where
        if (name, call.func.attr) == ("torch", "load"):
            assert keywords["weights_only"] is True, where
        assert name not in ("pickle", "marshal", "shelve", "joblib", "dill"), where


FORBIDDEN = """
import sys
import mpi_resmtl.run as run
from mpi4py import MPI
def refuse(*arguments):
    raise RuntimeError("a pickle in mid-run")
diffuse_rule = run.diffuse_rule
def guarded(*arguments, **keywords):
    MPI.pickle.__init__(dumps=refuse, loads=refuse)
    diffuse_rule(*arguments, **keywords)
run.diffuse_rule = guarded
from mpi_resmtl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_with_checkpoints_unpickles_nothing_after_its_start(tmp_path: Path):
    program = [sys.executable, "-c", FORBIDDEN]
    for number, settings in enumerate(
        (["exchange.shared=off"], ["byzantine.attack=little"], ["byzantine.attack=silent"])
    ):
        settings += ["iterations=30", "checkpoint.every=10", "rules=none,loss,median", "rule.excess=cap"]
        arguments = ["run", "fig1c", *(word for setting in settings for word in ("--set", setting))]
        done = mpirun(3, *arguments, "--output", tmp_path / f"{number}.h5", program=program)
        assert done.returncode == 0, done.stderr
