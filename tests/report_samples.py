"""Runs with realistic numbers, made up: for the tests of the figures and the report, and for looking at a page.

`python tests/report_samples.py FOLDER [RUNS [STEPS]]` writes archives and their report into a folder.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from training_samples import history, record

from landscape.calibration.recalibrated import Recalibration
from landscape.calibration.samples import SampleScores
from landscape.calibration.table import Calibration
from landscape.curvature.spectrum import Eigenpairs, SharpnessEstimate, TraceEstimate
from landscape.performance import Performance
from landscape.report.runs import Run, make_run, unique
from landscape.results import Check, Cost, Result, array
from landscape.surface.slices import Line, Plane

#: (loss, schedule, sharpness factor, test accuracy, overconfidence): sharper runs are more confident here.
KINDS = (
    ("cross_entropy", "constant", 6.0, 0.958, 0.045),
    ("cross_entropy", "cosine", 2.4, 0.969, 0.028),
    ("label_smoothing", "constant", 1.3, 0.964, -0.022),
    ("label_smoothing", "cosine", 0.6, 0.972, -0.012),
)


@dataclass(frozen=True, kw_only=True)
class Curl(Result, kind="test_curl"):
    """A measurement that the report knows nothing of: a scalar, a curve with errors, and a map."""

    total: float = array(units="nats", stderr="total_error", doc="a scalar")
    total_error: float = array(units="nats")
    time: np.ndarray = array("time", units="s", coordinate=True)
    curve: np.ndarray = array("time", units="nats", stderr="curve_error", doc="a curve over time")
    curve_error: np.ndarray = array("time", units="nats")
    pairs: np.ndarray = array("layer", "time", units="share", doc="a map over layers and time")


def plane(sharp: float = 1.0, seed: int = 0, n: int = 25, m: int | None = None) -> Plane:
    """Return a basin that opens faster the sharper it is, with a ridge, on an (n, m) grid."""
    rng = np.random.default_rng(seed)
    alpha, beta = np.linspace(-1, 1, n), np.linspace(-1, 1, m or n)
    a, b = np.meshgrid(alpha, beta, indexing="ij")
    u, v = a + 0.25 * b, b - 0.15 * a
    bowl = np.log1p(4.5 * sharp * u**2 + 1.8 * sharp * v**2)
    loss = 0.012 * sharp + 0.9 * bowl + 0.12 * sharp**0.5 * (1 - np.cos(3.0 * u + rng.normal())) * (u**2 + v**2)
    center = float(0.012 * sharp)
    loss[n // 2, (m or n) // 2] = center
    return Plane(
        alpha=alpha,
        beta=beta,
        loss=loss,
        accuracy=np.exp(-loss),
        evaluated=np.ones(loss.shape, dtype=bool),
        center_loss=center,
        checkpoint_loss=center,
        loss_stderr=0.09 * center,
        cosine=0.004,
        direction_norms=np.array([11.2, 11.3]),
        samples=1024,
        split="train",
        directions=("random, filter-normalized", "random, filter-normalized"),
        cost=Cost(0, loss.size, 0.021 * loss.size),
        checks=(
            Check("center loss", "pass", "the center equals the loss of the checkpoint", 0.0, 0.0),
            Check("directions", "pass", "the two directions are nearly orthogonal", 0.004, 0.1),
        ),
        settings={"points": (n, m or n), "normalize": "filter"},
    )


def line(sharp: float = 1.0, n: int = 51) -> Line:
    """Return a slice through the same basin."""
    alpha = np.linspace(-1, 1, n)
    loss = 0.012 * sharp + 0.9 * np.log1p(4.0 * sharp * alpha**2) + 0.05 * sharp * (alpha > 0) * alpha**2
    return Line(
        alpha=alpha,
        loss=loss,
        accuracy=np.exp(-loss),
        center_loss=0.012 * sharp,
        checkpoint_loss=0.012 * sharp,
        loss_stderr=0.001 * sharp,
        direction_norm=11.2,
        samples=1024,
        cost=Cost(0, n, 0.02 * n),
    )


def eigenvalues(sharp: float = 1.0, k: int = 10, seed: int = 0) -> Eigenpairs:
    """Return both ends of a spectrum, the last pair not converged."""
    rng = np.random.default_rng(seed)
    values = 38.0 * sharp * np.exp(-0.32 * np.arange(k)) * (1 + 0.04 * rng.normal(size=k).cumsum() * 0.2)
    smallest = -1.1 * sharp**0.5 * np.exp(-0.25 * np.arange(k // 2))
    converged = np.ones(k, dtype=bool)
    converged[-1] = False
    residuals = np.abs(values[0] * 2e-4 * rng.lognormal(size=k))
    residuals[-1] = values[0] * 0.01
    return Eigenpairs(
        values=values,
        residuals=residuals,
        converged=converged,
        smallest=smallest,
        smallest_residuals=np.abs(smallest) * 0.05,
        smallest_converged=np.ones(k // 2, dtype=bool),
        complement=float(values[-1] * 0.8),
        products=64,
        parameters=26_122,
        split="train",
        which="both",
        cost=Cost(64, 384, 11.3),
        checks=(
            Check("residuals", "pass", "9 of 10 largest pairs converged", 1.1e-4, 1e-3),
            Check("converged", "warn", "the last pair did not converge; raise the number of products", 0.01, 0.001),
        ),
        settings={"k": k, "tol": 1e-3},
    )


def trace(sharp: float = 1.0, seed: int = 0, draws: int = 20) -> TraceEstimate:
    """Return an estimate of the trace with its draws."""
    samples = 210.0 * sharp * (1 + 0.06 * np.random.default_rng(seed).normal(size=draws))
    return TraceEstimate(
        value=float(samples.mean()),
        stderr=float(samples.std(ddof=1) / np.sqrt(draws)),
        samples=samples,
        products=draws,
        method="hutchinson",
        split="train",
        cost=Cost(draws, 6 * draws, 3.4),
    )


def sharpness(sharp: float = 1.0) -> SharpnessEstimate:
    """Return three measures, the adaptive one unmoved by a rescaling."""
    values = np.array([0.05, 0.21, 0.016]) * sharp ** np.array([0.9, 0.5, 0.8])
    return SharpnessEstimate(
        values=values,
        stderr=0.06 * values,
        rho=np.array([0.05, 0.5, 0.02]),
        rescaling=np.array([True, False, True]),
        names=("sam", "adaptive", "average"),
        split="train",
        cost=Cost(0, 164, 9.6),
    )


def performance(sharp: float = 1.0, accuracy: float = 0.97, n: int = 360) -> Performance:
    """Return loss and accuracy on both splits."""
    test = 0.09 + 0.016 * sharp + (0.97 - accuracy)
    return Performance(
        loss=np.array([0.012 * sharp, test]),
        loss_stderr=np.array([0.0011 * sharp, 0.011]),
        accuracy=np.array([0.9991, accuracy]),
        accuracy_stderr=np.array([0.0008, np.sqrt(accuracy * (1 - accuracy) / n)]),
        samples=np.array([1024, n]),
        parameters=26_122,
        gradient_norm=0.021 * sharp,
        weight_norm=17.4,
        splits=("train", "test"),
        fingerprints=("a1b2c3", "d4e5f6"),
        cost=Cost(0, 6, 0.4),
        checks=(Check("deterministic", "pass", "two passes agree", 0.0, 0.0),),
    )


def calibration(
    accuracy: float = 0.97, over: float = 0.03, n: int = 2000, bins: int = 15, seed: int = 0
) -> Calibration:
    """Return a reliability table of simulated predictions that are `over` too confident."""
    rng = np.random.default_rng(seed)
    confidence = np.clip(1 - rng.beta(0.6, 9.0, size=n) * 1.6, 0.12, 1 - 1e-9)
    right = rng.random(n) < np.clip(confidence - over - 0.6 * over * (confidence < 0.9), 0.02, 1)
    edges = np.arange(bins + 1) / bins
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    hits = np.bincount(index, right, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        conf = np.bincount(index, confidence, minlength=bins) / counts
        acc = hits / counts
    filled = counts > 0
    bounds, band = np.full((bins, 2), np.nan), np.full((bins, 2), np.nan)
    c, h = counts[filled], hits[filled]
    bounds[filled, 0] = np.where(h > 0, stats.beta.ppf(0.025, np.maximum(h, 1e-9), c - h + 1), 0)
    bounds[filled, 1] = np.where(h < c, stats.beta.ppf(0.975, h + 1, np.maximum(c - h, 1e-9)), 1)
    band[filled] = np.stack([stats.binom.ppf(q, c, conf[filled]) / c for q in (0.025, 0.975)], axis=1)
    gap = np.abs(acc - conf)[filled]
    ece = float((gap * c).sum() / n)
    return Calibration(
        ece=ece,
        ece_interval=np.array([max(0.0, ece - 0.009), ece + 0.011]),
        mce=float(gap.max()),
        debiased_l2=float(ece**2),
        brier=0.071,
        brier_stderr=0.0041,
        nll=0.142,
        nll_stderr=0.0121,
        accuracy=float(right.mean()),
        accuracy_stderr=float(right.std() / np.sqrt(n)),
        temperature=float(np.exp(9 * over)),
        temperature_stderr=0.031,
        calibration_p_value=0.012,
        ece_before_temperature=ece * 1.03,
        ece_after_temperature=ece * 0.4,
        edges=edges,
        counts=counts,
        confidences=conf,
        accuracies=acc,
        accuracy_interval=bounds,
        consistency_band=band,
        mean_confidence=float(confidence.mean()),
        smooth_ece=ece * 0.9,
        aurc=0.011,
        coverage=np.arange(1, 101) / 100,
        risk=np.linspace(0.2 * (1 - accuracy), 1 - float(right.mean()), 100),
        class_ece=rng.uniform(0.002, 0.02, size=10),
        class_counts=np.full(10, n // 10),
        class_probabilities=np.full(10, 0.1) + over / 10,
        class_predicted=np.append(np.full(9, n // 10), 0),
        class_confidences=np.append(np.full(9, 0.97), np.nan),
        class_accuracies=np.append(np.full(9, accuracy), np.nan),
        samples=n,
        classes=10,
        split="test",
        cost=Cost(0, 1, 0.2),
    )


def recalibration(accuracy: float = 0.97, over: float = 0.03, n: int = 1000, seed: int = 0) -> Recalibration:
    """Return temperature scaling that takes most of the overconfidence away."""
    pair = [calibration(accuracy, o, n, seed=seed) for o in (over, over / 6)]

    def both(name: str) -> np.ndarray:
        return np.array([getattr(c, name) for c in pair])

    rows = ("ece", "ece_interval", "brier", "brier_stderr", "nll", "nll_stderr", "accuracy", "accuracy_stderr")
    tables = ("counts", "confidences", "accuracies", "accuracy_interval", "consistency_band")
    change = pair[1].ece - pair[0].ece
    return Recalibration(
        **{name: both(name) for name in (*rows, *tables)},
        temperature=float(np.exp(9 * over)),
        temperature_stderr=0.031,
        ece_change=change,
        ece_change_interval=np.array([change - 0.006, change + 0.004]),
        brier_change=-0.002,
        brier_change_interval=np.array([-0.003, -0.001]),
        nll_change=-0.011,
        nll_change_interval=np.array([-0.016, -0.006]),
        accuracy_change=0.0,
        accuracy_change_interval=np.zeros(2),
        edges=pair[0].edges,
        fitted=n,
        judged=n,
        classes=10,
        split="test",
    )


def sample_scores(accuracy: float = 0.97, over: float = 0.03, n: int = 2000, seed: int = 0) -> SampleScores:
    """Return the scores of the same samples for every run: their difficulty is shared, the confidence is the run's."""
    shared, own = np.random.default_rng(77), np.random.default_rng(seed)
    hard = shared.beta(0.6, 9.0, size=n)
    confidence = np.clip(1 - hard * 1.4 + 0.01 * own.normal(size=n), 0.12, 1 - 1e-9)
    correct = shared.random(n) < np.clip(confidence - over, 0, 1)
    return SampleScores(
        confidence=confidence,
        correct=correct.astype(np.uint8),
        brier=((confidence - correct) ** 2).astype(np.float32),
        nll=-np.log(np.where(correct, confidence, 1 - confidence)).astype(np.float32),
        predictions=n,
        fingerprint="d4e5f6",
        split="test",
    )


