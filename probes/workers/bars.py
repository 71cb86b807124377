"""Two levels of progress on stderr: all jobs, and how far each of those under way is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Bars:
    """A bar for all jobs, and one for each that is under way, by a number of its own; silent where not `enabled`.

    `what` stands before the outer bar and `unit` behind its numbers, `step` behind those of a job's.
    """

    def __init__(self, jobs: int, done: int, *, what: str, unit: str, step: str, enabled: bool) -> None:
        self._enabled, self._step = enabled, step
        self._outer = tqdm(total=jobs, initial=done, desc=what, unit=unit, disable=not enabled, position=0)
        self._inner: dict[int, Any] = {}
        self._counts: dict[str, int] = {}

    def begin(self, job: int, label: str) -> None:
        """Show a bar for a job that begins, or begins again."""
        self._close(job)
        taken = {bar.pos for bar in self._inner.values()} if self._enabled else set()
        place = next(i for i in range(1, len(taken) + 2) if -i not in taken)
        self._inner[job] = tqdm(
            desc=label[:40], unit=self._step, leave=False, position=place, disable=not self._enabled
        )

    def move(self, job: int, step: int, total: int = 0, shown: Mapping[str, str] | None = None) -> None:
        """Show how far a job is, and what there is to see of it."""
        bar = self._inner.get(job)
        if bar is None or not self._enabled:
            return
        bar.total = total or bar.total
        bar.set_postfix(shown, refresh=False)
        bar.update(step - bar.n)

    def end(self, job: int, status: str, *, finished: bool = True) -> None:
        """Take a job's bar away, and count it."""
        self._close(job)
        self._counts[status] = self._counts.get(status, 0) + 1
        if finished:
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

    def _close(self, job: int) -> None:
        bar = self._inner.pop(job, None)
        if bar is not None:
            bar.close()

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self._inner.values():
            bar.close()
        self._outer.close()
