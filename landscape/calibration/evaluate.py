"""From counted predictions to a `Calibration`: every measure, its interval and its bands. No torch here."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..counted import counted
from ..errors import MeasurementError
from ..results import Cost
from .bins import Bins
from .intervals import (
    SIMULATIONS,
    accuracy_interval,
    bootstrap_ece,
    calibration_p_value,
    consistency_band,
    debiased_l2_interval,
    ece_interval,
    gap_interval,
    mean_interval,
    simulate_correct,
    simulate_grouped,
)
from .selective import risk_coverage
from .smooth import ks_error, smooth_ece
from .table import Calibration
from .totals import Atoms, Classes, Groups, Totals

# Groups below which their scatter says little (chosen by us).
_FEW_GROUPS = 10


def evaluate(
    totals: Totals,
    *,
    form: str,
    classes: int,
    bins: int,
    mass: str = "width",
    seed: int = 0,
    interval: Literal["inverted", "percentile"] = "inverted",
    strict: bool = False,
    dependent: bool = False,
    convention: str | None = None,
    ece: float | None = None,
    mce: float | None = None,
    warnings: tuple[str, ...] = (),
    settings: Mapping[str, Any] | None = None,
) -> Calibration:
    """Return every measure of these totals.

    `bins` is the number asked for, `dependent` says that samples depend on each other without being grouped; `ece` and
    `mce` replace ours where a named convention has its own. Raises MeasurementError for too little data if `strict`.
    """
    start = time.perf_counter()
    if interval not in ("inverted", "percentile"):
        raise MeasurementError(f"interval={interval!r} is not one of 'inverted', 'percentile'")
    table, atoms, groups = totals.table, totals.atoms, totals.groups
    n = atoms.samples
    noted = [*warnings, *_few(n, bins, totals.classes, form, strict)]
    if groups is not None and len(groups) < 2:
        groups, dependent = None, True
    if groups is not None and len(groups) < _FEW_GROUPS:
        noted.append(f"{len(groups)} groups of dependent samples say little about how far the numbers scatter")
    if dependent:
        noted.append(
            "several predictions come from one sample (pixels, tokens): standard errors and intervals take them "
            "as independent, and are too narrow"
        )
    if mass == "equal" and len(table) < bins:
        noted.append(f"ties leave {len(table)} equal-mass bins of the {bins} asked for")

    rng = np.random.default_rng(seed)
    simulated = simulate_correct(table, rng, atoms) if groups is None else simulate_grouped(table, groups, rng)
    smooth, (ks, ks_slack) = smooth_ece(atoms), ks_error(atoms)
    # The surest of a label's probabilities are those far from 1/2, and an error is a label predicted wrongly.
    of_labels = form in ("binary", "multilabel") and (settings or {}).get("confidence") == "positive"
    selective = risk_coverage(atoms.folded() if of_labels else atoms)
    over = np.maximum(table.signed_errors, 0.0).sum()
    confidence = float((atoms.counts * atoms.confidence).sum()) / n
    accuracy = totals.right / n
    scores = _scores(totals, n, groups)
    if totals.infinite:
        noted.append(f"nll is inf: {totals.infinite} of {n} true labels had probability 0")
    return Calibration(
        ece=table.ece if ece is None else ece,
        ece_interval=(
            ece_interval(table, groups)
            if interval == "inverted"
            else np.quantile(bootstrap_ece(table, rng, groups), [0.025, 0.975])
        ),
        mce=table.mce if mce is None else mce,
        debiased_l2=table.debiased_l2,
        **scores,
        accuracy=accuracy,
        accuracy_stderr=mean_interval(np.full(3, totals.right), n, None if groups is None else groups.right, groups)[0],
        calibration_p_value=calibration_p_value(simulated, table),
        ece_debiased=table.ece_debiased,
        overconfidence=float(over),
        underconfidence=float(np.maximum(-table.signed_errors, 0.0).sum()),
        ece_l2=table.ece_l2,
        debiased_l2_interval=debiased_l2_interval(table, groups),
        smooth_ece=smooth.ece,
        smooth_ece_bandwidth=smooth.bandwidth,
        ks=ks,
        **_decomposed(scores["brier"], totals, form),
        aurc=selective.aurc,
        excess_aurc=selective.excess,
        mean_confidence=confidence,
        confidence_gap=float(table.signed_errors.sum()),
        confidence_gap_interval=gap_interval(table, groups),
        confidence_std=math.sqrt(
            max(0.0, float((atoms.counts * (atoms.confidence - confidence) ** 2).sum()) / max(n - 1, 1))
        ),
        edges=table.edges,
        counts=table.counts,
        confidences=table.confidences,
        accuracies=table.accuracies,
        accuracy_interval=accuracy_interval(table, groups),
        consistency_band=consistency_band(simulated, table.counts),
        smooth_confidence=smooth.confidence,
        smooth_accuracy=smooth.accuracy,
        smooth_density=smooth.density,
        coverage=selective.coverage,
        risk=selective.risk,
        **_by_class(totals.classes),
        samples=n,
        classes=classes,
        groups=0 if groups is None else len(groups),
        convention=convention or "landscape",
        warnings=tuple(noted),
        notes=_notes(atoms, table, mass, selective.slack, ks_slack),
        settings={
            "bins": bins,
            "mass": mass,
            **(settings or {}),
            "kind": form,
            "seed": seed,
            "simulations": SIMULATIONS,
            "interval": {
                "inverted": "95%, folded-normal inversion",
                "percentile": "95%, percentiles of the bootstrap (fails near zero)",
            }[interval],
        },
        cost=Cost(seconds=time.perf_counter() - start),
    )


def _few(n: int, bins: int, classes: Classes, form: str, strict: bool) -> list[str]:
    """Return warnings about data that say little; raise MeasurementError for them where `strict`."""
    found = []
    if n < bins:
        found.append(f"{counted(n, 'sample')} for {bins} bins: most bins hold one sample or none")
    if classes.labels is not None and form != "multilabel":
        there = np.flatnonzero(classes.labels)
        if len(there) == 1:
            found.append(f"all {n} labels are class {there[0]}: one class says nothing about the others")
    if found and strict:
        raise MeasurementError(f"{found[0]}; give more data, or strict=False to go on with a warning")
    return found


def _notes(atoms: Atoms, table: Bins, mass: str, aurc: float, ks: float) -> tuple[str, ...]:
    if atoms.exact:
        return ()
    found = [
        f"smooth ECE, KS and risk-coverage come from cells of confidence: AURC is within {aurc:.1e}, KS at most "
        f"{ks:.1e} larger than shown"
    ]
    if mass == "equal":
        off = float(np.abs(table.counts / table.samples - 1 / len(table)).max())
        found.append(f"equal-mass bins end where cells end: their shares are within {off:.1e} of equal")
    return tuple(found)


def _scores(totals: Totals, n: int, groups: Groups | None) -> dict[str, Any]:
    """Return Brier score and NLL with standard errors and intervals; NaN for what cannot be told."""
    found: dict[str, Any] = {}
    for i, name in enumerate(("brier", "nll")):
        if totals.moments is None or (name == "nll" and totals.infinite):
            mean, error, bounds = math.nan if totals.moments is None else math.inf, math.nan, np.full(2, math.nan)
        else:
            mean = float(totals.moments[i, 0]) / n
            error, bounds = mean_interval(
                totals.moments[i], n, None if groups is None else getattr(groups, name), groups
            )
        found |= {name: mean, f"{name}_stderr": error, f"{name}_interval": bounds}
    return found


def _decomposed(brier: float, totals: Totals, form: str) -> dict[str, float]:
    """Return the parts of the Brier score by these bins, summed over the classes as the score is.

    Murphy 1973, doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2; what bins hide, the variance of the forecasts in
    a bin less twice their covariance with the outcome, is the rest (Stephenson, Coelho and Jolliffe 2008,
    doi:10.1175/2007WAF2006116.1), so that they add up to the score.
    """
    table, by_class = totals.table, totals.classes
    if form != "multiclass":
        counts, hits, sums = (x[None, :] for x in (table.counts, table.correct, table.confidence_sums))
    elif by_class.counts is not None and by_class.hits is not None and by_class.sums is not None:
        counts, hits, sums = by_class.counts, by_class.hits, by_class.sums
    else:
        return {}
    n = counts.sum(axis=1, keepdims=True)
    size = np.maximum(counts, 1)
    forecast, outcome, base = sums / size, hits / size, hits.sum(axis=1, keepdims=True) / n
    weight = counts / n
    reliability = float((weight * (forecast - outcome) ** 2).sum())
    resolution = float((weight * (outcome - base) ** 2).sum())
    uncertainty = float((base * (1 - base)).sum())
    return {
        "brier_reliability": reliability,
        "brier_resolution": resolution,
        "brier_uncertainty": uncertainty,
        "brier_within": brier - (reliability - resolution + uncertainty),
    }


def _by_class(classes: Classes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if classes.counts is not None and classes.hits is not None and classes.sums is not None:
        n = np.maximum(classes.counts.sum(axis=1), 1)
        each = np.abs(classes.sums - classes.hits).sum(axis=1) / n
        found = {
            "classwise_ece": float(each.mean()),
            "class_ece": each,
            "class_probabilities": classes.sums.sum(axis=1) / n,
            "class_counts": classes.labels,
        }
    if classes.predicted is not None and classes.right is not None and classes.confidence is not None:
        never = classes.predicted == 0
        size = np.where(never, 1, classes.predicted)
        found |= {
            "class_counts": classes.labels,
            "class_predicted": classes.predicted,
            "class_confidences": np.where(never, np.nan, classes.confidence / size),
            "class_accuracies": np.where(never, np.nan, classes.right / size),
        }
    return found
