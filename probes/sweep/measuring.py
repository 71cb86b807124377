"""Measure a cell's final checkpoint into its own archive, as `landscape probe` would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.archive.writer import ArchiveWriter
from landscape.checkpoint import load_checkpoint
from landscape.objective import Objective
from landscape.provenance import provenance
from landscape.task_files import file_sha256
from landscape.tasks import Task
from landscape.training.task_loss import with_loss

from ..execution import Execution
from ..outcome import ProbeOutcome
from ..selection import choose, samples_to_draw
from ..subjects import Prepared
from ..workers.stopping import Stop, at_once
from .grid import Cell
from .how import How
from .outcome import ARCHIVE, FINAL
from .sources import Source


def measure_final(
    folder: Path,
    own: Task,
    cell: Cell,
    source: Source,
    how: How,
    facts: Mapping[str, Any],
    *,
    stop: Stop | None = None,
) -> tuple[ProbeOutcome, list[str]]:
    """Measure `final.pt` into `run.h5`, beside the record of the training; what a killed run measured is kept.

    `own` is the cell's task before its loss was replaced: it is measured with the loss as it stood at the end (the
    weights of a scheduled sum are then numbers). Returns what came out, and what the deadline of `stop` left out.

    Raises LandscapeError where nothing could be measured, KeyboardInterrupt for a signal that asks to stop.
    """
    checkpoint = load_checkpoint(folder / FINAL, own)
    loss = str(checkpoint.facts.get("loss_at_end") or cell.loss)
    task = with_loss(own, loss) if loss else own
    task = task.replace(max_samples=samples_to_draw(task, how.preset, how.max_samples))
    task.optimizer = checkpoint.optimizer
    objective = Objective(task, task.splits[0])
    is_file = bool(source.spec) and source.path.suffix == ".py"
    ready = Prepared(
        checkpoint=checkpoint,
        task=task,
        reference=source.reference or source.spec,
        run={k: v for k, v in checkpoint.facts.items() if v is not None},
        facts={"task_file": str(source.path), "task_hash": file_sha256(source.path)} if is_file else {},
        device=str(objective.device),
        dtype=str(objective.dtype).removeprefix("torch."),
        warnings=(),
        called={"task": source.reference or source.spec, "loss of the registry": loss or "none"},
    )
    chosen = choose(how.only, how.preset, how.options)
    described = provenance(seed=task.seed, device=ready.device)
    run = {"task": ready.reference, **facts}
    stop = stop or Stop()
    with at_once(stop), ArchiveWriter(folder / ARCHIVE, run=run, attributes=described, resume=True) as writer:
        execution = Execution(ready, chosen, how.preset, lambda text: None, writer, False, stop.deadline)
        outcome = execution.measure("")
        writer.close("interrupted" if execution.unfinished else "complete")
    return outcome, execution.unfinished
