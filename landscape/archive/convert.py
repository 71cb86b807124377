"""Archives out of, and into, other programs' files: the formats by name, and one way to write each whole.

A format is a function that turns entries of an archive into the bytes of a file (`@exporter`), or that writes a whole
archive, its training's record included, to a file or a folder (`@archive_exporter`). A new one is registered in a
module named in `FORMAT_MODULES`; `landscape export` reads the registry.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ArchiveError
from .atomic import Partial
from .reader import Entry, open_archive

#: Modules that register formats.
FORMAT_MODULES = (
    "landscape.archive.loss_landscape",
    "landscape.archive.vtk",
    "landscape.archive.tabular",
    "landscape.archive.event_files",
)

Make = Callable[..., bytes]
Write = Callable[..., None]
F = TypeVar("F", bound=Make)
W = TypeVar("W", bound=Write)


@dataclass(frozen=True)
class Format:
    """A format that archives are written in: `make(entries, **options) -> bytes` of a file, or `write`.

    `write(archive, out, force=, checkpoint=, **options)` writes a file or a folder by itself.
    """

    name: str
    suffix: str
    doc: str
    options: Mapping[str, str]
    make: Make | None = None
    write: Write | None = None


_FORMATS: dict[str, Format] = {}


def exporter(name: str, suffix: str, options: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """Register a function `(entries, **options) -> bytes` as a format; `options` maps each to what it means.

    `suffix` is the ending that files of this format usually have, "" where another format owns it.
    """

    def register(make: F) -> F:
        doc = (make.__doc__ or "").strip().split("\n")[0]
        _FORMATS[name] = Format(name, suffix, doc, options or {}, make)
        return make

    return register


def archive_exporter(name: str, suffix: str, options: Mapping[str, str] | None = None) -> Callable[[W], W]:
    """Register a function `(archive, out, *, force, checkpoint, **options)` that writes `out`: see `whole_file`."""

    def register(write: W) -> W:
        doc = (write.__doc__ or "").strip().split("\n")[0]
        _FORMATS[name] = Format(name, suffix, doc, options or {}, write=write)
        return write

    return register


def formats() -> dict[str, Format]:
    """Return every registered format by name."""
    for module in FORMAT_MODULES:
        importlib.import_module(module)
    return dict(_FORMATS)


def export_archive(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str | None = None,
    *,
    checkpoint: str | None = None,
    force: bool = False,
    **options: Any,
) -> Path:
    """Write one checkpoint's results of an archive as another program's file, and return its path.

    Args:
        source: the archive.
        out: the file to write, or the folder; it appears whole or not at all.
        format: a name of `formats()`; by default the one that owns the ending of `out`.
        checkpoint: the label, path or fingerprint of the checkpoint, where the archive holds several.
        force: replace `out` where it exists.
        options: of the format.

    Raises ArchiveError for an archive that can't be read, an unknown format or option, several checkpoints and no
    choice, results that the format can't hold, and a file that exists or can't be written.
    """
    chosen = _format(format, Path(out))
    unknown = set(options) - set(chosen.options)
    if unknown:
        raise ArchiveError(
            f"the format {chosen.name!r} has no option {sorted(unknown)[0]!r}; it has "
            f"{', '.join(chosen.options) or 'none'}"
        )
    if chosen.make is None:
        assert chosen.write is not None
        chosen.write(open_archive(source), Path(out), force=force, checkpoint=checkpoint, **options)
        return Path(out)
    entries = _entries(source, checkpoint)
    _check_target(Path(out), force)
    return write_whole(Path(out), chosen.make(entries, **options))


@contextlib.contextmanager
def whole_file(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which becomes `out` when the block succeeds, and is removed when it fails.

    Raises ArchiveError where `out` exists (`force` replaces it), or can't be written.
    """
    _check_target(out, force)
    target = Path(os.path.realpath(out))
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield aside
        os.replace(aside, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArchiveError(f"{out} could not be written: {reason}; what was there before is untouched") from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a new folder to fill, whose files go to `out` when the block succeeds.

    Raises ArchiveError where `out` holds something; `force` then replaces the files of the same names, and no others.
    """
    if out.exists() and not out.is_dir():
        raise ArchiveError(f"{out} is a file, expected a folder; remove it, or choose another name")
    if not force and out.is_dir() and any(out.iterdir()):
        raise ArchiveError(
            f"the folder {out} is not empty; pass --force to replace files in it, or choose another name"
        )
    target = Path(os.path.realpath(out))
    if not target.parent.is_dir():
        raise ArchiveError(f"the folder {out.parent} does not exist; create it, or write somewhere else")
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        aside.mkdir()
        yield aside
        target.mkdir(exist_ok=True)
        for file in sorted(aside.iterdir()):
            os.replace(file, target / file.name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArchiveError(f"{out} could not be written: {reason}; what was there before is untouched") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file so that it appears whole or not at all. Raises ArchiveError where it can't be written."""
    target = Path(os.path.realpath(path))
    try:
        partial = Partial(target)
        if partial.path.stat().st_size:
            partial.release()
            raise ArchiveError(
                f"{partial.path} holds results of a run that was interrupted: resume that run, or rename the file, or "
                "write somewhere else"
            )
        try:
            partial.write(data)
            partial.publish(partial.path)
            partial.release()
        except BaseException:
            partial.discard()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArchiveError(f"{path} could not be written: {reason}; what was there before is untouched") from error
    return Path(path)


def _format(name: str | None, out: Path) -> Format:
    known = formats()
    if name is not None:
        if name not in known:
            raise ArchiveError(f"there is no format {name!r}; there are {', '.join(known)}")
        return known[name]
    for candidate in known.values():
        if candidate.suffix and out.name.endswith(candidate.suffix):
            return candidate
    raise ArchiveError(f"the ending of {out} tells no format: give --format, one of {', '.join(known)}")


def _entries(source: str | os.PathLike[str], checkpoint: str | None) -> Sequence[Entry]:
    archive = open_archive(source)
    labels = list(dict.fromkeys(s.label for s in archive.subjects))
    if not archive.entries:
        raise ArchiveError(f"{source} holds no results: there is nothing to write")
    if checkpoint is None:
        if len(archive.subjects) > 1:
            raise ArchiveError(
                f"{source} holds {len(archive.subjects)} checkpoints ({', '.join(labels)}): choose one with "
                "--checkpoint"
            )
        return archive.entries
    found = archive.select(subject=checkpoint)
    if not found:
        raise ArchiveError(f"{source} holds no checkpoint {checkpoint!r}; it has {', '.join(labels)}")
    return found


def _check_target(out: Path, force: bool) -> None:
    if out.is_dir():
        raise ArchiveError(f"{out} is a folder, expected a file")
    if not Path(os.path.realpath(out)).parent.is_dir():
        raise ArchiveError(f"the folder {out.parent} does not exist; create it, or write somewhere else")
    if out.exists() and not force:
        raise ArchiveError(f"{out} exists; pass --force to replace it, or choose another name")
