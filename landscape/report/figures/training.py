"""The charts of a training's record: which quantities stand in which, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..chart import Chart
from ..runs import Run
from .steps import Curve, View, over_steps

#: Quantities that a chart of their own shows; all others stand in the last one.
_SHOWN = {
    "loss", "logged", "metrics", "learning_rate", "momentum", "weight_decay", "scheduled", "gradient_norm",
    "gradient_norm_before", "ascent_norm", "clip", "update", "update_norm", "weight_norm", "noise_scale", "eigenvalue",
    "eigenvalue_residual", "curvature", "calibration",
}  # fmt: skip


def columns(runs: Sequence[Run], quantity: str) -> list[str]:
    """Return the columns of a quantity that any run recorded a number in, in the order first seen."""
    names: dict[str, None] = {}
    for run in runs:
        found = run.recorded.curves.get(quantity)
        if found is not None:
            known: np.ndarray = np.asarray(np.any(np.isfinite(found.mean), axis=0))
            names.update(dict.fromkeys(n for n, k in zip(found.names, known, strict=True) if k))
    return list(names)


def losses(runs: Sequence[Run]) -> Chart | None:
    """Return the losses of the steps' batches, those on held-out data, and the terms they are made of."""
    held_out = [(q, n) for q in ("logged", "metrics") for n in columns(runs, q) if "loss" in n.lower() or "nll" in n]
    views = []
    dashed = tuple(Curve(q, n, n, 1 + i, markers=True) for i, (q, n) in enumerate(held_out[:3]))
    views.append(View("loss", "Loss", "loss", (Curve("loss", "loss", "loss"), *dashed)))
    views += [View(f"loss.{n}", n, n, (Curve("loss", n, n),)) for n in columns(runs, "loss") if n != "loss"]
    views += [View(f"{q}.{n}", n, n, (Curve(q, n, n, markers=True),)) for q, n in held_out]
    caption = "The loss of each step’s batch, at the weights before the step."
    if dashed:
        caption += f" Dashed: {', '.join(c.label for c in dashed)}."
    caption += " Marks: spikes (triangles), steps with a loss or gradient that is not finite (crosses), skipped steps."
    return over_steps("losses", "Loss", caption, runs, views, marks=True, height=320)


def schedules(runs: Sequence[Run]) -> Chart | None:
    """Return the learning rate and every other scalar in force; one that never changes is told by its value."""
    views = []
    for quantity, title in (
        ("learning_rate", "Learning rate"),
        ("momentum", "Momentum"),
        ("weight_decay", "Weight decay"),
    ):
        groups = columns(runs, quantity)
        if groups and (quantity == "learning_rate" or any(_moves(runs, quantity, g) for g in groups)):
            curves = tuple(Curve(quantity, g, f"group {g}" if len(groups) > 1 else "", i) for i, g in enumerate(groups))
            views.append(View(quantity, title, title.lower(), curves))
    for name in columns(runs, "scheduled"):
        if name == "lr" and views:  # the learning rate by its name in the driver
            continue
        views.append(View(f"scheduled.{name}", name, name, (Curve("scheduled", name),)))
    caption = "What the schedules had in force at each step. Several parameter groups are told apart by their dashes."
    return over_steps("schedules", "Learning rate and schedules", caption, runs, views, height=220)


def _moves(runs: Sequence[Run], quantity: str, column: str) -> bool:
    values = [run.recorded.get(quantity, column) for run in runs]
    return any(v is not None and len(v[1]) and float(np.ptp(v[1])) > 0 for v in values)


