"""What is done with every cell of a sweep beside training it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..probe import Probe
from .training import SAVE_SECONDS


@dataclass(frozen=True)
class How:
    """What is done with every cell beside training it; none of it changes the weights that come out.

    Attributes:
        device: "auto" is CUDA where there is one, else where the task's model is.
        record: whether the training is recorded. probes: what the recorder measures: probes, or their names in
            `recording.TRACKS` beside its default; None is the default alone.
        evaluate: every how many epochs the test data are looked at; 0 never.
        checkpoints: every how many epochs one is kept (for trajectories); 0 keeps the final one alone.
        measure: whether the final checkpoint is measured: `only`, `preset`, `options`, `max_samples` as for
            `landscape probe`.
        save_every: seconds between two saved states of a training that is under way.
    """

    device: str = "auto"
    record: bool = True
    probes: Sequence[Probe | str] | None = None
    evaluate: int = 1
    checkpoints: int = 0
    measure: bool = True
    only: Sequence[str] | None = None
    preset: str = "quick"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_samples: int | None = None
    save_every: float = SAVE_SECONDS
