"""Begin the archive of a run, and put the run's rows into it at the end: `begin_run`, `compact`, `repair`.

The rows go from mapped segments into the file a megabyte at a time, so that memory stays bounded however long the run
was. Room for them is taken before HDF5 writes: a full disk inside the library would end the process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import ArchiveError
from .atomic import Partial, reserve
from .damage import damage
from .groups import PLAIN_DIMENSION, encode, write_group
from .history import Event, Probed
from .joining import live_results, read_history, result_name
from .reader import open_archive
from .schema import (
    COMPACTED,
    EPOCHS,
    EVENTS,
    FORMAT,
    FORMAT_VERSION,
    PROBES,
    RUN,
    STEPS,
    Subject,
    pack,
    storable,
    unpack,
)
from .seal import check, damaged, seal, sealed
from .segments import SUFFIX, Opened, Unfinished, hold, live_folder, overtaken_at, segment_paths
from .survey import readable

#: Beside the archive: what could not be read when a run was put into it.
DAMAGED = ".damaged"
#: Bytes of a chunk of rows (chosen by us: HDF5's own chunk cache holds one).
_CHUNK = 1 << 20


def begin_run(
    path: str | os.PathLike[str],
    *,
    run: Mapping[str, Any],
    attributes: Mapping[str, Any],
    force: bool = False,
    beside: bool = False,
) -> Path:
    """Write the archive of a run that begins now: its settings, status "running", no rows. Returns its full path.

    Raises ArchiveError where the file exists (`force` replaces it, and the rows beside it), or can't be written.
    `beside` leaves rows that lie there without their archive, which somebody removed, to it.
    """
    path = Path(os.path.realpath(path))
    folder = live_folder(path)
    if not path.parent.is_dir():
        raise ArchiveError(f"the folder {path.parent} does not exist; create it, or write somewhere else")
    rows = [] if beside or not segment_paths(folder) else [folder]
    held = [*([path] if path.exists() else []), *rows]
    if held and not force:
        raise ArchiveError(
            f"{held[0]} exists; pass resume=True to go on with that run, force=True to replace it, or choose another "
            "path"
        )
    root = {"format": FORMAT, "format_version": FORMAT_VERSION, **attributes, "status": "running"}
    name = f"{path}.{uuid.uuid4().hex}"
    with h5py.File(name, "w", driver="core", backing_store=False, track_order=True, locking=False) as image:
        image.attrs.update(pack(root))
        image.create_group(RUN, track_order=True).attrs.update(pack(run))
        image.flush()
        content = image.id.get_file_image()
    try:
        partial = Partial(path)
        try:
            partial.write(sealed(content))
            if force and folder.exists():
                shutil.rmtree(folder)
            partial.publish(partial.path)
        finally:
            partial.release()
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


@dataclass(frozen=True)
class Compacted:
    """What went from segments into an archive: `rows` by quantity, events, Results of probes.

    `torn` bytes were left by a kill behind the last whole block, and are nothing; `damaged` are files that could not be
    read to their end, kept beside the archive. `leftovers` says that the archive held everything already.
    """

    path: Path
    status: str
    rows: Mapping[str, int]
    events: int = 0
    results: int = 0
    torn: int = 0
    damaged: tuple[Path, ...] = ()
    leftovers: bool = False


def compact(path: str | os.PathLike[str], status: str, **facts: Any) -> Path:
    """Do as `gather` does, and return the archive's path."""
    return gather(path, status, **facts).path


def gather(path: str | os.PathLike[str], status: str, **facts: Any) -> Compacted:
    """Put what a run left in segments into its archive, and remove the segments.

    The archive appears whole or not at all, with this status and `facts` among its root attributes; where it can't be
    written the segments stay, and are read as before. Killed at any moment, it leaves the segments, the archive, or
    both, which readers tell apart. Memory is a few megabytes, whatever the run's length; the disk holds the rows twice
    for a moment. Raises ArchiveError where there are no segments, or the disk is full.
    """
    path = Path(os.path.realpath(path))
    folder = live_folder(path)
    partial = None
    try:
        partial = Partial(path)
        done = _compact(path, folder, partial, status, facts)
    except (OSError, RuntimeError) as error:  # h5py's, where the HDF5 library has no errno to give
        reason = getattr(error, "strerror", None) or str(error)
        raise ArchiveError(
            f"{path} could not be written: {reason}; every row is in {folder}, and is read from there: make room, then "
            f"landscape repair {path}"
        ) from error
    finally:
        if partial is not None:
            partial.discard()
    shutil.rmtree(folder, ignore_errors=True)
    return done


