"""What a post-hoc run measures: names to measurements, presets to samples and options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from landscape.errors import LandscapeError, MeasurementError
from landscape.results import Measurement, measurements
from landscape.tasks import Task

from .outcome import RESERVED

#: Samples of each split's draw, None for all (DESIGN section 4, chosen by us: seconds, minutes, as long as it takes).
PRESET_SAMPLES: Mapping[str, int | None] = {"quick": 1024, "standard": 4096, "thorough": None}


class UnknownName(MeasurementError):
    """A name that no measurement, section or option has: wrong usage, not a failed measurement."""


@dataclass(frozen=True)
class Chosen:
    """One measurement to run, with the options to run it with; `given` are those that the user set, `named` if the user
    asked for it or its section.
    """

    measurement: Measurement
    options: Mapping[str, Any]
    given: frozenset[str]
    named: bool = False

    def of(self, task: Task) -> Chosen:
        """Return the same for this task: defaults that count what it has fewer of are lowered to what it has."""
        if self.measurement.most is None:
            return self
        try:
            most = self.measurement.most(task, **self.options)
        except LandscapeError:  # what is wrong with the options, or the model, the measurement says
            return self
        lowered = {k: n for k, n in most.items() if k not in self.given and self.options[k] > n}
        return replace(self, options={**self.options, **lowered})


def choose(
    only: Sequence[str] | None = None,
    preset: str = "standard",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    also: Sequence[str] = (),
) -> list[Chosen]:
    """Return the measurements to run, in order: those named by name or section, else all that run by default.

    Of a section those are taken that run by default, or all of them where none does. `also` are made beside them.
    `options` maps a measurement's name to settings of its own. Raises UnknownName with the nearest names, and
    MeasurementError for options that no measurement could keep.
    """
    if preset not in PRESET_SAMPLES:
        raise UnknownName(f"no preset {preset!r}; {nearest(preset, PRESET_SAMPLES)}")
    every = measurements()
    options = options or {}
    names = {*every, *(m.section for m in every.values())}
    for name in (*(only or ()), *also):
        if name not in names:
            raise UnknownName(f"no measurement {name!r}; {nearest(name, names)}")
    for name, given in options.items():
        if name not in every:
            raise UnknownName(f"no measurement {name!r} to set options of; {nearest(name, every)}")
        for key in given:
            if key not in every[name].options:
                raise UnknownName(f"measurement {name!r} has no option {key!r}; {nearest(key, every[name].options)}")
    chosen = []
    wanted, usual = {*(only or ()), *also}, {m.section for m in every.values() if m.default}
    for name, m in every.items():
        asked = name in wanted or (m.section in wanted and (m.default or m.section not in usual))
        if asked or (not only and m.default):
            given = options.get(name, {})
            if m.section in RESERVED:
                raise MeasurementError(
                    f"measurement {name!r} has the section {m.section!r}, a key of --json; rename it"
                )
            settings = m.settings(preset, **given)
            if m.check is not None:
                m.check(**settings)
            chosen.append(Chosen(m, settings, frozenset(given), asked))
    unused = [name for name in options if name not in {c.measurement.name for c in chosen}]
    if unused:
        raise UnknownName(f"options are set for {unused[0]!r}, which is not measured; add it to what is asked for")
    return chosen


def samples_to_draw(task: Task, preset: str, max_samples: int | None) -> int | None:
    """Return the size of each split's draw: as given, else the smaller of the preset's and the task's own."""
    if max_samples is not None:
        return max_samples
    limits = [n for n in (PRESET_SAMPLES[preset], task.max_samples) if n is not None]
    return min(limits) if limits else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint: the known names that are most like this one, else all of them."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known) or 'none'}"
