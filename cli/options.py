"""What the commands share: a command class with --debug, options that several take, and the types of options."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from landscape.errors import LandscapeError

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command that takes --debug, as the group does, and shows its example last."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.append(
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of an error."
            )
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and ctx.obj is not None:
        ctx.obj.debug = True


class Setting(click.ParamType):
    """`key=value` for a task's function: numbers, true, false, none and JSON as what they are, else text."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        from landscape.task_files import parse_setting

        if isinstance(value, tuple):
            return value
        try:
            return parse_setting(value)
        except LandscapeError as error:
            self.fail(str(error), param, ctx)


class MeasurementOption(click.ParamType):
    """`measurement.option=value`."""

    name = "name.option=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str, Any]:
        if isinstance(value, tuple):
            return value
        name, dot, rest = value.partition(".")
        if not dot or not name or "=" in name:
            self.fail(f"{value!r} names no option; type --option eigenvalues.k=20", param, ctx)
        return (name, *Setting().convert(rest, param, ctx))


class Device(click.ParamType):
    """A device that torch knows by this name; whether it is there is found out before anything is measured."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"auto|cpu|mps|xpu|cuda(:\d+)?", value):
            self.fail(f"{value!r} is none of auto, cpu, cuda, cuda:1, mps, xpu", param, ctx)
        return value


class Duration(click.ParamType):
    """A time such as 90, 90s, 10m, 1.5h; a plain number is seconds."""

    name = "10m"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|m|min|h)?", value.strip())
        if not found or not float(found[1]):
            self.fail(f"{value!r} is no time above 0; type 90s, 10m or 1.5h", param, ctx)
        return float(found[1]) * {"m": 60.0, "min": 60.0, "h": 3600.0}.get(found[2], 1.0)


class Pair(click.ParamType):
    """Two numbers with a comma between them."""

    name = "a,b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            first, second = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers; type them as 30,-60", param, ctx)
        if not (math.isfinite(first) and math.isfinite(second)):
            self.fail(f"{value!r} must be finite", param, ctx)
        return first, second


class Names(click.ParamType):
    """Names separated by commas."""

    name = "a,b,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        if not names:
            self.fail("no name given", param, ctx)
        return names


class Expressions(click.ParamType):
    """Names with settings, separated by the commas outside of their brackets: `focal(gamma=2, alpha=1),mse`."""

    name = "a,b(x=1),..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        found, depth = [""], 0
        for letter in value:
            depth += (letter in "([") - (letter in ")]")
            if letter == "," and not depth:
                found.append("")
            else:
                found[-1] += letter
        found = [text.strip() for text in found]
        if not all(found):
            self.fail(f"{value!r} has an empty entry", param, ctx)
        return tuple(found)


class Numbers(click.ParamType):
    """Numbers separated by commas; `whole` ones only, and a `word` that may stand for one."""

    name = "1,2,..."

    def __init__(self, *, whole: bool = False, word: str = "") -> None:
        self.whole, self.word = whole, word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        found: list[Any] = []
        for text in value.split(","):
            if self.word and text.strip() == self.word:
                found.append(self.word)
                continue
            try:
                found.append(int(text) if self.whole else float(text))
            except ValueError:
                kind = "whole number" if self.whole else "number"
                self.fail(f"{text.strip()!r} is no {kind}{f' (nor {self.word})' if self.word else ''}", param, ctx)
        return tuple(found)


class Assigned(click.ParamType):
    """`name=expression`, the name with dots."""

    name = "name=schedule"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name.strip() or not text.strip() or "(" in name:
            self.fail(f"{value!r} assigns nothing; type weight_decay='ramp(0, 1e-4)'", param, ctx)
        return name.strip(), text.strip()


class Varied(click.ParamType):
    """`key=value,value`: a setting of a task's function with its values."""

    name = "key=a,b"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[Any, ...]]:
        if isinstance(value, tuple):
            return value
        name, _, text = value.partition("=")
        found = [Setting().convert(f"{name}={part}", param, ctx)[1] for part in text.split(",")]
        return name.strip(), tuple(found)


_SUBJECT = (
    click.option(
        "--set", "settings", type=Setting(), multiple=True, help="Setting of the task's function; repeatable."
    ),
    click.option("--device", type=Device(), default="auto", help="cpu, cuda, cuda:1; auto takes CUDA where it is."),
    click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Precision; by default the model's own."),
    click.option("--seed", type=click.IntRange(0), help="Of draw and random vectors; by default the task's own, or 0."),
    click.option("--weights", metavar="NAME", help="ema, model or an entry's name, where a file has several."),
    click.option(
        "--root",
        type=click.Path(exists=True, file_okay=False),
        default=".",
        help="Folder below which a checkpoint may name its task's file.",
    ),
    click.option("--trust-pickle", is_flag=True, help="Run the code in the file: only for files of your own."),
)


def subject_options(command: F) -> F:
    """Add the options that say what is loaded and where it is measured: shared by `probe` and `check`."""
    for option in reversed(_SUBJECT):
        command = option(command)
    return command
