"""The numbers that runs are compared by: each with its uncertainty, or with the reason why it is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .finals import ended
from .numbers import given
from .open_columns import own_columns, recorded_columns
from .runs import MODEL, Run
from .value import Measure, Value, measured


def _split(run: Run, quantity: str, split: str) -> Value:
    result: Any = run.get("performance")
    if result is None:
        return Value(missing=run.missing("performance"))
    if split not in result.splits:
        return Value(missing=f"no {split} data")
    at = list(result.splits).index(split)
    x = float(np.asarray(getattr(result, quantity))[at])
    if math.isnan(x) and quantity == "accuracy":
        return Value(missing="no labels")
    error = np.asarray(getattr(result, f"{quantity}_stderr"))[at]
    return measured(x, error, freedom=_freedom(result, quantity, at))


def _freedom(result: Any, quantity: str, at: int) -> float:
    """Return the degrees of freedom of a loss's standard error: its blocks of samples, less one.

    A task whose batches can't be cut has as many blocks as batches, two or three perhaps.
    """
    if quantity != "loss" or result.block_loss is None:
        return math.inf
    return max(1.0, float(np.isfinite(np.asarray(result.block_weight, dtype=float)[at]).sum()) - 1)


def _gap(run: Run, quantity: str) -> Value:
    train, test = _split(run, quantity, "train"), _split(run, quantity, "test")
    for side in (train, test):
        if side.missing:
            return Value(missing=side.missing)
    sign = 1.0 if quantity == "loss" else -1.0  # positive: worse on test
    # The two splits hold different samples, so their errors are independent.
    error = math.hypot(train.error, test.error)
    return measured(sign * (test.number - train.number), error, freedom=_joint_freedom(run, quantity, train, test))


def _joint_freedom(run: Run, quantity: str, train: Value, test: Value) -> float:
    """Return the degrees of freedom of two errors added in squares (Satterthwaite 1946, doi:10.2307/3002019)."""
    result: Any = run.get("performance")
    at = [list(result.splits).index(split) for split in ("train", "test")]
    parts = [(v.error**2, _freedom(result, quantity, i)) for v, i in zip((train, test), at, strict=True)]
    below = sum(e**2 / freedom for e, freedom in parts)
    return sum(e for e, _ in parts) ** 2 / below if below > 0 else math.inf


def _eigenvalue(run: Run, end: str) -> Value:
    result: Any = run.get("eigenvalues")
    if result is None:
        return Value(missing=run.missing("eigenvalues"))
    values, residuals = np.ravel(result.values), np.ravel(result.residuals)
    if end == "smallest" and result.which != "smallest":
        values, residuals = np.ravel(result.smallest), np.ravel(result.smallest_residuals)
    wanted = {"largest": ("largest", "both", "magnitude"), "smallest": ("smallest", "both")}[end]
    # The eigenvalue of largest magnitude is the largest of all only where it is positive.
    outermost = result.which != "magnitude" or (len(values) > 0 and values[0] > 0)
    if result.which not in wanted or not outermost:
        return Value(missing=f"not measured: only which={result.which!r} was asked for")
    if not np.isfinite(values).any():
        return Value(missing="not finite")
    at = int(np.nanargmax(values) if end == "largest" else np.nanargmin(values))
    return replace(measured(values[at], residuals[at], "residual"), step=run.probed_at.get("eigenvalues"))


def _scalar(run: Run, kind: str, name: str, error: str = "", nan: str = "not finite") -> Value:
    result: Any = run.get(kind)
    if result is None:
        return Value(missing=run.missing(kind))
    x = getattr(result, name)
    if x is None or math.isnan(float(x)):
        return Value(missing=nan)
    return replace(measured(x, getattr(result, error) if error else math.nan), step=run.probed_at.get(kind))


def _trace(run: Run) -> Value:
    recorded, error = (ended(run, "curvature", name) for name in ("trace", "trace_stderr"))
    if recorded is None or run.get("trace") is not None:
        return _scalar(run, "trace", "value", "stderr")
    return replace(measured(recorded.value, error.value if error else math.nan), step=recorded.step)


def _ece(run: Run) -> Value:
    result: Any = run.get("calibration")
    if result is None:
        return Value(missing=run.missing("calibration"))
    if result.ece is None or math.isnan(float(result.ece)):
        return Value(missing="not finite")
    low, high = (float(b) for b in np.ravel(result.ece_interval)[:2])
    return Value(float(result.ece), math.nan, low, high, "interval", step=run.probed_at.get("calibration"))


def stability_ratio(run: Run) -> Value:
    """Return the largest eigenvalue over the optimizer's stability threshold."""
    result: Any = run.get("stability")
    if result is None and (margin := ended(run, "curvature", "margin")) is not None:
        return Value(1 - margin.value, step=margin.step)
    if result is None:
        return Value(missing=run.missing("stability"))
    threshold = float(result.threshold)
    if not threshold > 0:
        return Value(missing="no threshold")
    return measured(float(result.ratio), float(result.residual) / threshold, "residual")


