"""`landscape compare`: how two runs differ, and whether a pipeline should stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Command
from .output import finite, json_line, table, warn

if TYPE_CHECKING:
    from landscape.comparison.conditions import Condition, Verdict
    from landscape.report.pairs import Compared
    from landscape.report.runs import Run
    from landscape.report.value import Value


@click.command(
    cls=Command,
    example="landscape compare main.h5 branch.h5 --fail-if 'ece > +0.01' --fail-if 'test_loss > +5% and nll > +0.1'",
)
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--fail-if", "conditions", multiple=True, metavar="CONDITION",
    help="Exit 1 if it holds: 'ece > +0.01' (a change), 'test_loss > +5%', 'ece > 0.1' (B's own); and, or; repeatable.",
)  # fmt: skip
@click.option("--sure", is_flag=True, help="Fail only where a condition holds over the whole 95% interval.")
@click.option("--checkpoint", "chosen", multiple=True, metavar="LABEL", help="Which checkpoint; twice for A's and B's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    first: Path,
    second: Path,
    conditions: tuple[str, ...],
    sure: bool,
    chosen: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say how the runs of two archives differ: B minus A, with 95% intervals.

    Pairs where both were measured on the same samples. A training that was only recorded gives its last numbers, marked
    with their step. Exit 0 where no condition holds, 1 where one does; whether it
    does beyond the interval is said.
    """
    from landscape.comparison.conditions import parse_condition
    from landscape.report.belonging import with_tasks
    from landscape.report.pairs import compare_runs, one_sided, pair_up
    from landscape.report.runs import gather
    from landscape.report.sections.compare import comparable

    asked = [parse_condition(text) for text in conditions]
    objects, failed = [], False
    for a, b in pair_up(gather([first]), gather([second]), chosen):
        found = compare_runs(a, b)
        verdicts = [(c, c.judge({k: f.sides for k, f in found.items()})) for c in asked]
        stops = [v.holds and (bool(v.sure) or not sure) for _, v in verdicts]
        failed |= any(stops)
        for level, text in comparable(with_tasks([a, b])):
            if level != "info":
                warn(text)
        if as_json:
            objects.append(_object(a, b, found, verdicts, stops) | {"missing": _sides(one_sided(a, b))})
        else:
            click.echo(_text(a, b, found, _lacking(one_sided(a, b)), verdicts, stops))
    if as_json:
        click.echo(json_line(finite({"schema": 1, "failed": failed, "comparisons": objects})[0]))
    ctx.exit(1 if failed else 0)


def _sides(lacking: tuple[dict[str, str], dict[str, str]]) -> dict[str, dict[str, str]]:
    return dict(zip(("first", "second"), lacking, strict=True))


def _lacking(sides: tuple[dict[str, str], dict[str, str]]) -> list[str]:
    """Return what only one of the two has, a line for each reason that the other lacks it for."""
    lines = []
    for side, lacking in zip("AB", sides, strict=True):
        for reason in dict.fromkeys(lacking.values()):
            lines.append(f"  not in {side}: {', '.join(k for k, why in lacking.items() if why == reason)} ({reason})")
    return lines


def _text(
    a: Run,
    b: Run,
    found: Mapping[str, Compared],
    lacking: Sequence[str],
    verdicts: Sequence[tuple[Condition, Verdict]],
    stops: Sequence[bool],
) -> str:
    from landscape.report.numbers import interval

    rows = [["", "A", "B", "B − A, 95% interval", "compared"]]
    for key, c in found.items():
        value, bounds = interval(c.difference.value, c.difference.low, c.difference.high)
        sign = "+" if c.difference.value > 0 else ""
        told = f"{sign}{value} {bounds}".strip()
        rows.append([key, *(_side(v) for v in (c.first, c.second)), told, c.how])
    lines = [f"A  {a.name}  {a.archive}", f"B  {b.name}  {b.archive}", ""]
    lines.append(table(rows, indent=2, header=True) if found else "  the two have no number in common")
    if any(c.how == "residual" for c in found.values()):
        lines += ["", "  residual: how exact the number is on its samples, not how it moves with them"]
    if any(v.step is not None for c in found.values() for v in (c.first, c.second)):
        lines += ["", "  at step N: measured while it trained, after so many steps, not on a checkpoint"]
    lines += ["", *lacking] if lacking else []
    for (condition, verdict), stop in zip(verdicts, stops, strict=True):
        sure = {True: "over the whole interval", False: "within the uncertainty", None: "no interval is known"}
        word = "FAIL" if stop else "ok  "
        state = "holds" if verdict.holds else "does not hold"
        lines.append(f"{word} {condition}: {state}, {sure[verdict.sure]} ({'; '.join(verdict.told)})")
    return "\n".join(lines)


def _side(value: Value) -> str:
    parts = (*value.text(), f"at {value.when}" if value.when else "")
    return " ".join(p for p in parts if p)


def _object(
    a: Run, b: Run, found: Mapping[str, Compared], verdicts: Sequence[tuple[Condition, Verdict]], stops: Sequence[bool]
) -> dict[str, Any]:
    return {
        "first": {"name": a.name, "archive": a.archive, "checkpoint": a.checkpoint},
        "second": {"name": b.name, "archive": b.archive, "checkpoint": b.checkpoint},
        "differences": {
            key: {
                "first": c.first.number,
                "second": c.second.number,
                "difference": c.difference.value,
                "interval": [c.difference.low, c.difference.high],
                "compared": c.how,
                "while_training_at_step": [c.first.step, c.second.step],
            }
            for key, c in found.items()
        },
        "conditions": [
            {"condition": str(c), "holds": v.holds, "sure": v.sure, "failed": stop}
            for (c, v), stop in zip(verdicts, stops, strict=True)
        ],
    }
