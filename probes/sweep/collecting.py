"""All cells of a sweep in one table: as they stand, over seeds, and whether they may be compared. No torch here."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.archive.schema import dump_json, plain
from landscape.errors import TrainingError

from .grid import Cell
from .manifest import Manifest, read_manifest
from .outcome import CellResult, Status, read_result, write_text

#: Files that `collect` writes into the sweep's folder.
TABLE, RESULTS = "results.csv", "results.json"
#: What a summary shows of each group of seeds: name, the metric.
SHOWN: Mapping[str, str] = {
    "train loss": "loss.train",
    "test loss": "loss.test",
    "test accuracy": "accuracy.test",
    "lambda_max": "curvature.eigenvalues",
    "trace": "curvature.trace.value",
    "SAM sharpness": "sharpness.sam.value",
    "ECE": "calibration.ece",
    "temperature": "calibration.temperature",
}
#: What stands in for a metric where nothing was measured after the training.
INSTEAD: Mapping[str, str] = {
    "loss.train": "train_loss",
    "loss.test": "test_loss",
    "accuracy.test": "test_accuracy",
}


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed alone: mean and standard deviation over the seeds of each metric they share."""

    label: str
    axes: Mapping[str, Any]
    seeds: tuple[int, ...]
    counts: Mapping[Status, int]
    mean: Mapping[str, float]
    deviation: Mapping[str, float]

    def value(self, metric: str) -> tuple[float, float]:
        """Return mean and deviation of a metric (NaN where there is none; a deviation needs two seeds)."""
        for name in (metric, INSTEAD.get(metric, "")):
            if name in self.mean:
                return self.mean[name], self.deviation.get(name, math.nan)
        return math.nan, math.nan


