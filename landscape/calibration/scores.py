"""Calibration of saved or fresh predictions: `calibration_error`, the first function to read here."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import numpy as np

from ..errors import MeasurementError
from ..results import Cost
from .bins import Bins, equal_mass_edges, equal_width_edges, right_closed
from .conventions import CONVENTIONS
from .inputs import Predictions, Scored, positive_probability, read_predictions, score
from .intervals import (
    SIMULATIONS,
    calibration_p_value,
    clopper_pearson,
    consistency_band,
    ece_interval,
    simulate_correct,
)
from .table import Calibration


def calibration_error(
    *,
    logits: Any = None,
    probabilities: Any = None,
    labels: Any = None,
    bins: int = 15,
    convention: Literal["torchmetrics", "netcal", "guo"] | None = None,
    mass: Literal["width", "equal"] = "width",
    confidence: Literal["top", "positive"] | None = None,
    ignore_index: int | None = None,
    class_dim: int = 1,
    seed: int = 0,
    strict: bool | None = None,
) -> Calibration:
    """How far the confidence of a classifier is from its accuracy: ECE with an interval, scores, reliability table.

    Args:
        logits, probabilities: exactly one of them, a torch tensor or NumPy array of floats: (n, C) for C classes,
            (n, C, ...) for pixels or tokens, (n,) for a binary task (of class 1).
        labels: class indices, integers: (n,), (n, ...), or {0, 1} for a binary task.
        bins: number of bins (15: Guo et al. 2017).
        convention: None is ours: confidences in float64, int64 counts, float64 sums, edges i/bins, intervals (lo, hi]
            with 0 in the first bin, the first class wins ties, empty bins add nothing. "torchmetrics" (1.9), "netcal"
            (1.4) and "guo" give ECE, MCE and bins of those implementations to the last bit (see `conventions.py`);
            the other scores stay ours.
        mass: "width" for bins of equal width, "equal" for bins of equal counts (ties stay together; fewer bins
            where one confidence fills several).
        confidence: of a binary task: "top" (our default) is that of the predicted class, so that (n,) and its two
            columns give the same; "positive" that of class 1, as scikit-learn's curve and the named conventions
            have it.
        ignore_index: label of what shall not count, e.g. -100.
        class_dim: where the classes lie (1: torch; -1 for Transformers' (n, length, C)).
        seed: of the simulated labels behind the consistency band and the test.
        strict: refuse fewer samples than bins, and labels of one class only; False makes warnings of them. Default:
            True for our own convention, False for the named ones, which take them.

    Returns:
        Calibration. `ece_interval` is for the population's ECE at these bins (see `intervals.ece_interval` for
        what it covers and what not), `calibration_p_value` tests whether the confidences are true. `brier` sums over
        classes (for a binary task (p - y)^2, half of that), `nll` is in nats, inf where a true label had probability
        0 (said in the warnings); standard errors are over the samples, sample standard deviation / sqrt(n).

    Cost: one pass over the scores, O(n log n) for the consistency band; below 0.5 s for 10,000 samples.

    Raises:
        MeasurementError (a ValueError) in one line for everything that does not fit: both or neither of logits and
        probabilities, NaN or inf (the row is named), probabilities outside [0, 1] or not summing to 1, logits that
        are probabilities, labels out of range, negative, float, or one-hot, shapes that do not fit, no data, fewer
        samples than bins, one class only, an unknown convention. TypeError for wrong types of the settings.

    Sources: Naeini, Cooper and Hauskrecht 2015 (AAAI); Guo et al. 2017, arXiv:1706.04599, eq. 3 (ECE), eq. 5 (MCE);
    Kumar et al. 2019, arXiv:1909.10155 (debiased L2); Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    start = time.perf_counter()
    _check_settings(bins, convention, mass, confidence, seed, strict)
    predictions = read_predictions(
        logits=logits, probabilities=probabilities, labels=labels, ignore_index=ignore_index, class_dim=class_dim
    )
    if confidence == "positive" and not predictions.binary:
        raise MeasurementError(
            f'confidence="positive" needs a binary task of shape (n,), got {predictions.classes} classes; '
            "give the scores of class 1 alone"
        )
    view = confidence or ("positive" if convention and predictions.binary else "top")
    warnings = [*predictions.warnings, *_few(predictions, bins, convention is None if strict is None else strict)]
    if predictions.dependent:
        warnings.append(
            "several predictions come from one sample (pixels, tokens): standard errors and intervals take them "
            "as independent, and are too narrow"
        )
    scored = score(predictions)
    table, ece, mce, sure, index = _fill(predictions, scored, bins, convention, mass, view)
    if len(table) < bins:
        warnings.append(f"ties leave {len(table)} equal-mass bins of the {bins} asked for")

    simulated = simulate_correct(sure, index, len(table), np.random.default_rng(seed))
    nll, nll_stderr = _mean(scored.nll)
    if math.isinf(nll):
        zeros = int(np.count_nonzero(np.isinf(scored.nll)))
        warnings.append(f"nll is inf: {zeros} of {len(scored.nll)} true labels had probability 0")
    brier, brier_stderr = _mean(scored.brier)
    accuracy, accuracy_stderr = _mean(scored.correct)
    return Calibration(
        ece=ece,
        ece_interval=ece_interval(table),
        mce=mce,
        debiased_l2=table.debiased_l2,
        brier=brier,
        brier_stderr=brier_stderr,
        nll=nll,
        nll_stderr=nll_stderr,
        accuracy=accuracy,
        accuracy_stderr=accuracy_stderr,
        calibration_p_value=calibration_p_value(simulated, table),
        edges=table.edges,
        counts=table.counts,
        confidences=table.confidences,
        accuracies=table.accuracies,
        accuracy_interval=clopper_pearson(table.correct, table.counts),
        consistency_band=consistency_band(simulated, table.counts),
        samples=len(predictions.labels),
        classes=predictions.classes,
        convention=convention or "landscape",
        warnings=tuple(warnings),
        settings={
            "bins": bins,
            "mass": mass,
            "confidence": view,
            "input": predictions.kind,
            "dtype": predictions.dtype,
            "ignore_index": ignore_index,
            "seed": seed,
            "simulations": SIMULATIONS,
            "interval": "95%, folded-normal inversion",
        },
        cost=Cost(seconds=time.perf_counter() - start),
    )


