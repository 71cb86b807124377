"""What single measurements say of themselves in the terminal, in a few words, where their arrays would say too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from landscape.report.numbers import count, interval, number, uncertain

#: Layers that are named, those with the most curvature (chosen by us: one line of a terminal).
NAMED = 3


def told(value: float, stderr: float, name: str = "") -> str:
    """Return "name value ± error", without the error where it is not known."""
    text, error = uncertain(float(value), float(stderr))
    return f"{name} {text}".strip() + (f" ± {error}" if error else "")


def density(result: Any) -> list[str]:
    return [
        f"from {number(float(result.smallest))} to {number(float(result.largest))}",
        told(result.trace, result.trace_stderr, "trace"),
        told(result.frobenius, result.frobenius_stderr, "Frobenius norm"),
        told(100 * result.negative, 100 * result.negative_stderr, "negative share, percent,"),
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


def _threshold(result: Any) -> list[str]:
    threshold = float(result.threshold)
    if not math.isfinite(threshold):
        return ["threshold not defined for this optimizer"]
    return [f"threshold {number(threshold)} at learning rate {number(float(result.lr))}"]


#: Kind -> its words; every other kind is told by its own description.
WORDS: Mapping[str, Callable[[Any], list[str]]] = {
    f.__name__: f for f in (density, frobenius, layers, diagonal, sampling, stability, batch_sharpness, coherence)
}
