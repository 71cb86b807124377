"""From quadrature rules to a smooth spectral density: the published kernels, and ours. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kernel = Literal["gaussian", "pyhessian", "papyan"]

#: Our kernel's standard deviation, as a share of the spectrum's range (chosen by us: narrower than the gaps between a
#: trained network's outliers, wide enough for a few dozen quadrature nodes to look like the bulk that they stand for).
WIDTH = 0.005
#: Our grid goes this many standard deviations beyond the outermost nodes, in steps of a quarter of one, so that the
#: nearest point of the grid shows at least 99% of a peak: exp(-(1/8)^2 / 2).
MARGIN, STEP = 6.0, 0.25
#: Papyan 2018 (arXiv:1811.07062): a margin of 5% at either end, kappa = 3, 1,024 points.
PAPYAN_MARGIN, PAPYAN_KAPPA, PAPYAN_POINTS = 0.05, 3.0, 1024
#: PyHessian 0.1: variance 1e-5 * max(1, range), 10,000 points, 0.01 beyond the mean of the draws' outermost nodes.
PYHESSIAN_VARIANCE, PYHESSIAN_POINTS, PYHESSIAN_MARGIN = 1e-5, 10_000, 0.01
#: Numbers in one (grid, node) table of the smoothing.
_TABLE = 1 << 22


@dataclass(frozen=True)
class Smoothing:
    """A grid (g,), the Gaussian's standard deviation, and whether the density is rescaled to sum to 1 on the grid."""

    grid: np.ndarray
    sigma: float
    rescale: bool = False

    @property
    def step(self) -> float:
        return float(self.grid[1] - self.grid[0])


def gaussian(nodes: np.ndarray, steps: int, width: float = WIDTH) -> Smoothing:
    """Return our kernel: sigma a share of the range of the nodes, on a grid that no peak falls through.

    Where there is no range (one eigenvalue) it is a share of the eigenvalue's magnitude.
    """
    del steps
    low, high = float(np.nanmin(nodes)), float(np.nanmax(nodes))
    sigma = width * ((high - low) or abs(high) or 1.0)
    points = math.ceil((high - low + 2 * MARGIN * sigma) / (STEP * sigma)) + 1
    return Smoothing(np.linspace(low - MARGIN * sigma, high + MARGIN * sigma, points), sigma)


def pyhessian(nodes: np.ndarray, steps: int, width: float = WIDTH) -> Smoothing:
    """Return PyHessian's kernel and grid, as they are.

    Where the range is beyond about 1,000 the grid's step exceeds sigma, and peaks fall between its points.
    """
    del steps, width
    high = float(np.nanmax(nodes, axis=1).mean()) + PYHESSIAN_MARGIN
    low = float(np.nanmin(nodes, axis=1).mean()) - PYHESSIAN_MARGIN
    variance = PYHESSIAN_VARIANCE * max(1.0, high - low)
    return Smoothing(np.linspace(low, high, PYHESSIAN_POINTS), math.sqrt(variance), rescale=True)


def papyan(nodes: np.ndarray, steps: int, width: float = WIDTH) -> Smoothing:
    """Return Papyan's kernel: sigma = 2 / ((m - 1) sqrt(8 ln kappa)) on the spectrum mapped to [-1, 1].

    With one step, m - 1 is taken as 1.
    """
    del width
    low, high = float(np.nanmin(nodes)), float(np.nanmax(nodes))
    margin = PAPYAN_MARGIN * ((high - low) or abs(high) or 1.0)
    low, high = low - margin, high + margin
    sigma = 2 / (max(steps - 1, 1) * math.sqrt(8 * math.log(PAPYAN_KAPPA)))
    return Smoothing(np.linspace(low, high, PAPYAN_POINTS), sigma * (high - low) / 2)


KERNELS: dict[str, Callable[[np.ndarray, int, float], Smoothing]] = {
    "gaussian": gaussian,
    "pyhessian": pyhessian,
    "papyan": papyan,
}


def smooth(nodes: np.ndarray, weights: np.ndarray, smoothing: Smoothing) -> np.ndarray:
    """Return the density of each rule on the grid, as (draws, g): sum_i w_i N(x; node_i, sigma^2).

    `nodes` and `weights` are (draws, m); nodes that are NaN carry no weight. With `rescale` the mean over the draws
    sums to 1 over the grid, as PyHessian has it.
    """
    grid, sigma = smoothing.grid, smoothing.sigma
    found = np.zeros((len(nodes), len(grid)))
    for i, (theta, w) in enumerate(zip(nodes, weights, strict=True)):
        kept = np.flatnonzero(w > 0)
        for part in np.array_split(kept, max(1, -(-len(kept) * len(grid) // _TABLE))):
            away = (grid[:, None] - theta[part]) / sigma
            found[i] += np.exp(-0.5 * away**2) @ w[part]
    found /= sigma * math.sqrt(2 * math.pi)
    if smoothing.rescale:
        found /= found.mean(axis=0).sum() * smoothing.step
    return found
