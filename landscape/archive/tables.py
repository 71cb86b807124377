"""An archive as tables: a training's record, one table for each quantity or all in one, and the numbers of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ArchiveError
from .history import History, Series
from .reader import Archive, Entry

#: A piece of a table: its columns by name, all of one length.
Piece = Mapping[str, np.ndarray | list[Any]]
#: Arrays of results up to this length are written out entry by entry; longer ones are pictures, not numbers (by us).
_MOST_ENTRIES = 1000
#: Columns of the table that holds everything, in order, and which of them are text.
LONG = (
    "source", "checkpoint", "step", "epoch", "quantity", "name", "value", "stderr", "low", "high", "units"
)  # fmt: skip
TEXT = ("source", "checkpoint", "quantity", "name", "units", "kind", "message")
WHOLE = ("step", "epoch", "superseded")


@dataclass(frozen=True)
class Table:
    """A table whose rows come in pieces: `columns` by name, what `units` they have, and `pieces()` of them."""

    name: str
    columns: tuple[str, ...]
    pieces: Callable[[], Iterator[Piece]]
    about: Mapping[str, str] = field(default_factory=dict)


def tables(archive: Archive, *, superseded: bool = False, checkpoint: str | None = None) -> list[Table]:
    """Return a table for each quantity (step, epoch, then its columns), `events`, and `results`.

    `epoch` is how many epochs had ended at that step. Rows that a resumed run has overtaken are left out, or come with
    a column `superseded`. Raises ArchiveError where the archive holds neither rows nor results.
    """
    history = archive.history
    found = [_quantity(history, name, superseded) for name in history.names]
    if history.events:
        found.append(_events(history, superseded))
    entries = _entries(archive, checkpoint)
    if entries:
        columns = tuple(c for c in LONG if c != "source")
        found.append(Table("results", columns, lambda: _without(_results(entries), "source")))
    if not found:
        raise ArchiveError(f"{archive.path} holds neither a training's record nor results: there is nothing to write")
    return found


def long_table(archive: Archive, *, checkpoint: str | None = None) -> Table:
    """Return everything as one table with a row for each number: see `LONG` for its columns.

    `source` is "training" or "result"; what was not recorded has no row.
    """
    history, entries = archive.history, _entries(archive, checkpoint)
    if not history and not entries:
        raise ArchiveError(f"{archive.path} holds neither a training's record nor results: there is nothing to write")

    def pieces() -> Iterator[Piece]:
        for name in history.names:
            for series in _series(history, name, False):
                yield _melted(history, series)
        yield from _results(entries)

    return Table("all", LONG, pieces)


def epochs_at(history: History) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that tells how many epochs had ended at each of some steps (n,)."""
    ended = history.get("epoch")
    if ended is None or not len(ended.steps):
        return lambda steps: np.zeros(len(steps), np.int64)
    standing = ended.current()
    numbers = np.concatenate([[0], standing.values[:, 0]]).astype(np.int64)
    return lambda steps: numbers[np.searchsorted(standing.steps, steps, side="right")]


def _quantity(history: History, name: str, superseded: bool) -> Table:
    first = history[name] if superseded else next(history.pieces(name, 1), history[name])
    marks = ("superseded",) if superseded else ()
    epochs = epochs_at(history)
    taken = {n: f"{n}_" if n in WHOLE else n for n in first.names}

    def pieces() -> Iterator[Piece]:
        for series in _series(history, name, superseded):
            own = {taken[n]: series.values[:, i] for i, n in enumerate(series.names)}
            late = {"superseded": series.superseded.astype(np.int64)} if superseded else {}
            yield {"step": series.steps, "epoch": epochs(series.steps), **late, **own}

    about = {"units": first.units, "long_name": first.doc}
    return Table(name, ("step", "epoch", *marks, *taken.values()), pieces, about)


def _series(history: History, name: str, superseded: bool) -> Iterator[Series]:
    if superseded:
        yield history[name]
    else:
        yield from history.pieces(name)


def _events(history: History, superseded: bool) -> Table:
    events = [e for e in history.events if superseded or not e.superseded]
    columns = ("step", "kind", "message", "seconds")
    return Table("events", columns, lambda: iter([{c: [getattr(e, c) for e in events] for c in columns}]))


def _melted(history: History, series: Series) -> Piece:
    """Return rows of a quantity as one row for each number that was recorded."""
    rows, columns = np.nonzero(~np.isnan(series.values))
    steps, names = series.steps[rows], np.array(series.names, dtype=object)
    empty = np.full(len(rows), np.nan)
    own = {"step": steps, "epoch": epochs_at(history)(steps), "name": names[columns].tolist()}
    text = {"source": "training", "checkpoint": "", "quantity": series.name, "units": series.units}
    same = {k: [v] * len(rows) for k, v in text.items()}
    found = {**own, **same, "value": series.values[rows, columns], "stderr": empty, "low": empty, "high": empty}
    return {name: found[name] for name in LONG}


def _entries(archive: Archive, checkpoint: str | None) -> Sequence[Entry]:
    if checkpoint is None:
        return archive.entries
    found = archive.select(subject=checkpoint)
    if not found:
        labels = ", ".join(dict.fromkeys(s.label for s in archive.subjects))
        raise ArchiveError(f"{archive.path} holds no checkpoint {checkpoint!r}; it has {labels}")
    return found


def _results(entries: Sequence[Entry]) -> Iterator[Piece]:
    for entry in entries:
        rows = [
            {
                "source": "result",
                "checkpoint": entry.subject.label,
                "step": -1 if entry.subject.step is None else entry.subject.step,
                "epoch": -1 if entry.subject.epoch is None else entry.subject.epoch,
                "quantity": f"{entry.kind}.{name}",
                **number,
            }
            for name, number in _numbers(entry)
        ]
        if rows:
            yield {c: [row[c] for row in rows] for c in LONG}


def _numbers(entry: Entry) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (variable, its name of the entry, value, stderr, low, high, units) of numbers and short rows of them."""
    variables = entry.result.variables()
    beside = {v.stderr for v in variables.values()} | {v.interval for v in variables.values()}
    for name, variable in variables.items():
        data = variable.data
        if name in beside or data.ndim > 1 or data.size > _MOST_ENTRIES or data.dtype.kind not in "iufb":
            continue
        stderr, interval = variables.get(variable.stderr or ""), variables.get(variable.interval or "")
        for place in np.ndindex(data.shape):
            low, high = np.nan, np.nan
            if interval is not None and interval.data.shape == (*data.shape, 2):
                low, high = (float(b) for b in interval.data[place])
            error = float(stderr.data[place]) if stderr is not None and stderr.data.shape == data.shape else np.nan
            label = str(place[0]) if place else ""
            yield name, {
                "name": label, "value": float(data[place]), "stderr": error, "low": low, "high": high,
                "units": variable.units,
            }  # fmt: skip


def _without(pieces: Iterator[Piece], column: str) -> Iterator[Piece]:
    for piece in pieces:
        yield {name: values for name, values in piece.items() if name != column}
