"""The `landscape` command: subcommands that load when they are called, and one line for whatever goes wrong."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from landscape import __version__
from landscape.errors import LandscapeError

#: Command -> (module of this package, one line for `landscape --help`), under the headings of the help page.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Measure": {
        "demo": ("demo", "Train four small nets on real data, probe and compare them in a report and two pictures."),
        "init": ("init", "Write a commented task file that fits a checkpoint, ready to fill in."),
        "check": ("check", "Try a task on one batch: does it load, what will work, how long will it take."),
        "probe": ("probe", "Measure checkpoints: loss, curvature, sharpness, surface, calibration."),
        "path": ("path", "Measure the loss on the way between checkpoints: are they in one basin?"),
        "calibrate": ("calibrate", "Calibrate saved predictions or checkpoints; write a calibrated model."),
        "sweep": ("sweep", "Train every combination of losses, schedules, optimizers ...; record and measure each."),
    },
    "Read": {
        "report": ("report", "Draw archives as one self-contained HTML page, or in another format."),
        "figure": ("figure", "Draw THE figure for a paper, with its caption, methods paragraph and BibTeX."),
        "compare": ("compare", "Say how the runs of two archives differ: B minus A, with 95% intervals."),
        "show": ("show", "Print what archives hold."),
        "watch": ("watch", "Follow a training run: losses, gradient norms, curvature, speed and events."),
        "repair": ("repair", "Put what a killed run left beside its archive into it, or salvage a damaged archive."),
        "import": ("importing", "Read a surface file of tomgoldstein/loss-landscape into an archive."),
        "export": ("exporting", "Write an archive in another program's format."),
        "list": (
            "listing",
            "List what can be measured, a recorder's probes, or what training is made of, with their parameters.",
        ),
    },
}


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: writers finish their archives as they do for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and whose errors end as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in COMMANDS.values():
            if cmd_name in section:
                module = importlib.import_module(f".{section[cmd_name][0]}", __package__)
                return module.command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else f" There are: {', '.join(known)}."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, section in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, text) for name, (_, text) in section.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line, and exit: 0 done, 1 failed, 2 wrong usage, 130 and 143 interrupted."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        state = State()
        with _signals(), _plain_warnings(), _any_encoding():
            try:
                code = super().main(args, prog_name, complete_var, standalone_mode=False, obj=state, **extra)
                sys.stdout.flush()
            except BrokenPipeError:  # the reader has seen enough; click answers its own in the same way
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = 1
            except Exception as error:
                code = _explain(error, state.debug)
        sys.exit(code if isinstance(code, int) else 0)


class State:
    """What a command's options tell `main`."""

    debug = False


def _explain(error: Exception, debug: bool) -> int:
    """Say on stderr what went wrong, and return the exit status."""
    cause: BaseException | None = error.__cause__ if isinstance(error, click.Abort) else error
    if debug:
        traceback.print_exception(cause)
    if isinstance(cause, click.ClickException):
        cause.show()
        return cause.exit_code
    if isinstance(cause, Terminated):
        _say_error(f"stopped by signal {cause.number}", "interrupted")
        return 128 + cause.number
    if isinstance(cause, KeyboardInterrupt) or cause is None:
        _say_error("stopped by Ctrl-C", "interrupted")
        return 130
    _say_error(_line(cause))
    for note in getattr(cause, "__notes__", ()):
        click.echo(note, err=True)
    return 1


def _line(error: BaseException) -> str:
    """Return one line about an error: our own say what to do, others are named."""
    text = " ".join(str(error).split())
    if isinstance(error, LandscapeError):
        return text
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory ({text[:160] or name}); give the task smaller batches: Task(batch_size=...)"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{name}: {text[:300]} (this is a bug or an unexpected error; --debug shows the traceback)"


def _say_error(text: str, label: str = "error") -> None:
    click.echo(f"{click.style(f'{label}:', fg='red', bold=True) if coloured() else f'{label}:'} {text}", err=True)


def coloured() -> bool:
    """Whether stderr is a terminal whose user did not ask for plain text (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


@contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that archives are finished; leave ignored ones ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    before = {}
    try:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    except ValueError:
        pass  # not in the main thread: whoever runs us there keeps the signals
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print Python's warnings as one line each, without the source line of some library."""

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        click.echo(f"warning: {' '.join(str(message).split())}", err=True)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = before


@contextmanager
def _any_encoding() -> Iterator[None]:
    """Let a terminal that lacks a character show a question mark instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors == "strict":
            reconfigure(errors="replace")
    yield


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="landscape", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def main(state: State | None, debug: bool) -> None:
    """Where in the loss landscape did this training end up, and can its confidence be trusted?

    \b
    First steps:
      landscape demo                          the whole way on bundled data
      landscape init ckpt.pt                  a task file for your own checkpoint
      landscape probe ckpt.pt --task ckpt_task.py --report report.html
    """
    if state is not None:
        state.debug = state.debug or debug
