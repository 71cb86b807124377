"""Two runs laid side by side: every number that both have, its difference with an interval, and how it was compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..class_scores import MEANS
from ..comparison.conditions import Sides
from ..comparison.paired import Difference, block_difference, independent_difference, pulled_difference
from ..comparison.scores import compare_samples, compare_summaries, same_samples
from ..errors import LandscapeError
from .measures import measures
from .runs import Run
from .value import Value

_Z95 = 1.959964
_SCORES = {"ece": "ECE", "brier": "Brier score", "nll": "NLL", "accuracy": "accuracy of these predictions"}


@dataclass(frozen=True)
class Compared:
    """One number of two runs. `how`: paired, independent, or residual (how exact it is on these samples).

    `share` is the difference as a share of the first, of perplexities: theirs is a ratio, whose own error is known.
    Each side's Value has its `step` where it was measured while training.
    """

    key: str
    label: str
    first: Value
    second: Value
    difference: Difference
    how: str
    share: Difference | None = None

    @property
    def sides(self) -> Sides:
        """The numbers as conditions take them."""
        ends = [(v.number, v.low, v.high) for v in (self.first, self.second)]
        return Sides(ends[0], ends[1], self.difference, self.share)


def compare_runs(first: Run, second: Run) -> dict[str, Compared]:
    """Return every number that both runs have, by key: those of the report's table, then the calibration's scores.

    Losses, accuracies, perplexities, the classes' means and pinball losses are compared in pairs where both were
    measured on the same draw, ECE, Brier score, NLL and the accuracy of their predictions where both runs kept the
    scores of the same samples; everything else as from independent samples, which makes intervals too wide rather than
    too narrow where the samples are shared.
    """
    found: dict[str, Compared] = {}
    scored = _scores(first, second)
    shared = _of_blocks(first, second, "loss", "weight") | _of_blocks(first, second, "accuracy", "count")
    shared |= _of_classes(first, second) | _of_quantiles(first, second)
    for measure in measures([first, second]):
        a, b = measure.read(first), measure.read(second)
        if not (a.known and b.known) or measure.key in scored:
            continue
        difference = shared.get(measure.key)
        how = "paired"
        share = None
        if measure.group == "Perplexity":
            difference, share = _perplexities(first, second, measure.label, a, b)
            how = "paired" if difference.paired else "independent"
        if measure.key == "test_accuracy" and _same_numbers(scored.get("accuracy"), a, b):
            difference = scored["accuracy"].difference  # of the same predictions
        if difference is None:
            difference = independent_difference((a.number, a.low, a.high), (b.number, b.low, b.high))
            how = "residual" if "residual" in (a.how, b.how) else "independent"
        found[measure.key] = Compared(measure.key, measure.title, a, b, difference, how, share)
    return {**found, **scored}


def one_sided(first: Run, second: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Return for each run the numbers that it lacks and the other one has, by key, with the reason why."""
    lacking: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for measure in measures([first, second]):
        a, b = measure.read(first), measure.read(second)
        for here, there, found in ((a, b, lacking[0]), (b, a, lacking[1])):
            if there.known and not here.known:
                found[measure.key] = here.missing or here.text()[0]
    return lacking


def _perplexities(first: Run, second: Run, split: str, a: Value, b: Value) -> tuple[Difference, Difference]:
    """Return how far two perplexities differ, and as a share of the first: exp of the NLLs' difference, minus 1."""
    sides = [_blocks(r.get("performance"), split, "nll", "count") for r in (first, second)]
    if _same_blocks(sides):
        (one, weights, _, samples), (other, *_) = sides
        # Linearized at the perplexities: d exp(m) = exp(m) dm.
        off = [p.number * (1 + x - math.log(p.number)) for p, x in ((a, one), (b, other))]
        return block_difference(off[0], off[1], weights, samples), _grown(
            block_difference(one, other, weights, samples)
        )
    ends = [(v.number, v.low, v.high) for v in (a, b)]
    logs = [tuple(math.log(x) for x in e) for e in ends]
    change, growth = (independent_difference(one, other) for one, other in (ends, logs))
    return change, _grown(growth)


def _grown(nll: Difference) -> Difference:
    value, low, high = (float(np.expm1(x)) for x in (nll.value, nll.low, nll.high))
    return Difference(value, low, high, nll.paired, nll.samples)


def _same_numbers(scored: Compared | None, first: Value, second: Value) -> bool:
    """Return whether paired scores give both numbers again: they are of the predictions that those are of."""
    if scored is None or scored.how != "paired":
        return False
    pairs = ((scored.first, first), (scored.second, second))
    return all(math.isclose(s.number, v.number, rel_tol=1e-9) for s, v in pairs)


def _of_blocks(first: Run, second: Run, quantity: str, weight: str) -> dict[str, Difference]:
    """Return the differences of a quantity on both splits and of their gap, as far as both runs have the same draw.

    `weight` names what the quantity's blocks are weighed by.
    """
    a, b = (r.get("performance") for r in (first, second))
    found: dict[str, Difference] = {}
    for split in ("train", "test"):
        sides = [_blocks(p, split, quantity, weight) for p in (a, b)]
        if _same_blocks(sides):
            (one, weights, _, samples), (other, *_) = sides
            found[f"{split}_{quantity}"] = block_difference(one, other, weights, samples)
    if len(found) == 2:
        train, test = ((d.value, d.low, d.high) for d in found.values())
        ends = (test, train) if quantity == "accuracy" else (train, test)  # a gap is positive where test is worse
        found[f"gap_{quantity}"] = replace(independent_difference(*ends), paired=True)  # the splits hold other samples
    return found


