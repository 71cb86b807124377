"""Curvature layer by layer: the largest eigenvalue of each layer's own block of the Hessian."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from ..errors import MeasurementError
from ..objective import Objective
from ..results import Check, Cost, Option, measurement
from ..tasks import Task
from .lanczos import eigenpairs
from .measure import noted
from .operands import account_of
from .operators import By, Hessian, Operator
from .spectrum import Eigenpairs, LayerCurvature


def layer_curvature(
    A: Operator, by: By = "layer", tol: float = 1e-2, *, seed: int = 0, progress: bool = False
) -> LayerCurvature:
    """Compute the largest eigenvalue of every layer's diagonal block, and of the whole operator.

    Args:
        A: Hessian, GaussNewton or Fisher of a task.
        by: "layer" takes the parameters of one module together, "tensor" each parameter by itself.
        tol: residual allowed, as a share of the block's own |lambda_1| (default 1e-2: chosen by us, for bars that are
            compared by eye; an isolated eigenvalue's own error is about its square).
        seed: of the random vectors.
        progress: show the layers on stderr.

    Returns a LayerCurvature; status "partial" where a block has not converged; what else the blocks' own checks doubt
    (symmetry, missed eigenvalues) is among its checks, the first of each. Costs about 12 products for each layer
    (audit included, as measured on trained MLPs), cheaper the nearer it lies to the output. Raises MeasurementError for
    an operator without layers.
    """
    if not isinstance(A, Operator):
        raise MeasurementError(
            f"expected an operator over a model's layers, such as Hessian(task), got a {type(A).__name__}"
        )
    began, spent = time.perf_counter(), A.passes
    with A:
        blocks = A.blocks(by)
        found = []
        for name in tqdm(blocks, desc="layers", unit="layer", leave=False, disable=not progress, file=sys.stderr):
            found.append(eigenpairs(blocks[name], 1, tol=tol, seed=seed))
        whole = eigenpairs(A, 1, tol=tol, seed=seed)
        passes, (made, notes) = A.passes - spent, account_of(A)
    products = sum(pairs.products for pairs in (*found, whole))
    checks = [_convergence(dict(zip(blocks, found, strict=True)), tol), *_doubts(dict(zip(blocks, found, strict=True)))]
    return LayerCurvature(
        status="complete" if checks[0].level == "pass" else "partial",
        cost=Cost(products, passes, time.perf_counter() - began),
        settings={"by": by, "tol": tol, "seed": seed, **made},
        checks=tuple(checks),
        warnings=tuple(check.message for check in checks if check.level != "pass"),
        notes=notes,
        largest=np.array([pairs.values[0] for pairs in found]),
        residuals=np.array([pairs.residuals[0] for pairs in found]),
        converged=np.array([bool(pairs.converged[0]) for pairs in found]),
        sizes=np.array([block.shape[0] for block in blocks.values()]),
        whole=float(whole.values[0]),
        products=products,
        operator=A.title,
        split=A.split,
        names=tuple(blocks),
    )


def _convergence(found: dict[str, Eigenpairs], tol: float) -> Check:
    late = [name for name, pairs in found.items() if not pairs.converged.all()]
    worst = max(check.value for pairs in found.values() for check in pairs.checks if check.name == "convergence")
    if late:
        return Check(
            "convergence",
            "warn",
            f"{len(late)} of {len(found)} layers have not converged, {late[0]} first",
            worst,
            tol,
        )
    return Check("convergence", "pass", "every layer is in tol", worst, tol)


def _doubts(found: dict[str, Eigenpairs]) -> list[Check]:
    """Return, of what each block's own checks doubt beside its convergence, the first one of each name."""
    doubts: dict[str, Check] = {}
    for name, pairs in found.items():
        for check in pairs.checks:
            if check.name != "convergence" and check.level != "pass" and check.name not in doubts:
                doubts[check.name] = replace(check, message=f"{name}: {check.message}")
    return list(doubts.values())


@measurement(
    "layers",
    order=27,
    default=False,
    options={
        "by": Option(
            "layer", "layer: a module's parameters together; tensor: each by itself", choices=("layer", "tensor")
        ),
        "tol": Option(1e-2, "residual allowed, as a share of each block's |lambda_1|"),
        "split": Option("train", "the data whose mean loss is differentiated", choices=("train", "test")),
    },
    needs=("second derivative",),
)
def measure_layers(
    task: Task, *, seed: int = 0, progress: bool = False, by: By = "layer", tol: float = 1e-2, split: str = "train"
) -> LayerCurvature:
    """Largest Hessian eigenvalue of every layer's own block, with residuals; see `layer_curvature`."""
    with Objective(task, split) as objective:
        return noted(layer_curvature(Hessian(objective), by, tol, seed=seed, progress=progress), objective)
