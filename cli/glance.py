"""An archive in a screen: a table of its numbers, reliability, how the training went, the checks that aren't green."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from landscape.counted import counted
from landscape.report.numbers import count, given, number
from landscape.results import Result, kind_of

from .bars import curve, reliability

#: Columns of the text (chosen by us: an 80x24 terminal's wider sister, and an issue).
COLUMNS = 100
#: Checks of one level that are written out (chosen by us).
MOST = 6
WORDS = {"fail": "FAILED", "warn": "to look at"}


def checks(results: Iterable[Result]) -> list[list[str]]:
    """Return rows for the checks: how many pass, then each that is red or amber with what to do about it."""
    found = [(c.level, kind_of(r), c.name, c.message) for r in results for c in r.checks]
    found += [
        ("fail", kind_of(r), "status", r.warnings[0] if r.warnings else "the measurement failed; measure it again")
        for r in results
        if r.status == "failed" and not any(c.level == "fail" for c in r.checks)
    ]
    if not found:
        return []
    passed = sum(level == "pass" for level, *_ in found)
    rows = [["checks", f"{passed} of {len(found)} pass"]]
    for level in ("fail", "warn"):
        loud = [row for row in found if row[0] == level]
        for _, kind, name, message in loud[:MOST]:
            rows.append([WORDS[level], f"{kind.replace('_', ' ')}, {name}: {message}"])
        if len(loud) > MOST:
            rows.append([WORDS[level], f"and {len(loud) - MOST} more: landscape show --full"])
    return rows


def left_out(results: Iterable[Result]) -> list[list[str]]:
    """Return rows for what every number leaves out; other notes are for who looks at one result."""
    return [["note", n] for n in dict.fromkeys(n for r in results for n in r.notes) if " held fixed" in n]


def training(history: Any) -> list[list[str]]:
    """Return rows for the record of a training: its length, the loss as a curve, validation, what happened."""
    if not history:
        return []
    rows = []
    loss = history.get("loss")
    if loss is not None and len(loss.steps) and "loss" in loss.names:
        values = np.asarray(loss.current().column("loss"), dtype=float)
        known = values[np.isfinite(values)]
        if len(known):
            tenth = max(1, len(known) // 10)
            ends = f"{number(float(known[:tenth].mean()), 3)} {curve(known)} {number(float(known[-tenth:].mean()), 3)}"
            steps = loss.current().steps
            last, until = int(steps[np.isfinite(values)].max()), int(steps.max())
            over = f"over {counted(until, 'step')}"
            if last < until:  # the curve leaves out what isn't finite, and would pass for the whole training
                over = f"over {counted(last, 'step')}, then not finite up to step {count(until)}"
            rows.append(["loss", f"{ends}  {over}"])
        elif len(values):
            rows.append(["loss", f"not finite at any of its {counted(len(values), 'step')}"])
    held = history.get("calibration")
    if held is not None and len(held.steps):
        last = held.current()
        told = [
            f"{name} {number(float(v), 3)}"
            for name in ("accuracy", "nll", "ece")
            if name in last.names and np.isfinite(v := last.column(name)[-1])
        ]
        if told:
            rows.append(["held out", f"{'   '.join(told)}  at the end"])
    rows += _reliability(history)
    kinds: dict[str, int] = {}
    for event in history.events:
        kinds[event.kind] = kinds.get(event.kind, 0) + 1
    said = ("skipped_step", "not_finite", "spike", "probe_failed", "not_measured", "lost_rows", "over_budget")
    loud = {k: n for k, n in kinds.items() if k in said}
    if loud:
        rows.append(["events", ", ".join(f"{count(n)} × {k.replace('_', ' ')}" for k, n in loud.items())])
    return rows


def _reliability(history: Any) -> list[list[str]]:
    """Return the bar of the last reliability table that was evaluated while training."""
    from landscape.report.finals import last_results

    table, step = last_results(history)[0].get("calibration", (None, 0))
    if table is None:
        return []
    bar, below = reliability(table)[:2]
    return [["reliability", f"{bar}  at step {count(step)}"], ["", below]]


def archive_text(archive: Any) -> str:
    """Return what an archive holds, as much as a screen holds: for each checkpoint its numbers, then the checks."""
    from landscape.archive.describe import printable, salvaged, told
    from landscape.archive.training import training_facts

    from .summary import summarize

    state = {"running": "running, or killed before its end", "": "of unknown status"}.get(
        archive.status, archive.status
    )
    facts = training_facts(archive)
    if facts:
        state = {"running": "a training writes to it now", "killed": "a training that was killed"}.get(
            facts["status"], facts["status"]
        )
    about = archive.attributes
    made = [str(about.get(k)) for k in ("created", "device") if about.get(k)]
    n = len(archive.entries)
    lines = [f"{archive.path}: {', '.join([str(state), f'{n} results' if n != 1 else '1 result', *made])}"]
    if archive.run:
        lines.append(
            "  " + "  ".join(f"{k} {_set(v)}" for k, v in archive.run.items() if isinstance(v, str | int | float))
        )
    lines += [f"  {line}" for line in salvaged(archive)]
    left = sum(len(rows) for rows in archive.unfinished.values())
    if left:
        lines.append(f"  unfinished: {counted(left, 'point')} of a surface; landscape probe --resume goes on there")
    recorded = training(archive.history)
    if facts:
        # What the curve and the lines beside it don't say already.
        recorded += [[name, text] for name, text in told(facts) if name not in ("loss", "calibration")]
        from .output import table

        lines += ["", "training", table(recorded, indent=2)]
    for subject in archive.subjects:
        results, unread = [], []
        for entry in archive.select(subject=subject):
            try:
                results.append(entry.result)
            except Exception as error:  # a damaged result is shown as such, the others stand
                unread.append(["FAILED", f"{entry.kind} {entry.id} cannot be read: {error}"])
        latest = {kind_of(r): r for r in results}
        facts = [f"{k} {v}" for k, v in (("step", subject.step), ("epoch", subject.epoch)) if v is not None]
        lines += ["", "  ".join([str(subject.label), str(subject.task or ""), *facts]).rstrip()]
        lines.append(summarize(latest, [*checks(results), *unread, *left_out(results)]))
    if not archive.entries and not recorded:
        lines.append("  nothing was measured")
    return "\n".join(printable(line) for text in lines for line in _wrapped(text))


def _set(value: str | float) -> str:
    """Return a setting as it was typed, without the last digits that a product of rates leaves behind it."""
    return given(value) if isinstance(value, float) else str(value)


def _wrapped(text: str) -> Iterator[str]:
    """Yield lines of at most COLUMNS letters; what goes on stands below the second column."""
    for line in text.split("\n"):
        stripped = line.lstrip()
        indent = len(line) - len(stripped)
        gap = stripped.find("  ")
        after = indent + gap + len(stripped[gap:]) - len(stripped[gap:].lstrip()) if 0 < gap < 30 else indent + 2
        yield from textwrap.wrap(
            line, COLUMNS, subsequent_indent=" " * after, drop_whitespace=True, replace_whitespace=False,
            break_on_hyphens=False,
        ) or [""]  # fmt: skip