def _of_classes(first: Run, second: Run) -> dict[str, Difference]:
    """Return the differences of mean IoU, macro F1 and balanced accuracy, where both are of the same groups."""
    sides: list[Any] = [r.get("class_scores") for r in (first, second)]
    if not _same_draw(sides) or any(getattr(s, "pull", None) is None for s in sides):
        return {}
    pulls, held = [np.asarray(s.pull) for s in sides], [np.asarray(s.held) for s in sides]
    if pulls[0].shape != pulls[1].shape:
        return {}
    return {
        name: pulled_difference(
            [getattr(s, name) for s in sides], [p[i] for p in pulls], [int(h[i]) for h in held], int(sides[0].groups)
        )
        for i, name in enumerate(MEANS)
    }


def _of_quantiles(first: Run, second: Run) -> dict[str, Difference]:
    """Return the difference of the mean pinball losses, where both are of the same targets and levels."""
    sides: list[Any] = [r.get("quantile_coverage") for r in (first, second)]
    if not _same_draw(sides) or any(getattr(s, "block_pinball", None) is None for s in sides):
        return {}
    a, b = sides
    if not (np.array_equal(a.level, b.level) and np.array_equal(a.block_weight, b.block_weight)):
        return {}
    one, other, weights = (np.asarray(x, dtype=float) for x in (a.block_pinball, b.block_pinball, a.block_weight))
    return {"pinball": block_difference(one, other, weights, int(a.samples))}


def _same_draw(sides: Sequence[Any]) -> bool:
    """Return whether both results are there, and of the same samples."""
    return None not in sides and bool(sides[0].fingerprint) and sides[0].fingerprint == sides[1].fingerprint


def _same_blocks(sides: Sequence[Any]) -> bool:
    """Return whether both sides kept blocks, of the same samples."""
    if any(side is None for side in sides):
        return False
    (_, weights, of, _), (_, others, of_other, _) = sides
    return bool(of and of == of_other and np.array_equal(weights, others) and len(weights) > 1)


def _blocks(performance: Any, split: str, quantity: str, weight: str) -> Any:
    """Return (means, weights, fingerprint, samples) of a split's blocks, None where they weren't kept."""
    kept = getattr(performance, f"block_{quantity}", None)
    if kept is None or split not in performance.splits:
        return None
    at = list(performance.splits).index(split)
    weights = np.asarray(getattr(performance, f"block_{weight}"), dtype=float)[at]
    there = np.isfinite(weights)
    means = np.asarray(kept, dtype=float)[at]
    return means[there], weights[there], performance.fingerprints[at], int(performance.samples[at])


def _scores(first: Run, second: Run) -> dict[str, Compared]:
    tables: list[Any] = [r.get("calibration") for r in (first, second)]
    if None in tables:
        return {}
    samples: list[Any] = [r.get("sample_scores") for r in (first, second)]
    kept = all(s is not None and np.isfinite(np.asarray(s.confidence, dtype=float)).all() for s in samples)
    differences = compare_samples(*samples) if kept else compare_summaries(*tables)
    how = "paired" if kept and same_samples(*samples) else "independent"
    found = {}
    for key, difference in differences.items():
        a, b = (
            replace(_score(t, key), step=r.probed_at.get("calibration"))
            for r, t in zip((first, second), tables, strict=True)
        )
        if a.known and b.known:
            found[key] = Compared(key, _SCORES[key], a, b, difference, how)
    return found


def _score(table: Any, key: str) -> Value:
    number = float(getattr(table, key))
    if key == "ece":
        low, high = (float(b) for b in np.ravel(table.ece_interval)[:2])
    else:
        half = _Z95 * float(getattr(table, f"{key}_stderr", math.nan))
        low, high = number - half, number + half
    return Value(number, math.nan, low, high, "interval")


def pair_up(first: Sequence[Run], second: Sequence[Run], chosen: Sequence[str] = ()) -> list[tuple[Run, Run]]:
    """Return which checkpoint of the first archive is compared with which of the second.

    One each is a pair; of several, those with the same label (or file name) are. `chosen` names one, for both
    archives, or two. Raises LandscapeError where nothing is said and nothing matches.
    """
    if len(chosen) > 2:
        raise LandscapeError(f"two checkpoints are compared, got {len(chosen)} names: give one for both, or two")
    if chosen:
        return [(_named(first, chosen[0]), _named(second, chosen[-1]))]
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    labels = {_label(r): r for r in second}
    pairs = [(r, labels[_label(r)]) for r in first if _label(r) in labels]
    if not pairs:
        raise LandscapeError(
            f"no checkpoint of the first ({', '.join(map(_label, first))}) has its name in the second "
            f"({', '.join(map(_label, second))}): choose with --checkpoint, twice for two names"
        )
    return pairs


def _label(run: Run) -> str:
    return run.name


def _named(runs: Sequence[Run], name: str) -> Run:
    for run in runs:
        if name in (run.name, run.checkpoint, run.fingerprint, run.checkpoint.rpartition("/")[2]):
            return run
    raise LandscapeError(f"there is no checkpoint {name!r}; there are {', '.join(r.name for r in runs)}")