def gradients(runs: Sequence[Run]) -> Chart | None:
    """Return the gradient norm that the optimizer used, the one before clipping, and the clipping itself.

    Of a sharpness-aware optimizer, the one at the weights themselves, too.
    """
    views = [
        View("after", "Norm", "gradient norm", (Curve("gradient_norm", "global", "gradient norm"),)),
        View(
            "before", "Before clipping", "gradient norm", (Curve("gradient_norm_before", "global", "before clipping"),)
        ),
        View("clip", "Clipping", "coefficient", (Curve("clip", "coefficient", "coefficient"),)),
    ]
    caption = (
        "The norm of the whole gradient, after clipping where there was any; clipping: the factor it was scaled by."
    )
    climbing = [run.name for run in runs if "sharpness_aware" in run.recorded.events]
    if climbing:
        caption += (
            f" Of {', '.join(climbing[:3])}{' and others' if len(climbing) > 3 else ''} it is the norm at the weights "
            "that SAM climbed to, whose gradient it steps by."
        )
    if columns(runs, "ascent_norm"):
        caption += " At the weights: before any ascent, as other optimizers’ is (and before clipping)."
        others = Curve("gradient_norm", "global", "gradient norm", without="ascent_norm")
        curves = (Curve("ascent_norm", "global", "at the weights"), others)
        views.insert(1, View("ascent", "At the weights", "gradient norm", curves))
    return over_steps("gradients", "Gradient norm", caption, runs, views, marks=True)


def updates(runs: Sequence[Run]) -> Chart | None:
    """Return how far a step moves the weights, as a share of their norm and otherwise."""
    views = [
        View("ratio", "Update ratio", "‖Δθ‖ / ‖θ‖", (Curve("update", "ratio", "ratio"),)),
        View("norm", "Update norm", "‖Δθ‖", (Curve("update_norm", "global", "‖Δθ‖"),)),
        View("weights", "Weight norm", "‖θ‖", (Curve("weight_norm", "global", "‖θ‖"),)),
        View("distance", "Distance", "‖θ − θ₀‖", (Curve("update", "distance", "distance"),)),
        View("cosine", "Cosine", "cosine", (Curve("update", "cosine", "cosine"),), 0.0),
    ]
    caption = "How far each step moves the weights, as a share of their norm and otherwise."
    return over_steps("updates", "Updates", caption, runs, views)


def noise(runs: Sequence[Run]) -> Chart | None:
    """Return the gradient noise scale and the two estimates that it is the quotient of."""
    views = [
        View("scale", "Noise scale", "samples", (Curve("noise_scale", "noise_scale", "noise scale"),)),
        View("squared", "Squared gradient", "‖G‖²", (Curve("noise_scale", "squared_gradient", "‖G‖²"),)),
        View("variance", "Variance", "tr Σ", (Curve("noise_scale", "variance", "tr Σ"),)),
    ]
    caption = (
        "The batch size at which the gradient’s noise equals the gradient (McCandlish et al. 2018): far below it a "
        "larger batch saves steps, far above it does not. A quotient of two noisy estimates: single points mean little."
    )
    return over_steps("noise", "Gradient noise scale", caption, runs, views)


def edge(runs: Sequence[Run]) -> Chart | None:
    """Return the largest eigenvalue against the optimizer's stability threshold, and what else was measured of it."""
    views = []
    if "lambda_max" in columns(runs, "curvature"):
        curves = (
            Curve("curvature", "lambda_max", "λ max", markers=True),
            Curve("curvature", "threshold", "threshold", 1, joined=True),
        )
        views.append(View("edge", "λ max and threshold", "eigenvalue (loss / parameter²)", curves))
        views.append(View("margin", "Margin", "1 − λ max / threshold", (_marked("curvature", "margin"),), 0.0))
    names = columns(runs, "eigenvalue")
    if names:
        curves = tuple(
            Curve("eigenvalue", n, f"λ{n}", i, markers=True, error=("eigenvalue_residual", n))
            for i, n in enumerate(names[:8])
        )
        if _of_the_hessian(runs):
            curves += (Curve("curvature", "threshold", "threshold", len(curves), joined=True),)
        views.append(View("top", "Largest eigenvalues", "eigenvalue (loss / parameter²)", curves))
    trace = Curve("curvature", "trace", "trace", markers=True, error=("curvature", "trace_stderr"))
    views.append(View("trace", "Trace", "trace (loss / parameter²)", (trace,)))
    caption = (
        "The largest eigenvalue of the loss’s curvature while training, against the largest at which this optimizer’s "
        "steps stay stable (dashed). Training at full batch tends to climb to that edge and hover there (Cohen et al. "
        "2021); noise of small batches holds it lower. Bars of single eigenvalues are their residuals, those of the "
        "trace its standard error."
    )
    return over_steps("edge", "Edge of stability", caption, runs, views, height=300)


