"""Read an archive: what it says about itself at once, each Result when it is asked for. No torch here.

The file is open only while something is read, and without a lock: a writer never changes an archive in place,
it renames a whole new file over it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import ArchiveError, DamagedError
from ..results import Result, rebuild
from .groups import read_attributes, read_variables
from .history import History
from .joining import read_history
from .schema import APPENDED, FORMAT, FORMAT_VERSION, RESULTS, RUN, UNFINISHED, Subject, load_json, unpack
from .seal import check, cure
from .segments import held, live_folder


@dataclass(frozen=True)
class Entry:
    """One Result in an archive: what it is and belongs to; `.result` reads its numbers.

    `provenance` holds the root attributes of the writing that added it: the archive's own, or those of a
    later appending. `asked` is what the writer was told about the request that the result answers.
    """

    kind: str
    id: str
    subject: Subject
    attributes: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(repr=False)
    archive: Archive = field(repr=False, compare=False)
    asked: str = field(default="", repr=False)

    @property
    def group(self) -> str:
        """Return the group's name in the file, as xarray takes it."""
        return f"{RESULTS}/{self.kind}/{self.id}"

    @property
    def status(self) -> str:
        """Return complete, partial or failed: how the measurement ended."""
        return str(self.attributes.get("status", ""))

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that the measurement ran with."""
        return dict(self.attributes.get("settings") or {})

    @cached_property
    def result(self) -> Result:
        """Return the Result, rebuilt; a `StoredResult` where its class is not known in this process."""
        with self.archive._opened() as file:
            try:
                group = file[self.group]
                if not isinstance(group, h5py.Group):
                    raise TypeError("expected a group")
                return rebuild(self.kind, read_variables(group), self.attributes)
            except Exception as error:  # of a damaged group, HDF5 raises nearly anything
                raise DamagedError(
                    f"{self.group} of {self.archive.path} cannot be read ({_line(error)}); measure it again "
                    f"with --append, or: {cure(self.archive.path)}"
                ) from error


class Archive:
    """An archive on disk; make one with `open_archive`.

    `attributes` are the root's (format, created, status, versions, seed, ...), `run` the settings of the run,
    `entries` the Results in the order in which they were measured, `subjects` what they belong to, in order,
    `appended` the provenance and settings (`run`) of each later writing into the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._closed = False
        self._held: h5py.File | None = None
        with self._opened() as file:
            self.attributes: dict[str, Any] = unpack(file.attrs)
            self.run: dict[str, Any] = unpack(file[RUN].attrs) if RUN in file else {}
            later = {name: unpack(group.attrs) for name, group in _groups(file, APPENDED)}
            self.appended: tuple[dict[str, Any], ...] = tuple(later[name] for name in sorted(later))
            found = []
            for kind, groups in _groups(file, RESULTS):
                for name, group in _groups(groups):
                    try:
                        attributes, subject = read_attributes(group)
                    except Exception as error:  # not JSON, or not the JSON of ours
                        raise DamagedError(
                            f"{RESULTS}/{kind}/{name} of {path} has damaged attributes ({_line(error)}); {cure(path)}"
                        ) from error
                    provenance = later.get(str(group.attrs.get("appended", "")), self.attributes)
                    order = int(group.attrs.get("order", 0))
                    asked = str(unpack({"asked": group.attrs.get("asked", "")})["asked"])
                    found.append((order, Entry(kind, name, subject, attributes, provenance, self, asked)))
        self.last_order = max((order for order, _ in found), default=0)
        self.entries: tuple[Entry, ...] = tuple(
            entry for _, entry in sorted(found, key=lambda item: (item[0], item[1].group))
        )
        self._by_subject: dict[str, list[Entry]] = {}
        for entry in self.entries:
            self._by_subject.setdefault(entry.subject.key, []).append(entry)

    @property
    def status(self) -> str:
        """Return how the last writing ended: complete, failed or interrupted; "running" if it was killed."""
        return str(self.attributes.get("status", ""))

    @cached_property
    def history(self) -> History:
        """Return the record of the training, of what lies beside the file too; false where there is none."""
        return read_history(self.path)

    def to_xarray(self, *, superseded: bool = False) -> Any:
        """Return the training's record as an xarray.DataTree, a dataset for each quantity: see `frames.to_xarray`."""
        from .frames import to_xarray

        return to_xarray(self, superseded=superseded)

    def to_pandas(self, quantity: str | None = None, *, superseded: bool = False) -> Any:
        """Return the training's record, or one quantity of it, as a DataFrame by step: see `frames.to_pandas`."""
        from .frames import to_pandas

        return to_pandas(self, quantity, superseded=superseded)

    @property
    def alive(self) -> bool | None:
        """Whether a recorder is at work on this archive now; None where the file system can't tell."""
        return held(live_folder(self.path))

    @cached_property
    def unfinished(self) -> dict[str, np.ndarray]:
        """Return the rows that an interrupted measurement left, by key; see `landscape.journal`."""
        with self._unfinished() as found:
            return {name: np.asarray(rows[()], dtype=np.float64) for name, rows in found.items()}

    @cached_property
    def known(self) -> dict[str, dict[str, Any]]:
        """Return the facts on which those rows depend, by key; {} for rows of an earlier version."""
        with self._unfinished() as found:
            return {name: load_json(str(unpack(rows.attrs).get("facts", "{}"))) for name, rows in found.items()}

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[dict[str, h5py.Dataset]]:
        with self._opened() as file:
            group = file.get(UNFINISHED)
            held = group.items() if isinstance(group, h5py.Group) else ()
            yield {name: rows for name, rows in held if isinstance(rows, h5py.Dataset) and rows.ndim == 2}

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Return what was measured, each once, in the order of the entries."""
        return tuple(entries[0].subject for entries in self._by_subject.values())

    def select(self, kind: str | None = None, subject: Subject | str | None = None) -> list[Entry]:
        """Return the entries of a kind and of a subject, given as such or by its label, path or fingerprint."""
        entries: Iterable[Entry] = self.entries
        if isinstance(subject, Subject):
            entries = self._by_subject.get(subject.key, [])
        elif subject is not None:
            entries = [e for e in entries if subject in (e.subject.label, e.subject.checkpoint, e.subject.fingerprint)]
        return [entry for entry in entries if kind in (None, entry.kind)]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the file open meanwhile: for whoever reads all of it, opening costs as much as a Result."""
        with self._opened() as file:
            self._held = file
            try:
                yield
            finally:
                self._held = None

    def close(self) -> None:
        """Refuse to read from the file from now on; results read before stay."""
        self._closed = True

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(entry.kind for entry in self.entries))
        return f"<Archive {str(self.path)!r}: {self.status}, {len(self.entries)} results ({kinds or 'none'})>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a table of the checkpoints, and a figure."""
        from ..report.notebook import archive_html  # draws, so that it loads where a notebook asks

        return archive_html(self)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        if self._closed:
            raise ArchiveError(f"{self.path} is closed; open it again with open_archive")
        if self._held is not None:
            yield self._held
            return
        with opened(self.path) as file:
            # Appending keeps the run's id and every group; another id is another run under the same name.
            if hasattr(self, "attributes") and unpack(file.attrs).get("run_id") != self.attributes.get("run_id"):
                raise ArchiveError(f"{self.path} was replaced by another run since it was opened; open it again")
            yield file


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """Return the archive at `path`: its attributes and entries now, each Result on `entry.result`.

    ArchiveError, with what to do, where the file is missing, is no HDF5 file, is damaged, was not written by
    us, or was written in a newer format. Parts that are missing (no /run, no results) are empty.
    """
    return Archive(Path(path))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Yield the HDF5 file at `path`, read-only, after checking that it is an archive of a known format."""
    try:
        with open(path, "rb") as head:
            empty = not head.read(1)
        check(path)
    except FileNotFoundError:
        left = path.with_name(f"{path.name}.partial")
        hint = f"; {left} holds what a run has measured so far" if left.exists() else "; check the path"
        raise ArchiveError(f"no archive at {path}{hint}") from None
    except IsADirectoryError:
        raise ArchiveError(f"{path} is a folder, expected an archive file such as {path}/run.h5") from None
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
    if empty or not h5py.is_hdf5(path):
        weights = path.suffix in (".pt", ".pth", ".ckpt", ".safetensors")
        hint = f"a checkpoint is measured first: landscape probe {path}" if weights else "archives end in .h5 by habit"
        raise ArchiveError(f"{path} is not an HDF5 file, so it is no archive; {hint}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_format(path, file)
            yield file
    except ArchiveError:
        raise
    except Exception as error:  # of a damaged file, HDF5 raises nearly anything
        raise DamagedError(f"{path} is cut short or damaged ({_line(error)}); {cure(path)}") from error


def _check_format(path: Path, file: h5py.File) -> None:
    found = unpack({k: file.attrs[k] for k in ("format", "format_version") if k in file.attrs})
    if found.get("format") != FORMAT:
        raise ArchiveError(
            f"{path} is an HDF5 file of something else: its root attribute format is "
            f"{found.get('format')!r}, expected {FORMAT!r}"
        )
    version = found.get("format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ArchiveError(
            f"{path} has format version {version}, this landscape-probe reads up to {FORMAT_VERSION}; "
            f"upgrade with pip install -U landscape-probe"
        )


def _groups(parent: h5py.Group, name: str = "") -> Iterator[tuple[str, h5py.Group]]:
    within = parent.get(name) if name else parent
    if isinstance(within, h5py.Group):
        for key, item in within.items():
            if isinstance(item, h5py.Group):
                yield key, item


def _line(error: BaseException) -> str:
    """Return the telling part of an HDF5 error, which is its innermost parenthesis, on one line."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # without its quotes
    text = " ".join(str(said).split())
    inner = re.search(r"\(([^()]*)\)$", text)
    return (inner.group(1) if inner else text)[:160]
