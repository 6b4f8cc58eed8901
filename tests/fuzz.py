"""Mutated inputs for everything that reads what others wrote: each runs, or is refused in one clear line.

    python tests/fuzz.py --count 10000 [--only stream,config] [--also stream:7,config:1/38] [--seed 0] [--jobs 2]
    python tests/fuzz.py --only stream --index 1234 --keep DIR

A case is a kind of input and a number, which set all that is done to a small valid input: bits flipped, bytes cut off
or moved, datasets of other shapes and types, links, NaN and huge values, archives and TOML that mean harm. It is read
by a process of its own, a child of one that has imported everything, as a user's command would read it. A case fails
when that process is ended by a signal, takes more than ten seconds of processor time or two minutes in all, shows a
traceback or a warning, ends with a status that says nothing, or touches a file outside its output folder.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import io
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import tomllib
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import date
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["OMPI_MCA_ess_singleton_isolated"] = "1"  # noqa: SIM112
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
sys.dont_write_bytecode = True

import mpi4py  # noqa: E402

# Each case initialises MPI for itself, if it needs to: a process that has can have no children.
mpi4py.rc.initialize = False
mpi4py.rc.finalize = False

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import tomli_w  # noqa: E402

SECONDS, PATIENCE = 10, 120
"""Processor time that a case may take, and time in all."""
MEMORY = 6 << 30

Random = random.Random


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    kind: str
    index: int
    status: int
    """Exit status; negative: ended by that signal."""
    seconds: float
    """Processor time."""
    said: str
    wrong: str
    """Why it fails; empty where it does not."""


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    make: Callable[[Path, Path, Random], None]
    """(valid inputs, folder, random) writes a mutated input."""
    read: Callable[[Path], int]
    """Reads what is in the folder, as a user would; -> exit status."""
    statuses: tuple[int, ...] = (0, 2)


# What is done to bytes


def mangled(content: bytes, rng: Random, front: int = 8192) -> bytes:
    """A few bits, bytes, numbers or pieces changed; more often near the front, where formats keep what matters."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        at = rng.randrange(min(len(data), front)) if rng.random() < 0.7 else rng.randrange(len(data))
        way = rng.randrange(8)
        if way == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif way == 2:
            width = rng.choice((2, 4, 8))
            number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, len(data)))
            data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))
        elif way == 3:
            del data[at:]
        elif way == 4:
            del data[at : at + rng.randrange(1, 64)]
        elif way == 5:
            data[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif way == 6:
            size = rng.randrange(1, 512)
            data[at : at + size] = bytes(size) if rng.random() < 0.5 else data[: len(data[at : at + size])]
        else:
            other = rng.randrange(len(data))
            size = rng.randrange(1, 256)
            data[at : at + size] = data[other : other + size]
    return bytes(data)


HOSTILE_NUMBERS = (0.0, -1.0, np.nan, np.inf, -np.inf, 1e308, -1e308, 1e-310, 3e38, 2.0**63)
HOSTILE_TEXTS = (
    "",
    "nan",
    "-inf",
    "1e400",
    "99999999999999999999",
    "0x10",
    "1,5",
    "abc",
    "\0",
    "1 2",
    "é",
    "-0",
    "1_0",
)


# HDF5


def _everything(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return sorted(found)


def rearranged(path: Path, rng: Random) -> None:
    """Datasets and attributes of an HDF5 file replaced by others of another shape, type or kind."""
    with h5py.File(path, "r+") as file:
        names = _everything(file)
        for _ in range(rng.choice((1, 1, 2, 4))):
            if rng.random() < 0.25:
                owner = _object(file, rng.choice(names)) if rng.random() < 0.3 else None
                _change_attribute(file if owner is None else owner, rng)
                continue
            name = rng.choice(names)
            item = _object(file, name)
            if item is not None:
                _change_object(file, name, item, rng)


def _object(file: h5py.File, name: str) -> h5py.HLObject | None:
    """None where an earlier change has left nothing of that name."""
    with suppress(KeyError, OSError, RuntimeError):
        return file[name]
    return None


def _change_attribute(owner: h5py.HLObject, rng: Random) -> None:
    values = (-1, 0, 2**62, 1.5, np.nan, np.inf, "", "x", "a\x1bb\nc", b"\xff\xfe", "x" * 3000, np.arange(4.0), True)
    values += (np.zeros((2, 2), "S3"), h5py.Empty("f8"), "location", "digit-cnn", "[1", "{}", "null", "sgd", "task = 1")
    names = [name for name in owner.attrs if name not in ("DIMENSION_LIST", "REFERENCE_LIST")]
    name = rng.choice(names) if names and rng.random() < 0.9 else rng.choice(("model", "classes", "schema", "odd"))
    if rng.random() < 0.2:
        owner.attrs.pop(name, None)
    else:
        owner.attrs[name] = rng.choice(values)


def _change_object(file: h5py.File, name: str, item: h5py.HLObject, rng: Random) -> None:
    way = rng.randrange(14)
    if isinstance(item, h5py.Group):
        del file[name]
        if way < 5:
            file[name] = np.zeros(3)
        elif way < 8:
            file[name] = h5py.SoftLink("/") if way < 7 else h5py.ExternalLink("other.h5", "/")
        return
    # An earlier change may have declared more than there is memory for.
    values = item[()] if item.shape is not None and item.nbytes < 1 << 24 else np.zeros(1)
    if way < 4 and item.ndim and item.size and values.dtype.kind in "fiu":
        flat = values.reshape(-1)
        for _ in range(rng.choice((1, 1, 3))):
            with np.errstate(all="ignore"), suppress(OverflowError, ValueError):
                number = rng.choice(HOSTILE_NUMBERS)
                flat[rng.randrange(flat.size)] = (
                    number if values.dtype.kind == "f" else int(rng.choice((-1, 0, 2**31, 255)))
                )
        if values.shape == item.shape:
            item[...] = values
        return
    del file[name]
    if way == 4:
        return
    if way == 5:
        kind = rng.choice(("f2", "f4", "f8", "i1", "u8", "i8", "c16", "S4", "bool", ">f8", "longdouble"))
        with np.errstate(all="ignore"), suppress(ValueError, TypeError):
            file[name] = values.astype(kind)
    elif way == 6 and values.ndim:
        file[name] = values[tuple(slice(rng.randrange(length + 1)) for length in values.shape)]
    elif way == 7 and values.ndim:
        file[name] = values.T
    elif way == 8 and values.ndim:
        file[name] = np.concatenate([values, values], axis=rng.randrange(values.ndim))
    elif way == 9:
        file[name] = rng.choice((h5py.Empty("f8"), 3, "text", np.zeros(0), np.zeros((1,) * 6), np.zeros((2, 0, 3))))
    elif way == 10:
        file[name] = rng.choice(
            (h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"), h5py.ExternalLink("/etc/passwd", "/"))
        )
    elif way == 11:
        shape = rng.choice(((2**40, 2**20), (2**31,), (10**6, 10**6), (2**60,)))
        file.create_dataset(name, shape, "f8", chunks=(2**10,) * len(shape))
    elif way == 12:
        whole = values if values.ndim else values.reshape(1)
        if whole.size and whole.dtype.kind in "fiub":
            options = rng.choice(({"compression": 9}, {"compression": "lzf", "shuffle": True}, {"scaleoffset": 2}))
            with suppress(ValueError, TypeError):
                file.create_dataset(name, data=whole, chunks=True, fletcher32=rng.random() < 0.5, **options)
    else:
        file.create_group(name)


def _mutated_hdf5(source: Path, target: Path, rng: Random) -> None:
    if rng.random() < 0.5:
        target.write_bytes(mangled(source.read_bytes(), rng, 60_000))
        return
    shutil.copy(source, target)
    rearranged(target, rng)
    if rng.random() < 0.2:
        target.write_bytes(mangled(target.read_bytes(), rng, 60_000))


def make_stream(valid: Path, folder: Path, rng: Random) -> None:
    """A recorded stream."""
    source = rng.choice(sorted((valid / "streams").glob("*.h5")))
    _mutated_hdf5(source, folder / "stream.h5", rng)


def read_stream(folder: Path) -> int:
    """Run it."""
    settings = [f"task.file={folder / 'stream.h5'}", "rules=none,average,distance,loss"]
    return run("run", "recorded", *(word for setting in settings for word in ("--set", setting)), "--output", "out.h5")


def make_result(valid: Path, folder: Path, rng: Random) -> None:
    """A result file."""
    source = rng.choice(sorted((valid / "results").glob("*.h5")))
    _mutated_hdf5(source, folder / "result.h5", rng)


def read_result(folder: Path) -> int:
    """Verify it, and draw a table from it."""
    status = run("verify", folder / "result.h5", mpi=False)
    table = _of_analysis("table")
    sys.argv = ["table.py", str(folder / "result.h5")]
    try:
        table.command(table.main)
    except SystemExit as left:
        return status if left.code in (0, 2, None) else left.code
    return status


def _of_analysis(name: str) -> ModuleType:
    """A script of analysis/, where `results` is not what it is among the tests."""
    ours = sys.modules.pop("results", None)
    sys.path.insert(0, str(ROOT / "analysis"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)
        sys.modules.pop("results", None)
        if ours is not None:
            sys.modules["results"] = ours


def make_checkpoint(valid: Path, folder: Path, rng: Random) -> None:
    """An unfinished run, its checkpoint or its result file mutated."""
    for path in (valid / "checkpoint").iterdir():
        shutil.copy(path, folder)
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")
    name = rng.choice(names)
    _mutated_hdf5(valid / "checkpoint" / name, folder / name, rng)


def read_checkpoint(folder: Path) -> int:
    """Resume it, on copies in the output folder."""
    for path in folder.iterdir():
        shutil.copy(path, ".")
    return run("run", *UNFINISHED, "--resume", "--output", "out.h5")


UNFINISHED = (
    "fig1c",
    *("--set", "task.agents=8", "--set", "task.noisy_agents=1", "--set", "byzantine.count=2"),
    *("--set", "graph.kind=ring", "--set", "iterations=20", "--set", "checkpoint.every=5", "--set", "rules=none,loss"),
)


# Published data


def _text_mutated(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        words = lines[at].split()
        way = rng.randrange(6)
        if way < 3 and words:
            words[rng.randrange(len(words))] = rng.choice(HOSTILE_TEXTS).encode()
            lines[at] = b" ".join(words)
        elif way == 3:
            lines[at] = lines[at][: len(lines[at]) // 2]
        elif way == 4:
            lines.insert(at, rng.choice((b"", b"1", b"\xff\xfe", b"# comment", b"1 " * 5000)))
        else:
            lines[at] = rng.choice((b"", b"\r", b"\x00", b"1" * 70_000))
    return b"\n".join(lines)


def _write_tree(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _zipped(contents: dict[str, bytes], above: str, rng: Random) -> bytes:
    """A zip, some of whose members are not as they should be."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(above + name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if rng.random() < 0.02:
                info.compress_type = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            if rng.random() < 0.02:
                info.external_attr = 0o120777 << 16
            if rng.random() < 0.02:
                info.filename = rng.choice(("../../evil", "/etc/evil", above + "../" + name, above + name + "/"))
            archive.writestr(info, content)
    packed = buffer.getvalue()
    if rng.random() < 0.7:
        # The list of what a zip holds is at its end.
        packed = mangled(packed[::-1], rng, 4096)[::-1] if rng.random() < 0.5 else mangled(packed, rng)
    return packed


def make_har(valid: Path, folder: Path, rng: Random) -> None:
    """UCI HAR: the folder, its zip, or the zip in a zip."""
    from test_data_activity import PUBLISHED_ZIP, ZIP, small_set

    contents = small_set()
    name = rng.choice(sorted(contents))
    if rng.random() < 0.7:
        change = _text_mutated if rng.random() < 0.6 else mangled
        contents[name] = change(contents[name], rng)
    form = rng.randrange(3)
    if form == 0:
        if rng.random() < 0.1:
            contents.pop(name)
        _write_tree(folder / "UCI HAR Dataset", contents)
        if rng.random() < 0.05:
            (folder / "UCI HAR Dataset" / "train" / "loop").symlink_to(folder)
    elif form == 1:
        (folder / ZIP).write_bytes(_zipped(contents, "UCI HAR Dataset/", rng))
    else:
        inner = _zipped(contents, "UCI HAR Dataset/", rng)
        (folder / PUBLISHED_ZIP).write_bytes(_zipped({ZIP: inner}, "", rng))


def read_har(folder: Path) -> int:
    """Run a study of two subjects on it, and ask what it is."""
    settings = ("task.agents=2", "task.batch=1", "task.train_share=0.5", "epochs=1", "rules=none,loss")
    words = [word for setting in settings for word in ("--set", setting)]
    status = run("run", "fig2a", *words, "--data-dir", folder, "--output", "out.h5")
    return max(status, run("data", "status", "--data-dir", folder, mpi=False))


def make_mnist(valid: Path, folder: Path, rng: Random) -> None:
    """MNIST, packed or not."""
    from test_data_digits import MNIST, small_mnist

    contents = small_mnist()
    for name in rng.sample(sorted(contents), rng.choice((1, 1, 2))):
        content = contents.pop(name)
        if rng.random() < 0.7:
            content = mangled(content, rng, 16)
        packed = rng.random() < 0.6
        if packed:
            content = gzip.compress(content)
            content = mangled(content, rng) if rng.random() < 0.5 else content
        contents[f"{name}.gz" if packed else name] = content
    if rng.random() < 0.05:
        count = rng.choice((10**6, 2**31, 2**32 - 1))
        bomb = gzip.compress(struct.pack(">4I", 0x803, count, 28, 28) + bytes(20_000_000), 9)
        contents["train-images-idx3-ubyte.gz"] = bomb
        contents.pop("train-images-idx3-ubyte", None)
    _write_tree(folder / MNIST, contents)


def read_mnist(folder: Path) -> int:
    """Read images of both parts, and ask what it is."""
    from mpi_resmtl.data import digits

    def some() -> None:
        for split in ("train", "test"):
            size = digits.mnist_size(folder, split)
            x, y = digits.read_mnist(folder, split, [0, 3, size - 1])
            assert np.isfinite(x).all()
            assert ((y >= 0) & (y <= 9)).all()

    return max(refusable(some), run("data", "status", "--data-dir", folder, mpi=False))


def make_digits(valid: Path, folder: Path, rng: Random) -> None:
    """Synthetic Digits, as folders or as a zip."""
    from test_data_digits import small_synthetic

    contents = small_synthetic()
    for name in rng.sample(sorted(contents), rng.choice((0, 1, 2))):
        contents[name] = mangled(contents[name], rng, 700)
    if rng.random() < 0.5:
        _write_tree(folder / "synthetic_digits", contents)
    else:
        (folder / "synthetic_digits.zip").write_bytes(_zipped(contents, "synthetic_digits/", rng))


def read_digits(folder: Path) -> int:
    """Read images of both parts, and ask what it is."""
    from mpi_resmtl.data import digits

    def some() -> None:
        for split in ("train", "test"):
            size = digits.synthetic_size(folder, split)
            x, y = digits.read_synthetic(folder, split, [0, size - 1])
            assert np.isfinite(x).all()
            assert ((y >= 0) & (y <= 9)).all()

    return max(refusable(some), run("data", "status", "--data-dir", folder, mpi=False))


# The configuration

VALUES = (
    *(-1, 0, 1, 2, 3, 7, 10**9, 10**12, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**70)),
    *(0.0, -0.0, 0.5, 1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        "x",
        "none",
        "loss",
        "uniform",
        "complete",
        "file",
        "recorded",
        "distance",
        "authors-code",
        "nnm",
        "bucketing",
    ),
    *("../../etc/passwd", "/dev/zero", "/", "a\0b", "a\nb\x1b[31m", "é" * 50, "x" * 5000, "stream.h5", "edges.txt"),
    *([], [0], [1, 2], ["none"], ["loss", "loss"], [[1, 2], [3, 4]], [0.1, 0.2], [0.2, 0.1], [float("nan")], [[]]),
    *({}, {"a": 1}, {"uses": "loss"}, True, False, date(1979, 5, 27)),
)


def _keys() -> list[str]:
    """Every key that a configuration may have."""
    from mpi_resmtl.attacks import ATTACKS
    from mpi_resmtl.config import Byzantine, Checkpoint, Exchange, Record, Rules
    from mpi_resmtl.graph import GRAPHS
    from mpi_resmtl.rules import RULES
    from mpi_resmtl.tasks import TASKS

    tables = [("byzantine", Byzantine), ("checkpoint", Checkpoint), ("exchange", Exchange), ("record", Record)]
    tables += [("rule", Rules)] + [("task", study.Parameters) for _, study in TASKS.items()]
    tables += [("graph", kind.parameters) for _, kind in GRAPHS.items()]
    tables += [("byzantine", attack.parameters) for _, attack in ATTACKS.items()]
    tables += [(f"rule.{name}", rule.parameters) for name, rule in RULES.items()]
    keys = [f"{table}.{field.name}" for table, kind in tables if is_dataclass(kind) for field in fields(kind)]
    keys += [f"rule.{name}.{key}" for name, _ in RULES.items() for key in ("uses", "pre", "bucket")]
    return ["seed", "iterations", "epochs", "rules", "graph.kind", "task", "rule", "attacks.x.is", "odd", *keys]


def _put(tables: dict, key: str, value: object) -> None:
    *path, last = key.split(".")
    for part in path:
        if not isinstance(tables.get(part), dict):
            tables[part] = {}
        tables = tables[part]
    tables[last] = value


def _named(rng: Random) -> dict[str, object]:
    """Names of things that there are, so that their own parameters matter."""
    from mpi_resmtl.attacks import ATTACKS
    from mpi_resmtl.graph import GRAPHS
    from mpi_resmtl.rules import RULES

    names = {"byzantine.attack": ATTACKS, "graph.kind": GRAPHS}
    chosen: dict[str, object] = {key: rng.choice([name for name, _ in known.items()]) for key, known in names.items()}
    chosen["rules"] = rng.sample([name for name, _ in RULES.items()], rng.choice((1, 2, 4)))
    return {key: value for key, value in chosen.items() if rng.random() < 0.5}


def make_config(valid: Path, folder: Path, rng: Random) -> None:
    """A TOML file, and what it may name."""
    shutil.copy(rng.choice(sorted((valid / "streams").glob("*.h5"))), folder / "stream.h5")
    pairs = "".join(f"{rng.randrange(12)} {rng.randrange(12)}\n" for _ in range(20))
    (folder / "edges.txt").write_bytes(pairs.encode() if rng.random() < 0.7 else _text_mutated(pairs.encode(), rng))
    tables = tomllib.loads(rng.choice(sorted((valid / "configs").glob("*.toml"))).read_text())
    for key, value in _named(rng).items():
        _put(tables, key, value)
    keys = _keys()
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        _put(tables, rng.choice(keys), rng.choice(VALUES))
    text = tomli_w.dumps(tables)
    way = rng.random()
    if way < 0.25:
        content = mangled(text.encode(), rng)
    elif way < 0.45:
        content = _torn(text, rng).encode(errors="surrogatepass")
    else:
        content = text.encode(errors="surrogatepass")
    (folder / "mine.toml").write_bytes(content)


def _torn(text: str, rng: Random) -> str:
    """TOML with something in it that is large, deep or odd."""
    number = rng.choice((40, 2000, 50_000))
    odd = rng.choice(
        (
            "a." * number + "b = 1",
            "[" + ".".join(["a"] * number) + "]",
            "x = " + "[" * number + "]" * number,
            "x = " + "{a = " * number + "1" + "}" * number,
            "seed = " + "9" * number,
            "seed = 0x" + "f" * number,
            'x = "' + "\\u0000" * number + '"',
            "rules = [" + '"loss",' * number + "]",
            "iterations = 1e" + "9" * 5,
            "[[task]]\n" * 3,
            '"" = 1',
            "seed = 1979-05-27T07:32:00Z",
            "byzantine.agents = [" + ",".join(map(str, range(number))) + "]",
        )
    )
    lines = text.split("\n")
    lines.insert(rng.randrange(len(lines) + 1), odd)
    return "\n".join(lines)


def read_config(folder: Path) -> int:
    """Show it; then run it where that is short, else do all that comes before the first iteration."""
    # Names in it are relative.
    for name in ("stream.h5", "edges.txt"):
        shutil.copy(folder / name, ".")
    path = folder / "mine.toml"
    status = run("show", path, mpi=False)
    if status:
        return status
    from mpi_resmtl import cells

    if cells.is_sweep(str(path), []):
        return run("run", path, "--output", "out.h5")
    experiment = cells.single(str(path), [])
    short = experiment.iterations <= 50 if experiment.epochs is None else experiment.epochs <= 1
    if short:
        return run("run", path, "--output", "out.h5")
    from mpi_resmtl.launch import on_ranks
    from mpi_resmtl.run import prepare

    _start_mpi()
    return on_ranks(lambda comm: prepare(comm, lambda: cells.single(str(path), [])) and None)


KINDS = {
    "stream": Kind(make_stream, read_stream),
    "result": Kind(make_result, read_result, (0, 1, 2)),
    "checkpoint": Kind(make_checkpoint, read_checkpoint),
    "har": Kind(make_har, read_har),
    "mnist": Kind(make_mnist, read_mnist),
    "digits": Kind(make_digits, read_digits),
    "config": Kind(make_config, read_config),
}


# How a case is read


def run(*arguments: object, mpi: bool = True) -> int:
    """The command line, in this process; -> exit status."""
    from mpi_resmtl.cli import main

    if mpi:
        _start_mpi()
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1


def _start_mpi() -> None:
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init()


def refusable(action: Callable[[], None]) -> int:
    """2 where what a command would do is refused, as the command would."""
    from mpi_resmtl.errors import UserError

    try:
        action()
    except UserError as error:
        print(f"mpi-resmtl: {error}", file=sys.stderr)
        return 2
    return 0


WRITING = {
    "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "shutil.rmtree": 1, "shutil.move": 2,
}  # fmt: skip
"""Events that change files, and how many of their arguments name one."""
HARMLESS = ("/dev/null", "/dev/shm", "/proc/self")


def _watch(allowed: Path, report: int) -> None:
    """From now on write to a descriptor what files outside a folder this process changes."""
    inside = os.path.realpath(allowed)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
            paths = [path]
        elif event in WRITING:
            paths = arguments[: WRITING[event]]
        else:
            return
        for path in paths:
            if isinstance(path, int) or path is None:
                continue
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith((inside, *HARMLESS)):
                os.write(report, f"{event} {real}\n".encode(errors="replace"))

    sys.addaudithook(hook)


def _child(kind: Kind, folder: Path, output: Path, said: Path, report: int) -> None:
    """Read a case and leave; never returns."""
    try:
        os.chdir(output)
        os.environ |= {"MPI_RESMTL_CACHE": str(output / "cache"), "HOME": str(output), "TMPDIR": str(output)}
        os.environ.pop("MPI_RESMTL_DATA", None)
        tempfile.tempdir = None
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 1, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(PATIENCE)
        _watch(output, report)
        status = kind.read(folder)
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.exit`: what the parent wants to do at its end is not this process's business.
    os._exit(status)


def _digest(folder: Path) -> str:
    """Of all names and contents in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)} {path.is_symlink()} {path.is_file()}".encode())
        if path.is_file() and not path.is_symlink():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _judged(kind: Kind, status: int, seconds: float, said: str, report: str) -> str:
    """Why a case fails; empty where it does not."""
    if status == -signal.SIGALRM:
        return f"not ended after {PATIENCE} s"
    if seconds > SECONDS:
        return f"took {seconds:.1f} s of processor time"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    if "Traceback (most recent call last)" in said:
        return "a traceback"
    if status not in kind.statuses:
        return f"exit status {status}"
    if status == 2 and "mpi-resmtl: " not in said and ".py: " not in said:
        return "refused without a word"
    warnings = [line for line in said.splitlines() if "Warning" in line and "cache" not in line]
    if warnings:
        return f"a warning: {warnings[0][:200]}"
    return f"touched {report.splitlines()[0]}" if report else ""


def case(valid: Path, name: str, index: int, seed: int = 0, keep: Path | None = None) -> Outcome:
    """Make a case, have it read by a process of its own, and judge what became of it."""
    kind, rng = KINDS[name], Random(f"{seed} {name} {index}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder, output, said = Path(scratch) / "in", Path(scratch) / "out", Path(scratch) / "said"
        folder.mkdir()
        output.mkdir()
        kind.make(valid, folder, rng)
        outcome = judge(name, index, folder, output, said)
        if outcome.wrong and keep is not None:
            kept = keep / f"{name}-{index}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept, symlinks=True)
            (kept.parent / f"{name}-{index}.said").write_text(outcome.said)
    return outcome


def judge(name: str, index: int, folder: Path, output: Path, said: Path) -> Outcome:
    """Have what is in a folder read by a process of its own, and judge what became of it."""
    kind, before = KINDS[name], _digest(folder)
    reading, report = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(kind, folder, output, said, report)
    os.close(report)
    with os.fdopen(reading, errors="replace") as pipe:
        touched = pipe.read()
    _, waited, used = os.wait4(child, 0)
    status = os.waitstatus_to_exitcode(waited)
    seconds = used.ru_utime + used.ru_stime
    text = said.read_text(errors="replace") if said.exists() else ""
    wrong = _judged(kind, status, seconds, text, touched)
    if not wrong and _digest(folder) != before:
        wrong = "changed its input"
    return Outcome(name, index, status, seconds, text, wrong)


def prepare(folder: Path) -> None:
    """Write the valid inputs from which cases are made."""
    from test_recorded import write_stream

    (folder / "streams").mkdir(parents=True)
    for number, (model, messages) in enumerate(
        (model, messages)
        for model in ("location", "linear-classifier")
        for messages in ("constant", "changing", "none")
    ):
        write_stream(folder / "streams" / f"{number}.h5", model, messages, number)
    (folder / "configs").mkdir()
    small = ("--set", "task.agents=12", "--set", "task.noisy_agents=1", "--set", "byzantine.count=2")
    activity = (
        "--set",
        "task.agents=3",
        "--set",
        "task.data=stand-in",
        "--set",
        "byzantine.count=1",
        "--set",
        "epochs=1",
    )
    linear = ("--set", "task.name=linear-regression", "--set", "task.agents=6", "--set", "byzantine.count=1")
    shown = {
        "location": ("fig1c", *small, "--set", "iterations=6"),
        "code": ("fig1c-authors-code", *small, "--set", "iterations=6"),
        "activity": ("fig2b", *activity),
        "linear": ("fig1b", *linear, "--set", "iterations=5"),
        "recorded": ("recorded", "--set", "task.file=stream.h5"),
    }
    shutil.copy(folder / "streams" / "0.h5", folder / "stream.h5")
    for name, words in shown.items():
        (folder / "configs" / f"{name}.toml").write_text(_output(folder, "show", *words))
    (folder / "results").mkdir()
    models = ("--set", "record.models=3", "--set", "record.weights=2", "--set", "rules=none,loss,median,distance")
    _output(folder, "run", "fig1c", *small, "--set", "iterations=8", *models, "--output", "results/location.h5")
    _output(folder, "run", "fig2b", *activity, "--set", "rules=none,loss", "--output", "results/activity.h5")
    (folder / "checkpoint").mkdir()
    _output(folder, "run", *UNFINISHED, "--output", "checkpoint/out.h5", stop_after=12)
    for path in (folder / "checkpoint").glob("*.lock"):
        path.unlink()


def _output(folder: Path, *arguments: str, stop_after: int | None = None) -> str:
    """What a command prints, run by a process of its own; with `stop_after` a signal stops it in that iteration."""
    import subprocess

    stop = "" if stop_after is None else STOPPING.format(stop_after)
    main = "import sys; from mpi_resmtl.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", f"{REPEATABLE}{stop}{main}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPI_RESMTL_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    expected = 0 if stop_after is None else 128 + signal.SIGTERM
    if done.returncode != expected:
        raise RuntimeError(f"{arguments}: status {done.returncode}: {done.stderr}")
    return done.stdout


REPEATABLE = """
import random, uuid
from datetime import UTC, datetime
from mpi_resmtl import recorder, stopwatch
class Then(datetime):
    @classmethod
    def now(cls, zone=None):
        return datetime(2000, 1, 1, tzinfo=zone)
numbers = random.Random(0)
uuid.uuid4 = lambda: uuid.UUID(int=numbers.getrandbits(128), version=4)
recorder.datetime, recorder._git_commit, stopwatch.perf_counter = Then, lambda: "0" * 40, lambda: 0.0
"""
"""Results have no times, names of runs or commits of their own: of a case only HDF5's times of groups are not the same
wherever it is run."""

STOPPING = """
import os, signal
from mpi_resmtl import exchange, signals
signals._MOST_ITERATIONS = 1
calls, finish = 0, exchange.Exchange.finish
def stopping(self):
    global calls
    calls += 1
    if calls == {}:
        os.kill(os.getpid(), signal.SIGTERM)
    finish(self)
exchange.Exchange.finish = stopping
"""


def warm_up() -> None:
    """Import what cases use, so that their processes need not."""
    from mpi4py import MPI  # noqa: F401

    for name in (
        *("mpi_resmtl.run", "mpi_resmtl.cells", "mpi_resmtl.cli", "mpi_resmtl.verify.file", "mpi_resmtl.sweep"),
        *("mpi_resmtl.data.digits", "mpi_resmtl.data.sources", "scipy.spatial", "networkx", "pydantic", "PIL.Image"),
        *("PIL.JpegImagePlugin", "platformdirs"),
    ):
        importlib.import_module(name)
    _of_analysis("table")
    from mpi_resmtl.config import presets, read, resolve

    for name in ("fig1c", "fig2b"):
        assert name in presets()
        resolve(read(name, ["task.data=stand-in"] if name == "fig2b" else []), name)


def cases(count: int, only: list[str], seed: int) -> Iterator[tuple[str, int, int]]:
    """So many cases, of each kind in turn."""
    for number in range(count):
        yield only[number % len(only)], number // len(only), seed


def named(words: str, seed: int) -> Iterator[tuple[str, int, int]]:
    """Cases as the command line names them: kind:index or kind:seed/index."""
    for word in filter(None, words.split(",")):
        kind, _, number = word.partition(":")
        other, _, index = number.rpartition("/")
        yield kind, int(index), int(other or seed)


def _workers(valid: Path, wanted: list[tuple[str, int, int]], keep: Path | None, jobs: int) -> list[Outcome]:
    """What became of each case, in several processes; tells of each case that fails."""
    import pickle

    pipes = []
    for job in range(jobs):
        reading, writing = os.pipe()
        if os.fork() == 0:
            found = []
            for number, (name, index, seed) in enumerate(wanted[job::jobs]):
                outcome = case(valid, name, index, seed, keep)
                if outcome.wrong:
                    print(f"{name} {index}: {outcome.wrong}", flush=True)
                if number % 100 == 99 and job == 0:
                    print(f"{(number + 1) * jobs} cases", flush=True)
                found.append(outcome)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(found, pipe)
            os._exit(0)
        os.close(writing)
        pipes.append(os.fdopen(reading, "rb"))
    return [outcome for pipe in pipes for outcome in pickle.load(pipe)]


def main() -> int:
    """The command line; -> 1 where a case fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=700, help="cases (default: %(default)s)")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas between them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, help="one case alone, and what it says")
    parser.add_argument("--also", default="", help="cases besides, kind:index or kind:seed/index, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where inputs of cases that fail are kept")
    asked = parser.parse_args()
    only = asked.only.split(",")
    if asked.keep is not None:
        asked.keep.mkdir(parents=True, exist_ok=True)
    warm_up()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-valid-") as scratch:
        valid = Path(scratch)
        prepare(valid)
        if asked.index is not None:
            outcome = case(valid, only[0], asked.index, asked.seed, asked.keep)
            print(outcome.said, end="")
            print(f"status {outcome.status}, {outcome.seconds:.2f} s: {outcome.wrong or 'as it should'}")
            return 1 if outcome.wrong else 0
        wanted = list(dict.fromkeys([*cases(asked.count, only, asked.seed), *named(asked.also, asked.seed)]))
        found = _workers(valid, wanted, asked.keep, asked.jobs)
    for name in dict.fromkeys(outcome.kind for outcome in found):
        own = [outcome for outcome in found if outcome.kind == name]
        counts = Counter("failed" if o.wrong else "ran" if o.status == 0 else "refused" for o in own)
        told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        longest = max((outcome.seconds for outcome in own), default=0.0)
        mean = sum(outcome.seconds for outcome in own) / max(1, len(own))
        print(f"{name:<11} {len(own):>6} cases: {told}; {mean:.2f} s each, {longest:.1f} s at most")
    failed = sum(bool(outcome.wrong) for outcome in found)
    print(f"{len(found)} cases, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
