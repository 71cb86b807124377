"""Results that are there already, written into an archive in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import ArchiveError
from ..results import Result
from .schema import Subject
from .writer import ArchiveWriter


def save_archive(
    path: str | os.PathLike[str],
    results: Result | Iterable[Result],
    *,
    subject: Subject | None = None,
    run: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
    force: bool = False,
    append: bool = False,
) -> Path:
    """Write one Result or several into an archive at `path`, and return the path.

    `results` are stored in their order. `subject` says what was measured, `run` holds the settings of the run (loss,
    schedule, ...) and `attributes` what stands at the archive's root beside versions, time and host; plain values. The
    file appears whole or not at all. Raises ArchiveError where it exists (`force` replaces it, `append` adds to it),
    cannot be written, or there is no result.
    """
    several = [results] if isinstance(results, Result) else list(results)
    if not several:
        raise ArchiveError("no results to save; pass one Result or a list of them")
    mode: Literal["new", "append"] = "append" if append else "new"
    with ArchiveWriter(path, run=run, attributes=attributes, mode=mode, force=force) as writer:
        for result in several:
            writer.add(result, subject=subject)
    return writer.path
