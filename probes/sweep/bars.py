"""Two levels of progress on stderr: the cells of a sweep, and the steps of those under way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .grid import Cell
from .outcome import CellResult


class Bars:
    """A bar for the sweep, and one for each cell under way; silent where not `enabled`."""

    def __init__(self, cells: int, done: int, *, enabled: bool) -> None:
        self._enabled = enabled
        self._outer = tqdm(total=cells, initial=done, desc="sweep", unit="cell", disable=not enabled, position=0)
        self._inner: dict[int, Any] = {}
        self._counts: dict[str, int] = {}

    def begin(self, cell: Cell) -> None:
        """Show a bar for a cell that begins."""
        taken = {bar.pos for bar in self._inner.values()} if self._enabled else set()
        place = next(i for i in range(1, len(taken) + 2) if -i not in taken)
        self._inner[cell.index] = tqdm(
            desc=cell.label[:40], unit="step", leave=False, position=place, disable=not self._enabled
        )

    def move(self, cell: Cell, progress: Mapping[str, Any], total: int = 0) -> None:
        """Show how far a cell is."""
        bar = self._inner.get(cell.index)
        if bar is None or not self._enabled:
            return
        bar.total = total or bar.total
        shown = {
            name: f"{progress[key]:.3g}"
            for name, key in (("loss", "loss"), ("test", "test_loss"), ("accuracy", "test_accuracy"))
            if isinstance(progress.get(key), float) and math.isfinite(progress[key])
        }
        bar.set_postfix(shown, refresh=False)
        bar.update(int(progress["step"]) - bar.n)

    def end(self, result: CellResult) -> None:
        """Take a cell's bar away, and count it."""
        bar = self._inner.pop(result.cell.index, None)
        if bar is not None:
            bar.close()
        self._counts[result.status] = self._counts.get(result.status, 0) + 1
        if result.finished:
            self._outer.update()
        unusual = {k: v for k, v in self._counts.items() if k != "complete"}
        self._outer.set_postfix(unusual)

    def saying(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Return a way to print a line that leaves the bars whole."""
        if not self._enabled:
            return say

        def above(text: str) -> None:
            with tqdm.external_write_mode():
                say(text)

        return above

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self._inner.values():
            bar.close()
        self._outer.close()
