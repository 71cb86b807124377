"""Curvature per filter: what a perturbation of each filter in proportion to its own norm meets."""

from __future__ import annotations

import time
from typing import Any, Literal, get_args

import numpy as np
import torch

from ..errors import MeasurementError
from ..objective import Objective, as_objective
from ..parameters import filter_dim, is_scale, owners
from ..results import Check, Cost, Option, measurement
from ..tasks import Task
from .lanczos import eigenpairs
from .moments import rooted
from .operators import Hessian, Operator
from .preconditioned import Scaled
from .probing import BLOCK, blocks, check_draws, inner, probing, standard_error
from .spectrum import ScaledCurvature

Scaling = Literal["both", "filter", "none"]


def filter_scaled(A: Operator) -> Scaled:
    """Return S A S, where S multiplies each weight by the norm of its filter, and biases and scales by 0.

    Its largest eigenvalue bounds the curvature along e with ||e_f|| = s_f ||w_f|| for each filter f and sum s_f^2 <= 1:
    a share of each filter's norm, as filter-normalized directions are (Li et al. 2018, arXiv:1712.09913, with their
    ignore="biasbn"). Filters lie along dimension 0 of a tensor (1 for ConvTranspose and Conv1D). A rescaling of ReLU
    layers (W1 a, W2 / a) leaves it as it is; one with a factor for each neuron does not, because it changes the next
    layer's filters from within.
    """
    held = owners(A.objective.model)
    parameters = dict(A.objective.model.named_parameters())
    scales = []
    for name in A.names:
        w = parameters[name].detach().double()
        if is_scale(held.get(name), name, w):
            scales.append(torch.zeros(w.numel(), dtype=torch.float64, device=w.device))
            continue
        along = filter_dim(held.get(name), name)
        norms = torch.linalg.vector_norm(w, dim=[i for i in range(w.ndim) if i != along], keepdim=True)
        scales.append(norms.expand_as(w).reshape(-1))
    if not any(bool(s.any()) for s in scales):
        raise MeasurementError("no parameter has filters with a norm: every tensor is a bias, a scale or 0")
    return Scaled(A, torch.cat(scales), title="filter-scaled")


def _passes(*, draws: int = 32, scaling: Scaling = "both", **_: object) -> float:
    # For each operator the largest eigenpair with its audit, about 12 products; draws share a forward pass in blocks.
    return (2 if scaling == "both" else 1) * (6 * 12.0 + 3.0 * draws + 3.0 * -(-draws // BLOCK)) + 2


@measurement(
    "scaled_curvature",
    section="sharpness",
    default=False,
    order=42,
    preset={"quick": {"draws": 16}, "standard": {}, "thorough": {"draws": 128}},
    options={
        "scaling": Option(
            "both",
            "filter, none or both: with the filters' norms, without, or both",
            choices=("filter", "none", "both"),
        ),
        "draws": Option(32, "random vectors for trace and Frobenius norm"),
        "tol": Option(1e-3, "residual allowed, as a share of |lambda_1|", "as for eigenvalues"),
        "split": Option("train", "the data whose mean loss is differentiated", choices=("train", "test")),
    },
    estimate=_passes,
    needs=("second derivative",),
)
def measure_scaled_curvature(
    task: Task | Objective,
    *,
    seed: int = 0,
    progress: bool = False,
    scaling: Scaling = "both",
    draws: int = 32,
    tol: float = 1e-3,
    split: str = "train",
) -> ScaledCurvature:
    """Largest eigenvalue, trace and Frobenius norm of the Hessian, plain and scaled by the filters' norms.

    Trace and Frobenius norm come from the same products with random signs (Hutchinson 1990,
    doi:10.1080/03610919008812866; the norm is the root of the mean of ||H v||^2). Costs about 12 products and `draws`
    more for each scaling. Raises MeasurementError for an unknown scaling or too few draws.
    """
    start = time.perf_counter()
    if scaling not in get_args(Scaling):
        raise MeasurementError(f"scaling={scaling!r} is not one of {', '.join(get_args(Scaling))}")
    check_draws(draws, None, None)
    names: list[str] = []
    units: list[str] = []
    numbers: list[tuple[float, float]] = []
    checks: list[Check] = []
    warnings: list[str] = []
    notes: list[str] = []
    made: dict[str, Any] = {}
    products = 0
    with as_objective(task, split) as objective:
        for filters in (False, True):
            if scaling == ("none" if filters else "filter"):
                continue
            A: Any = filter_scaled(Hessian(objective)) if filters else Hessian(objective)
            suffix = "_filter" if filters else ""
            pairs = eigenpairs(A, 1, "largest", tol, seed=seed, progress=progress)
            traces, squares = np.zeros(0), np.zeros(0)
            with probing(A, seed, most=draws, title="trace and norm", progress=progress) as vectors:
                for size in blocks(draws, draws, vectors.width):
                    signs = vectors.signs(size)
                    found = vectors.multiply(signs)
                    traces = np.append(traces, inner(signs, found))
                    norms = torch.linalg.vector_norm(found, dim=0, dtype=torch.float64).cpu().numpy()
                    squares = np.append(squares, norms**2)
            names += [f"{name}{suffix}" for name in ("lambda_max", "trace", "frobenius")]
            units += ["loss" if filters else "loss / parameter^2"] * 3
            numbers += [
                (float(pairs.values[0]), float(pairs.residuals[0])),
                (float(traces.mean()), standard_error(traces)),
                rooted(squares),
            ]
            checks += [Check(f"{c.name}{suffix}", c.level, c.message, c.value, c.limit) for c in pairs.checks]
            warnings += pairs.warnings
            notes += pairs.notes
            made = {"strategy": pairs.settings["strategy"]}
            products += pairs.products + draws
        return ScaledCurvature(
            status="partial" if warnings else "complete",
            values=np.array([n[0] for n in numbers]),
            stderr=np.array([n[1] for n in numbers]),
            rescaling=np.array([not name.endswith("_filter") for name in names]),
            names=tuple(names),
            units=tuple(units),
            products=products,
            split=objective.split,
            settings={
                "scaling": scaling,
                "draws": draws,
                "tol": tol,
                "seed": seed,
                "samples": objective.samples,
                **made,
            },
            checks=tuple(checks),
            warnings=tuple(warnings),
            notes=tuple(dict.fromkeys(notes)),
            cost=Cost(products, objective.passes, time.perf_counter() - start),
        )
