"""What somebody who watches a run wants to see: curves of a few quantities in bounded memory, events, how fast it goes.

A run that goes on is read from its segments as they grow, one that has ended from its archive. No torch.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArchiveError
from .follow import Begun, Follower, Fresh
from .history import Event
from .joining import event_of, read_stored
from .reader import Archive, open_archive
from .schema import COMPACTED
from .segments import kept_until, live_folder, segment_paths

#: Quantities whose curves are kept, and which of their columns: None for the first `MOST_COLUMNS` of them.
FOLLOWED: Mapping[str, tuple[str, ...] | None] = {
    "loss": None,
    "logged": None,
    "gradient_norm": ("global",),
    "gradient_norm_before": ("global",),
    "update": ("ratio",),
    "learning_rate": None,
    "curvature": ("lambda_max", "threshold", "trace"),
    "calibration": None,
    "noise_scale": ("noise_scale",),
    "embedding_rank": None,
    "time": ("elapsed", "recording"),
    "epoch": ("epoch",),
}
MOST_COLUMNS = 8
#: Bins of a curve: several for each dot of a wide terminal. Events that are kept, and rows of `time` for the speed.
_BINS, _EVENTS, _LATEST = 4096, 500, 512
#: Seconds over which the speed is taken, and without a sign of life after which a run counts as killed where the file
#: system has no locks.
_SPEED_SECONDS, _SILENCE = 30.0, 600.0


class Curve:
    """A number over steps in fixed memory: bins of equally many steps, which double when the run outgrows them.

    `points()` returns the bins that hold something: their middle step, mean, least and greatest value. `last` is the
    latest finite value, `bad` how many were not finite.
    """

    def __init__(self) -> None:
        self.last, self.last_step, self.bad = math.nan, -1, 0
        self._width = 1
        self._count = np.zeros(_BINS, np.int64)
        self._sum = np.zeros(_BINS)
        self._low, self._high = np.full(_BINS, np.inf), np.full(_BINS, -np.inf)
        self._steps = np.zeros(_BINS)

    def extend(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Take in rows: steps (n,) of at least 0, values (n,); NaN is what was not recorded."""
        finite = np.isfinite(values) & (steps >= 0)
        self.bad += int(np.isinf(values).sum())
        if not finite.any():
            return
        steps, values = steps[finite], np.asarray(values[finite], dtype=np.float64)
        while steps.max() // self._width >= _BINS:
            self._fold()
        bins = steps // self._width
        np.add.at(self._count, bins, 1)
        np.add.at(self._sum, bins, values)
        np.add.at(self._steps, bins, steps)
        np.minimum.at(self._low, bins, values)
        np.maximum.at(self._high, bins, values)
        self.last, self.last_step = float(values[-1]), int(steps[-1])

    def cut(self, step: int) -> None:
        """Forget what lies behind a step: a resumed run goes over it again."""
        late = np.arange(_BINS) * self._width > step
        self._count[late] = self._sum[late] = self._steps[late] = 0
        self._low[late], self._high[late] = np.inf, -np.inf

    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return steps, means, least and greatest values of the bins that hold something, each (b,)."""
        there = self._count > 0
        count = self._count[there]
        return self._steps[there] / count, self._sum[there] / count, self._low[there], self._high[there]

    def _fold(self) -> None:
        half = _BINS // 2
        for name, empty in (("_count", 0), ("_sum", 0), ("_steps", 0), ("_low", np.inf), ("_high", -np.inf)):
            old = getattr(self, name)
            new = np.full_like(old, empty)
            join = {"_low": np.minimum, "_high": np.maximum}.get(name, np.add)
            new[:half] = join(old[::2], old[1::2])
            setattr(self, name, new)
        self._width *= 2


@dataclass(frozen=True)
class Standing:
    """How a run stands: `status` is running, complete, failed, interrupted, or killed (nobody writes it any more)."""

    status: str
    step: int
    epoch: int | None
    seconds: float
    recording: float
    speed: float

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status != "running"


class Watched:
    """A run that is watched: call `refresh()` as often as you like, then look at `standing`, `curves` and `events`.

    Args:
        path: the archive of a recorded training.

    Memory is bounded: curves are binned, events are the last 500 (`happened` counts all of them by kind). Raises
    ArchiveError where there is no archive, or it has no record of a training.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._identity: Any = None
        self._reset(self._open())

    def refresh(self) -> Standing:
        """Read what is new, and return how the run stands."""
        if self._identity != _identity(self.path):
            self._reset(self._open())  # the run has ended, was resumed, or another one took its place
        status = self._status()
        for found in self._follower.poll():
            self._silent_since = time.monotonic()
            if isinstance(found, Begun):
                if found.resumed_at is not None:
                    self._resume(found.resumed_at)
            elif isinstance(found, Fresh):
                self._add(found.quantity, found.names, found.steps, found.values)
            else:
                self._note(map(event_of, found.events))
        self.standing = self._stand(status)
        return self.standing

    @property
    def run(self) -> Mapping[str, Any]:
        """The run's settings."""
        return self._archive.run

    @property
    def lost(self) -> int:
        """Rows that could not be written, as far as the archive knows."""
        return int(self._archive.attributes.get("lost_rows", 0) or 0)

    @property
    def torn(self) -> int:
        """Bytes that a kill left unfinished, of a run that nobody writes any more."""
        return self._follower.torn if self.standing.status == "killed" else 0

    def curve(self, quantity: str, column: str) -> Curve | None:
        """Return a curve, None where nothing of it was recorded."""
        return self.curves.get((quantity, column))

    def _open(self) -> Archive:
        self._identity = _identity(self.path)
        archive = open_archive(self.path)
        return archive

    def _reset(self, archive: Archive) -> None:
        self._archive = archive
        self.curves: dict[tuple[str, str], Curve] = {}
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.happened: dict[str, int] = {}
        self._latest: deque[tuple[int, float, float]] = deque(maxlen=_LATEST)
        self._last_step = 0
        stored = read_stored(self.path)
        if not stored and archive.status != "running" and not segment_paths(live_folder(self.path)):
            raise ArchiveError(
                f"{self.path} has no record of a training; landscape show {self.path} says what it holds, "
                "landscape.probes.Recorder writes one"
            )
        for quantity in stored.names:
            if _base(quantity) in FOLLOWED:
                for piece in stored.pieces(quantity):
                    self._add(quantity, piece.names, piece.steps, piece.values)
        self._note(e for e in stored.events if not e.superseded)
        self._follower = Follower(live_folder(self.path), archive.attributes.get(COMPACTED, ()))
        self._silent_since = time.monotonic()
        self.standing = self._stand(archive.status)

    def _status(self) -> str:
        """Return the status that the archive has, or that it should have. Before polling: rows may come in between."""
        status = self._archive.status
        if status != "running":
            return status
        alive = self._archive.alive
        if alive is None:
            alive = time.monotonic() - self._silent_since < _SILENCE
        return "running" if alive else "killed"

    def _resume(self, step: int) -> None:
        kept = kept_until(step)
        for curve in self.curves.values():
            curve.cut(kept)
        self._latest.clear()
        self._last_step = step
        standing = [e for e in self.events if e.step <= kept]
        self.events.clear()
        self.events.extend(standing)

    def _add(self, quantity: str, names: tuple[str, ...], steps: np.ndarray, values: np.ndarray) -> None:
        wanted = FOLLOWED.get(_base(quantity), ())
        if not len(steps):
            return
        self._last_step = max(self._last_step, int(steps.max()))
        for i, name in enumerate(names):
            key = (quantity, name)
            if key not in self.curves and not self._wants(key, wanted):
                continue
            self.curves.setdefault(key, Curve()).extend(steps, values[:, i])
        if quantity == "time" and {"elapsed", "recording"} <= set(names):
            columns = [names.index("elapsed"), names.index("recording")]
            rows = values[-_LATEST:, columns].tolist()
            for step, (elapsed, recording) in zip(steps[-_LATEST:].tolist(), rows, strict=True):
                if self._latest and elapsed < self._latest[-1][1]:
                    self._latest.clear()  # the clock of a resumed run begins anew
                self._latest.append((step, elapsed, recording))

    def _wants(self, key: tuple[str, str], wanted: tuple[str, ...] | None) -> bool:
        if wanted is not None:
            return key[1] in wanted
        return sum(quantity == key[0] for quantity, _ in self.curves) < MOST_COLUMNS

    def _note(self, events: Iterator[Event]) -> None:
        for event in events:
            self.events.append(event)
            self.happened[event.kind] = self.happened.get(event.kind, 0) + 1

    def _stand(self, status: str) -> Standing:
        epoch = self.curve("epoch", "epoch")
        last = self._latest[-1] if self._latest else (0, math.nan, math.nan)
        speed = math.nan
        recent = [row for row in self._latest if row[1] >= last[1] - _SPEED_SECONDS]
        if len(recent) > 1 and recent[-1][1] > recent[0][1]:
            speed = (recent[-1][0] - recent[0][0]) / (recent[-1][1] - recent[0][1])
        about = self._archive.attributes  # what a run that has ended says of all of it, not of its last row
        seconds = float(about.get("seconds") or last[1])
        recording = float(about.get("seconds_recording") or last[2])
        epochs = None if epoch is None else int(epoch.last)
        return Standing(status, self._last_step, epochs, seconds, recording, speed)


def _base(quantity: str) -> str:
    """Return a quantity's name without that of one of several optimizers."""
    return quantity.partition(".")[0]


def _identity(path: Path) -> Any:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
