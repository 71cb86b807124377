"""The numbers of predictions held to what they are said to be: finite, probabilities or none, labels in range."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ..errors import MeasurementError
from .inputs import Form, Predictions, kept, lay_out


def read_predictions(
    *,
    logits: Any,
    probabilities: Any,
    labels: Any,
    ignore_index: int | None,
    class_dim: int,
    kind: Form | None = None,
    groups: Any = None,
) -> Predictions:
    """Check one of `logits` and `probabilities` with its labels, and lay them out one row a prediction.

    Raises MeasurementError (one line: expected, got, what to do) for everything that does not fit, and TypeError
    for an ignore_index or class_dim that is no integer.
    """
    laid = lay_out(
        logits=logits,
        probabilities=probabilities,
        labels=labels,
        ignore_index=ignore_index,
        class_dim=class_dim,
        kind=kind,
        groups=groups,
    )
    if not len(laid.truth):
        raise MeasurementError(f"no predictions: {laid.kind} and labels are empty")
    return verify(kept(laid, ignore_index))


def verify(predictions: Predictions) -> Predictions:
    """Return the predictions with their warnings; raises MeasurementError that names the first row that is wrong."""
    warnings = _check_values(predictions)
    _check_labels(predictions.truth, predictions)
    return dataclasses.replace(predictions, warnings=warnings) if warnings else predictions


def sum_tolerance(dtype: str) -> float:
    """How far the probabilities of a row may sum from 1.

    Rounding p_k to its own precision moves the sum by at most half a unit; printed ones keep a few digits.
    """
    return max(1e-3, 4 * {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 0.0))


def _check_values(predictions: Predictions) -> tuple[str, ...]:
    kind, values, where = predictions.kind, predictions.scores, predictions.where
    low, high = (float(x) for x in torch.aminmax(values))
    if not (np.isfinite(low) and np.isfinite(high)):
        first, found, rows = _first(~torch.isfinite(values), values)
        raise MeasurementError(
            f"{kind} must be finite, got {float(found)} in {where(first)} ({rows} of {len(values)} rows are "
            "affected); leave them out, or look for the layer that makes them"
        )
    inside = low >= 0 and high <= 1
    if kind == "probabilities" and not inside:
        first, found, _ = _first((values < 0) | (values > 1), values)
        raise MeasurementError(
            f"probabilities must lie in [0, 1], got {_number(found)} in {where(first)}; "
            "if these are logits, pass them as logits="
        )
    if values.ndim == 1:
        if kind == "logits" and inside:
            return ("all logits lie in [0, 1]: if they are probabilities, pass them as probabilities=",)
        return ()
    if kind == "logits" and not inside:
        return ()
    tolerance = sum_tolerance(predictions.dtype)
    sums = values.sum(dim=1, dtype=torch.float64)
    unit = (sums - 1).abs() <= tolerance
    if kind == "logits":
        if bool(unit.all()):
            raise MeasurementError(
                "these logits lie in [0, 1] and every row sums to 1: they are probabilities; "
                "pass them as probabilities="
            )
        return ()
    if not bool(unit.all()):
        first = int(unit.int().argmin())
        raise MeasurementError(
            f"the probabilities of a row must sum to 1 (within {tolerance:g}), got {float(sums[first]):.6g} in "
            f"{where(first)}; if these are logits, pass them as logits="
        )
    return ()


def _first(bad: torch.Tensor, values: torch.Tensor) -> tuple[int, torch.Tensor, int]:
    """Return the first row with a bad number, that number, and how many rows have one."""
    rows = bad if bad.ndim == 1 else bad.any(dim=1)
    first = int(rows.int().argmax())
    return first, values[first] if bad.ndim == 1 else values[first][bad[first]][0], int(rows.sum())


def _number(value: torch.Tensor) -> str:
    return str(value.item()) if value.dtype == torch.float64 else f"{value.item():.7g}"


def _check_labels(labels: torch.Tensor, predictions: Predictions) -> None:
    classes = 2 if predictions.binary else predictions.classes
    low, high = (int(x) for x in torch.aminmax(labels))
    if low >= 0 and high < classes:
        return
    first = int(((labels < 0) | (labels >= classes)).int().argmax())
    label, where = int(labels[first]), predictions.where(first)
    if label < 0:
        raise MeasurementError(
            f"label {label} in {where} is negative; if it marks what shall not count, pass ignore_index={label}"
        )
    raise MeasurementError(
        f"label {label} in {where} lies outside the {classes} classes, 0 to {classes - 1}; "
        "check the labels, or pass ignore_index= if it marks what shall not count"
    )
