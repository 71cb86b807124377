"""What pictures of the loss share: the quantities that they can show, and what they say about themselves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MeasurementError
from ..numbers import count, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Muted, and small enough to leave the picture its room.
STYLE: dict[str, Any] = {"fontsize": 6.0, "color": "#57606a", "va": "bottom", "ha": "left"}


def quantity_of(result: Any, quantity: str) -> np.ndarray:
    """Return a quantity of a Line or a Plane by name, as numbers; MeasurementError where it has none."""
    names = tuple(getattr(result, "term_names", ()))
    plain = ("loss", "accuracy", "held_out_loss", "held_out_accuracy")
    values = result.terms[names.index(quantity)] if quantity in names else None
    if quantity in plain:
        values = getattr(result, quantity)
    if values is None:
        there = [n for n in plain if getattr(result, n, None) is not None]
        why = "; it was measured without labels" if quantity == "accuracy" else ""
        raise MeasurementError(f"this {result.kind} has no {quantity}{why}: it has {', '.join([*there, *names])}")
    return np.asarray(values, dtype=float)


def label_of(quantity: str) -> str:
    """Return what an axis with this quantity is called."""
    named = {
        "accuracy": "accuracy (share of right labels)",
        "held_out_loss": "held-out loss",
        "held_out_accuracy": "held-out accuracy (share of right labels)",
    }
    return named.get(quantity, quantity)


def write_self_check(ax: Axes, result: Any) -> None:
    """Write the self-check of a Line or a Plane above its axes."""
    lines = self_check(result)
    # An empty title keeps the room; the lines themselves may be wider than the axes, and must not narrow them.
    ax.set_title("\n".join(" " for _ in lines), fontsize=STYLE["fontsize"])
    place: Any = ax.text2D if ax.name == "3d" else ax.text  # type: ignore[attr-defined]
    place(0.0, 1.01, "\n".join(lines), transform=ax.transAxes, **STYLE).set_in_layout(False)


def self_check(result: Any) -> list[str]:
    """Return whether the center is the checkpoint, directions, BatchNorm, samples, and what was evaluated."""
    center = float(result.center_loss)
    exact = center == float(result.checkpoint_loss)
    first = [f"center {number(center)} {'= checkpoint' if exact else 'IS NOT the checkpoint'}", *_directions(result)]
    if result.batchnorm != "none":
        first.append(f"BatchNorm {result.batchnorm}")
    second = [f"{count(int(result.samples))} {result.split} samples"] if result.samples else []
    if math.isfinite(float(result.loss_stderr)):
        second.append(f"± {number(float(result.loss_stderr), 2)}")
    loss, evaluated = np.asarray(result.loss, dtype=float), getattr(result, "evaluated", None)
    if evaluated is not None and not np.all(evaluated):
        error = float(result.error)
        off = f"rest off by ≲ {number(100 * error, 2)}% of the range" if math.isfinite(error) else "error unknown"
        second.append(f"{count(int(np.sum(evaluated)))} of {count(loss.size)} points evaluated, {off}")
    third = []
    holes = int((~np.isfinite(loss)).sum())
    if holes:
        third.append(f"{count(holes)} not finite")
    if math.isfinite(float(result.bend)):
        third.append(f"leaves its quadratic model by {number(100 * float(result.bend), 2)}% beside the center")
    if result.status != "complete":
        third.insert(0, result.status.upper())
    return [" · ".join(parts) for parts in (first, second, third) if parts]


def _directions(result: Any) -> list[str]:
    if hasattr(result, "direction_norm"):
        return [f"‖d‖ {number(float(result.direction_norm), 3)}"]
    norms = ", ".join(number(float(n), 3) for n in result.direction_norms)
    angle = math.degrees(math.acos(max(-1.0, min(1.0, float(result.cosine)))))
    return [f"‖d‖ {norms} at {angle:.0f}°"]
