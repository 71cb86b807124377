"""How long a run will take and how much memory it needs, from one batch measured and each measurement's estimate."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from landscape.batch import bytes_of
from landscape.clock import cpu_clock
from landscape.curvature.operators import Hessian
from landscape.curvature.products import free_memory
from landscape.errors import LandscapeError
from landscape.objective import Objective
from landscape.tasks import Task

from .selection import Chosen

#: What a Hessian product counts in the estimates, in forward passes: two gradients, through a kept graph.
PASSES_A_PRODUCT = 6.0
#: Passes over one batch that the choice among ways of making products takes at most, whatever the draw (measured: 190).
CHOOSING = 190.0
#: Bytes that the default basis of `eigenpairs` grows to at most.
BASIS = 1 << 30
#: Trials of a batch, and after how many seconds there are no more (chosen by us: enough to see how they vary).
FEWEST, MOST, ENOUGH = 2, 20, 0.6
#: A batch is timed as a whole where a forward pass over it takes no longer than this many seconds, else so much of it
#: (chosen by us: 30 passes are waited for; from there on, calls are no part of the time).
PASS = 0.3
#: Samples that a draw is cut to at least (chosen by us: two, so that there is something to take a statistic over).
SOME = 2
#: Share of the trials that the upper end of a time is beyond (chosen by us: one hiccup among 20 isn't the rule).
SLOW = 0.9
#: What the ends of every prediction rest on, for whoever shows one.
RESTS_ON = (
    "predicted from one batch: the least from its fastest trial and the fewest passes, if nothing else ran here; "
    "the most from its slow trials and the most passes, with what else runs here now"
)


@dataclass(frozen=True)
class Span:
    """Seconds between two ends: from what the machine takes when it is free to what it takes when as busy as now."""

    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is a time at all."""
        return math.isfinite(self.high)

    def __add__(self, other: Span) -> Span:
        """Return the time of one after the other; a part that isn't known counts as none."""
        if not (self.known and other.known):
            return self if self.known else other
        return Span(self.low + other.low, self.high + other.high)

    def times(self, fewest: float, most: float) -> Span:
        """Return the time of so many runs."""
        return Span(self.low * fewest, self.high * most)


UNKNOWN, NONE = Span(math.nan, math.nan), Span(0.0, 0.0)


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward pass, a gradient and a Hessian product on one batch of `samples` samples.

    `graph` are the bytes of the graph that products keep for the batch, `budget` the most that graphs may take,
    `weights` the bytes of the parameters and buffers, `batch` those of the batch. `product` is NaN where there is none,
    and `reason` says why.
    """

    samples: int
    forward: Span
    gradient: Span
    product: Span
    parameters: int
    itemsize: int
    graph: int
    weights: int
    batch: int
    budget: int
    reason: str = ""


@dataclass(frozen=True)
class Prediction:
    """What one measurement is expected to take: seconds, and bytes at its peak. NaN where it gives no estimate."""

    name: str
    seconds: Span
    memory: float


def one_batch(task: Task) -> Task:
    """Return the task with a draw of about one batch of its own size."""
    data = task.train if task.train is not None else task.test
    size = data.batch_size if isinstance(data, DataLoader) else None
    limit = size or task.batch_size
    return task.replace(max_samples=min(limit, task.max_samples or limit))


def at_most(task: Task, seconds: float) -> Task:
    """Return the task with fewer samples, where a forward pass over its draw takes longer: as many as take so long.

    `SOME` are always left. Costs a pass, and a second one where the first takes too long, as what is done once may.
    """
    with Objective(task, task.splits[0] if task.splits else "train") as objective:
        clock, samples = cpu_clock(objective.device), objective.samples
        taken, _ = run(objective.evaluate, clock)
        if taken > seconds:
            taken = min(taken, run(objective.evaluate, clock)[0])
    if taken <= seconds or samples <= SOME:
        return task
    return task.replace(max_samples=max(SOME, int(samples * seconds / taken)))


def measure_speed(task: Task) -> Speed:
    """Time a forward pass, a gradient and a product on one batch of `task` (about 30 passes over it).

    Of a batch that takes long, a part is timed (see `PASS`). Raises what the objective raises: the loss must be
    measurable.
    """
    split = task.splits[0] if task.splits else "train"
    with Objective(at_most(one_batch(task), PASS), split) as objective, contextlib.ExitStack() as stack:
        n = sum(p.numel() for p in objective.parameters)
        calls: list[Callable[[], Any]] = [objective.evaluate, objective.gradient]
        graph, reason = 0, ""
        try:
            hessian = stack.enter_context(Hessian(objective))
            vector = torch.ones(n, device=objective.device, dtype=objective.dtype) / math.sqrt(n)
            # The first one, which builds the graph, is not counted: it is built once for all products.
            _ = hessian @ vector
            calls.append(lambda: hessian @ vector)
            graph = hessian.held[0]
        except LandscapeError as error:
            reason = str(error)
        forward, gradient, product = (*timed(calls, objective.device), UNKNOWN)[:3]
        tensors = [*objective.model.parameters(), *objective.model.buffers()]
        return Speed(
            samples=objective.samples,
            forward=forward,
            gradient=gradient,
            product=product,
            parameters=n,
            itemsize=objective.parameters[0].element_size(),
            graph=graph,
            weights=sum(t.numel() * t.element_size() for t in tensors),
            batch=sum(map(bytes_of, objective.draw.batches)),
            budget=free_memory(objective.device),
            reason=reason,
        )


def measure_pass(task: Task) -> Speed:
    """Return the speed that a single pass over one batch promises, with what torch usually makes of the others.

    A gradient takes 3 passes and a product 6, by operation count. For a first guess: it costs three passes, where
    `measure_speed` costs about 20. Raises what the objective raises.
    """
    split = task.splits[0] if task.splits else "train"
    with Objective(one_batch(task), split) as objective:
        own, wall = run(objective.evaluate, cpu_clock(objective.device))
        forward, n = Span(own, max(own, wall)), sum(p.numel() for p in objective.parameters)
        gradient, product = forward.times(3, 3), forward.times(PASSES_A_PRODUCT, PASSES_A_PRODUCT)
        return Speed(objective.samples, forward, gradient, product, n, 8, 0, 0, 0, 0)


def predict(chosen: Sequence[Chosen], speed: Speed, samples: int) -> list[Prediction]:
    """Return what each measurement takes on a draw of `samples` samples: the batch's times, scaled up; see RESTS_ON."""
    found = []
    scale = samples / speed.samples
    for c in chosen:
        m = c.measurement
        if m.estimate is None:
            found.append(Prediction(m.name, UNKNOWN, math.nan))
            continue
        passes = m.estimate(**{"draw_samples": samples, "parameters": speed.parameters, **c.options})
        fewest, most = passes if isinstance(passes, tuple) else (passes, passes)
        if "second derivative" in m.needs and speed.product.known:
            a_pass = speed.product.times(1 / PASSES_A_PRODUCT, 1 / PASSES_A_PRODUCT)
            seconds = a_pass.times(scale * fewest, scale * most + CHOOSING)
            found.append(Prediction(m.name, seconds, _memory(speed, scale, most)))
        else:
            seconds = speed.forward.times(scale * fewest, scale * most)
            found.append(Prediction(m.name, seconds, _memory(speed, scale, 0)))
    return found


