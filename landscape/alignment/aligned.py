"""The Result of permuting the units of one state so that they fit another's. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array, beside


@dataclass(frozen=True, kw_only=True)
class Alignment(Result, kind="alignment", section="alignment"):
    """What was permuted of state b so that its units stand where those of state a do that are most like them.

    Each group are units that change places together everywhere; `names` say which parameter and dimension holds each
    first. `weights` is b's state_dict, permuted, with b's own precision and devices; `permutations` maps each group's
    name to p, where unit k of `weights` is unit p[k] of b. Both are kept in memory only. b and `weights` are one
    function: the check "function" holds the largest difference of outputs and loss over the task's data. `distance` is
    Euclidean, over the trainable parameters.
    """

    units: np.ndarray = array("group", doc="units of each group")
    moved: np.ndarray = array("group", doc="units that changed their places")
    distance_before: float = array(units="||theta||_2 units", doc="distance from a to b as it was")
    distance: float = array(units="||theta||_2 units", doc="distance from a to b permuted")
    names: tuple[str, ...] = ()
    method: str = "weights"
    states: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    seed: int = 0
    weights: Any = beside("state_dict of b, permuted")
    permutations: Any = beside("for each group's name the place in b of each of its units")

    def summary(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "groups": len(self.units),
            "units": int(np.sum(self.units)),
            "moved": int(np.sum(self.moved)),
            "distance_before": float(self.distance_before),
            "distance": float(self.distance),
        }
