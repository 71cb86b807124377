"""`landscape calibrate`: saved predictions or checkpoints, before and after a recalibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landscape.paths import relative

from .options import Command, subject_options
from .output import print_each, say, table

if TYPE_CHECKING:
    from ..probes.calibrating import CalibrationOutcome

METHODS = ("temperature", "vector", "isotonic", "histogram")
KINDS = ("multiclass", "binary", "multilabel", "top-label")
CONVENTIONS = ("torchmetrics", "netcal", "guo")


@click.command(
    cls=Command,
    example="landscape calibrate test_predictions.npz --logits logits --labels labels --report calibration.html\n"
    "landscape calibrate ckpt.pt --task my_task.py:task --method temperature -o calibrated.pt",
)
@click.argument("sources", nargs=-1, required=True, metavar="PREDICTIONS|CKPT...", type=click.Path())
@click.option("--logits", metavar="NAME", help="What the logits are called in a file of predictions.")
@click.option("--probabilities", metavar="NAME", help="What the probabilities are called there; columns A,B,C.")
@click.option("--labels", metavar="NAME", help="What the labels are called there (class indices).")
@click.option("--groups", metavar="NAME", help="What the numbers are called that say which samples belong together.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="Recalibration, fitted on one part and judged on the other.  [default: temperature]",
)
@click.option("--convention", type=click.Choice(CONVENTIONS), help="Bins and sums as this package or paper has them.")
@click.option("--bins", type=click.IntRange(1), default=15, show_default=True, help="Confidence bins of equal width.")
@click.option(
    "--split-share",
    "share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Share of the samples for the fit.",
)
@click.option(
    "--folds",
    type=click.IntRange(0),
    help="Cross-fit in so many folds; 0: one split.  [default: 5 below 1,000 samples]",
)
@click.option("--ignore-index", type=int, help="Label of what shall not count, e.g. -100.")
@click.option("--class-dim", type=int, default=1, show_default=True, help="Where the classes lie, e.g. -1.")
@click.option(
    "--kind", type=click.Choice(KINDS), help="What a row is: binary also for each pixel.  [default: by its shape]"
)
@click.option(
    "--strict/--no-strict",
    default=None,
    help="Refuse fewer samples than bins and labels of one class, or only warn.  [default: refuse, but with "
    "--convention]",
)
@click.option(
    "--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Of a checkpoint's task."
)
@click.option("-o", "--output", "out", metavar="FILE.pt", help="Write the calibrated model (of predictions: its map).")
@click.option("--archive", metavar="FILE", help="One archive for all; else <source>.calibration.h5 here.")
@click.option("--append", is_flag=True, help="Add to an archive that exists.")
@click.option("--force", is_flag=True, help="Replace an archive, a model or a report that exists.")
@click.option("--report", metavar="FILE", help="Draw the archives as a report, too, in the format of its ending.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; NaN and inf as null, with a warning.")
@click.option("--task", metavar="FILE:NAME", help="Of a checkpoint; by default the one that it names.")
@click.option("--max-samples", type=click.IntRange(1), help="Of a checkpoint: samples to draw, instead of all.")
@subject_options
def command(
    sources: tuple[str, ...],
    report: str | None,
    as_json: bool,
    settings: tuple[tuple[str, Any], ...],
    **how: Any,
) -> None:
    """Calibrate saved predictions or checkpoints; write a calibrated model.

    PREDICTIONS is a .npz, .pt, .csv or .parquet file with logits or probabilities and labels, found by these names
    (in tables: logit_0 or p_0 and so on, label). Which of the two the numbers are is never guessed. A CKPT is measured
    with its task, as by `landscape probe`. With -o the calibrated model is written: load_checkpoint reads its
    weights, load_recalibration its map.
    """
    from ..probes.calibrating import calibrate_files

    if how["append"] and how["force"]:
        raise click.UsageError("--append adds to the archive, --force replaces it: give one of them.")
    if how["logits"] is not None and how["probabilities"] is not None:
        raise click.UsageError("--logits and --probabilities: give the one that the numbers are.")
    if how["folds"] == 1:
        raise click.UsageError("--folds 1 leaves nothing to fit on; give 0 for one split, or at least 2.")
    if report is not None:
        from landscape.report.formats import check_report

        check_report(report, force=how["force"] or how["append"])
    outcomes = calibrate_files(sources, settings=dict(settings), say=say, **how)
    archives = list(dict.fromkeys(o.archive for o in outcomes))
    if report is not None:
        from landscape.report.formats import write_report

        write_report(archives, report)
    print_each(outcomes, lambda o: o.source, lambda o: _text(o, report), report, as_json)
    if not as_json and report is None:
        shown = " ".join(relative(a) for a in archives)
        say(f"next: landscape report {shown} -o report.html")


def _text(outcome: CalibrationOutcome, report: str | None) -> str:
    from landscape.report.numbers import count, interval, number, uncertain

    c, mended = outcome.calibration, outcome.recalibration
    of = f"{count(c.samples)} predictions, {c.classes} classes" + (f", {c.split} data" if c.split else "")

    def scattered(value: float, error: float) -> str:
        text, spread = uncertain(value, error)
        return f"{text} ± {spread}" if spread else text

    rows = [
        [f"ECE, {c.bins} bins", " ".join(interval(c.ece, *(float(x) for x in c.ece_interval)))],
        ["p if calibrated", number(c.calibration_p_value, 2)],
        ["NLL", scattered(c.nll, c.nll_stderr)],
        ["Brier", scattered(c.brier, c.brier_stderr)],
        ["accuracy", scattered(c.accuracy, c.accuracy_stderr)],
    ]
    how = "" if c.convention == "landscape" else f", ECE and bins of {c.convention}"
    head = f"{outcome.source}  {outcome.task}".rstrip()
    parts = [head, f"{of}{how}", "", "  as they are (all of them)", table(rows, indent=2)]
    if mended is not None:
        parts += ["", _mended(mended)]
    tail = [["note", text] for text in outcome.notes] + [["archive", outcome.archive]]
    tail += [["calibrated model", outcome.output]] if outcome.output else []
    tail += [["report", report]] if report else []
    return "\n".join([*parts, "", table(tail, indent=2)])


def _mended(r: Any) -> str:
    """Return the table of before, after and what changed."""
    from landscape.report.numbers import count, interval, number, uncertain

    name = {"temperature": "temperature scaling", "vector": "vector scaling"}.get(r.method, f"{r.method} maps")
    if r.method == "temperature":
        text, error = uncertain(r.temperature, r.temperature_stderr)
        name += f", T = {text} ± {error}"
    how = (
        f"{r.folds}-fold cross-fitting on {count(r.judged)} predictions"
        if r.folds
        else f"fitted on {count(r.fitted)}, judged on {count(r.judged)} other predictions"
    )
    rows = [["", "before", "after", "change (95%, paired)"]]
    for key, label in (("ece", "ECE"), ("nll", "NLL"), ("brier", "Brier"), ("accuracy", "accuracy")):
        before, after = (float(x) for x in getattr(r, key))
        change, bounds = float(getattr(r, f"{key}_change")), getattr(r, f"{key}_change_interval")
        told = (
            "none: the order of the classes stays"
            if key == "accuracy" and r.keeps_accuracy
            else " ".join(interval(change, *(float(x) for x in bounds)))
        )
        rows.append([label, number(before, 3), number(after, 3), told])
    return f"  {name} ({how})\n{table(rows, indent=2)}"
