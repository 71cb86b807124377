"""Read the record of a training, wherever it lies, as one `History`.

It lies in the archive once the run has ended, in segments beside it while the run goes on or after it was killed, and
in both after a run was resumed. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import ArchiveError, DamagedError
from .groups import read_attributes
from .history import Event, History, Lazily, Probed, Series
from .schema import COMPACTED, EPOCHS, EVENTS, PROBES, STEPS, unpack
from .seal import check_data, cure, opened
from .segments import kept_until, live_folder, overtaken_at, read_live, segment_paths

#: Of the live folder: Results of probes, one small archive each, until the run ends.
LIVE_RESULTS = "results"
#: How often an archive is read anew that its run finishes at this very moment.
_TRIES = 5


def read_history(path: str | os.PathLike[str], *, rows: bool = True) -> History:
    """Return the record of the training that wrote the archive at `path`, of what lies beside it too.

    Empty where there is none. With `rows=False` without the quantities, in little memory, of a run that nobody writes
    any more. Raises ArchiveError where a segment is no segment, or a group is damaged.
    """
    path = Path(path)
    for left in reversed(range(_TRIES)):
        before = _identity(path)
        try:
            found = _read(path, rows)
        except ArchiveError:
            if not left or _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return found
        # The run has ended meanwhile, and its rows went from the folder into the archive: read that.
    raise ArchiveError(f"{path} was replaced {_TRIES} times while it was read; try again")


def read_stored(path: str | os.PathLike[str]) -> History:
    """Return the record that the archive itself holds, without what lies beside it."""
    return _stored(Path(path))[0]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(path: Path, rows: bool) -> History:
    stored, compacted = _stored(path) if path.exists() else (History(), frozenset())
    folder = live_folder(path)
    if not segment_paths(folder):
        return stored
    live, facts = _live(folder, compacted, rows)
    if live is None:
        return stored
    if rows:
        # Now, not when they are asked for: by then the archive may hold the segments' rows, too.
        stored = replace(stored, quantities=dict(stored.quantities))
    return _joined(stored, live, facts)


def _stored(path: Path) -> tuple[History, frozenset[str]]:
    readers: dict[str, Callable[[], Series]] = {}
    cutters: dict[str, Callable[[int], Iterator[Series]]] = {}
    events: tuple[Event, ...] = ()
    probed = {}
    try:
        with opened(path) as file:
            compacted = frozenset(str(name) for name in unpack(file.attrs).get(COMPACTED, ()))
            for axis, parent in (("step", STEPS), ("epoch", EPOCHS)):
                for name, _ in _groups(file.get(parent)):
                    readers[name] = partial(_series, path, f"{parent}/{name}", name, axis)
                    cutters[name] = partial(_cut_file, path, f"{parent}/{name}", name, axis)
            if isinstance(group := file.get(EVENTS), h5py.Group):
                events = stored_events(group)
            for name, groups in _groups(file.get(PROBES)):
                probed[name] = tuple(_probed(name, step, group, path) for step, group in _groups(groups))
    except ArchiveError:
        raise
    except Exception as error:  # of a damaged file, HDF5 raises nearly anything
        raise DamagedError(f"the training's record in {path} is damaged: {error}; {cure(path)}") from error
    return History(Lazily(readers, cutters), events, probed), compacted


def _cut_file(path: Path, where: str, name: str, axis: str, rows: int) -> Iterator[Series]:
    """Yield the rows that stand from the archive itself; one piece is in memory at a time."""
    start, total = 0, 1
    while start < total:
        series, total = _part(path, where, name, axis, slice(start, start + rows))
        start += rows
        if len(series.steps):
            keep = ~series.superseded
            yield replace(
                series, steps=series.steps[keep], values=series.values[keep], superseded=series.superseded[keep]
            )


def _series(path: Path, where: str, name: str, axis: str) -> Series:
    return _part(path, where, name, axis, slice(None))[0]


def _part(path: Path, where: str, name: str, axis: str, part: slice) -> tuple[Series, int]:
    """Return some rows of a quantity, and how many there are in all."""
    try:
        with opened(path) as file:
            group: Any = file[where]
            facts = unpack(group.attrs)
            for held in ("step", "value", "superseded"):
                if held in group:
                    check_data(group[held], part)
            steps = np.asarray(group["step"][part])
            overtaken = group.get("superseded")
            series = Series(
                tuple(str(n) for n in group["name"].asstr()[()]),
                steps,
                np.asarray(group["value"][part]),
                np.zeros(len(steps), dtype=bool) if overtaken is None else np.asarray(overtaken[part]).astype(bool),
                name,
                str(facts.get("units", "")),
                str(facts.get("long_name", "")),
                axis,
            )
            return series, len(group["step"])
    except ArchiveError:
        raise
    except Exception as error:  # of a damaged group, HDF5 raises nearly anything
        raise DamagedError(f"{where} of {path} cannot be read: {error}; {cure(path)}") from error


def stored_events(group: Any) -> tuple[Event, ...]:
    """Return the events that a group of an archive holds."""
    rows = zip(
        group["step"][()].tolist(),
        group["kind"].asstr()[()],
        group["message"].asstr()[()],
        group["seconds"][()].tolist(),
        group["superseded"][()].astype(bool).tolist(),
        strict=True,
    )
    return tuple(Event(step, str(kind), str(message), *rest) for step, kind, message, *rest in rows)


def _probed(probe: str, name: str, group: h5py.Group, path: Path) -> Probed:
    about = unpack(group.attrs)
    _, subject = read_attributes(group)
    step = int(subject.step if subject.step is not None else name.partition("-")[0])
    superseded = bool(about.get("superseded", 0))
    return Probed(probe, step, subject.epoch, str(about.get("kind", "")), path, str(group.name), superseded)


def _live(folder: Path, compacted: Collection[str], rows: bool) -> tuple[History | None, tuple[Mapping[str, Any], ...]]:
    """Return what the segments hold that the archive doesn't (None: nothing), and what their headers say."""
    found, segments = read_live(folder, compacted, rows=rows)
    if not segments:
        return None, ()
    described: dict[str, Any] = {}
    for segment in segments:
        described |= segment.facts.get("quantities", {})
    quantities = {}
    for name, r in found.items():
        about = described.get(name, {})
        units, doc, axis = (str(about.get(k, d)) for k, d in (("units", ""), ("doc", ""), ("axis", "step")))
        quantities[name] = Series(r.names, r.steps, r.values, r.superseded, name, units, doc, axis)
    sessions = [
        (s.facts.get("session", 0), kept_until(s.facts["resumed_at"])) for s in segments if "resumed_at" in s.facts
    ]
    events = []
    for i, segment in enumerate(segments):
        overtaken = overtaken_at([later.facts for later in segments[i + 1 :]])
        for e in segment.events:
            events.append(event_of(e, superseded=_late(e["step"], overtaken)))
    probed: dict[str, list[Probed]] = {}
    for file in live_results(folder, compacted):
        results = _live_results(file, sessions)
        if results:
            probed.setdefault(file.parent.name, []).extend(results)
    torn = sum(s.torn for s in segments)
    history = History(quantities, tuple(events), {n: tuple(p) for n, p in probed.items()}, torn)
    return history, tuple(s.facts for s in segments)


