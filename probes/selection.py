"""What a post-hoc run measures: names to measurements, presets to samples and options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from landscape.errors import MeasurementError
from landscape.results import Measurement, measurements
from landscape.tasks import Task

from .outcome import RESERVED

#: Samples of each split's draw, None for all (DESIGN section 4, chosen by us: seconds, minutes, as long as it takes).
PRESET_SAMPLES: Mapping[str, int | None] = {"quick": 1024, "standard": 4096, "thorough": None}


class UnknownName(MeasurementError):
    """A name that no measurement, section or option has: wrong usage, not a failed measurement."""


@dataclass(frozen=True)
class Chosen:
    """One measurement to run, with the options to run it with; `given` if the user set any of them, `named` if the user
    asked for it or its section.
    """

    measurement: Measurement
    options: Mapping[str, Any]
    given: bool
    named: bool = False


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
            chosen.append(Chosen(m, settings, bool(given), asked))
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
