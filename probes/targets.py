"""Into which archive each checkpoint's or file's results go."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from landscape.errors import ArchiveError

SUFFIX = ".landscape.h5"


def archive_paths(
    sources: Sequence[str],
    archive: str | os.PathLike[str] | None = None,
    *,
    suffix: str = SUFFIX,
    unnamed: str = "checkpoint",
    option: str = "-o run.h5",
) -> list[Path]:
    """Return where each source's results go: all to `archive`, else to the current folder under its own name.

    Of several with one name (runs/a/last.pt, runs/b/last.pt), each is called after its folders, too, as many as tell
    them apart: a_last, b_last. Raises ArchiveError where none do (last.pt and last.safetensors); `option` is
    the way out.
    """
    if archive is not None:
        return [Path(archive)] * len(sources)
    whole = [Path(s).resolve() for s in sources]
    names = [p.stem or unnamed for p in whole]
    for depth in range(max((len(p.parts) for p in whole), default=0)):
        clashing = _clashing(names)
        for i, path in enumerate(whole):
            folders = path.parent.parts[1:]
            if names[i] in clashing and depth < len(folders):
                names[i] = f"{_plain(folders[-1 - depth])}_{names[i]}"
    twice = _clashing(names)
    if twice:
        raise ArchiveError(
            f"two sources would both be written to {min(twice)}{suffix}; give one archive for all with {option}"
        )
    return [Path(f"{n}{suffix}") for n in names]


def _clashing(names: Sequence[str]) -> set[str]:
    """Return the names that another one is the same as; macOS and Windows tell best from Best by nothing."""
    folded = [n.casefold() for n in names]
    return {n for n, f in zip(names, folded, strict=True) if folded.count(f) > 1}


def _plain(folder: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", folder)
