"""The gradient noise scale: how large a batch is before a larger one stops helping."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class NoiseScale:
    """The simple noise scale B = tr(Sigma) / |G|^2 of McCandlish et al. 2018 (arXiv:1812.06162, appendix A.1).

    From the squared norms of the gradients of a small and of a big batch of the same step, |G|^2 and tr(Sigma) each
    have an unbiased estimate,

        G2 = (B |G_B|^2 - b |G_b|^2) / (B - b),    S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B),

    whose quotient is biased and heavy-tailed step by step: both are smoothed first, then divided. `decay` is that of
    the exponential means (default 0.99, a memory of 100 steps: chosen by us), corrected for their start at zero.
    """

    decay: float = 0.99
    steps: int = 0
    _g2: float = 0.0
    _s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must be at least 0 and below 1")

    def add(self, small: float, big: float, b: int, B: int) -> tuple[float, float]:
        """Take in one step's mean squared norm of small gradients and squared norm of the big one; return (G2, S).

        `small` is the mean of |G_b|^2 over the micro-batches of `b` samples, `big` is |G_B|^2 of all `B` of them. A
        step with a norm that is not finite is returned as it is and left out of the means.
        """
        if not 0 < b < B:
            raise ValueError(f"batches of {b} and {B} samples: the small one must be smaller than the big one")
        g2 = (B * big - b * small) / (B - b)
        s = (small - big) / (1 / b - 1 / B)
        if math.isfinite(g2) and math.isfinite(s):
            self.steps += 1
            self._g2 = self.decay * self._g2 + (1 - self.decay) * g2
            self._s = self.decay * self._s + (1 - self.decay) * s
        return g2, s

    @property
    def squared_gradient(self) -> float:
        """The smoothed |G|^2; NaN before the first step."""
        return self._g2 / self._start if self.steps else math.nan

    @property
    def variance(self) -> float:
        """The smoothed tr(Sigma), per sample; NaN before the first step."""
        return self._s / self._start if self.steps else math.nan

    @property
    def value(self) -> float:
        """The noise scale in samples; inf where the mean gradient can't be told from 0, NaN before the first step."""
        if not self.steps:
            return math.nan
        return self._s / self._g2 if self._g2 > 0 else math.inf

    @property
    def _start(self) -> float:
        return 1 - self.decay**self.steps
