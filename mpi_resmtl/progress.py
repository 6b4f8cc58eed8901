"""How far a run is: a bar on a terminal, a line now and then in a log; on rank 0 alone."""

from __future__ import annotations

import sys
from math import floor, isfinite, log10
from time import monotonic

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Progress of one rule; call it with each iteration (from 0) that is done, and `found` with what there is to say.

    On a terminal a bar on the standard error, else a line on the standard output at most every 30 seconds. Both say
    the pace in seconds an iteration, whatever it is, and the time left, from the pace since the start.
    """

    def __init__(self, label: str, iterations: int, whose: str = "", begun: int = 0):
        """`whose` says of whom what is found is told, such as "rank 0's agents"; empty: everyone.

        `begun` iterations were done before, and not in this time.
        """
        self._label, self._iterations, self._whose, self._begun = label, iterations, whose, begun
        self._began = self._said = monotonic()
        self._done, self._values = begun, {}
        self._bar = self._open_bar() if sys.stderr.isatty() else None

    def __call__(self, iteration: int) -> None:
        """Iteration (from 0) is done."""
        self._done = iteration + 1
        if self._bar is not None:
            self._bar.update()
        elif monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = monotonic()
            left = self._pace() * (self._iterations - self._done)
            far = f"{self._done}/{self._iterations} iterations"
            print(f"{self._label}: {', '.join([far, *self._remarks()])}, about {duration(left)} left", flush=True)

    def found(self, values: dict[str, float]) -> None:
        """Say these with the progress from now on, as "name value"; of a name that ends with accuracy, in per cent."""
        self._values |= values

    def end(self) -> None:
        """The rule is done."""
        if self._bar is not None:
            self._bar.close()
        taken = f"{self._iterations - self._begun} iterations in {monotonic() - self._began:.2f} s"
        print(f"{self._label}: {', '.join([taken, *self._remarks()])}", flush=True)

    def _remarks(self) -> list[str]:
        """Pace and values as they are told."""
        pace = _three_digits(self._pace()) if self._done > self._begun else "?"
        told = ", ".join(f"{name} {_value(name, value)}" for name, value in self._values.items())
        whose = f" ({self._whose})" if told and self._whose else ""
        return [f"{pace} s/iteration", *([told + whose] if told else [])]

    def _pace(self) -> float:
        """Seconds an iteration."""
        return (monotonic() - self._began) / (self._done - self._begun)

    def _open_bar(self):
        from tqdm import tqdm

        remarks = self._remarks

        class Bar(tqdm):
            @property
            def format_dict(self):
                return super().format_dict | {"remarks": ", ".join(remarks())}

        layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {remarks}]"
        return Bar(
            total=self._iterations,
            initial=self._begun,
            desc=self._label,
            bar_format=layout,
            leave=False,
            dynamic_ncols=True,
        )


def silent(told: object) -> None:
    """What other ranks call in place of a `Progress` and of its `found`."""


def duration(seconds: float) -> str:
    """A time in words: "40 s", "12 min", "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _value(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name.endswith("accuracy") else f"{value:.3g}"


def _three_digits(value: float) -> str:
    """A positive number with three significant digits and no exponent."""
    if not (isfinite(value) and value > 0):
        return f"{value}"
    return f"{value:.{max(0, 2 - floor(log10(value)))}f}"
