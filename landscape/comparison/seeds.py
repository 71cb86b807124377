"""What a setting gives over its seeds: the mean of the runs that differ in nothing else, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

#: Settings that say which repetition a run is, rather than how it was trained.
SEEDS = frozenset({"seed", "seeds", "random_seed", "init_seed", "data_seed", "repeat", "replicate", "repetition"})


@dataclass(frozen=True)
class SeedMean:
    """The mean over `seeds` runs, its 95% interval (NaN for one run), and the standard deviation of a single run."""

    mean: float
    low: float
    high: float
    spread: float
    seeds: int


def over_seeds(values: Sequence[float] | np.ndarray) -> SeedMean:
    """Return the mean of one number over seeds with Student's 95% interval (1908); what isn't finite is left out.

    The interval takes the runs for independent draws from a normal law: with two or three seeds it is wide, and
    rightly so (with two its half is 9 standard deviations).
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    if n == 0:
        return SeedMean(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if n == 1:
        return SeedMean(mean, math.nan, math.nan, math.nan, 1)
    spread = float(x.std(ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return SeedMean(mean, mean - half, mean + half, spread, n)


def seed_groups(settings: Sequence[Mapping[str, Any]], steps: Sequence[int | None] | None = None) -> list[list[int]]:
    """Return the places of runs that differ in their seed alone, a list for each setting, in the order first seen.

    Runs without a seed stand alone. Two checkpoints of one training are no two seeds: where a seed comes twice, the
    runs are told apart by their step, and stand alone where that does not help either.
    """
    at = list(steps) if steps is not None else [None] * len(settings)
    grouped: dict[Hashable, list[int]] = {}
    for place, own in enumerate(settings):
        seeded = any(name in own for name in SEEDS)
        rest = tuple(sorted((k, repr(v)) for k, v in own.items() if k not in SEEDS))
        grouped.setdefault(rest if seeded else (place, rest), []).append(place)
    found: list[list[int]] = []
    for places in grouped.values():
        if _distinct(settings, places):
            found.append(places)
            continue
        by_step: dict[int | None, list[int]] = {}
        for place in places:
            by_step.setdefault(at[place], []).append(place)
        for part in by_step.values():
            found += [part] if _distinct(settings, part) else [[place] for place in part]
    return sorted(found)


def _distinct(settings: Sequence[Mapping[str, Any]], places: Sequence[int]) -> bool:
    seeds = {tuple((name, repr(settings[p].get(name))) for name in sorted(SEEDS)) for p in places}
    return len(seeds) == len(places)