def curl(seed: int = 0) -> Curl:
    """Return a result of the kind that the report knows nothing of."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 2, 21)
    return Curl(
        total=1.25 + seed,
        total_error=0.031,
        time=t,
        curve=np.sin(t) + seed * 0.2,
        curve_error=np.full(21, 0.05),
        pairs=rng.random((4, 21)),
    )


def results(place: int = 0, points: int = 25) -> list[Result]:
    """Return one of every result for the run at this place."""
    _, _, sharp, accuracy, over = KINDS[place % len(KINDS)]
    sharp *= 1 + 0.15 * (place // len(KINDS))
    accuracy -= 0.003 * (place // len(KINDS))
    return [
        performance(sharp, accuracy),
        plane(sharp, place, points),
        line(sharp),
        eigenvalues(sharp, seed=place),
        trace(sharp, place),
        sharpness(sharp),
        calibration(accuracy, over, seed=place),
        recalibration(accuracy, over, seed=place),
        sample_scores(accuracy, over, seed=place),
    ]


def about(place: int = 0) -> dict[str, Any]:
    """Return what an archive says about the measuring."""
    return {
        "created": "2026-03-14T09:26:53Z",
        "preset": "quick",
        "dtype": "float32",
        "versions": {"landscape-probe": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "command_line": f"landscape probe runs/{place}.pt -o runs/{place}.h5",
        "source_revision": "e83ba6e",
        "seed": 0,
        "device": "cpu",
    }


def settings(place: int = 0) -> dict[str, Any]:
    """Return how the run at this place was trained."""
    loss, schedule, *_ = KINDS[place % len(KINDS)]
    return {"loss": loss, "schedule": schedule, "optimizer": "sgd", "lr": 0.1, "batch_size": 64, "seed": place // 4}


def name(place: int = 0) -> str:
    """Return a run's name."""
    loss, schedule, *_ = KINDS[place % len(KINDS)]
    return f"{loss} {schedule}" + (f" {place // 4}" if place >= 4 else "")


