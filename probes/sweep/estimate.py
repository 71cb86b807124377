"""What a sweep will cost, from a few steps of each kind of cell: time of training and measuring, room on the disk."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from landscape.clock import cpu_clock
from landscape.errors import LandscapeError, TrainingError

from ..prediction import NONE, Span, measure_speed, predict, run, spanned, spread, total
from ..selection import choose, samples_to_draw
from ..workers.errors import in_a_line
from .cell import one_thread_on_cpu
from .grid import Cell
from .how import How
from .parts import Parts, make_recipe
from .training import Training, evaluate

#: Steps that are timed, after two to warm up, or as many as take this long (chosen by us: as many as of one batch).
STEPS, SECONDS = 20, 0.5
#: Columns that the recorder's default writes at each step: three for each parameter tensor, and about so many more.
_COLUMNS, _MORE = 3, 16
#: Bytes of the measurements of a final checkpoint (a plane, a line, tables; measured: 0.2 to 0.4 MB).
_RESULTS = 500_000


@dataclass(frozen=True)
class Estimate:
    """What one cell is expected to take: seconds of training and of measuring, and bytes that it leaves, and needs.

    `steps` are the optimizer steps of its run, `bytes` what stays, `most` what it holds for a while beside that.
    """

    cell: Cell
    steps: int
    training: Span
    measuring: Span
    bytes: int
    most: int

    @property
    def seconds(self) -> Span:
        """All its seconds; a part that isn't known counts as none."""
        return self.training + self.measuring


def estimate(cells: Sequence[Cell], variants: Iterable[Parts], how: How) -> tuple[Estimate, ...]:
    """Return what each of the cells will take; nothing is written. `Sweep.estimate` calls it.

    `variants` are the parts of a cell of each combination without its seed. Cells that differ in seed, schedule, rate
    or epochs alone share their timing. Costs about 25 steps, an evaluation and 30 passes over a batch for each other
    combination. Raises what `variants` raises.
    """
    timed: dict[str, tuple[Span, Span, Span, int, int]] = {}
    known: dict[str, tuple[int, int]] = {}
    with one_thread_on_cpu(how.device):
        for parts in variants:
            kind = _kind(parts.cell)
            if kind not in timed:
                timed[kind] = _time(parts, how)
            known[_without_seed(parts.cell)] = (parts.batches.per_epoch, parts.total)
    found = []
    for cell in cells:
        step, evaluation, measuring, checkpoint, row = timed[_kind(cell)]
        _, total = known[_without_seed(cell)]
        every = how.evaluate
        evaluations = math.ceil(cell.epochs / every) if every else 0
        kept = cell.epochs // how.checkpoints if how.checkpoints else 0
        rows = total * row if how.record else 0
        size = checkpoint * (1 + kept) + rows + _RESULTS
        training = step.times(total, total) + evaluation.times(evaluations, evaluations)
        found.append(Estimate(cell, total, training, measuring, size, checkpoint + rows))
    return tuple(found)


def _kind(cell: Cell) -> str:
    """Return what decides a step's time."""
    recipe = make_recipe(cell)
    name = (recipe.name, recipe.base.name if recipe.base is not None else "")  # settings take no time
    return repr((cell.loss, name, cell.batch_size, cell.clip is None, cell.average, sorted(cell.settings.items())))


def _without_seed(cell: Cell) -> str:
    return repr({k: v for k, v in cell.axes.items() if k != "seed"})


def _time(parts: Parts, how: How) -> tuple[Span, Span, Span, int, int]:
    """Return (seconds a step, seconds an evaluation, seconds of measuring, bytes of a checkpoint, bytes of a row)."""
    weights = copy.deepcopy(parts.model.state_dict())
    training = Training(parts)
    parts.model.train()
    clock = cpu_clock(parts.device)
    taken: list[tuple[float, float]] = []
    batches = parts.batches.epoch(0)
    while len(taken) < STEPS + 2 and sum(wall for _, wall in taken[2:]) < SECONDS and training.step < parts.total:
        batch = next(batches, None)
        if batch is None:
            if training.position < parts.batches.per_epoch:
                break
            batches, training.position = parts.batches.epoch(0), 0
            continue
        taken.append(run(partial(training.take, batch), clock))
    step, evaluation = spanned(taken[2:] or taken), NONE
    if parts.task.test is not None and how.evaluate:
        evaluation = spanned([run(lambda: evaluate(parts), clock)])
    tensors = [*parts.model.state_dict().values()]
    tensors += [t for s in parts.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    checkpoint = sum(t.numel() * t.element_size() for t in tensors) + 10_000
    parts.model.load_state_dict(weights)
    parameters = sum(1 for _ in parts.model.parameters())
    return step, evaluation, _measuring(parts, how), checkpoint, 8 * (_COLUMNS * parameters + _MORE)


def _measuring(parts: Parts, how: How) -> Span:
    """Return the seconds that the measurements of a final checkpoint take."""
    if not how.measure:
        return NONE
    task = parts.task.replace(max_samples=samples_to_draw(parts.task, how.preset, how.max_samples))
    try:
        speed = measure_speed(task)
        samples = task.draw(task.splits[0]).samples
        return total(predict(choose(how.only, how.preset, how.options), speed, samples))
    except LandscapeError as error:
        raise TrainingError(f"the final checkpoints can't be measured: {in_a_line(error)}") from error


def total_seconds(found: Sequence[Estimate], workers: int = 1) -> Span:
    """Return the time of all cells on so many workers, if none waits for another."""
    return spread([e.seconds for e in found], workers)
