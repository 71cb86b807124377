"""How a training went, as a few facts: for `landscape show` and its JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .history import History
from .reader import Archive

#: Kinds of events that are told one by one; the others are counted (chosen by us).
LOUD = (
    *("not_finite", "spike", "switch", "probe_failed", "not_measured"),
    *("parameters_changed", "resumed", "lost_rows", "over_budget", "failed"),
)
#: Norms of gradients of several steps don't agree to so much by chance: they were clipped (both chosen by us).
_AT_BOUND, _CLIPPED = 2e-6, 3
#: Seconds of training from which on the share that recording took is told, rather than its seconds: that of a moment is
#: the share of its beginning, and says nothing of a longer one (chosen by us).
WORTH_A_SHARE = 10.0
#: Of those events, how many at most: the last ones.
_MOST_EVENTS = 20


def training_facts(archive: Archive) -> dict[str, Any] | None:
    """Return the facts of the training that an archive records, None where it records none.

    Keys, of which each is None where it was not recorded:

        status              running, complete, failed, interrupted; killed: nobody writes it, and it did not end
        steps, epochs       the last optimizer step, and how many epochs had ended
        seconds             of the last session, until its last row or its end
        seconds_recording   of those, spent recording; recording_share is their ratio
        loss                {"first", "last", "step"}: means over the first and last tenth of the rows, in the loss's
                            own unit, and the step of the last one
        gradient_norm       {"last", "finite_until", "largest", "step", "unclipped", "clipped", "steps"}: global, as the
                            optimizer used it; the last one that is finite, and its step where others came after it
                            (None where it is the end); the step of the largest; the largest before clipping, None
                            where that was not recorded;
                            how many of the steps were clipped (without the norms before it, those that stand at the
                            largest, where it is a bound)
        gradient_norms      {optimizer: the same} where several optimizers were recorded; gradient_norm is None then
        logged              {name: {"first", "last", "step"}}: what the loop logged under names of its own, as the loss
        curvature           {"lambda_max", "threshold", "margin", "operator", "learning_rate", "step"}: the last one,
                            beside the largest that is stable at that learning rate (None for several groups);
                            "preconditioned" where it is not the Hessian's own, as for adaptive optimizers
        calibration         {column: value}: the last evaluated (ece, ece_low, ece_high, nll, accuracy, ...; test.ece of
                            another split)
        events              {kind: how many}
        told                [{"step", "kind", "message"}]: those that matter, the last 20
        left_out            {probe: {"moments", "left_out"}} of each probe that its budget kept from measuring
        checkpoints         names of the files that were written
        lost_rows           rows that could not be written
        superseded_rows     rows that a resumed run has gone over again
        torn_bytes          left unfinished by a kill
        quantities          {name: rows that stand}
    """
    history = archive.history
    if not history:
        return None
    status = "killed" if archive.status == "running" and archive.alive is False else archive.status
    about = archive.attributes
    seconds, recording = _time(history)
    seconds = _first(about.get("seconds"), seconds)
    recording = _first(about.get("seconds_recording"), recording)
    counts: dict[str, int] = {}
    for event in history.events:
        counts[event.kind] = counts.get(event.kind, 0) + 1
    standing = [e for e in history.events if not e.superseded]
    epoch = _last(history, "epoch").get("epoch")
    return {
        "status": status,
        "steps": max(history.last_step, int(about.get("steps", 0) or 0)),
        "epochs": None if epoch is None else int(epoch),
        "seconds": seconds,
        "seconds_recording": recording,
        "recording_share": recording / seconds if seconds and recording is not None else None,
        "loss": _loss(history),
        "gradient_norm": _norm(history, ""),
        "gradient_norms": _norms(history) or None,
        "logged": _logged(history) or None,
        "curvature": _curvature(history),
        "calibration": _last(history, "calibration") or None,
        "events": counts,
        "told": [{"step": e.step, "kind": e.kind, "message": e.message} for e in standing if e.kind in LOUD][
            -_MOST_EVENTS:
        ],
        "left_out": _left_out(history) or None,
        "checkpoints": [e.message for e in standing if e.kind == "checkpoint" and e.message.endswith(".pt")],
        "lost_rows": int(about.get("lost_rows", 0) or 0),
        "superseded_rows": sum(int(history[n].superseded.sum()) for n in history.names),
        "torn_bytes": history.torn,
        "quantities": {n: int((~history[n].superseded).sum()) for n in history.names},
    }


def _loss(history: History) -> dict[str, Any] | None:
    return _ends(*_column(history, "loss", "loss"))


def _logged(history: History) -> dict[str, dict[str, Any]]:
    series = history.get("logged")
    found = {} if series is None else {n: _ends(*_column(history, "logged", n)) for n in series.names}
    return {n: ends for n, ends in found.items() if ends is not None}


def _ends(steps: np.ndarray, values: np.ndarray) -> dict[str, Any] | None:
    if not len(values):
        return None
    tenth = max(1, len(values) // 10)
    return {"first": float(values[:tenth].mean()), "last": float(values[-tenth:].mean()), "step": int(steps[-1])}


def _norms(history: History) -> dict[str, dict[str, Any]]:
    names = [n.removeprefix("gradient_norm.") for n in history.names if n.startswith("gradient_norm.")]
    found = {n: _norm(history, f".{n}") for n in names}
    return {n: norm for n, norm in found.items() if norm is not None}


def _norm(history: History, suffix: str) -> dict[str, Any] | None:
    steps, values = _column(history, f"gradient_norm{suffix}", "global")
    if not len(values):
        return None
    largest = float(values.max())
    at, before = _column(history, f"gradient_norm_before{suffix}", "global")
    if len(before):
        both, here, there = np.intersect1d(steps, at, return_indices=True)
        clipped = int((values[here] < (1 - _AT_BOUND) * before[there]).sum()) if len(both) else 0
    else:
        # torch divides by norm + 1e-6: what it clips lies within 1e-6 / norm of the bound.
        clipped = int((values >= (1 - _AT_BOUND) * largest).sum())
        clipped = clipped if clipped >= _CLIPPED and largest > float(values.min()) else 0
    return {
        "steps": len(values),
        "last": float(values[-1]),
        "finite_until": int(steps[-1]) if steps[-1] < history[f"gradient_norm{suffix}"].current().steps[-1] else None,
        "largest": largest,
        "step": int(steps[values.argmax()]),
        "unclipped": float(before.max()) if len(before) else None,
        "clipped": clipped,
    }


def _curvature(history: History) -> dict[str, Any] | None:
    last = _last(history, "curvature")
    if "lambda_max" not in last:
        return None
    steps, _ = _column(history, "curvature", "lambda_max")
    of, own = _column(history, "eigenvalue", "1")
    own = own[of == steps[-1]]
    # The probe writes the same number to both where the threshold is one for the Hessian itself.
    same = not len(own) or math.isclose(own[-1], last["lambda_max"], rel_tol=1e-6)
    rates = history.get("learning_rate")
    rate = None
    if rates is not None and len(rates.names) == 1:
        at, values = _column(history, "learning_rate", rates.names[0])
        rate = next(iter(values[at <= steps[-1]][-1:].tolist()), None)
    return {
        **{k: last.get(k) for k in ("lambda_max", "threshold", "margin")},
        "operator": "Hessian" if same else "preconditioned",
        "learning_rate": rate,
        "step": int(steps[-1]),
    }


def _left_out(history: History) -> dict[str, dict[str, int]]:
    """Count the moments of each probe and those that its budget left out, which are recorded as 0 seconds."""
    series = history.get("probe_seconds")
    found = {} if series is None else {n: _column(history, "probe_seconds", n)[1] for n in series.names}
    counted = {n: {"moments": len(v), "left_out": int((v == 0).sum())} for n, v in found.items()}
    return {n: c for n, c in counted.items() if c["left_out"]}


def _time(history: History) -> tuple[float | None, float | None]:
    last = _last(history, "time")
    return last.get("elapsed"), last.get("recording")


def _column(history: History, quantity: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a column that stand and are finite."""
    series = history.get(quantity)
    if series is None or name not in series.names:
        return np.empty(0, np.int64), np.empty(0)
    standing = series.current()
    values = standing.column(name)
    finite = np.isfinite(values)
    return standing.steps[finite], values[finite]


def _last(history: History, quantity: str) -> dict[str, float]:
    """Return the last finite value of each column of a quantity."""
    series = history.get(quantity)
    found = {} if series is None else {n: _column(history, quantity, n)[1] for n in series.names}
    return {n: float(values[-1]) for n, values in found.items() if len(values)}


def _first(*values: Any) -> float | None:
    for value in values:
        if value is not None and math.isfinite(value):
            return float(value)
    return None
