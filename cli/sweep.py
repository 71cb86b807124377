"""`landscape sweep`: trainings over every combination of what is listed, each recorded and measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .main import Terminated
from .options import (
    Assigned,
    Command,
    Device,
    Duration,
    Expressions,
    MeasurementOption,
    Names,
    Numbers,
    Setting,
    Varied,
)
from .output import say

if TYPE_CHECKING:
    from ..probes.sweep.study import Sweep

_EXAMPLE = """\
landscape sweep digits_task.py --loss "cross_entropy,focal(gamma=2)" --schedule constant,cosine --seeds 3 -o runs
landscape sweep digits_task.py ... -o runs --resume           goes on after an interruption
landscape report runs/*/run.h5 -o report.html
landscape sweep digits_task.py ... -o runs --cell $SLURM_ARRAY_TASK_ID/18      in a job array
landscape sweep -o runs --collect"""


@click.command(cls=Command, example=_EXAMPLE)
@click.argument("task", metavar="TASK", required=False)
@click.option("--loss", type=Expressions(), help="Losses in place of the task's own; see `landscape list losses`.")
@click.option("--schedule", type=Expressions(), help="Of the learning rate.  [default: constant]")
@click.option("--optimizer", type=Expressions(), help="With their settings.  [default: sgd(momentum=0.9)]")
@click.option(
    "--batch-size", type=Numbers(whole=True, word="full"), help="Samples, or full.  [default: the data's own]"
)
@click.option("--lr", type=Numbers(), help="Learning rates.  [default: the optimizer's own; 0.1 without one]")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training data.  [default: 20]")
@click.option("--seeds", type=Numbers(whole=True), help="How many seeds (3), or which (0,4,7).  [default: 1]")
@click.option(
    "--average",
    type=Expressions(),
    help="Averages of the weights to end with: ema(decay=0.999), swa, none; each trains once more.",
)
@click.option("--vary", type=Varied(), multiple=True, help="A setting of the task's function over values; repeatable.")
@click.option("--set", "settings", type=Setting(), multiple=True, help="Setting of the task's function; repeatable.")
@click.option("--drive", type=Assigned(), multiple=True, help="Another scalar by a schedule: clip='ramp(5, 1)'.")
@click.option("--clip", type=click.FloatRange(0, min_open=True), help="Largest gradient norm.")
@click.option("--cells", "listed", type=click.Path(dir_okay=False), help="A file of cells (.json, .jsonl, .csv).")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
              help="Folder of the sweep.")  # fmt: skip
@click.option("--resume", is_flag=True,
              help="Go on: finished cells are skipped, half-done ones continue, further ones join.")  # fmt: skip
@click.option("--retry-failed", "retry", is_flag=True, help="Train failed cells again, too.")
@click.option("--allow-changed", is_flag=True, help="Go on although the task's file changed.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes, one GPU each.")
@click.option("--time-limit", type=Duration(), help="Save and stop after this long, such as 2h; see --resume.")
@click.option("--device", type=Device(), default="auto", help="cpu, cuda, cuda:1; auto takes CUDA where it is.")
@click.option("--track", type=Names(), help="Record these, too: curvature, noise, terms, surface.")
@click.option("--no-record", is_flag=True, help="Don't record the trainings.")
@click.option("--evaluate", type=click.IntRange(0), default=1, show_default=True,
              help="Look at the test data every so many epochs; 0: never.")  # fmt: skip
@click.option("--keep", type=click.IntRange(1), help="Keep a checkpoint every so many epochs.")
@click.option("--only", type=Names(), help="Measurements of each final checkpoint, as for `landscape probe`.")
@click.option("--preset", type=click.Choice(["quick", "standard", "thorough"]), default="quick", show_default=True,
              help="Samples and fineness of these.")  # fmt: skip
@click.option("--option", "options", type=MeasurementOption(), multiple=True, help="Option of one; repeatable.")
@click.option("--max-samples", type=click.IntRange(1), help="Samples they are made on, instead of the preset's.")
@click.option("--no-measure", is_flag=True, help="Don't measure the final checkpoints.")
@click.option("--list-cells", is_flag=True, help="Only print the cells.")
@click.option("--cell", metavar="I/N", help="Train the I-th of N shares of the cells (or the I-th cell): array jobs.")
@click.option("--collect", is_flag=True, help="Only join the results that are in the folder.")
@click.option("--dry-run", is_flag=True, help="Only say what it would cost, from a few steps.")
@click.option("--lr-find", is_flag=True, help="Range test of the learning rate instead, against 2 / lambda_max.")
@click.option("--lr-range", type=Numbers(), help="Lowest and highest rate of that.  [default: 1e-5,10]")
@click.option("--report", metavar="FILE", help="Draw all cells as a report at the end, in the format of its ending.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(task: str | None, out: Path, collect: bool, as_json: bool, report: str | None, **how: Any) -> None:
    """Train every combination of losses, schedules, optimizers ...; record and measure each.

    TASK is file.py:name. Each cell gets a folder with its record and measurements (run.h5) and a checkpoint that names
    its task (final.pt). The same seed gives the same first weights and the same order of data in all cells. A cell that
    diverges or fails is a result with its reason. Ctrl-C, SIGTERM and SIGUSR1 save what is under way; --resume goes on.
    Exit 1 if a cell failed.
    """
    from . import sweeping

    if report is not None:
        from landscape.report.formats import check_report

        check_report(report, force=how["resume"] or collect)
    if collect:
        _finish(sweeping.collected(out), report, as_json, strict=False)
        return
    if task is None:
        raise click.UsageError("Missing argument 'TASK' (only --collect needs none).")
    sweep = _sweep(task, out, how)
    if how["list_cells"]:
        sweeping.print_cells(sweep, as_json)
        return
    if how["dry_run"]:
        sweeping.print_estimate(sweep, how["workers"], as_json)
        return
    if how["lr_find"]:
        sweeping.find_rates(sweep, how["lr_range"], as_json)
        return
    from ..probes.sweep.manifest import share

    cells = share(sweep.cells, how["cell"]) if how["cell"] else None
    found = sweep.run(
        resume=how["resume"] or cells is not None,
        workers=how["workers"],
        only=cells,
        retry=how["retry"],
        time_limit=how["time_limit"],
        allow_changed=how["allow_changed"],
        progress=sys.stderr.isatty(),
        say=say,
    )
    _finish(found, report, as_json, strict=True)


def _sweep(task: str, out: Path, how: dict[str, Any]) -> Sweep:
    from ..probes.sweep.how import How
    from ..probes.sweep.study import Sweep

    options: dict[str, dict[str, Any]] = {}
    for name, key, value in how["options"]:
        options.setdefault(name, {})[key] = value
    done = How(
        device=how["device"],
        record=not how["no_record"],
        probes=how["track"],
        evaluate=how["evaluate"],
        checkpoints=how["keep"] or 0,
        measure=not how["no_measure"],
        only=how["only"],
        preset=how["preset"],
        options=options,
        max_samples=how["max_samples"],
    )
    common = {"settings": dict(how["settings"]), "drive": dict(how["drive"]), "clip": how["clip"]}
    if how["epochs"] is not None:
        common["epochs"] = how["epochs"]
    axes = ("loss", "schedule", "optimizer", "batch_size", "lr", "average", "seeds")
    if how["listed"] is not None:
        given = [f"--{a.replace('_', '-')}" for a in (*axes, "vary") if how[a]]
        if given:
            raise click.UsageError(f"--cells lists the cells by itself: leave {' and '.join(given)} out.")
        return Sweep(task, out, cells=how["listed"], how=done, **common)
    lists = {a: how[a] for a in axes if how[a] is not None}
    if len(lists.get("seeds", ())) == 1:
        lists["seeds"] = lists["seeds"][0]
    return Sweep(task, out, how=done, vary=dict(how["vary"]), **lists, **common)


def _finish(found: Any, report: str | None, as_json: bool, *, strict: bool) -> None:
    """Print what came out, draw it, and leave as the shell expects."""
    from . import sweeping

    if report is not None and found.archives:
        from landscape.report.formats import write_report

        write_report([str(a) for a in found.archives], report)
    sweeping.print_collected(found, report, as_json)
    if found.stopped:
        raise Terminated(found.stopped)
    if strict and found.counts.get("failed"):
        sys.exit(1)
