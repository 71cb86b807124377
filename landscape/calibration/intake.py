"""What comes to an accumulator: held against what came before, sifted block by block, counted, faults remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import MeasurementError
from .checked import verify
from .collect import collect
from .compiled import load
from .counting import Counted, Counts, GroupSums
from .inputs import Form, Predictions, kept
from .scoring import View, blocks, within_unit
from .settings import Settings
from .sift import sift
from .totals import Totals

#: Classes up to which each class gets its own table unasked (chosen by us: ImageNet's, which takes twice as long).
CLASSWISE = 1000
_NEVER = torch.iinfo(torch.int64).max


class Intake:
    """Predictions counted so far with these settings, on the device of the first batch; none at first.

    `facts` say what came ("input", "dtype", "confidence"), `warnings` what whoever shows the numbers should say of it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._empty()

    def _empty(self) -> None:
        self._counts: Counts | None = None
        self.facts: dict[str, str] = {}
        self.warnings: dict[str, None] = {}
        self._updates = 0
        self._grouped: bool | None = None

    # ---------------------------------------------------------------------------------------------- batches

    def add(self, predictions: Predictions) -> None:
        """Count a batch; a fault leaves everything as it was, or is put off until `totals`."""
        if not len(predictions.truth):
            return
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
                self._empty()
            raise
        if group is not None:
            counts.close_groups(group)
        self._updates += 1

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
            self._deferred = device.type != "cpu" if self.settings.defer is None else self.settings.defer
            self.facts = facts
            tabled = self.settings.classwise is not False and (
                predictions.form in ("multiclass", "multilabel")
                and (self.settings.classwise is True or predictions.classes <= CLASSWISE)
            )
            self._make(predictions.form, predictions.classes, view, tabled, device)
        elif (predictions.form, predictions.classes) != (self._counted.form, self._counted.classes):
            raise MeasurementError(
                f"this batch has {predictions.classes} classes ({predictions.form}), those before it had "
                f"{self._counted.classes} ({self._counted.form}); give each its own accumulator"
            )
        elif facts["input"] != self.facts["input"]:
            raise MeasurementError(
                f"this batch holds {facts['input']}, those before it {self.facts['input']}; give each its own "
                "accumulator"
            )
        grouped = predictions.groups is not None
        if self._grouped is None:
            self._grouped = grouped
        if grouped != self._grouped:
            raise MeasurementError("groups= must be given with every batch, or with none")
        if facts["dtype"] not in self.facts["dtype"].split(", "):
            self.facts["dtype"] += f", {facts['dtype']}"

    def _view(self, predictions: Predictions) -> View:
        if self.settings.confidence is not None:
            return self.settings.confidence
        return "positive" if predictions.form in ("multilabel", "top-label") else "top"

    def _make(self, form: Form, classes: int, view: View, tabled: bool, device: torch.device) -> None:
        """Lay out the sums, all 0."""
        how = self.settings
        counted = Counted(form, classes, view, how.bins, how.edges, how.scores, tabled, how.exact)
        self._counts = Counts(counted, device, load() if how.compiled and device.type == "cpu" else None)
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
        share = 1 / self.settings.bins if self._counted.tabled and not predictions.binary else None
        for i, part in enumerate(parts):
            found = sift(
                part,
                view,
                ignore_index=self.settings.ignore_index,
                deferred=self._deferred,
                scores=self.settings.scores,
                share=share,
                with_kernel=self.settings.compiled,
            )
            if found is not None:
                if found.lost is not None:
                    first = (self._updates << 32) + start + found.lost.int().argmax()
                    self._fault = torch.minimum(self._fault, torch.where(found.lost.any(), first, _NEVER))
                suspect = suspect and (found.scored is None or within_unit(found.scored))
                if not found.fine or (suspect and i == len(parts) - 1):
                    for warning in verify(kept(predictions, self.settings.ignore_index)).warnings:
                        self.warnings[warning] = None
                if found.scored is not None:
                    self._counts.add(found.part, found.scored, found.keep, group)
            start += len(part.truth)

    # ---------------------------------------------------------------------------------------------- together

    def merge(self, other: Intake) -> None:
        """Add what another one with settings that agree has counted, on any device; it stays as it is."""
        if other._counts is None:
            return
        if self._counts is None:
            self.load(other.state())
            return
        seen = [(x._counted.form, x._counted.classes, x.facts["input"], x._grouped) for x in (self, other)]
        if seen[0] != seen[1]:
            raise MeasurementError(
                f"accumulators of different predictions cannot be merged: {_named(seen[0])} and {_named(seen[1])}"
            )
        self._counts.merge(other._counts)
        for dtype in other.facts["dtype"].split(", "):
            if dtype not in self.facts["dtype"].split(", "):
                self.facts["dtype"] += f", {dtype}"
        device = self._counts.device
        theirs = other._fault.to(device)
        self._fault = torch.minimum(self._fault, torch.where(theirs < _NEVER, theirs + (self._updates << 32), theirs))
        self._updates += other._updates
        self.warnings |= other.warnings

    def state(self) -> dict[str, Any]:
        """Return everything counted so far, as tensors and plain values."""
        return {
            "form": None if self._counts is None else self._counted.form,
            "classes": 0 if self._counts is None else self._counted.classes,
            "facts": dict(self.facts),
            "updates": self._updates,
            "fault": None if self._counts is None else self._fault,
            "deferred": False if self._counts is None else self._deferred,
            **({} if self._counts is None else self._counts.state()),
            "grouped": self._grouped,
            "warnings": list(self.warnings),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`; what was counted here is forgotten."""
        self._empty()
        if state["form"] is None:
            return
        self.facts, self._deferred = dict(state["facts"]), state["deferred"]
        view: View = "positive" if self.facts["confidence"] == "positive" else "top"
        sums = state["sums"]
        self._make(state["form"], state["classes"], view, "class counts" in sums, sums["counts"].device)
        assert self._counts is not None
        self._counts.load(state)
        self._fault = state["fault"].clone()
        self._updates, self._grouped = state["updates"], state["grouped"]
        self.warnings = dict.fromkeys(state["warnings"])

    # ---------------------------------------------------------------------------------------------- numbers

    @property
    def samples(self) -> int:
        """Predictions counted so far (waits for the device)."""
        return 0 if self._counts is None else self._counts.samples

    @property
    def device(self) -> torch.device | None:
        """Where the first batch lay; None before it."""
        return None if self._counts is None else self._counts.device

    @property
    def form(self) -> Form:
        """What a row is, once there was one."""
        return self._counted.form

    @property
    def classes(self) -> int:
        """Number of classes, once there was a row."""
        return self._counted.classes

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


def _named(seen: tuple[Any, ...]) -> str:
    form, classes, kind, grouped = seen
    return f"{kind} of {classes} classes ({form}{', grouped' if grouped else ''})"
