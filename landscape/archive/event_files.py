"""Archives as TensorBoard event files: a scalar for each column of a training's record, and for each result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArchiveError
from .convert import archive_exporter, whole_file
from .history import History, Series
from .reader import Archive
from .tables import long_table

_OPTIONS = {"points": "points of a curve at most, evenly spaced rows of it (default 10000); TensorBoard shows 1000"}
_MOST_POINTS = 10_000


@archive_exporter("tensorboard", "", _OPTIONS)
def write_event_file(archive: Archive, out: Path, *, force: bool, checkpoint: str | None, points: Any = None) -> None:
    """A folder with an event file for TensorBoard: `quantity/column` by step; needs tensorboard.

    Values are float32, as torch's own writer stores them; what was not recorded is left out. The times of a curve are
    those of the training.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise ArchiveError("event files need tensorboard: pip install 'landscape-probe[tensorboard]'") from None
    most = _points(points)
    created = _created(archive)
    began = archive.path.stat().st_mtime if created is None else created
    if out.exists() and not out.is_dir():
        raise ArchiveError(f"{out} is a file, expected a folder for TensorBoard, such as runs/a")
    out.mkdir(parents=True, exist_ok=True)
    # The same run has the same file, whenever it is written: it takes the place of the first one.
    run = str(archive.attributes.get("run_id", archive.path.stem))[:16]
    name = f"events.out.tfevents.{int(created or 0)}.landscape.{run}"
    with whole_file(out / name, force=force) as path, open(path, "wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
        for at, step, tag, value in _scalars(archive, began, most, checkpoint):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.write(Event(wall_time=at, step=step, summary=summary).SerializeToString())
        writer.flush()


def _scalars(
    archive: Archive, began: float, most: int, checkpoint: str | None
) -> Iterator[tuple[float, int, str, float]]:
    history = archive.history
    clock = _clock(history)
    for name in history.names:
        for series in _thinned(history, name, most):
            times = began + clock(series.steps)
            for column, tag in enumerate(series.names):
                label = f"{name}/{tag}" if tag != name or len(series.names) > 1 else name
                for at, step, value in zip(times, series.steps, series.values[:, column], strict=True):
                    if not math.isnan(value):
                        yield float(at), int(step), label, float(value)
    if not archive.entries:
        return
    for piece in long_table(archive, checkpoint=checkpoint).pieces():
        for i, source in enumerate(piece["source"]):
            if source != "result" or math.isnan(piece["value"][i]):
                continue
            tag = f"results/{piece['quantity'][i].replace('.', '/', 1)}"
            tag += f"/{piece['name'][i]}" if piece["name"][i] else ""
            yield began, max(int(piece["step"][i]), 0), tag, float(piece["value"][i])


def _thinned(history: History, name: str, most: int) -> Iterator[Series]:
    """Yield evenly spaced rows of a quantity, at most so many, the last one among them."""
    count = sum(len(s.steps) for s in history.pieces(name))
    every = -(-count // most) if count else 1
    seen = 0
    for s in history.pieces(name):
        rows = np.arange(seen, seen + len(s.steps))
        kept = ((count - 1 - rows) % every == 0).nonzero()[0]
        seen += len(rows)
        yield Series(s.names, s.steps[kept], s.values[kept], s.superseded[kept], s.name, s.units, s.doc, s.axis)


def _clock(history: History) -> Any:
    """Return a function from steps (n,) to seconds since the run began."""
    found = history.get("time")
    if found is None or "elapsed" not in found.names or not len(found.steps):
        return lambda steps: np.zeros(len(steps))
    standing = found.current()
    return lambda steps: np.interp(steps, standing.steps, standing.column("elapsed"))


def _points(value: Any) -> int:
    if value is None:
        return _MOST_POINTS
    try:
        if int(value) > 0:
            return int(value)
    except ValueError:
        pass
    raise ArchiveError(f"points={value} is no number of points; give an integer above 0, such as points=10000")


def _created(archive: Archive) -> float | None:
    try:
        return datetime.fromisoformat(str(archive.attributes["created"])).timestamp()
    except (KeyError, ValueError):
        return None
