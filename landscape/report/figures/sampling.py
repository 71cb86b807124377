"""How a number moves with the samples: its mean over disjoint parts of the draw, and where the target's value lies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ...curvature.estimates import SamplingError
from ...errors import MeasurementError
from ..numbers import count
from ..palette import INK, RUN_COLORS
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: How a number that is followed is written, where that isn't its name.
_SYMBOLS = {"lambda_1": "λ max"}


def symbol(name: str) -> str:
    """Return a number's name as a reader of a figure knows it."""
    return _SYMBOLS.get(name, name.replace("_", " "))


@figure("sampling")
def draw_sampling(
    result: SamplingError,
    *,
    ax: Axes | None = None,
    number: int = 0,
    color: str = RUN_COLORS[0],
    label: str | None = None,
) -> Axes:
    """Draw one number against the samples it was measured on: means over the parts, and the 95% interval of the target.

    Bars at the parts are their standard deviation. `number` counts from 0, in the order of `names`. Raises
    MeasurementError for a number that there is none of.
    """
    if not 0 <= number < len(result.names):
        raise MeasurementError(f"number={number}: this result holds {len(result.names)} numbers, counted from 0")
    sizes, means = np.ravel(result.sizes), np.asarray(result.means)[:, number]
    spreads = np.nan_to_num(np.asarray(result.spreads)[:, number])
    low, high = np.asarray(result.interval)[number]
    estimate, call = float(np.ravel(result.estimates)[number]), result.calls[number]
    ax = ax or new_axes((5.4, 3.4))
    ax.errorbar(
        sizes,
        means,
        yerr=spreads,
        fmt="o-",
        color=color,
        markersize=5,
        elinewidth=1,
        capsize=2.5,
        label=label or "parts, mean ± standard deviation",
    )
    ax.axhspan(low, high, color=INK, alpha=0.12, linewidth=0)
    whole = f"{count(int(result.population))} samples" if math.isfinite(result.population) else "the source"
    ax.axhline(estimate, color=INK, linewidth=1.2, linestyle="--", label=f"{call} for {whole}, 95% interval")
    ax.set_xscale("log")
    ax.set_xticks(sizes, [count(round(float(s))) for s in sizes])
    ax.minorticks_off()
    ax.set_xlabel("samples in each part")
    curvature = result.names[number] in _SYMBOLS
    ax.set_ylabel(symbol(result.names[number]) + (" (loss / parameter²)" if curvature else ""))
    ax.legend(frameon=False, fontsize="small")
    tidy(ax)
    return ax
