"""Linear, logarithmic and asinh scales: one for every picture that is compared, and which one is said."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .numbers import count, given, number

Kind = Literal["linear", "log", "asinh"]

#: A range of more than this (largest over smallest loss) is drawn on a log scale unless asked otherwise
#: (chosen by us: on a linear one the lowest twentieth of the heights would be one color).
LOG_ABOVE = 20.0


@dataclass(frozen=True)
class Scale:
    """How a height becomes a position: `forward` maps values, `ticks` labels positions with true values."""

    kind: Kind
    low: float
    high: float
    width: float = 1.0
    #: What is said of the heights beside the scale's name.
    note: str = ""

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Return the positions of these values; what is not finite, or has no logarithm, is NaN."""
        x = np.where(np.isfinite(values), np.asarray(values, dtype=float), np.nan)
        if self.kind == "log":
            return np.log10(np.where(x > 0, x, np.nan))
        if self.kind == "asinh":
            return np.arcsinh(x / self.width)
        return x

    @property
    def range(self) -> tuple[float, float]:
        """The positions of the lowest and the highest value; widened where both are the same."""
        low, high = (float(v) for v in self.forward(np.array([self.low, self.high])))
        if not (math.isfinite(low) and math.isfinite(high)):
            return 0.0, 1.0
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    def round_values(self, most: int = 6) -> list[float]:
        """Return at most about `most` round values inside the range, rising."""
        low, high = self.range
        if self.kind == "linear":
            return _round_steps(low, high, most)
        chosen = _spaced(self, _round_powers(self.low, self.high), (high - low) / (most + 2))
        if len(chosen) < 3:  # less than a decade: round steps say more than one power of ten
            chosen = [v for v in _round_steps(self.low, self.high, most) if v > 0 or self.kind == "asinh"]
        return chosen

    def ticks(self, most: int = 6) -> tuple[list[float], list[str]]:
        """Return positions and labels of at most about `most` round values inside the range."""
        chosen = self.round_values(most)
        positions = self.forward(np.array(chosen, dtype=float))
        return [float(p) for p in positions], [given(v) for v in chosen]

    @property
    def words(self) -> str:
        """The scale's name as a person reads it."""
        asinh = f"asinh (linear below {number(self.width, 2)})"
        return {"linear": "linear", "log": "logarithmic", "asinh": asinh}[self.kind] + self.note


@dataclass(frozen=True)
class Ordered:
    """Steps in their order, evenly apart: probes look more often early in a training."""

    steps: tuple[int, ...]
    words: ClassVar[str] = "in order"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def share(self, step: int) -> float:
        """Return the place of a step, 0 the first and 1 the last."""
        return self.steps.index(step) / max(len(self.steps) - 1, 1)

    def ticks(self, most: int = 6) -> tuple[list[float], list[str]]:
        """Return places and labels of at most so many steps, the first and the last among them."""
        n = len(self.steps)
        places = sorted({round(i * (n - 1) / (most - 1)) for i in np.arange(most).tolist()})
        return [self.share(self.steps[i]) for i in places], [count(self.steps[i]) for i in places]


def finite(values: Iterable[np.ndarray]) -> np.ndarray:
    """Return every finite number of these arrays, flat."""
    parts = [np.ravel(np.asarray(v, dtype=float)) for v in values]
    joined = np.concatenate(parts) if parts else np.empty(0)
    return joined[np.isfinite(joined)]


def scales(values: np.ndarray, centers: np.ndarray | None = None) -> tuple[dict[str, Scale], str]:
    """Return the linear and the logarithmic Scale over these finite values, and the name of the default.

    Where a value is zero or below, asinh stands in for the logarithm, linear within the typical (median) size of
    `centers` (by default of the values). The default is the logarithm where max / min exceeds LOG_ABOVE.
    """
    if not len(values):
        return {"linear": Scale("linear", 0.0, 1.0)}, "linear"
    low, high = float(values.min()), float(values.max())
    linear = Scale("linear", low, high)
    if low > 0:
        return {"linear": linear, "log": Scale("log", low, high)}, "log" if high > LOG_ABOVE * low else "linear"
    sizes = np.abs(centers if centers is not None and len(centers) else values)
    sizes = sizes[sizes > 0]
    width = float(np.median(sizes)) if len(sizes) else 1.0
    steep = max(abs(low), abs(high)) > LOG_ABOVE * width
    return {"linear": linear, "log": Scale("asinh", low, high, width)}, "log" if steep else "linear"


def _round_steps(low: float, high: float, most: int) -> list[float]:
    if not high > low:
        return [low]
    rough = (high - low) / max(most - 1, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _round_powers(low: float, high: float) -> list[float]:
    """Return round values inside the range, the roundest first: 0, powers of ten, then 3, 2 and 5 times them."""
    size = max(abs(low), abs(high))
    least = low if low > 0 else size * 1e-6
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(size)) if size else 0
    values = [0.0]
    for mantissa in (1, 3, 2, 5):
        for exponent in range(last, first - 1, -1):
            values += [mantissa * 10.0**exponent, -mantissa * 10.0**exponent]
    return [v for v in values if low <= v <= high]


def _spaced(scale: Scale, candidates: list[float], apart: float) -> list[float]:
    """Return, in order, the candidates that stand at least this far from every rounder one."""
    kept: list[tuple[float, float]] = []
    for value in candidates:
        position = float(scale.forward(np.array([value]))[0])
        if math.isfinite(position) and all(abs(position - other) >= apart for other, _ in kept):
            kept.append((position, value))
    return [value for _, value in sorted(kept)]
