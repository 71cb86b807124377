"""What single measurements say of themselves in the terminal, in a few words, where their arrays would say too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from landscape.report.numbers import count, interval, number, uncertain

#: Layers that are named, those with the most curvature (chosen by us: one line of a terminal).
NAMED = 3
#: Classes up to which each is named (chosen by us: one line of a terminal).
WRITTEN_OUT = 8


def told(value: float, stderr: float, name: str = "") -> str:
    """Return "name value ± error", without the error where it is not known."""
    text, error = uncertain(float(value), float(stderr))
    return f"{name} {text}".strip() + (f" ± {error}" if error else "")


def density(result: Any) -> list[str]:
    return [
        f"from {number(float(result.smallest))} to {number(float(result.largest))}",
        told(result.trace, result.trace_stderr, "trace"),
        told(result.frobenius, result.frobenius_stderr, "Frobenius norm"),
        f"{told(100 * result.negative, 100 * result.negative_stderr)}% of the sum of |eigenvalue| below zero",
        f"{count(len(result.nodes))} draws",
    ]


def frobenius(result: Any) -> list[str]:
    return [told(result.value, result.stderr), f"{count(len(result.samples))} draws"]


def layers(result: Any) -> list[str]:
    order = np.argsort(-np.asarray(result.largest, dtype=float))[:NAMED]
    named = [f"{result.names[i]} {number(float(result.largest[i]))}" for i in order]
    rest = len(result.names) - len(named)
    return [f"λ max {number(float(result.whole))} over all", *named, *([f"{count(rest)} layers below"] if rest else [])]


def diagonal(result: Any) -> list[str]:
    order = np.argsort(-np.asarray(result.sums, dtype=float))[:NAMED]
    named = [told(result.sums[i], result.sums_stderr[i], result.names[i]) for i in order]
    return [told(result.trace, result.trace_stderr, "sum"), *named]


def sampling(result: Any) -> list[str]:
    found = []
    for i, name in enumerate(result.names):
        low, high = (float(x) for x in result.interval[i])
        estimate = " ".join(interval(float(result.estimates[i]), low, high))
        found.append(f"{name} {number(float(result.values[i]))}, {result.calls[i]} {estimate}")
    size = float(result.population)
    target = "their source" if math.isinf(size) else f"all {count(int(size))}"
    return [*found, f"from {count(int(result.samples))} samples, for {target}"]


def stability(result: Any) -> list[str]:
    value = told(result.eigenvalue, result.residual, "λ max")
    return [value, *_threshold(result), f"{number(float(result.ratio), 3)} times it"]


def batch_sharpness(result: Any) -> list[str]:
    return [told(result.value, result.stderr), *_threshold(result)]


def coherence(result: Any) -> list[str]:
    return [told(result.sigma, result.stderr, "sigma"), *_threshold(result)]


def trajectory(result: Any) -> list[str]:
    found = [f"{count(len(result.distance))} checkpoints over {number(float(result.distance[0]))}"]
    if result.share is not None:
        found.append(f"axes hold {' and '.join(f'{100 * float(s):.3g}%' for s in result.share[:2])} of the variance")
    found.append(f"{100 * float(result.captured):.3g}% of the squared distances lie in the plane")
    if result.gap is not None:
        worst = int(np.nanargmax(np.abs(result.gap)))
        gap = float(result.gap[worst]), float(result.gap_stderr[worst]) if result.gap_stderr is not None else math.nan
        found.append(told(*gap, "largest gap of the plane's loss to the checkpoint's own"))
    return found


def path(result: Any) -> list[str]:
    found = []
    for i, split in enumerate(result.splits):
        worst = int(np.nanargmax(result.barrier[i]))
        found.append(told(result.barrier[i][worst], result.barrier_stderr[i][worst], f"{split} barrier"))
    return [*found, result.statistics] if result.statistics else found


def connectivity(result: Any) -> list[str]:
    from landscape.report.figures.connectivity import spread

    found = [f"{count(len(result.pairs()))} pairs of {count(len(result.states))} checkpoints"]
    for k, split in enumerate(result.splits):
        found.append(f"{split} barrier {spread(result.barrier[k], result.barrier_stderr[k], result.pairs())}")
    return [*found, result.statistics] if result.statistics else found


def eigenvalue_map(result: Any) -> list[str]:
    largest, smallest = (np.asarray(x, dtype=float) for x in (result.largest, result.smallest))
    points = " × ".join(str(n) for n in largest.shape)
    late = int(largest.size - np.sum(result.converged))
    found = [f"{points} points", f"λ max {number(float(np.nanmin(largest)))} to {number(float(np.nanmax(largest)))}"]
    found.append(f"−λ min / λ max up to {number(float(np.nanmax(-smallest / largest)), 3)}")
    return [*found, f"{count(late)} not converged"] if late else found


def basin(result: Any) -> list[str]:
    widths = [
        told(w, e, f"width at +{float(rise):g}")
        for rise, w, e in zip(result.rise, result.width, result.width_stderr, strict=True)
    ]
    return [*widths, told(result.roughness, result.roughness_stderr, "roughness"), f"{count(len(result.ray))} lines"]


def _threshold(result: Any) -> list[str]:
    threshold = float(result.threshold)
    if not math.isfinite(threshold):
        return ["threshold not defined for this optimizer"]
    return [f"threshold {number(threshold)} at learning rate {number(float(result.lr))}"]


def class_scores(result: Any) -> list[str]:
    """The means stand in the columns of the report's table; these are the classes."""
    iou = np.asarray(result.iou, dtype=float)
    if len(iou) <= WRITTEN_OUT:
        return ["IoU of each class " + ", ".join(number(x, 3) for x in iou)]
    known = np.flatnonzero(np.isfinite(iou))
    worst = known[np.argsort(iou[known])][:NAMED]
    return [f"{count(len(known))} classes, the least IoU", *(f"class {i} {number(float(iou[i]), 3)}" for i in worst)]


def quantile_coverage(result: Any) -> list[str]:
    found = []
    for nominal, share, bounds in zip(result.nominal, result.coverage, result.coverage_interval, strict=True):
        low, high = (100 * float(b) for b in bounds)
        found.append(f"{number(100 * float(nominal), 3)}% interval holds {' '.join(interval(100 * share, low, high))}%")
    if not found:
        pairs = zip(result.level, result.frequency, strict=True)
        found = [f"below {number(float(q), 3)}: {number(float(f), 3)}" for q, f in pairs]
    p = float(result.calibration_p_value)
    found += [f"p if right {number(p, 2)}"] if math.isfinite(p) else []
    return [*found, *([f"{number(100 * float(result.crossing), 2)}% cross"] if result.crossing > 0 else [])]


#: Kind -> its words; every other kind is told by its own description.
WORDS: Mapping[str, Callable[[Any], list[str]]] = {
    f.__name__: f
    for f in (
        *(density, frobenius, layers, diagonal, sampling, stability, batch_sharpness, coherence),
        *(trajectory, path, connectivity, eigenvalue_map, basin, class_scores, quantile_coverage),
    )
}
