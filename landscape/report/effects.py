"""What each setting does to each number of a sweep's runs: which runs, which settings, which numbers go in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..comparison.ablation import Ablation, Effect, ablate
from ..counted import counted
from .measures import measures, setting, settings
from .numbers import interval, number
from .runs import Run
from .value import Measure

#: Settings that name a repetition of a run rather than how it was trained.
SEEDS = ("seed", "training_seed", "repeat")
#: Settings with more values than this are no factors (chosen by us: a table of effects ends on a screen).
MOST_LEVELS = 8
#: As many settings are told apart (chosen by us: ten have 45 interactions).
MOST_FACTORS = 6
#: What effects are asked for, apart from every measure of sharpness.
RESPONSES = ("test_accuracy", "test_loss", "gap_accuracy", "gap_loss", "ece", "temperature")


@dataclass(frozen=True)
class Response:
    """The effects of the settings on one number; `ratio`: on its logarithm, so that an effect is a factor."""

    measure: Measure
    found: Ablation
    ratio: bool = False

    @property
    def title(self) -> str:
        """What the number is called away from its column."""
        group, label = self.measure.group.lower(), self.measure.label
        if group not in ("loss", "accuracy"):
            return label
        return f"{group} gap" if label == "gap" else f"{label} {group}"

    def numbers(self, effect: Effect) -> tuple[float, float, float]:
        """Return (value, low, high) in the units of the number; factors where `ratio`."""
        ends = np.array([effect.value, effect.low, effect.high])
        value, low, high = np.exp(ends) if self.ratio else ends
        return float(value), float(low), float(high)

    def text(self, effect: Effect) -> tuple[str, str]:
        """Return the effect and its interval as they are written."""
        value, bounds = interval(*self.numbers(effect))
        if self.ratio:
            return f"× {value}", bounds
        return (f"+{value}" if effect.value > 0 else value), bounds


def last_of_each(runs: Sequence[Run]) -> list[Run]:
    """Return the last checkpoint of each training: several checkpoints of one run are no repetitions."""
    last: dict[tuple, Run] = {}
    for run in runs:
        key = (run.archive or run.index, tuple(sorted((k, str(v)) for k, v in run.settings.items())))
        if key not in last or (run.step or 0) >= (last[key].step or 0):
            last[key] = run
    return list(last.values())


def varied(runs: Sequence[Run]) -> tuple[dict[str, list[str]], list[str] | None, list[str]]:
    """Return the settings that differ between runs with their values, the seed of each run, and what was left out."""
    names, _ = settings(runs)
    factors, left_out = {}, []
    for name in names:
        values = [setting(run, name) for run in runs]
        if name in SEEDS or len(set(values)) < 2:
            continue
        if len(set(values)) > min(MOST_LEVELS, len(runs) - 1):
            left_out.append(f"{name}: {len(set(values))} different values are no levels to compare")
        elif len(factors) == MOST_FACTORS:
            left_out.append(f"{name}: {MOST_FACTORS} settings are compared at most")
        else:
            factors[name] = values
    seed = next((s for s in SEEDS if any(s in r.settings for r in runs)), None)
    return factors, [setting(r, seed) for r in runs] if seed else None, left_out


def effects(runs: Sequence[Run]) -> tuple[list[Response], list[str]]:
    """Return the effects of the settings on each number that these runs of one task have, and what was left out.

    Sharpness, curvature and temperature are compared by ratio where all are positive: they span powers of ten. A
    setting with the default value "–" where a run lacks it counts as a level of its own.
    """
    runs = last_of_each(runs)
    factors, seeds, left_out = varied(runs)
    found = []
    if factors:
        # What a reader looks for first, then curvature and sharpness.
        for measure in sorted(measures(runs), key=lambda m: m.sharpness):
            if not (measure.key in RESPONSES or measure.sharpness):
                continue
            y = np.array([measure.read(run).number for run in runs])
            known = y[np.isfinite(y)]
            if len(known) < 4 or np.ptp(known) == 0:
                continue
            ratio = (measure.sharpness or measure.key == "temperature") and bool((known > 0).all())
            ablation = ablate(np.log(y, where=y > 0, out=np.full(len(y), np.nan)) if ratio else y, factors, seeds)
            if ablation.effects:
                found.append(Response(measure, ablation, ratio))
    told = dict.fromkeys([*left_out, *(text for r in found for text in r.found.left_out)])
    return found, list(told)


def name_of(effect: Effect) -> str:
    """Return an effect in words: "loss: b, not a", or "loss b × schedule d" for an interaction."""
    if len(effect.factors) == 1:
        (first, other), (factor,) = effect.levels[0], effect.factors
        return f"{factor}: {other} instead of {first}"
    parts = [f"{f} {other}" for f, (_, other) in zip(effect.factors, effect.levels, strict=True)]
    return " together with ".join(parts)


def rests_on(response: Response) -> str:
    """Return how many seeds and degrees of freedom a number's effects rest on."""
    found = response.found
    df = [e.df for e in found.effects if np.isfinite(e.df)]
    freedom = f", {number(min(df), 2)} to {number(max(df), 2)} degrees of freedom" if df else ""
    if df and max(df) - min(df) < 0.05:
        freedom = f", {number(df[0], 2)} degrees of freedom"
    unit = "seed" if found.paired or found.independent < found.runs else "independent run"
    within = ", within seeds" if found.paired else ""
    return f"{counted(found.runs, 'run')}, {counted(found.independent, unit)}{within}{freedom}"
