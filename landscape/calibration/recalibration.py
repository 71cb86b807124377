"""Make a classifier's confidence match its accuracy: fit a map on some predictions, judge it on others."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..comparison.paired import Binned, Difference, ece_difference, mean_difference
from ..errors import MeasurementError
from ..results import Check, Cost
from .checked import read_predictions
from .inputs import Form, Predictions
from .maps import METHODS, ON_LOGITS, Method, converted
from .one_vs_rest import HISTOGRAM_BINS, fit_histogram, fit_isotonic
from .recalibrated import Recalibration, apply_map
from .samples import Samples
from .scores import calibration_error
from .single import score_samples
from .table import Calibration
from .temperature import temperature_of
from .vector import fit_vector

#: Below this many independent predictions each is judged by cross-fitting (chosen by us: half of 1,000 leaves an ECE's
#: standard error of about 0.02), from there on one half is judged.
CROSS_FIT_BELOW = 1000
#: Folds of the cross-fitting (5: Hastie, Tibshirani and Friedman 2009, "The elements of statistical learning", 7.10.1).
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A method's parameters, what it says about itself, and the check of its fit."""

    parameters: dict[str, np.ndarray]
    facts: dict[str, float]
    checks: tuple[Check, ...]


def recalibrate(
    method: Method = "temperature",
    *,
    logits: Any = None,
    probabilities: Any = None,
    labels: Any = None,
    held_out: tuple[Any, Any] | None = None,
    share: float = 0.5,
    folds: int | None = None,
    bins: int = 15,
    histogram_bins: int = HISTOGRAM_BINS,
    seed: int = 0,
    ignore_index: int | None = None,
    class_dim: int = 1,
    groups: Any = None,
    kind: Form | None = None,
) -> Recalibration:
    """Fit a recalibration on one part of held-out predictions and judge it on the other, with paired intervals.

    Args:
        method: "temperature" divides all logits by one T > 0 (Guo et al. 2017, arXiv:1706.04599): it changes no
            prediction, and is the one to begin with. "vector" gives each class a factor and a shift (ibid.).
            "isotonic" and "histogram" map each class's probability, one against the rest, and normalize (Zadrozny
            and Elkan 2002, 2001); they need thousands of predictions for each class that they shall mend. See
            Kull et al. 2019, arXiv:1910.12656, for how they compare.
        logits, probabilities, labels, ignore_index, class_dim, groups, kind: as in `calibration_error`; one of
            several classes, or a binary task (for each pixel: kind="binary"). Temperature and vector scaling of
            probabilities take their logarithms, so none may be 0.
        held_out: (scores, labels) to judge on, of the same kind and layout; all the others are then for the fit.
        share: share of the samples for the fit where one split is made (0.5: chosen by us).
        folds: 0 makes one split, drawn with `seed`; k >= 2 cross-fits in k folds. Default: 5 folds below 1,000
            samples, else one split (chosen by us). Pixels or tokens of one sample stay together.
        bins: of the ECE before and after. histogram_bins: of the histogram's own map.

    Returns:
        Recalibration: the map, scores and reliability tables before and after on predictions that the fit has not
        seen, and their differences with paired 95% intervals. For temperature scaling also T with its standard error.

    Cost: the fits (temperature 6 to 16 evaluations of the softmax, vector up to about 60, the others a sort for each
    class), times folds + 1 with cross-fitting, and two calibration errors.

    Raises MeasurementError as `calibration_error` does, and where there is no such fit: no temperature is a minimum
    (labels that the logits tell apart perfectly, or know nothing of), a probability of 0 for a map of logits, or too
    few predictions.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise MeasurementError(f"method={method!r} is not one of {', '.join(map(repr, METHODS))}")
    if kind in ("multilabel", "top-label"):
        raise MeasurementError(
            f'a recalibration maps the scores of several classes or of a binary task, got kind="{kind}"; recalibrate '
            "each label by itself, or the scores that the confidences come from"
        )
    how: dict[str, Any] = {"ignore_index": ignore_index, "class_dim": class_dim, "kind": kind}
    given = read_predictions(logits=logits, probabilities=probabilities, labels=labels, groups=groups, **how)
    number = _groups(given)
    size = int(number.max()) + 1
    folds = _checked(method, given, share, folds, bins, held_out is not None, size)
    warnings = list(given.warnings)

    def fit(predictions: Predictions) -> Fitted:
        return _fit(method, predictions, histogram_bins)

    if held_out is not None:
        key = "logits" if given.kind == "logits" else "probabilities"
        other = {"logits": None, "probabilities": None, key: held_out[0]}
        judged = read_predictions(labels=held_out[1], **other, **how)
        if judged.values.shape[1:] != given.values.shape[1:]:
            raise MeasurementError(
                f"held_out has {judged.classes} classes, the {key} of the fit have {given.classes}; give both alike"
            )
        kept, fitted = fit(given), len(given.labels)
        after = _apply(method, kept, judged)
    elif folds:
        kept, fitted, judged = fit(given), len(given.labels), given
        after = _cross_fitted(method, fit, given, number, size, folds, seed)
    else:
        order = np.random.default_rng(seed).permutation(size)
        chosen = np.zeros(size, dtype=bool)
        chosen[order[: int(size * share)]] = True
        # In the order of the draw, so that independent predictions are split as a permutation splits them.
        rows = order[: int(size * share)] if given.groups is None else np.flatnonzero(chosen[number])
        rest = order[int(size * share) :] if given.groups is None else np.flatnonzero(~chosen[number])
        first, judged = given.select(_rows(given, rows)), given.select(_rows(given, rest))
        kept, fitted = fit(first), len(first.labels)
        after = _apply(method, kept, judged)

    if judged.dependent and groups is None:
        warnings.append(
            "pixels or tokens of one sample depend on each other: fit, split and intervals take them together"
        )
    result = _judge(method, given, judged, after, bins, seed)
    facts: dict[str, Any] = {**kept.parameters, **kept.facts}
    return dataclasses.replace(
        result,
        **facts,
        method=method,
        input=given.kind,
        binary=given.binary,
        fitted=fitted,
        folds=folds,
        classes=given.classes,
        checks=kept.checks,
        warnings=(*warnings, *result.warnings),
        settings={
            "method": method,
            "bins": bins,
            "share": share,
            "folds": folds,
            "histogram_bins": histogram_bins,
            "seed": seed,
            "ignore_index": ignore_index,
            "held_out": held_out is not None,
            "input": given.kind,
            "dtype": given.dtype,
        },
        cost=Cost(seconds=time.perf_counter() - start),
    )


# ------------------------------------------------------------------------------------------------ fitting


def _fit(method: str, predictions: Predictions, histogram_bins: int) -> Fitted:
    if method == "temperature":
        found = temperature_of(_as_logits(predictions, method))
        if not found.converged:
            raise MeasurementError(
                f"no temperature: {found.checks[0].message} ({found.samples} predictions of the fit)"
            )
        facts = {"temperature": found.value, "temperature_stderr": found.stderr}
        return Fitted({}, facts, found.checks)
    if method == "vector":
        vector = fit_vector(_as_logits(predictions, method))
        return Fitted({"weights": vector.weights, "biases": vector.biases}, {}, (vector.check,))
    found = fit_isotonic(predictions) if method == "isotonic" else fit_histogram(predictions, histogram_bins)
    return Fitted({"knots": found.knots, "levels": found.levels, "owners": found.owners}, {}, ())


def _as_logits(predictions: Predictions, method: str) -> Predictions:
    """Return the predictions as logits; the logarithms of probabilities are such."""
    if predictions.kind == "logits":
        return predictions
    p = predictions.scores.double()
    zero = (p == 0) | (p == 1) if predictions.binary else p == 0
    rows = zero if zero.ndim == 1 else zero.any(dim=1)
    if bool(rows.any()):
        first = int(rows.int().argmax())
        raise MeasurementError(
            f"{method} scaling takes the logarithms of probabilities, and {predictions.where(first)} has a probability "
            f"of exactly {'0 or 1' if predictions.binary else 0} ({int(rows.sum())} rows have): pass logits=, or "
            'method="isotonic"'
        )
    logits = converted(p, "probabilities", "logits", binary=predictions.binary)
    return dataclasses.replace(predictions, kind="logits", scores=logits)


def _apply(method: str, fitted: Fitted, predictions: Predictions) -> np.ndarray:
    """Return recalibrated scores in float64: logits where the map moves logits, else probabilities."""
    own = fitted.parameters or {"temperature": np.array(fitted.facts["temperature"])}
    return apply_map(
        predictions.values,
        method,
        own,
        binary=predictions.binary,
        classes=predictions.classes,
        given=predictions.kind,
        wanted="logits" if method in ON_LOGITS else "probabilities",
        class_dim=1,
    )


def _cross_fitted(
    method: str,
    fit: Callable[[Predictions], Fitted],
    given: Predictions,
    number: np.ndarray,
    size: int,
    folds: int,
    seed: int,
) -> np.ndarray:
    """Return every prediction recalibrated by the map that was fitted without its fold."""
    fold = np.empty(size, dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(size)] = np.arange(size) % folds
    found = np.empty(given.values.shape)
    for k in range(folds):
        inside = fold[number] == k
        rows = np.flatnonzero(inside)
        part = fit(given.select(_rows(given, np.flatnonzero(~inside))))
        found[rows] = _apply(method, part, given.select(_rows(given, rows)))
    return found


def _checked(
    method: str, given: Predictions, share: float, folds: int | None, bins: int, split: bool, size: int
) -> int:
    """Return the number of folds (0: one split, or a held-out set); raise for what can't be done."""
    if given.form not in ("multiclass", "binary"):
        raise MeasurementError(
            f'recalibration takes one label of several classes, or a binary task, got "{given.form}"'
        )
    if not 0 < share < 1:
        raise MeasurementError(f"share={share} must lie between 0 and 1: it is the part of the samples for the fit")
    if folds is not None and (
        isinstance(folds, bool) or not isinstance(folds, int | np.integer) or folds in (1,) or folds < 0
    ):
        raise MeasurementError(f"folds={folds} must be 0 (one split) or at least 2")
    if split:
        return 0
    if size < 2 * bins:
        raise MeasurementError(
            f"{size} samples are too few to fit a {method} recalibration on one part and judge it on the other: "
            f"expected at least {2 * bins}, twice the bins; give more, or fewer bins="
        )
    found = (FOLDS if size < CROSS_FIT_BELOW else 0) if folds is None else int(folds)
    if found > size:
        raise MeasurementError(f"folds={found} exceeds the {size} samples; give fewer")
    if not found and not 0 < int(size * share) < size:
        raise MeasurementError(f"share={share} of {size} samples leaves one part empty; give another share")
    return found


