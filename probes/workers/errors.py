"""What went wrong in a worker, told in a line of JSON, and raised again where the work was given out."""

from __future__ import annotations

import builtins
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from landscape.errors import LandscapeError


def in_a_line(error: BaseException) -> str:
    """Return what went wrong in a line."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return f"out of memory; smaller batches need less ({text[:120]})"
    return text if isinstance(error, LandscapeError) else f"{type(error).__name__}: {text[:300]}".rstrip(": ")


def told(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data, from which `raised` makes it again."""
    kind = type(error)
    return {
        "module": kind.__module__,
        "name": kind.__name__,
        "text": str(error),
        "ours": isinstance(error, LandscapeError),
        "line": in_a_line(error),
        "notes": list(getattr(error, "__notes__", ())),
        "traceback": "".join(traceback.format_exception(error)),
    }


def raised(about: Mapping[str, Any]) -> Exception:
    """Return the error that `told` was given: of its class where that is Python's or ours and takes a text, else of one
    of the same name. Its cause holds the worker's traceback.
    """
    error = _of_its_class(about)
    if error is None:
        base = LandscapeError if about["ours"] else RuntimeError
        error = type(about["name"], (base,), {"__module__": about["module"]})(about["text"])
    for note in about["notes"]:
        error.add_note(note)
    error.__cause__ = InWorker(f"\n{about['traceback']}")
    return error


class InWorker(Exception):
    """The traceback of an error that a worker met, for whoever asks where it came from."""


def _of_its_class(about: Mapping[str, Any]) -> Exception | None:
    module = about["module"]
    home = builtins if module == "builtins" else sys.modules.get(module) if about["ours"] else None
    kind = getattr(home, about["name"], None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    try:
        error = kind(about["text"])
    except TypeError:  # it takes something else
        return None
    return error if str(error) == about["text"] else None
