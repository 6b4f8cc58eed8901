"""What the pages of a run and of a sweep have in common: the page around their sections, tables and plots."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from string import Template

import numpy as np
import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from mpi_resmtl.errors import printable
from mpi_resmtl.verify import Verdict

FOLDER = Path(__file__).parent

Row = list[str | int | float]


def page(title: str, body: str, script: str, data: dict | None) -> str:
    """The whole page; its script reads `data`."""
    template = Template((FOLDER / "report.html").read_text())
    # A string in JSON may hold what ends the script it stands in, or begins a comment.
    told = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    code = (FOLDER / script).read_text()
    return template.substitute(title=html.escape(title), body=body, data=told, script=code, plotly=get_plotlyjs())


def section(title: str, content: str) -> str:
    """A heading and what stands under it."""
    return f"<section><h2>{title}</h2>{content}</section>"


def note(text: str) -> str:
    """A paragraph of small print."""
    return f"<p class=note>{html.escape(text)}</p>"


def options(names: Iterable[str], chosen: str) -> str:
    """The choices of a select element."""
    return "".join(f"<option{' selected' * (name == chosen)}>{html.escape(name)}</option>" for name in names)


def wrong(verdicts: Iterable[Verdict], named: bool = False) -> str:
    """The first things that are wrong with files, with the files' names or without."""
    lines = [
        f"<li>{html.escape(f'{verdict.path.name}: ' * named + printable(problem))}</li>"
        for verdict in verdicts
        for problem in [*verdict.problems, *["and more"] * verdict.more]
    ]
    return f"<ul class='wrong'>{''.join(lines)}</ul>"


def plots(figures: list[go.Figure]) -> str:
    """Plots side by side where there is room."""
    parts = []
    for figure in figures:
        figure.update_layout(template="plotly_white", height=380, margin=dict(l=60, r=10, t=40, b=40))
        figure.update_layout(legend=dict(orientation="h", y=-0.25))
        config = {"responsive": True, "displaylogo": False}
        parts.append(plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=config))
    return '<div class="plots">' + "".join(f'<div class="plot">{part}</div>' for part in parts) + "</div>"


def table(heads: list[str], rows: list[Row], sortable: bool = False) -> str:
    """A table; what is not a number stands empty."""

    def cell(value: str | int | float) -> str:
        if isinstance(value, str):
            return f'<td class="word">{html.escape(value)}</td>'
        if isinstance(value, int):
            return f"<td>{value}</td>"
        return f"<td>{f'{value:.4g}' if np.isfinite(value) else ''}</td>"

    of_words = [isinstance(value, str) for value in (rows or [heads])[0]]
    head = "".join(
        f"<th{' class=word' * word}>{html.escape(name)}</th>" for name, word in zip(heads, of_words, strict=True)
    )
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def rounded(values: np.ndarray) -> list[float | None]:
    """Four significant digits, None for what is not finite."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values.tolist()]
