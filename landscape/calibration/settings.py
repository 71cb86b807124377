"""How predictions are counted: the arguments of an accumulator, checked, and which of them must agree in a merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import MeasurementError
from .bins import checked_bins
from .inputs import Form
from .scoring import View

# What may differ between accumulators that are merged.
_OWN = ("class_dim", "exact", "defer", "compiled")


@dataclass(frozen=True)
class Settings:
    """As the arguments of `CalibrationAccumulator`; `edges` of the bins, None for equal-mass ones."""

    bins: int
    edges: np.ndarray | None
    mass: Literal["width", "equal"]
    kind: Form | None
    confidence: View | None
    ignore_index: int | None
    class_dim: int
    scores: bool
    classwise: bool | None
    exact: int
    defer: bool | None
    compiled: bool

    @classmethod
    def checked(
        cls, *, bins: int | Sequence[float] | np.ndarray, mass: Any, confidence: Any, exact: Any, **others: Any
    ) -> Settings:
        """Return the settings; raises MeasurementError or TypeError for what is none."""
        count, edges = checked_bins(bins, mass)
        if confidence not in (None, "top", "positive"):
            raise MeasurementError(f"confidence={confidence!r} is not one of 'top', 'positive' or None")
        if isinstance(exact, bool) or not isinstance(exact, int | np.integer):
            raise TypeError(f"exact must be an integer, got {type(exact).__name__}")
        return cls(count, edges, mass=mass, confidence=confidence, exact=int(exact), **others)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of an accumulator like this one."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "edges"}
        return found | ({} if self.edges is None else {"bins": self.edges})

    def shared(self) -> dict[str, Any]:
        """Return, as plain values, what must agree between accumulators that are merged."""
        found = {name: value for name, value in self.arguments().items() if name not in _OWN}
        return found | {"bins": self.bins if self.edges is None else [float(x) for x in self.edges]}
