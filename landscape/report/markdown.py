"""The report's tables and statements as Markdown, for a pull request: no figures, no HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..counted import counted
from .blocks import Folded, Notes, Section, Table, Text
from .page import default_title
from .runs import Run
from .sections import build_sections
from .value import SHORT

#: Sections that a pull request doesn't need: what was where, how long it took.
LEFT_OUT = frozenset({"provenance", "other"})
#: Rows of a table that are written; GitHub cuts a comment at 65,536 characters (chosen by us).
MOST_ROWS = 60
_WORDS = {"pass": "✓", "warn": "⚠", "fail": "✗", "info": ""}


def markdown(runs: Sequence[Run], *, title: str | None = None) -> str:
    """Return the report as GitHub-flavored Markdown; text from archives is escaped, and mentions nobody."""
    lines = [f"# {escaped(title or default_title(runs))}", ""]
    for section in build_sections(runs):
        if section.id not in LEFT_OUT:
            lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> list[str]:
    body = [line for block in section.blocks for line in _block(block)]
    has_table = any(isinstance(b, Table | Notes) for b in section.blocks)
    return [f"## {escaped(section.title)}", "", *body] if has_table else []


def _block(block: object) -> Iterator[str]:
    if isinstance(block, Text):
        yield from (escaped(block.text), "")
    elif isinstance(block, Notes):
        if block.title:
            yield from (f"**{escaped(block.title)}**", "")
        yield from (f"- {_WORDS.get(level, '')} {escaped(text)}".replace("-  ", "- ") for level, text in block.items)
        yield ""
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Folded):
        yield from (f"*{escaped(block.title)}: in the HTML report.*", "")


def _table(table: Table) -> Iterator[str]:
    caption = table.caption.replace("; click a heading to sort", "").replace("Small print under", "Beside")
    yield from (escaped(caption), "")
    heads = [f"{c.group} {c.label}" if c.group in SHORT else c.label for c in table.columns]
    rows = [(title, row) for title, rows in table.groups for row in rows]
    # Columns that hold nothing in any row (marks without text) are the levels of checks: a sign says them.
    yield "| " + " | ".join(escaped(h) for h in heads) + " |"
    yield "|" + "|".join("---:" if c.numeric else ":---" for c in table.columns) + "|"
    before = None
    for title, row in rows[:MOST_ROWS]:
        if len(table.groups) > 1 and title != before:
            yield f"| **{escaped(title)}** |" + " |" * (len(heads) - 1)
        before = title
        cells = []
        for cell in row.cells:
            parts = [_WORDS.get(cell.level, "") if cell.level else "", escaped(cell.text), escaped(cell.sub)]
            cells.append(" ".join(p for p in parts if p))
        yield "| " + " | ".join(cells) + " |"
    if len(rows) > MOST_ROWS:
        yield from ("", f"{counted(len(rows) - MOST_ROWS, 'further row')}: in the HTML, CSV or JSON report.")
    yield ""


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no HTML, no mention, no reference to an issue, one line."""
    text = " ".join(str(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    text = re.sub(r"#(?=\d)", "&#35;", text)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
