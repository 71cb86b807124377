"""Is it right? Every self-check of every result, and every warning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...results import Level
from ..blocks import Block, Cell, Column, Folded, Notes, Row, Section, Table, Text
from ..numbers import given, number
from ..runs import Run
from . import section

_COLUMNS = (
    Column("How it went"),
    Column("Run", wide=True),
    Column("Measurement"),
    Column("Check"),
    Column("What was found, and what to do", wide=True),
    Column("value", numeric=True),
    Column("limit", numeric=True),
)


@section(order=100)
def build(runs: Sequence[Run]) -> Section:
    """Return what failed and what to look at, open; what passed, folded; then the warnings."""
    found = sorted(_rows(runs), key=lambda item: ("fail", "warn", "pass").index(item[0]))
    loud = [row for level, row in found if level != "pass"]
    quiet = [row for level, row in found if level == "pass"]
    passed, warned, failed = tally(runs)
    blocks: list[Block] = []
    if not found:
        blocks.append(
            Text("These archives hold no self-checks, so this page can't tell whether the numbers are right.")
        )
    else:
        level = "fail" if failed else "warn" if warned else "pass"
        blocks.append(Notes([(level, f"{passed} checks passed, {warned} to look at, {failed} failed.")]))
    if loud:
        blocks.append(Table("Failed, or to look at.", _COLUMNS, [("", loud)], sortable=len(loud) > 1))
    if quiet:
        table = Table("Passed.", _COLUMNS, [("", quiet)], sortable=len(quiet) > 1)
        blocks.append(Folded(f"{len(quiet)} checks that passed", (table,)))
    warnings = _warnings(runs)
    if warnings:
        blocks.append(Notes(warnings, "Warnings"))
    return Section("checks", "Is it right?", blocks)


def tally(runs: Sequence[Run]) -> tuple[int, int, int]:
    """Return how many checks passed, warn and failed, results that failed or can't be read among the last."""
    levels = [level for level, _ in _rows(runs)]
    return levels.count("pass"), levels.count("warn"), levels.count("fail")


def _rows(runs: Sequence[Run]) -> Iterator[tuple[Level, Row]]:
    for run in runs:
        if run.status not in ("complete", ""):
            yield _row(
                run,
                "warn" if run.status == "running" else "fail",
                "archive",
                "status",
                _STATUS.get(run.status, run.status),
            )
        for problem in run.problems:
            yield _row(run, "fail", "archive", "readable", problem)
        for kind, result in run.every():
            if result.status == "failed" and not any(c.level == "fail" for c in result.checks):
                reason = result.warnings[0] if result.warnings else "the measurement failed; measure it again"
                yield _row(run, "fail", kind, "status", reason)
            elif result.status == "partial":
                reason = result.warnings[0] if result.warnings else "stopped early: part of it was measured"
                yield _row(run, "warn", kind, "status", reason)
            for check in result.checks:
                yield _row(run, check.level, kind, check.name, check.message, check.value, check.limit)


_STATUS = {
    "failed": "the run that wrote this archive failed; what it had measured is here; run it again with --append",
    "interrupted": "the run was interrupted; what it had measured is here; run it again with --append",
    "running": "the run is still going on, or was killed; what it had written is here",
}


def _row(
    run: Run, level: Level, kind: str, name: str, message: str, value: float = float("nan"), limit: float = float("nan")
) -> tuple[Level, Row]:
    order = {"fail": 0.0, "warn": 1.0, "pass": 2.0}[level]
    cells = [
        Cell("", level=level, sort=order),
        Cell(run.name, sort=run.name),
        Cell(kind, sort=kind),
        Cell(name, sort=name),
        Cell(message),
        Cell(number(value, 3) if value == value else "–", sort=value if value == value else None),
        Cell(given(limit) if limit == limit else "–", sort=limit if limit == limit else None),
    ]
    return level, Row(cells, run.index, level)


def _warnings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return each warning once, with the measurements and the runs that it came from."""
    came: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for run in runs:
        for kind, result in run.every():
            for text in result.warnings:
                kinds, names = came.setdefault(text, ({}, {}))
                kinds[kind] = names[run.name] = None
    found = []
    for text, (kinds, names) in came.items():
        where = "every run" if len(names) == len(runs) > 1 else ", ".join(names)
        found.append(("warn", f"{text} ({', '.join(kinds)}; {where})"))
    return found
