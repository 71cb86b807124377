"""Is it right? Every self-check of every result and record, and every warning."""

from __future__ import annotations

from collections.abc import Sequence

from ...results import Check, Level
from ..blocks import Block, Cell, Column, Folded, Notes, Row, Section, Table, Text
from ..numbers import count, given, number
from ..questions import Answers, answers, every_check
from ..runs import MANY, Run
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
_ORDER: dict[Level, float] = {"fail": 0.0, "warn": 1.0, "pass": 2.0}

Found = tuple[Run, str, Check]


@section(order=100)
def build(runs: Sequence[Run]) -> Section:
    """Return the questions with their answers, what failed and what to look at, open; what passed, folded."""
    found = sorted(every_check(runs), key=lambda item: _ORDER[item[2].level])
    loud = [f for f in found if f[2].level != "pass"]
    quiet = [f for f in found if f[2].level == "pass"]
    passed, warned, failed = _count(found)
    blocks: list[Block] = []
    if not found:
        blocks.append(
            Text("These archives hold no self-checks, so this page can't tell whether the numbers are right.")
        )
    else:
        level = "fail" if failed else "warn" if warned else "pass"
        blocks.append(Notes([(level, f"{passed} checks passed, {warned} to look at, {failed} failed.")]))
        blocks.append(_questions(answers(found, runs), len(runs)))
    if loud:
        blocks.append(_table("Failed, or to look at.", loud, len(runs)))
    if quiet:
        blocks.append(Folded(f"{len(quiet)} checks that passed", (_table("Passed.", quiet, len(runs)),)))
    warnings = _warnings(runs)
    if warnings:
        blocks.append(Notes(warnings, "Warnings"))
    return Section("checks", "Is it right?", blocks)


def tally(runs: Sequence[Run]) -> tuple[int, int, int]:
    """Return how many checks passed, warn and failed, results that failed or can't be read among the last."""
    return _count(list(every_check(runs)))


def _count(found: Sequence[Found]) -> tuple[int, int, int]:
    levels = [check.level for _, _, check in found]
    return levels.count("pass"), levels.count("warn"), levels.count("fail")


def _questions(found: Sequence[Answers], runs: int) -> Table:
    columns = [
        Column("How it went"),
        Column("Question", wide=True),
        Column("passed", numeric=True),
        Column("to look at", numeric=True),
        Column("failed", numeric=True),
        Column("runs asked", numeric=True, note="runs with at least one check that answers it"),
        Column("What to do about it", wide=True),
    ]
    rows = []
    for answer in found:
        level, q = answer.level, answer.question
        first = Cell("", level=level, sort=_ORDER[level]) if level else Cell("not checked", quiet=True, sort=3.0)
        counts = [answer.found[name] for name in ("pass", "warn", "fail")]
        rows.append(
            Row(
                [
                    first,
                    Cell(q.title, q.asks, sort=q.title),
                    *(Cell(count(n) if n else "–", sort=float(n)) for n in counts),
                    Cell(f"{count(len(answer.runs))} of {count(runs)}", sort=float(len(answer.runs))),
                    Cell(q.do if level in ("warn", "fail") else "–"),
                ],
                level=level if level in ("warn", "fail") else "plain",
            )
        )
    return Table("What was asked of the numbers.", columns, [("", rows)])


def _table(caption: str, found: Sequence[Found], runs: int) -> Table:
    """Return a row for each check; with many runs one for all that say the same."""
    rows = _together(found) if runs > MANY else [_row(check, where, (run,)) for run, where, check in found]
    return Table(caption, _COLUMNS, [("", rows)], sortable=len(rows) > 1)


def _together(found: Sequence[Found]) -> list[Row]:
    groups: dict[tuple[str, str, str], list[Found]] = {}
    for item in found:
        groups.setdefault((item[2].level, item[1], item[2].name), []).append(item)
    rows = []
    for items in groups.values():
        # The message of the value that lies furthest from its limit.
        worst = max(items, key=lambda item: abs(item[2].value) if item[2].value == item[2].value else -1.0)
        rows.append(_row(worst[2], worst[1], tuple(dict.fromkeys(run.name for run, _, _ in items)), worst[0].name))
    return rows


def _row(check: Check, where: str, runs: Sequence[Run] | Sequence[str], of: str = "") -> Row:
    value, limit = check.value, check.limit
    names = [r if isinstance(r, str) else r.name for r in runs]
    told = Cell(names[0], sort=names[0])
    if len(names) > 1:
        told = Cell(f"{count(len(names))} runs", hint="; ".join(names[:50]), sort=float(len(names)))
    cells = [
        Cell("", level=check.level, sort=_ORDER[check.level]),
        told,
        Cell(where, sort=where),
        Cell(check.name, sort=check.name),
        Cell(check.message, f"of {of}, the furthest from its limit" if len(names) > 1 else ""),
        Cell(number(value, 3) if value == value else "–", sort=value if value == value else None),
        Cell(given(limit) if limit == limit else "–", sort=limit if limit == limit else None),
    ]
    first = runs[0]
    return Row(cells, first.index if isinstance(first, Run) else None, check.level)


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
        few = ", ".join(list(names)[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        where = "every run" if len(names) == len(runs) > 1 else few
        found.append(("warn", f"{text} ({', '.join(kinds)}; {where})"))
    return found
