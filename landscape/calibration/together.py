"""Everything about one set of predictions at once: their calibration, what a map mends, and each one's own scores."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import MeasurementError
from ..results import Cost, Result
from .checked import read_predictions
from .inputs import Form, Kind
from .maps import Method
from .recalibrated import Recalibration
from .recalibration import recalibrate
from .samples import keep_samples
from .scores import calibration_error
from .single import score_samples
from .table import Calibration


@dataclass(frozen=True)
class Judged:
    """Scores and labels (as `calibration_error` takes them) with where they come from and what must be said of them.

    `groups` numbers what samples depend on each other. `fingerprint` is of the data behind them: predictions with the
    same one are of the same samples in the same order. `form` None: by shape.
    """

    kind: Kind
    scores: Any
    labels: Any
    groups: Any = None
    form: Form | None = None
    split: str = ""
    fingerprint: str = ""
    passes: float = 0.0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of `calibration_error` and `recalibrate`."""
        return {self.kind: self.scores, "labels": self.labels}


def calibrate(
    judged: Judged,
    *,
    bins: int = 15,
    method: Method = "temperature",
    convention: Literal["torchmetrics", "netcal", "guo"] | None = None,
    share: float = 0.5,
    folds: int | None = None,
    ignore_index: int | None = None,
    class_dim: int = 1,
    strict: bool | None = None,
    seed: int = 0,
    must_recalibrate: bool = False,
) -> Calibration:
    """Return the Calibration, with the Recalibration (where there is a fit) and the SampleScores `along` it.

    `convention` is that of the Calibration; the recalibration is judged, and runs are compared, in our own. A method
    that has no fit is said in the warnings, or raises MeasurementError with `must_recalibrate`. The other arguments
    are those of `calibration_error` and `recalibrate`.
    """
    start = time.perf_counter()
    layout: dict[str, Any] = {
        "ignore_index": ignore_index,
        "class_dim": class_dim,
        "groups": judged.groups,
        "kind": judged.form,
    }
    result = calibration_error(**judged.given, bins=bins, convention=convention, seed=seed, strict=strict, **layout)
    settings = {"split": judged.split} if judged.split else {}
    warnings = list(judged.warnings)
    further: list[Result] = []
    changes: dict[str, Any] = {}
    try:
        mended = recalibrate(method, **judged.given, bins=bins, share=share, folds=folds, seed=seed, **layout)
    except MeasurementError as error:
        if must_recalibrate:
            raise
        text = str(error)
        warnings.append(text if text.startswith("no temperature") else f"no {method} recalibration: {text}")
    else:
        further.append(
            dataclasses.replace(
                mended,
                split=judged.split,
                fingerprint=judged.fingerprint,
                settings={**mended.settings, **settings},
                notes=judged.notes,
            )
        )
        changes = _temperature(mended)
    read = read_predictions(**{"logits": None, "probabilities": None, **judged.given}, **layout)
    kept = keep_samples(
        score_samples(read),
        bins=bins,
        fingerprint=judged.fingerprint,
        split=judged.split,
        groups=None if read.groups is None else read.groups.cpu().numpy(),
    )
    further.append(dataclasses.replace(kept, settings={"bins": bins, **settings}))
    return dataclasses.replace(
        result,
        split=judged.split,
        settings={**result.settings, **settings},
        warnings=(*warnings, *result.warnings),
        notes=(*judged.notes, *result.notes),
        cost=Cost(passes=judged.passes, seconds=time.perf_counter() - start),
        along=tuple(further),
        **changes,
    )


def _temperature(mended: Recalibration) -> dict[str, Any]:
    """Return the fields of a Calibration that tell of temperature scaling; none for the other methods."""
    if mended.method != "temperature":
        return {}
    return {
        "temperature": mended.temperature,
        "temperature_stderr": mended.temperature_stderr,
        "ece_before_temperature": float(mended.ece[0]),
        "ece_after_temperature": float(mended.ece[1]),
        "checks": mended.checks,
    }
