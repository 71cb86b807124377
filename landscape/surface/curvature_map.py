"""Largest and smallest Hessian eigenvalue at each point of a plane: where the loss is convex, and where it isn't."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..curvature.lanczos import eigenpairs
from ..curvature.operators import Hessian
from ..curvature.slopes import norm
from ..curvature.spectrum import Eigenpairs
from ..errors import MeasurementError
from ..objective import Objective, as_objective
from ..results import Check, Cost, Option, measurement
from ..tasks import Task
from . import checks
from .directions import IGNORE, NORMALIZE, PARALLEL, Ignore, Normalize, cosine, random_direction
from .fields import EigenvalueMap
from .grid import SECOND_SEED, Along, axis, checked_steps, given_direction

#: Points of each side (chosen by us: each point costs some 18 Hessian products, that is a hundred forward passes).
POINTS = 9
#: Residual allowed, as a share of |lambda_1| (chosen by us; at the 1e-2 that Li et al. 2018 give their code's eigsh the
#: ratio was off by up to 0.02 on trained MLPs, at 1e-3 by up to 0.001: benchmarks/eigenvalue_map.py).
TOL = 1e-3
#: Hessian products that a point may spend before it is left as it is (chosen by us).
MOST_PRODUCTS = 200
#: How long the random part of a start from a neighbor is (chosen by us: benchmarks/eigenvalue_map.py measures with it;
#: a long one finds an eigenvalue that has overtaken between two points more surely, and costs more products).
NEAR = 0.1


def eigenvalue_map(
    task: Task | Objective,
    d1: Along = None,
    d2: Along = None,
    alphas: Any = None,
    betas: Any = None,
    *,
    tol: float = TOL,
    warm: bool = True,
    split: str = "train",
    seed: int = 0,
    max_products: int = MOST_PRODUCTS,
    progress: bool = False,
) -> EigenvalueMap:
    """Compute lambda_max and lambda_min of the Hessian at theta + alpha * d1 + beta * d2 on a grid.

    Li et al. 2018 (arXiv:1712.09913, section 6) draw |lambda_min / lambda_max| over their planes: near 0 the loss is as
    good as convex there, and the picture hides no ridge. Theirs is the Hessian of parameters of more than one dimension
    and of the batches' sum; here it is that of the mean over the draw, in all trainable parameters.

    Args:
        task: a Task, or an Objective (whose own split is measured, around its center).
        d1, d2: Directions, or mappings of every trainable parameter's name to a tensor; None draws filter-normalized
            ones with the seeds `seed` and `seed + 1_000_000`, as `plane` does.
        alphas, betas: steps (a,) and (b,), finite and increasing; by default 9 each from -1 to 1.
        tol: residual allowed, as a share of the eigenvalue of largest magnitude at the point. The smallest eigenvalue
            lies at the dense end of the spectrum, and is an upper estimate: a residual within tol may belong to its
            neighbor.
        warm: start each point from its neighbor's two eigenvectors and a random tenth: an eigenvalue that grows past
            them between two points, where they have no part, may be missed. On 9 x 9 planes of trained MLPs that saves
            16 to 40% of the products and comes nearer to the smallest eigenvalue: the ratio's worst error was 0.001,
            from nothing 0.016 (benchmarks/eigenvalue_map.py).
        split, seed, progress: as for `plane`. max_products: for each point; what has not converged then is said.

    Returns an EigenvalueMap with every residual. A point whose loss or product is not finite is NaN. The center is
    also audited: whether an eigenvalue beyond these two was missed there (`eigenpairs`).

    Costs about 18 Hessian products a point (6 forward passes each) and a pass for its loss. The model is as before on
    every way out.

    Raises MeasurementError for steps or directions that make no plane, and for what `eigenpairs` refuses at the center
    (no second derivative, a tolerance too fine); ObjectiveError where the loss can't be measured there.
    """
    rows, columns = checked_steps(alphas, "alphas", POINTS), checked_steps(betas, "betas", POINTS)
    begun = time.perf_counter()
    spent = task.passes if isinstance(task, Objective) else 0.0
    with as_objective(task, split) as objective:
        first = given_direction(d1, objective, seed, "given d1")
        second = given_direction(d2, objective, seed + SECOND_SEED, "given d2")
        angle = cosine(first, second)
        if abs(angle) > PARALLEL:
            raise MeasurementError(f"d1 and d2 are parallel (cosine {angle:.9f}): they span no plane; give another d2")
        axes = [d.tensors(objective.names) for d in (first, second)]
        objective.reset()
        center = _pairs(objective, tol, None, seed, max_products, verify=True)
        shape = (len(rows), len(columns))
        found = {
            k: np.full(shape, np.nan) for k in ("loss", "largest", "smallest", "largest_residual", "smallest_residual")
        }
        converged, products = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=int)
        before: torch.Tensor | None = None
        with tqdm(total=rows.size * columns.size, desc="map", unit="point", leave=False, disable=not progress) as bar:
            for i, a in enumerate(rows):
                order = range(len(columns)) if i % 2 == 0 else range(len(columns) - 1, -1, -1)
                for j in order:  # every other row backwards: each point follows a neighbor
                    objective.move(axes, (float(a), float(columns[j])))
                    found["loss"][i, j] = objective.evaluate().loss
                    pairs = None
                    if math.isfinite(found["loss"][i, j]):
                        pairs = _tried(objective, tol, before if warm else None, seed, max_products)
                    before = None
                    if pairs is not None:
                        found["largest"][i, j] = pairs.values[0]
                        found["smallest"][i, j] = pairs.smallest[0]
                        found["largest_residual"][i, j] = pairs.residuals[0]
                        found["smallest_residual"][i, j] = pairs.smallest_residuals[0]
                        converged[i, j] = bool(pairs.converged.all() and pairs.smallest_converged.all())
                        products[i, j] = pairs.products
                        before = torch.cat([pairs.vectors, pairs.smallest_vectors], dim=1)
                    bar.update()
        holes = ~np.isfinite(found["largest"])
        return EigenvalueMap(
            status="complete" if bool((converged | holes).all()) else "partial",
            alpha=rows,
            beta=columns,
            largest=found["largest"],
            smallest=found["smallest"],
            largest_residual=found["largest_residual"],
            smallest_residual=found["smallest_residual"],
            loss=found["loss"],
            converged=converged,
            products=products,
            cosine=angle,
            direction_norms=np.array([first.norm, second.norm]),
            samples=objective.samples,
            parameters=sum(p.numel() for p in objective.parameters),
            split=objective.split,
            directions=(first.label, second.label),
            seeds=(first.seed, second.seed),
            batchnorm=checks.policy(objective),
            settings={"tol": tol, "warm": warm, "max_products": max_products},
            checks=(
                _convergence(converged, holes, tol),
                checks.finite(found["largest"]),
                *(c for c in center.checks if c.name.startswith("multiplicity")),
                checks.directions((first, second), norm(objective.center), angle),
                checks.batchnorm(objective),
            ),
            notes=tuple(dict.fromkeys((*objective.notes, *first.notes, *second.notes))),
            cost=Cost(
                products=int(products.sum()) + center.products,
                passes=objective.passes - spent,
                seconds=time.perf_counter() - begun,
            ),
        )


def _map_passes(*, grid: int = POINTS, **_: Any) -> float:
    return grid**2 * (1 + 6 * 18.0) + 6 * 40.0 + 2


@measurement(
    "eigenvalue_map",
    default=False,
    order=50,
    preset={"quick": {"grid": 5}, "standard": {}, "thorough": {"grid": 15}},
    options={
        "grid": Option(POINTS, "points of each side"),
        "span": Option(1.0, "steps run from -span to span", "Li et al. 2018"),
        "tol": Option(TOL, "residual allowed, as a share of |lambda_1|"),
        "split": Option("train", "the data whose mean loss is differentiated", choices=("train", "test")),
        "normalize": NORMALIZE,
        "ignore": IGNORE,
    },
    estimate=_map_passes,
    needs=("second derivative",),
)
def measure_eigenvalue_map(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    grid: int = POINTS,
    span: float = 1.0,
    tol: float = TOL,
    split: str = "train",
    normalize: Normalize | None = "filter",
    ignore: Ignore | None = "biasbn",
) -> EigenvalueMap:
    """Largest and smallest Hessian eigenvalue over a plane of two random directions, with residuals.

    The directions are those of the plane with this seed. See `eigenvalue_map` for the method and the cost.
    """
    if isinstance(grid, bool) or not isinstance(grid, int):
        raise MeasurementError(f"grid={grid!r} must be a whole number of points, at least 2")
    steps = axis(span, grid)
    d1, d2 = (random_direction(task, s, normalize, ignore) for s in (seed, seed + SECOND_SEED))
    return eigenvalue_map(task, d1, d2, steps, steps, tol=tol, split=split, seed=seed, progress=progress)


def _pairs(
    objective: Objective, tol: float, start: torch.Tensor | None, seed: int, most: int, *, verify: bool
) -> Eigenpairs:
    # An operator of its own for each point: whatever it keeps of the weights must not outlive them.
    operator = Hessian(objective)
    return eigenpairs(
        operator, 1, "both", tol, start, seed, random_part=NEAR, k_smallest=1, max_products=most, verify=verify
    )


def _tried(objective: Objective, tol: float, start: torch.Tensor | None, seed: int, most: int) -> Eigenpairs | None:
    """Return the two pairs at the present weights; None where a product is not finite."""
    try:
        return _pairs(objective, tol, start, seed, most, verify=False)
    except MeasurementError:
        return None  # the same settings passed at the center: what is wrong here is the curvature itself


def _convergence(converged: np.ndarray, holes: np.ndarray, tol: float) -> Check:
    late = int((~converged & ~holes).sum())
    if late:
        text = f"{late} of {converged.size} points have a residual above {tol:g} |lambda_1|: raise max_products"
        return Check("convergence", "warn", text, late / converged.size, 0.0)
    return Check("convergence", "pass", f"every residual is within {tol:g} |lambda_1|", 0.0, 0.0)
