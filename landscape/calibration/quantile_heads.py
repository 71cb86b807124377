"""Calibration of predicted quantiles: of a task's model on its held-out data, or of your own predictions."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import fdtrc

from ..errors import MeasurementError
from ..grouped import shares
from ..judged import SPLIT, judged_split
from ..labels import default_target, logits_of
from ..objective import Objective, as_objective
from ..results import Cost, Option, measurement
from ..tasks import Task
from .coverage import QuantileCoverage
from .inputs import tensor_of

#: What losses call their levels.
_NAMES = ("quantiles", "levels", "taus", "tau", "quantile_levels", "q", "alphas")
#: Blocks of samples whose losses are kept (chosen by us: 2% of the error's own error, 32 KB).
_BLOCKS = 2000


def quantile_coverage(*, quantiles: Any, targets: Any, levels: Sequence[float], groups: Any = None) -> QuantileCoverage:
    """How often targets lie at or below each predicted quantile, and within each central interval; pinball losses.

    Args:
        quantiles: floats (n, ..., q), the quantiles last; or (n, q, ...) where only that fits.
        targets: (n, ...), a target for each.
        levels: the q levels of the quantiles, within (0, 1).
        groups: (n,) integers that say which samples depend on each other. The predictions of one sample (horizons,
            outputs) always do.

    Cost: one pass in float64. Raises MeasurementError for shapes that don't fit and numbers that are not finite.
    """
    start = time.perf_counter()
    level = np.asarray([float(x) for x in levels])
    if not len(level) or not ((level > 0) & (level < 1)).all() or len(set(level.tolist())) < len(level):
        raise MeasurementError(f"levels must lie within (0, 1), each once, got {', '.join(f'{x:g}' for x in level)}")
    predicted, y = (tensor_of(x)[0].detach().cpu().double() for x in (quantiles, targets))
    rows = _laid_out(predicted, y, len(level))
    y = y.reshape(-1)
    for name, value in (("quantiles", rows), ("targets", y)):
        wrong = int((~torch.isfinite(value)).sum())
        if wrong:
            raise MeasurementError(f"{wrong} of {value.numel()} {name} are not finite; mend or leave them out")
    n = len(predicted)
    own = np.arange(n) if groups is None else np.asarray(tensor_of(groups)[0].cpu())
    if own.shape != (n,):
        raise MeasurementError(f"groups of shape {own.shape} don't fit {n} samples: give one for each sample")
    number = np.unique(own, return_inverse=True)[1].repeat(len(y) // n)
    order = np.argsort(level)
    return QuantileCoverage(
        **judge_quantiles(level[order], rows.numpy()[:, order], y.numpy(), number),
        settings={"levels": [float(x) for x in level]},
        cost=Cost(seconds=time.perf_counter() - start),
    )


def _laid_out(predicted: torch.Tensor, targets: torch.Tensor, count: int) -> torch.Tensor:
    """Return the quantiles as (targets, levels), in the order of targets.reshape(-1)."""
    shape, wanted = tuple(predicted.shape), tuple(targets.shape)
    if 0 in wanted or not wanted:
        raise MeasurementError(f"targets of shape {wanted} hold no prediction to judge; give (n,) or (n, ...)")
    if wanted[1:] == (1,) and len(shape) == 2:  # (n, 1) beside (n, q)
        wanted = wanted[:1]
    if shape == (*wanted, count):
        return predicted.reshape(-1, count)
    if shape == (*wanted[:1], count, *wanted[1:]):
        return predicted.movedim(1, -1).reshape(-1, count)
    raise MeasurementError(
        f"quantiles of shape {shape} don't fit targets of shape {tuple(targets.shape)} and {count} levels: expected "
        f"{(*wanted, count)}, the quantiles last, or {(*wanted[:1], count, *wanted[1:])}"
    )


def judge_quantiles(
    level: np.ndarray, quantiles: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """Return the numbers of a QuantileCoverage: rising levels (q,), quantiles (n, q), targets (n,), groups (n,) from 0.

    Koenker and Bassett 1978, doi:10.2307/1913643 (the pinball loss); intervals as in `grouped.shares`; Hotelling 1931,
    doi:10.1214/aoms/1177732979, of the samples' own mean deviations. Float64; cost O(n q).
    """
    size = np.bincount(groups)
    error = targets[:, None] - quantiles
    below = error <= 0
    pinball = np.maximum(level * error, (level - 1) * error)

    def summed(x: np.ndarray) -> np.ndarray:
        """Return the sums over each group, (groups, k)."""
        return np.stack([np.bincount(groups, column) for column in x.T.astype(np.float64)], axis=1)

    many = len(level)
    ends = [(i, j) for i in range(many) for j in range(i + 1, many) if abs(level[i] + level[j] - 1) < 1e-6]
    inside = [(targets >= quantiles[:, i]) & (targets <= quantiles[:, j]) for i, j in ends]
    counts = summed(below)
    frequency, bounds = shares(counts, np.repeat(size[:, None], many, axis=1))
    covered = (
        shares(summed(np.stack(inside, axis=1)), np.repeat(size[:, None], len(ends), axis=1))
        if ends
        else (np.empty(0), np.empty((0, 2)))
    )
    loss, mean = pinball.mean(axis=0), pinball.mean(axis=1)
    block = groups % _BLOCKS  # every so many samples rather than runs of them: data are often sorted
    weight = np.bincount(block)
    return {
        "block_pinball": np.bincount(block, mean) / weight,
        "block_weight": weight,
        "coverage_error": float(np.abs(frequency - level).mean()),
        "calibration_p_value": _hotelling(counts - size[:, None] * level),
        "mean_pinball": float(loss.mean()),
        "mean_pinball_stderr": float(_error(summed(mean[:, None]), size, loss.mean())[0]),
        "crossing": float((np.diff(quantiles, axis=1) < 0).any(axis=1).mean()),
        "level": level,
        "frequency": frequency,
        "frequency_interval": bounds,
        "pinball": loss,
        "pinball_stderr": _error(summed(pinball), size, loss),
        "nominal": np.array([level[j] - level[i] for i, j in ends]),
        "coverage": covered[0],
        "coverage_interval": covered[1],
        "width": np.array([(quantiles[:, j] - quantiles[:, i]).mean() for i, j in ends]),
        "predictions": len(targets),
        "samples": len(size),
    }


def _error(sums: np.ndarray, size: np.ndarray, mean: Any) -> np.ndarray:
    """Return the standard error of means over all rows from the sums of each group (a ratio, linearized)."""
    n = len(size)
    if n < 2:
        return np.full(sums.shape[1], np.nan)
    off = sums - size[:, None] * mean
    return np.sqrt(n / (n - 1) * np.square(off).sum(axis=0)) / size.sum()


def _hotelling(off: np.ndarray) -> float:
    """Return the p-value of all columns of `off` (groups, k) having mean 0; NaN where that can't be told."""
    n, k = off.shape
    if n <= k + 1:
        return np.nan
    mean, covariance = off.mean(axis=0), np.atleast_2d(np.cov(off.T))
    if np.linalg.matrix_rank(covariance) < k:
        return np.nan
    t2 = n * float(mean @ np.linalg.solve(covariance, mean))
    return float(fdtrc(k, n - k, t2 * (n - k) / (k * (n - 1))))


