"""`landscape check`: one batch through everything that a measurement needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import Command, subject_options
from .output import finite, json_line, say, table
from .probe import expected, memory

if TYPE_CHECKING:
    from ..probes.inspection import Inspection

LEVELS = {"pass": "ok", "warn": "note", "fail": "FAILS"}


@click.command(cls=Command, example="landscape check my_task.py:task ckpt.pt")
@click.argument("task", metavar="FILE:NAME")
@click.argument("checkpoint", required=False, metavar="[CKPT]", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@subject_options
@click.pass_context
def command(
    ctx: click.Context,
    task: str,
    checkpoint: str | None,
    as_json: bool,
    settings: tuple[tuple[str, Any], ...],
    **how: Any,
) -> None:
    """Try a task on one batch: does it load, what will work, how long will it take.

    Exit status 1 where a check fails. The times of each preset are predicted from one batch.
    """
    from ..probes.inspection import inspect_task

    found = inspect_task(task, checkpoint, settings=dict(settings), say=say, **how)
    if as_json:
        click.echo(json_line(finite({"schema": 1, **found.as_dict()})[0]))
    else:
        click.echo(_text(found))
    if not found.ok:
        ctx.exit(1)


def _text(found: Inspection) -> str:
    from landscape.report.numbers import count, span

    from ..probes.prediction import RESTS_ON, total

    parts = [table([[LEVELS[c.level], c.name, c.message] for c in found.findings])]
    if found.works:
        rows = [[name, "yes" if not reason else f"no: {reason}"] for name, reason in found.works.items()]
        parts.append(f"will be measured\n{table(rows, indent=2)}")
    speed = found.speed
    if speed is not None:
        forward, gradient, product = (
            span(t.low, t.high) if t.known else "none" for t in (speed.forward, speed.gradient, speed.product)
        )
        parts.append(
            f"{count(speed.samples)} samples of one batch in {found.dtype} on {found.device}: "
            f"forward {forward}, gradient {gradient}, Hessian product {product}"
        )
        rows = [["preset", "samples", "time", "memory"]]
        for preset, (samples, predicted) in found.presets.items():
            most = max((p.memory for p in predicted), default=0.0)
            rows.append([preset, count(samples), expected(total(predicted)), memory(most)])
        parts.append(f"{RESTS_ON}\n{table(rows, indent=2, header=True)}")
    return "\n\n".join(parts)
