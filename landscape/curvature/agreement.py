"""The result of asking other programs for the same numbers. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array


@dataclass(frozen=True, kw_only=True)
class Agreement(Result, kind="reference"):
    """Numbers of ours beside those of other programs, each difference beside the tolerance that it is held to.

    All arrays (comparison,) belong to `names` ("lambda_1", "trace") and `tools` ("ARPACK", "PyHessian"). `difference`
    and `tolerance` are relative to the larger of the two numbers. The checks say how each went, and how a product of
    each with one vector did.
    """

    ours: np.ndarray = array("comparison", doc="what this package finds, in the quantity's own units")
    theirs: np.ndarray = array("comparison", doc="what the other program finds")
    difference: np.ndarray = array("comparison", doc="|ours - theirs| / max(|ours|, |theirs|)")
    tolerance: np.ndarray = array(
        "comparison", doc="difference allowed: from residuals, standard errors, stopping rules"
    )
    products: int = array(units="products", doc="operator products spent by all", default=0)
    names: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    split: str = ""

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for i, (name, tool) in enumerate(zip(self.names, self.tools, strict=True)):
            found.setdefault(name, {})[tool] = {
                "ours": float(self.ours[i]),
                "theirs": float(self.theirs[i]),
                "difference": float(self.difference[i]),
                "tolerance": float(self.tolerance[i]),
                "agrees": bool(self.difference[i] <= self.tolerance[i]),
            }
        for check in self.checks:
            if check.name == "product":
                found["product"] = {
                    "PyHessian": {
                        "difference": check.value,
                        "tolerance": check.limit,
                        "agrees": check.level == "pass",
                    }
                }
        return {**found, "products": int(self.products)}
