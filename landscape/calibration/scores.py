"""Calibration of saved or fresh predictions: `calibration_error`, the first function to read here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..errors import MeasurementError
from ..results import Cost
from .accumulator import EXACT, CalibrationAccumulator
from .bins import Bins, checked_bins
from .checked import verify
from .conventions import CONVENTIONS
from .evaluate import evaluate
from .inputs import Form, kept, lay_out
from .table import Calibration


def calibration_error(
    *,
    logits: Any = None,
    probabilities: Any = None,
    labels: Any = None,
    bins: int | Sequence[float] | np.ndarray = 15,
    convention: Literal["torchmetrics", "netcal", "guo"] | None = None,
    mass: Literal["width", "equal"] = "width",
    confidence: Literal["top", "positive"] | None = None,
    kind: Form | None = None,
    groups: Any = None,
    classwise: bool | None = None,
    ignore_index: int | None = None,
    class_dim: int = 1,
    interval: Literal["inverted", "percentile"] = "inverted",
    seed: int = 0,
    strict: bool | None = None,
) -> Calibration:
    """How far the confidence of a classifier is from its accuracy: ECE with an interval, scores, reliability table.

    Args:
        logits, probabilities: exactly one of them, a torch tensor (on any device) or NumPy array of floats: (n, C) for
            C classes, (n, C, ...) for pixels or tokens, (n,) for a binary task (of class 1).
        labels: class indices, integers: (n,), (n, ...), or {0, 1} for a binary task.
        bins: number of bins (15: Guo et al. 2017), or their edges, rising from 0 to 1.
        convention: None is ours: confidences in float64, int64 counts, float64 sums, edges i/bins, intervals (lo, hi]
            with 0 in the first bin, the first class wins ties, empty bins add nothing. "torchmetrics" (1.9), "netcal"
            (1.4) and "guo" give ECE, MCE and bins of those implementations to the last bit (see `conventions.py`);
            the other scores stay ours.
        mass: "width" for bins of equal width, "equal" for bins of equal counts (ties stay together; fewer bins
            where one confidence fills several).
        confidence: of a binary task: "top" (our default) is that of the predicted class, so that (n,) and its two
            columns give the same; "positive" that of class 1, as scikit-learn's curve and the named conventions
            have it.
        kind: None: by shape, several classes or a binary task. "multilabel": (n, L) scores of L labels that are each
            there or not, labels (n, L) of 0 and 1 (confidence: that of the label). "binary": one score for each label,
            of any one shape (maps). "top-label": `probabilities` are confidences of predicted labels, `labels` say
            whether they are right.
        groups: integers (n,) that number what samples belong together (images of one patient): standard errors,
            intervals, band and test are then those of whole groups. Pixels, tokens and labels of one sample are a group
            by themselves.
        classwise: a table for each class (`class_ece`, ...); None: up to 1,000 classes.
        ignore_index: label of what shall not count, e.g. -100.
        class_dim: where the classes lie (1: torch; the last one where the labels fit that alone, as for a language
            model's (n, length, C); -1 says so where both are as long).
        interval: of the ECE: "inverted" (see `intervals.ece_interval`), or "percentile": that of a bootstrap of the
            plain ECE, for comparison only: it covers 0% of calibrated models.
        seed: of the simulated labels behind the consistency band and the test.
        strict: refuse fewer samples than bins, and labels of one class only; False makes warnings of them. Default:
            True for our own convention, False for the named ones, which take them.

    Returns:
        Calibration. `ece_interval` and `debiased_l2_interval` are for the population's errors at these bins (see
        `intervals.py` for what they cover and what not), `calibration_p_value` tests whether the confidences are true.
        `ece_debiased` is the ECE without its upward bias, `smooth_ece` and `ks` need no bins, `aurc` says what the
        confidence is worth for leaving predictions out. `brier` sums over classes (for a binary task (p - y)^2, half
        of that) and its four parts add up to it; `nll` is in nats, inf where a true label had probability 0 (said in
        the warnings). Standard errors are over the samples, or over groups.

    Cost: one pass over the scores (a microsecond for 1,000 classes), and a sort of at most 262,144 confidences; beyond
    that many, curves come from fine cells, with bounds in the notes. `CalibrationAccumulator` does the same batch by
    batch.

    Raises:
        MeasurementError (a ValueError) in one line for everything that does not fit: both or neither of logits and
        probabilities, NaN or inf (the row is named), probabilities outside [0, 1] or not summing to 1, logits that
        are probabilities, labels out of range, negative, float, or one-hot, shapes that do not fit, no data, fewer
        samples than bins, one class only, an unknown convention. TypeError for wrong types of the settings.

    Sources: Naeini, Cooper and Hauskrecht 2015 (AAAI); Guo et al. 2017, arXiv:1706.04599, eq. 3 (ECE), eq. 5 (MCE);
    Kumar et al. 2019, arXiv:1909.10155 (debiased L2); Kull et al. 2019, arXiv:1910.12656, section 2 (classwise);
    Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2; smooth ECE, KS, AURC and the decomposition where
    they are computed.
    """
    start = time.perf_counter()
    _check_settings(bins, convention, mass, confidence, seed, strict)
    predictions = lay_out(
        logits=logits,
        probabilities=probabilities,
        labels=labels,
        ignore_index=ignore_index,
        class_dim=class_dim,
        kind=kind,
        groups=groups,
    )
    if not len(predictions.truth):
        raise MeasurementError(f"no predictions: {predictions.kind} and labels are empty")
    if convention is not None:
        predictions = verify(kept(predictions, ignore_index))
        if confidence is None and predictions.form == "binary":
            confidence = "positive"
    accumulator = CalibrationAccumulator(
        bins=bins,
        mass=mass,
        kind=kind,
        confidence=confidence,
        ignore_index=ignore_index,
        classwise=classwise,
        exact=len(predictions.truth) if mass == "equal" else EXACT,
        defer=False,
    ).add(predictions)
    if not accumulator.samples:
        kept(predictions, ignore_index)
    totals, theirs = accumulator.totals(), {}
    if convention is not None:
        found = CONVENTIONS[convention](predictions, accumulator.settings.bins)
        table = Bins(found.edges).add(found.confidence, found.correct, found.index)
        if table.outside == table.samples:
            raise MeasurementError(
                f'every confidence is 0, and convention "{convention}" puts 0 in no bin; use convention=None'
            )
        totals = dataclasses.replace(totals, table=table, groups=None)
        theirs = {"convention": convention, "ece": found.ece, "mce": found.mce}
    result = evaluate(
        totals,
        form=predictions.form,
        classes=predictions.classes,
        bins=accumulator.settings.bins,
        mass=mass,
        seed=seed,
        interval=interval,
        strict=convention is None if strict is None else strict,
        dependent=convention is not None and predictions.groups is not None,
        warnings=tuple(dict.fromkeys((*predictions.warnings, *accumulator.warnings))),
        settings={**accumulator.facts, "ignore_index": ignore_index},
        **theirs,
    )
    return dataclasses.replace(result, cost=Cost(seconds=time.perf_counter() - start))


def _check_settings(bins: Any, convention: Any, mass: Any, confidence: Any, seed: Any, strict: Any) -> None:
    _, edges = checked_bins(bins, mass)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__}")
    if strict is not None and not isinstance(strict, bool):
        raise TypeError(f"strict must be True, False or None, got {type(strict).__name__}")
    if seed < 0:
        raise MeasurementError(f"seed={seed} must not be negative")
    if convention is None:
        return
    if convention not in CONVENTIONS:
        raise MeasurementError(f"convention={convention!r} is not one of {', '.join(map(repr, CONVENTIONS))} or None")
    if edges is None or not isinstance(bins, int | np.integer):
        raise MeasurementError(f'convention="{convention}" has bins of equal width only; leave out one of the two')
    if confidence == "top":
        raise MeasurementError(
            f'convention="{convention}" takes the confidence of class 1 for a binary task; leave out confidence='
        )
