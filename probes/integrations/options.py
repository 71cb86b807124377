"""What the integrations have in common: the recorder's options, and the line that says which library is missing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from landscape.tasks import Task

from ..probe import Probe
from ..recorder import Recorder
from ..when import When


class RecorderOptions(TypedDict, total=False):
    """The options of `landscape.probes.Recorder` that an integration hands on to it; see there."""

    task: Task | None
    probes: Sequence[Probe] | None
    checkpoints: When | None
    task_reference: str | None
    task_settings: Mapping[str, Any] | None
    task_loss: str
    facts: Mapping[str, Any] | None
    force: bool
    seed: int
    flush_seconds: float
    budget: float | None


#: Given by the integration itself.
_OWN = ("self", "path", "model", "optimizer", "resume")


def recorder_options() -> set[str]:
    """Return the names of the recorder's options."""
    return set(inspect.signature(Recorder.__init__).parameters) - set(_OWN)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that the recorder doesn't have, when the callback is made and not an hour later."""
    unknown = sorted(set(options) - recorder_options())
    if unknown:
        raise TypeError(f"no option {unknown[0]!r} of the recorder; there are {', '.join(sorted(recorder_options()))}")


def with_facts(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with what the library knows about the run among the facts; the user's own win."""
    return {**options, "facts": {**{k: v for k, v in known.items() if v is not None}, **(options.get("facts") or {})}}


def missing(module: str, library: str, extra: str) -> ImportError:
    """Return the error for a library that isn't installed."""
    return ImportError(
        f"landscape.probes.integrations.{module} needs {library}, which is not installed: "
        f"pip install 'landscape-probe[{extra}]'"
    )