def _check(*, levels: Any = None, **_: Any) -> None:
    _read_levels(levels)


@measurement(
    "quantile_coverage",
    section="calibration",
    options={
        "levels": Option(None, "levels of the quantiles, separated by +, as 0.1+0.5+0.9; None: the loss's own"),
        "split": SPLIT,
    },
    default=False,
    order=21,
    estimate=lambda *_, **__: 1.0,
    needs=("outputs",),
    check=_check,
)
def measure_quantiles(
    task: Task | Objective,
    *,
    seed: int = 0,
    progress: bool = False,
    levels: str | Sequence[float] | None = None,
    split: str = "test",
) -> QuantileCoverage:
    """How often targets lie below each predicted quantile and within each central interval, with intervals.

    For models that give quantiles (n, ..., q), as for the pinball loss; the levels are those that the loss has in an
    attribute called quantiles, levels, taus or q, or given. See `quantile_coverage`. Costs one forward pass.
    Raises MeasurementError where the levels aren't known, or outputs and targets don't fit them.
    """
    del seed, progress  # one forward pass and counting
    start = time.perf_counter()
    warnings: list[str] = []
    split, instead = judged_split(task, split)
    if instead:
        warnings.append("coverage on train data says little about new data: quantiles are narrower there")
    known = _read_levels(levels) or _of_loss((task.task if isinstance(task, Objective) else task).loss)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    with as_objective(task, split) as objective:
        with objective.measuring():
            for i in range(len(objective)):
                outputs, target = objective.forward(objective.begin(i))
                predicted, y = logits_of(outputs), default_target(target)
                if predicted is None or not isinstance(y, torch.Tensor) or not y.is_floating_point():
                    raise MeasurementError(
                        "the task gives no quantiles with targets: expected outputs (n, ..., q) and floating-point "
                        f"targets (n, ...), got a {type(outputs).__name__} and a {type(y).__name__}; say how with "
                        "Task(forward=lambda model, batch: (quantiles, targets))"
                    )
                found.append((predicted.detach().cpu().double(), y.detach().cpu().double()))
        objective.passes += 1
        notes, fingerprint = objective.notes, objective.fingerprint
    # Batches may have horizons of their own: each is laid out by itself, a row a target.
    rows = torch.cat([_laid_out(predicted, y, len(known)) for predicted, y in found])
    each = torch.cat([torch.full((len(y),), y.numel() // max(len(y), 1), device="cpu") for _, y in found])
    sample = torch.arange(len(each), device="cpu").repeat_interleave(each)
    targets = torch.cat([y.reshape(-1) for _, y in found])
    result = quantile_coverage(quantiles=rows, targets=targets, levels=known, groups=sample)
    return dataclasses.replace(
        result,
        split=split,
        fingerprint=fingerprint,
        settings={**result.settings, "split": split},
        warnings=tuple(warnings),
        notes=tuple(notes),
        cost=Cost(passes=1, seconds=time.perf_counter() - start),
    )


def _read_levels(levels: Any) -> list[float]:
    """Return levels that were given, "0.1+0.5+0.9" or numbers; none where they were not."""
    if levels is None:
        return []
    try:
        parts = levels.split("+") if isinstance(levels, str) else [levels] if isinstance(levels, float) else levels
        found = [float(x) for x in parts]
    except (TypeError, ValueError):
        found = []
    if not found or not all(0 < x < 1 for x in found):
        raise MeasurementError(f"levels={levels!r} are no levels within (0, 1); write them as 0.1+0.5+0.9")
    return found


def _of_loss(loss: Any) -> list[float]:
    """Return the levels that a loss holds by one of the usual names."""
    settings = getattr(loss, "settings", None)  # of a loss that was made by name
    for name in _NAMES:
        value = settings.get(name) if isinstance(settings, dict) else getattr(loss, name, None)
        if isinstance(value, torch.Tensor | np.ndarray):
            value = value.reshape(-1).tolist()
        if isinstance(value, list | tuple) and value and all(isinstance(x, float) and 0 < x < 1 for x in value):
            # A float32 buffer holds 0.1 as 0.10000000149.
            return [round(x, 6) if math.isclose(x, round(x, 6), rel_tol=1e-6) else x for x in value]
    raise MeasurementError(
        "the levels of the predicted quantiles aren't known: give them with --option "
        "quantile_coverage.levels=0.1+0.5+0.9, or let the loss hold them in an attribute called quantiles or levels"
    )
