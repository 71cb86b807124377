"""What the data show, in a few sentences, each with how sure it is. It ranks numbers; it judges no run."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Notes, Section
from ..measures import Measure, Value, measures
from ..numbers import number
from ..runs import Run
from . import by_task, section
from .checks import tally

#: What is said about, and in which words its two ends are named.
SPOKEN = (
    ("test_accuracy", "Test accuracy", "highest", "lowest"),
    ("lambda_max", "λ max", "largest", "smallest"),
    ("ece", "Calibration error (ECE)", "largest", "smallest"),
)


@section(order=20)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the statements, and how the checks went."""
    items: list[tuple[str, str]] = []
    groups = by_task(runs)
    for task, members in groups.items():
        known = {m.key: m for m in measures(members)}
        where = f"{task or 'not named'}: " if len(groups) > 1 else ""
        for key, words, top, bottom in SPOKEN:
            said = _statement(known[key], words, top, bottom, members)
            if said:
                items.append(("info", where + said))
    if len(runs) > 1:
        items.append(
            (
                "info",
                "Intervals cover the samples and random draws of the measuring, not the training: with another seed a "
                "run lands elsewhere, and one run of a kind can't say how far.",
            )
        )
    passed, warned, failed = tally(runs)
    if passed + warned + failed:
        level = "fail" if failed else "warn" if warned else "pass"
        text = f"Self-checks: {passed} passed, {warned} to look at, {failed} failed"
        items.append((level, text + (": see “Is it right?”." if warned or failed else ".")))
    return Section("glance", "At a glance", (Notes(items),), beside_title=True) if items else None


def _statement(measure: Measure, words: str, top: str, bottom: str, runs: Sequence[Run]) -> str:
    known = [(r, v) for r in runs if (v := measure.read(r)).known]
    if not known:
        return ""
    if len(known) == 1:
        run, value = known[0]
        return f"{words}: {_text(value)} ({run.name})."
    known.sort(key=lambda item: item[1].number)
    (low_run, low), (high_run, high) = known[0], known[-1]
    said = f"{words}: {top} {_text(high)} ({high_run.name}), {bottom} {_text(low)} ({low_run.name})"
    if low.number > 0 and high.number / low.number >= 2:
        said += f", a factor of {number(high.number / low.number, 2)}"
    return f"{said}; {_apart(low, high)}."


def _text(value: Value) -> str:
    return " ".join(value.text()).strip()


def _apart(low: Value, high: Value) -> str:
    if high.how == "residual":
        overlap = high.number - high.error <= low.number + low.error
        return "their residuals overlap" if overlap else "further apart than their residuals"
    if not (high.low == high.low and low.high == low.high):
        return "no interval is known"
    return "their 95% intervals overlap" if high.low <= low.high else "their 95% intervals do not overlap"
