"""How long a run will take and how much memory it needs, from one batch measured and each measurement's estimate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from landscape.curvature.operators import Hessian
from landscape.curvature.products import free_memory
from landscape.data import tensors_of
from landscape.errors import LandscapeError
from landscape.objective import Objective
from landscape.tasks import Task

from .selection import Chosen

#: What a Hessian product counts in the estimates, in forward passes: two gradients, through a kept graph.
PASSES_A_PRODUCT = 6.0
#: Bytes that the default basis of `eigenpairs` grows to at most.
BASIS = 1 << 30


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward pass, a gradient and a Hessian product on one batch of `samples` samples.

    `graph` are the bytes of the graph that products keep for the batch, `budget` the most that graphs may take,
    `weights` the bytes of the parameters and buffers, `batch` those of the batch. `product` is NaN where there is none,
    and `reason` says why.
    """

    samples: int
    forward: float
    gradient: float
    product: float
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
    seconds: float
    memory: float


def one_batch(task: Task) -> Task:
    """Return the task with a draw of about one batch of its own size."""
    data = task.train if task.train is not None else task.test
    size = data.batch_size if isinstance(data, DataLoader) else None
    limit = size or task.batch_size
    return task.replace(max_samples=min(limit, task.max_samples or limit))


def measure_speed(task: Task) -> Speed:
    """Time a forward pass, a gradient and a product on one batch of `task` (about 20 passes over it).

    Raises what the objective raises: the loss must be measurable.
    """
    split = task.splits[0] if task.splits else "train"
    with Objective(one_batch(task), split) as objective:
        forward = _seconds(lambda: objective.evaluate(), objective.device)
        gradient = _seconds(lambda: objective.gradient(), objective.device)
        n = sum(p.numel() for p in objective.parameters)
        product, graph, reason = math.nan, 0, ""
        try:
            with Hessian(objective) as hessian:
                vector = torch.ones(n, device=objective.device, dtype=objective.dtype) / math.sqrt(n)
                # The first one, which builds the graph, is not counted: it is built once for all products.
                product = _seconds(lambda: hessian @ vector, objective.device)
                graph = hessian.held[0]
        except LandscapeError as error:
            reason = str(error)
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
            batch=sum(t.numel() * t.element_size() for b in objective.draw.batches for t in tensors_of(b)),
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
        start = time.perf_counter()
        objective.evaluate()
        _wait(objective.device)
        forward = time.perf_counter() - start
        n = sum(p.numel() for p in objective.parameters)
        return Speed(objective.samples, forward, 3 * forward, PASSES_A_PRODUCT * forward, n, 8, 0, 0, 0, 0)


def duration(seconds: float) -> str:
    """Return a time as a person says it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def predict(chosen: Sequence[Chosen], speed: Speed, samples: int) -> list[Prediction]:
    """Return what each measurement takes on a draw of `samples` samples: the batch's times, scaled up."""
    found = []
    scale = samples / speed.samples
    for c in chosen:
        m = c.measurement
        if m.estimate is None:
            found.append(Prediction(m.name, math.nan, math.nan))
            continue
        passes = m.estimate(**{"draw_samples": samples, "parameters": speed.parameters, **c.options})
        products = "second derivative" in m.needs and math.isfinite(speed.product)
        a_pass = speed.product / PASSES_A_PRODUCT if products else speed.forward
        found.append(Prediction(m.name, scale * passes * a_pass, _memory(speed, scale, passes if products else 0)))
    return found


def _memory(speed: Speed, scale: float, passes: float) -> float:
    # The caller's weights, the working copy and the centre; the draw; the batches' graphs; a Krylov basis.
    basis = min(passes / PASSES_A_PRODUCT * speed.parameters * speed.itemsize, BASIS)
    graphs = max(speed.graph, min(speed.graph * scale, speed.budget)) if passes else speed.graph
    return 3 * speed.weights + speed.batch * scale + graphs + basis


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the fastest of several runs after one to warm up: 2 or more, up to 20 while they take 0.2 s in all."""
    call()
    times: list[float] = []
    while len(times) < 2 or (sum(times) < 0.2 and len(times) < 20):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
