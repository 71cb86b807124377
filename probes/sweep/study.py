"""`Sweep`: the trainings of a grid in one folder: checked before any of them begins, run, resumed, collected."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from landscape.archive.schema import plain
from landscape.counted import counted
from landscape.errors import LandscapeError, TrainingError
from landscape.tasks import Task

from ..selection import choose
from ..subjects import resolve_device
from ..workers.bars import Bars
from ..workers.errors import in_a_line
from ..workers.stopping import Stop, listening
from .cell import Tell, failed, train_cell
from .collecting import Collected, collect
from .estimate import Estimate, estimate
from .grid import Cell, grid, joined, named, read_cells
from .how import How
from .manifest import Manifest, admit, claim, read_manifest
from .outcome import CellResult, UnreadableError, read_result, set_aside, write_result
from .parts import Parts, make_parts, try_loss
from .recording import chosen_probes
from .sources import Source
from .workers import train_in_workers

#: Mistakes that are told at once; more would only hide the first.
_SHOWN = 5


class Sweep:
    """Trainings over every combination of what is listed, or of the cells given.

        sweep = Sweep("digits.py:digits", loss=["cross_entropy", "focal(gamma=2)"], schedule=["cosine"], seeds=3,
                      out="runs")
        for result in sweep.run(workers=2).results: print(result.cell.label, result.metrics["test_accuracy"])

    The same seed gives the same first weights and the same order of the data in all cells, so that what differs is due
    to the cell. Each cell gets a folder below `out` (see `landscape.probes.train_cell`).

    Args:
        task: "file.py:name", or a function that returns a Task. A loss from the sweep takes the place of the task's.
        out: the folder of the sweep.
        cells: instead of lists: a file of cells (.json, .jsonl, .csv), or cells of `landscape.probes.grid` or your own.
        how: recording and measuring.
        lists: what `landscape.probes.grid` takes: loss, schedule, optimizer, batch_size, lr, average (a list each, or
            one), seeds, epochs, settings, vary, drive, clip.

    Raises LandscapeError for cells that can't be written so; `check` finds what else is wrong before anything trains.
    """

    def __init__(
        self,
        task: str | Callable[..., Task],
        out: str | Path = "runs",
        *,
        cells: str | Path | Sequence[Cell] | None = None,
        how: How | None = None,
        **lists: Any,
    ) -> None:
        self.source = Source(task)
        self.out = Path(out)
        self.how = how or How()
        if cells is None:
            several = ("loss", "schedule", "optimizer", "batch_size", "lr", "average")
            given: dict[str, Any] = {
                k: [v] if k in several and isinstance(v, str | int | float) else v for k, v in lists.items()
            }
            self.cells = grid(**{k: v for k, v in given.items() if v is not None})
        elif isinstance(cells, str | Path):
            self.cells = read_cells(cells, **lists)
        else:
            own = tuple(cells)
            # Written by hand, or of several grids: they would share their folders.
            self.cells = own if len({c.name for c in own}) == len(own) else named(own)
        self._adopt(read_manifest(self.out))

    def _adopt(self, there: Manifest | None) -> None:
        """Number the cells as the folder does, where it holds some of them."""
        if there is not None:
            self.cells = joined(self.cells, there.cells)
        self.manifest = Manifest(self.source.spec, self.source.sha256, self.cells, _plain_how(self.how))

    # ------------------------------------------------------------------------------------------- checking

    def check(self) -> tuple[str, ...]:
        """Find what can't be before anything is trained; return what is worth knowing.

        Names, parameters, batch sizes and schedules of every cell are tried, each loss on one batch of each task (a
        gradient). Raises TrainingError that names the first few mistakes.
        """
        choose(self.how.only, self.how.preset, self.how.options)
        chosen_probes(self.how.probes)
        notes: dict[str, None] = dict.fromkeys([self.source.note] if self.source.note else [])
        for parts in self._variants():
            notes |= dict.fromkeys(parts.notes)
        return tuple(notes)

    def _variants(self) -> Iterator[Parts]:
        """Yield the parts of one cell for each combination without its seed, its loss tried.

        Raises TrainingError, behind the last one, where some can't be.
        """
        mistakes: dict[str, list[Cell]] = {}
        tasks: dict[str, Task] = {}
        tried: set[tuple[str, str]] = set()
        seen: set[str] = set()
        device = resolve_device(self.how.device)
        for cell in self.cells:
            key = repr({k: v for k, v in cell.axes.items() if k != "seed"})
            if key in seen:
                continue
            seen.add(key)
            setting = repr(sorted(cell.settings.items()))
            try:
                if setting not in tasks:
                    tasks[setting] = self.source.make(cell.settings, cell.seed)
                parts = make_parts(cell, tasks[setting], device)
                if (setting, cell.loss) not in tried:
                    try_loss(parts)
                    tried.add((setting, cell.loss))
            except LandscapeError as error:
                mistakes.setdefault(in_a_line(error), []).append(cell)
                continue
            yield parts
        if mistakes:
            shown = [_mistake(text, cells, len(self.cells)) for text, cells in list(mistakes.items())[:_SHOWN]]
            more = len(mistakes) - len(shown)
            raise TrainingError("; ".join(shown) + (f"; and {more} more" if more > 0 else ""))

    def estimate(self) -> tuple[Estimate, ...]:
        """Return what each cell will take, from a few steps of each kind; nothing is written. See `Estimate`.

        Raises TrainingError for mistakes, as `check`.
        """
        return estimate(self.cells, self._variants(), self.how)

    # ------------------------------------------------------------------------------------------- running

    def run(
        self,
        *,
        resume: bool = False,
        workers: int = 1,
        only: Sequence[Cell] | None = None,
        retry: bool = False,
        time_limit: float | None = None,
        allow_changed: bool = False,
        progress: bool = False,
        check: bool = True,
        say: Callable[[str], None] | None = None,
        stop: Stop | None = None,
    ) -> Collected:
        """Train what isn't finished yet, and return all cells' results; `collect` writes them to results.csv and .json.

        A cell that diverges or fails is a result with its reason, and the sweep goes on. SIGTERM, SIGUSR1, SIGHUP and
        Ctrl-C let the cells under way save themselves and leave (status "interrupted", `stopped` of what is returned).

        Args:
            resume: go on with the sweep that is in the folder, and add the cells that it lacks.
            workers: processes; on GPUs one each. 1 trains in this process.
            only: the cells to train now (a share, in an array of jobs); by default all.
            retry: train failed cells again, from their last saved state where there is one.
            time_limit: seconds after which cells save themselves and none is begun.
            allow_changed: go on although the task's file changed.
            progress: two levels of bars on stderr. check: look for mistakes first. say: told what is worth knowing.

        Raises LandscapeError before anything is trained: see `check`, `admit`.
        """
        say = say or (lambda text: None)
        if workers < 1:
            raise TrainingError(f"workers={workers} must be at least 1")
        if workers > 1 and not self.source.spec:
            raise TrainingError("several workers load the task by themselves: name it as 'file.py:name'")
        if workers > 1 and not all(isinstance(p, str) for p in self.how.probes or ()):
            raise TrainingError("several workers can't be handed probes: name them, or train with workers=1")
        there = read_manifest(self.out)
        if there is not None:
            admit(self.out, self.manifest, there, resume=resume, changed=allow_changed)
        if check:
            for note in self.check():
                say(f"note: {note}")
        claimed = claim(self.out, self.manifest, resume=resume or there is None, changed=allow_changed)
        self._adopt(claimed)
        if there is not None and len(claimed.cells) > len(there.cells):
            joining = counted(len(claimed.cells) - len(there.cells), "cell joins", "cells join")
            say(f"{joining} the {len(there.cells)} that are there")
            if _measuring(claimed.how) != _measuring(self.manifest.how):
                say("note: what joins is recorded or measured otherwise than those")
        own = {c.key: c for c in self.cells}
        cells = tuple(own[c.key] for c in only) if only is not None else self.cells
        todo = []
        for cell in cells:
            try:
                found = read_result(cell, self.out / cell.name)
            except UnreadableError:
                found = set_aside(cell, self.out / cell.name)
                say(f"{cell.name}: {found.reason}, and is kept as cell.json.damaged; it goes on from its last state")
            if retry and found.status == "failed":
                found = replace(found, status="interrupted", reason="to be tried again")
                write_result(found)
            if not found.finished:
                todo.append(cell)
        if len(todo) < len(cells):
            say(f"{len(cells) - len(todo)} of {counted(len(cells), 'cell is', 'cells are')} finished already")
        stop = stop or Stop()
        if time_limit is not None:
            stop.deadline = time.monotonic() + time_limit
        done = len(cells) - len(todo)
        with (
            listening(stop),
            Bars(len(cells), done, what="sweep", unit="cell", step="step", enabled=progress) as bars,
        ):
            if workers == 1 or len(todo) < 2:
                self._run_here(todo, stop, bars, say)
            else:
                self._run_in_workers(todo, workers, stop, bars, say)
        return collect(self.out, stopped=stop.signal, late=stop.late)

    def _run_here(self, todo: Sequence[Cell], stop: Stop, bars: Bars, say: Callable[[str], None]) -> None:
        for cell in todo:
            if stop.asked:
                return
            bars.begin(cell.index, cell.label)

            def tell(c: Cell, training: Any) -> None:
                progress = {"step": training.step, "loss": training.last_loss, **training.metrics}
                bars.move(c.index, training.step, training.parts.total, _shown(progress))

            result = attempt(
                cell, self.source, self.out / cell.name, self.how, stop=stop, tell=tell, say=bars.saying(say)
            )
            _end(result, bars, say)

    def _run_in_workers(
        self, todo: Sequence[Cell], workers: int, stop: Stop, bars: Bars, say: Callable[[str], None]
    ) -> None:
        limit = None if stop.deadline is None else stop.deadline - time.monotonic()
        setup = {"task": self.source.spec, "how": self.manifest.how, "seconds": limit}

        train_in_workers(
            todo,
            self.out,
            setup,
            workers,
            stop=stop,
            began=lambda cell: bars.begin(cell.index, cell.label),
            told=lambda cell, progress: bars.move(cell.index, int(progress["step"]), shown=_shown(progress)),
            ended=lambda result: _end(result, bars, say),
            say=bars.saying(say),
        )


def attempt(
    cell: Cell,
    source: Source,
    folder: str | Path,
    how: How,
    *,
    stop: Stop | None = None,
    tell: Tell | None = None,
    say: Callable[[str], None] | None = None,
) -> CellResult:
    """Train a cell as `train_cell`, and make what it raises a result too: one cell never ends a sweep."""
    try:
        return train_cell(cell, source, folder, how, stop=stop, tell=tell, say=say)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        try:
            result = failed(cell, folder, error)
            write_result(result)
        except LandscapeError:  # the folder is another cell's, or can't be written
            result = CellResult(cell, str(folder), status="failed", reason=in_a_line(error))
        return result


def _plain_how(how: How) -> dict[str, Any]:
    """Return how cells are trained as plain data; probes by their names."""
    named = [p if isinstance(p, str) else p.name for p in how.probes] if how.probes is not None else None
    return {**asdict(replace(how, probes=None)), "probes": named}


def _measuring(how: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides which numbers a cell gets."""
    named = ("record", "probes", "evaluate", "measure", "only", "preset", "options", "max_samples")
    return {k: plain(how.get(k)) for k in named}


def _mistake(text: str, cells: Sequence[Cell], of: int) -> str:
    if len(cells) == of:
        return text
    return f"cell {cells[0].index} ({cells[0].label}): {text}"


def _shown(progress: Mapping[str, Any]) -> dict[str, str]:
    """Return what the bar of a training shows beside its steps."""
    return {
        name: f"{progress[key]:.3g}"
        for name, key in (("loss", "loss"), ("test", "test_loss"), ("accuracy", "test_accuracy"))
        if isinstance(progress.get(key), float) and math.isfinite(progress[key])
    }


def _end(result: CellResult, bars: Bars, say: Callable[[str], None]) -> None:
    bars.end(result.cell.index, result.status, finished=result.finished)
    if result.status != "complete":
        bars.saying(say)(f"{result.cell.label}: {result.status}: {result.reason}")
