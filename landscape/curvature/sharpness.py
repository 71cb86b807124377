"""Sharpness: how much the loss rises in a neighbourhood of the weights, in the worst case or on average."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from ..errors import MeasurementError
from ..objective import Objective
from ..results import Check, Cost, Option, measurement
from ..session import batchnorm_layers
from ..tasks import Task
from .logits import with_normalized_logits
from .neighborhood import average_rise, normal, worst_in_ball, worst_in_box
from .slopes import dot, norm, own_slope
from .spectrum import SharpnessEstimate

#: What ASAM adds to |w|, and Keskar et al.'s number of iterations.
ETA, KESKAR_ITERATIONS = 0.01, 10


@dataclass(frozen=True)
class Kind:
    """One measure: how it searches, its radius and where that comes from, and in whose norm.

    `scale`: what a weight's perturbation is measured by: None for 1, "weights" for |w|, "asam" for |w| + 0.01 on
    weights and 1 elsewhere. `rescaling` says whether a rescaling of ReLU layers changes the number.
    """

    search: Literal["ball", "noise", "box"]
    rho: float
    source: str
    scale: Literal["weights", "asam"] | None = None
    rescaling: bool = True
    units: str = "loss"


KINDS = {
    "sam": Kind("ball", 0.05, "Foret et al. 2021, arXiv:2010.01412 (their rho for CIFAR)"),
    "adaptive": Kind(
        "ball", 0.5, "Kwon et al. 2021, arXiv:2102.11600 (their rho for CIFAR-10)", scale="weights", rescaling=False
    ),
    "asam": Kind("ball", 0.5, "Kwon et al. 2021, arXiv:2102.11600 (their rho for CIFAR-10)", scale="asam"),
    "average": Kind("noise", 0.01, "chosen by us: keeps the rise near the quadratic regime"),
    "average_adaptive": Kind(
        "noise", 0.1, "chosen by us: a tenth of each weight's size", scale="weights", rescaling=False
    ),
    "keskar": Kind("box", 1e-3, "Keskar et al. 2017, arXiv:1609.04836, from memory of the paper", units="%"),
    "keskar_5e-4": Kind("box", 5e-4, "Keskar et al. 2017, arXiv:1609.04836, from memory of the paper", units="%"),
}
#: What `landscape probe` measures: one of each family.
DEFAULT = ("sam", "adaptive", "average", "average_adaptive", "keskar")


def _passes(
    *,
    kind: str | Sequence[str] = DEFAULT,
    samples: int = 1024,
    steps: int = 20,
    draws: int = 20,
    draw_samples: int = 1,
    **_: object,
) -> float:
    # A gradient is 3 forward passes; a line search of L-BFGS-B makes about 1.5 of them in an iteration.
    cost = {"ball": 3.0 * steps, "noise": 1.0 * draws, "box": 4.5 * KESKAR_ITERATIONS}
    return min(1.0, samples / max(draw_samples, 1)) * sum(cost[KINDS[name].search] for name in _names(kind))


def check_sharpness(
    *,
    kind: str | Sequence[str] = DEFAULT,
    rho: float | Mapping[str, float] | None = None,
    samples: int = 1024,
    batch: int | None = 128,
    steps: int = 20,
    draws: int = 20,
    **_: object,
) -> None:
    """Refuse kinds, radii and numbers that nothing could be measured with, before anything is."""
    for name in _names(kind):
        _radius(name, rho)
    for label, value in (("samples", samples), ("batch", batch), ("steps", steps), ("draws", draws)):
        if value is not None and value < 1:
            raise MeasurementError(f"{label}={value} must be at least 1")


@measurement(
    "sharpness",
    order=40,
    preset={
        "quick": {"samples": 256, "steps": 10, "draws": 10},
        "standard": {},
        "thorough": {"samples": 4096, "kind": tuple(KINDS)},
    },
    options={
        "kind": Option(
            DEFAULT,
            f"one or more of {', '.join(KINDS)}, separated by commas; a rescaling of ReLU layers changes all but "
            f"{', '.join(name for name, kind in KINDS.items() if not kind.rescaling)}",
        ),
        "rho": Option(None, "radius for all kinds, or {kind: radius}; None: each kind's own", "the papers', per kind"),
        "samples": Option(1024, "samples drawn", "Andriushchenko et al. 2023"),
        "batch": Option(128, "m of m-sharpness; None: all samples at once", "Andriushchenko et al. 2023"),
        "steps": Option(20, "steps of ascent", "Andriushchenko et al. 2023"),
        "draws": Option(20, "random draws of the averages"),
        "normalize_logits": Option(False, "take the logits' scale out of the loss", "Andriushchenko et al. 2023"),
        "split": Option("train", "the data whose loss rises", choices=("train", "test")),
    },
    estimate=_passes,
    check=check_sharpness,
)
def sharpness(
    task: Task | Objective,
    kind: str | Sequence[str] = "sam",
    *,
    rho: float | Mapping[str, float] | None = None,
    samples: int = 1024,
    batch: int | None = 128,
    steps: int = 20,
    draws: int = 20,
    normalize_logits: bool = False,
    split: str = "train",
    seed: int = 0,
    progress: bool = False,
) -> SharpnessEstimate:
    """How much the mean loss rises near the weights: worst case and average, plain and adaptive.

    Kinds (Andriushchenko et al. 2023, arXiv:2302.07011, whose defaults for `samples`, `batch` and `steps` these are):

    - "sam": the mean over batches of max over ||e||_2 <= rho of L_b(w + e) - L_b(w) (m-sharpness with m = `batch`,
      Foret et al. 2021); with batch=None one maximum for the mean loss of all samples;
    - "adaptive": the same over || e / |w| ||_2 <= rho, which a rescaling of ReLU layers leaves as it is;
    - "asam": over || e / T ||_2 <= rho with T = |w| + 0.01 on weights and 1 on biases, as Kwon et al. 2021 train;
    - "average": the mean over e_i ~ N(0, rho^2) of L(w + e) - L(w), not on a sphere; "average_adaptive":
      e_i ~ N(0, (rho |w_i|)^2);
    - "keskar", "keskar_5e-4": 100 (max L(w + e) - L(w)) / (1 + L(w)) over the box |e_i| <= rho (|w_i| + 1), by 10
      iterations of L-BFGS-B, over all samples at once, in percent (Keskar et al. 2017, arXiv:1609.04836, from memory
      of the paper, whose eps 1e-3 and 5e-4 these are).

    The worst case is sought by the generalized power method e <- rho g / ||g||, g the gradient at w + e (Journee et
    al. 2010, JMLR 11:517), whose first step is SAM's own; the largest rise seen is kept, so the value is a lower bound
    of the maximum. Its batches are the draw's samples, shuffled, `batch` at a time, whatever the task's own batches are
    (a task with rebatch=False keeps its own, with a warning). Its standard error is over batches, that of the averages
    over `draws`; one maximum has none (NaN). What is sought along a gradient that is not the loss's slope (a detached
    advantage, a straight-through estimator) may be far too low: the check "slope" compares the two.

    Args:
        task: a Task, or an Objective of one (its task is drawn anew, in batches of the size asked for).
        kind: one of the kinds or several, also as "sam,keskar".
        rho: radius in each measure's own norm: one for all, or {kind: radius}; None takes each kind's own.
        normalize_logits: replace each row of logits z by (z - mean z) / ||z - mean z|| before the loss, so that a mere
            growth of the logits changes nothing.
        samples, batch, steps, draws: of the draw, of m-sharpness, of the ascent, of the averages.
        split: the data whose loss rises, "train" or "test"; that of an Objective is its own.
        seed: of the random draws, and of the ascent's start where the gradient is 0.
        progress: a bar on stderr.

    Cost: `steps` gradients (ball), `draws` forward passes (noise) or about 15 gradients (box) over `samples` samples,
    and a gradient and 8 forward passes for the check.
    Raises MeasurementError for an unknown kind, a radius that is not positive, numbers below 1, missing logits, and
    for ball and box a gradient that is not finite at the checkpoint.
    """
    start = time.perf_counter()
    check_sharpness(kind=kind, rho=rho, samples=samples, batch=batch, steps=steps, draws=draws)
    names = _names(kind)
    radii = {name: _radius(name, rho) for name in names}
    if isinstance(task, Objective):
        task, split = task.task, task.split
    if samples < (task.max_samples or math.inf):
        task = task.replace(max_samples=samples)
    if normalize_logits:
        task = with_normalized_logits(task)
    found: list[tuple[float, float]] = []
    with Objective(task, split, regroup=batch) as objective:
        batches = 1 if batch is None else len(objective)
        ticks = {"ball": (steps + 1) * batches, "noise": draws, "box": KESKAR_ITERATIONS}
        total = sum(ticks[KINDS[name].search] for name in names)
        with tqdm(total=total, desc="sharpness", disable=not progress, leave=False) as bar:
            for name in names:
                search, radius, scale = KINDS[name].search, radii[name], _scale(objective, KINDS[name])
                if search == "ball":
                    whole = batch is None
                    found.append(worst_in_ball(objective, radius, scale, steps, seed, bar.update, whole=whole))
                elif search == "noise":
                    found.append(average_rise(objective, radius, scale, draws, seed, bar.update))
                else:
                    found.append((worst_in_box(objective, radius, KESKAR_ITERATIONS, seed, bar.update), math.nan))
        slope = _slope_check(objective, seed) if any(KINDS[name].search != "noise" for name in names) else ()
        values = np.array([f[0] for f in found])
        return SharpnessEstimate(
            values=values,
            stderr=np.array([f[1] for f in found]),
            rho=np.array([radii[name] for name in names]),
            rescaling=np.array([KINDS[name].rescaling for name in names]),
            names=names,
            units=tuple(KINDS[name].units for name in names),
            split=split,
            settings={
                "samples": objective.samples,
                "batch": None if batch is None else objective.largest,
                "steps": steps,
                "draws": draws,
                "seed": seed,
                "normalize_logits": normalize_logits,
            },
            checks=(*_checks(names, values), *slope),
            warnings=_other_batches(objective, batch) if any(KINDS[n].search == "ball" for n in names) else (),
            notes=objective.notes,
            cost=Cost(passes=objective.passes, seconds=time.perf_counter() - start),
        )


def _names(kind: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(n.strip() for n in (kind.split(",") if isinstance(kind, str) else kind)))
    for name in names or ("",):
        if name not in KINDS:
            raise MeasurementError(f"sharpness kind {name!r} is not one of {', '.join(KINDS)}")
    return names


def _radius(name: str, rho: float | Mapping[str, float] | None) -> float:
    if isinstance(rho, Mapping):
        unknown = next((n for n in rho if n not in KINDS), None)
        if unknown is not None:
            raise MeasurementError(f"rho names {unknown!r}, which is not one of {', '.join(KINDS)}")
        rho = rho.get(name)
    radius = KINDS[name].rho if rho is None else rho
    if isinstance(radius, str) or not (radius > 0 and math.isfinite(radius)):
        raise MeasurementError(f"rho={radius} must be a positive number: it is a radius around the weights")
    return float(radius)


def _scale(objective: Objective, kind: Kind) -> list[torch.Tensor] | None:
    if kind.scale is None:
        return None
    if kind.scale == "weights":
        return [c.abs() for c in objective.center]
    # Kwon et al.'s first implementation tells weights from biases by their names.
    return [
        c.abs() + ETA if "weight" in name else torch.ones_like(c)
        for name, c in zip(objective.names, objective.center, strict=True)
    ]


def _other_batches(objective: Objective, batch: int | None) -> tuple[str, ...]:
    """Say where the batches could not be made of the size that was asked for: the worst case depends on it."""
    if batch is None or objective.largest == min(batch, objective.samples):
        return ()
    return (
        f"the worst case is over batches of at most {objective.largest} samples, not {min(batch, objective.samples)}: "
        "this task's batches can't be regrouped; compare it only with values over batches of that size",
    )


def _checks(names: Sequence[str], values: np.ndarray) -> tuple[Check, ...]:
    bad = [k for k, v in zip(names, values, strict=True) if not math.isfinite(v)]
    if bad:
        return (
            Check("finite", "warn", f"the loss is not finite within the radius of {', '.join(bad)}: take a smaller"),
        )
    return (Check("finite", "pass", "the loss is finite at every point that was visited"),)


def _slope_check(objective: Objective, seed: int) -> tuple[Check, ...]:
    """Compare the loss's slope along its gradient, and along a random direction, with the gradient's own.

    The random direction shows parameters that autograd was told to leave out. Nothing with recomputed BatchNorm
    statistics, which make the slope another one than the gradient's.
    """
    if objective.task.batchnorm == "recompute" and batchnorm_layers(objective.model):
        return ()
    objective.reset()
    gradient, checkpoint = objective.gradient(), objective.evaluate(stderr=True)
    if not norm(gradient):
        return ()
    found = [
        own_slope(objective, [t / norm(d) for t in d], dot(gradient, d) / norm(d), checkpoint)
        for d in (gradient, normal(objective.center, seed))
    ]
    objective.reset()
    said = [f"{f.seen:.4g} against {f.expected:.4g}" for f in found]
    message = f"the loss's slope is {said[0]} of its gradient along that, and {said[1]} along a random direction"
    wrong = [f for f in found if f.wrong]
    if wrong:
        message += (
            ": the loss has a kink there, or its gradient is not its own (a part is detached, or passed straight "
            "through), and the worst case, which is sought along it, may be far too low"
        )
    shown = (wrong or found)[0]
    return (Check("slope", "warn" if wrong else "pass", message, shown.gap, shown.limit),)