def event_of(found: Mapping[str, Any], *, superseded: bool = False) -> Event:
    """Return an event as a segment holds it."""
    seconds = found.get("seconds")
    return Event(
        found["step"],
        found["kind"],
        str(found.get("message", "")),
        float(seconds) if isinstance(seconds, int | float) else float("nan"),
        superseded,
    )


def live_results(folder: Path, without: Collection[str] = ()) -> list[Path]:
    """Return the files of a live folder in which Results of probes lie, by probe and step; see `result_name`."""
    return [p for p in sorted((folder / LIVE_RESULTS).glob("*/*.h5")) if result_name(p) not in without]


def result_name(path: Path) -> str:
    """Return how a file of Results is called among what an archive holds already."""
    return f"{LIVE_RESULTS}/{path.parent.name}/{path.name}"


def _live_results(path: Path, sessions: Iterable[tuple[int, int]]) -> list[Probed]:
    """Return the Results of one file, `<step>-<session>-<number>.h5`; a later session that began before it counts."""
    found = []
    _, session, *_ = (*path.stem.split("-"), "")
    own = int(session) if session.isdigit() else 0
    at = min((at for session, at in sessions if session > own), default=None)
    try:
        with opened(path) as file:
            for kind, groups in _groups(file.get("results")):
                for _, group in _groups(groups):
                    _, subject = read_attributes(group)
                    step, name = int(subject.step or 0), str(group.name)
                    found.append(Probed(path.parent.name, step, subject.epoch, kind, path, name, _late(step, at)))
    except Exception:  # one that a kill left half, or that its run is writing: there is nothing in it yet
        return []
    return found


def _joined(stored: History, live: History, facts: Sequence[Mapping[str, Any]]) -> History:
    """Put what was written later behind what the archive holds, which it may have overtaken."""
    at = overtaken_at(facts)
    names = dict.fromkeys((*stored.quantities, *live.quantities))
    quantities = Lazily(
        {name: partial(_one, name, stored.quantities, live.quantities, overtaken_at(facts, name)) for name in names}
    )
    events = tuple(replace(e, superseded=e.superseded or _late(e.step, at)) for e in stored.events)
    probed = {
        n: tuple(replace(p, superseded=p.superseded or _late(p.step, at)) for p in found)
        for n, found in stored.probed.items()
    }
    for name, found in live.probed.items():
        probed[name] = (*probed.get(name, ()), *found)
    return History(quantities, (*events, *live.events), probed, live.torn)


def _one(name: str, stored: Mapping[str, Series], live: Mapping[str, Series], at: int | None) -> Series:
    if name not in stored:
        return live[name]
    old = stored[name] if at is None else _overtaken(stored[name], at)
    return _behind(old, live[name]) if name in live else old


def _late(step: int, at: int | None) -> bool:
    return at is not None and step > at


def _overtaken(series: Series, at: int) -> Series:
    return replace(series, superseded=series.superseded | (series.steps > at))


def _behind(old: Series, new: Series) -> Series:
    names = tuple(dict.fromkeys((*old.names, *new.names)))
    return Series(
        names,
        np.concatenate([old.steps, new.steps]),
        np.concatenate([_widened(old, names), _widened(new, names)]),
        np.concatenate([old.superseded, new.superseded]),
        new.name,
        new.units or old.units,
        new.doc or old.doc,
        new.axis,
    )


def _widened(series: Series, names: tuple[str, ...]) -> np.ndarray:
    if series.names == names:
        return series.values
    values = np.full((len(series.steps), len(names)), np.nan)
    values[:, [names.index(n) for n in series.names]] = series.values
    return values


def _groups(parent: Any) -> Iterable[tuple[str, h5py.Group]]:
    if isinstance(parent, h5py.Group):
        for name, item in parent.items():
            if isinstance(item, h5py.Group):
                yield name, item
