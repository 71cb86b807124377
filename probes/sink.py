"""Where rows go: from any device to the writer of the run's segments, without waiting for the device or the disk."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.archive.live import LiveWriter
from landscape.errors import ArchiveError, MeasurementError
from landscape.widest import wide

from .probe import Quantity


class Sink:
    """Collects the rows of a step and hands them to a `LiveWriter`; rows on a device go to the host in one copy.

    The first row opens the first segment, so that every quantity that was declared until then is in it. What goes wrong
    is warned about once and counted; it never raises.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any], flush_seconds: float) -> None:
        self._folder, self._facts, self._seconds = folder, dict(facts), flush_seconds
        self._writer: LiveWriter | None = None
        self._columns: dict[str, tuple[str, ...]] = {}
        self._about: dict[str, dict[str, str]] = {}
        #: Of quantities whose rows name fewer columns than were ever declared, or others first: where each number goes.
        self._places: dict[str, list[int]] = {}
        self._on_device: list[tuple[str, int, torch.Tensor]] = []
        self._waiting: list[dict[str, Any]] = []
        self.began = time.perf_counter()
        #: Seconds that earlier sessions of a resumed run took.
        self.earlier = 0.0
        self._said = False
        self._lost = 0

    @property
    def lost(self) -> int:
        """Rows that could not be written so far."""
        return self._lost + (self._writer.lost if self._writer is not None else 0)

    @property
    def empty(self) -> bool:
        """Whether no row was ever written."""
        return self._writer is None

    @property
    def elapsed(self) -> float:
        """Seconds since this session of the run began."""
        return time.perf_counter() - self.began

    def declare(self, quantities: Sequence[Quantity]) -> None:
        """Take rows of these quantities and columns from now on; columns that a quantity has already stay, and are NaN
        in rows that don't name them.
        """
        fresh: dict[str, tuple[str, ...]] = {}
        for q in quantities:
            columns = tuple(dict.fromkeys((*self._columns.get(q.name, ()), *q.columns)))
            if columns != self._columns.get(q.name):
                fresh[q.name] = columns
            self._places.pop(q.name, None)
            if columns != q.columns:
                self._places[q.name] = [columns.index(name) for name in q.columns]
            self._about.setdefault(q.name, {"units": q.units, "doc": q.doc, "axis": q.axis})
        self._columns |= fresh
        if fresh and self._writer is not None:
            self._writer.declare(fresh, {"quantities": self._about})

    def facts(self, **facts: Any) -> None:
        """Add to what the first segment's header says."""
        self._facts |= facts

    def columns(self, quantity: str) -> tuple[str, ...]:
        """Return the columns of a quantity; none where it was not declared."""
        return self._columns.get(quantity, ())

    def record(self, quantity: str, step: int, values: Any) -> None:
        """Add a row."""
        # Numbers of small models come as tuples, at every step: nothing more is asked of those.
        if type(values) is not tuple and isinstance(values, torch.Tensor):
            if values.device.type != "cpu":
                values = values.detach()
                spread = self._spread(quantity, values) if quantity in self._places else values
                self._on_device.append((quantity, step, spread))
                return
            values = values.detach().numpy().copy()  # whoever gave it may use it again
        elif quantity not in self._columns:
            raise MeasurementError(f"{quantity!r} was never declared: return a Quantity of it from start()")
        if quantity in self._places:
            values = self._spread(quantity, values)
        writer = self._writer or self._open()
        if writer is not None:
            writer.append(quantity, step, values)

    def _spread(self, quantity: str, values: Any) -> Any:
        """Return a row with every number where its column is, NaN in the others; one of a wrong width as it is."""
        places, width = self._places[quantity], len(self._columns[quantity])
        if isinstance(values, torch.Tensor):
            flat = wide(values.reshape(-1))
            if len(flat) != len(places):
                return values
            where = [-1] * width
            for i, place in enumerate(places):
                where[place] = i
            absent = flat.new_full((), torch.nan)
            return torch.stack([absent if i < 0 else flat[i] for i in where])
        given = np.asarray(values, dtype=np.float64).reshape(-1)
        if len(given) != len(places):
            return values
        row = np.full(width, np.nan)
        row[places] = given
        return row

    def event(self, step: int, kind: str, message: str) -> None:
        """Note what happened."""
        event = {"step": step, "kind": kind, "message": message, "seconds": round(self.earlier + self.elapsed, 3)}
        if self._writer is None:
            self._waiting.append(event)  # it alone is no reason to open a segment before everything is declared
        else:
            self._writer.event(event)

    def commit(self) -> None:
        """Send what the devices hold on its way to the host, and say what went wrong since the last time."""
        if self._on_device:
            rows, self._on_device = self._on_device, []
            for device in {values.device for *_, values in rows}:
                self._copy([r for r in rows if r[2].device == device])
        if not self._said and self._writer is not None and self._writer.problem is not None:
            self._said = True
            warnings.warn(
                f"{self._writer.problem}; training goes on, rows wait in memory until they can be written",
                RuntimeWarning,
                stacklevel=2,
            )

    def _copy(self, rows: Sequence[tuple[str, int, torch.Tensor]]) -> None:
        flat = torch.cat([wide(values.reshape(-1)) for *_, values in rows])
        landing = Landing(flat)
        writer = self._writer or self._open()
        start = 0
        for quantity, step, values in rows:
            stop = start + values.numel()
            if writer is not None:
                writer.append(quantity, step, Landed(landing, start, stop))
            start = stop

    def flush(self) -> None:
        """Write everything now."""
        self.commit()
        if self._writer is not None:
            self._writer.flush()

    def open(self) -> None:
        """Open the first segment now, where no row has done so."""
        if self._writer is None:
            self._open()

    def close(self) -> str | None:
        """Write what waits, and return what went wrong in the end, None if nothing."""
        self.commit()
        if self._writer is None:
            return None
        self._writer.close()
        problem = self._writer.problem
        if self.lost and problem is None:
            problem = f"{self.lost} rows could not be written"
        return problem

    def _open(self) -> LiveWriter | None:
        if self._folder is None:
            return None
        try:
            facts = {**self._facts, "quantities": self._about}
            self._writer = LiveWriter(self._folder, self._columns, facts, flush_seconds=self._seconds)
        except ArchiveError as error:
            self._lost += 1
            if not self._said:
                self._said = True
                warnings.warn(f"{error}; training goes on, nothing is recorded", RuntimeWarning, stacklevel=2)
            return None
        for event in self._waiting:
            self._writer.event(event)
        self._waiting = []
        return self._writer


class Landing:
    """One copy from a device to the host under way. `array` waits for it, in whatever thread asks."""

    def __init__(self, flat: torch.Tensor) -> None:
        self._event: Any = None
        self._array: np.ndarray | None = None
        if flat.device.type == "cuda":
            self._host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True, device="cpu")
            self._host.copy_(flat, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(flat.device))
        else:
            self._host = flat  # copied by the thread that writes

    @property
    def array(self) -> np.ndarray:
        """The numbers on the host."""
        if self._array is None:
            if self._event is not None:
                self._event.synchronize()
            self._array = self._host.cpu().numpy()
        return self._array


class Landed:
    """One row of a copy under way."""

    __slots__ = ("_landing", "_start", "_stop")

    def __init__(self, landing: Landing, start: int, stop: int) -> None:
        self._landing, self._start, self._stop = landing, start, stop

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self._landing.array[self._start : self._stop]
        return found if dtype is None else found.astype(dtype, copy=False)
