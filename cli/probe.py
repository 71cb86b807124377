"""`landscape probe`: measure checkpoints, print the numbers, leave an archive."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from landscape.paths import relative

from .options import Command, Duration, MeasurementOption, Names, subject_options
from .output import finite, json_line, print_each, say, table

if TYPE_CHECKING:
    from ..probes.outcome import ProbeOutcome
    from ..probes.prediction import Prediction, Span
    from ..probes.subjects import Prepared

#: The measurements that --grid and --span are for, and their sections.
SURFACES = {"plane": "surface", "line": "line"}


@click.command(
    cls=Command,
    example="landscape probe ckpt.pt --task my_task.py:task --preset quick --report report.html",
)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...", type=click.Path())
@click.option("--task", metavar="FILE:NAME", help="The task's function; by default the one that the checkpoint names.")
@click.option("--only", type=Names(), help="Measurements or sections to make; see `landscape list`.")
@click.option(
    "--preset",
    type=click.Choice(["quick", "standard", "thorough"]),
    default="standard",
    show_default=True,
    help="1,024 samples, 4,096 or all; and how fine.",
)
@click.option(
    "--option", "options", type=MeasurementOption(), multiple=True, help="Option of a measurement; repeatable."
)
@click.option(
    "--plane",
    "directions",
    type=click.Choice(["random", "gradient", "hessian", "trajectory"]),
    help="Directions of the surface; a trajectory's are the principal axes of the CKPTs given.",
)
@click.option("--grid", type=click.IntRange(2), help="Points of the surface's sides, and of the line.")
@click.option("--span", type=float, help="Surface and line run from -SPAN to SPAN; 1 is about as long as the weights.")
@click.option(
    "--tol",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Evaluate only as many points of the surface as this error needs, as a share of its log range, such as 0.01.",
)
@click.option("-o", "--output", "out", metavar="FILE", help="One archive for all; else <checkpoint>.landscape.h5 here.")
@click.option("--append", is_flag=True, help="Add to an archive that exists.")
@click.option("--force", is_flag=True, help="Replace an archive, or a report, that exists.")
@click.option("--resume", is_flag=True, help="Go on where a run into the same archive was interrupted or killed.")
@click.option(
    "--time-limit", type=Duration(), help="Stop after this long with what there is, such as 10m; see --resume."
)
@click.option("--report", metavar="FILE", help="Draw the archives as a report, too, in the format of its ending.")
@click.option("--max-samples", type=click.IntRange(1), help="Samples to draw of each split, instead of the preset's.")
@click.option("--check", is_flag=True, help="Compute lambda_1 and the trace by ARPACK and PyHessian, too.")
@click.option("--dry-run", is_flag=True, help="Only say what would be measured, with the time and memory of each.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that measure a checkpoint each, or share a single one: a GPU or, on a CPU, a thread each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; NaN and inf as null, with a warning.")
@subject_options
def command(
    checkpoints: tuple[str, ...],
    out: str | None,
    append: bool,
    force: bool,
    resume: bool,
    time_limit: float | None,
    directions: str | None,
    grid: int | None,
    span: float | None,
    tol: float | None,
    report: str | None,
    check: bool,
    dry_run: bool,
    workers: int,
    as_json: bool,
    settings: tuple[tuple[str, Any], ...],
    options: tuple[tuple[str, str, Any], ...],
    **how: Any,
) -> None:
    """Measure checkpoints: loss, curvature, sharpness, surface, calibration.

    CKPT is a file or a folder with weights. Numbers go to stdout, progress and warnings to stderr, and all
    results with their provenance into an archive. Ctrl-C leaves a readable archive of what was measured. Of several
    workers one that fails doesn't stop the others; exit 1 at the end.
    """
    from ..probes.outcome import NotAllMeasured
    from ..probes.posthoc import plan_run
    from ..probes.selection import UnknownName

    if append and force:
        raise click.UsageError("--append adds to the archive, --force replaces it: give one of them.")
    if resume and (append or force):
        raise click.UsageError("--resume goes on with the archive that there is: leave --append and --force out.")
    if report is not None:
        from landscape.report.formats import check_report

        check_report(report, force=force or append or resume)
    given: dict[str, dict[str, Any]] = {}
    for name, key, value in options:
        given.setdefault(name, {})[key] = value
    _set_surface(given, how["only"], directions=directions, grid=grid, span=span, tol=tol)
    if directions == "trajectory":
        given["plane"].setdefault("checkpoints", list(checkpoints))
    try:
        also = ("reference",) if check else ()
        plan = plan_run(checkpoints, settings=dict(settings), options=given, also=also, say=say, **how)
    except UnknownName as error:
        raise click.UsageError(str(error)) from error
    if dry_run:
        _print_predictions(plan.predict(workers), workers, as_json)
        return
    failed = None
    try:
        outcomes = plan.measure(
            out=out,
            append=append,
            force=force,
            resume=resume,
            time_limit=time_limit,
            progress=sys.stderr.isatty(),
            workers=workers,
        )
    except NotAllMeasured as error:
        if not error.outcomes:
            raise
        outcomes, failed = error.outcomes, error
    archives = list(dict.fromkeys(o.archive for o in outcomes if o.archive))
    if report is not None:
        from landscape.report.formats import write_report

        write_report(archives, report)
    print_outcomes(outcomes, report, as_json)
    if not as_json and report is None:
        shown = " ".join(relative(a) for a in archives)
        say(f"next: landscape report {shown} -o report.html")
    if failed is not None:
        raise failed


def _set_surface(given: dict[str, dict[str, Any]], only: Sequence[str] | None, **shared: Any) -> None:
    """Set what --plane, --grid, --span and --tol say as options of the plane, and of the line where it has them too."""
    chosen = {key: value for key, value in shared.items() if value is not None}
    if not chosen:
        return
    wanted = {name: only is None or not {name, section}.isdisjoint(only) for name, section in SURFACES.items()}
    if not wanted["plane"] and (not wanted["line"] or {"directions", "tol"} & set(chosen)):
        raise click.UsageError("--plane, --grid, --span and --tol are the surface's: add surface to --only.")
    for name, keys in (("plane", set(chosen)), ("line", {"grid", "span"})):
        if wanted[name]:
            for key in keys & set(chosen):
                given.setdefault(name, {}).setdefault(key, chosen[key])


def print_outcomes(outcomes: Sequence[ProbeOutcome], report: str | None, as_json: bool) -> None:
    """Print what was measured: one JSON object, or a few lines for each checkpoint; warnings go to stderr."""
    print_each(outcomes, lambda o: o.checkpoint, lambda o: _text(o, report), report, as_json)


def _text(outcome: ProbeOutcome, report: str | None) -> str:
    from landscape.counted import counted
    from landscape.report.numbers import seconds

    from .glance import checks
    from .summary import summarize

    sizes = f"{counted(outcome.parameters, 'parameter')}, {counted(outcome.samples, 'sample')}"
    where = f"{outcome.dtype} on {outcome.device}, {seconds(outcome.seconds)}"
    rows = [["not measured", f"{name}: {reason}"] for name, reason in outcome.missing.items()]
    rows += checks(list(outcome.results.values()))
    rows += [["note", text] for text in outcome.notes]
    rows += [["archive", str(outcome.archive)], *([["report", report]] if report else [])]
    head = f"{outcome.checkpoint}  {outcome.task}\n{sizes}, {where}"
    return f"{head}\n\n{summarize(outcome.results, rows)}"


def _print_predictions(
    predicted: Sequence[tuple[Prepared, int, list[Prediction]]], workers: int, as_json: bool
) -> None:
    from landscape.counted import counted

    from ..probes.prediction import RESTS_ON, spread, total

    together = spread([total(found) for *_, found in predicted], workers)

    objects = []
    for ready, samples, found in predicted:
        rows = [["measurement", "time", "memory"]]
        rows += [[p.name, expected(p.seconds), memory(p.memory)] for p in found]
        rows.append(["all", expected(total(found)), memory(max((p.memory for p in found), default=0.0))])
        objects.append(
            {
                "checkpoint": ready.checkpoint.path,
                "task": ready.reference,
                "device": ready.device,
                "dtype": ready.dtype,
                "samples": samples,
                "measurements": [
                    {"name": p.name, "seconds": [p.seconds.low, p.seconds.high], "memory": p.memory} for p in found
                ],
            }
        )
        if not as_json:
            size = f"{counted(samples, 'sample')}, {ready.dtype} on {ready.device}"
            head = f"{ready.checkpoint.path}  {ready.reference}\n{size}"
            click.echo(f"{head}\n\n{table(rows, indent=2, header=True)}\n")
    if as_json:
        all_of_them = {"workers": workers, "seconds": [together.low, together.high]} if workers > 1 else {}
        click.echo(json_line(finite({"schema": 1, "dry_run": objects, **all_of_them})[0]))
    else:
        if workers > 1:
            checkpoints = f"{len(predicted)} checkpoints" if len(predicted) > 1 else "1 checkpoint"
            click.echo(f"{checkpoints}, {expected(together)} on {workers} workers\n")
        click.echo(RESTS_ON)


def expected(time: Span) -> str:
    """Return a predicted time as a person reads it; what is over in a moment has no digits worth telling."""
    from landscape.report.numbers import span

    return "under 0.1 s" if time.high < 0.1 else span(time.low, time.high)


def memory(size: float) -> str:
    """Return a number of bytes as a person reads it."""
    from landscape.report.numbers import number

    if size != size:
        return "unknown"
    return f"{number(size / 2**30, 2)} GiB" if size >= 2**30 else f"{number(max(size / 2**20, 0.1), 2)} MiB"
