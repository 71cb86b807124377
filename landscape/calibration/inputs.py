"""Predictions and labels as people have them, checked and never guessed: one row a prediction, class scores last."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from ..errors import MeasurementError

Kind = Literal["logits", "probabilities"]
# Class scores that are widened to float64 at a time: 32 MiB (chosen by us; fits any cache hierarchy's last level).
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Predictions:
    """Checked predictions: `values` (n, C), or (n,) for a binary task, in their own precision; `labels` (n,) int64.

    `dtype` is the precision they came in ("bfloat16" values are held in float32, exactly). `dependent` says that
    several predictions came from one sample (pixels, tokens). `warnings` are for whoever shows the numbers.
    """

    kind: Kind
    values: np.ndarray
    labels: np.ndarray
    dtype: str
    dependent: bool
    warnings: tuple[str, ...]

    @property
    def binary(self) -> bool:
        """Whether `values` belong to the positive class of a binary task."""
        return self.values.ndim == 1

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 2 if self.binary else self.values.shape[1]

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give (values in float64, labels) in blocks of rows, so that memory stays bounded."""
        step = max(1, _CHUNK // (1 if self.binary else self.classes))
        for start in range(0, len(self.labels), step):
            rows = slice(start, start + step)
            yield self.values[rows].astype(np.float64), self.labels[rows]


@dataclass(frozen=True)
class Scored:
    """For each prediction, (n,): the top label's confidence and whether it is right, its Brier score and its NLL."""

    confidence: np.ndarray
    correct: np.ndarray
    brier: np.ndarray
    nll: np.ndarray


def read_predictions(
    *, logits: Any, probabilities: Any, labels: Any, ignore_index: int | None, class_dim: int
) -> Predictions:
    """Check one of `logits` and `probabilities` with its labels, and lay them out one row a prediction.

    Raises MeasurementError (one line: expected, got, what to do) for everything that does not fit, and TypeError
    for an ignore_index or class_dim that is no integer.
    """
    if (logits is None) == (probabilities is None):
        raise MeasurementError(
            f"give logits= or probabilities=, exactly one of them, got {'neither' if logits is None else 'both'}: "
            "which of the two the numbers are is never guessed"
        )
    for name, value in (("ignore_index", ignore_index), ("class_dim", class_dim)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    kind: Kind = "probabilities" if logits is None else "logits"
    values, dtype = _floating(kind, probabilities if logits is None else logits)
    truth = _whole(labels)
    values, where = _flatten(kind, values, truth, class_dim)
    dependent = truth.ndim > 1
    truth = truth.reshape(-1)
    if not len(truth):
        raise MeasurementError(f"no predictions: {kind} and labels are empty")
    if ignore_index is not None:
        kept = np.flatnonzero(truth != ignore_index)
        if not len(kept):
            raise MeasurementError(f"no predictions: all {len(truth)} labels are ignore_index={ignore_index}")
        if len(kept) < len(truth):
            values, truth, where = values[kept], truth[kept], _renamed(where, kept)

    warnings = _check_values(kind, values, dtype, where)
    _check_labels(truth, 2 if values.ndim == 1 else values.shape[1], where)
    return Predictions(kind, np.ascontiguousarray(values), truth, dtype, dependent, warnings)


def score(predictions: Predictions) -> Scored:
    """Return confidence, correctness, Brier score and NLL (nats) of each prediction, computed in float64.

    The first class wins a tie, a binary score at its threshold counts as class 0. Brier is sum_k (p_k - 1[y=k])^2
    over the classes, and (p - y)^2 for a binary task (half of the two-class sum). NLL of a probability of exactly 0
    is inf; nothing is clipped.
    """
    parts = [_score_block(predictions, x, y) for x, y in predictions.chunks()]
    return Scored(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def positive_probability(predictions: Predictions) -> np.ndarray:
    """Return the probability of class 1 of a binary task, (n,) float64."""
    values = predictions.values.astype(np.float64)
    return expit(values) if predictions.kind == "logits" else values


def _score_block(predictions: Predictions, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    from_logits = predictions.kind == "logits"
    if predictions.binary:
        p = expit(x) if from_logits else x
        sure = expit(np.abs(x)) if from_logits else np.maximum(x, 1 - x)
        right = (x > (0.0 if from_logits else 0.5)) == (y == 1)
        signed = np.where(y == 1, -x, x)
        nll = np.logaddexp(0.0, signed) if from_logits else _surprise(np.where(y == 1, x, 1 - x))
        return sure, right, (p - y) ** 2, nll
    rows = np.arange(len(y))
    top = x.argmax(axis=1)  # of the scores themselves: exact ties only
    if from_logits:
        shifted = x - x[rows, top][:, None]
        p = np.exp(shifted)
        total = p.sum(axis=1)
        p /= total[:, None]
        nll = np.log(total) - shifted[rows, y]
    else:
        p = x
        nll = _surprise(x[rows, y])
    sure = p[rows, top]
    p[rows, y] -= 1.0
    return sure, top == y, np.einsum("nc,nc->n", p, p), nll


def _surprise(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # log 0 = -inf is the answer here
        return -np.log(p) + 0.0  # no -0.0


def _host(value: Any) -> tuple[Any, str]:
    """Return (NumPy array, name of the dtype it came in); a tensor comes to the CPU, bfloat16 as float32."""
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        name = str(tensor.dtype).removeprefix("torch.")
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(), name
    array = np.asarray(value)
    return array, str(array.dtype)


def _floating(kind: Kind, value: Any) -> tuple[np.ndarray, str]:
    array, dtype = _host(value)
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise MeasurementError(
            f"{kind} must be floating point numbers (float16, bfloat16, float32 or float64), got {dtype}"
        )
    return array, dtype


def _whole(labels: Any) -> np.ndarray:
    if labels is None:
        raise MeasurementError("labels are missing: give labels=, one class index for each prediction")
    array, dtype = _host(labels)
    if array.dtype.kind not in "iub":
        raise MeasurementError(
            f"labels must be class indices (integers), got {dtype}; convert them, e.g. labels.astype(int) or "
            "labels.long()"
        )
    return array.astype(np.int64)


def _flatten(
    kind: Kind, values: np.ndarray, labels: np.ndarray, class_dim: int
) -> tuple[np.ndarray, Callable[[int], str]]:
    """Return values as (n,) or (n, C) in the order of labels.reshape(-1), and the names of rows for messages."""
    shape = labels.shape
    if labels.ndim == 1 and values.ndim == 1:
        if len(values) != len(labels):
            raise MeasurementError(f"{len(values)} {kind} for {len(labels)} labels; give one label a prediction")
        return values, _row
    if labels.ndim == 0 or values.ndim != labels.ndim + 1:
        raise MeasurementError(
            f"{kind} of shape {values.shape} don't fit labels of shape {shape}: expected (n, classes) with (n,), "
            "(n, classes, ...) with (n, ...), or (n,) with (n,) for a binary task; labels are class indices, not "
            "one-hot"
        )
    if not -values.ndim <= class_dim < values.ndim:
        raise MeasurementError(f"class_dim={class_dim} is not a dimension of {kind} of shape {values.shape}")
    last = np.moveaxis(values, class_dim, -1)
    if last.shape[:-1] != shape:
        hint = "" if values.shape[:-1] != shape else "; they fit with class_dim=-1"
        raise MeasurementError(
            f"{kind} of shape {values.shape} with the classes along dim {class_dim} don't fit labels of shape "
            f"{shape}: expected labels of shape {last.shape[:-1]}{hint}"
        )
    if last.shape[-1] < 2:
        raise MeasurementError(
            f"{kind} of shape {values.shape} have {last.shape[-1]} class; for a binary task give them with shape "
            "(n,), e.g. [:, 0]"
        )
    if labels.ndim == 1:
        return last, _row

    def position(row: int) -> str:
        return f"position ({', '.join(str(int(i)) for i in np.unravel_index(row, shape))})"

    return last.reshape(-1, last.shape[-1]), position


def _renamed(where: Callable[[int], str], kept: np.ndarray) -> Callable[[int], str]:
    return lambda row: where(int(kept[row]))


def _row(row: int) -> str:
    return f"row {row}"


def _check_values(kind: Kind, values: np.ndarray, dtype: str, where: Callable[[int], str]) -> tuple[str, ...]:
    bad = ~np.isfinite(values)
    if bad.any():
        first = int(np.argmax(bad if bad.ndim == 1 else bad.any(axis=1)))
        found = values[first] if bad.ndim == 1 else values[first][bad[first]][0]
        rows = int(np.count_nonzero(bad if bad.ndim == 1 else bad.any(axis=1)))
        raise MeasurementError(
            f"{kind} must be finite, got {found} in {where(first)} ({rows} of {len(values)} rows are affected); "
            "leave them out, or look for the layer that makes them"
        )
    # Rounding p_k to its own precision moves the sum by at most half a unit; printed ones keep a few digits.
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 0.0)
    tolerance = max(1e-3, 4 * eps)
    inside = bool(values.min() >= 0 and values.max() <= 1)
    if values.ndim == 1:
        if kind == "probabilities" and not inside:
            first = int(np.argmax((values < 0) | (values > 1)))
            raise MeasurementError(
                f"probabilities must lie in [0, 1], got {values[first]} in {where(first)}; "
                "if these are logits, pass them as logits="
            )
        if kind == "logits" and inside:
            return ("all logits lie in [0, 1]: if they are probabilities, pass them as probabilities=",)
        return ()
    sums = values.sum(axis=1, dtype=np.float64)
    unit = np.abs(sums - 1) <= tolerance
    if kind == "logits":
        if inside and bool(unit.all()):
            raise MeasurementError(
                "these logits lie in [0, 1] and every row sums to 1: they are probabilities; "
                "pass them as probabilities="
            )
        return ()
    if not inside:
        outside = (values < 0) | (values > 1)
        first = int(np.argmax(outside.any(axis=1)))
        raise MeasurementError(
            f"probabilities must lie in [0, 1], got {values[first][outside[first]][0]} in {where(first)}; "
            "if these are logits, pass them as logits="
        )
    if not unit.all():
        first = int(np.argmin(unit))
        raise MeasurementError(
            f"the probabilities of a row must sum to 1 (within {tolerance:g}), got {sums[first]:.6g} in "
            f"{where(first)}; if these are logits, pass them as logits="
        )
    return ()


def _check_labels(labels: np.ndarray, classes: int, where: Callable[[int], str]) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if not wrong.any():
        return
    first = int(np.argmax(wrong))
    label = int(labels[first])
    if label < 0:
        raise MeasurementError(
            f"label {label} in {where(first)} is negative; if it marks what shall not count, pass ignore_index={label}"
        )
    raise MeasurementError(
        f"label {label} in {where(first)} lies outside the {classes} classes, 0 to {classes - 1}; "
        "check the labels, or pass ignore_index= if it marks what shall not count"
    )
