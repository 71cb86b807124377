"""Trainings with realistic records, made up: for the tests of the report, its benchmark, and for looking at a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.archive.compaction import begin_run, compact
from landscape.archive.history import Event, History, Series
from landscape.archive.joining import LIVE_RESULTS
from landscape.archive.live import LiveWriter
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.segments import live_folder
from landscape.results import Result

#: Parameters of a small convolutional net.
LAYERS = (
    "stem.conv.weight", "stem.norm.weight", "stem.norm.bias",
    *(f"blocks.{i}.{part}" for i in range(4) for part in ("conv1.weight", "conv2.weight", "norm.weight", "norm.bias")),
    "head.weight", "head.bias",
)  # fmt: skip


def series(name: str, names: tuple[str, ...], steps: Any, values: Any, units: str = "", axis: str = "step") -> Series:
    """Return one quantity of a record."""
    steps = np.asarray(steps, dtype=np.int64)
    columns = np.asarray(values, dtype=float).reshape(len(steps), len(names))
    return Series(names, steps, columns, np.zeros(len(steps), dtype=bool), name, units, "", axis)


def history(place: int = 0, steps: int = 600, epochs: int = 12, layers: int = len(LAYERS)) -> History:
    """Return the record of the training at this place: sharper ones (0 and 1 of 4) climb to the edge of stability."""
    rng = np.random.default_rng(1000 + place)
    sharp = (3.0, 1.6, 1.1, 0.6)[place % 4]
    cosine = place % 2 == 1
    t = np.arange(1, steps + 1)
    share = t / steps
    lr = 0.1 * (0.5 + 0.5 * np.cos(np.pi * share)) if cosine else np.full(steps, 0.1)
    loss = 0.03 + 2.3 * np.exp(-7 * share) + 0.05 * rng.gamma(2.0, 0.5, steps)
    spike = steps // 3 + 7 * (place % 5)
    loss[spike : spike + 3] += 2.5 * np.array([1.0, 0.6, 0.3])[: max(0, min(3, steps - spike))]
    norms = np.exp(rng.normal(0, 0.25, (steps, layers))) * (0.6 + np.linspace(2.0, 0.2, layers)) * (loss[:, None] + 0.1)
    total = np.sqrt((norms**2).sum(axis=1))
    coefficient = np.minimum(1.0, 4.0 / total)
    weights = np.sqrt(300 + 120 * share)[:, None]
    update = 0.1 * lr * total * coefficient
    at = np.unique(np.geomspace(1, steps, 24).astype(int))
    edge = 2.0 / np.maximum(lr[at - 1], 1e-3)
    top = np.minimum(sharp * 30 * (at / steps) ** 0.5, edge * (1 + 0.04 * rng.normal(size=len(at)))) + 1.0
    ends = np.linspace(steps / epochs, steps, epochs).astype(int)
    ece = 0.02 + 0.03 * sharp / 3 * (1 - np.exp(-4 * ends / steps)) + 0.002 * rng.normal(size=epochs)
    val = 0.25 + 2.0 * np.exp(-6 * ends / steps) + 0.12 * sharp / 3 * ends / steps
    g2 = (total / 8) ** 2
    parts = [
        series("loss", ("loss", "cross_entropy", "penalty"), t, np.stack([loss, 0.9 * loss, 0.1 * loss], 1), "nats"),
        series("logged", ("val_loss", "accuracy"), ends, np.stack([val, 1 - 0.3 * val], 1)),
        series("gradient_norm", ("global", *LAYERS[:layers]), t, np.column_stack([total * coefficient, norms])),
        series("gradient_norm_before", ("global",), t, total),
        series("clip", ("coefficient", "limit"), t, np.stack([coefficient, np.full(steps, 4.0)], 1)),
        series("weight_norm", ("global",), t, weights),
        series("update", ("ratio", "distance", "cosine"), t,
               np.stack([update / weights[:, 0], np.cumsum(update) ** 0.5, 0.1 * rng.normal(size=steps)], 1)),
        series("learning_rate", ("0",), t, lr),
        series("weight_decay", ("0",), t, np.full(steps, 5e-4)),
        series("scheduled", ("loss.gamma", "clip"), t, np.stack([2 * share, np.full(steps, 4.0)], 1)),
        series("noise_scale", ("noise_scale", "squared_gradient", "variance"), t,
               np.stack([40 / (g2 + 0.05), g2, 40 * np.ones(steps)], 1)),
        series("eigenvalue", ("1", "2", "3"), at, np.stack([top, 0.7 * top, 0.5 * top], 1)),
        series("curvature", ("trace", "trace_stderr", "lambda_max", "threshold", "margin"), at,
               np.stack([9 * top, 0.4 * top, top, edge, 1 - top / edge], 1)),
        series("calibration", ("ece", "ece_low", "ece_high", "nll", "temperature"), ends,
               np.stack([ece, ece - 0.008, ece + 0.009, val, 1 + 10 * ece], 1), axis="epoch"),
        series("epoch", ("epoch",), ends, np.arange(1, epochs + 1), axis="epoch"),
        series("time", ("elapsed", "recording"), t, np.stack([0.05 * t, 0.001 * t], 1), "s"),
    ]  # fmt: skip
    events = [
        Event(spike + 1, "spike", f"loss {loss[min(spike, steps - 1)]:.3g}, 9 times its spread above its mean", 1.0),
        Event(steps // 2, "switch", "schedule: phase 2 of 2 begins", 2.0),
        Event(steps // 5, "skipped_step", "3 tensors have a gradient that is not finite", 0.5),
        *(Event(int(e), "epoch", f"epoch {i + 1}", float(i)) for i, e in enumerate(ends)),
    ]
    return History({s.name: s for s in parts}, tuple(sorted(events, key=lambda e: e.step)))


def record(
    path: Path,
    given: History,
    run: dict[str, Any],
    *,
    attributes: dict[str, Any],
    finish: bool = True,
    probed: Mapping[tuple[str, int], Sequence[Result]] | None = None,
) -> Path:
    """Write a record as the recorder does: into segments beside the archive, and into it where it is to `finish`.

    `probed` are Results that probes measured, by (probe, step).
    """
    begin_run(path, run=run, attributes={"run_id": path.stem, **attributes}, force=True)
    about = {n: {"units": s.units, "doc": s.doc, "axis": s.axis} for n, s in given.quantities.items()}
    writer = LiveWriter(live_folder(path), {n: s.names for n, s in given.quantities.items()}, {"quantities": about})
    for name, s in given.quantities.items():
        for step, values in zip(s.steps.tolist(), s.values, strict=True):
            writer.append(name, step, values)
    for e in given.events:
        writer.event({"step": e.step, "kind": e.kind, "message": e.message, "seconds": e.seconds})
    for (probe, step), results in (probed or {}).items():
        folder = live_folder(path) / LIVE_RESULTS / probe
        folder.mkdir(parents=True, exist_ok=True)
        save_archive(folder / f"{step:08d}-0-0.h5", results, subject=Subject(step=step, epoch=step // 50))
    writer.close()
    return compact(path, "complete") if finish else path
