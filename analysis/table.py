"""A table of what each rule reached, one row a result file and rule (and task group, where agents share tasks).

    python analysis/table.py fig2a.h5 fig2b.h5 --format markdown

Classification: test loss, test accuracy, accuracy of the worst agent and training accuracy at the end of the last
epoch. Regression: streaming loss of the last 100 iterations and last mean squared deviation (msd). All are means over
the normal agents of the row; accuracies are percentages. `data` tells real data from stand-ins.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from results import Result, ResultError, command, read

LAST = 100
"""Iterations in the mean of the streaming loss."""
COLUMNS = {
    "file": "",
    "data": "",
    "attackers": "d",
    "group": "d",
    "rule": "",
    "agents": "d",
    "test loss": ".4f",
    "test accuracy %": ".1f",
    "worst agent %": ".1f",
    "train accuracy %": ".1f",
    "streaming loss": "#.4g",
    "msd": "#.4g",
}
"""Each column and how people read its values; a column that is empty in every row is left out."""

Row = dict[str, str | int | float]


def reached(result: Result, rule: str, agents: np.ndarray) -> Row:
    """What the rule reached in the end, on average over the agents."""

    def last(measure: str) -> np.ndarray:
        return result.dataset(rule, measure)[-1][agents]

    result.require(rule)
    recorded = result.file[f"rule/{rule}"]
    if "test_accuracy" in recorded:
        return {
            "test loss": last("test_loss").mean(),
            "test accuracy %": 100 * last("test_accuracy").mean(),
            "worst agent %": 100 * last("test_accuracy").min(),
            "train accuracy %": 100 * last("train_accuracy").mean(),
        }
    loss = {"streaming loss": result.dataset(rule, "loss")[-LAST:][:, agents].mean()}
    return loss | {"msd": last("msd").mean()} if "msd" in recorded else loss


def rows(result: Result, name: str, rules: list[str] | None) -> Iterator[Row]:
    """The rows of a file; `rules` None means all it has."""
    whose = {"file": name, "data": result.file.attrs["data"], "attackers": result.attackers}
    groups = np.unique(result.group)
    shared = 1 < len(groups) < result.agents
    for group in groups if shared else [None]:
        agents = result.normal if group is None else result.normal[result.group[result.normal] == group]
        which = whose if group is None else whose | {"group": int(group)}
        for rule in rules or result.rules if agents.size else ():
            yield which | {"rule": rule, "agents": len(agents)} | reached(result, rule, agents)


def names(results: list[Result]) -> list[str]:
    """Names of the files, with their folders only where two have the same."""
    short = [result.path.name for result in results]
    return short if len(set(short)) == len(short) else [str(result.path) for result in results]


def as_text(columns: list[str], cells: list[list[str]]) -> str:
    """Aligned columns, numbers to the right."""
    return _aligned(columns, cells, "  ", "")


def as_markdown(columns: list[str], cells: list[list[str]]) -> str:
    """A table of GitHub's Markdown."""
    safe = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    return _aligned(columns, safe, " | ", "|")


def as_csv(columns: list[str], cells: list[list[str]]) -> str:
    """Comma-separated values with a line of names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *cells])
    return text.getvalue()


def _aligned(columns: list[str], cells: list[list[str]], between: str, rim: str) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    number = [COLUMNS[column] != "" for column in columns]
    if rim:
        rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, number, strict=True)]
    else:
        rule = ["-" * width for width in widths]
    lines = []
    for row in [columns, rule, *cells]:
        padded = zip(row, widths, number, strict=True)
        line = between.join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in padded)
        lines.append(f"{rim} {line} {rim}" if rim else line.rstrip())
    return "\n".join(lines) + "\n"


FORMATS = {"text": as_text, "csv": as_csv, "markdown": as_markdown}


def main() -> None:
    """Read the files, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result files, of any studies")
    parser.add_argument("--format", choices=FORMATS, default="text", help="(default: text); CSV has all digits")
    parser.add_argument("--rules", metavar="NAME,...", help="rules to show (default: all in the files)")
    asked = parser.parse_args()

    results = [read(path) for path in asked.files]
    rules = asked.rules.split(",") if asked.rules else None
    found = [row for result, name in zip(results, names(results), strict=True) for row in rows(result, name, rules)]
    if not found:
        raise ResultError("no file has a rule and a normal agent")
    columns = [column for column in COLUMNS if any(column in row for row in found)]
    formats = dict.fromkeys(COLUMNS, "") if asked.format == "csv" else COLUMNS
    cells = [[format(row[name], formats[name]) if name in row else "" for name in columns] for row in found]
    print(FORMATS[asked.format](columns, cells), end="")


if __name__ == "__main__":
    command(main)
