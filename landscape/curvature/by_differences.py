"""The spectrum of models that have one derivative only: a measurement that asks for no second one."""

from __future__ import annotations

from dataclasses import replace

from ..objective import Objective, as_objective
from ..results import Option, measurement
from ..tasks import Task
from .finite_differences import FiniteDifferences
from .lanczos import eigenpairs
from .measure import most_eigenpairs, noted
from .search import Which
from .spectrum import Eigenpairs


@measurement(
    "eigenvalues_by_differences",
    section="curvature",
    default=False,
    order=21,
    preset={"quick": {"k": 3}, "standard": {}, "thorough": {"k": 10}},
    options={
        "k": Option(5, "largest eigenvalues"),
        "k_smallest": Option(1, 'smallest eigenvalues, with which="both"'),
        "tol": Option(
            1e-2, "residual allowed, as a share of |lambda_1|", "chosen by us: float32 gradients give no more"
        ),
        "which": Option(
            "largest", "largest, smallest, both or magnitude", choices=("largest", "smallest", "both", "magnitude")
        ),
        "step": Option(None, "length of the move in weight space; None: measured"),
        "order": Option(2, "2, or 4 for Richardson's extrapolation", choices=(2, 4)),
        "split": Option("train", "the data whose mean loss is differentiated", choices=("train", "test")),
    },
    # Two gradients a product, and 12 to find the step.
    estimate=lambda k=5, order=2, **_: 3.0 * order * (6 + 2.4 * k) + 36.0,
    most=most_eigenpairs,
)
def measure_by_differences(
    task: Task | Objective,
    *,
    seed: int = 0,
    progress: bool = False,
    k: int = 5,
    k_smallest: int = 1,
    tol: float = 1e-2,
    which: Which = "largest",
    step: float | None = None,
    order: int = 2,
    split: str = "train",
) -> Eigenpairs:
    """Eigenvalues of the Hessian by differences of gradients, for models without a second derivative.

    See `FiniteDifferences` for the step and its error, which stands in the check "finite differences", and `eigenpairs`
    for the rest. An eigenvalue's error is about that of a product along its vector; residuals don't show it.
    """
    with as_objective(task, split) as objective:
        A = FiniteDifferences(objective, step=step, order=order)
        found = eigenpairs(
            A, k, which, tol, seed=seed, k_smallest=k_smallest if which == "both" else None, progress=progress
        )
        check = A.check()
        warnings = (*found.warnings, *([check.message] if check.level != "pass" else []))
        return noted(replace(found, checks=(*found.checks, check), warnings=warnings), objective)
