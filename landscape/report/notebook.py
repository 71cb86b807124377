"""How results and archives show themselves in a notebook: a small table and their figure, all text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ..results import Result, Variable, kind_of
from .measures import measures
from .numbers import count, interval, number, uncertain
from .runs import Run

#: Rows and runs that are shown (chosen by us: a cell's output stays on a screen).
MOST_ROWS, MOST_RUNS = 12, 12
#: Resolution of the picture, in dots per inch: about 600 pixels across.
DPI = 110


def result_html(result: Result) -> str:
    """Return a result as HTML: its scalars with their uncertainty, the checks that aren't green, its figure."""
    rows = [(name, text, units) for name, text, units in _numbers(result)][:MOST_ROWS]
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(text)}</td><td>{escape(units)}</td></tr>" for name, text, units in rows
    )
    loud = [c for c in result.checks if c.level != "pass"]
    notes = "".join(f"<li>{escape(c.level.upper())} {escape(c.name)}: {escape(c.message)}</li>" for c in loud)
    notes += "".join(f"<li>{escape(text)}</li>" for text in result.warnings)
    title = f"{kind_of(result).replace('_', ' ')}, {result.status}"
    passed = len(result.checks) - len(loud)
    about = f"{passed} of {len(result.checks)} checks pass" if result.checks else ""
    return (
        f"<div><b>{escape(title)}</b> <small>{escape(about)}</small>"
        f"<table>{body}</table>{f'<ul>{notes}</ul>' if notes else ''}{_picture(result)}</div>"
    )


def archive_html(archive: Any) -> str:
    """Return an archive as HTML: its runs with their main numbers, and the figure of the first kind worth one."""
    from .runs import gather

    try:
        runs = gather([archive.path])
    except Exception as error:  # a notebook shows what it can of a damaged archive
        return f"<div><b>{escape(str(archive.path))}</b>: {escape(str(error))}</div>"
    known = [m for m in measures(runs) if any(m.read(r).known for r in runs)]
    shown = [m for m in known if m.rank == 0] or known[:6]
    heads = "".join(f"<th>{escape(m.title)}</th>" for m in shown)
    body = ""
    for run in runs[:MOST_RUNS]:
        cells = "".join(f"<td>{escape(' '.join(m.read(run).text()).strip())}</td>" for m in shown)
        body += f"<tr><th>{escape(run.name)}</th>{cells}</tr>"
    kinds = ", ".join(dict.fromkeys(entry.kind for entry in archive.entries)) or "no results"
    more = f"<p>{len(runs) - MOST_RUNS} more checkpoints</p>" if len(runs) > MOST_RUNS else ""
    return (
        f"<div><b>{escape(str(archive.path))}</b> <small>{escape(archive.status)}; {escape(kinds)}</small>"
        f"<table><tr><th></th>{heads}</tr>{body}</table>{more}{_main_picture(runs)}</div>"
    )


def _numbers(result: Result) -> list[tuple[str, str, str]]:
    variables = result.variables()
    beside = {name for v in variables.values() for name in (v.stderr, v.interval) if name}
    rows = []
    for name, v in variables.items():
        if name in beside or v.coordinate or v.data.dtype.kind not in "biuf":
            continue
        if v.dims:
            rows += _entries(result, name, v, variables)
            continue
        value = float(v.data)
        if value != value:
            continue
        if v.interval in variables and variables[v.interval].data.shape == (2,):
            low, high = (float(x) for x in variables[v.interval].data)
            text = " ".join(interval(value, low, high))
        elif v.stderr in variables:
            text = " ± ".join(t for t in uncertain(value, float(variables[v.stderr].data)) if t)
        else:
            text = count(value) if v.data.dtype.kind in "iu" else number(value)
        rows.append((name.replace("_", " "), text.strip(), v.units))
    return rows


def _entries(result: Result, name: str, v: Variable, variables: Mapping[str, Variable]) -> list[tuple[str, str, str]]:
    """Return a row for each entry of a short array whose entries have names (splits, measures)."""
    if len(v.dims) != 1 or v.data.dtype.kind != "f":
        return []
    for attribute in (f"{v.dims[0]}s", "names"):
        names = getattr(result, attribute, None)
        if isinstance(names, tuple) and len(names) == len(v.data) <= MOST_ROWS:
            errors = variables[v.stderr].data if v.stderr and v.stderr in variables else np.full(len(v.data), np.nan)
            told = [uncertain(float(x), float(e)) for x, e in zip(v.data, errors, strict=True)]
            texts = [" ± ".join(t for t in pair if t) for pair in told]
            return [(f"{name.replace('_', ' ')}, {n}", text, v.units) for n, text in zip(names, texts, strict=True)]
    return []


def _picture(result: Result) -> str:
    """Return the result's figure as an image in the page; a line where it can't be drawn."""
    from .figures import draw

    try:
        figure = draw(result).figure
        return _image(figure, kind_of(result))
    except Exception as error:  # a notebook shows the numbers even where the picture fails
        return f"<small>no figure: {escape(str(error))}</small>"


def _main_picture(runs: Sequence[Run]) -> str:
    from .paper import make_figure

    kinds = [k for r in runs for k in r.results]
    for kind in ("plane", "calibration", "line", "eigenvalues", "training", *dict.fromkeys(kinds)):
        try:
            drawn = make_figure(
                [r for r in runs if kind == "training" or r.get(kind)][:4] or runs[:1], kind, style="screen"
            )
            return _image(drawn.figure, drawn.caption)
        except Exception:  # the next kind may be drawn
            continue
    return ""


def _image(figure: Any, words: str) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<img alt="{escape(words)}" style="max-width:100%;background:white" src="data:image/png;base64,{data}">'
