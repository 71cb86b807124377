"""The trace or the norm of an operator: the estimate of each random draw, their mean and its standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...curvature.estimates import NormEstimate
from ...curvature.spectrum import Estimate
from ...errors import MeasurementError
from ...results import kind_of
from ..numbers import uncertain
from ..palette import INK, RUN_COLORS
from .registry import figure, new_axes, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure("estimate")
@figure("frobenius")
@figure("trace")
def draw_trace(
    result: Estimate, *, ax: Axes | None = None, color: str = RUN_COLORS[0], label: str | None = None
) -> Axes:
    """Draw an estimate from random draws: each draw as a dot, the mean as a line, its standard error as a band.

    Of a Frobenius norm the dots are ||A v|| of each draw, whose mean square is the norm's square.
    Raises MeasurementError where the estimate is not finite.
    """
    if not np.isfinite(result.value):
        raise MeasurementError("this estimate is not finite: there is nothing to draw")
    ax = ax or new_axes((5.0, 3.2))
    samples = np.ravel(np.asarray(result.samples, dtype=float))
    if isinstance(result, NormEstimate):
        samples = np.sqrt(samples)
    draws = np.arange(1, len(samples) + 1)
    value, error = uncertain(float(result.value), float(result.stderr))
    if np.isfinite(result.stderr):
        ax.axhspan(result.value - result.stderr, result.value + result.stderr, color=color, alpha=0.18, linewidth=0)
    ax.axhline(result.value, color=INK, linewidth=1.2, label=label or f"mean {value} ± {error}")
    ax.plot(draws, samples, "o", color=color, markersize=4)
    whole_numbers(ax.xaxis)
    ax.set_xlabel("random vector")
    name = "Frobenius norm" if isinstance(result, NormEstimate) else kind_of(result)
    ax.set_ylabel(f"{name} (loss / parameter²)")
    ax.legend(frameon=False, fontsize="small")
    tidy(ax)
    return ax
