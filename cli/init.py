"""`landscape init`: from somebody's checkpoint to a task file that fits it."""

from __future__ import annotations

import shlex

import click

from .options import Command
from .output import say, warn


@click.command(cls=Command, example="landscape init ckpt.pt -o my_task.py")
@click.argument("checkpoint", metavar="CKPT", type=click.Path())
@click.option("-o", "--output", "out", metavar="FILE", help="The task file to write; else <checkpoint>_task.py here.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--weights", metavar="NAME", help="ema, model or an entry's name, where a file has several.")
@click.option("--trust-pickle", is_flag=True, help="Run the code in the file: only for files of your own.")
def command(checkpoint: str, out: str | None, force: bool, weights: str | None, trust_pickle: bool) -> None:
    """Write a commented task file that fits a checkpoint, ready to fill in.

    The model is written out where the names and shapes give it away; what only you can know has a `>>> fill in`.
    """
    from landscape.checkpoint import read_checkpoint
    from landscape.scaffold import default_task_file, describe_checkpoint, next_commands, write_task_file

    found = read_checkpoint(checkpoint, weights=weights, trust_pickle=trust_pickle)
    path = str(write_task_file(found, out or default_task_file(found), force=force))
    if found.task is not None:
        warn(f"this checkpoint names its own task, {found.task.reference}: `landscape probe {shlex.quote(checkpoint)}`")
    say(describe_checkpoint(found))
    click.echo(path)
    say("next: fill it in, then type\n" + "\n".join(f"  {line}" for line in next_commands(found, path)[1:]))
