"""The words that go under a figure: from the results themselves, with their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..counted import counted
from ..results import kind_of
from .figures.calibration import of_labels
from .figures.connectivity import spread
from .figures.generic import main_variable
from .figures.record import LAMBDA_MAX, Panel, preconditioned
from .figures.sampling import symbol
from .methods import software
from .numbers import count, given, interval, number, uncertain
from .runs import Run
from .wording import Found, directions, listed, spanned, split


def caption(found: Found, quantity: str = "loss", scale: str = "") -> str:
    """Return the caption of a figure of these results of one kind: what is drawn, of what, and how sure it is."""
    kind = kind_of(found[0][1])
    say = _CAPTIONS.get(kind, _generic)
    parts = [say(found, quantity, scale)]
    if len(found) > 1:
        parts.append(f"Runs: {listed([r.name for r, _ in found])}.")
    during = {r.name: r.probed_at[kind] for r, _ in found if kind in r.probed_at}
    if during:
        told = [f"{name} after step {step:,}" for name, step in during.items()]
        parts.append(f"Measured while training: {listed(told)}.")
    loud = sorted({c.message for _, r in found for c in r.checks if c.level == "fail"})
    parts += [f"Note: {text.rstrip('.')}." for text in loud[:3]]
    partial = [r.name for r, x in found if x.status != "complete"]
    if partial:
        parts.append(f"Measured in part only: {listed(partial)}.")
    return " ".join(parts)


# ------------------------------------------------------------------------------------------------ captions


def _plane(found: Found, quantity: str, scale: str) -> str:
    _, p = found[0]
    centers = [f"{number(float(x.center_loss))}" for _, x in found if np.isfinite(float(x.center_loss))]
    told = f"{split(found)} {quantity.replace('_', ' ')} at θ + α d₁ + β d₂ around "
    told = told[:1].upper() + told[1:]
    told += "the checkpoint (marked)" if len(found) == 1 else "each checkpoint (marked)"
    if scale:
        told += f", {scale} scale"
    if len(found) > 1:
        told += ", on one span and one color and height scale"
    sentences = [told + ".", directions([d for d in p.directions if d])]
    if centers and quantity == "loss":
        sentences.append(f"Loss at the center: {listed(centers)}.")
    interpolated = [x for _, x in found if not np.all(x.evaluated)]
    if interpolated:
        worst = max(float(x.error) for x in interpolated)
        share = [f"{count(int(np.sum(x.evaluated)))} of {count(np.size(x.loss))}" for x in interpolated]
        sentences.append(
            f"{listed(share)} points were evaluated, the others are interpolated, with an estimated error of at most "
            f"{number(100 * worst, 2)}% of the range."
        )
    holes = sum(int((~np.isfinite(np.asarray(x.loss, dtype=float))).sum()) for _, x in found)
    if holes:
        sentences.append(f"Gray: {counted(holes, 'point')} where the loss is not finite.")
    return " ".join(s for s in sentences if s)


def _line(found: Found, quantity: str, scale: str) -> str:
    told = f"{split(found).capitalize()} {quantity.replace('_', ' ')} at θ + α d; dots: the checkpoints, at α = 0."
    return f"{told} {directions([d for _, x in found if (d := x.direction)])}".strip()


def _eigenvalues(found: Found, quantity: str, scale: str) -> str:
    _, e = found[0]
    told = (
        f"Eigenvalues of the {e.operator} of the {split(found)} loss, from each end of the spectrum (filled: largest, "
    )
    told += "hollow: smallest); bars are residuals ‖Av − λv‖, crosses did not converge."
    top = [
        f"{uncertain(float(np.max(x.values)), float(x.residuals[int(np.argmax(x.values))]), 5)[0]}"
        for _, x in found
        if np.size(x.values) and np.isfinite(np.asarray(x.values, dtype=float)).all()
    ]
    return told + (f" Largest: {listed(top)}." if top else "")


def _density(found: Found, quantity: str, scale: str) -> str:
    draws = sorted({len(x.nodes) for _, x in found})
    return (
        f"Spectral density of the {found[0][1].operator} by stochastic Lanczos quadrature with "
        f"{' to '.join(count(n) for n in (draws[0], draws[-1])[: len(draws)])} random vectors, smoothed; bands are 95% "
        "intervals over the vectors."
    )


def _calibration(found: Found, quantity: str, scale: str) -> str:
    told = [" ".join(interval(float(c.ece), *(float(b) for b in np.ravel(c.ece_interval)[:2]))) for _, c in found]
    sizes = sorted({int(c.samples) for _, c in found})
    labels = all(of_labels(c) for _, c in found)
    effective = " at the effective size of dependent predictions" if any(c.groups for _, c in found) else ""
    said, happened = ("their probability", "how often the label is there") if labels else ("confidence", "accuracy")
    return (
        f"Reliability on {spanned(sizes)} {split(found)} {'labels' if labels else 'predictions'} in "
        f"{len(found[0][1].counts)} bins of {said}: {happened}, with Clopper-Pearson 95% intervals{effective}; "
        f"gray: what a calibrated model with these counts would show (95%). ECE [95% interval]: {listed(told)}."
    )


def _recalibration(found: Found, quantity: str, scale: str) -> str:
    told = [
        " ".join(interval(float(c.ece_change), *(float(b) for b in np.ravel(c.ece_change_interval)[:2])))
        for _, c in found
    ]
    return (
        (
            f"Reliability before (squares) and after (dots) {found[0][1].method} scaling, on predictions that its "
            f"fit has not seen; gray: what a calibrated model would show (95%). Change of ECE [95% "
            f"interval]: {listed(told)}."
        )
        .replace("isotonic scaling", "isotonic regression")
        .replace("histogram scaling", "histogram binning")
    )


def _path(found: Found, quantity: str, scale: str) -> str:
    told = []
    for _, x in found:
        text = _highest(x.barrier, x.barrier_stderr) + (f" ({x.splits[0]})" if len(x.splits) > 1 else "")
        if x.unaligned_barrier is not None:
            text += (
                f", after permuting the units of each state but the first to fit the one before it (by {x.align}; "
                f"before: {_highest(x.unaligned_barrier, x.unaligned_barrier_stderr)})"
            )
        told.append(text)
    drawn = quantity == "loss" and any(x.unaligned_loss is not None for _, x in found)
    return (
        f"{quantity.capitalize()} along {_ways(found)} between checkpoints (dots), ± standard error; a barrier is the "
        "height above the dashed line that joins them. "
        + ("Short dashes: the straight path before permuting units. " if drawn else "")
        + f"Highest barrier{'' if len(told) == 1 else 's'}: {listed(told)}."
    )


def _connectivity(found: Found, quantity: str, scale: str) -> str:
    aligned = any(x.align != "none" for _, x in found)
    told = [f"{spread(x.barrier[0], x.barrier_stderr[0], x.pairs())} ({x.splits[0]})" for _, x in found]
    return (
        f"Barriers between each two checkpoints along {_ways(found)}: the largest height of the loss above the line "
        f"between its ends{', after permuting units' if aligned else ''}, ± standard error. They are {listed(told)}."
    )


def _ways(found: Found) -> str:
    names = {"linear": "a straight path", "bezier": "a trained Bezier curve"}
    return listed(list(dict.fromkeys(names.get(x.curve, f"a {x.curve} curve") for _, x in found)))


def _highest(barrier: np.ndarray, stderr: np.ndarray) -> str:
    """Return the highest barrier of the first split, and its standard error."""
    k = int(np.argmax(np.where(np.isnan(barrier[0]), np.inf, barrier[0])))  # a NaN is no barrier of 0
    if barrier[0][k] == 0:
        return "none"
    return " ± ".join(t for t in uncertain(float(barrier[0][k]), float(stderr[0][k])) if t)


def _trajectory(found: Found, quantity: str, scale: str) -> str:
    shares = [float(s) for s in np.ravel(found[0][1].share)[:2]] if found[0][1].share is not None else []
    told = f"The way of the training, {count(len(found[0][1].coordinates))} checkpoints, projected onto a plane"
    if shares:
        told += f" that holds {sum(shares):.1%} of its variance"
    return told + "; square: first, star: last."


def _trace(found: Found, quantity: str, scale: str) -> str:
    told = [" ± ".join(t for t in uncertain(float(x.value), float(x.stderr)) if t) for _, x in found]
    name = "Frobenius norm" if kind_of(found[0][1]) == "frobenius" else "trace"
    return f"Estimates of the {name} from single draws (dots), their mean and its standard error: {listed(told)}."


def _sharpness(found: Found, quantity: str, scale: str) -> str:
    return (
        f"Rise of the {split(found)} loss in a neighborhood of the weights, ± standard error over batches or draws; "
        "each measure has its own norm and radius. †: changed by a rescaling of ReLU layers that leaves the function "
        "as it is." + (" ○: in % of 1 + loss, on the axis above." if any("%" in r.units for _, r in found) else "")
    )


def _training(found: Found, quantity: str, scale: str) -> str:
    runs = len({r.name for r, _ in found})
    return f"The training of {'the run' if runs == 1 else f'{runs} runs'}: what went into each optimizer step."


def _performance(found: Found, quantity: str, scale: str) -> str:
    what = {"loss": "Mean loss", "accuracy": "Share of right labels"}.get(quantity, quantity)
    return f"{what} on each split's draw, ± standard error over the samples."


def _class_scores(found: Found, quantity: str, scale: str) -> str:
    means = [
        listed(
            [
                f"{name} {' '.join(interval(float(getattr(x, key)), *_ends_of(getattr(x, key + '_interval'))))}"
                for name, key in (("IoU", "mean_iou"), ("F1", "mean_f1"), ("recall", "balanced_accuracy"))
            ]
        )
        for _, x in found
    ]
    return (
        f"Intersection over union (IoU) of each class on {split(found)} data, with 95% intervals over the samples. "
        f"Means over the classes [95% interval]: {'; '.join(means)}."
    )


def _quantile_coverage(found: Found, quantity: str, scale: str) -> str:
    told = []
    for _, x in found:
        p = float(x.calibration_p_value)
        told.append(number(float(x.coverage_error), 2) + (f" (p = {number(p, 2)})" if np.isfinite(p) else ""))
    return (
        f"How often {split(found)} targets lie at or below each predicted quantile, against its level, with 95% "
        "intervals over the samples; dashed: quantiles that are right. Mean distance from them (p: that right ones "
        f"show frequencies so far off): {listed(told)}."
    )


def _sample_scores(found: Found, quantity: str, scale: str) -> str:
    known = any(x.group is None for _, x in found)
    band = (
        "with pointwise Clopper-Pearson 95% intervals"
        if known
        else "without intervals: predictions are not independent"
    )
    return (
        f"How often the model is wrong on {split(found)} data where it answers only the share of which it is surest, "
        f"{band}; the right end is the plain error rate."
    )


def _layers(found: Found, quantity: str, scale: str) -> str:
    wholes = [number(float(x.whole)) for _, x in found]
    return (
        f"Largest eigenvalue of each layer's own diagonal block of the {found[0][1].operator} of the {split(found)} "
        "loss, in the model's order from the top; bars are residuals ‖Av − λv‖. Dashed: the largest eigenvalue of all "
        f"layers together, {listed(wholes)}."
    )


def _diagonal(found: Found, quantity: str, scale: str) -> str:
    return (
        f"Sum of the diagonal of the Hessian of the {split(found)} loss over each parameter tensor, in the model's "
        "order from the top, estimated from random vectors; bars are 95% intervals over these."
    )


def _eigenvalue_map(found: Found, quantity: str, scale: str) -> str:
    what = {"largest": "λ max", "smallest": "λ min"}.get(quantity, "|λ min / λ max|")
    return (
        f"{what} of the Hessian of the {split(found)} loss at θ + α d₁ + β d₂ around the checkpoint (marked)"
        + (": near 0 the loss is as good as convex" if what.startswith("|") else "")
        + ("; one color scale for all." if len(found) > 1 else ".")
        + (" Crosses: not converged." if not all(np.all(x.converged) for _, x in found) else "")
    )


def _basin(found: Found, quantity: str, scale: str) -> str:
    rays = sorted({len(x.ray) for _, x in found})
    widths = [
        listed(
            [
                f"{' ± '.join(t for t in uncertain(float(w), float(e)) if t)} at a rise of {given(float(r))}"
                for r, w, e in zip(x.rise, x.width, x.width_stderr, strict=True)
                if np.isfinite(w)
            ]
        )
        for _, x in found
    ]
    return (
        f"Rise of the {split(found)} loss along {spanned(rays)} random lines through the weights, of which a step of 1 "
        "moves each filter by about its own norm; marks: where it reaches each dashed level. Mean width, ± standard "
        f"error over the lines: {'; '.join(w for w in widths if w) or 'no level is reached'}."
    )


def _range_test(found: Found, quantity: str, scale: str) -> str:
    return (
        "Training loss on the same samples before each step (faint: of the step's batch) against a learning rate that "
        "grows at every step. Lines: where it falls fastest, where the rate meets the stability threshold at the "
        "weights of that step, where the loss turns, and where it has risen by its first value."
    )


def _sampling(found: Found, quantity: str, scale: str) -> str:
    _, x = found[0]
    return (
        f"{symbol(str(x.names[0]))} measured on disjoint parts of the {split(found)} samples, against their size: "
        f"mean ± standard deviation over the parts. Dashed, with its 95% interval in gray: {x.calls[0]} for all "
        "samples."
    )


def _generic(found: Found, quantity: str, scale: str) -> str:
    result = found[0][1]
    variables, kind = result.variables(), kind_of(result).replace("_", " ").capitalize()
    name = main_variable(variables)
    if name is None:  # a table of numbers
        docs = [f"{n.replace('_', ' ')} ({v.doc})" for n, v in variables.items() if v.doc and not v.coordinate]
        return f"{kind}: {'; '.join(docs[:4])}." if docs else f"{kind}."
    v = variables[name]
    told = f"{kind}: {name.replace('_', ' ')}" + (f", {v.doc.rstrip('.')}" if v.doc else "") + "."
    return told + (" Bars or bands are 95% intervals." if v.stderr or v.interval else "")


def _ends_of(bounds: Any) -> tuple[float, float]:
    low, high = (float(b) for b in np.ravel(bounds)[:2])
    return low, high


_CAPTIONS: dict[str, Callable[[Found, str, str], str]] = {
    "plane": _plane,
    "line": _line,
    "eigenvalues": _eigenvalues,
    "density": _density,
    "calibration": _calibration,
    "recalibration": _recalibration,
    "path": _path,
    "connectivity": _connectivity,
    "trajectory": _trajectory,
    "trace": _trace,
    "frobenius": _trace,
    "sharpness": _sharpness,
    "training": _training,
    "performance": _performance,
    "class_scores": _class_scores,
    "quantile_coverage": _quantile_coverage,
    "sample_scores": _sample_scores,
    "layers": _layers,
    "diagonal": _diagonal,
    "eigenvalue_map": _eigenvalue_map,
    "basin": _basin,
    "sampling": _sampling,
    "range_test": _range_test,
}


# ------------------------------------------------------------------------------------------------ training records


def training(found: Sequence[tuple[Run, Any]], panels: Sequence[Panel]) -> tuple[str, str, list[str]]:
    """Return caption, methods and what they cite, for the figure of these panels of training records."""
    last = [
        [int(s.steps[-1]) for p in panels if (s := h.get(p.quantity)) is not None and len(s.steps)] for _, h in found
    ]
    steps = [max(ends) for ends in last if ends]
    told = f"The training{'' if len(found) == 1 else 's'}"
    told += f" over {spanned(steps)} optimizer steps" if steps else ""
    told += f": {', '.join(p.words for p in panels)}."
    if any(p.averaged(h) for _, h in found for p in panels):
        told += " Faint: each step; bold: running means over 2% of the steps."
    moved = [r.name for r, h in found if preconditioned(h)] if LAMBDA_MAX in panels else []
    if moved:
        of = "" if len(moved) == len(found) else f" for {listed(moved)}"
        told += f" λ max is that of the preconditioned Hessian{of}."
    kinds: dict[str, int] = {}
    for _, history in found:
        for event in history.events:
            if event.kind in ("skipped_step", "not_finite", "spike"):
                kinds[event.kind] = kinds.get(event.kind, 0) + 1
    if kinds:
        marked = [f"{n} × {k.replace('_', ' ')}" for k, n in kinds.items()]
        told += f" Marked: {listed(marked)}."
    if len(found) > 1:
        told += f" Runs: {listed([r.name for r, _ in found])}."
    drawn = {p.quantity for p in panels}
    how, keys = "", []
    if "loss" in drawn:
        how += "Losses are those that went into each optimizer step. "
    if "gradient_norm" in drawn:
        how += "Gradient norms are those that the optimizer used (after clipping). "
        if any(event.kind == "sharpness_aware" for _, history in found for event in history.events):
            how += "SAM's are at the weights that it climbed to. "
    if LAMBDA_MAX in panels:
        keys = ["cohen2021gradient"] * (len(moved) < len(found)) + ["cohen2022adaptive"] * bool(moved)
        # What the last measurement of each run was held to.
        last = [kept[-1].result for _, h in found for kept in h.probed.values() if kept[-1].kind == "eigenvalues"]
        tols = sorted({float(e.settings["tol"]) for e in last if e.settings.get("tol")})
        how += "λ max was measured between steps, on one fixed draw of the training data"
        how += f", to a residual of at most {listed([f'{100 * t:g}%' for t in tols])}" if tols else ""
        how += f"; stability thresholds as in \\cite{{{','.join(keys)}}}. "
    return told, how + software(found), keys
