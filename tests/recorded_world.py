"""Recorded runs without a training: what a recorder leaves on disk, made from random numbers. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape import Eigenpairs
from landscape.archive.compaction import begin_run
from landscape.archive.live import LiveWriter
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.segments import live_folder

#: quantity: (columns, units, axis)
QUANTITIES = {
    "loss": (("loss",), "nats", "step"),
    "gradient_norm": (("global", "0.weight", "0.bias"), "", "step"),
    "learning_rate": (("0",), "", "step"),
    "curvature": (("lambda_max", "threshold"), "", "step"),
    "calibration": (("ece", "nll"), "", "epoch"),
    "epoch": (("epoch",), "", "epoch"),
    "time": (("elapsed", "recording"), "s", "step"),
}
#: Steps of an epoch, and between two measurements of curvature.
EPOCH, LATTICE = 10, 5


def begin(path: Path, **run: Any) -> Path:
    """Begin a run's archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return begin_run(path, run={"loss": "ce", "lr": 0.1, **run}, attributes={"run_id": path.stem, "seed": 0})


def session(
    path: Path,
    steps: range,
    *,
    number: int = 0,
    resumed_at: int | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
    probed: Sequence[int] = (),
    close: bool = True,
) -> dict[str, dict[int, np.ndarray]]:
    """Write one session's rows beside the archive, and return them: {quantity: {step: values}}."""
    names = {q: tuple(c) for q, (c, *_) in QUANTITIES.items()} | {q: tuple(c) for q, c in (columns or {}).items()}
    about = {q: {"units": u, "doc": f"what {q} is", "axis": a} for q, (_, u, a) in QUANTITIES.items()}
    facts: dict[str, Any] = {"session": number, "quantities": about}
    if resumed_at is not None:
        facts["resumed_at"] = resumed_at
    rng = np.random.default_rng(100 * number + steps.start)
    given: dict[str, dict[int, np.ndarray]] = {q: {} for q in names}
    writer = LiveWriter(live_folder(path), names, facts, flush_seconds=60)
    for step in steps:
        for quantity, of in names.items():
            if QUANTITIES.get(quantity, ((), "", "step"))[2] == "epoch" and step % EPOCH:
                continue
            if quantity == "curvature" and step % LATTICE:
                continue
            row = np.exp(rng.standard_normal(len(of)))
            if quantity == "epoch":
                row[:] = step // EPOCH
            if quantity == "time":
                row[:] = step * 0.5, step * 0.005
            given[quantity][step] = row
            writer.append(quantity, step, row)
    for event in events:
        writer.event(event)
    for step in probed:
        target = live_folder(path) / "results" / "curvature" / f"{step:08d}-{number}.h5"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_archive(target, [pairs(step + 1000.0 * number)], subject=Subject(step=step, epoch=step // EPOCH))
    (live_folder(path) / "lock").touch()
    if close:
        writer.close()
    assert (writer.lost, writer.problem) == (0, None)
    return given


def pairs(largest: float) -> Eigenpairs:
    """Return eigenvalues of which the largest is this one."""
    none, values = np.empty(0), np.array([largest, largest / 2])
    return Eigenpairs(
        values=values,
        residuals=1e-3 * np.ones(2),
        converged=values > -1,
        smallest=none,
        smallest_residuals=none,
        smallest_converged=none > 0,
    )


def standing(*sessions: tuple[Mapping[int, np.ndarray], int | None]) -> dict[int, np.ndarray]:
    """Return the rows of one quantity that stand after sessions, each with the step at which it resumed."""
    rows: dict[int, np.ndarray] = {}
    for given, resumed in sessions:
        if resumed is not None:
            rows = {step: row for step, row in rows.items() if step <= resumed}
        rows |= given
    return rows
