"""What a section of the page is made of: text, notes, facts, tables and charts, which the template lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..results import Level
from .chart import Chart

#: Rows beyond which a table scrolls by itself (chosen by us: about two screens).
TALL = 30


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    block: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Notes:
    """Short statements, each with a level: "pass", "warn", "fail", or "info"."""

    block: ClassVar[str] = "notes"
    items: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a second line (the uncertainty), what it sorts by, and a longer text on hover.

    `level` shows a check's icon and word; `quiet` marks what is missing.
    """

    text: str
    sub: str = ""
    sort: float | str | None = None
    hint: str = ""
    level: Level | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Column:
    """A column: its label, the group it stands under, whether it holds numbers, what it means, how it breaks.

    `key` is what a filter calls it (the label where there is none); columns of a higher `rank` are the first to be
    put away where the table is wider than the page.
    """

    label: str
    group: str = ""
    numeric: bool = False
    note: str = ""
    wide: bool = False
    nowrap: bool = False
    key: str = ""
    rank: int = 0


@dataclass(frozen=True)
class Row:
    """A row; `run` is the number of the run it is about, which gives it a swatch."""

    cells: Sequence[Cell]
    run: int | None = None
    level: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `groups` are (title, rows), the titles shown where there are several.

    `picker` lets its rows choose the runs that are drawn, `filter` adds a field that keeps matching rows and a
    choice of columns.
    """

    block: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    groups: Sequence[tuple[str, Sequence[Row]]]
    sortable: bool = False
    picker: bool = False
    id: str = ""
    filter: bool = False

    @property
    def tall(self) -> bool:
        """True where the table scrolls in a box of its own, under its headings."""
        return sum(len(rows) for _, rows in self.groups) > TALL

    @property
    def heads(self) -> list[tuple[str, int]]:
        """Return the groups of columns as (label, how many columns), in order."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found


@dataclass(frozen=True)
class Picture:
    """A chart."""

    block: ClassVar[str] = "picture"
    chart: Chart


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line that opens them."""

    block: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Block]
    open: bool = False


Block = Text | Notes | Table | Picture | Folded


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor, its heading, its name in the navigation, and its blocks.

    `beside_title` puts it at the top of the page, beside the title, and out of the navigation.
    """

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    short: str = ""
    beside_title: bool = False