def _fill(
    predictions: Predictions, scored: Scored, bins: int, convention: str | None, mass: str, view: str
) -> tuple[Bins, float, float, np.ndarray, np.ndarray]:
    """Return the filled bins, ECE, MCE, and each prediction's confidence and bin (-1: in none)."""
    if convention is not None:
        found = CONVENTIONS[convention](predictions, bins)
        table = Bins(found.edges).add(found.confidence, found.correct, found.index)
        if table.outside == table.samples:
            raise MeasurementError(
                f'every confidence is 0, and convention "{convention}" puts 0 in no bin; use convention=None'
            )
        return table, found.ece, found.mce, found.confidence, found.index
    sure, correct = scored.confidence, scored.correct
    if view == "positive":
        sure, correct = positive_probability(predictions), predictions.labels == 1
    edges = equal_width_edges(bins) if mass == "width" else equal_mass_edges(sure, bins)
    index = right_closed(sure, edges)
    table = Bins(edges).add(sure, correct, index)
    return table, table.ece, table.mce, sure, index


def _check_settings(bins: Any, convention: Any, mass: Any, confidence: Any, seed: Any, strict: Any) -> None:
    for name, value in (("bins", bins), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if strict is not None and not isinstance(strict, bool):
        raise TypeError(f"strict must be True, False or None, got {type(strict).__name__}")
    if bins < 1:
        raise MeasurementError(f"bins={bins} must be at least 1")
    if seed < 0:
        raise MeasurementError(f"seed={seed} must not be negative")
    if convention is not None and convention not in CONVENTIONS:
        raise MeasurementError(f"convention={convention!r} is not one of {', '.join(map(repr, CONVENTIONS))} or None")
    if mass not in ("width", "equal"):
        raise MeasurementError(f"mass={mass!r} is not one of 'width', 'equal'")
    if confidence not in (None, "top", "positive"):
        raise MeasurementError(f"confidence={confidence!r} is not one of 'top', 'positive' or None")
    if convention is not None and mass != "width":
        raise MeasurementError(f'convention="{convention}" has bins of equal width only; leave out one of the two')
    if convention is not None and confidence == "top":
        raise MeasurementError(
            f'convention="{convention}" takes the confidence of class 1 for a binary task; leave out confidence='
        )


def _few(predictions: Predictions, bins: int, strict: bool) -> list[str]:
    """Return warnings about data that say little; raise MeasurementError for them where `strict`."""
    found = []
    n = len(predictions.labels)
    if n < bins:
        found.append(f"{n} samples for {bins} bins: most bins hold one sample or none")
    only = np.unique(predictions.labels)
    if len(only) == 1:
        found.append(f"all {n} labels are class {only[0]}: one class says nothing about the others")
    if found and strict:
        raise MeasurementError(f"{found[0]}; give more data, or strict=False to go on with a warning")
    return found


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard error; NaN for the error where there are fewer than two values or one is inf."""
    mean = float(np.mean(values, dtype=np.float64))
    if len(values) < 2 or not math.isfinite(mean):
        return mean, math.nan
    return mean, float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(len(values))
