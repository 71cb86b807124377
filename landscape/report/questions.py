"""Is it right? The questions that the self-checks of results and records answer, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..archive.schema import lost_by_damage
from ..counted import counted
from ..results import Check, Level
from .numbers import count
from .runs import Run, trainings


@dataclass(frozen=True)
class Question:
    """What is asked of the numbers, by which checks it is answered, and what to do where the answer is no."""

    title: str
    asks: str
    do: str
    checks: frozenset[str] = frozenset()


@dataclass
class Answers:
    """How often a question was answered well, with a warning, or badly; the runs that were asked; the worst answer."""

    question: Question
    found: dict[Level, int] = field(default_factory=lambda: {"pass": 0, "warn": 0, "fail": 0})
    runs: set[int] = field(default_factory=set)

    @property
    def level(self) -> Level | None:
        """The worst answer; None where nobody asked."""
        return next((level for level in ("fail", "warn", "pass") if self.found[level]), None)


def _named(*names: str) -> frozenset[str]:
    return frozenset(names)


#: In the order of the page. A check that no question names belongs to the last one.
QUESTIONS = (
    Question(
        "Readable",
        "Could every archive and every result be read, and did every measurement end?",
        "Measure again what failed (landscape probe --append); a record is read as far as it goes.",
        _named("readable", "status", "measured"),
    ),
    Question(
        "Deterministic",
        "Do two passes over the same data give the same loss?",
        "Switch off dropout and random augmentation in evaluation, or take deterministic kernels.",
        _named("deterministic", "objective", "autocast", "batchnorm"),
    ),
    Question(
        "Weights of batches",
        "Does each batch count by what its mean was divided by?",
        "Say the loss's reduction in the task, as the message tells.",
        _named("weights", "mean", "unequal batches"),
    ),
    Question(
        "Centre loss",
        "Is the loss in the middle of each picture, at the ends of each path, the checkpoint's own?",
        "Don't use a picture that fails: report it, with the check's message.",
        _named("center", "center loss", "ends", "gap"),
    ),
    Question(
        "Residuals",
        "Did eigenvalues and estimates converge, and was a repeated one not missed?",
        "Allow more products or a looser tolerance: landscape list measurements names the options.",
        _named("convergence", "converged", "residuals", "multiplicity", "restarts", "precision", "reached", "captured"),
    ),
    Question(
        "Products",
        "Do the derivatives agree with finite differences and with a second way?",
        "Don't use curvature that fails: a layer's backward is not differentiable, or the precision is too low.",
        _named("product", "finite differences", "second opinion", "agreement", "slope", "bend", "directions"),
    ),
    Question(
        "Subsampling error",
        "How far would other samples move the number?",
        "Take more samples (--max-samples): a largest eigenvalue of few samples is biased upward.",
        _named("sampling", "bias", "samples"),
    ),
    Question(
        "Interpolation error",
        "How far are points that were not evaluated from what they would have been?",
        "Lower --tol, or evaluate the whole grid.",
        _named("interpolation", "resolution", "grid", "filled"),
    ),
    Question(
        "Finite numbers",
        "Are all losses and gradients finite?",
        "Take a smaller span or learning rate, or a higher precision.",
        _named("finite", "gradients"),
    ),
    Question(
        "Skipped steps",
        "Was every step of the training taken?",
        "A few under a gradient scaler are usual at the beginning; many mean that the loss overflows.",
        _named("skipped steps"),
    ),
    Question(
        "Lost rows",
        "Is every row of the training's record in the archive?",
        "Make room on the disk, or write to a local one; what a damaged file lost is in a copy of it, or gone.",
        _named("lost rows", "probes"),
    ),
)
OTHER = Question(
    "Other checks", "Everything else that the measurements check of themselves.", "See the message of each."
)

_STATUS = {
    "failed": "the run that wrote this archive failed; what it had measured is here; run it again with --append",
    "interrupted": "the run was interrupted; what it had measured is here; run it again with --append",
    "running": "the run is still going on, or was killed; what it had written is here",
    "killed": "the training was killed; its record is here up to its last flush, and can be resumed",
}


def every_check(runs: Sequence[Run]) -> Iterator[tuple[Run, str, Check]]:
    """Yield (run, where, check) of all that was checked: archives, results and records of trainings."""
    for run in runs:
        yield from ((run, *found) for found in _of_results(run))
    for run in {r.archive: r for r in reversed(runs) if r.salvaged}.values():  # each archive once, of its first run
        records = [r.recorded for r in trainings(runs) if r.archive == run.archive]
        told = {e.message for kept in records for e in kept.events.get("lost_rows", ())}  # by the record's own check
        said = [x for x in run.salvaged if lost_by_damage(x.removeprefix("lost: ")) not in told]
        yield run, "archive", Check("readable", "warn", "; ".join(said))
    for run in trainings(runs):
        yield from ((run, "training", check) for check in _of_record(run))


def _of_results(run: Run) -> Iterator[tuple[str, Check]]:
    if run.status not in ("complete", ""):
        level = "warn" if run.status in ("running", "killed") else "fail"
        yield "archive", Check("status", level, _STATUS.get(run.status, run.status))
    for problem in run.problems:
        yield "archive", Check("readable", "fail", problem)
    for kind, result in run.every():
        if result.status == "failed" and not any(c.level == "fail" for c in result.checks):
            reason = result.warnings[0] if result.warnings else "the measurement failed; measure it again"
            yield kind, Check("status", "fail", reason)
        elif result.status == "partial":
            reason = result.warnings[0] if result.warnings else "stopped early: part of it was measured"
            yield kind, Check("status", "warn", reason)
        yield from ((kind, check) for check in result.checks)


def _of_record(run: Run) -> Iterator[Check]:
    """Yield what a record says of itself."""
    kept = run.recorded
    if not kept:
        return
    steps = kept.last_step
    skipped, bad = kept.counted.get("skipped_step", 0), kept.counted.get("not_finite", 0)
    yield Check(
        "skipped steps",
        "warn" if skipped else "pass",
        f"{count(skipped)} of {count(steps + skipped)} steps were skipped" if skipped else "no step was skipped",
        skipped / max(steps + skipped, 1),
        0.0,
    )
    if bad or any(name.startswith("gradient_norm") for name in (*kept.curves, *kept.maps)):
        yield _gradients(bad)
    lost = kept.counted.get("lost_rows", 0)
    if lost:
        words = "; ".join(dict.fromkeys(e.message for e in kept.events["lost_rows"] if e.message))
        yield Check("lost rows", "warn", words or "rows were lost", float(lost), 0.0)
    elif kept.torn and run.status != "running":  # a block that is being written is no loss
        torn = counted(kept.torn, "byte at the end was", "bytes at the end were")
        text = f"{torn} cut off by the kill: less than one flush"
        yield Check("lost rows", "warn", text, float(kept.torn), 0.0)
    else:
        yield Check("lost rows", "pass", "no row was lost", 0.0, 0.0)
    failed = kept.counted.get("probe_failed", 0)
    if failed:
        words = "; ".join(dict.fromkeys(e.message for e in kept.events["probe_failed"] if e.message))
        yield Check("probes", "warn", f"{counted(failed, 'time')} a probe failed: {words}", float(failed), 0.0)
    for problem in kept.problems:
        yield Check("readable", "fail", problem)


def _gradients(bad: int) -> Check:
    said = f"{counted(bad, 'step')} with a gradient that is not finite" if bad else "every recorded gradient is finite"
    return Check("gradients", "warn" if bad else "pass", said, float(bad), 0.0)


def answers(found: Sequence[tuple[Run, str, Check]], runs: Sequence[Run]) -> list[Answers]:
    """Return how each question was answered, in order; the last is left out where nothing falls to it."""
    by_name = {name: i for i, q in enumerate(QUESTIONS) for name in q.checks}
    listed = [Answers(q) for q in (*QUESTIONS, OTHER)]
    for run, _, check in found:
        answer = listed[by_name.get(_base(check.name, by_name), len(QUESTIONS))]
        answer.found[check.level] += 1
        answer.runs.add(run.index)
    # A run that was read from end to end has no check that says so.
    readable = listed[0]
    sound = [r.index for r in runs if r.index not in readable.runs]
    readable.found["pass"] += len(sound)
    readable.runs.update(sound)
    return listed if listed[-1].runs else listed[:-1]


def _base(name: str, known: dict[str, int]) -> str:
    """Return a check's name without what a measurement appends to it ("convergence, smallest")."""
    if name in known:
        return name
    return next((n for n in known if name.startswith((f"{n} ", f"{n},", f"{n}:"))), name)
