"""What `landscape sweep` prints: its cells, what they will cost, what came of them, and at which rates they blow up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape.counted import counted
from landscape.paths import relative

from .output import finite, json_line, say, table, warn

if TYPE_CHECKING:
    from ..probes.sweep.collecting import Collected, Group
    from ..probes.sweep.study import Sweep


def collected(out: Path) -> Collected:
    """Join what is in a sweep's folder."""
    from ..probes.sweep.collecting import collect

    return collect(out)


def print_cells(sweep: Sweep, as_json: bool) -> None:
    """Print the cells, one a line."""
    if as_json:
        click.echo(json_line({"schema": 1, "cells": [finite(c.to_dict())[0] for c in sweep.cells]}))
        return
    for cell in sweep.cells:
        click.echo(f"{cell.index}\t{cell.name}\t{cell.label}")


def print_estimate(sweep: Sweep, workers: int, as_json: bool) -> None:
    """Print what each cell will take, and all of them."""
    from landscape.report.numbers import count

    from ..probes.prediction import RESTS_ON
    from ..probes.sweep.estimate import total_seconds
    from .probe import expected, memory

    found = sweep.estimate()
    total = total_seconds(found, workers)
    room = sum(e.bytes for e in found) + workers * max(e.most for e in found)
    if as_json:
        cells = [
            {
                "index": e.cell.index,
                "name": e.cell.name,
                "label": e.cell.label,
                "steps": e.steps,
                "training_seconds": [e.training.low, e.training.high],
                "measuring_seconds": [e.measuring.low, e.measuring.high],
                "bytes": e.bytes,
            }
            for e in found
        ]
        plain = {"cells": cells, "workers": workers, "seconds": [total.low, total.high], "bytes": room}
        click.echo(json_line(finite({"schema": 1, "dry_run": plain})[0]))
        return
    rows = [["cell", "what", "steps", "training", "measuring", "disk"]]
    rows += [
        [
            str(e.cell.index),
            e.cell.label,
            count(e.steps),
            expected(e.training),
            expected(e.measuring),
            memory(e.bytes),
        ]
        for e in found
    ]
    click.echo(table(rows, header=True))
    many = f" on {workers} workers" if workers > 1 else ""
    cells = counted(len(found), "cell")
    click.echo(f"\n{cells}, {expected(total)}{many}, and {memory(room)} on the disk at most\n{RESTS_ON}")


def print_collected(found: Collected, report: str | None, as_json: bool) -> None:
    """Print the sweep as it stands: one JSON object, or a table over the seeds; what to look at goes to stderr."""
    from ..probes.sweep.collecting import RESULTS, TABLE

    for text in found.warnings:
        warn(text)
    if as_json:
        click.echo(json_line(finite({**found.to_dict(), "report": report})[0]))
    else:
        click.echo(_groups(found.groups()))
        for result in found.results:
            if result.status in ("diverged", "failed"):
                click.echo(f"{result.status}: {result.cell.label}: {result.reason}")
        counts = ", ".join(f"{n} {status}" for status, n in found.counts.items())
        cells = counted(len(found.results), "cell")
        click.echo(f"\n{cells}: {counts}; {found.out / TABLE} and {found.out / RESULTS} hold everything")
    if found.late:
        say("the time limit came first; the same command with --resume goes on")
    failed = found.counts.get("failed", 0)
    if failed:
        said = counted(failed, "cell failed: its folder holds", "cells failed: their folders hold")
        say(f"{said} error.txt; --resume --retry-failed trains {'it' if failed == 1 else 'them'} again")
    if not as_json and report is None and found.archives:
        say(f"next: landscape report {relative(found.out)}/*/run.h5 -o report.html")


