"""The learning-rate range test: where the loss turns and blows up, against where stability ends (2 / lambda_max)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from landscape.curvature.lanczos import eigenpairs
from landscape.curvature.margin import as_trained
from landscape.curvature.operators import Hessian
from landscape.curvature.optimizer_state import read_optimizer
from landscape.curvature.preconditioned import Preconditioned
from landscape.curvature.stability import threshold_of
from landscape.errors import LandscapeError, NonFiniteLossError, TrainingError
from landscape.objective import Objective
from landscape.results import Cost
from landscape.tasks import Task
from landscape.training.rates import RangeTest
from landscape.training.sam import SAM

from ..subjects import resolve_device
from .cell import one_thread_on_cpu
from .grid import Cell, checked
from .parts import Parts, loss_of, make_parts, try_loss
from .sources import Source

#: Where `landscape sweep --lr-find` keeps its results, in the sweep's folder.
FILE = "lr_find.h5"
#: Smith 2017, arXiv:1506.01186, section 3.3, grows the rate linearly; exponentially, as here: Gugger 2018, How Do You
#: Find A Good Learning Rate. 100 steps: fastai.
LOW, HIGH, STEPS = 1e-5, 10.0, 100
#: The loss has blown up when it has risen by so many times its first value, or what it had fallen if that is more.
#: Chosen by us: momentum swings back nearly as far at rates that are stable. fastai and Lightning wait for 4 times the
#: lowest, which says nothing of a loss below 0, and which a bounded one reaches later or never.
RISEN = 1.0
#: The next eigenvalue is due when the rate has come half the way (in the logarithm) to the last one's threshold, or has
#: grown by this factor. Chosen by us: some 12 of them, most where they matter.
STRIDE = 10.0
#: Steps whose mean stands for the loss where its slope is taken (chosen by us: single steps are noisy).
WINDOW = 5


def range_test(
    task: str | Callable[..., Task] | Source,
    cell: Cell | None = None,
    *,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
    curvature: bool = True,
    tol: float = 1e-2,
    max_samples: int | None = 1024,
    device: str = "auto",
) -> RangeTest:
    """Train with a rate that grows from `low` to `high`: where does the loss fall fastest, end falling, and blow up.

    Before each step the loss is taken on the same samples, so that neither noise nor an average over past steps moves
    these points. The largest eigenvalue is measured on the way, until the rate has passed the one at which full-batch
    steps of this optimizer stop being stable at these weights (2 / lambda_max for plain gradient descent; for Adam the
    eigenvalue of the preconditioned Hessian). That is where the loss should turn; it blows up later, on a quadratic
    too: see `landscape.training.rates.QUADRATIC`. Noise of small batches lowers both, above all with momentum. Nothing
    is written, no generator left changed.

    Args:
        task, cell: as for `train_cell`; the cell's schedule, rate and epochs are not used, its seed is.
        low, high, steps: the rates, equally spaced in the logarithm.
        curvature: False leaves the eigenvalues out. tol: of them. max_samples: that loss and eigenvalues are taken on.
        device: "auto" for a GPU where there is one, or a name of torch's.

    Raises TrainingError for rates that don't rise, and as `train_cell`. Costs `steps` steps, 3 passes over the samples
    before each, and about 12 times 10 Hessian products.
    """
    if not (0 < low < high and math.isfinite(high)) or steps < 3:
        raise TrainingError(f"rates from {low} to {high} in {steps} steps: they must rise from above 0, in 3 or more")
    source = task if isinstance(task, Source) else Source(task)
    begun = time.perf_counter()
    cell = checked(replace(cell or Cell(), schedule="constant", lr=None, drive={}, epochs=1, average=""))
    with one_thread_on_cpu(device), torch.random.fork_rng():
        parts = make_parts(cell, source.make(cell.settings, cell.seed), resolve_device(device))
        try_loss(parts)
        way = _Way(parts, max_samples, tol if curvature else None)
        way.walk(np.geomspace(low, high, steps))
    best = int(np.argmin(way.held))
    warnings = []
    if not math.isfinite(way.divergence):
        warnings.append(f"the loss never blew up below a rate of {high:g}")
    if curvature and way.sharpness and not math.isfinite(way.critical):
        where = "at the lowest rate already" if way.sharpness[0].stable <= low else f"never below a rate of {high:g}"
        warnings.append(f"the rate met its stability threshold {where}")
    return RangeTest(
        rate=np.array(way.rates),
        loss=np.array(way.losses),
        held=np.array(way.held),
        stable=way.along("stable"),
        lambda_max=way.along("value"),
        residual=way.along("residual"),
        steepest=_steepest(way.rates[: best + 1], way.held[: best + 1]),
        best=way.rates[best],
        divergence=way.divergence,
        critical=way.critical,
        critical_start=float(way.along("stable")[0]),
        products=way.products,
        samples=way.samples,
        optimizer=cell.optimizer,
        batch=str(cell.batch_size if isinstance(cell.batch_size, str) else parts.batches.size or ""),
        settings={"low": low, "high": high, "steps": steps, "seed": cell.seed, "loss": cell.loss, "tol": tol},
        notes=tuple(dict.fromkeys((*parts.notes, *way.notes))),
        warnings=tuple(warnings),
        cost=Cost(
            way.products, 3.0 * len(way.rates) / parts.batches.per_epoch + way.passes, time.perf_counter() - begun
        ),
        formula=way.formula,
        operator=way.operator,
    )


def _steepest(rates: list[float], held: list[float]) -> float:
    """Return the rate at which the loss, averaged over neighbouring steps, falls fastest per decade."""
    width = min(WINDOW, len(held))
    if width < 2 or len(held) - width < 1:
        return rates[0]
    box = np.full(width, 1 / width)
    slopes = np.gradient(np.convolve(held, box, "valid"), np.convolve(np.log10(rates), box, "valid"))
    return float(10 ** np.convolve(np.log10(rates), box, "valid")[int(slopes.argmin())])


@dataclass(frozen=True)
class _Sharpness:
    """The largest eigenvalue before a step, and the rate whose threshold it is."""

    step: int
    stable: float
    value: float
    residual: float


class _Way:
    """The steps with a growing rate, the loss on the same samples before each, and the sharpness before some."""

    def __init__(self, parts: Parts, max_samples: int | None, tol: float | None) -> None:
        self.parts, self.tol = parts, tol
        self.task, notes = as_trained(parts.task.replace(max_samples=max_samples, optimizer=None))
        self.notes: list[str] = list(notes)
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.held: list[float] = []
        self.sharpness: list[_Sharpness] = []
        self.divergence = self.critical = math.nan
        self.products, self.samples, self.passes = 0, 0, 0.0
        self.formula, self.operator = "", ""
        self._due = 0.0 if tol is not None else math.inf
        self._failures = 0

    def along(self, what: str) -> np.ndarray:
        """Return a field of the sharpness for every step, NaN where it was not measured."""
        found = np.full(len(self.rates), math.nan)
        for s in self.sharpness:
            if s.step < len(found):
                found[s.step] = getattr(s, what)
        return found

    def walk(self, rates: np.ndarray) -> None:
        """Take a step at each rate until the loss has blown up."""
        self.parts.model.train()
        for rate, batch in zip(rates.tolist(), _endless(self.parts), strict=False):
            held = self._look(rate)
            if self._blown_up(held):
                self.divergence = rate
                break
            value = _step(self.parts, batch, rate)
            self.rates.append(rate)
            self.held.append(held)
            self.losses.append(value)
        if len(self.rates) < 2:
            raise TrainingError(f"the loss blew up at the lowest rate, {rates[0]:g}: begin lower")

    def _blown_up(self, held: float) -> bool:
        if not math.isfinite(held):
            return True
        if not self.held:
            return False
        first, lowest = self.held[0], min(self.held)
        return held - lowest > RISEN * max(first - lowest, abs(first))

    def _look(self, rate: float) -> float:
        """Return the loss on the same samples at the weights as they are; measure their sharpness where it is due."""
        try:
            with Objective(self.task) as objective:
                held = objective.evaluate().loss
                self.samples = objective.samples or 0
                if rate >= self._due:
                    self._measure(objective, rate)
                self.passes += objective.passes
                return held
        except NonFiniteLossError:
            return math.inf

    def _measure(self, objective: Objective, rate: float) -> None:
        """Measure where stability ends at these weights: has the rate passed it, and when to look again."""
        try:
            found = self._sharpness(objective)
        except LandscapeError as error:
            self._failures += 1
            at = "at the start" if not self.rates else f"at a rate of {rate:.3g}"
            self.notes.append(f"no threshold {at}: {error}")
            # An optimizer that keeps averages has them after a step; one without a threshold never has one.
            self._due = 0.0 if self._failures < 2 else math.inf
            return
        before = self.sharpness[-1] if self.sharpness else None
        self.sharpness.append(found)
        if not found.stable > 0:  # NaN: no direction bends upward
            self._due = rate * STRIDE
        elif rate >= found.stable:
            self._due = math.inf
            if before is not None and before.stable > 0:
                self.critical = _meeting(self.rates[before.step], before.stable, rate, found.stable)
        else:
            self._due = rate * min(STRIDE, math.sqrt(found.stable / rate))

    def _sharpness(self, objective: Objective) -> _Sharpness:
        """Return where stability ends. Raises LandscapeError where the optimizer has no threshold.

        Thresholds are C / lr - w with coupled weight decay w, so that one of them, at any rate, gives C.
        """
        assert self.tol is not None
        own = self.parts.optimizer
        state_dict = own.state_dict()
        groups = [{**g, "lr": 1.0} for g in state_dict["param_groups"]]
        steps = own.base if isinstance(own, SAM) else own
        state = read_optimizer({**state_dict, "param_groups": groups}, type(steps).__name__.lower())
        threshold = threshold_of(state)
        if not threshold.defined:
            raise TrainingError(threshold.notes[0])
        A: Any = Hessian(objective)
        if threshold.operator == "preconditioned":
            A = Preconditioned(A, state)
            threshold = A.threshold
        pairs = eigenpairs(A, 1, "largest", self.tol)
        self.products += pairs.products
        self.formula, self.operator = threshold.formula, threshold.operator
        self.notes += [*threshold.notes, *pairs.warnings]
        value = float(pairs.values[0])
        decay = state.rules[0].coupled if threshold.operator == "hessian" else 0.0
        stable = (threshold.threshold + decay) / (value + decay) if value + decay > 0 else math.nan
        return _Sharpness(len(self.rates), stable, value, float(pairs.residuals[0]))


def _meeting(rate: float, stable: float, later: float, stable_later: float) -> float:
    """Return where a growing rate meets a stable one that changes, both straight in the logarithm between two steps."""
    gap, past = math.log(stable / rate), math.log(later / stable_later)
    return rate * (later / rate) ** (gap / (gap + past))


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

    if parts.closure:
        return float(parts.optimizer.step(gradient))  # pyright: ignore
    value = gradient()
    parts.optimizer.step()
    return float(value)
