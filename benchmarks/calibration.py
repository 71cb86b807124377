"""How fast calibration is measured: against torchmetrics and netcal in their ordinary use, and against the memory.

Targets: the ECE of 10 million top-label predictions 5 times as fast as torchmetrics, 20 times as fast as netcal; that
of a million predictions of 1,000 classes from float32 logits 3 times as fast as torchmetrics, with exact ties and
within 1e-9 of float64; an interval at most 3 times the cost of the measure itself on a million samples; memory that
does not depend on the number of samples. Ways are timed in turn, by processor time, so that a busy machine hits all
alike, though others' traffic on the memory slows most what goes through it most: read ratios.

What limits the logits: a float64 exponential takes 0.8 ns on an AMD Zen 4 (NumPy's; torch's 1.7), reading and the top
0.2, widening and the sum 0.3, while all of torchmetrics in float32 takes 3.2 there: the factor of 3 is reached by the
compiled kernel, which a user has to ask for, and not by calls of NumPy, one after the other. So it is with 20 times
netcal on pairs, which calls of NumPy and torch reach or miss with the noise of the machine.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from landscape.calibration.accumulator import CalibrationAccumulator
from landscape.calibration.intervals import bootstrap_ece, debiased_l2_interval, ece_interval

BINS, CLASSES, BATCH, ROWS = 15, 1000, 100_000, 8192
TARGETS = {"torchmetrics_pairs": 5.0, "netcal_pairs": 20.0, "torchmetrics_logits": 3.0, "interval": 3.0, "error": 1e-9}


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast calibration is measured.")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each way (default 5)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch (default 1: a busy machine makes more wait for each other)",
    )
    parser.add_argument("--pairs", type=int, default=10_000_000, help="top-label predictions (default 10 million)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="predictions of 1,000 classes (default 1 million)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    harness.LIBRARIES = (*harness.LIBRARIES, "torchmetrics", "netcal")
    figures = {
        "targets": TARGETS,
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "pairs": pairs(given.pairs, given.runs),
        "logits": logits(given.rows, given.runs),
        "interval": intervals(given.runs),
    }
    print(harness.write("calibration", figures, given.out))


def pairs(n: int, runs: int) -> dict[str, Any]:
    """Time the ECE of n pairs of a float32 confidence and right or wrong, in batches of 100,000 where there are any."""
    from torchmetrics.classification import BinaryCalibrationError

    g = torch.Generator().manual_seed(0)
    c = 1 - 0.5 * torch.rand(n, generator=g) ** 2.5
    y = (torch.rand(n, generator=g) < c - 0.02).long()
    gap = c.numpy().astype(np.float64) - y.numpy()
    edges = np.arange(1, BINS) / BINS
    exact = float(np.abs(np.bincount(np.searchsorted(edges, c.numpy().astype(np.float64)), gap)).sum() / n)
    del gap
    batches = list(zip(c.split(BATCH), y.split(BATCH), strict=True))

    def ours(**settings: Any) -> Callable[[], float]:
        def run() -> float:
            accumulator = CalibrationAccumulator(kind="top-label", **settings)
            for p, t in batches:
                accumulator.update(probabilities=p, labels=t)
            return accumulator.compute().ece

        return run

    def torchmetrics(validate: bool) -> Callable[[], float]:
        def run() -> float:
            metric = BinaryCalibrationError(n_bins=BINS, validate_args=validate)
            for p, t in batches:
                metric.update(p, t)
            return float(metric.compute())

        return run

    def netcal() -> float:
        from netcal.metrics import ECE

        found: Any = ECE(BINS).measure(c.numpy(), y.numpy())
        return float(found)

    ways = {
        "ours": ours(scores=False, exact=0),
        "ours, compiled": ours(scores=False, exact=0, compiled=True),
        "ours with Brier score, NLL and exact ranks of the first 262,144": ours(),
        "torchmetrics": torchmetrics(True),
        "torchmetrics without validation": torchmetrics(False),
        "netcal": netcal,
    }
    found = timed(ways, runs, exact)
    state = {}
    for count in (n // 10, n):
        accumulator = CalibrationAccumulator(kind="top-label", exact=0)
        for p, t in batches[: count // BATCH]:
            accumulator.update(probabilities=p, labels=t)
        state[str(count)] = _bytes(accumulator.state_dict())
    print("bytes kept:", state)
    return {"samples": n, "batch": BATCH, **found, "bytes_kept": state}


def logits(n: int, runs: int) -> dict[str, Any]:
    """Time the ECE of n rows of 1,000 float32 logits, in batches of 8,192 (8 of them in memory, taken in turn)."""
    from torchmetrics.classification import MulticlassCalibrationError

    g = torch.Generator().manual_seed(1)
    held = []
    for _ in range(8):
        z = torch.randn(ROWS, CLASSES, generator=g) * 3
        held.append((z, torch.where(torch.rand(ROWS, generator=g) < 0.6, z.argmax(1), z[:, :1].long()[:, 0].abs())))
    batches = [held[i % 8] for i in range(max(1, n // ROWS))]
    exact = _exact(held[: len(batches)], [len(batches) // 8 + (i < len(batches) % 8) for i in range(8)])

    def ours(**settings: Any) -> Callable[[], float]:
        def run() -> float:
            accumulator = CalibrationAccumulator(**settings)
            for z, t in batches:
                accumulator.update(logits=z, labels=t)
            return accumulator.compute().ece

        return run

    def torchmetrics() -> float:
        metric = MulticlassCalibrationError(CLASSES, n_bins=BINS)
        for z, t in batches:
            metric.update(z, t)
        return float(metric.compute())

    def read() -> float:
        for z, _ in batches:
            z.sum()
        return exact

    ways = {
        "ours": ours(scores=False, classwise=False, exact=0),
        "ours with Brier score and NLL": ours(classwise=False),
        "ours with a table for each class": ours(),
        "ours, compiled": ours(scores=False, classwise=False, exact=0, compiled=True),
        "ours with Brier score and NLL, compiled": ours(classwise=False, compiled=True),
        "ours with a table for each class, compiled": ours(compiled=True),
        "torchmetrics": torchmetrics,
        "reading the logits once": read,
    }
    return {"rows": len(batches) * ROWS, "classes": CLASSES, "batch": ROWS, **timed(ways, runs, exact)}


def intervals(runs: int) -> dict[str, Any]:
    """Time what an interval adds to the ECE of a million pairs."""
    n = 1_000_000
    g = torch.Generator().manual_seed(2)
    c = 1 - 0.5 * torch.rand(n, generator=g) ** 2.5
    y = (torch.rand(n, generator=g) < c - 0.02).long()
    wide, right = c.numpy().astype(np.float64), y.numpy()
    index = np.searchsorted(np.arange(1, BINS) / BINS, wide)
    rng = np.random.default_rng(0)

    def table() -> Any:
        accumulator = CalibrationAccumulator(kind="top-label", scores=False, exact=0)
        return accumulator.update(probabilities=c, labels=y).totals().table

    def resampled() -> float:
        take = rng.integers(n, size=n)
        return float(np.abs(np.bincount(index[take], (wide - right)[take])).sum() / n)

    kept = table()
    ways: dict[str, Callable[[], object]] = {
        "the ECE": lambda: table().ece,
        "its interval": lambda: ece_interval(kept),
        "the interval of the squared error": lambda: debiased_l2_interval(kept),
        "1,000 resamples of the counts": lambda: bootstrap_ece(kept, rng),
        "1 resample of the samples": resampled,
    }
    timings = harness.time_by_turns(ways, runs=runs, clock=time.process_time)
    seconds = {name: timing.median for name, timing in timings.items()}
    ratios = {
        "interval_over_measure": round(seconds["its interval"] / seconds["the ECE"], 4),
        "both_intervals_over_measure": round(
            (seconds["its interval"] + seconds["the interval of the squared error"]) / seconds["the ECE"], 4
        ),
        "resampling_samples_over_counts": round(
            1000 * seconds["1 resample of the samples"] / seconds["1,000 resamples of the counts"], 1
        ),
    }
    for name, value in seconds.items():
        print(f"{value * 1000:9.2f} ms  {name}")
    print(ratios)
    return {"samples": n, "seconds": {name: t.summary() for name, t in timings.items()}, "ratios": ratios}


def timed(ways: dict[str, Callable[[], float]], runs: int, exact: float) -> dict[str, Any]:
    """Time the ways in turn, and say how far each lies from the exact ECE."""
    values: dict[str, float] = {}

    def keeping(name: str) -> Callable[[], None]:
        def run() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values[name] = ways[name]()

        return run

    timings = harness.time_by_turns({name: keeping(name) for name in ways}, runs=runs, clock=time.process_time)
    first = timings["ours"].median
    for name, timing in timings.items():
        off = abs(values[name] - exact)
        print(f"{timing.median * 1000:9.0f} ms  {timing.median / first:6.2f}x  off by {off:.1e}  {name}", flush=True)
    return {
        "exact_ece": exact,
        "seconds": {name: timing.summary() for name, timing in timings.items()},
        "times_ours": {name: round(timing.median / first, 2) for name, timing in timings.items()},
        "times_ours_compiled": {
            name: round(timing.median / timings["ours, compiled"].median, 2) for name, timing in timings.items()
        },
        "least_times_ours": {
            name: round(min(timing.seconds) / min(timings["ours"].seconds), 2) for name, timing in timings.items()
        },
        "error": {name: float(f"{abs(value - exact):.2e}") for name, value in values.items()},
    }


def _exact(held: list[tuple[torch.Tensor, torch.Tensor]], times: list[int]) -> float:
    """Return the ECE with every step in float64, batches taken so many times."""
    gaps, total = np.zeros(BINS), 0
    for (z, y), k in zip(held, times, strict=False):
        p = z.double().softmax(1)
        sure, top = p.max(1)
        at = np.searchsorted(np.arange(1, BINS) / BINS, sure.numpy())
        gaps += k * np.bincount(at, (sure - (top == y).double()).numpy(), minlength=BINS)
        total += k * len(y)
    return float(np.abs(gaps).sum() / total)


def _bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(_bytes, values))


if __name__ == "__main__":
    main()
