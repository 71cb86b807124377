"""What one checkpoint's post-hoc run gave, and the JSON object of `landscape probe --json`. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.errors import MeasurementError
from landscape.results import Result

#: The sections that every object has, null where they were not measured, and the keys that a section always has.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "curvature": ("eigenvalues", "residuals", "smallest", "trace", "products"),
    "sharpness": (),
    "surface": ("center_loss", "evaluated", "points", "error"),
    "calibration": ("ece", "ece_ci", "bins", "mce", "brier", "nll", "temperature"),
}
#: Checkpoints that an error names (chosen by us: one line).
NAMED = 3
#: Keys of the object that a measurement's section must not take.
RESERVED = frozenset(
    {"checkpoint", "task", "device", "dtype", "samples", "parameters", "loss", "accuracy"}
    | {"archive", "report", "seconds", "notes", "warnings"}
)


@dataclass(frozen=True)
class ProbeOutcome:
    """One checkpoint's results by measurement name, and why the others were not made.

    `samples` is the size of the draw that curvature and surface are measured on (train where there is one),
    `seconds` the wall time of all measurements of this checkpoint. `notes` say how the numbers came about, `warnings`
    what to look at.
    """

    checkpoint: str
    task: str
    device: str
    dtype: str
    samples: int
    parameters: int
    results: Mapping[str, Result] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    archive: str | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_dict(self, report: str | None = None) -> dict[str, Any]:
        """Return the object of `landscape probe --json`; NaN and inf are still in it."""
        performance, sections = self._sections()
        return {
            "checkpoint": self.checkpoint,
            "task": self.task,
            "device": self.device,
            "dtype": self.dtype,
            "samples": self.samples,
            "parameters": self.parameters,
            "loss": performance.pop("loss", None),
            "accuracy": performance.pop("accuracy", None),
            **{name: _filled(name, sections.pop(name, None)) for name in SECTIONS},
            "performance": performance or None,
            **sections,
            "archive": self.archive,
            "report": report,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def _sections(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        sections: dict[str, dict[str, Any]] = {}
        for name, result in self.results.items():
            if result.status == "failed":
                continue
            section = result.section or name
            sections[section] = merged(sections.get(section, {}), result.summary(), name)
        performance = sections.pop("performance", {})
        result: Any = self.results.get("performance")
        if performance and hasattr(result, "splits"):
            sizes = np.asarray(result.samples).tolist()
            performance["samples"] = dict(zip(result.splits, sizes, strict=True))
        return performance, sections


class NotAllMeasured(MeasurementError):
    """Of several checkpoints that workers measured some could not be: `outcomes` are those of the others, `errors` what
    went wrong, by checkpoint.
    """

    def __init__(self, outcomes: Sequence[ProbeOutcome], failures: Sequence[tuple[str, str, Exception]]) -> None:
        """Args: failures: of each the checkpoint, what went wrong in a line, and the error."""
        said = [f"{path} ({line})" for path, line, _ in failures]
        more = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
        super().__init__(
            f"{len(said)} of {len(said) + len(outcomes)} checkpoints could not be measured: "
            f"{', '.join(said[:NAMED])}{more}; the same command with --resume tries them again"
        )
        self.outcomes, self.errors = list(outcomes), {path: error for path, _, error in failures}


def merged(one: dict[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return two summaries of one section as one: products add up, a key taken twice goes under the second's name."""
    both = dict(one)
    for key, value in other.items():
        if key == "products" and key in both:
            both[key] += value
        elif key in both:
            both.setdefault(name, {})[key] = value
        else:
            both[key] = value
    return both


def _filled(section: str, found: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if found is None else {**dict.fromkeys(SECTIONS[section]), **found}