def _compact(path: Path, folder: Path, partial: Partial, status: str, facts: Mapping[str, Any]) -> Compacted:
    if not segment_paths(folder):
        raise ArchiveError(f"{folder} holds no rows of a run ({SUFFIX} files)")
    check(path, everything=True)  # what is copied gets a seal of its own
    with h5py.File(path, "r", locking=False) as file:
        held = unpack(file.attrs)
    before = set(held.get(COMPACTED, ()))
    opened = _opened(folder)
    segments = [s for s in opened if s.id not in before or not s.id]
    if opened and not segments:
        return Compacted(path, str(held.get("status", "")), {}, leftovers=True)
    history = read_history(path, rows=False)
    probed = [p for found in history.probed.values() for p in found]
    results = live_results(folder, before)
    plans = _plans(segments)
    room = sum(plan.bytes for plan in plans) + 2 * sum(f.stat().st_size for f in results)
    about = {
        "status": status,
        "modified": datetime.now(UTC).isoformat(timespec="seconds"),
        "sessions": 1 + max((int(s.facts.get("session", 0)) for s in segments), default=0),
        COMPACTED: [*(s.id for s in opened), *map(result_name, live_results(folder))],
        **facts,
    }
    written, unread = 0, []
    aside = partial.aside
    try:
        shutil.copyfile(path, aside)
        # And for HDF5's own bookkeeping: a chunk that isn't filled for each dataset, its index, the groups.
        reserve(aside, room + len(plans) * (3 * _CHUNK) + (1 << 20))
        with h5py.File(aside, "r+", locking=False) as file:
            for plan in plans:
                _write_rows(file, plan, segments)
            _mark_overtaken(file, plans, segments)
            write_events(file, history.events)
            for p in probed:
                if p.file == path:
                    _mark_probed(file, p)
                elif _write_probed(file, p):
                    written += 1
                else:
                    unread.append(p.file)
            file.attrs.update(pack({**unpack(file.attrs), **about}))
        seal(aside)
        unread += [f for f in results if f not in {p.file for p in probed}]
        kept = _keep(path, [*unread, *(s.path for s in segments if s.damaged)])
        partial.publish(aside)
    finally:
        aside.unlink(missing_ok=True)
    return Compacted(
        path,
        status,
        {plan.name: plan.rows for plan in plans},
        sum(len(s.events) for s in segments),
        written,
        sum(s.torn for s in segments),
        kept,
    )


def _opened(folder: Path) -> list[Opened]:
    found = []
    for path in segment_paths(folder):
        with contextlib.suppress(Unfinished):
            found.append(Opened.mapped(path))
    return found


