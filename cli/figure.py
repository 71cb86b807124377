"""`landscape figure`: the figure for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import Command, Pair


@click.command(cls=Command, example="landscape figure a.h5 b.h5 surface -o fig.pdf --view 30,-60 --zlim 0,5")
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE... WHAT", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help="fig.pdf, fig.svg or fig.png; fig.txt (caption, methods) and fig.bib go beside it.",
)  # fmt: skip
@click.option(
    "--style", type=click.Choice(["paper", "screen", "talk"]), default="paper", show_default=True,
    help="Size of letters and strokes.",
)  # fmt: skip
@click.option("--column", type=click.Choice(["single", "double"]), help="3.3 or 6.9 inches wide on paper.")
@click.option("--width", type=click.FloatRange(0.5, 60), help="In inches, in place of --column.")
@click.option("--height", type=click.FloatRange(0.5, 60), help="In inches; by default what the panels need.")
@click.option("--overlay/--beside", default=None, help="All runs on one axis, or a panel each.")
@click.option("--checkpoint", "checkpoints", multiple=True, metavar="LABEL", help="Draw only these; repeatable.")
@click.option("--projection", type=click.Choice(["contour", "3d"]), help="Of a surface; --view makes it 3d.")
@click.option("--view", type=Pair(), help="Elevation and azimuth in degrees: 30,-60.")
@click.option("--zlim", type=Pair(), help="Lowest and highest loss shown: 0,5.")
@click.option("--scale", type=click.Choice(["auto", "linear", "log"]), default="auto", help="Of heights and colors.")
@click.option(
    "--quantity", metavar="NAME",
    help="accuracy, held_out_loss, ... in place of the loss; of a training the panels: lambda_max,loss,update.ratio.",
)  # fmt: skip
@click.option("--words/--no-words", default=True, help="Write fig.txt and fig.bib, too.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def command(archives: tuple[Path, ...], out: Path, checkpoints: tuple[str, ...], **options: Any) -> None:
    """Draw THE figure for a paper, with its caption, methods paragraph and BibTeX.

    WHAT is a kind of result in the archives, as `landscape show` names them: surface, line, eigenvalues, density,
    calibration, path, trajectory, ..., training for the record of a training, effects for what each setting of a
    sweep does, or range_test for what `landscape sweep --lr-find` found. Several archives stand side by side on one
    scale, or over one another.
    """
    from landscape.errors import LandscapeError
    from landscape.report.paper import write_figure
    from landscape.report.runs import gather

    *paths, what = archives
    if not paths:
        raise click.UsageError(f"Say what to draw, after the archives: landscape figure {what} surface -o fig.pdf")
    runs = gather(paths)
    if checkpoints:
        kept = [r for r in runs if {r.name, r.checkpoint, Path(r.checkpoint).name, r.fingerprint} & set(checkpoints)]
        if not kept:
            names = ", ".join(r.name for r in runs)
            raise LandscapeError(f"no checkpoint is called {' or '.join(checkpoints)}; there are {names}")
        runs = kept
    for path in write_figure(runs, str(what), out, **options):
        click.echo(path)
