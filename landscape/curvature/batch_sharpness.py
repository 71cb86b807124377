"""The curvature that a step of SGD meets on its own batch, against the threshold of plain gradient descent."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from tqdm import tqdm

from ..errors import MeasurementError
from ..memory import ran_out
from ..objective import Objective
from ..parameters import unwrap
from ..results import Cost, Option, measurement
from ..several import by_name
from ..tasks import Task
from .graphs import explained
from .margin import as_trained, optimizer_of
from .operators import Hessian
from .stepping import stepping
from .thresholds import BatchSharpness


@measurement(
    "batch_sharpness",
    section="stability",
    default=False,
    order=31,
    options={
        "batch": Option(128, "size of the batches: that of the training", "as for sharpness"),
        "lr": Option(None, "learning rate; None: the optimizer's own, which the checkpoint carries"),
        "split": Option("train", "the data whose batches are taken", choices=("train", "test")),
    },
    # A gradient and a product for each batch.
    estimate=lambda **_: 3.0 + 6.0 + 2,
    needs=("second derivative",),
)
def measure_batch_sharpness(
    task: Task | Objective,
    *,
    seed: int = 0,
    progress: bool = False,
    batch: int = 128,
    lr: float | None = None,
    split: str = "train",
) -> BatchSharpness:
    """Mean curvature of batches along their own gradients, E[g_B.H_B g_B] / E||g_B||^2, against 2 / lr.

    Where it exceeds 2 / lr, a step of plain SGD raises the loss of its own batch on average: it is this, not the
    largest eigenvalue of the whole set, that hovers at 2 / lr in SGD (Andreyev and Beneventano 2024, arXiv:2412.20553).
    The batches are the draw's samples, shuffled, `batch` at a time; a smaller last one is left out. The standard error
    is that of a ratio of means over independent batches, linearized. `seed` changes nothing: the draw has its own.

    Costs a gradient and a product over the draw. Raises MeasurementError for a batch size below 1, or gradients that
    are all zero.
    """
    del seed
    start = time.perf_counter()
    if batch < 1:
        raise MeasurementError(f"batch={batch} must be at least 1")
    task, seen = as_trained(task.task if isinstance(task, Objective) else task)
    rate, notes = plain_rate(task, lr)
    if seen:
        task = task.replace(batch_size=batch)  # batches whose statistics are their own can't be cut afterwards
    with Objective(task, split, regroup=batch) as objective:
        A = Hessian(objective)
        found = []
        for i in tqdm(range(len(objective)), desc="batch sharpness", disable=not progress, leave=False):
            size, bent, weight = _along_own_gradient(A, i)
            if weight > 0:
                found.append((bent, size, weight))
        objective.passes += 9
        # A smaller last batch is none of those that the steps draw.
        largest = max(w for *_, w in found)
        whole = [f for f in found if f[2] == largest] if _weighed_by_samples(found, objective) else found
        bent, sizes = (np.array([f[k] for f in whole]) for k in (0, 1))
        if not sizes.any():
            raise MeasurementError("every batch's gradient is 0: the curvature along it is not defined")
        value, n = float(bent.mean() / sizes.mean()), len(whole)
        residuals = bent - value * sizes
        stderr = math.sqrt(float((residuals**2).sum()) / (n * (n - 1))) / float(sizes.mean()) if n > 1 else math.nan
        used = min(batch, objective.largest)
        warnings = (
            ()
            if objective.largest == min(batch, objective.samples)
            else (f"the batches hold at most {objective.largest} samples, not {batch}: this task's can't be regrouped",)
        )
        return BatchSharpness(
            value=value,
            stderr=stderr,
            threshold=2 / rate,
            batches=n,
            batch=used,
            lr=rate,
            products=1,
            split=objective.split,
            settings={"batch": batch, "samples": objective.samples},
            warnings=warnings,
            notes=(*seen, *A.notes, *notes),
            cost=Cost(1, objective.passes, time.perf_counter() - start),
        )


def plain_rate(task: Task, lr: float | None) -> tuple[float, tuple[str, ...]]:
    """Return (learning rate, notes) where the steps are those of plain SGD; NaN, and why, where they are not."""
    if lr is None and task.optimizer is None:
        return math.nan, ("no learning rate is known, so that there is no threshold: give lr=...",)
    if lr is None and len(several := by_name(task.optimizer)) > 1:
        try:
            stepping(several, unwrap(task.model))
        except MeasurementError:
            return math.nan, (f"it is not known which of the optimizers {', '.join(several)} is meant: give lr=...",)
    state = optimizer_of(task if lr is None else task.replace(optimizer=None), lr)
    plain = state.name == "sgd" and not state.climbs and all((r.momentum, r.coupled) == (0, 0) for r in state.rules)
    if lr is not None or (plain and len({r.lr for r in state.rules}) == 1):
        return (lr if lr is not None else state.rules[0].lr), ()
    return math.nan, (f"the threshold is that of plain SGD with one learning rate; {state.title} steps otherwise",)


def _weighed_by_samples(found: list[tuple[float, float, float]], objective: Objective) -> bool:
    """Whether the batches' weights are their samples, so that a smaller weight means a smaller batch."""
    return sum(w for *_, w in found) == objective.samples


def _along_own_gradient(A: Hessian, i: int) -> tuple[float, float, float]:
    """Return (||g||^2, g.H g, weight) of batch i, in float64."""
    objective = A.objective
    try:
        mean, weight = objective.batch_loss(i)
        if weight == 0:
            return 0.0, 0.0, 0.0
        parameters = objective.parameters
        gradient = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
        product = A.graph(i, parameters).product(gradient, last=True)
    except RuntimeError as error:
        raise error if ran_out(error) else explained(error) from error
    size = sum(float(g.double().square().sum()) for g in gradient)
    bent = sum(float((g.double() * h.double()).sum()) for g, h in zip(gradient, product, strict=True))
    if not math.isfinite(size + bent):
        raise MeasurementError(f"the gradient or the product of batch {i} is not finite: look at the loss there")
    return size, bent, weight
