"""`landscape path`: the loss between checkpoints, and how high its barriers are."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any

import click

from landscape.paths import relative

from .options import Command, Names, subject_options
from .output import print_each, say, table
from .told import told

if TYPE_CHECKING:
    from ..probes.connecting import PathOutcome


@click.command(
    cls=Command,
    example="landscape path seed0.pt seed1.pt --task my_task.py:task --report path.html\n"
    "landscape path seed*.pt --pairs --align weights -o seeds.h5",
)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT CKPT...", type=click.Path())
@click.option("--task", metavar="FILE:NAME", help="The task's function; by default the one that the first CKPT names.")
@click.option("--pairs", is_flag=True, help="The barrier between each two CKPTs, rather than one path through all.")
@click.option(
    "--curve",
    type=click.Choice(["linear", "bezier"]),
    default="linear",
    show_default=True,
    help="Straight, or a Bezier curve trained to keep the loss low (Garipov et al. 2018).",
)
@click.option(
    "--align",
    type=click.Choice(["weights", "activations"]),
    help="Permute the hidden units of each CKPT to fit the one before it first (Ainsworth et al. 2023).",
)
@click.option(
    "--batchnorm",
    type=click.Choice(["recompute", "interpolate"]),
    default="recompute",
    show_default=True,
    help="Running statistics along the path: estimated anew, or mixed as the weights are.",
)
@click.option("--split", "splits", type=Names(), help="Data to take the loss over: train,test.  [default: both]")
@click.option(
    "--points", type=click.IntRange(3), default=25, show_default=True, help="Of each path, its ends included."
)
@click.option("--steps", type=click.IntRange(1), help="Of the curve's training.  [default: 1000]")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Of the curve's training, as a share of the ends' mean difference.  [default: 0.03]",
)
@click.option(
    "-o", "--output", "out", metavar="FILE", help="The archive; else <first>-to-<last>.path.h5 here (.pairs.h5)."
)
@click.option("--append", is_flag=True, help="Add to an archive that exists.")
@click.option("--force", is_flag=True, help="Replace an archive, or a report, that exists.")
@click.option("--report", metavar="FILE", help="Draw the archive as a report, too, in the format of its ending.")
@click.option(
    "--max-samples", type=click.IntRange(1), help="Samples to draw of each split.  [default: 4,096, or the task's own]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; NaN and inf as null, with a warning.")
@subject_options
def command(
    checkpoints: tuple[str, ...],
    report: str | None,
    as_json: bool,
    settings: tuple[tuple[str, Any], ...],
    **how: Any,
) -> None:
    """Measure the loss on the way between checkpoints: are they in one basin?

    The path goes through the CKPTs in their order; its barrier is how high the loss rises above the line between its
    ends, with the standard error of the same samples at all points. Numbers go to stdout, progress and warnings to
    stderr, and the result into an archive.
    """
    from ..probes.connecting import connect_checkpoints

    if how["append"] and how["force"]:
        raise click.UsageError("--append adds to the archive, --force replaces it: give one of them.")
    if len(checkpoints) < 2:
        raise click.UsageError("a path needs at least two checkpoints: landscape path a.pt b.pt")
    if how["curve"] == "linear" and (how["steps"] is not None or how["rate"] is not None):
        raise click.UsageError("--steps and --rate are those of a curve's training: add --curve bezier.")
    if report is not None:
        from landscape.report.formats import check_report

        check_report(report, force=how["force"] or how["append"])
    given = {k: v for k, v in how.items() if v is not None}
    outcome = connect_checkpoints(checkpoints, settings=dict(settings), say=say, progress=sys.stderr.isatty(), **given)
    if report is not None:
        from landscape.report.formats import write_report

        write_report([outcome.archive], report)
    print_each([outcome], lambda o: o.checkpoints[0], lambda o: _text(o, report), report, as_json)
    if not as_json and report is None:
        say(f"next: landscape report {relative(outcome.archive)} -o report.html")


def _text(outcome: PathOutcome, report: str | None) -> str:
    from landscape.report.numbers import count, seconds

    from .glance import checks

    result: Any = outcome.result
    samples = " and ".join(f"{count(int(n))} {split}" for split, n in zip(result.splits, result.samples, strict=True))
    sizes = f"{count(outcome.parameters)} parameters, {samples} samples"
    where = f"{outcome.dtype} on {outcome.device}, {seconds(outcome.seconds)}"
    rows = [*checks([result]), *(["note", text] for text in result.notes), ["archive", outcome.archive]]
    rows += [["report", report]] if report else []
    barriers = _matrix(result) if result.kind == "connectivity" else _segments(result)
    return f"{outcome.task}\n{sizes}, {where}\n\n{barriers}\n\n{table(rows, indent=2)}"


def _segments(path: Any) -> str:
    """Return a row for each segment of a path: how far, and its barrier on each split."""
    from landscape.report.numbers import number

    before = path.unaligned_barrier is not None
    head = ["from", "to", "distance", *(f"{split} barrier" for split in path.splits)]
    rows = [[*head, *(f"{split}, before aligning" for split in path.splits if before)]]
    for k, (a, b) in enumerate(itertools.pairwise(path.states)):
        cells = [_height(h[k], e[k]) for h, e in zip(path.barrier, path.barrier_stderr, strict=True)]
        if before:
            old = zip(path.unaligned_barrier, path.unaligned_barrier_stderr, strict=True)
            cells += [_height(h[k], e[k]) for h, e in old]
        rows.append([a, b, number(float(path.distance[k]), 3), *cells])
    return table(rows, indent=2, header=True)


def _matrix(found: Any) -> str:
    """Return the barriers between each two states, a table for each split."""
    from landscape.report.figures.connectivity import labels

    names = labels(found.states)
    tables = []
    for k, split in enumerate(found.splits):
        heights, errors = found.barrier[k], found.barrier_stderr[k]
        rows = [[f"{split} barrier", *names[:-1]]]
        rows += [[name, *(_height(heights[i][j], errors[i][j]) for j in range(i))] for i, name in enumerate(names) if i]
        tables.append(table(rows, indent=2, header=True))
    return "\n\n".join(tables)


def _height(value: Any, stderr: Any) -> str:
    """Return a barrier with its standard error; "none" for 0, because no point lies above the line between the ends."""
    return "none" if float(value) == 0 else told(value, stderr)
