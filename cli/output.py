"""How results and warnings leave the command line: numbers to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from .main import coloured


def say(text: str) -> None:
    """Tell the user what is going on: one line on stderr."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Print one warning on stderr."""
    label = click.style("warning:", fg="yellow") if coloured() else "warning:"
    click.echo(f"{label} {' '.join(text.split())}", err=True)


def json_line(value: Any) -> str:
    """Return strict JSON; NaN and the infinities must have become None by `finite` before."""
    return json.dumps(value, allow_nan=False, indent=2)


def finite(value: Any, where: str = "") -> tuple[Any, list[str]]:
    """Return `value` as plain JSON data with NaN and inf as None, and where those were (`curvature.trace.stderr`)."""
    if isinstance(value, Mapping):
        parts = {str(k): finite(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
        return {k: v for k, (v, _) in parts.items()}, [w for _, found in parts.values() for w in found]
    if isinstance(value, list | tuple):
        items = [finite(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return [v for v, _ in items], [w for _, found in items for w in found]
    if hasattr(value, "tolist") and not isinstance(value, str):  # NumPy scalars and arrays, without importing NumPy
        return finite(value.tolist(), where)
    if isinstance(value, float) and not math.isfinite(value):
        return None, [where]
    if value is None or isinstance(value, bool | int | float | str):
        return value, []
    return str(value), []


def print_each(
    outcomes: Sequence[Any], name: Callable[[Any], str], text: Callable[[Any], str], report: str | None, as_json: bool
) -> None:
    """Print what was found: one JSON object, or a text for each outcome; its warnings, by its name, go to stderr."""
    objects = []
    for outcome in outcomes:
        plain, replaced = finite(outcome.as_dict(report))
        if replaced:
            plain["warnings"].append(f"not finite, shown as null: {', '.join(replaced)}")
        for said in plain["warnings"] if as_json else outcome.warnings:
            warn(f"{name(outcome)}: {said}" if len(outcomes) > 1 else said)
        objects.append(plain)
    if as_json:
        click.echo(json_line({"schema": 1, "results": objects}))
    else:
        click.echo("\n\n".join(map(text, outcomes)))


def table(rows: Sequence[Sequence[str]], *, indent: int = 0, header: bool = False) -> str:
    """Return rows as columns two spaces apart; the last column is not padded."""
    if not rows:
        return ""
    columns = max(len(row) for row in rows)
    widths = [max((len(row[i]) for row in rows if len(row) > i), default=0) for i in range(columns)]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(widths[i]) if i < len(row) - 1 else cell for i, cell in enumerate(row)]
        lines.append(" " * indent + "  ".join(cells).rstrip())
        if header and number == 0:
            lines.append(" " * indent + "  ".join("-" * w for w in widths))
    return "\n".join(lines)
