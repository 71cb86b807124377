"""`landscape demo`: the whole way, from training to the report, on data that come with scikit-learn."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from .options import Command
from .output import say
from .probe import print_outcomes


@click.command(cls=Command, example="landscape demo -o landscape-demo")
@click.option(
    "-o", "--output", "out", type=click.Path(file_okay=False, path_type=Path), default=Path("landscape-demo"),
    show_default=True, help="Folder for checkpoints, archives and the report.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the trainings and measurements.")
@click.option("--force", is_flag=True, help="Replace the files of an earlier demo in that folder.")
def command(out: Path, seed: int, force: bool) -> None:
    """Train four small nets on real data, probe and compare them in a report and two pictures.

    Two losses by two learning rate schedules on scikit-learn's handwritten digits; nothing is downloaded. It takes
    about a minute and a half on two cores.
    """
    from landscape.errors import LandscapeError
    from landscape.report.formats import check_report, write_report
    from landscape.report.pictures import write_two_pictures

    from ..probes.demo.training import one_thread, train_demo
    from ..probes.posthoc import probe_checkpoints
    from ..probes.targets import SUFFIX

    report = out / "report.html"
    if out.exists() and any(out.iterdir()) and not force:
        raise LandscapeError(
            f"{out} holds files; pass --force to replace those of an earlier demo, or choose another -o"
        )
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    check_report(str(report), force=force)
    bars = sys.stderr.isatty()
    say("training four nets on scikit-learn's handwritten digits: two losses by two schedules")
    checkpoints = train_demo(out, seed=seed, progress=bars)
    outcomes = []
    with one_thread():
        for number, checkpoint in enumerate(checkpoints, 1):
            archive = checkpoint.with_name(checkpoint.stem + SUFFIX)
            say(f"{number} of {len(checkpoints)}: landscape probe {checkpoint} -o {archive}")
            outcomes += probe_checkpoints([checkpoint], out=archive, force=force, seed=seed, progress=bars)
    archives = [str(o.archive) for o in outcomes]
    write_report(archives, report)
    pictures = write_two_pictures(archives, out)
    print_outcomes(outcomes, None, as_json=False)
    say(f"done in {time.perf_counter() - start:.0f} s; open the report in a browser:")
    for path in (*pictures, report):
        click.echo(path)
