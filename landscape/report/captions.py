"""The words that go under a figure, and into the methods section: from the results themselves, with their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import __version__
from ..counted import counted
from ..results import Result, kind_of
from .figures.calibration import of_labels
from .figures.connectivity import spread
from .figures.generic import main_variable
from .figures.record import LAMBDA_MAX, Panel, preconditioned
from .figures.sampling import symbol
from .numbers import count, given, interval, number, uncertain
from .runs import Run

Found = Sequence[tuple[Run, Any]]


def caption(found: Found, quantity: str = "loss", scale: str = "") -> str:
    """Return the caption of a figure of these results of one kind: what is drawn, of what, and how sure it is."""
    kind = kind_of(found[0][1])
    say = _CAPTIONS.get(kind, _generic)
    parts = [say(found, quantity, scale)]
    if len(found) > 1:
        parts.append(f"Runs: {_listed([r.name for r, _ in found])}.")
    during = {r.name: r.probed_at[kind] for r, _ in found if kind in r.probed_at}
    if during:
        told = [f"{name} after step {step:,}" for name, step in during.items()]
        parts.append(f"Measured while training: {_listed(told)}.")
    loud = sorted({c.message for _, r in found for c in r.checks if c.level == "fail"})
    parts += [f"Note: {text.rstrip('.')}." for text in loud[:3]]
    partial = [r.name for r, x in found if x.status != "complete"]
    if partial:
        parts.append(f"Measured in part only: {_listed(partial)}.")
    return " ".join(parts)


def methods(found: Found) -> str:
    """Return a paragraph for the methods section, from the settings that the results were measured with."""
    kind = kind_of(found[0][1])
    say = _METHODS.get(kind)
    parts = [say(found)] if say else [_measured_with(found)]
    parts.append(_software(found))
    return " ".join(p for p in parts if p)


# ------------------------------------------------------------------------------------------------ captions


def _plane(found: Found, quantity: str, scale: str) -> str:
    _, p = found[0]
    centers = [f"{number(float(x.center_loss))}" for _, x in found if np.isfinite(float(x.center_loss))]
    told = f"{_split(found)} {quantity.replace('_', ' ')} at θ + α d₁ + β d₂ around "
    told = told[:1].upper() + told[1:]
    told += "the checkpoint (marked)" if len(found) == 1 else "each checkpoint (marked)"
    if scale:
        told += f", {scale} scale"
    if len(found) > 1:
        told += ", on one span and one color and height scale"
    sentences = [told + ".", _directions([d for d in p.directions if d])]
    if centers and quantity == "loss":
        sentences.append(f"Loss at the center: {_listed(centers)}.")
    interpolated = [x for _, x in found if not np.all(x.evaluated)]
    if interpolated:
        worst = max(float(x.error) for x in interpolated)
        share = [f"{count(int(np.sum(x.evaluated)))} of {count(np.size(x.loss))}" for x in interpolated]
        sentences.append(
            f"{_listed(share)} points were evaluated, the others are interpolated, with an estimated error of at most "
            f"{number(100 * worst, 2)}% of the range."
        )
    holes = sum(int((~np.isfinite(np.asarray(x.loss, dtype=float))).sum()) for _, x in found)
    if holes:
        sentences.append(f"Gray: {counted(holes, 'point')} where the loss is not finite.")
    return " ".join(s for s in sentences if s)


def _line(found: Found, quantity: str, scale: str) -> str:
    told = f"{_split(found).capitalize()} {quantity.replace('_', ' ')} at θ + α d; dots: the checkpoints, at α = 0."
    return f"{told} {_directions([d for _, x in found if (d := x.direction)])}".strip()


def _eigenvalues(found: Found, quantity: str, scale: str) -> str:
    _, e = found[0]
    told = (
        f"Eigenvalues of the {e.operator} of the {_split(found)} loss, from each end of the spectrum (filled: largest, "
    )
    told += "hollow: smallest); bars are residuals ‖Av − λv‖, crosses did not converge."
    top = [
        f"{uncertain(float(np.max(x.values)), float(x.residuals[int(np.argmax(x.values))]), 5)[0]}"
        for _, x in found
        if np.size(x.values) and np.isfinite(np.asarray(x.values, dtype=float)).all()
    ]
    return told + (f" Largest: {_listed(top)}." if top else "")


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
    said, happened = ("their probability", "how often the label is there") if labels else ("confidence", "accuracy")
    return (
        f"Reliability on {_range(sizes)} {_split(found)} {'labels' if labels else 'predictions'} in "
        f"{len(found[0][1].counts)} bins of {said}: {happened}, with Clopper-Pearson 95% intervals; gray: what a "
        "calibrated model with these counts would show "
        f"(95%). ECE [95% interval]: {_listed(told)}."
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
            f"interval]: {_listed(told)}."
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
        + f"Highest barrier{'' if len(told) == 1 else 's'}: {_listed(told)}."
    )


def _connectivity(found: Found, quantity: str, scale: str) -> str:
    aligned = any(x.align != "none" for _, x in found)
    told = [f"{spread(x.barrier[0], x.barrier_stderr[0], x.pairs())} ({x.splits[0]})" for _, x in found]
    return (
        f"Barriers between each two checkpoints along {_ways(found)}: the largest height of the loss above the line "
        f"between its ends{', after permuting units' if aligned else ''}, ± standard error. They are {_listed(told)}."
    )


def _ways(found: Found) -> str:
    names = {"linear": "a straight path", "bezier": "a trained Bezier curve"}
    return _listed(list(dict.fromkeys(names.get(x.curve, f"a {x.curve} curve") for _, x in found)))


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
    return f"Estimates of the {name} from single draws (dots), their mean and its standard error: {_listed(told)}."


def _sharpness(found: Found, quantity: str, scale: str) -> str:
    return (
        f"Rise of the {_split(found)} loss in a neighborhood of the weights, ± standard error over batches or draws; "
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
        _listed(
            [
                f"{name} {' '.join(interval(float(getattr(x, key)), *_ends_of(getattr(x, key + '_interval'))))}"
                for name, key in (("IoU", "mean_iou"), ("F1", "mean_f1"), ("recall", "balanced_accuracy"))
            ]
        )
        for _, x in found
    ]
    return (
        f"Intersection over union (IoU) of each class on {_split(found)} data, with 95% intervals over the samples. "
        f"Means over the classes [95% interval]: {'; '.join(means)}."
    )


def _quantile_coverage(found: Found, quantity: str, scale: str) -> str:
    told = []
    for _, x in found:
        p = float(x.calibration_p_value)
        told.append(number(float(x.coverage_error), 2) + (f" (p = {number(p, 2)})" if np.isfinite(p) else ""))
    return (
        f"How often {_split(found)} targets lie at or below each predicted quantile, against its level, with 95% "
        "intervals over the samples; dashed: quantiles that are right. Mean distance from them (p: that right ones "
        f"show frequencies so far off): {_listed(told)}."
    )


def _sample_scores(found: Found, quantity: str, scale: str) -> str:
    return (
        f"How often the model is wrong on {_split(found)} data where it answers only the share of which it is surest, "
        "with pointwise Clopper-Pearson 95% intervals; the right end is the plain error rate."
    )


def _layers(found: Found, quantity: str, scale: str) -> str:
    wholes = [number(float(x.whole)) for _, x in found]
    return (
        f"Largest eigenvalue of each layer's own diagonal block of the {found[0][1].operator} of the {_split(found)} "
        "loss, in the model's order from the top; bars are residuals ‖Av − λv‖. Dashed: the largest eigenvalue of all "
        f"layers together, {_listed(wholes)}."
    )


def _diagonal(found: Found, quantity: str, scale: str) -> str:
    return (
        f"Sum of the diagonal of the Hessian of the {_split(found)} loss over each parameter tensor, in the model's "
        "order from the top, estimated from random vectors; bars are 95% intervals over these."
    )


def _eigenvalue_map(found: Found, quantity: str, scale: str) -> str:
    what = {"largest": "λ max", "smallest": "λ min"}.get(quantity, "|λ min / λ max|")
    return (
        f"{what} of the Hessian of the {_split(found)} loss at θ + α d₁ + β d₂ around the checkpoint (marked)"
        + (": near 0 the loss is as good as convex" if what.startswith("|") else "")
        + ("; one color scale for all." if len(found) > 1 else ".")
        + (" Crosses: not converged." if not all(np.all(x.converged) for _, x in found) else "")
    )


def _basin(found: Found, quantity: str, scale: str) -> str:
    rays = sorted({len(x.ray) for _, x in found})
    widths = [
        _listed(
            [
                f"{' ± '.join(t for t in uncertain(float(w), float(e)) if t)} at a rise of {given(float(r))}"
                for r, w, e in zip(x.rise, x.width, x.width_stderr, strict=True)
                if np.isfinite(w)
            ]
        )
        for _, x in found
    ]
    return (
        f"Rise of the {_split(found)} loss along {_range(rays)} random lines through the weights, of which a step of 1 "
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
        f"{symbol(str(x.names[0]))} measured on disjoint parts of the {_split(found)} samples, against their size: "
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


# ------------------------------------------------------------------------------------------------ methods


def _plane_methods(found: Found) -> str:
    _, p = found[0]
    a, b = np.asarray(p.alpha), np.asarray(p.beta)
    sizes = sorted({int(x.samples) for _, x in found if x.samples})
    told = f"The loss was evaluated on a {len(a)} × {len(b)} grid of α in {_ends(a)} and β in {_ends(b)}"
    told += f", on {_range(sizes)} {p.split} samples drawn once" if sizes else ""
    told += ", around the checkpoint's weights θ."
    how = " ".join(x for x in (told, _directions([d for d in p.directions if d], filters=True)) if x)
    cosines = [number(float(x.cosine), 2) for _, x in found if np.isfinite(float(x.cosine))]
    how += f" Cosine of the angle between the directions: {_listed(cosines)}." if cosines else ""
    exact = all(float(x.center_loss) == float(x.checkpoint_loss) for _, x in found)
    how += " The loss at the center equals the checkpoint's own to the last bit." if exact else ""
    if p.batchnorm != "none":
        how += f" Running statistics of BatchNorm: {p.batchnorm}."
    return how


def _line_methods(found: Found) -> str:
    _, x = found[0]
    return (
        f"The loss was evaluated at {len(x.alpha)} points of α in {_ends(np.asarray(x.alpha))}, on "
        f"{count(int(x.samples))} {x.split} samples drawn once. {_directions([x.direction], filters=True)}"
    ).strip()


def _eigen_methods(found: Found) -> str:
    _, e = found[0]
    s = e.settings
    told = (
        f"Eigenvalues of the {e.operator} ({count(int(e.parameters))} parameters) were computed by Lanczos iteration "
    )
    told += r"\cite{lanczos1950iteration} with full reorthogonalization"
    told += f" on {count(int(s['samples']))} {e.split} samples" if s.get("samples") else ""
    told += f" to a relative residual of {given(float(s['tol']))}" if s.get("tol") else ""
    return told + f", with {_range(sorted({int(x.products) for _, x in found}))} Hessian-vector products."


def _density_methods(found: Found) -> str:
    _, d = found[0]
    return (
        r"The density was estimated by stochastic Lanczos quadrature \cite{ghorbani2019investigation}"
        f" with {len(d.nodes)} random vectors{_with(d)}."
    )


def _trace_methods(found: Found) -> str:
    _, t = found[0]
    keys = {"hutch++": "meyer2021hutchpp", "xtrace": "epperly2024xtrace"}
    key = keys.get(str(t.method).lower(), "hutchinson1990stochastic")
    return (
        f"The trace was estimated by {t.method or 'Hutchinson'} \\cite{{{key}}} from {len(np.ravel(t.samples))} draws "
        f"({count(int(t.products))} Hessian-vector products)."
    )


def _sharpness_methods(found: Found) -> str:
    _, s = found[0]
    kinds = [f"{n} (ρ = {given(float(r))})" for n, r in zip(s.names, np.ravel(s.rho), strict=True)]
    return (
        f"Sharpness was measured as {_listed(kinds)} on {s.split} data{_with(s)}, in the conventions of "
        r"\cite{andriushchenko2023modern}."
    )


def _calibration_methods(found: Found) -> str:
    _, c = found[0]
    width = "equal mass" if c.settings.get("mass") == "equal" else "equal width"
    of = "each label's probability" if of_labels(c) else "the top label's confidence"
    return (
        f"ECE \\cite{{naeini2015obtaining,guo2017calibration}} uses {len(c.counts)} bins of {width} of {of}, "
        "in float64; its 95% interval is for the population's value at these bins. Bars are Clopper-"
        r"Pearson intervals \cite{clopper1934use}, bands are consistency bands \cite{brocker2007increasing}."
    )


def _recalibration_methods(found: Found) -> str:
    _, c = found[0]
    how = "by cross-fitting" if c.folds else "on one part of the predictions"
    return (
        f"{str(c.method).capitalize()} scaling \\cite{{guo2017calibration}} was fitted {how} and judged on what its "
        "fit has not seen; changes are paired, with 95% intervals."
    )


def _path_methods(found: Found) -> str:
    keys = {"frankle2020linear" if x.curve == "linear" else "garipov2018loss": None for _, x in found}
    points, sizes = [len(x.position) for _, x in found], [int(n) for _, x in found for n in x.samples]
    told = (
        f"{'The path' if len(found) == 1 else 'Each path'} \\cite{{{','.join(keys)}}} was evaluated at "
        f"{_range(points)} points on {_range(sizes)} samples; standard errors of differences are paired."
    )
    return told + _prepared(found, "each state but the first", "the one before it")


def _connectivity_methods(found: Found) -> str:
    keys = {"frankle2020linear" if x.curve == "linear" else "garipov2018loss": None for _, x in found}
    points, sizes = [int(x.settings["points"]) for _, x in found], [int(n) for _, x in found for n in x.samples]
    told = (
        f"The path \\cite{{{','.join(keys)}}} between each two checkpoints was evaluated at {_range(points)} points on "
        f"{_range(sizes)} samples; standard errors of barriers are paired."
    )
    return told + _prepared(found, "one checkpoint of each pair", "the other one")


def _prepared(found: Found, which: str, to: str) -> str:
    """Say how units were matched, and which statistics BatchNorm had along the paths."""
    told = ""
    aligned = sorted({x.align for _, x in found} - {"none"})
    if aligned:
        told += f" Hidden units of {which} were permuted beforehand to fit those of {to}, by "
        told += f"{_listed([_MATCHING[name] for name in aligned])}."
    statistics = sorted({x.batchnorm for _, x in found} - {"none"})
    if statistics:
        told += f" BatchNorm's running statistics along it: {_listed(statistics)}"
        told += r" \cite{jordan2023repair}." if aligned and "recompute" in statistics else "."
    return told


_MATCHING = {
    "weights": r"matching their weights \cite{ainsworth2023git}",
    "activations": r"matching their activations \cite{ainsworth2023git,jordan2023repair}",
}


_METHODS: dict[str, Callable[[Found], str]] = {
    "plane": _plane_methods,
    "line": _line_methods,
    "eigenvalues": _eigen_methods,
    "density": _density_methods,
    "trace": _trace_methods,
    "sharpness": _sharpness_methods,
    "calibration": _calibration_methods,
    "recalibration": _recalibration_methods,
    "path": _path_methods,
    "connectivity": _connectivity_methods,
}


def _software(found: Found) -> str:
    versions: dict[str, Any] = {}
    for run, _ in found:
        held = run.about.get("versions")
        versions.update(held if isinstance(held, dict) else {})
    torch = f" and PyTorch {versions['torch']}" if versions.get("torch") else ""
    told = f"Measured with landscape-probe {versions.get('landscape-probe', __version__)} \\cite{{landscape-probe}}"
    told += f"{torch} \\cite{{paszke2019pytorch}}" if torch else ""
    facts = []
    for key, words in (("dtype", "in {}"), ("device", "on {}"), ("seed", "seed {}")):
        values = sorted({str(r.about[key]) for r, _ in found if r.about.get(key) not in (None, "")})
        if values:
            facts.append(words.format(" and ".join(values)))
    return f"{told}{', ' if facts else ''}{', '.join(facts)}."


def _measured_with(found: Found) -> str:
    # How the products were made is the machine's matter: the numbers don't depend on it.
    told = {k: v for k, v in found[0][1].settings.items() if k != "strategy" and v not in (None, "", [])}
    return f"Settings: {', '.join(f'{k} {_short(v)}' for k, v in told.items())}." if told else ""


def _with(result: Result) -> str:
    n = result.settings.get("samples")
    return f" on {count(int(n))} samples" if isinstance(n, int | float) else ""


def _directions(names: Sequence[str], filters: bool = False) -> str:
    named = list(dict.fromkeys(names))
    if not named:
        return ""
    cite = r" \cite{li2018visualizing}" if filters and any("filter" in n for n in named) else ""
    parts = [n.partition(", seed ") for n in named]
    if len(named) > 1 and len({kind for kind, _, _ in parts}) == 1 and all(seed for *_, seed in parts):
        return f"Directions: {parts[0][0]}, seeds {_listed([seed for *_, seed in parts])}{cite}."
    return f"Direction{'s' if len(names) > 1 else ''}: {_listed(named)}{cite}."


def _split(found: Found) -> str:
    splits = sorted({str(getattr(x, "split", "") or "train") for _, x in found})
    return " and ".join({"train": "training"}.get(s, s) for s in splits)


def _range(values: Sequence[int]) -> str:
    if not values:
        return "–"
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def _ends(axis: np.ndarray) -> str:
    return f"[{given(float(axis.min()))}, {given(float(axis.max()))}]"


def _listed(texts: Sequence[str]) -> str:
    texts = [str(t) for t in texts]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return given(value) if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------ training records


def training(found: Sequence[tuple[Run, Any]], panels: Sequence[Panel]) -> tuple[str, str, list[str]]:
    """Return caption, methods and what they cite, for the figure of these panels of training records."""
    last = [
        [int(s.steps[-1]) for p in panels if (s := h.get(p.quantity)) is not None and len(s.steps)] for _, h in found
    ]
    steps = [max(ends) for ends in last if ends]
    told = f"The training{'' if len(found) == 1 else 's'}"
    told += f" over {_range(steps)} optimizer steps" if steps else ""
    told += f": {', '.join(p.words for p in panels)}."
    if any(p.averaged(h) for _, h in found for p in panels):
        told += " Faint: each step; bold: running means over 2% of the steps."
    moved = [r.name for r, h in found if preconditioned(h)] if LAMBDA_MAX in panels else []
    if moved:
        of = "" if len(moved) == len(found) else f" for {_listed(moved)}"
        told += f" λ max is that of the preconditioned Hessian{of}."
    kinds: dict[str, int] = {}
    for _, history in found:
        for event in history.events:
            if event.kind in ("skipped_step", "not_finite", "spike"):
                kinds[event.kind] = kinds.get(event.kind, 0) + 1
    if kinds:
        marked = [f"{n} × {k.replace('_', ' ')}" for k, n in kinds.items()]
        told += f" Marked: {_listed(marked)}."
    if len(found) > 1:
        told += f" Runs: {_listed([r.name for r, _ in found])}."
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
        how += f", to a residual of at most {_listed([f'{100 * t:g}%' for t in tols])}" if tols else ""
        how += f"; stability thresholds as in \\cite{{{','.join(keys)}}}. "
    return told, how + _software(found), keys
