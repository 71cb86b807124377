"""How far a checkpoint is from its optimizer's threshold of stability: the measurement that `landscape probe` makes."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from ..dynamics.norms import joint_norm, tensor_norms
from ..errors import MeasurementError
from ..objective import Objective, as_objective
from ..parameters import unwrap
from ..results import Cost, Option, measurement
from ..session import batchnorm_layers
from ..several import by_name
from ..tasks import Task
from .lanczos import eigenpairs
from .operators import Hessian
from .optimizer_state import OptimizerState, read_optimizer
from .preconditioned import Preconditioned, covers
from .stability import threshold_of
from .stepping import stepping
from .thresholds import Stability, StabilityThreshold


@measurement(
    "stability",
    default=False,
    order=30,
    options={
        "lr": Option(None, "learning rate; None: the optimizer's own, which the checkpoint carries"),
        "optimizer": Option(None, "sgd, adam, adamw, adagrad or rmsprop, where the checkpoint's settings don't tell"),
        "which": Option(None, "of several optimizers, the name of the one that is meant"),
        "tol": Option(1e-3, "residual allowed, as a share of |lambda_1|", "as for eigenvalues"),
        "split": Option("train", "the data whose mean loss is differentiated", choices=("train", "test")),
    },
    # The largest eigenpair alone, with its audit: about 10 products.
    estimate=lambda **_: 6 * 10.0 + 2,
    needs=("second derivative",),
)
def measure_stability(
    task: Task | Objective,
    *,
    seed: int = 0,
    progress: bool = False,
    lr: float | None = None,
    optimizer: str | None = None,
    which: str | None = None,
    tol: float = 1e-3,
    split: str = "train",
) -> Stability:
    """Largest eigenvalue against the stability threshold of the optimizer that trained the model.

    The optimizer is `task.optimizer`: what `landscape probe` finds in the checkpoint, or what Task(optimizer=...) was
    given; of several the one that steps the model's parameters, or the one that `which` names. `lr` replaces the
    learning rate of each of its groups, or stands for plain gradient descent where there is no optimizer. The
    eigenvalue is that of the Hessian, or of the preconditioned operator where the optimizer asks for it or holds a part
    of the weights only; of the mean loss over the draw (of a subsample it is biased upward), with the batch statistics
    that the optimizer's steps saw where the model has BatchNorm layers (see `as_trained`). SAM's threshold is that at
    the gradient of the same mean loss, which costs one gradient more (see `stability_threshold`).
    Raises MeasurementError where no optimizer is known, where its threshold is not defined, or where its state doesn't
    fit the model. Cost as `eigenpairs` with k = 1.
    """
    start = time.perf_counter()
    seen: tuple[str, ...] = ()
    if isinstance(task, Task):
        task, seen = as_trained(task)
    with as_objective(task, split) as objective:
        state = optimizer_of(objective.task, lr, optimizer, which)
        found = threshold_at(state, objective)
        if not found.defined:
            raise MeasurementError(f"the stability threshold is {found.notes[0]}")
        A: Any = Hessian(objective)
        if found.operator == "preconditioned" or not covers(state, A):
            A = Preconditioned(A, state)
            found = A.threshold
        pairs = eigenpairs(A, 1, "largest", tol, seed=seed, progress=progress)
        largest = float(pairs.values[0])
        return Stability(
            status=pairs.status,
            eigenvalue=largest,
            residual=float(pairs.residuals[0]),
            threshold=found.threshold,
            ratio=largest / found.threshold,
            lr=found.lr,
            products=pairs.products,
            operator=found.operator,
            formula=found.formula,
            optimizer=found.optimizer,
            split=objective.split,
            settings={**pairs.settings, "samples": objective.samples},
            checks=pairs.checks,
            warnings=pairs.warnings,
            notes=tuple(dict.fromkeys((*seen, *objective.notes, *found.notes, *pairs.notes))),
            cost=Cost(pairs.products, objective.passes, time.perf_counter() - start),
        )


def threshold_at(state: OptimizerState, objective: Objective) -> StabilityThreshold:
    """Return the threshold of an optimizer at these weights: SAM's depends on the gradient's norm there.

    The gradient is that of the mean loss over the draw, and costs one pass for SAM, nothing for others.
    """
    if not state.climbs:
        return threshold_of(state)
    found = threshold_of(state, gradient_norm=float(joint_norm(tensor_norms(objective.gradient()))))
    if not found.defined:
        return found
    told = "|g| is that of the mean loss over the draw: steps of smaller batches climb by larger gradients of their own"
    return replace(found, notes=(*found.notes, told))


def as_trained(task: Task) -> tuple[Task, tuple[str, ...]]:
    """Return the task with BatchNorm on batch statistics, as the optimizer's steps saw it, and a note that says so.

    With running statistics a bias in front of a BatchNorm layer bends the loss, though no training step ever saw it
    move: its gradient was zero, so that Adam's denominator for it is eps alone, and the preconditioned eigenvalue is
    off by orders of magnitude (a small net: 1.4e9 for a true 630). A task that says what it wants is left as it is.
    """
    if task.batchnorm != "eval" or not batchnorm_layers(unwrap(task.model)):
        return task, ()
    return task.replace(batchnorm="batch"), ("measured with BatchNorm on batch statistics, as the training steps are",)


def optimizer_of(
    task: Task, lr: float | None = None, name: str | None = None, which: str | None = None
) -> OptimizerState:
    """Return the optimizer of a task, with another learning rate if given; of several the one that steps the model, or
    that `which` names. Raises MeasurementError where none is known, or which one is meant.
    """
    if lr is not None and not (lr > 0 and math.isfinite(lr)):
        raise MeasurementError(f"lr={lr} must be a positive number")
    optimizers = by_name(task.optimizer)
    if not optimizers:
        if lr is None:
            raise MeasurementError(
                "no optimizer is known: probe a checkpoint that carries its optimizer's state, give "
                "Task(optimizer=...), or a learning rate for plain gradient descent (lr=0.1)"
            )
        return read_optimizer({"lr": lr}, name)
    state = read_optimizer(stepping(optimizers, unwrap(task.model), which), name)
    return state if lr is None else replace(state, rules=tuple(replace(r, lr=lr) for r in state.rules))
