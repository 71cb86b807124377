"""Calibration of predictions as they come: counted on their device, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..errors import MeasurementError
from .compiled import load
from .evaluate import evaluate
from .inputs import Form, Predictions, lay_out
from .intake import Intake
from .ranks import gather_states, moved
from .scoring import View
from .settings import Settings
from .table import Calibration
from .totals import Totals

#: Pairs that are kept as they are, so that ranks are exact up to there (chosen by us: 2 MiB).
EXACT = 1 << 18


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
        compiled: go through logits of several classes on a CPU with a C kernel, twice as fast, and through float32
            confidences without groups, where counting takes a third of the time; the same numbers, but for rounding.
            Needs a C compiler ($CC, cc, gcc or clang), which makes it once in a process (0.3 s). Accelerators, float64
            and probabilities of several classes go their ordinary way.

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
        self.settings = Settings.checked(
            bins=bins,
            mass=mass,
            kind=kind,
            confidence=confidence,
            ignore_index=ignore_index,
            class_dim=class_dim,
            scores=scores,
            classwise=classwise,
            exact=exact,
            defer=defer,
            compiled=compiled,
        )
        if compiled:
            load()  # says at once where there is no compiler
        self._intake = Intake(self.settings)

    def reset(self) -> None:
        """Forget every sample, and the shape of the first batch."""
        self._intake = Intake(self.settings)

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
                ignore_index=self.settings.ignore_index,
                class_dim=self.settings.class_dim,
                kind=self.settings.kind,
                groups=groups,
            )
        )

    def add(self, predictions: Predictions) -> CalibrationAccumulator:
        """Count predictions that `inputs.lay_out` or `checked.read_predictions` brought in order."""
        self._intake.add(predictions)
        return self

    # ---------------------------------------------------------------------------------------------- together

    def merge(self, other: CalibrationAccumulator) -> CalibrationAccumulator:
        """Add what another accumulator with the same settings has counted, on any device; it stays as it is."""
        if not isinstance(other, CalibrationAccumulator):
            raise TypeError(f"merge needs a CalibrationAccumulator, got {type(other).__name__}")
        mine, theirs = self.settings.shared(), other.settings.shared()
        for name, value in mine.items():
            if theirs[name] != value:
                raise MeasurementError(
                    f"accumulators with different {name} cannot be merged ({value!r} and {theirs[name]!r}); "
                    "make both with the same settings"
                )
        self._intake.merge(other._intake)
        return self

    def all_reduce(self, group: Any = None) -> CalibrationAccumulator:
        """Merge the accumulators of all ranks of a torch.distributed group, in their order: the same on every rank.

        Every rank must call it, those without a sample too. Costs one all_gather_object of the states (0.2 MiB each,
        and the pairs that are kept).
        """
        states = gather_states(self.state_dict(), group)
        device = self._intake.device
        total = CalibrationAccumulator(**self.settings.arguments())
        for state in states:
            total.merge(CalibrationAccumulator(**self.settings.arguments()).load_state_dict(state))
        return self.load_state_dict(total.state_dict() if device is None else moved(total.state_dict(), device))

    def state_dict(self) -> dict[str, Any]:
        """Return everything counted so far, as tensors and plain values that `torch.load` reads with weights_only."""
        return {"settings": self.settings.shared(), **self._intake.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> CalibrationAccumulator:
        """Take over a `state_dict` of an accumulator with the same settings; what was counted here is forgotten."""
        mine = self.settings.shared()
        for name, value in state["settings"].items():
            if mine.get(name) != value:
                raise MeasurementError(f"this state has {name}={value!r}, the accumulator {mine.get(name)!r}")
        self._intake.load(state)
        return self

    # ---------------------------------------------------------------------------------------------- numbers

    @property
    def facts(self) -> dict[str, str]:
        """What came: "input" (logits or probabilities), "dtype" and the "confidence" taken."""
        return dict(self._intake.facts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever shows the numbers should say of the input."""
        return tuple(self._intake.warnings)

    @property
    def samples(self) -> int:
        """Predictions counted so far (waits for the device)."""
        return self._intake.samples

    def totals(self) -> Totals:
        """Return the sums on the host; raises MeasurementError for faults put off until now, and without samples."""
        return self._intake.totals()

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
            form=self._intake.form,
            classes=self._intake.classes,
            bins=self.settings.bins,
            mass=self.settings.mass,
            seed=seed,
            interval=interval,
            strict=strict,
            warnings=self.warnings,
            settings={**self.facts, "ignore_index": self.settings.ignore_index},
        )