def total(found: Sequence[Prediction]) -> Span:
    """Return the time of all measurements that give an estimate."""
    return sum((p.seconds for p in found if p.seconds.known), NONE)


def spread(times: Sequence[Span], workers: int) -> Span:
    """Return the time of several things on so many workers, if none waits for another; never less than the longest.

    Of more workers than things several share one, at best as many times as fast, and at worst not any faster.
    """
    low, high = ([end(t) for t in times] for end in (lambda t: t.low, lambda t: t.high))
    share = max(1, workers // max(1, len(times)))
    at_a_time = max(1, min(workers, len(times)))
    whole = Span(*(max(sum(ends) / at_a_time, max(ends, default=0.0)) for ends in (low, high)))
    return Span(whole.low / share, whole.high)


def _memory(speed: Speed, scale: float, passes: float) -> float:
    # The caller's weights, the working copy and the centre; the draw; the batches' graphs; a Krylov basis.
    basis = min(passes / PASSES_A_PRODUCT * speed.parameters * speed.itemsize, BASIS)
    graphs = max(speed.graph, min(speed.graph * scale, speed.budget)) if passes else speed.graph
    return 3 * speed.weights + speed.batch * scale + graphs + basis


def timed(calls: Sequence[Callable[[], Any]], device: torch.device) -> list[Span]:
    """Return what each of the calls takes, from 2 to 20 trials of each after one to warm up.

    All in turn, each twice in a row: memory that another one, or an earlier run of its own, left makes a call fast or
    slow, up to 4 times; measurements have both. The low end is the best trial by `cpu_clock`, the high one a slow
    trial by it, or the mean by the clock on the wall where others took the machine from this thread: over many passes
    such delays add up to that.
    """
    clock = cpu_clock(device)
    for call in calls:
        call()
    trials: list[list[tuple[float, float]]] = [[] for _ in calls]
    spent = 0.0
    while len(trials[0]) < FEWEST or (len(trials[0]) < MOST and spent < ENOUGH):
        for call, taken in zip(calls, trials, strict=True):
            taken += [run(call, clock), run(call, clock)]
            spent += taken[-2][1] + taken[-1][1]
    return [spanned(taken) for taken in trials]


def spanned(taken: Sequence[tuple[float, float]]) -> Span:
    """Return the ends of trials, each (own seconds, those of the clock on the wall), as `timed` says."""
    own = sorted(seconds for seconds, _ in taken)
    slow = own[math.ceil(SLOW * len(own)) - 1]
    return Span(own[0], max(slow, sum(wall for _, wall in taken) / len(taken)))


def run(call: Callable[[], Any], clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of a call by the given clock, and by the one on the wall."""
    start, wall = clock(), time.perf_counter()
    call()
    return clock() - start, time.perf_counter() - wall