@dataclass(frozen=True)
class Collected:
    """A sweep as it stands: `results` of all cells, `warnings` about whether they may be compared.

    `stopped` is the number of the signal that ended the run, 0 for none; `late`: the time limit did.
    """

    out: Path
    results: tuple[CellResult, ...]
    warnings: tuple[str, ...] = ()
    stopped: int = 0
    late: bool = False

    @property
    def counts(self) -> dict[Status, int]:
        """How many cells have each status."""
        found: dict[Status, int] = {}
        for r in self.results:
            found[r.status] = found.get(r.status, 0) + 1
        return found

    @property
    def archives(self) -> tuple[Path, ...]:
        """The archives of the cells that have one: what `landscape report` takes."""
        return tuple(r.archive for r in self.results if r.archive.exists())

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return all(r.finished for r in self.results)

    def groups(self) -> tuple[Group, ...]:
        """Return the cells gathered over their seeds, in the order of the sweep."""
        gathered: dict[str, list[CellResult]] = {}
        for r in self.results:
            key = json.dumps({k: plain(v) for k, v in r.cell.axes.items() if k != "seed"}, sort_keys=True)
            gathered.setdefault(key, []).append(r)
        differing = _differing([r.cell for r in self.results])
        return tuple(_group(members, differing) for members in gathered.values())

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data: what results.json holds."""
        return {
            "schema": 1,
            "counts": dict(self.counts),
            "warnings": list(self.warnings),
            "cells": [{**r.to_dict(), "folder": r.cell.name} for r in self.results],
            "groups": [
                {
                    "label": g.label,
                    "axes": plain(dict(g.axes)),
                    "seeds": list(g.seeds),
                    "counts": dict(g.counts),
                    "mean": dict(g.mean),
                    "deviation": dict(g.deviation),
                }
                for g in self.groups()
            ],
        }


def collect(out: str | Path, manifest: Manifest | None = None, *, stopped: int = 0, late: bool = False) -> Collected:
    """Read every cell's result below a sweep's folder `out`, and write results.csv and results.json there.

    `manifest` lists the cells, None for the folder's own; `stopped` and `late` are kept in what is returned, for
    whoever tells of the run (see `Collected`).

    Raises TrainingError where the folder holds no sweep, or a result can't be read.
    """
    out = Path(out)
    manifest = manifest or read_manifest(out)
    if manifest is None:
        raise TrainingError(f"{out} holds no sweep: there is no sweep.json in it")
    results = tuple(read_result(cell, out / cell.name) for cell in manifest.cells)
    found = Collected(out, results, tuple(_comparable(results)), stopped, late)
    write_text(out / TABLE, _table(results).rstrip("\n"))
    write_text(out / RESULTS, json.dumps(json.loads(dump_json(found.to_dict())), indent=1))
    return found


def _comparable(results: Sequence[CellResult]) -> list[str]:
    """Return what speaks against comparing the cells: other first weights or data orders at the same seed, or one of
    them at several seeds.
    """
    said = []
    begun = [r for r in results if r.initial_weights]
    for what, read in (("first weights", "initial_weights"), ("data order", "order")):
        by_seed: dict[Any, set[str]] = {}
        for r in begun:
            by_seed.setdefault((r.cell.seed, json.dumps(plain(dict(r.cell.settings)), sort_keys=True)), set()).add(
                getattr(r, read)
            )
        torn = sorted({seed for (seed, _), values in by_seed.items() if len(values) > 1})
        if torn:
            said.append(
                f"cells of the same seed ({', '.join(map(str, torn))}) differ in their {what}, so that not all that "
                "differs is due to the cell: does the task draw from a generator of its own?"
            )
    if len({r.cell.seed for r in begun}) > 1:
        for setting in {json.dumps(plain(dict(r.cell.settings)), sort_keys=True) for r in begun}:
            same = [r for r in begun if json.dumps(plain(dict(r.cell.settings)), sort_keys=True) == setting]
            if len({r.cell.seed for r in same}) > 1 and len({r.initial_weights for r in same}) == 1:
                said.append(
                    "all seeds begin with the same weights: the task fixes its own seed; let it take `seed`, or leave "
                    "the seeding to the sweep"
                )
                break
    return said


def _differing(cells: Sequence[Cell]) -> list[str]:
    names = dict.fromkeys(k for c in cells for k in c.axes if k != "seed")
    return [k for k in names if len({json.dumps(plain(c.axes.get(k))) for c in cells}) > 1]


def _group(members: Sequence[CellResult], differing: Sequence[str]) -> Group:
    measured = [r for r in members if r.metrics]
    names = dict.fromkeys(k for r in measured for k in r.metrics)
    shared = [k for k in names if all(k in r.metrics for r in measured)]
    counts: dict[Status, int] = {}
    for r in members:
        counts[r.status] = counts.get(r.status, 0) + 1
    axes = members[0].cell.axes
    own = {k: axes.get(k) for k in differing}
    return Group(
        label=", ".join(_said(k, v) for k, v in own.items()) or "all",
        axes=own,
        seeds=tuple(r.cell.seed for r in members),
        counts=counts,
        mean={k: statistics.fmean(r.metrics[k] for r in measured) for k in shared},
        deviation={k: statistics.stdev(r.metrics[k] for r in measured) for k in shared if len(measured) > 1},
    )


def _said(name: str, value: Any) -> str:
    if name in ("loss", "schedule", "optimizer"):
        return str(value) or "own loss"
    if name == "average":
        return value or "no average"
    return f"{name.replace('batch_size', 'batch')} {f'{value:g}' if isinstance(value, float) else value}"


def _table(results: Sequence[CellResult]) -> str:
    """Return a line for each cell as CSV: what it is, what became of it, all its numbers."""
    axes = list(dict.fromkeys(k for r in results for k in r.cell.axes))
    metrics = list(dict.fromkeys(k for r in results for k in r.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "folder", *axes, "status", "reason", "step", "epoch", "seconds", *metrics])
    for r in results:
        own = [r.cell.axes.get(k, "") for k in axes]
        state = [r.status, r.reason, r.step, r.epoch, f"{r.seconds:.3f}"]
        writer.writerow(
            [r.cell.index, r.cell.name, *own, *state, *[repr(r.metrics[k]) if k in r.metrics else "" for k in metrics]]
        )
    return text.getvalue()
