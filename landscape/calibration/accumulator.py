"""Calibration of predictions as they come: counted on their device, in memory that does not grow with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..errors import MeasurementError
from .bins import Bins, equal_mass_edges, equal_width_edges, right_closed
from .cells import Cells
from .evaluate import evaluate
from .inputs import Form, Predictions, kept, lay_out, verify
from .scoring import Scored, View, blocks, faulty, in_range, score, sound, within_unit
from .table import Calibration
from .totals import Atoms, Classes, Groups, Totals

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
        self.reset()

    def reset(self) -> None:
        """Forget every sample, and the shape of the first batch."""
        self._form: Form | None = None
        self._classes = 0
        self._facts: dict[str, str] = {}
        self._updates = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._cells: Cells | None = None
        self._pairs: list[tuple[torch.Tensor, ...]] | None = []
        self._held = 0
        self._groups: list[_GroupSums] = []
        self._rows = 0
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
        predictions, group = self._open_groups(predictions)
        parts = list(blocks(predictions))
        # A fault in a later block must leave no trace of the blocks before it.
        saved = {k: v.clone() for k, v in self._sums.items()} if len(parts) > 1 and not self._deferred else None
        held = None if self._pairs is None else list(self._pairs), self._held
        try:
            self._count(predictions, parts, group)
        except MeasurementError:
            self._sums = self._sums if saved is None else saved
            self._pairs, self._held = held
            if not self._updates:
                self.reset()
            raise
        if group is not None:
            self._groups.append(group)
            self._rows += len(group)
        self._updates += 1
        return self

    def _begin(self, predictions: Predictions) -> None:
        view = self._view(predictions)
        facts = {"input": predictions.kind, "dtype": predictions.dtype, "confidence": view}
        if self._form is None:
            if view == "positive" and not predictions.binary:
                raise MeasurementError(
                    f'confidence="positive" needs a binary task of shape (n,), got {predictions.classes} classes; '
                    "give the scores of class 1 alone"
                )
            device = predictions.scores.device
            self._deferred = device.type != "cpu" if self.defer is None else self.defer
            self._form, self._classes, self._facts = predictions.form, predictions.classes, facts
            self._tabled = self.classwise is not False and (
                predictions.form in ("multiclass", "multilabel")
                and (self.classwise is True or predictions.classes <= CLASSWISE)
            )
            # Whether the top label may be right where the confidence, being that of class 1, did not come true.
            self._apart = view == "positive" and predictions.form != "top-label"
            self._make(device)
        elif (predictions.form, predictions.classes) != (self._form, self._classes):
            raise MeasurementError(
                f"this batch has {predictions.classes} classes ({predictions.form}), those before it had "
                f"{self._classes} ({self._form}); give each its own accumulator"
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

    def _make(self, device: torch.device) -> None:
        """Lay out the sums, all 0."""
        self._cells = Cells(np.array([0.0, 1.0]) if self.edges is None else self.edges, device)
        self._bin_of = torch.from_numpy(self._cells.bin_of).to(device)
        self._class_edges = torch.from_numpy(equal_width_edges(self.bins)[1:-1]).to(device)
        cells, k, tables = 2 * len(self._cells), self._classes, self._classes * self.bins

        def zeros(size: int, whole: bool = True) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int64 if whole else torch.float64, device=device)

        self._sums = {
            "counts": zeros(cells),
            "confidence": zeros(cells, whole=False),
            "right": zeros(1),
            "infinite": zeros(1),
        }
        if self.scores:
            self._sums["moments"] = zeros(6, whole=False)
        if self._form != "top-label":
            self._sums["class labels"] = zeros(k)
        if self._form == "multiclass":
            self._sums |= {"class predicted": zeros(k), "class right": zeros(k)}
            self._sums |= {"class confidence": zeros(k, whole=False), "class mass": zeros(k, whole=False)}
        if self._tabled:
            self._sums |= {"class counts": zeros(tables), "class hits": zeros(tables)}
            self._sums["class sums"] = zeros(tables, whole=False)
        self._ones = zeros(0)
        self._fault = torch.full((1,), _NEVER, dtype=torch.int64, device=device)

    def _open_groups(self, predictions: Predictions) -> tuple[Predictions, _GroupSums | None]:
        """Return the predictions with groups numbered from 0, and the sums to fill for them."""
        if predictions.groups is None:
            return predictions, None
        ids, rows = None, predictions.groups
        if predictions.named:
            ids, rows = torch.unique(rows, return_inverse=True)
        size = predictions.members if ids is None else len(ids)
        bins = 0 if self.edges is None else self.bins  # equal-mass bins are not known yet
        group = _GroupSums(
            ids,
            torch.zeros(size * bins * 3, dtype=torch.float64, device=rows.device),
            torch.zeros(3 * size, dtype=torch.float64, device=rows.device),
        )
        return dataclasses.replace(predictions, groups=rows), group

    def _count(self, predictions: Predictions, parts: list[Predictions], group: _GroupSums | None) -> None:
        device = predictions.scores.device
        if self._sums["counts"].device != device:
            raise MeasurementError(
                f"this batch lies on {device}, those before it on {self._sums['counts'].device}; give each device its "
                "own accumulator and merge them"
            )
        view, start = self._view(predictions), 0
        # Logits that are probabilities: looked for in every batch on the CPU, in the first on an accelerator, where
        # each look waits for the device.
        suspect = predictions.kind == "logits" and (not self._deferred or not self._updates)
        classes = 2 if predictions.binary else predictions.classes
        share = 1 / self.bins if self._tabled and not predictions.binary else None
        for i, part in enumerate(parts):
            rows, fine = len(part.truth), True
            keep = lost = None
            if self._deferred:
                keep = torch.ones_like(part.truth, dtype=torch.bool)
                if self.ignore_index is not None:
                    keep = part.truth != self.ignore_index
                there = (part.truth >= 0) & (part.truth < classes)
                keep, lost = keep & there, keep & ~there
                part = dataclasses.replace(part, truth=part.truth.where(keep, 0))
            elif self.ignore_index is not None:
                counted = part.truth != self.ignore_index
                part = part if bool(counted.all()) else part.select(counted.nonzero().reshape(-1))
            if not len(part.truth):
                start += rows
                continue
            scored = None
            if keep is not None or in_range(part.truth, classes):
                scored = score(part, view, self.scores, share, keep)
                if keep is not None and lost is not None:
                    bad = faulty(scored, part)
                    lost |= keep & bad
                    keep &= ~bad
                    first = torch.where(lost.any(), (self._updates << 32) + start + lost.int().argmax(), _NEVER)
                    self._fault = torch.minimum(self._fault, first)
                else:
                    fine = sound(scored, part)
                suspect = suspect and within_unit(scored)
            if scored is None or not fine or (suspect and i == len(parts) - 1):
                for warning in verify(kept(predictions, self.ignore_index)).warnings:
                    self._warnings[warning] = None
            if scored is not None:
                self._tally(part, scored, keep, group)
            start += rows

    def _tally(self, part: Predictions, scored: Scored, keep: torch.Tensor | None, group: _GroupSums | None) -> None:
        """Add the rows of a block that `keep` marks (None: all)."""
        assert self._cells is not None
        sums, sure, correct, right = self._sums, scored.confidence, scored.correct, scored.right
        if keep is None:
            if len(self._ones) < len(sure):
                self._ones = torch.ones_like(correct)
            one = self._ones[: len(sure)]
        else:
            one = keep.long()
            same = right is correct
            sure, correct = sure.where(keep, 0), correct * one
            right = correct if same else right * one

        def add(name: str, at: torch.Tensor, of: torch.Tensor) -> None:
            sums[name].scatter_add_(0, at, of)

        keys = self._cells.keys(sure, correct)
        wide = sure.double()
        add("counts", keys, one)
        add("confidence", keys, wide)
        if right is not correct:
            sums["right"] += right.sum()
        brier = nll = None
        if scored.brier is not None and scored.nll is not None:
            endless = torch.isinf(scored.nll)
            nll = scored.nll.masked_fill(endless, 0)
            brier = scored.brier
            if keep is not None:
                brier, nll, endless = brier.where(keep, 0), nll.where(keep, 0), endless & keep
            sums["infinite"] += endless.sum()
            powers = [x @ of for x in (brier, nll) for of in (torch.ones_like(x), x, x * x)]
            sums["moments"] += torch.stack(powers)
        if group is not None:
            assert part.groups is not None
            if self.edges is not None:
                at = (part.groups * self.bins + self._bin_of[keys >> 1]) * 3
                for offset, of in enumerate((one.double(), correct.double(), wide)):
                    group.table.scatter_add_(0, at + offset, of)
            group.scores.scatter_add_(0, 3 * part.groups, right.double())
            if brier is not None and nll is not None:
                group.scores.scatter_add_(0, 3 * part.groups + 1, brier)
                group.scores.scatter_add_(0, 3 * part.groups + 2, nll)
        if self._pairs is not None:
            self._keep_pair(wide, correct, keep, part.groups)
        if "class labels" in sums:
            self._tally_classes(part, scored, wide, correct, one, keep)

    def _keep_pair(
        self, sure: torch.Tensor, correct: torch.Tensor, keep: torch.Tensor | None, groups: torch.Tensor | None
    ) -> None:
        assert self._pairs is not None
        self._held += len(sure)
        if self._held > self.exact:
            self._pairs = None
            return
        marked = sure if keep is None else sure.where(keep, torch.nan)
        # Clones, not views: a block's own tensors hold more than these.
        rows = torch.zeros(0, dtype=torch.int64, device=sure.device) if groups is None else groups + self._rows
        self._pairs.append((marked.clone(), correct.clone(), rows))

    def _tally_classes(
        self,
        part: Predictions,
        scored: Scored,
        sure: torch.Tensor,
        correct: torch.Tensor,
        one: torch.Tensor,
        keep: torch.Tensor | None,
    ) -> None:
        sums, bins = self._sums, self.bins

        def add(name: str, at: torch.Tensor, of: torch.Tensor) -> None:
            sums[name].scatter_add_(0, at, of)

        def place(p: torch.Tensor) -> torch.Tensor:
            return torch.bucketize(p, self._class_edges)

        y = part.truth if keep is None else part.truth.where(keep, 0)
        if part.column is not None:
            p = sure if self._facts["confidence"] == "positive" else _positive(part, keep)
            add("class labels", part.column, y)
            if self._tabled:
                at = part.column * bins + place(p)
                add("class counts", at, one)
                add("class hits", at, y)
                add("class sums", at, p if keep is None else p.where(keep, 0))
            return
        add("class labels", y, one)
        if scored.predicted is None:
            return
        add("class predicted", scored.predicted, one)
        add("class right", scored.predicted, correct)
        add("class confidence", scored.predicted, sure)
        if scored.likely is None or scored.own is None:
            return
        # A class with less than 1 / bins lies in the first bin, which is what the others leave: few are counted one by
        # one, and what falls in the first bin all the same is not read.
        likely = scored.likely
        sums["class mass"] += likely.mass
        own = scored.own.clamp_max(1)
        add("class hits", y * bins + place(own if keep is None else own.where(keep, 0)), one)
        at = likely.classes * bins + place(likely.probability)
        add("class counts", at, torch.ones_like(at) if keep is None else (likely.probability > 0).long())
        add("class sums", at, likely.probability)

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
        if other._form is None:
            return self
        if self._form is None:
            self.load_state_dict(other.state_dict())
            return self
        seen = [(x._form, x._classes, x._facts["input"], x._grouped) for x in (self, other)]
        if seen[0] != seen[1]:
            raise MeasurementError(
                f"accumulators of different predictions cannot be merged: {_named(seen[0])} and {_named(seen[1])}"
            )
        device = self._sums["counts"].device
        for name, value in other._sums.items():
            self._sums[name] += value.to(device)
        for dtype in other._facts["dtype"].split(", "):
            if dtype not in self._facts["dtype"].split(", "):
                self._facts["dtype"] += f", {dtype}"
        self._held += other._held
        if self._pairs is None or other._pairs is None or self._held > self.exact:
            self._pairs = None
        else:
            self._pairs += [(c.to(device), y.to(device), g.to(device) + self._rows) for c, y, g in other._pairs]
        self._groups += [group.to(device) for group in other._groups]
        self._rows += other._rows
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
        import torch.distributed as dist

        states: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(states, _to(self.state_dict(), torch.device("cpu")), group=group)
        device = self._sums["counts"].device if self._sums else None
        total = CalibrationAccumulator(**self._arguments())
        for state in states:
            total.merge(CalibrationAccumulator(**self._arguments()).load_state_dict(state))
        return self.load_state_dict(total.state_dict() if device is None else _to(total.state_dict(), device))

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
        }

    def _settings(self) -> dict[str, Any]:
        """Return what must agree between accumulators that are merged."""
        found = {k: v for k, v in self._arguments().items() if k not in ("class_dim", "exact", "defer")}
        return found | {"bins": self.bins if self.edges is None else [float(x) for x in self.edges]}

    def state_dict(self) -> dict[str, Any]:
        """Return everything counted so far, as tensors and plain values that `torch.load` reads with weights_only."""
        return {
            "settings": self._settings(),
            "form": self._form,
            "classes": self._classes,
            "facts": dict(self._facts),
            "updates": self._updates,
            "sums": dict(self._sums),
            "fault": self._fault if self._sums else None,
            "deferred": self._deferred if self._sums else False,
            "pairs": None if self._pairs is None else list(self._pairs),
            "held": self._held,
            "groups": [(g.ids, g.table, g.scores) for g in self._groups],
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
        self._form, self._classes, self._facts = state["form"], state["classes"], dict(state["facts"])
        self._tabled, self._deferred = "class counts" in state["sums"], state["deferred"]
        self._apart = self._facts["confidence"] == "positive" and self._form != "top-label"
        self._make(state["sums"]["counts"].device)
        self._sums = {k: v.clone() for k, v in state["sums"].items()}
        self._fault = state["fault"].clone()
        self._pairs = None if state["pairs"] is None else [tuple(pair) for pair in state["pairs"]]
        self._held, self._updates, self._grouped = state["held"], state["updates"], state["grouped"]
        self._groups = [_GroupSums(*group) for group in state["groups"]]
        self._rows = sum(len(g) for g in self._groups)
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
        return int(self._sums["counts"].sum()) if self._sums else 0

    def totals(self) -> Totals:
        """Return the sums on the host; raises MeasurementError for faults put off until now, and without samples."""
        if not self._sums or not self.samples + int(self._fault < _NEVER):
            raise MeasurementError("no predictions: nothing was counted (or ignore_index left nothing)")
        fault = int(self._fault)
        if fault < _NEVER:
            raise MeasurementError(
                f"row {fault & 0xFFFFFFFF} of update {fault >> 32} (both from 0) has a score that is not finite, "
                "probabilities outside [0, 1] or not summing to 1, or a label out of range: pass logits as logits=, "
                "leave labels out with ignore_index=, or mend the data, and accumulate anew"
            )
        sums = {k: v.cpu().numpy() for k, v in self._sums.items()}
        atoms = self._atoms(sums)
        table, index = self._table(sums, atoms)
        return Totals(
            table=table,
            atoms=atoms,
            classes=self._class_totals(sums),
            right=int(sums["right"][0]) if self._apart else int(sums["counts"][1::2].sum()),
            moments=sums["moments"].reshape(2, 3) if self.scores else None,
            infinite=int(sums["infinite"][0]),
            groups=self._group_totals(table.edges, index),
        )

    def _host_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self._pairs is not None
        columns = [torch.cat(column).cpu().numpy() for column in zip(*self._pairs, strict=True)]
        there = ~np.isnan(columns[0])
        return columns[0][there], columns[1][there], columns[2][there] if len(columns[2]) else columns[2]

    def _atoms(self, sums: Mapping[str, np.ndarray]) -> Atoms:
        if self._pairs is not None:
            sure, correct, _ = self._host_pairs()
            order = np.argsort(sure, kind="stable")
            sure, correct = sure[order], correct[order]
            first = np.flatnonzero(np.diff(sure, prepend=-1.0))
            counts = np.diff(first, append=len(sure))
            right = np.add.reduceat(correct.astype(np.int64), first)
            return Atoms(sure[first], counts, right, sure[first] * (counts - right), exact=True)
        counts = sums["counts"].reshape(-1, 2)
        parts = sums["confidence"].reshape(-1, 2)
        filled = counts.sum(axis=1) > 0
        counts, parts = counts[filled], parts[filled]
        size = counts.sum(axis=1)
        return Atoms(parts.sum(axis=1) / size, size, counts[:, 1], parts[:, 0], exact=False)

    def _table(self, sums: Mapping[str, np.ndarray], atoms: Atoms) -> tuple[Bins, np.ndarray | None]:
        """Return the bins, and for equal-mass ones made from pairs the bin of each pair."""
        assert self._cells is not None
        counts, parts = sums["counts"].reshape(-1, 2), sums["confidence"].reshape(-1, 2)
        if self.edges is not None:
            return Bins(self.edges).add_cells(self._cells.bin_of, counts, parts), None
        if self._pairs is not None:
            sure, correct, _ = self._host_pairs()
            edges = equal_mass_edges(sure, self.bins)
            index = right_closed(sure, edges)
            return Bins(edges).add(sure, correct, index), index
        if self._grouped:
            raise MeasurementError(
                f"equal-mass bins of grouped samples need every pair, and {self._held} exceed exact={self.exact}; "
                "raise exact=, or give bins= the edges of a first run without groups"
            )
        # From cells: an edge where a cell ends.
        ends = np.searchsorted(np.cumsum(counts.sum(axis=1)), np.arange(1, self.bins) * self.samples / self.bins)
        inner = np.unique(ends)
        inner = inner[inner < np.flatnonzero(counts.sum(axis=1))[-1]]  # the last bin ends at 1, and is not empty
        edges = np.concatenate([[0.0], self._cells.upper_ends()[inner], [1.0]])
        return Bins(edges).add_cells(np.searchsorted(inner, np.arange(len(counts))), counts, parts), None

    def _class_totals(self, sums: Mapping[str, np.ndarray]) -> Classes:
        if "class labels" not in sums:
            return Classes()
        tables: dict[str, np.ndarray] = {}
        if self._tabled:
            shape = self._classes, self.bins
            counts, hits, p = (sums[f"class {name}"].reshape(shape).copy() for name in ("counts", "hits", "sums"))
            if self._form == "multiclass":  # what the counted ones leave to the first bin
                counts[:, 0] = self.samples - counts[:, 1:].sum(axis=1)
                p[:, 0] = sums["class mass"] - p[:, 1:].sum(axis=1)
            tables = {"counts": counts, "hits": hits, "sums": p}
        if self._form == "multiclass":
            tables |= {name: sums[f"class {name}"] for name in ("predicted", "right", "confidence")}
        return Classes(labels=sums["class labels"], **tables)

    def _group_totals(self, edges: np.ndarray, index: np.ndarray | None) -> Groups | None:
        if not self._groups:
            return None
        bins = len(edges) - 1
        scores = torch.cat([g.scores for g in self._groups]).cpu().numpy().reshape(-1, 3)
        if index is None:
            table = torch.cat([g.table for g in self._groups]).cpu().numpy().reshape(-1, bins, 3)
        else:
            sure, correct, rows = self._host_pairs()
            at = rows * bins + index
            columns = [np.bincount(at, of, minlength=len(scores) * bins) for of in (np.ones(len(at)), correct, sure)]
            table = np.stack(columns, axis=1).reshape(-1, bins, 3)
        ids, free = [], -1
        for g in self._groups:
            names = np.arange(free, free - len(g), -1) if g.ids is None else g.ids.cpu().numpy()
            free -= len(g) if g.ids is None else 0
            ids.append(names)
        if any(g.ids is not None for g in self._groups):
            found, rows = np.unique(np.concatenate(ids), return_inverse=True)
            whole_table, whole_scores = np.zeros((len(found), bins, 3)), np.zeros((len(found), 3))
            np.add.at(whole_table, rows, table)
            np.add.at(whole_scores, rows, scores)
            table, scores = whole_table, whole_scores
        there = table[:, :, 0].sum(axis=1) > 0
        table, scores = table[there], scores[there]
        return Groups(table[:, :, 0], table[:, :, 1], table[:, :, 2], scores[:, 1], scores[:, 2], scores[:, 0])

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
        assert self._form is not None
        return evaluate(
            totals,
            form=self._form,
            classes=self._classes,
            bins=self.bins,
            mass=self.mass,
            seed=seed,
            interval=interval,
            strict=strict,
            warnings=self.warnings,
            settings={**self._facts, "ignore_index": self.ignore_index},
        )


def checked_bins(bins: Any, mass: Any) -> tuple[int, np.ndarray | None]:
    """Return the number of bins and their edges (None: equal-mass ones, not known yet)."""
    if mass not in ("width", "equal"):
        raise MeasurementError(f"mass={mass!r} is not one of 'width', 'equal'")
    if isinstance(bins, Sequence | np.ndarray) and not isinstance(bins, str):
        edges = np.asarray(bins, dtype=np.float64)
        if mass == "equal":
            raise MeasurementError('mass="equal" finds its own edges: give bins= as a number')
        if edges.ndim != 1 or len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or not (np.diff(edges) > 0).all():
            raise MeasurementError("edges of bins must rise from 0 to 1, e.g. bins=[0, 0.5, 0.9, 1]")
        return len(edges) - 1, edges
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer):
        raise TypeError(f"bins must be an integer or edges, got {type(bins).__name__}")
    if bins < 1:
        raise MeasurementError(f"bins={bins} must be at least 1")
    return int(bins), equal_width_edges(int(bins)) if mass == "width" else None


def _positive(part: Predictions, keep: torch.Tensor | None) -> torch.Tensor:
    """Return the probability of class 1 of each row, float64; 0 where it is not to be kept."""
    p = part.scores.double()
    p = torch.sigmoid(p) if part.kind == "logits" else p
    return p if keep is None else p.where(keep, 0)


def _named(seen: tuple[Any, ...]) -> str:
    form, classes, kind, grouped = seen
    return f"{kind} of {classes} classes ({form}{', grouped' if grouped else ''})"


def _to(value: Any, device: torch.device) -> Any:
    """Return plain data with its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    return type(value)(_to(v, device) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class _GroupSums:
    """Sums of one update's groups: `ids` (G,) as named, or None; `table` (G * bins * 3,); `scores` (G * 3,)."""

    ids: torch.Tensor | None
    table: torch.Tensor
    scores: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores) // 3

    def to(self, device: torch.device) -> _GroupSums:
        return _GroupSums(
            None if self.ids is None else self.ids.to(device), self.table.to(device), self.scores.to(device)
        )
