"""One checkpoint's numbers as a few lines of text, each with its uncertainty, in the columns of the report's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.report.measures import measures
from landscape.report.numbers import interval, number, uncertain
from landscape.report.runs import make_run
from landscape.results import Result, kind_of

from .bars import reliability
from .output import table
from .told import WORDS

#: Kinds whose numbers stand in the columns of the report's table.
IN_COLUMNS = {"performance", "eigenvalues", "trace", "sharpness", "scaled_curvature", "calibration", "sample_scores"}
#: Arrays up to this length are written out, longer ones by their range (chosen by us: one line of a terminal).
WRITTEN_OUT = 5


def summarize(results: Mapping[str, Result], rows: Sequence[Sequence[str]] = ()) -> str:
    """Return the table of what was measured, kinds of the user's own included; then the rows given."""
    good = [r for r in results.values() if r.status != "failed"]
    groups: dict[str, list[str]] = {}
    run = make_run("", good)
    for measure in measures([run]):
        value = measure.read(run)
        if value.known and measure.key != "stability_ratio":  # stability says it in its own words
            text = " ".join(part for part in value.text() if part)
            groups.setdefault(measure.group.lower(), []).append(f"{measure.label} {text}")
    for result in good:
        if kind_of(result) == "reference":
            groups.update(_comparisons(result))
        elif kind_of(result) not in IN_COLUMNS:
            own = {"plane": _surface, "line": _surface, "recalibration": _recalibration, **WORDS}
            found = own.get(kind_of(result), _numbers)(result)
            groups.setdefault(kind_of(result).replace("_", " "), []).extend(found)
    told = [[name, "   ".join(texts)] for name, texts in groups.items()]
    diagram = run.get("calibration")
    if diagram is not None:
        lines = reliability(diagram)
        told += [["reliability", lines[0]], ["", lines[1]]]
    return table([*told, *rows], indent=2)


def _comparisons(result: Any) -> dict[str, list[str]]:
    """Return a row for each comparison with another program, without the name that the row has already."""
    compared = {"product", *(f"{name}, {tool}" for name, tool in zip(result.names, result.tools, strict=True))}
    return {
        c.name: [c.message.removeprefix(f"{c.name.partition(',')[0]}: ") + ("" if c.level == "pass" else " (!)")]
        for c in result.checks
        if c.name in compared
    }


def _recalibration(result: Any) -> list[str]:
    before, after = (number(float(x), 3) for x in result.ece)
    change = " ".join(interval(float(result.ece_change), *(float(x) for x in result.ece_change_interval)))
    how = "cross-fitted" if result.folds else "on predictions that the fit has not seen"
    return [f"{result.method}, {how}", f"ECE {before} to {after}", f"change {change}"]


def _surface(result: Any) -> list[str]:
    loss = np.asarray(result.loss, dtype=float)
    finite = loss[np.isfinite(loss)]
    points = " × ".join(str(n) for n in loss.shape)
    found = [f"{points} points", f"center {number(float(result.center_loss))}"]
    if finite.size:
        found.append(f"from {number(float(finite.min()))} to {number(float(finite.max()))}")
    if finite.size < loss.size:
        found.append(f"{loss.size - finite.size} not finite")
    if kind_of(result) == "plane" and not np.all(result.evaluated):
        within = f"the others within an estimated {100 * float(result.error):.2g}% of the range"
        found.append(f"{int(np.sum(result.evaluated))} evaluated, {within}")
    return found


def _numbers(result: Result) -> list[str]:
    """Return the numbers of any result by its own description: scalars with uncertainty, short arrays, ranges."""
    variables = result.variables()
    beside = {name for v in variables.values() for name in (v.stderr, v.interval) if name}
    found = []
    for name, v in variables.items():
        if name in beside or v.coordinate or v.data.dtype.kind not in "biuf":
            continue
        if v.dims:
            found.append(f"{name} {_array(v.data)}")
        elif v.interval in variables:
            low, high = variables[v.interval].data.astype(float)
            found.append(f"{name} {' '.join(interval(float(v.data), float(low), float(high)))}")
        elif v.stderr in variables:
            text, error = uncertain(float(v.data), float(variables[v.stderr].data))
            found.append(f"{name} {text}" + (f" ± {error}" if error else ""))
        else:
            found.append(f"{name} {number(float(v.data))}")
    return found


def _array(data: np.ndarray) -> str:
    if data.size <= WRITTEN_OUT:
        return "[" + ", ".join(number(float(x)) for x in data.ravel()) + "]"
    finite = data[np.isfinite(data)]
    shape = " × ".join(str(n) for n in data.shape)
    return (
        f"({shape}) from {number(float(finite.min()))} to {number(float(finite.max()))}"
        if finite.size
        else f"({shape})"
    )
