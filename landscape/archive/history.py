"""What the record of a training holds: what was recorded at its steps, what happened, and what was measured on the way.

`joining.read_history` makes it, of the archive and of what lies beside it. No torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from ..errors import ArchiveError, DamagedError
from ..results import Result, rebuild
from .groups import read_attributes, read_variables
from .seal import cure, opened
from .segments import Rows


@dataclass(frozen=True, repr=False)
class Series(Rows):
    """One quantity over a training: `names` of its columns (k,), `steps` (n,), `values` (n, k) in `units`.

    A row of step t is what went into the t-th optimizer step; NaN is what was not recorded. `superseded` (n,) marks
    rows that a resumed run has overtaken. `axis` is "step", or "epoch" for what is recorded when an epoch ends.
    """

    name: str = ""
    units: str = ""
    doc: str = ""
    axis: str = "step"

    def __repr__(self) -> str:
        """Say what it holds, not every row of it."""
        told = f"{len(self.steps):,} rows of {', '.join(self.names[:8])}{', ...' if len(self.names) > 8 else ''}"
        reach = f", {self.axis} {self.steps.min():,} to {self.steps.max():,}" if len(self.steps) else ""
        return f"Series({self.name!r}: {told}{reach}{f', in {self.units}' if self.units else ''})"

    def column(self, name: str) -> np.ndarray:
        """Return one column (n,); raises KeyError with the names there are."""
        if name not in self.names:
            raise KeyError(f"{self.name} has no column {name!r}; it has {', '.join(self.names[:20])}")
        return self.values[:, self.names.index(name)]

    def current(self) -> Series:
        """Return the rows that stand, in the order of their steps."""
        keep = ~self.superseded
        if keep.all() and (np.diff(self.steps) >= 0).all():
            return self
        order = np.flatnonzero(keep)
        order = order[np.argsort(self.steps[order], kind="stable")]
        return Series(
            self.names,
            self.steps[order],
            self.values[order],
            self.superseded[order],
            self.name,
            self.units,
            self.doc,
            self.axis,
        )


@dataclass(frozen=True)
class Event:
    """Something that happened at a step: its kind, what it was in words, and seconds since the run began."""

    step: int
    kind: str
    message: str = ""
    seconds: float = float("nan")
    superseded: bool = False


@dataclass(frozen=True)
class Probed:
    """A Result that a probe measured while training, after `step` optimizer steps; `.result` reads it."""

    probe: str
    step: int
    epoch: int | None
    kind: str
    file: Path = field(repr=False)
    group: str = field(repr=False)
    superseded: bool = False

    @functools.cached_property
    def result(self) -> Result:
        """Return the Result, rebuilt."""
        try:
            with opened(self.file) as file:
                group = file[self.group]
                if not isinstance(group, h5py.Group):
                    raise TypeError("expected a group")
                return rebuild(self.kind, read_variables(group), read_attributes(group)[0])
        except ArchiveError:
            raise
        except Exception as error:  # of a damaged group, HDF5 raises nearly anything
            raise DamagedError(f"{self.group} of {self.file} cannot be read: {error}; {cure(self.file)}") from error


@dataclass(frozen=True)
class History(Mapping[str, Series]):
    """What was recorded while a model trained; false where nothing was.

    A mapping of quantities: `history["loss"]` is a `Series`, read when it is asked for, and `names` lists them all.
    `events` are in the order in which they happened, `probed` holds what each probe measured. `torn` counts the bytes
    at the end of segments that a kill left unfinished.
    """

    quantities: Mapping[str, Series] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    probed: Mapping[str, tuple[Probed, ...]] = field(default_factory=dict)
    torn: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The quantities that were recorded."""
        return tuple(self.quantities)

    @property
    def last_step(self) -> int:
        """The last step of the first optimizer that stands; -1 where nothing was recorded."""
        return self.last_of("")

    def last_of(self, suffix: str) -> int:
        """Return the last step that stands of an optimizer, by the suffix of its quantities' names; -1 for none."""
        # `time` has a row for each step of the first optimizer, `learning_rate` and others for each of any.
        first = "time" if not suffix and "time" in self.quantities else ""
        names = [first] if first else [n for n in self.quantities if n.endswith(suffix)]
        found = (self.quantities[n] for n in names)
        return max((int(s.steps[~s.superseded].max(initial=-1)) for s in found), default=-1)

    def __bool__(self) -> bool:
        return bool(self.quantities or self.events or self.probed)

    def __iter__(self) -> Iterator[str]:
        return iter(self.quantities)

    def __len__(self) -> int:
        return len(self.quantities)

    def __contains__(self, name: object) -> bool:
        return name in self.quantities

    def __getitem__(self, name: str) -> Series:
        if name not in self.quantities:
            raise KeyError(f"no {name!r} was recorded; there are {', '.join(self.names) or 'none'}")
        return self.quantities[name]

    def pieces(self, name: str, rows: int = 1 << 15) -> Iterator[Series]:
        """Yield the rows of a quantity that stand, at most so many at a time, without keeping what was read.

        In the order of writing: a long training with a column for each parameter would not fit the memory at once.
        """
        if isinstance(self.quantities, Lazily):
            yield from self.quantities.pieces(name, rows)
        elif name in self.quantities:
            yield from cut(self.quantities[name], rows)

    def current(self) -> History:
        """Return what stands: without what a resumed run has overtaken."""
        return History(
            Lazily({name: partial(_current, self.quantities, name) for name in self.quantities}),
            tuple(e for e in self.events if not e.superseded),
            {n: tuple(p for p in found if not p.superseded) for n, found in self.probed.items()},
            self.torn,
        )


class Lazily(Mapping[str, Series]):
    """Series that are read when they are asked for, each once."""

    def __init__(
        self,
        readers: Mapping[str, Callable[[], Series]],
        cutters: Mapping[str, Callable[[int], Iterator[Series]]] | None = None,
    ) -> None:
        self._readers = dict(readers)
        self._cutters = dict(cutters or {})
        self._read: dict[str, Series] = {}

    def pieces(self, name: str, rows: int) -> Iterator[Series]:
        """Yield the rows that stand; read piece by piece where they lie in one file, else in one."""
        if name in self._read or (name in self._readers and name not in self._cutters):
            yield from cut(self._read.get(name) or self._readers[name](), rows)
        elif name in self._readers:
            yield from self._cutters[name](rows)

    def __getitem__(self, name: str) -> Series:
        if name not in self._read:
            self._read[name] = self._readers[name]()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _current(quantities: Mapping[str, Series], name: str) -> Series:
    return quantities[name].current()


def cut(series: Series, rows: int) -> Iterator[Series]:
    """Yield the rows that stand of a quantity, at most so many at a time."""
    standing = series.current()
    for start in range(0, len(standing.steps), rows):
        part = slice(start, start + rows)
        yield replace(
            standing, steps=standing.steps[part], values=standing.values[part], superseded=standing.superseded[part]
        )
