"""The learning-rate range test, and where stability ends: its divergence point against 2 / lambda_max."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from landscape.curvature.lanczos import eigenpairs
from landscape.curvature.margin import as_trained
from landscape.curvature.operators import Hessian
from landscape.curvature.optimizer_state import read_optimizer
from landscape.curvature.preconditioned import Preconditioned
from landscape.curvature.stability import threshold_of
from landscape.errors import LandscapeError, TrainingError
from landscape.objective import Objective
from landscape.results import Cost
from landscape.tasks import Task
from landscape.training.rates import RangeTest

from ..subjects import resolve_device
from .cell import one_thread_on_cpu
from .grid import Cell, checked
from .parts import Parts, loss_of, make_parts, try_loss
from .sources import Source
from .stopping import Interrupted, Stop

#: Where `landscape sweep --lr-find` keeps its results, in the sweep's folder.
FILE = "lr_find.h5"
#: Smith 2017, arXiv:1506.01186, section 3.3, grows the rate linearly; exponentially, smoothed by 0.98, and stopped at 4
#: times the lowest smoothed loss: Gugger 2018, How Do You Find A Good Learning Rate, as in fastai. 100 steps: fastai.
LOW, HIGH, STEPS, SMOOTHING, STOP_AT = 1e-5, 10.0, 100, 0.98, 4.0


def range_test(
    task: str | Callable[..., Task] | Source,
    cell: Cell | None = None,
    *,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
    smoothing: float | None = None,
    curvature: bool = True,
    tol: float = 1e-2,
    max_samples: int | None = 1024,
    device: str = "auto",
    stop: Stop | None = None,
    progress: Callable[[int], None] | None = None,
) -> RangeTest:
    """Train with a rate that grows from `low` to `high`: where does the loss fall fastest, end falling, and blow up.

    The largest eigenvalue of the training loss is measured at the first weights and at those of the lowest loss, and
    turned into the rate at which full-batch steps of this optimizer stop being stable (2 / lambda_max for plain
    gradient descent; for Adam the eigenvalue of the preconditioned Hessian). The blow-up comes later than that rate: a
    direction that has shrunk while the rate was small has to grow again before the loss shows it, so that
    `divergence / critical` above 1 is the rule, on a quadratic too. Nothing is written, no generator left changed.

    Args:
        task, cell: as for `train_cell`; the cell's schedule, rate and epochs are not used, its seed is.
        low, high, steps: the rates, equally spaced in the logarithm.
        smoothing: weight of the past in the average; None: 0.98, and none at all for full batches.
        curvature: False leaves the eigenvalues out. tol: of them. max_samples: that they are measured on.

    Raises TrainingError for rates that don't rise, and as `train_cell`. Costs `steps` steps and two times about 10
    Hessian products.
    """
    if not (0 < low < high and math.isfinite(high)) or steps < 3:
        raise TrainingError(f"rates from {low} to {high} in {steps} steps: they must rise from above 0, in 3 or more")
    source = task if isinstance(task, Source) else Source(task)
    begun = time.perf_counter()
    cell = checked(replace(cell or Cell(), schedule="constant", lr=None, drive={}, epochs=1))
    with one_thread_on_cpu(device), torch.random.fork_rng():
        own = source.make(cell.settings, cell.seed)
        parts = make_parts(cell, own, resolve_device(device))
        try_loss(parts)
        weights = copy.deepcopy(parts.model.state_dict())
        walk = _walk(parts, np.geomspace(low, high, steps), smoothing, stop or Stop(), progress or (lambda n: None))
        found = {"start": (math.nan, math.nan, math.nan), "best": (math.nan, math.nan, math.nan)}
        products, facts, notes = 0, {"formula": "", "operator": ""}, []
        for where, state, optimizer in (
            ("start", weights, parts.optimizer.state_dict() | {"state": {}}),
            ("best", walk.weights, walk.optimizer),
        ):
            if not curvature:
                break
            parts.model.load_state_dict(state)
            try:
                critical, value, residual, spent, facts, more = _critical(parts, optimizer, tol, max_samples)
                found[where] = (critical, value, residual)
                products += spent
                notes += more
            except LandscapeError as error:
                notes.append(f"no threshold at the {where}: {error}")
    return RangeTest(
        rate=np.array(walk.rates),
        loss=np.array(walk.losses),
        smoothed=np.array(walk.smoothed),
        steepest=walk.steepest,
        best=walk.best,
        divergence=walk.divergence,
        critical_start=found["start"][0],
        lambda_start=found["start"][1],
        residual_start=found["start"][2],
        critical_best=found["best"][0],
        lambda_best=found["best"][1],
        residual_best=found["best"][2],
        products=products,
        optimizer=cell.optimizer,
        batch=str(cell.batch_size if isinstance(cell.batch_size, str) else parts.batches.size or ""),
        settings={"low": low, "high": high, "steps": steps, "seed": cell.seed, "loss": cell.loss, "tol": tol},
        notes=tuple(dict.fromkeys((*parts.notes, *notes))),
        warnings=() if math.isfinite(walk.divergence) else (f"the loss never blew up below a rate of {high:g}",),
        cost=Cost(products, 3.0 * len(walk.rates) / parts.batches.per_epoch, time.perf_counter() - begun),
        formula=facts["formula"],
        operator=facts["operator"],
    )


class _walk:
    """The steps with a growing rate: their losses, and the weights and optimizer of the lowest smoothed one."""

    def __init__(
        self, parts: Parts, rates: np.ndarray, smoothing: float | None, stop: Stop, progress: Callable[[int], None]
    ) -> None:
        whole = parts.batches.per_epoch == 1
        beta = (0.0 if whole else SMOOTHING) if smoothing is None else smoothing
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.divergence = math.nan
        average, lowest = 0.0, math.inf
        parts.model.train()
        for i, (rate, batch) in enumerate(zip(rates.tolist(), _endless(parts), strict=False)):
            if stop.asked:
                raise Interrupted(stop.why)
            before = (copy.deepcopy(parts.model.state_dict()), copy.deepcopy(parts.optimizer.state_dict()))
            value = _step(parts, batch, rate)
            average = beta * average + (1 - beta) * value
            smooth = average / (1 - beta ** (i + 1))
            if not math.isfinite(value) or (i > 0 and smooth > STOP_AT * lowest and smooth > lowest + 1e-12):
                self.divergence = rate
                break
            self.rates.append(rate)
            self.losses.append(value)
            self.smoothed.append(smooth)
            if smooth <= lowest:
                lowest = smooth
                self.weights, self.optimizer = before
            progress(i + 1)
        if len(self.rates) < 2:
            raise TrainingError(f"the loss blew up at the lowest rate, {rates[0]:g}: begin lower")
        slopes = np.gradient(np.array(self.smoothed), np.log10(self.rates))
        self.steepest = self.rates[int(slopes.argmin())]
        self.best = self.rates[int(np.argmin(self.smoothed))]


def _endless(parts: Parts) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from parts.batches.epoch(epoch)
        epoch += 1


def _step(parts: Parts, batch: Any, rate: float) -> float:
    """Take a step at this rate, and return the loss before it."""
    for group in parts.optimizer.param_groups:
        group["lr"] = rate

    def gradient() -> torch.Tensor:
        loss = loss_of(parts.task, batch)
        parts.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    if isinstance(parts.optimizer, torch.optim.LBFGS):
        return float(parts.optimizer.step(gradient))  # pyright: ignore[reportArgumentType]
    value = gradient()
    parts.optimizer.step()
    return float(value)


def _critical(
    parts: Parts, optimizer: dict[str, Any], tol: float, max_samples: int | None
) -> tuple[float, float, float, int, dict[str, str], list[str]]:
    """Return (rate, eigenvalue, residual, products, facts, notes): the rate whose threshold is the eigenvalue.

    Thresholds are C / lr - w with coupled weight decay w, so that one of them, at any rate, gives C. Raises
    MeasurementError where the optimizer has no threshold.
    """
    rate = 1.0
    groups = [{**g, "lr": rate} for g in optimizer["param_groups"]]
    state = read_optimizer({**optimizer, "param_groups": groups}, type(parts.optimizer).__name__.lower())
    threshold = threshold_of(state)
    if not threshold.defined:
        raise TrainingError(threshold.notes[0])
    task, seen = as_trained(parts.task.replace(max_samples=max_samples, optimizer=None))
    with Objective(task) as objective:
        A: Any = Hessian(objective)
        if threshold.operator == "preconditioned":
            A = Preconditioned(A, state)
            threshold = A.threshold
        pairs = eigenpairs(A, 1, "largest", tol)
    value, residual = float(pairs.values[0]), float(pairs.residuals[0])
    decay = state.rules[0].coupled if threshold.operator == "hessian" else 0.0
    critical = (threshold.threshold + decay) * rate / (value + decay) if value + decay > 0 else math.nan
    facts = {"formula": threshold.formula, "operator": threshold.operator}
    return critical, value, residual, pairs.products, facts, [*seen, *threshold.notes, *pairs.warnings]