def _rows(predictions: Predictions, rows: np.ndarray) -> Any:
    return torch.from_numpy(rows).to(predictions.scores.device)


def _groups(predictions: Predictions) -> np.ndarray:
    """Return the number of each prediction's sample, from 0 on."""
    if predictions.groups is None:
        return np.arange(len(predictions.labels))
    return np.unique(predictions.groups.cpu().numpy(), return_inverse=True)[1].reshape(-1)


# ------------------------------------------------------------------------------------------------ judging


def _judge(
    method: str, given: Predictions, judged: Predictions, after: np.ndarray, bins: int, seed: int
) -> Recalibration:
    """Return scores, tables and differences of the judged predictions; the map's own fields are filled in later."""
    labels = judged.labels
    kind = "logits" if method in ON_LOGITS else "probabilities"
    number = None if judged.groups is None else _groups(judged)
    tables: list[Calibration] = []
    sampled: list[Samples] = []
    mended = dataclasses.replace(judged, kind=kind, scores=torch.from_numpy(after), dtype="float64")
    for stage in (judged, mended):
        scores = {"logits": None, "probabilities": None, stage.kind: stage.scores}
        tables.append(
            calibration_error(**scores, labels=stage.truth, bins=bins, seed=seed, strict=False, groups=judged.groups)
        )
        sampled.append(score_samples(stage))
    first, second = sampled

    def binned(samples: Samples, table: Calibration) -> Binned:
        index = np.maximum(np.searchsorted(table.edges, samples.confidence, side="left") - 1, 0)
        return Binned(samples.confidence, samples.correct, index, table.bins, number)

    changes: dict[str, Difference] = {
        name: mean_difference(getattr(first, of), getattr(second, of), number)
        for name, of in (("brier", "brier"), ("nll", "nll"), ("accuracy", "correct"))
    }
    changes["ece"] = ece_difference(binned(first, tables[0]), binned(second, tables[1]), seed=seed)
    stages = ("ece", "ece_interval", "brier", "brier_stderr", "nll", "nll_stderr", "accuracy", "accuracy_stderr")
    rows = ("counts", "confidences", "accuracies", "accuracy_interval", "consistency_band")
    found: dict[str, Any] = {
        name: np.array([np.asarray(getattr(t, name)) for t in tables]) for name in (*stages, *rows)
    }
    for name, change in changes.items():
        found |= {f"{name}_change": change.value, f"{name}_change_interval": change.interval}
    return Recalibration(
        **found,
        changed=float(np.mean(first.predicted != second.predicted)),
        edges=np.asarray(tables[0].edges),
        judged=len(labels),
        warnings=tuple(dict.fromkeys(w for t in tables for w in t.warnings)),
        before=tables[0],
        after=tables[1],
    )