def _groups(groups: Sequence[Group]) -> str:
    from ..probes.sweep.collecting import SHOWN

    shown = {name: key for name, key in SHOWN.items() if any(g.value(key)[0] == g.value(key)[0] for g in groups)}
    rows = [["cell", "seeds", *shown]]
    for g in groups:
        unusual = {k: v for k, v in g.counts.items() if k != "complete"}
        seeds = f"{len(g.seeds)}" + (f" ({', '.join(f'{v} {k}' for k, v in unusual.items())})" if unusual else "")
        rows.append([g.label, seeds, *[_value(*g.value(key)) for key in shown.values()]])
    return table(rows, header=True)


def _value(mean: float, deviation: float) -> str:
    from landscape.report.numbers import number

    if mean != mean:
        return "-"
    return number(mean, 4) + (f" ± {number(deviation, 2)}" if deviation == deviation else "")


def find_rates(sweep: Sweep, bounds: Sequence[float] | None, as_json: bool) -> None:
    """Make a range test for each cell that differs in more than schedule and rate, and print and keep the results."""
    from landscape.archive.schema import Subject
    from landscape.archive.writer import ArchiveWriter

    from ..probes.sweep.range_test import FILE, HIGH, LOW, range_test

    low, high = bounds if bounds is not None and len(bounds) == 2 else (LOW, HIGH)
    if bounds is not None and len(bounds) != 2:
        raise click.UsageError("--lr-range takes two numbers: the lowest rate and the highest.")
    for note in sweep.check():
        say(f"note: {note}")
    tried: dict[str, tuple[str, Any]] = {}
    sweep.out.mkdir(parents=True, exist_ok=True)
    target = sweep.out / FILE
    with ArchiveWriter(target, run={"task": sweep.source.spec}, force=True) as writer:
        for cell in sweep.cells:
            axes = {k: v for k, v in cell.axes.items() if k not in ("schedule", "lr", "epochs") and k[:6] != "drive."}
            if repr(axes) in tried:
                continue
            label = ", ".join(f"{v}" if k in ("loss", "optimizer") else f"{k} {v}" for k, v in axes.items() if v)
            say(f"range test: {label or 'the task'}")
            result = range_test(sweep.source, cell, low=low, high=high, device=sweep.how.device)
            tried[repr(axes)] = (label or "the task", result)
            facts = {k: v for k, v in axes.items() if v not in (None, "")}
            writer.add(result, subject=Subject(task=sweep.source.spec, name=label or "the task", facts=facts))
    _print_rates(list(tried.values()), target, as_json)


def _print_rates(found: Sequence[tuple[str, Any]], target: Path, as_json: bool) -> None:
    from landscape.report.numbers import number
    from landscape.training.rates import QUADRATIC

    for label, result in found:
        for text in (*result.warnings, *(n for n in result.notes if n.startswith("no threshold"))):
            warn(f"{label}: {text}")
    if as_json:
        rows: list[Mapping[str, Any]] = [{"label": label, **result.summary()} for label, result in found]
        click.echo(json_line(finite({"schema": 1, "lr_find": rows, "archive": str(target)})[0]))
        return
    names = {
        "steepest": "falls fastest",
        "best": "turns",
        "divergence": "blows up",
        "critical": "unstable",
        "turn": "turns / unstable",
        "ratio": "blows up / unstable",
        "critical_start": "unstable, first weights",
    }
    shown = [["cell", *names.values()]]
    for label, r in found:
        values = [getattr(r, n) for n in names]
        shown.append([label, *[number(v, 3) if v == v else "-" for v in values]])
    click.echo(table(shown, header=True))
    r = found[0][1]
    of = f"{r.samples} training samples" if r.samples else "the training data"
    click.echo(
        f"\nLearning rates. The loss, on the same {of} before each step: falls fastest per decade, turns (is lowest), "
        "blows up (has risen by its first value).\n"
        f"unstable: where the growing rate met the one whose stability threshold ({r.formula or '-'}) is lambda_max of "
        "these samples at the weights of that step; before any step: at the first weights.\n"
        f"turns / unstable: 1 where the threshold decides. blows up / unstable: {number(QUADRATIC, 3)} on a quadratic, "
        "however slowly the rate grows. Small batches are noisy, which lowers both."
    )
    click.echo(f"archive: {target}")
