"""What can still be read and proven of a damaged archive, written as a new one beside it: `salvage`.

First by parity (`parity`), bit for bit. What that can't mend is known by its pages; HDF5 then reads the rest of a copy,
group by group, dataset by dataset, chunk by chunk of rows, each within a time limit in a process of its own, and what
depends on no damaged byte is kept (`survey`). A Result is kept whole or not at all; of a recorded quantity the rows of
good chunks are.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..counted import counted
from ..errors import ArchiveError, DamagedError
from ..results import rebuild
from .atomic import Partial, reserve
from .compaction import Compacted, gather, write_events
from .damage import Damage, damage
from .groups import read_attributes, read_variables
from .history import Event
from .joining import stored_events
from .piecewise import attribute_of
from .schema import (
    EPOCHS,
    EVENTS,
    FORMAT,
    FORMAT_VERSION,
    PROBES,
    RESULTS,
    SALVAGED,
    STEPS,
    lost_by_damage,
    pack,
    salvaged_path,
    unpack,
)
from .seal import check, seal
from .segments import held, live_folder, segment_paths
from .survey import Key, Reader, Walked, digest, pieces, walk_variants

#: Groups beside the root's own that are one thing each, whole or nothing: the depth below the root where they lie.
_WHOLE = {RESULTS: 2, PROBES: 2, EVENTS: 0}
_COPIED = 1 << 22


@dataclass(frozen=True)
class Salvaged:
    """The new archive at `path`; in words what is `lost`, none where parity `mended` everything.

    `proven`: all that was kept fits checksums. False of an archive whose checksums are gone, or that never had any:
    HDF5 can read what was kept, and that is all that is known. `rows` went into it from segments beside the old one.
    """

    path: Path
    lost: tuple[str, ...]
    kept: int
    mended: int
    proven: bool
    rows: Compacted | None = None


def salvage(path: str | os.PathLike[str]) -> Salvaged:
    """Write what can be read and proven of the archive at `path` as a new one beside it, `run.salvaged.h5`.

    The damaged file stays as it is. Costs a few passes over the file, and three times its size on the disk for a while.
    Raises ArchiveError where the new one exists, can't be written, nothing can be read, or nothing is damaged.
    """
    path = Path(os.path.realpath(path))
    target = salvaged_path(path)
    if held(live_folder(path)):
        raise ArchiveError(f"{path} is being written by a run that goes on; wait for its end, or stop it")
    if target.exists():
        raise ArchiveError(f"{target} exists; move it away, or remove it, to salvage {path.name} again")
    try:
        found = damage(path)
        partial = Partial(target)
        # A name of its own, so that what a kill leaves is overwritten, and removed, the next time.
        copy = target.with_name(f"{partial.path.name}.copy")
        try:
            done = _salvage(path, partial, found, copy)
        finally:
            copy.unlink(missing_ok=True)
            partial.discard()
        if segment_paths(live_folder(path)):
            try:
                shutil.copytree(live_folder(path), live_folder(target), dirs_exist_ok=True)
            except OSError:
                target.unlink()
                shutil.rmtree(live_folder(target), ignore_errors=True)
                raise
            return replace(done, rows=gather(target, "interrupted"))
    except (OSError, RuntimeError) as error:  # h5py's, where the HDF5 library has no errno to give
        why = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS):
            why += f"; copy {path.name} to a folder where you may write, and repair it there"
        raise ArchiveError(f"{target} could not be written: {why}") from error
    return done


def _sound(path: Path) -> bool:
    """Whether every byte fits its checksum, those of the checksums included."""
    try:
        return check(path, everything=True)
    except DamagedError:
        return False


def _salvage(path: Path, partial: Partial, found: Damage, copy: Path) -> Salvaged:
    aside = partial.aside
    if found.proven and not found.ranges:
        if _sound(path):
            raise ArchiveError(
                f"every byte of {path} is as it was written: what can't be read of it was written so; measure that "
                "again with --append, or read the file by the version of landscape that wrote it"
            )
        _copy(path, aside, found.size)
        with open(aside, "r+b") as file:
            if found.mended:
                found.mended.apply(file)
        seal(aside)
        partial.publish(aside)
        return Salvaged(partial.target, (), -1, len(found.mended.pages) if found.mended else 0, True)
    _copy(path, copy, found.size)
    with open(copy, "r+b") as file:
        file.truncate(found.size)
        if found.mended:
            found.mended.apply(file)
    walked = walk_variants(copy, found.ranges)
    if not walked.answers:
        raise ArchiveError(
            f"nothing of {path} can be read any more ({walked.why}); restore it from a copy, or measure again"
        )
    lost = _write(aside, copy, walked, found, path)
    if not lost.kept:
        raise ArchiveError(f"nothing that was measured is left in {path}; restore it from a copy, or measure again")
    seal(aside)
    partial.publish(aside)
    mended = len(found.mended.pages) if found.mended else 0
    return Salvaged(partial.target, tuple(lost.lines), lost.kept, mended, found.proven)


def _copy(path: Path, target: Path, size: int) -> None:
    with open(path, "rb") as source, open(target, "wb") as file:
        left = size
        while left and (data := source.read(min(left, _COPIED))):
            file.write(data)
            left -= len(data)


# ------------------------------------------------------------------------------------------------- writing


@dataclass
class _Lost:
    lines: list[str]
    #: Results, quantities and other things with numbers that were kept.
    kept: int = 0
    #: Of a training's record, for those who read it.
    events: list[Event] = field(default_factory=list)


def _write(aside: Path, copy: Path, walked: Walked, found: Damage, path: Path) -> _Lost:
    name = f"{aside}.h5"
    with h5py.File(name, "w", driver="core", backing_store=False, track_order=True, locking=False) as image:
        image.flush()
        aside.write_bytes(image.id.get_file_image())
    # Room for all that there can be, and HDF5's own bookkeeping: then nothing can fail inside it.
    reserve(aside, 2 * found.size + (4 << 20))
    with h5py.File(aside, "r+", locking=False) as file, Reader(copy) as reader:
        writer = _Writer(file, walked, reader, proven=found.proven)
        writer.group("/")
        lost = writer.lost
        if lost.events:
            write_events(file, (*(stored_events(file[EVENTS]) if EVENTS in file else ()), *lost.events))
        root = unpack(file.attrs)
        before = root.get(SALVAGED) or {"lost": [], "proven": True}  # of what was salvaged once already
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "status": "interrupted",
            **root,
            "modified": datetime.now(UTC).isoformat(timespec="seconds"),
            SALVAGED: {
                "from": path.name,
                "lost": [*before["lost"], *lost.lines],
                "proven": found.proven and before["proven"],
            },
        }
        file.attrs.update(pack(about))
    return lost


class _Writer:
    """Writes what was read the same each time, and says what is missing; unproven, also what can't be understood."""

    def __init__(self, file: h5py.File, walked: Walked, reader: Reader, *, proven: bool) -> None:
        self._file, self._walked, self._reader, self._proven = file, walked, reader, proven
        self.lost = _Lost([])

    def group(self, path: str) -> None:
        about = self._walked.answers.get(("group", path))
        if about is None:
            self._lose(path, "everything in it is lost" if path != "/" else "nothing of it can be read")
            return
        parts = path.strip("/").split("/") if path != "/" else []
        own: Any = self._file.require_group(path) if not parts else self._file.create_group(path, track_order=True)
        facts = self._walked.answers.get(("attributes", path))
        told = {k: attribute_of(v) for k, v in facts["attributes"].items()} if facts is not None else None
        if told is not None and (self._proven or _understood(unpack, told)):
            own.attrs.update(told)
        elif parts and parts[0] in _WHOLE:
            self._lose(path, "lost: what describes it is damaged")
            del self._file[path]
            return
        else:
            self._lose(path, "its own facts and settings are lost")  # unless all of it turns out to be
        below = [(f"{path.rstrip('/')}/{name}", kind) for name, kind in about["members"]]
        datasets = [p for p, kind in below if kind == "dataset"]
        if datasets:  # then what can't be opened is one, too
            datasets = [p for p, kind in below if kind != "group"]
        if datasets:
            if not self._datasets(path, parts, datasets):
                del self._file[path]
                return
            read = _READ.get(parts[0]) if parts else None
            if read is not None and not self._proven and not _understood(read, own):
                self._lose_all(path, "lost: what is in it makes no sense")
                del self._file[path]
                return
            self.lost.kept += 1
        for p, _ in below:
            if p not in datasets:
                self.group(p)

    def _datasets(self, path: str, parts: Sequence[str], datasets: Sequence[str]) -> bool:
        """Write the datasets of a group; False where the group is lost without those that are."""
        bad = {p: self._gaps(p) for p in datasets}
        rows: list[tuple[int, int]] | None = None
        if len(parts) == 2 and parts[0] in (STEPS, EPOCHS):
            growing = [p for p in datasets if p.rpartition("/")[2] in ("step", "value", "superseded")]
            absent = not {f"{path}/step", f"{path}/value", f"{path}/name"}.issubset(datasets)
            if absent or any(bad[p] is None for p in datasets) or any(bad[p] for p in datasets if p not in growing):
                self._lose_all(path, f"all rows are lost{self._size(path)}")
                return False
            rows = _joined([gap for p in growing for gap in bad[p] or ()])
            total = self._walked.answers["dataset", f"{path}/step"]["shape"][0]
            if rows and rows == [(0, total)]:
                self._lose_all(path, f"all {total:,} rows are lost")
                return False
            for gap in rows:
                text, step = self._told(path, gap, total)
                self._lose(path, text, step)
        elif bad and any(gaps is None or gaps for gaps in bad.values()):
            named = ", ".join(p.rpartition("/")[2] for p, gaps in bad.items() if gaps is None or gaps)
            if len(parts) - 1 == _WHOLE.get(parts[0] if parts else "", -1):
                self._lose(path, f"lost: its {named} {'is' if ',' not in named else 'are'} damaged")
                return False
            self._lose(path, f"{named} lost")
        whole = [p for p in datasets if bad[p] is not None and (rows is not None or not bad[p])]
        for p in whole:
            self._dataset(p, rows if rows is not None and p.rpartition("/")[2] != "name" else [])
        for p in whole:
            self._attach(path, p, whole)
        return True

    def _gaps(self, path: str) -> list[tuple[int, int]] | None:
        """Return the rows of a dataset that are lost, as ranges; None where nothing can be told of it."""
        about = self._walked.answers.get(("dataset", path))
        if about is None:
            return None
        if not about["stored"]:
            return []
        missing = [key for key in pieces(path, about) if key not in self._walked.digests]
        return _joined([(start, stop if stop >= 0 else 1) for _, _, start, stop in missing])

    def _dataset(self, path: str, without: Sequence[tuple[int, int]]) -> None:
        about = self._walked.answers["dataset", path]
        shape = list(about["shape"])
        gone = sum(stop - start for start, stop in without)
        if gone:
            shape[0] -= gone
        kind = h5py.string_dtype() if about["text"] else np.dtype(about["dtype"])
        more: dict[str, Any] = {}
        if about["growing"]:
            more = {
                "maxshape": (None, *shape[1:]),
                "chunks": (about["chunk"], *shape[1:]),
            }
        made: Any = self._file.create_dataset(path, shape=tuple(shape), dtype=kind, **more)
        if about["scale"] is not None:
            made.make_scale(about["scale"])
        made.attrs.update({k: attribute_of(v) for k, v in about["attributes"].items()})
        row = 0
        for key in pieces(path, about) if about["stored"] else ():
            start, stop = key[2:]
            keep = _outside(start, stop, without) if stop >= 0 else None
            if keep is not None and not keep.any():
                continue
            data = self._data(key, about)
            if keep is None:
                made[()] = data
            else:
                made[row : row + int(keep.sum())] = data[keep]
                row += int(keep.sum())

    def _data(self, key: Key, about: Mapping[str, Any]) -> Any:
        answered = self._reader.ask(key)
        if answered is None or digest(*answered) != self._walked.digests[key]:
            raise ArchiveError(f"{key[1]} was read once and not again: the copy changed meanwhile; try again")
        start, stop = key[2:]
        shape = about["shape"] if stop < 0 else [stop - start, *about["shape"][1:]]
        if about["text"]:
            return np.array(json.loads(answered[1]), dtype=object).reshape(shape)
        return np.frombuffer(answered[1], about["dtype"]).reshape(shape)

    def _attach(self, group: str, path: str, there: Sequence[str]) -> None:
        for axis, name in enumerate(self._walked.answers["dataset", path]["dims"]):
            if name is not None and f"{group.rstrip('/')}/{name}" in there:
                made: Any = self._file[path]
                made.dims[axis].attach_scale(self._file[f"{group.rstrip('/')}/{name}"])

    def _size(self, path: str) -> str:
        for name in ("step", "value"):
            about = self._walked.answers.get(("dataset", f"{path}/{name}"))
            if about is not None:
                return f" ({counted(about['shape'][0], 'row')})"
        return ""

    def _told(self, path: str, gap: tuple[int, int], total: int) -> tuple[str, int]:
        """Return which rows are gone, with their steps where those are known, and the first of them or 0."""
        start, stop = gap
        text = f"rows {start:,} to {stop - 1:,} of {total:,} are lost"
        about = self._walked.answers["dataset", f"{path}/step"]
        found: list[int] = []
        for key in pieces(f"{path}/step", about):
            if key in self._walked.digests and key[2] < stop and start < key[3]:
                steps = self._data(key, about)
                found += steps[max(0, start - key[2]) : stop - key[2]].tolist()
        if len(found) == stop - start:
            return f"{text}: steps {min(found):,} to {max(found):,}", min(found)
        return text, 0

    def _lose_all(self, path: str, what: str) -> None:
        """Say that a group is lost as a whole, in place of what was said of parts of it."""
        said = [line for line in self.lost.lines if line.startswith(f"{path.strip('/')}: ")]
        self.lost.lines = [line for line in self.lost.lines if line not in said]
        told = {lost_by_damage(line) for line in said}
        self.lost.events = [event for event in self.lost.events if event.message not in told]
        self._lose(path, what)

    def _lose(self, path: str, what: str, step: int = 0) -> None:
        line = f"{path.strip('/') or 'the archive'}: {what}"
        self.lost.lines.append(line)
        if path.strip("/").partition("/")[0] in (STEPS, EPOCHS, EVENTS, PROBES):
            self.lost.events.append(Event(step, "lost_rows", lost_by_damage(line)))


def _result(group: Any) -> None:
    rebuild(str(unpack(group.attrs)["kind"]), read_variables(group), read_attributes(group)[0])


def _rows(group: Any) -> None:
    steps, values, names = group["step"], group["value"], group["name"].asstr()[()]
    if values.shape != (len(steps), len(names)):
        raise ValueError(f"{values.shape} values of {len(steps)} steps and {len(names)} names")


#: Reads what lies in a group of the root as who opens the archive will, or raises.
_READ: dict[str, Callable[[Any], object]] = {
    RESULTS: _result, PROBES: _result, EVENTS: stored_events, STEPS: _rows, EPOCHS: _rows,
}  # fmt: skip


def _understood(read: Callable[[Any], object], given: Any) -> bool:
    try:
        read(given)
    except Exception:  # of damaged bytes that HDF5 can read, a reader raises nearly anything
        return False
    return True


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def _outside(start: int, stop: int, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    keep = np.ones(stop - start, bool)
    for a, b in ranges:
        keep[max(0, a - start) : max(0, b - start)] = False
    return keep
