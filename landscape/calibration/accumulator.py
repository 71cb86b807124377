"""Calibration of predictions as they come: counted on their device, in memory that does not grow with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ..errors import MeasurementError
from .bins import checked_bins
from .collect import collect
from .compiled import load
from .counting import Counted, Counts, GroupSums
from .evaluate import evaluate
from .inputs import Form, Predictions, kept, lay_out, verify
from .ranks import gather_states, moved
from .scoring import View, blocks, within_unit
from .sift import sift
from .table import Calibration
from .totals import Totals

#: Pairs that are kept as they are, so that ranks are exact up to there (chosen by us: 2 MiB).
EXACT = 1 << 18
#: Classes up to which each class gets its own table unasked (chosen by us: ImageNet's, which takes twice as long).
CLASSWISE = 1000
_NEVER = torch.iinfo(torch.int64).max


class CalibrationAccumulator:
    """Count predictions batch by batch and compute their `Calibration` at any time, as `calibration_error` does.

    For a validation loop that computes logits anyway, at no further forward pass:

        accumulator = CalibrationAccumulator()
        for x, y in loader:
            logits = model(x)
            accumulator.update(logits=logits, labels=y)
        print(accumulator.compute())

    Counts are int64 and exact, sums float64, on the device of the first batch; memory is O(bins) (and O(classes)),
    however many samples come: 0.2 MiB, and up to 2 MiB for the first `exact` pairs. On an accelerator no update waits
    for the device, save for the first batch, named groups, and a change of `groups` (below). Faulty numbers raise at
    once on the CPU, and leave the accumulator as it was; on an accelerator they raise in `compute`, which names update
    and row (`defer` chooses).

    Args:
        bins: number of bins, or their edges, rising from 0 to 1.
        mass: "width" for bins of equal width, "equal" for equal counts: exact up to `exact` samples; beyond, edges
            are those of cells at most 1/512 wide, and the notes give the largest error of a bin's share. For exact
            bins of any number of samples go through the data twice: `bins=first.compute().edges`.
        kind: "multiclass", "binary", "multilabel" or "top-label" (the predicted label's confidence as
            `probabilities`, right or wrong as `labels`); None: by shape, (n, C, ...) or (n,).
        confidence: of a single score: "top" that of the predicted class, "positive" that of class 1. Default: "top"
            for a binary task, "positive" for a multi-label one.
        ignore_index, class_dim: as in `calibration_error`.
        scores: also Brier score and NLL (a tenth of the time).
        classwise: also a table for each class; None: up to 1,000 classes.
        exact: pairs of confidence and right or wrong that are kept, for exact smooth ECE, KS and risk-coverage (and
            equal-mass bins); beyond, these come from cells, with bounds in the notes.
        defer: raise for faulty numbers in `compute` only. Default: where the first batch is not on the CPU.
        compiled: go through logits of several classes on a CPU with a C kernel, twice as fast; the same numbers, but
            for rounding. Needs a C compiler ($CC, cc, gcc or clang), which makes it once in a process (0.3 s). float64
            logits, probabilities and accelerators go their ordinary way.

    Groups: pixels, tokens and labels of one sample are a group by themselves, so that standard errors and intervals
    are those of dependent data; `update(groups=...)` names groups that go across batches. Sums for each group are
    kept (24 bytes a bin).

    `merge` adds another accumulator (a process's, a device's), `all_reduce` those of all ranks; `state_dict` is plain
    tensors. Raises MeasurementError, as `calibration_error` does.
    """

    def __init__(
        self,
        *,
        bins: int | Sequence[float] | np.ndarray = 15,
        mass: Literal["width", "equal"] = "width",
        kind: Form | None = None,
        confidence: View | None = None,
        ignore_index: int | None = None,
        class_dim: int = 1,
        scores: bool = True,
        classwise: bool | None = None,
        exact: int = EXACT,
        defer: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self.bins, self.edges = checked_bins(bins, mass)
        if confidence not in (None, "top", "positive"):
            raise MeasurementError(f"confidence={confidence!r} is not one of 'top', 'positive' or None")
        if isinstance(exact, bool) or not isinstance(exact, int | np.integer):
            raise TypeError(f"exact must be an integer, got {type(exact).__name__}")
        self.mass = mass
        self.kind: Form | None = kind
        self.confidence: View | None = confidence
        self.ignore_index = ignore_index
        self.class_dim = class_dim
        self.scores = scores
        self.classwise = classwise
        self.exact = int(exact)
        self.defer = defer
        self.compiled = compiled
        if compiled:
            load()  # says at once where there is no compiler
        self.reset()

    def reset(self) -> None:
        """Forget every sample, and the shape of the first batch."""
        self._counts: Counts | None = None
        self._facts: dict[str, str] = {}
        self._updates = 0
        self._grouped: bool | None = None
        self._warnings: dict[str, None] = {}

    # ---------------------------------------------------------------------------------------------- batches

    def update(
        self, *, logits: Any = None, probabilities: Any = None, labels: Any = None, groups: Any = None
    ) -> CalibrationAccumulator:
        """Count a batch; shapes as in `calibration_error`, the same form and number of classes in every batch.

        `groups` (n,) integers, one for each sample (or in the shape of the labels): samples with the same number
        depend on each other, across batches too.
        """
        return self.add(
            lay_out(
                logits=logits,
                probabilities=probabilities,
                labels=labels,
                ignore_index=self.ignore_index,
                class_dim=self.class_dim,
                kind=self.kind,
                groups=groups,
            )
        )

    def add(self, predictions: Predictions) -> CalibrationAccumulator:
        """Count predictions that `inputs.lay_out` or `inputs.read_predictions` brought in order."""
        if not len(predictions.truth):
            return self
        self._begin(predictions)
        assert self._counts is not None
        counts = self._counts
        if counts.device != predictions.scores.device:
            raise MeasurementError(
                f"this batch lies on {predictions.scores.device}, those before it on {counts.device}; give each device "
                "its own accumulator and merge them"
            )
        predictions, group = self._open_groups(predictions)
        parts = list(blocks(predictions))
        # A fault in a later block must leave no trace of the blocks before it.
        saved = counts.snapshot() if len(parts) > 1 and not self._deferred else None
        try:
            self._count(predictions, parts, group)
        except MeasurementError:
            if saved is not None:
                counts.restore(saved)
            if not self._updates:
                self.reset()
            raise
        if group is not None:
            counts.close_groups(group)
        self._updates += 1
        return self

    def _begin(self, predictions: Predictions) -> None:
        view = self._view(predictions)
        facts = {"input": predictions.kind, "dtype": predictions.dtype, "confidence": view}
        if self._counts is None:
            if view == "positive" and not predictions.binary:
                raise MeasurementError(
                    f'confidence="positive" needs a binary task of shape (n,), got {predictions.classes} classes; '
                    "give the scores of class 1 alone"
                )
            device = predictions.scores.device
            self._deferred = device.type != "cpu" if self.defer is None else self.defer
            self._facts = facts
            tabled = self.classwise is not False and (
                predictions.form in ("multiclass", "multilabel")
                and (self.classwise is True or predictions.classes <= CLASSWISE)
            )
            self._make(predictions.form, predictions.classes, view, tabled, device)
        elif (predictions.form, predictions.classes) != (self._counted.form, self._counted.classes):
            raise MeasurementError(
                f"this batch has {predictions.classes} classes ({predictions.form}), those before it had "
                f"{self._counted.classes} ({self._counted.form}); give each its own accumulator"
            )
        elif facts["input"] != self._facts["input"]:
            raise MeasurementError(
                f"this batch holds {facts['input']}, those before it {self._facts['input']}; give each its own "
                "accumulator"
            )
        elif facts["dtype"] not in self._facts["dtype"].split(", "):
            self._facts["dtype"] += f", {facts['dtype']}"
        grouped = predictions.groups is not None
        if self._grouped is None:
            self._grouped = grouped
        if grouped != self._grouped:
            raise MeasurementError("groups= must be given with every batch, or with none")

    def _view(self, predictions: Predictions) -> View:
        if self.confidence is not None:
            return self.confidence
        return "positive" if predictions.form in ("multilabel", "top-label") else "top"

    def _make(self, form: Form, classes: int, view: View, tabled: bool, device: torch.device) -> None:
        """Lay out the sums, all 0."""
        counted = Counted(form, classes, view, self.bins, self.edges, self.scores, tabled, self.exact)
        self._counts = Counts(counted, device)
        self._fault = torch.full((1,), _NEVER, dtype=torch.int64, device=device)

    @property
    def _counted(self) -> Counted:
        assert self._counts is not None
        return self._counts.counted

    def _open_groups(self, predictions: Predictions) -> tuple[Predictions, GroupSums | None]:
        """Return the predictions with groups numbered from 0, and the sums to fill for them."""
        if predictions.groups is None:
            return predictions, None
        ids, rows = None, predictions.groups
        if predictions.named:
            ids, rows = torch.unique(rows, return_inverse=True)
        assert self._counts is not None
        group = self._counts.open_groups(ids, predictions.members if ids is None else len(ids))
        return dataclasses.replace(predictions, groups=rows), group

    def _count(self, predictions: Predictions, parts: list[Predictions], group: GroupSums | None) -> None:
        assert self._counts is not None
        view, start = self._counted.view, 0
        # Logits that are probabilities: looked for in every batch on the CPU, in the first on an accelerator, where
        # each look waits for the device.
        suspect = predictions.kind == "logits" and (not self._deferred or not self._updates)
        share = 1 / self.bins if self._counted.tabled and not predictions.binary else None
        for i, part in enumerate(parts):
            found = sift(
                part,
                view,
                ignore_index=self.ignore_index,
                deferred=self._deferred,
                scores=self.scores,
                share=share,
                with_kernel=self.compiled,
            )
            if found is not None:
                if found.lost is not None:
                    first = (self._updates << 32) + start + found.lost.int().argmax()
                    self._fault = torch.minimum(self._fault, torch.where(found.lost.any(), first, _NEVER))
                suspect = suspect and (found.scored is None or within_unit(found.scored))
                if not found.fine or (suspect and i == len(parts) - 1):
                    for warning in verify(kept(predictions, self.ignore_index)).warnings:
                        self._warnings[warning] = None
                if found.scored is not None:
                    self._counts.add(found.part, found.scored, found.keep, group)
            start += len(part.truth)

    # ---------------------------------------------------------------------------------------------- together

    def merge(self, other: CalibrationAccumulator) -> CalibrationAccumulator:
        """Add what another accumulator with the same settings has counted, on any device; it stays as it is."""
        if not isinstance(other, CalibrationAccumulator):
            raise TypeError(f"merge needs a CalibrationAccumulator, got {type(other).__name__}")
        mine, theirs = self._settings(), other._settings()
        for name, value in mine.items():
            if theirs[name] != value:
                raise MeasurementError(
                    f"accumulators with different {name} cannot be merged ({value!r} and {theirs[name]!r}); "
                    "make both with the same settings"
                )
        if other._counts is None:
            return self
        if self._counts is None:
            self.load_state_dict(other.state_dict())
            return self
        seen = [(x._counted.form, x._counted.classes, x._facts["input"], x._grouped) for x in (self, other)]
        if seen[0] != seen[1]:
            raise MeasurementError(
                f"accumulators of different predictions cannot be merged: {_named(seen[0])} and {_named(seen[1])}"
            )
        self._counts.merge(other._counts)
        for dtype in other._facts["dtype"].split(", "):
            if dtype not in self._facts["dtype"].split(", "):
                self._facts["dtype"] += f", {dtype}"
        device = self._counts.device
        theirs = other._fault.to(device)
        self._fault = torch.minimum(self._fault, torch.where(theirs < _NEVER, theirs + (self._updates << 32), theirs))
        self._updates += other._updates
        self._warnings |= other._warnings
        return self

    def all_reduce(self, group: Any = None) -> CalibrationAccumulator:
        """Merge the accumulators of all ranks of a torch.distributed group, in their order: the same on every rank.

        Every rank must call it, those without a sample too. Costs one all_gather_object of the states (0.2 MiB each,
        and the pairs that are kept).
        """
        states = gather_states(self.state_dict(), group)
        device = None if self._counts is None else self._counts.device
        total = CalibrationAccumulator(**self._arguments())
        for state in states:
            total.merge(CalibrationAccumulator(**self._arguments()).load_state_dict(state))
        return self.load_state_dict(total.state_dict() if device is None else moved(total.state_dict(), device))

    def _arguments(self) -> dict[str, Any]:
        return {
            "bins": self.bins if self.edges is None else self.edges,
            "mass": self.mass,
            "kind": self.kind,
            "confidence": self.confidence,
            "ignore_index": self.ignore_index,
            "class_dim": self.class_dim,
            "scores": self.scores,
            "classwise": self.classwise,
            "exact": self.exact,
            "defer": self.defer,
            "compiled": self.compiled,
        }

    def _settings(self) -> dict[str, Any]:
        """Return what must agree between accumulators that are merged."""
        found = {k: v for k, v in self._arguments().items() if k not in ("class_dim", "exact", "defer", "compiled")}
        return found | {"bins": self.bins if self.edges is None else [float(x) for x in self.edges]}

    def state_dict(self) -> dict[str, Any]:
        """Return everything counted so far, as tensors and plain values that `torch.load` reads with weights_only."""
        return {
            "settings": self._settings(),
            "form": None if self._counts is None else self._counted.form,
            "classes": 0 if self._counts is None else self._counted.classes,
            "facts": dict(self._facts),
            "updates": self._updates,
            "fault": None if self._counts is None else self._fault,
            "deferred": False if self._counts is None else self._deferred,
            **({} if self._counts is None else self._counts.state()),
            "grouped": self._grouped,
            "warnings": list(self._warnings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> CalibrationAccumulator:
        """Take over a `state_dict` of an accumulator with the same settings; what was counted here is forgotten."""
        mine = self._settings()
        for name, value in state["settings"].items():
            if mine.get(name) != value:
                raise MeasurementError(f"this state has {name}={value!r}, the accumulator {mine.get(name)!r}")
        self.reset()
        if state["form"] is None:
            return self
        self._facts, self._deferred = dict(state["facts"]), state["deferred"]
        view: View = "positive" if self._facts["confidence"] == "positive" else "top"
        sums = state["sums"]
        self._make(state["form"], state["classes"], view, "class counts" in sums, sums["counts"].device)
        assert self._counts is not None
        self._counts.load(state)
        self._fault = state["fault"].clone()
        self._updates, self._grouped = state["updates"], state["grouped"]
        self._warnings = dict.fromkeys(state["warnings"])
        return self

    # ---------------------------------------------------------------------------------------------- numbers

    @property
    def facts(self) -> dict[str, str]:
        """What came: "input" (logits or probabilities), "dtype" and the "confidence" taken."""
        return dict(self._facts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever shows the numbers should say of the input."""
        return tuple(self._warnings)

    @property
    def samples(self) -> int:
        """Predictions counted so far (waits for the device)."""
        return 0 if self._counts is None else self._counts.samples

    def totals(self) -> Totals:
        """Return the sums on the host; raises MeasurementError for faults put off until now, and without samples."""
        if self._counts is None or not self.samples + int(self._fault < _NEVER):
            raise MeasurementError("no predictions: nothing was counted (or ignore_index left nothing)")
        fault = int(self._fault)
        if fault < _NEVER:
            raise MeasurementError(
                f"row {fault & 0xFFFFFFFF} of update {fault >> 32} (both from 0) has a score that is not finite, "
                "probabilities outside [0, 1] or not summing to 1, or a label out of range: pass logits as logits=, "
                "leave labels out with ignore_index=, or mend the data, and accumulate anew"
            )
        return collect(self._counts, bool(self._grouped))

    def compute(
        self,
        *,
        seed: int = 0,
        interval: Literal["inverted", "percentile"] = "inverted",
        strict: bool = False,
    ) -> Calibration:
        """Return the calibration of everything counted so far; arguments and result as for `calibration_error`.

        `strict` refuses fewer samples than bins and labels of one class only, which are warnings otherwise. Costs
        milliseconds, and a sort of the pairs that are kept (0.1 s). Waits for the device.
        """
        totals = self.totals()
        return evaluate(
            totals,
            form=self._counted.form,
            classes=self._counted.classes,
            bins=self.bins,
            mass=self.mass,
            seed=seed,
            interval=interval,
            strict=strict,
            warnings=self.warnings,
            settings={**self._facts, "ignore_index": self.ignore_index},
        )


def _named(seen: tuple[Any, ...]) -> str:
    form, classes, kind, grouped = seen
    return f"{kind} of {classes} classes ({form}{', grouped' if grouped else ''})"