def _keep(path: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """Link files that could not be read to their end into a folder beside the archive: nothing is thrown away."""
    kept = []
    for file in dict.fromkeys(files):
        target = Path(f"{path}{DAMAGED}") / f"{uuid.uuid4().hex[:8]}-{file.parent.name}-{file.name}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
        kept.append(target)
    return tuple(kept)


def set_status(path: str | os.PathLike[str], status: str) -> None:
    """Change the status of an archive, which is written anew and renamed. Raises ArchiveError where that fails."""
    path = Path(os.path.realpath(path))
    try:
        partial = Partial(path)
        try:
            check(path, everything=True)
            shutil.copyfile(path, partial.aside)
            reserve(partial.aside, 1 << 16)
            with h5py.File(partial.aside, "r+", locking=False) as file:
                file.attrs.update(pack({**unpack(file.attrs), "status": status}))
            seal(partial.aside)
            partial.publish(partial.aside)
        finally:
            partial.aside.unlink(missing_ok=True)
            partial.discard()
    except (OSError, RuntimeError) as error:
        raise ArchiveError(f"{path} could not be written: {error}") from error


# ------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Plan:
    """One quantity as it shall be written: its columns over all segments, and how many rows there are."""

    name: str
    columns: tuple[str, ...]
    rows: int
    about: Mapping[str, Any]

    @property
    def group(self) -> str:
        return f"{EPOCHS if self.about.get('axis') == 'epoch' else STEPS}/{self.name}"

    @property
    def bytes(self) -> int:
        names = sum(len(c.encode()) + 32 for c in self.columns)
        return self.rows * 8 * (len(self.columns) + 2) + names


def _plans(segments: Sequence[Opened]) -> list[_Plan]:
    about: dict[str, Any] = {}
    columns: dict[str, dict[str, None]] = {}
    rows: dict[str, int] = {}
    for segment in segments:
        about |= segment.facts.get("quantities", {})
        for quantity, names in segment.columns.items():
            columns.setdefault(quantity, {}).update(dict.fromkeys(names))
            rows[quantity] = rows.get(quantity, 0) + segment.count(quantity)
    return [_Plan(q, tuple(names), rows[q], about.get(q, {})) for q, names in columns.items() if rows.get(q)]


def _write_rows(file: h5py.File, plan: _Plan, segments: Sequence[Opened]) -> None:
    group: Any = file.require_group(plan.group)
    known = tuple(str(n) for n in group["name"].asstr()[()]) if "name" in group else ()
    names = tuple(dict.fromkeys((*known, *plan.columns)))
    if known != names:
        _widen(group, names, plan.rows)
    facts = {"units": plan.about.get("units", ""), "long_name": storable(str(plan.about.get("doc", "")))}
    group.attrs.update({k: v for k, v in facts.items() if v})
    row = len(group["step"])
    total = row + plan.rows
    for name in ("step", "value", *(["superseded"] if "superseded" in group else [])):
        group[name].resize(total, axis=0)
    for steps, values in _gathered(plan, segments, names):
        group["step"][row : row + len(steps)] = steps
        group["value"][row : row + len(steps)] = values
        row += len(steps)


def _gathered(
    plan: _Plan, segments: Sequence[Opened], names: tuple[str, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows in the order of writing, a chunk's worth at a time: blocks are as small as a flush left them."""
    most = _chunk_rows(len(names))
    held: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for segment in segments:
        if plan.name not in segment.columns:
            continue
        own = segment.columns[plan.name]
        places = None if own == names else [names.index(n) for n in own]
        for steps, values in segment.rows(plan.name):
            if places is not None:
                wide = np.full((len(steps), len(names)), np.nan)
                wide[:, places] = values
                values = wide
            held.append((steps, values))
            count += len(steps)
            if count >= most:
                yield _together(held)
                held, count = [], 0
    if held:
        yield _together(held)


def _together(held: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([s for s, _ in held]), np.concatenate([v for _, v in held])


def _chunk_rows(columns: int, rows: int = _CHUNK) -> int:
    """Return the rows of a chunk: a megabyte, or all that there are, since chunks are stored whole."""
    return min(max(1, _CHUNK // (8 * max(columns, 1))), max(rows, 16))


def _widen(group: Any, names: tuple[str, ...], more: int) -> None:
    """Make a quantity's datasets, or make them anew with further columns, which are NaN in the rows that there are.

    `more` rows will follow.
    """
    old_steps = group["step"][()] if "step" in group else np.empty(0, np.int64)
    old_values = group["value"][()] if "value" in group else np.empty((0, 0))
    old_names = [str(n) for n in group["name"].asstr()[()]] if "name" in group else []
    overtaken = group["superseded"][()] if "superseded" in group else None
    for name in ("value", "superseded", "step", "name"):
        if name in group:
            del group[name]
    rows = len(old_steps) + more
    steps = old_steps.astype("<i8")
    step = group.create_dataset("step", data=steps, maxshape=(None,), chunks=(_chunk_rows(1, rows),))
    step.make_scale("step")
    step.attrs["long_name"] = "optimizer steps taken"
    text = h5py.string_dtype()
    labels = group.create_dataset("name", data=[storable(n) for n in names], dtype=text)
    labels.make_scale("name")
    wide = np.full((len(old_steps), len(names)), np.nan)
    wide[:, [names.index(n) for n in old_names]] = old_values
    value = group.create_dataset(
        "value", data=wide, maxshape=(None, len(names)), chunks=(_chunk_rows(len(names), rows), len(names))
    )
    value.dims[0].attach_scale(step)
    value.dims[1].attach_scale(labels)
    if overtaken is not None:
        _make_superseded(group, overtaken)


def _make_superseded(group: Any, values: np.ndarray) -> None:
    made = group.create_dataset(
        "superseded", data=values.astype(np.int8), maxshape=(None,), chunks=(_chunk_rows(1, len(values)),)
    )
    made.attrs["long_name"] = "1: a resumed run has gone over this step again"
    made.dims[0].attach_scale(group["step"])


def _mark_overtaken(file: h5py.File, plans: Sequence[_Plan], segments: Sequence[Opened]) -> None:
    """Mark rows that a resumed run has gone over again, those that the archive held before included."""
    if not any("resumed_at" in s.facts for s in segments):
        return
    written = {plan.group: plan for plan in plans}
    for parent in (STEPS, EPOCHS):
        found: Any = file.get(parent) or {}
        for name in found:
            group: Any = file[f"{parent}/{name}"]
            steps = group["step"][()]
            late = group["superseded"][()].astype(bool) if "superseded" in group else np.zeros(len(steps), bool)
            plan = written.get(f"{parent}/{name}")
            row = len(steps) - (plan.rows if plan else 0)
            _mark(late, steps, slice(0, row), str(name), [s.facts for s in segments])
            for i, segment in enumerate(segments if plan else ()):
                count = segment.count(name)
                _mark(late, steps, slice(row, row + count), str(name), [s.facts for s in segments[i + 1 :]])
                row += count
            if late.any() and "superseded" in group:
                group["superseded"][:] = late.astype(np.int8)
            elif late.any():
                _make_superseded(group, late)


def _mark(late: np.ndarray, steps: np.ndarray, part: slice, name: str, later: Sequence[Mapping[str, Any]]) -> None:
    at = overtaken_at(later, name)
    if at is not None:
        late[part] |= steps[part] > at


# ------------------------------------------------------------------------------------------------- events and Results


def write_events(file: h5py.File, events: Sequence[Event]) -> None:
    """Write what happened, in place of what the file holds."""
    if EVENTS in file:
        del file[EVENTS]
    if not events:
        return
    group: Any = file.create_group(EVENTS, track_order=True)
    # A dimension without values of its own: several events may happen at one step.
    scale = group.create_dataset("event", shape=(len(events),), dtype=">f4")
    scale.make_scale(f"{PLAIN_DIMENSION} {len(events):10d}")
    text = h5py.string_dtype()
    columns = {
        "step": np.array([e.step for e in events], dtype=np.int64),
        "seconds": np.array([e.seconds for e in events], dtype=np.float64),
        "superseded": np.array([e.superseded for e in events], dtype=np.int8),
    }
    for name, data in columns.items():
        group.create_dataset(name, data=data)
    for name in ("kind", "message"):
        group.create_dataset(name, data=[storable(getattr(e, name)) for e in events], dtype=text)
    group["seconds"].attrs["units"] = "s"
    for name in (*columns, "kind", "message"):
        group[name].dims[0].attach_scale(scale)


def _mark_probed(file: h5py.File, probed: Probed) -> None:
    """Mark a Result that the archive holds already, where a resumed run has overtaken it."""
    if probed.superseded and probed.group in file:
        file[probed.group].attrs["superseded"] = np.int8(1)


def _write_probed(file: h5py.File, probed: Probed) -> bool:
    """Write a Result that lies in the live folder; False if it can't be read."""
    try:
        encoded = encode(probed.result, Subject(step=probed.step, epoch=probed.epoch))
    except ArchiveError:
        return False
    name = f"{probed.step:08d}"
    groups = file.require_group(f"{PROBES}/{probed.probe}")
    number = sum(1 for n in groups if str(n).partition("-")[0] == name)
    name = f"{name}-{number}" if number else name
    write_group(groups, name, encoded, {"superseded": np.int8(1)} if probed.superseded else {})
    return True


def repair(path: str | os.PathLike[str]) -> Compacted:
    """Finish the archive of a run that was killed: put its rows into it, with the status "interrupted".

    Raises DamagedError where the archive is damaged (`salvage.salvage` helps), ArchiveError where there is nothing to
    repair, or the run goes on.
    """
    _refuse_damaged(Path(path))
    archive = open_archive(path)
    if archive.alive:
        raise ArchiveError(f"{path} is being written by a run that goes on; wait for its end, or stop it")
    folder = live_folder(os.path.realpath(path))
    if not segment_paths(folder):
        if archive.status == "running":  # killed before its first row: there is nothing but the status to mend
            set_status(path, "interrupted")
            return Compacted(Path(os.path.realpath(path)), "interrupted", {})
        raise ArchiveError(f"{path} needs no repair: its status is {archive.status}, and nothing lies beside it")
    try:
        lock = hold(folder)  # nobody shall resume the run meanwhile
    except OSError as error:
        raise ArchiveError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        return gather(path, "interrupted" if archive.status == "running" else archive.status)
    finally:
        if lock is not None:
            os.close(lock)


def _refuse_damaged(path: Path) -> None:
    """Raise DamagedError where any byte is not as it was written, or can't be read where no checksum tells."""
    if not path.is_file() or not path.stat().st_size:
        return
    if check(path, everything=True):
        return
    if not h5py.is_hdf5(path):
        if damage(path).proven:
            raise damaged(path, "its first bytes are")
    elif not readable(path):
        raise damaged(path, "HDF5 cannot read all of it")
