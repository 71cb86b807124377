"""`landscape list`: what there is to choose from, read off the registries."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from .options import Command
from .output import json_line, say, table

if TYPE_CHECKING:
    from landscape.results import Measurement, Option


#: What training is made of: the public names of the registries.
_TRAINING = ("losses", "schedules", "optimizers", "averages")


@click.command(cls=Command, example="landscape list measurements --json\nlandscape list losses --check")
@click.argument("what", type=click.Choice(["measurements", "probes", *_TRAINING]), default="measurements")
@click.option(
    "--task", metavar="FILE:NAME", help="Import this task's file or module first, for what you registered in it."
)
@click.option("--check", is_flag=True, help="Try each loss: derivatives, large scores, its mean.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(what: str, task: str | None, check: bool, as_json: bool) -> None:
    """List what can be measured, a recorder's probes, or what training is made of, with their parameters.

    A star marks what `landscape probe` leaves out unless --only asks for it.
    """
    if check and what != "losses":
        raise click.UsageError("--check is for losses: landscape list losses --check")
    if task is not None:
        from landscape.task_files import load_task

        load_task(task)
    if what in _TRAINING:
        _list_training(what, check, as_json)
        return
    if what == "probes":
        _list_probes(as_json)
        return
    from landscape.results import measurements

    found = measurements()
    if as_json:
        click.echo(json_line({"schema": 1, "measurements": [_plain(m) for m in found.values()]}))
        return
    click.echo("\n\n".join(_text(m) for m in found.values()))
    say("\nset an option with: landscape probe ckpt.pt --option NAME.OPTION=VALUE")


def _list_probes(as_json: bool) -> None:
    from ..probes.catalog import known_probes

    found = known_probes()
    if as_json:
        click.echo(json_line({"schema": 1, "probes": found}))
        return
    for probe in found:
        arguments = ", ".join(f"{n}" if d == "required" else f"{n}={d}" for n, d in probe["arguments"].items())
        click.echo(f"{probe['class']}({arguments})\n    {probe['doc']}\n")
    say("from landscape.probes import Recorder, ...; when: every(steps=10), at([1, 100]), log_spaced(budget=0.05)")


def _list_training(what: str, check: bool, as_json: bool) -> None:
    import landscape

    entries = getattr(landscape, what).entries()
    rows = [_facts(entries[name], check) for name in sorted(entries)]
    if as_json:
        click.echo(json_line({"schema": 1, what: rows}))
        return
    click.echo("\n\n".join(_training_text(row) for row in rows))
    if check:
        counts = Counter(c["level"] for row in rows for c in row["checks"])
        say("\n" + ", ".join(f"{n} {level}" for level, n in counts.items()))


def _facts(entry: Any, check: bool) -> dict[str, Any]:
    """Return what is shown of a loss, a schedule or an optimizer, ready for JSON."""
    facts = {
        "name": entry.name,
        "kind": _kind(entry),
        "doc": entry.doc,
        "options": {n: _option(o) for n, o in entry.options.items()},
        "source": entry.source,
        "torch": entry.torch,
    }
    if hasattr(entry, "takes"):
        facts["takes"] = entry.takes.text if entry.takes else ""
        facts["rebatch"] = entry.rebatch
    if hasattr(entry, "threshold"):
        facts["threshold"], facts["operator"] = entry.threshold, entry.operator
    if check:
        from landscape.training.gate import examine

        facts["checks"] = [{"name": c.name, "level": c.level, "message": c.message} for c in examine(entry)]
    return facts


def _kind(entry: Any) -> str:
    if hasattr(entry, "relative"):
        return "factor" if entry.relative else "value"
    if hasattr(entry, "full_batch"):
        return "full batch" if entry.full_batch else "batches"
    return getattr(entry, "kind", "weights")


def _training_text(facts: dict[str, Any]) -> str:
    lines = [f"{facts['name']}  ({facts['kind']})  {facts['doc']}"]
    options = [[n, str(o["default"]), f"{o['doc']} [{o['source']}]"] for n, o in facts["options"].items()]
    if options:
        lines.append(table(options, indent=4))
    if facts.get("takes"):
        whole = "" if facts["rebatch"] else "; couples the samples of a batch: Task(..., rebatch=False)"
        lines.append(f"    takes {facts['takes']}{whole}")
    if "threshold" in facts:
        operator = {"hessian": "Hessian", "preconditioned": "preconditioned Hessian"}.get(facts["operator"], "")
        said = f"eigenvalues of the {operator} up to {facts['threshold']}" if facts["threshold"] else "not defined"
        lines.append(f"    stable for {said}" if facts["threshold"] else f"    threshold of stability: {said}")
    lines.append(f"    {facts['source']}{'; ' + facts['torch'] if facts['torch'] else ''}")
    lines += [
        f"    {c['name']}  {c['level']}  {c['message']}" for c in facts.get("checks", ()) if c["name"] != "source"
    ]
    return "\n".join(lines)


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
        "options": {n: _option(o) for n, o in m.options.items()},
        "presets": {p: {k: _json(v) for k, v in chosen.items()} for p, chosen in m.presets.items()},
    }


def _option(option: Option) -> dict[str, Any]:
    return {"default": _json(option.default), "doc": option.doc, "source": option.source}


def _json(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