def sample_runs(n: int = 4, points: int = 25, **changes: Any) -> list[Run]:
    """Return n runs with every result."""
    return unique(
        [
            make_run(
                name(i),
                results(i, points),
                **{
                    "task": "digits",
                    "settings": settings(i),
                    "about": about(i),
                    "checkpoint": f"runs/{i}.pt",
                    "fingerprint": f"{i:02d}ab34cd56",
                    "step": 1200,
                    "archive": f"runs/{i}.h5",
                    **changes,
                },
            )
            for i in range(n)
        ]
    )


def write_archives(folder: Path, n: int = 4, points: int = 25, steps: int = 0) -> list[Path]:
    """Write one archive for each of n runs, and return their paths; `steps` of training recorded in each."""
    from landscape.archive.save import save_archive
    from landscape.archive.schema import Subject

    paths = []
    for i in range(n):
        subject = Subject(f"runs/{i}.pt", f"{i:02d}ab34cd56", "digits", 1200, 12, name(i), settings(i))
        given = {"run_id": f"sample-{i}", **about(i)}
        if steps:
            record(folder / f"{i}.h5", history(i, steps), settings(i), attributes=about(i))
        paths.append(
            save_archive(
                folder / f"{i}.h5",
                results(i, points),
                subject=subject,
                run=settings(i),
                attributes=given,
                force=not steps,
                append=bool(steps),
            )
        )
    return paths


if __name__ == "__main__":
    from landscape.report.formats import write_report

    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    runs, recorded = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((2, 4), (3, 600)))
    found = write_archives(where, runs, steps=recorded)
    started = time.perf_counter()
    written = write_report(found, where / "report.html")
    print(f"{written}: {written.stat().st_size / 1e6:.2f} MB in {time.perf_counter() - started:.2f} s")