def _of_the_hessian(runs: Sequence[Run]) -> bool:
    """Whether the threshold is one for the Hessian's own eigenvalues, in every run: not for an adaptive optimizer."""
    sides = [(run.recorded.get("eigenvalue", "1"), run.recorded.get("curvature", "lambda_max")) for run in runs]
    pairs = [(a[1], b[1]) for a, b in sides if a is not None and b is not None]
    return bool(pairs) and all(len(a) == len(b) and np.allclose(a, b, rtol=1e-6) for a, b in pairs)


def _marked(quantity: str, column: str) -> Curve:
    return Curve(quantity, column, column, markers=True)


#: Measures of calibration in the order of the choice, with their labels; "test.ece" is that of another split.
_CALIBRATION = {
    "ece": "ECE", "nll": "NLL", "brier": "Brier", "accuracy": "Accuracy", "temperature": "Temperature",
}  # fmt: skip


def calibration(runs: Sequence[Run]) -> Chart | None:
    """Return calibration over the epochs, the ECE with its interval."""
    names = columns(runs, "calibration")
    splits = dict.fromkeys(n.rpartition(".")[0] for n in names)
    views = []
    for measure, label in _CALIBRATION.items():
        for split in splits:
            before = f"{split}." if split else ""
            if before + measure in names:
                bounded = measure in ("ece", "temperature")
                bounds = (f"{before}{measure}_low", f"{before}{measure}_high") if bounded else None
                curve = Curve("calibration", before + measure, label, bounds=bounds, markers=True)
                title = f"{label}, {split}" if split else label
                views.append(View(before + measure, title, title, (curve,), 1.0 if measure == "temperature" else None))
    caption = "Measured at the ends of epochs on held-out predictions; bands of ECE and temperature are 95% intervals."
    return over_steps("calibration-steps", "Calibration over epochs", caption, runs, views)


def metrics(runs: Sequence[Run]) -> Chart | None:
    """Return whatever else the training loop logged."""
    views = [
        View(f"{q}.{n}", n, n, (Curve(q, n, n, markers=True),))
        for q in ("logged", "metrics")
        for n in columns(runs, q)
        if "loss" not in n.lower() and "nll" not in n
    ]
    return over_steps("logged", "Logged by the training loop", "As it was handed to the recorder.", runs, views)


def everything_else(runs: Sequence[Run]) -> Chart | None:
    """Return every column of every quantity that no other chart shows."""
    names = dict.fromkeys(q for r in runs for q in r.recorded.curves if q not in _SHOWN)
    views = []
    for quantity in names:
        unit = next(r.recorded.curves[quantity].units for r in runs if quantity in r.recorded.curves)
        for n in columns(runs, quantity):
            name = n if n == quantity else f"{quantity.replace('_', ' ')}: {n}"
            views.append(View(f"{quantity}.{n}", name, f"{n} ({unit})" if unit else n, (Curve(quantity, n),)))
    caption = "Every quantity that no other figure shows: pick one."
    return over_steps("recorded", "Everything else that was recorded", caption, runs, views)


#: In the order of the page.
CHARTS: tuple[Callable[[Sequence[Run]], Chart | None], ...] = (
    losses, gradients, updates, noise, edge, calibration, metrics,
)  # fmt: skip