def _temperature(run: Run) -> Value:
    result: Any = run.get("calibration")
    none = result is not None and any(w.startswith("no temperature: no minimum") for w in result.warnings)
    return _scalar(run, "calibration", "temperature", "temperature_stderr", nan="no minimum" if none else "not fitted")


#: Kinds whose results hold several named measures of sharpness, and how the keys of their columns begin.
SHARPNESS = {"sharpness": "sharpness.", "scaled_curvature": "scaled."}


def _sharpness(kind: str, name: str) -> Callable[[Run], Value]:
    def read(run: Run) -> Value:
        result: Any = run.get(kind)
        if result is None:
            return Value(missing=run.missing(kind))
        if name not in result.names:
            return Value(missing="not measured")
        at = list(result.names).index(name)
        return measured(np.asarray(result.values)[at], np.asarray(result.stderr)[at])

    return read


def sharpness_names(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return (kind, name) of the sharpness measures that any of these runs has, in the order first seen."""
    names: dict[tuple[str, str], None] = {}
    for kind in SHARPNESS:
        for run in runs:
            result: Any = run.get(kind)
            if result is not None:
                names.update(dict.fromkeys((kind, name) for name in result.names))
    return list(names)


def measures(runs: Sequence[Run]) -> list[Measure]:
    """Return the columns of the table of runs; the sharpness columns follow from what was measured."""
    loss = "mean loss over the samples drawn, ± standard error over the samples"
    share = "share of right labels, 0 to 1, ± standard error over the samples"
    columns = [
        Measure("train_loss", "train", "Loss", lambda r: _split(r, "loss", "train"), loss, rank=0),
        Measure("test_loss", "test", "Loss", lambda r: _split(r, "loss", "test"), loss, rank=0),
        Measure("gap_loss", "gap", "Loss", lambda r: _gap(r, "loss"), "test loss minus train loss"),
        *_perplexities(runs),
        _accuracy("train", share, rank=4),
        _accuracy("test", share, rank=0),
        Measure(
            "gap_accuracy",
            "gap",
            "Accuracy",
            lambda r: _gap(r, "accuracy"),
            "train accuracy minus test accuracy",
            limits=(-1.0, 1.0),
        ),
        Measure(
            "lambda_max",
            "λ max",
            "Curvature",
            lambda r: _eigenvalue(r, "largest"),
            "largest eigenvalue of the operator measured, ± its residual ‖Av − λv‖ (it says how exact the "
            "eigenvalue is on these samples, not how it moves with the samples)",
            sharpness=True,
            rank=0,
        ),
        Measure(
            "lambda_min",
            "λ min",
            "Curvature",
            lambda r: _eigenvalue(r, "smallest"),
            "smallest eigenvalue, ± its residual; below zero: the loss curves down along that direction",
            rank=5,
        ),
        Measure(
            "trace",
            "trace",
            "Curvature",
            _trace,
            "sum of all eigenvalues, ± standard error over random draws",
            sharpness=True,
        ),
        Measure(
            "stability_ratio",
            "λ / threshold",
            "Curvature",
            stability_ratio,
            "largest eigenvalue over the largest that is stable for the optimizer, ± its residual; 1 is the edge of "
            "stability",
        ),
    ]
    columns += [
        Measure(
            f"{SHARPNESS[kind]}{name}",
            name,
            "Sharpness",
            _sharpness(kind, name),
            f"rise of the loss: {name}" if kind == "sharpness" else f"curvature: {name} (_filter: per filter's norm)",
            sharpness=True,
            rank=2 if kind == "sharpness" else 3,
        )
        for kind, name in sharpness_names(runs)
    ]
    if any(r.results.get("class_scores") for r in runs):
        columns += [
            _bounded("mean_iou", "mean IoU", "Classes", "class_scores", "mean over the classes of their IoU"),
            _bounded("mean_f1", "macro F1", "Classes", "class_scores", "mean over the classes of their F1"),
            _bounded(
                "balanced_accuracy", "balanced", "Classes", "class_scores", "mean over the classes of their recall"
            ),
        ]
    columns += [
        Measure(
            "ece",
            "ECE",
            "Calibration",
            _ece,
            "expected calibration error, share, with its 95% interval",
            rank=0,
            limits=(0.0, 1.0),
        ),
        Measure(
            "temperature",
            "T",
            "Calibration",
            _temperature,
            "fitted temperature: above 1 the model is overconfident, below 1 underconfident",
            rank=2,
            limits=(0.0, math.inf),
        ),
    ]
    if any(r.results.get("quantile_coverage") for r in runs):
        columns += [
            Measure(
                "pinball",
                "pinball",
                "Quantiles",
                lambda r: _scalar(r, "quantile_coverage", "mean_pinball", "mean_pinball_stderr"),
                "mean pinball loss over the levels, ± standard error over the samples",
            ),
            Measure(
                "coverage_error",
                "coverage error",
                "Quantiles",
                lambda r: _scalar(r, "quantile_coverage", "coverage_error"),
                "mean distance between a quantile's level and the share of targets below it",
                limits=(0.0, 1.0),
            ),
        ]
    return [*columns, *own_columns(runs), *recorded_columns(runs)]


def _bounded(name: str, label: str, group: str, kind: str, note: str) -> Measure:
    """Return the column of a share whose result holds a 95% interval for it."""

    def read(run: Run) -> Value:
        result: Any = run.get(kind)
        if result is None:
            return Value(missing=run.missing(kind))
        low, high = (float(b) for b in getattr(result, f"{name}_interval"))
        x = float(getattr(result, name))
        return Value(x, math.nan, low, high, "interval", missing="" if math.isfinite(x) else "no labels")

    return Measure(name, label, group, read, f"{note}, with its 95% interval over the samples", limits=(0.0, 1.0))


def _perplexities(runs: Sequence[Run]) -> list[Measure]:
    """Return the columns of language models, none where there are only other tasks."""
    found = [r.get("performance") for r in runs]
    if all(getattr(p, "perplexity", None) is None for p in found):
        return []
    note = "exp of the mean negative log likelihood of a token, with its 95% interval over the sequences"
    return [
        Measure(
            f"{s}_perplexity",
            s,
            "Perplexity",
            lambda r, s=s: _perplexity(r, s),
            note,
            rank=rank,
            limits=(1.0, math.inf),
        )
        for s, rank in (("train", 4), ("test", 0))
    ]


def _perplexity(run: Run, split: str) -> Value:
    result: Any = run.get("performance")
    if result is None:
        return Value(missing=run.missing("performance"))
    if getattr(result, "perplexity", None) is None:
        return Value(missing="no language model")
    if split not in result.splits:
        return Value(missing=f"no {split} data")
    at = list(result.splits).index(split)
    low, high = (float(x) for x in np.asarray(result.perplexity_interval)[at])
    return Value(float(np.asarray(result.perplexity)[at]), math.nan, low, high, "interval")


def _accuracy(split: str, note: str, rank: int) -> Measure:
    def read(run: Run) -> Value:
        return _split(run, "accuracy", split)

    return Measure(f"{split}_accuracy", split, "Accuracy", read, note, rank=rank, limits=(0.0, 1.0))


def settings(runs: Sequence[Run]) -> tuple[list[str], dict[str, str]]:
    """Return the names of the settings that differ between runs, and those that are the same, as text.

    `loss` and `schedule` come first, and are always among the first where any run names them. Of a model's whole
    configuration, most of it its class's defaults, only what differs is named.
    """
    names: dict[str, None] = {}
    for run in runs:
        names.update(dict.fromkeys(run.settings))
    texts = {name: [setting(run, name) for run in runs] for name in names}
    first = [n for n in ("loss", "schedule") if n in names]
    differ = [n for n in names if n not in first and len(set(texts[n])) > 1]
    same = {n: texts[n][0] for n in names if n not in (*first, *differ) and not n.startswith(MODEL)}
    return first + differ, same


def setting(run: Run, name: str) -> str:
    """Return one setting of a run as short text."""
    value = run.settings.get(name)
    if value is None or value == "":
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return given(float(value))
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(str(v) for v in value)
    return str(value)
