"""`landscape list`: what there is to choose from, read off the registries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import Command
from .output import json_line, say, table

if TYPE_CHECKING:
    from landscape.results import Measurement


@click.command(cls=Command, example="landscape list measurements --json")
@click.argument("what", type=click.Choice(["measurements"]), default="measurements")
@click.option(
    "--task", metavar="FILE:NAME", help="Import this task's file or module first, for measurements of your own."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(what: str, task: str | None, as_json: bool) -> None:
    """List what can be measured, with options, defaults and presets.

    A star marks what `landscape probe` leaves out unless --only asks for it.
    """
    from landscape.results import measurements
    from landscape.task_files import load_task

    if task is not None:
        load_task(task)
    found = measurements()
    if as_json:
        click.echo(json_line({"schema": 1, "measurements": [_plain(m) for m in found.values()]}))
        return
    click.echo("\n\n".join(_text(m) for m in found.values()))
    say("\nset an option with: landscape probe ckpt.pt --option NAME.OPTION=VALUE")


def _text(m: Measurement) -> str:
    lines = [f"{m.name}{'' if m.default else ' *'}  ({m.section})  {m.doc}"]
    rows = []
    for name, option in m.options.items():
        presets = ", ".join(f"{p} {chosen[name]}" for p, chosen in m.presets.items() if name in chosen)
        rows.append([name, str(option.default), f"{option.doc} [{option.source}]{f'; {presets}' if presets else ''}"])
    return "\n".join([*lines, *([table(rows, indent=4)] if rows else [])])


def _plain(m: Measurement) -> dict[str, Any]:
    return {
        "name": m.name,
        "section": m.section,
        "doc": m.doc,
        "default": m.default,
        "options": {n: {"default": _json(o.default), "doc": o.doc, "source": o.source} for n, o in m.options.items()},
        "presets": {p: {k: _json(v) for k, v in chosen.items()} for p, chosen in m.presets.items()},
    }


def _json(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
