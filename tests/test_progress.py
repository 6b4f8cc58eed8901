"""What a run says of how far it is, on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
from fcntl import ioctl
from termios import TIOCSWINSZ

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_resmtl import progress
from mpi_resmtl.progress import Progress, duration, silent

DRIVE = """
import time
from mpi_resmtl import progress
progress._SECONDS_BETWEEN_LINES = {between}
told = progress.Progress("fig2a: loss", 40, "rank 0's agents")
for i in range(40):
    time.sleep({pause})
    told(i)
    if i == 2:
        told.found({{"loss": 0.12345}})
    if i == 20:
        told.found({{"test accuracy": 0.9331}})
told.end()
"""


def in_a_pipe(**how: float) -> list[str]:
    program = [sys.executable, "-c", DRIVE.format(**how)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


def on_a_terminal(columns: int, **how: float) -> str:
    """All that the program writes to a terminal."""
    ours, its = pty.openpty()
    ioctl(its, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    program = [sys.executable, "-c", DRIVE.format(**how)]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(program, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        written = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:
                break
            if not part:
                break
            written += part
    os.close(ours)
    assert process.returncode == 0, written
    return written.decode()


def seconds_an_iteration(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) s/iteration", text)]


def test_a_log_gets_lines_with_pace_loss_accuracy_and_time_left():
    *lines, last = in_a_pipe(between=0.0, pause=0.005)
    assert len(lines) == 40
    assert all("s/iteration" in line and line.startswith("fig2a: loss: ") for line in lines)
    assert lines[0].startswith("fig2a: loss: 1/40 iterations, 0.0")
    assert "loss 0.1" not in lines[2]
    assert "loss 0.123 (rank 0's agents), about 0 s left" in lines[3]
    assert "accuracy" not in lines[20]
    assert "21/40" not in lines[21]
    assert "22/40" in lines[21]
    assert "loss 0.123, test accuracy 93.3 % (rank 0's agents)" in lines[21]
    assert re.match(r"fig2a: loss: 40 iterations in \d+\.\d\d s, .*s/iteration, loss 0.123, test accuracy 93.3 %", last)
    assert all(0.005 <= pace < 1 for pace in seconds_an_iteration("\n".join([*lines, last])))


def test_a_log_gets_no_line_before_it_is_time():
    assert len(in_a_pipe(between=60.0, pause=0.001)) == 1


def test_a_terminal_gets_a_bar_with_pace_loss_and_accuracy():
    text = on_a_terminal(140, between=0.0, pause=0.02)
    drawn = [part for part in text.split("\r") if "%|" in part]
    assert len(drawn) > 3
    assert all(part.startswith("fig2a: loss: ") and "s/iteration" in part for part in drawn)
    assert "loss 0.123 (rank 0's agents)]" in text
    assert "loss 0.123, test accuracy 93.3 % (rank 0's agents)]" in drawn[-1]
    assert "? s/iteration" in drawn[0]
    assert all(0.02 <= pace < 5 for pace in seconds_an_iteration("".join(drawn[1:])))
    left = text.replace("\r\n", "\n").split("\r")[-1]
    assert left.startswith("fig2a: loss: 40 iterations in ")
    assert "%|" not in left


def test_a_bar_says_seconds_an_iteration_however_fast_it_goes():
    drawn = [part for part in on_a_terminal(140, between=0.0, pause=0.0).split("\r") if "%|" in part]
    assert drawn
    assert all("s/iteration" in part and "it/s" not in part for part in drawn)


def test_a_bar_fits_a_narrow_terminal():
    drawn = [part for part in on_a_terminal(50, between=0.0, pause=0.02).split("\r") if "%|" in part]
    assert drawn
    assert max(map(len, drawn)) <= 50


def test_time_left_is_the_mean_pace_times_what_is_to_do(monkeypatch, capsys):
    clock = iter([100.0, *[130.0] * 20])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 29.0)
    told = Progress("a: none", 1600)
    told.found({"loss": float("nan")})
    told(9)
    assert capsys.readouterr().out == "a: none: 10/1600 iterations, 3.00 s/iteration, loss nan, about 80 min left\n"


def test_other_ranks_say_nothing(capsys):
    silent(3)
    silent({"loss": 1.0})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99.4, "99 s"), (100.0, "2 min"), (5900, "98 min"), (6000, "1 h 40 min"), (11100, "3 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str):
    assert duration(seconds) == text


@given(st.floats(1e-9, 1e6))
def test_the_pace_has_three_digits_and_no_exponent(value: float):
    text = progress._three_digits(value)
    assert re.fullmatch(r"\d+(\.\d+)?", text)
    assert abs(float(text) - value) <= 0.00501 * value
