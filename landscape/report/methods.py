"""The paragraph for a paper's methods section, from the settings that results were measured with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import __version__
from ..results import Result, kind_of
from .figures.calibration import of_labels
from .numbers import count, given, number
from .wording import Found, directions, ends, listed, spanned


def methods(found: Found) -> str:
    """Return a paragraph for the methods section, from the settings that the results were measured with."""
    kind = kind_of(found[0][1])
    say = _METHODS.get(kind)
    parts = [say(found)] if say else [_measured_with(found)]
    parts.append(software(found))
    return " ".join(p for p in parts if p)


def _plane_methods(found: Found) -> str:
    _, p = found[0]
    a, b = np.asarray(p.alpha), np.asarray(p.beta)
    sizes = sorted({int(x.samples) for _, x in found if x.samples})
    told = f"The loss was evaluated on a {len(a)} × {len(b)} grid of α in {ends(a)} and β in {ends(b)}"
    told += f", on {spanned(sizes)} {p.split} samples drawn once" if sizes else ""
    told += ", around the checkpoint's weights θ."
    how = " ".join(x for x in (told, directions([d for d in p.directions if d], filters=True)) if x)
    cosines = [number(float(x.cosine), 2) for _, x in found if np.isfinite(float(x.cosine))]
    how += f" Cosine of the angle between the directions: {listed(cosines)}." if cosines else ""
    exact = all(float(x.center_loss) == float(x.checkpoint_loss) for _, x in found)
    how += " The loss at the center equals the checkpoint's own to the last bit." if exact else ""
    if p.batchnorm != "none":
        how += f" Running statistics of BatchNorm: {p.batchnorm}."
    return how


def _line_methods(found: Found) -> str:
    _, x = found[0]
    return (
        f"The loss was evaluated at {len(x.alpha)} points of α in {ends(np.asarray(x.alpha))}, on "
        f"{count(int(x.samples))} {x.split} samples drawn once. {directions([x.direction], filters=True)}"
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
    return told + f", with {spanned(sorted({int(x.products) for _, x in found}))} Hessian-vector products."


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
        f"Sharpness was measured as {listed(kinds)} on {s.split} data{_with(s)}, in the conventions of "
        r"\cite{andriushchenko2023modern}."
    )


def _calibration_methods(found: Found) -> str:
    _, c = found[0]
    width = "equal mass" if c.settings.get("mass") == "equal" else "equal width"
    effective = ", at the effective size of dependent predictions \\cite{korn1998confidence}" if c.groups else ""
    of = "each label's probability" if of_labels(c) else "the top label's confidence"
    return (
        f"ECE \\cite{{naeini2015obtaining,guo2017calibration}} uses {len(c.counts)} bins of {width} of {of}, "
        "in float64; its 95% interval is for the population's value at these bins. Bars are Clopper-"
        f"Pearson intervals \\cite{{clopper1934use}}{effective}, "
        r"bands are consistency bands \cite{brocker2007increasing}."
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
        f"{spanned(points)} points on {spanned(sizes)} samples; standard errors of differences are paired."
    )
    return told + _prepared(found, "each state but the first", "the one before it")


def _connectivity_methods(found: Found) -> str:
    keys = {"frankle2020linear" if x.curve == "linear" else "garipov2018loss": None for _, x in found}
    points, sizes = [int(x.settings["points"]) for _, x in found], [int(n) for _, x in found for n in x.samples]
    told = (
        f"The path \\cite{{{','.join(keys)}}} between each two checkpoints was evaluated at {spanned(points)} points "
        f"on {spanned(sizes)} samples; standard errors of barriers are paired."
    )
    return told + _prepared(found, "one checkpoint of each pair", "the other one")


def _prepared(found: Found, which: str, to: str) -> str:
    """Say how units were matched, and which statistics BatchNorm had along the paths."""
    told = ""
    aligned = sorted({x.align for _, x in found} - {"none"})
    if aligned:
        told += f" Hidden units of {which} were permuted beforehand to fit those of {to}, by "
        told += f"{listed([_MATCHING[name] for name in aligned])}."
    statistics = sorted({x.batchnorm for _, x in found} - {"none"})
    if statistics:
        told += f" BatchNorm's running statistics along it: {listed(statistics)}"
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


def software(found: Found) -> str:
    """Say with which versions, on which device and with which seed was measured."""
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


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return given(value) if isinstance(value, float) else str(value)
