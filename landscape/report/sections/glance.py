"""What the data show, in a few sentences, each with how sure it is. It ranks numbers; it judges no run."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Notes, Section
from ..measures import measures
from ..numbers import number
from ..runs import Run
from ..value import Measure, Value
from . import by_task, section
from .checks import tally
from .seeds import mean_value, of_settings, shared_name

#: What is said about, and in which words its two ends are named.
SPOKEN = (
    ("test_accuracy", "Test accuracy", "highest", "lowest"),
    ("lambda_max", "λ max", "largest", "smallest"),
    ("ece", "Calibration error (ECE)", "largest", "smallest"),
)
#: What has the units of the loss.
UNITS = frozenset({"lambda_max"})
SINGLE_RUNS = (
    "Intervals cover the samples and random draws of the measuring, not the training: with another seed a run lands "
    "elsewhere, and one run of a kind can't say how far."
)
OVER_SEEDS = (
    "Each setting is the mean of its seeds; the intervals say what another seed would change, and with two or three "
    "seeds they are wide. The ends of many settings lie apart by chance, too."
)


@section(order=20)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the statements, and how the checks went."""
    items: list[tuple[str, str]] = []
    groups = by_task(runs)
    repeated = False
    for task, members in groups.items():
        known = {m.key: m for m in measures(members)}
        where = f"{task or 'not named'}: " if len(groups) > 1 else ""
        kinds = of_settings(members)
        over = any(len(kind) > 1 for kind in kinds)
        repeated |= over
        for key, words, top, bottom in SPOKEN:
            read = _over_seeds(known[key], kinds) if over else [(r.name, known[key].read(r)) for r in members]
            said = _statement(read, words, top, bottom)
            if said and key in UNITS and len({str(r.settings.get("loss")) for r in members}) > 1:
                said += f" The losses differ: where each run was measured with its own, {words} has different units."
            if said:
                items.append(("info", where + said))
    if repeated:
        items.append(("info", OVER_SEEDS))
    elif len(runs) > 1:
        items.append(("info", SINGLE_RUNS))
    passed, warned, failed = tally(runs)
    if passed + warned + failed:
        level = "fail" if failed else "warn" if warned else "pass"
        text = f"Self-checks: {passed} passed, {warned} to look at, {failed} failed"
        items.append((level, text + (": see “Is it right?”." if warned or failed else ".")))
    return Section("glance", "At a glance", (Notes(items),), beside_title=True) if items else None


def _over_seeds(measure: Measure, kinds: Sequence[Sequence[Run]]) -> list[tuple[str, Value]]:
    found = []
    for runs in kinds:
        value, mean = mean_value(measure, runs)
        many = f", mean of {mean.seeds} seeds" if mean.seeds > 1 else ", one seed"
        found.append((shared_name(runs) + many, value))
    return found


def _statement(read: Sequence[tuple[str, Value]], words: str, top: str, bottom: str) -> str:
    known = sorted(((name, v) for name, v in read if v.known), key=lambda item: item[1].number)
    if not known:
        return ""
    if len(known) == 1:
        name, value = known[0]
        return f"{words}: {_text(value)} ({name})."
    (low_name, low), (high_name, high) = known[0], known[-1]
    said = f"{words}: {top} {_text(high)} ({high_name}), {bottom} {_text(low)} ({low_name})"
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
        return "one of them has no interval"
    return "their 95% intervals overlap" if high.low <= low.high else "their 95% intervals do not overlap"
