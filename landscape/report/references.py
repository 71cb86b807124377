"""What to cite for a figure: the papers behind each kind of result, as BibTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from .. import __version__
from ..results import Result, kind_of

#: Kind of result -> keys in references.bib of what its numbers are made by; the methods of a kind are told apart below.
BY_KIND: dict[str, tuple[str, ...]] = {
    "plane": ("li2018visualizing",),
    "line": ("li2018visualizing",),
    "trajectory": ("li2018visualizing",),
    "eigenvalue_map": ("li2018visualizing", "lanczos1950iteration"),
    "basin": ("li2018visualizing",),
    "path": ("frankle2020linear",),
    "connectivity": ("frankle2020linear",),
    "eigenvalues": ("lanczos1950iteration",),
    "layers": ("lanczos1950iteration",),
    "density": ("ghorbani2019investigation", "lanczos1950iteration"),
    "trace": ("hutchinson1990stochastic",),
    "sharpness": ("andriushchenko2023modern", "dinh2017sharp"),
    "scaled_curvature": ("andriushchenko2023modern", "dinh2017sharp"),
    "stability": ("cohen2021gradient",),
    "reference": ("yao2020pyhessian",),
    "calibration": ("naeini2015obtaining", "guo2017calibration", "brocker2007increasing", "clopper1934use"),
    "recalibration": ("guo2017calibration", "naeini2015obtaining", "brocker2007increasing", "clopper1934use"),
    "training": ("cohen2021gradient", "mccandlish2018empirical"),
}
_METHODS = {"hutch++": "meyer2021hutchpp", "xtrace": "epperly2024xtrace"}
_SHARPNESS = {"sam": "foret2021sam", "adaptive": "kwon2021asam", "asam": "kwon2021asam", "keskar": "keskar2017large"}


def cited(results: Iterable[Result], *more: str) -> list[str]:
    """Return the keys of what these results rest on, each once, our own program and PyTorch last."""
    keys: dict[str, None] = {}
    for result in results:
        keys.update(dict.fromkeys(_of(result)))
    keys.update(dict.fromkeys(more))
    return [*keys, "landscape-probe", "paszke2019pytorch"]


def _of(result: Any) -> Iterable[str]:
    kind = kind_of(result)
    method = str(getattr(result, "method", "") or "").lower()
    if kind == "trace" and method in _METHODS:
        yield _METHODS[method]
        return
    if kind in ("path", "connectivity"):
        yield from _of_path(result)
        return
    for name in getattr(result, "names", ()) if kind == "sharpness" else ():
        yield from (key for word, key in _SHARPNESS.items() if str(name).startswith(word))
    if kind == "calibration" and result.groups:
        yield "korn1998confidence"
    yield from BY_KIND.get(kind, ())


def _of_path(path: Any) -> Iterable[str]:
    """Yield the papers of the curve, and of the alignment of its ends where there was one."""
    yield from BY_KIND["path"] if path.curve == "linear" else ("garipov2018loss",)
    if path.align != "none":
        yield from ("ainsworth2023git", "jordan2023repair")


def bibtex(keys: Iterable[str]) -> str:
    """Return the entries of these keys as BibTeX, in order."""
    entries = _entries()
    return "\n\n".join(entries[key].replace("VERSION", __version__) for key in dict.fromkeys(keys)) + "\n"


@cache
def _entries() -> dict[str, str]:
    text = resources.files("landscape.report").joinpath("references.bib").read_text("utf-8")
    found = re.findall(r"^@\w+\{([^,]+),\n.*?^\}", text, flags=re.MULTILINE | re.DOTALL)
    bodies = re.findall(r"^@\w+\{[^,]+,\n.*?^\}", text, flags=re.MULTILINE | re.DOTALL)
    return dict(zip(found, bodies, strict=True))
