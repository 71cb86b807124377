"""Calibration of a task's model on its held-out data, as `landscape probe` runs it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch

from ..errors import MeasurementError
from ..objective import Objective, as_objective
from ..results import Cost, Option, measurement
from ..tasks import Task
from .recalibration import fit_temperature
from .scores import calibration_error
from .table import Calibration


@measurement(
    "calibration",
    options={
        "bins": Option(15, "confidence bins of equal width", "Guo et al. 2017, arXiv:1706.04599"),
        "split": Option("test", "data to judge on; train where the task has no test data, with a warning"),
    },
    order=20,
    estimate=lambda *_, **__: 1.0,
    needs=("labels",),
)
def measure_calibration(
    task: Task | Objective, *, bins: int = 15, seed: int = 0, progress: bool = False, split: str = "test"
) -> Calibration:
    """Top-label calibration on held-out data, before and after temperature scaling.

    ECE, scores and the reliability table are those of `calibration_error` on all predictions of the split's draw.
    The temperature is fitted on one half of them, drawn with `seed`, and judged on the other: compare
    `ece_before_temperature` with `ece_after_temperature`, both on that other half (a smaller sample has a larger
    plug-in ECE, so `ece` is no match for them). Costs one forward pass (of the draw).

    Raises MeasurementError where the task has no class labels there, or its outputs are no class scores.
    """
    del progress  # one forward pass and a second of arithmetic
    start = time.perf_counter()
    warnings: list[str] = []
    if isinstance(task, Objective):
        split = task.split
    elif split == "test" and task.splits == ("train",):
        split = "train"
        warnings.append("the task has no test data")
    if split == "train":
        warnings.append(
            "calibration on train data says little about new data: a model is surer of what it was trained on"
        )
    with as_objective(task, split) as objective:
        before = objective.passes
        logits, labels = objective.predictions()
        passes = objective.passes - before
        samples, notes = objective.samples, objective.notes
    if len(labels) > samples:
        warnings.append(
            f"{len(labels)} predictions come from {samples} samples (pixels, tokens): standard errors and intervals "
            "take them as independent, and are too narrow"
        )
    saturated = bool(torch.isinf(logits).any())
    if logits.ndim == 1 and saturated and not bool(torch.isnan(logits).any()):
        # Probabilities of exactly 0 or 1 (a loss on probabilities) have no finite logit, but are calibrated as any.
        result = calibration_error(probabilities=torch.sigmoid(logits), labels=labels, bins=bins, seed=seed)
        warnings.append("some probabilities are exactly 0 or 1: no temperature can be fitted")
        changes: dict[str, Any] = {}
    else:
        result = calibration_error(logits=logits, labels=labels, bins=bins, seed=seed)
        changes = _with_temperature(logits, labels, bins, seed, warnings)
    return dataclasses.replace(
        result,
        split=split,
        settings={**result.settings, "split": split},
        warnings=(*warnings, *result.warnings),
        notes=(*notes, *result.notes),
        cost=Cost(passes=passes, seconds=time.perf_counter() - start),
        **changes,
    )


def _with_temperature(
    logits: torch.Tensor, labels: torch.Tensor, bins: int, seed: int, warnings: list[str]
) -> dict[str, Any]:
    """Return the fields that fitting on one half and judging on the other gives; none with too few samples."""
    n = len(labels)
    if n < 2 * bins:
        warnings.append(f"{n} samples are too few to fit a temperature on one half and judge it on the other")
        return {}
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    fit, judge = order[: n // 2], order[n // 2 :]
    try:
        temperature = fit_temperature(logits[fit], labels[fit])
        scaled = logits[judge].double() / temperature.value
        pair = [
            calibration_error(logits=x, labels=labels[judge], bins=bins, seed=seed).ece for x in (logits[judge], scaled)
        ]
    except MeasurementError as error:  # a half may hold one class only, where the whole holds more
        warnings.append(f"no temperature: {error}")
        return {}
    if not temperature.converged:
        warnings.append(temperature.checks[0].message)
    return {
        "temperature": temperature.value,
        "temperature_stderr": temperature.stderr,
        "ece_before_temperature": pair[0],
        "ece_after_temperature": pair[1],
        "checks": temperature.checks,
    }
