"""Do PyHessian and ARPACK find the same? The measurement behind `landscape probe --check`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from ..objective import Objective, as_objective
from ..results import Check, Cost, Level, Option, measurement
from ..tasks import Task
from .agreement import Agreement
from .lanczos import eigenpairs
from .operators import Hessian
from .reference import arpack_eigenpairs, pyhessian_eigenpairs, pyhessian_trace
from .traces import trace

#: Relative difference allowed between PyHessian's eigenvalues and ours: it stops on two similar iterates, which leaves
#: errors of 1e-3 and more at its default tolerance (chosen by us).
STOPPING = 1e-2
#: Standard errors that two estimates of a trace may be apart: 3 happen by chance once in 370 times.
ERRORS = 3.0


@dataclass(frozen=True)
class _Row:
    name: str
    tool: str
    ours: float
    theirs: float
    difference: float
    tolerance: float
    failing: Level

    def check(self) -> Check:
        agrees = self.difference <= self.tolerance
        text = (
            f"{self.name}: {self.ours:.6g}, {self.tool} {self.theirs:.6g}; they differ by {self.difference:.1e}, "
            f"{self.tolerance:.1e} is allowed"
        )
        level: Level = "pass" if agrees else self.failing
        return Check(f"{self.name}, {self.tool}", level, text, self.difference, self.tolerance)


@measurement(
    "reference",
    default=False,
    order=28,
    preset={"quick": {"draws": 16}, "standard": {}, "thorough": {"k": 3, "draws": 100}},
    options={
        "k": Option(1, "eigenvalues of largest magnitude to compare"),
        "draws": Option(32, "random vectors of each trace"),
        "tol": Option(1e-3, "residual allowed, as a share of |lambda_1|", "the published tools' tolerance"),
        "split": Option("train", "the data whose mean loss is differentiated", choices=("train", "test")),
    },
    # Products of the three searches, as measured on small nets, and of the two traces.
    estimate=lambda k=1, draws=32, **_: 6.0 * (10 + 20 + 40 * k + 2 * draws),
    needs=("second derivative",),
)
def measure_reference(
    task: Task | Objective,
    *,
    seed: int = 0,
    progress: bool = False,
    k: int = 1,
    draws: int = 32,
    tol: float = 1e-3,
    split: str = "train",
) -> Agreement:
    """Eigenvalues, trace and one product beside those of ARPACK and PyHessian, with the tolerances they are held to.

    - the k eigenvalues of largest magnitude: ARPACK's within both residuals (an eigenvalue lies within each), or a
      disagreement fails; PyHessian's within 1%, which its stopping rule is good for, or it is said;
    - one product with a random vector: PyHessian's within rounding, or it fails;
    - the trace: PyHessian's estimate (its stopping rule switched off) within 3 standard errors of the difference, or it
      is said.

    Costs about 10 products for ours, 20 for ARPACK, 20 to 100 for each of PyHessian's eigenvalues, and `draws` for each
    trace. Raises MeasurementError as the tools do (`landscape.curvature.reference`).
    """
    start = time.perf_counter()
    with as_objective(task, split) as objective:
        A = Hessian(objective)
        ours = eigenpairs(A, k, "magnitude", tol, seed=seed, progress=progress)
        arpack = arpack_eigenpairs(A, k, "magnitude", tol, seed=seed, progress=progress)
        theirs = pyhessian_eigenpairs(A, k, tol, seed=seed, progress=progress)
        rows = []
        for i in range(k):
            name = f"lambda_{i + 1}"
            mine, other, last = (float(p.values[i]) for p in (ours, arpack, theirs))
            size = max(abs(mine), abs(other)) or 1.0
            # Twice their sum for rounding, which residuals of 1e-7 in float32 don't hold.
            within = 2 * float(ours.residuals[i] + arpack.residuals[i]) / size + float(np.finfo(np.float32).eps)
            rows.append(_Row(name, "ARPACK", mine, other, _apart(mine, other), within, "fail"))
            rows.append(_Row(name, "PyHessian", mine, last, _apart(mine, last), STOPPING, "warn"))
        product = next(c for c in theirs.checks if c.name == "product")
        mine, other = (
            trace(A, "hutchinson", draws, seed=seed, progress=progress),
            pyhessian_trace(A, draws, 0.0, seed + 1, progress=progress),
        )
        size = max(abs(mine.value), abs(other.value)) or 1.0
        within = ERRORS * math.hypot(mine.stderr, other.stderr) / size
        rows.append(
            _Row("trace", "PyHessian", mine.value, other.value, _apart(mine.value, other.value), within, "warn")
        )
        checks = (*(row.check() for row in rows), product)
        products = sum(found.products for found in (ours, arpack, theirs, mine, other))
        return Agreement(
            status="complete",
            ours=np.array([r.ours for r in rows]),
            theirs=np.array([r.theirs for r in rows]),
            difference=np.array([r.difference for r in rows]),
            tolerance=np.array([r.tolerance for r in rows]),
            products=products,
            names=tuple(r.name for r in rows),
            tools=tuple(r.tool for r in rows),
            split=objective.split,
            settings={"k": k, "draws": draws, "tol": tol, "seed": seed, "samples": objective.samples},
            checks=checks,
            warnings=tuple(c.message for c in checks if c.level != "pass"),
            notes=ours.notes,
            cost=Cost(products, objective.passes, time.perf_counter() - start),
        )


def _apart(one: float, other: float) -> float:
    larger = max(abs(one), abs(other))
    return abs(one - other) / larger if larger > 0 else 0.0
