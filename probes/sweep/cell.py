"""Train one cell: recorded, saved now and then, measured at its end; whatever happens to it becomes its result."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from landscape.checkpoint import fingerprint_of
from landscape.checkpoints.checksums import check_entries
from landscape.checkpoints.writing import save_checkpoint, write_whole
from landscape.errors import TrainingError
from landscape.parameters import unwrap
from landscape.seeding import seed_all, seeded
from landscape.tasks import Task
from landscape.training.task_loss import text_in_force

from ..subjects import resolve_device
from ..workers.errors import in_a_line
from ..workers.stopping import Interrupted, Stop
from .grid import FULL, Cell
from .how import How
from .locking import PATIENCE, locked
from .measuring import measure_final
from .outcome import (
    ARCHIVE,
    ERROR,
    FINAL,
    LAST,
    UNAVERAGED,
    CellResult,
    flat_numbers,
    read_result,
    write_result,
)
from .parts import Parts, make_parts
from .recording import recording
from .sources import Source
from .training import Diverged, Training, averaged, evaluate

#: Told of a training as it goes on: its cell, the training itself.
Tell = Callable[[Cell, Training], None]


def train_cell(
    cell: Cell,
    task: str | Callable[..., Task] | Source,
    folder: str | Path,
    how: How | None = None,
    *,
    stop: Stop | None = None,
    tell: Tell | None = None,
    say: Callable[[str], None] | None = None,
    patience: float = PATIENCE,
) -> CellResult:
    """Train one cell in a folder of its own, or go on with what is there, and return what became of it.

    The folder gets `run.h5` (the record of the training and the measurements of its end), `final.pt` (a checkpoint that
    names its task and loss), `cell.json` (the result) and, while it is half-done, `last.pt`. Where weights are averaged
    `final.pt` holds the averaged ones, which are measured, and `unaveraged.pt` the last ones. A cell that is finished
    is returned as it is. On a CPU a training that was interrupted or killed ends with the same weights, bit for bit.

    Args:
        cell: what is combined. task: "file.py:name" or a function that returns a Task, called anew for the cell.
        how: recording and measuring. stop: asked at each step whether to save and leave (the status is then
            "interrupted"). tell: told of the progress. say: told what is worth knowing, a line each.
        patience: seconds to wait for another process to leave the folder.

    Raises LandscapeError before anything is trained for what can't be: names, parameters, a loss that doesn't fit,
    schedules longer than the run, a folder of another cell or in use. What goes wrong later is in the result.
    """
    how, stop, say = how or How(), stop or Stop(), say or (lambda text: None)
    source = task if isinstance(task, Source) else Source(task)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, patience):
        before = read_result(cell, folder)
        if before.finished:
            return before
        with one_thread_on_cpu(how.device), seeded(None):
            return _Attempt(cell, source, folder, how, stop, tell, say, before).go()


def failed(cell: Cell, folder: str | Path, error: BaseException) -> CellResult:
    """Return the result of a cell that can't be trained, and keep it with the traceback in its folder."""
    with contextlib.suppress(OSError):
        text = "".join(traceback.format_exception(error))
        (Path(folder) / ERROR).write_text(text, encoding="utf-8", errors="replace")
    return replace(read_result(cell, Path(folder)), status="failed", reason=in_a_line(error))


@contextlib.contextmanager
def one_thread_on_cpu(device: str) -> Any:
    """Train on one thread where there is no GPU: two spin against each other on a busy machine, and small nets gain
    nothing from a second one; the sums no longer depend on how many there are.
    """
    threads = torch.get_num_threads()
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Attempt:
    """One attempt at a cell: from its task to its result."""

    def __init__(
        self,
        cell: Cell,
        source: Source,
        folder: Path,
        how: How,
        stop: Stop,
        tell: Tell | None,
        say: Callable[[str], None],
        before: CellResult,
    ) -> None:
        self.cell, self.source, self.folder, self.how = cell, source, folder, how
        self.stop, self.tell, self.say = stop, tell, say
        self.begun = time.monotonic()
        self.spent = before.seconds
        self.result = replace(before, folder=str(folder), attempts=before.attempts + 1)

    def go(self) -> CellResult:
        cell, own = self.cell, self.source.make(self.cell.settings, self.cell.seed)
        parts = make_parts(cell, own, resolve_device(self.how.device))
        started = self.result.initial_weights or fingerprint_of(unwrap(parts.model).state_dict())
        self._became(steps=parts.total, initial_weights=started, order=parts.batches.fingerprint(), notes=parts.notes)
        try:
            if self.result.status != "trained":
                self._train(parts)
            if self.stop.asked:
                raise Interrupted(self.stop.why)
            self._measure(own, parts)
        except Interrupted as reason:
            if self.result.status != "trained":
                self._became(status="interrupted", reason=str(reason))
        except Diverged as reason:
            self._became(status="diverged", reason=str(reason))
            (self.folder / LAST).unlink(missing_ok=True)
        except KeyboardInterrupt:
            if self.result.status != "trained":
                self._became(status="interrupted", reason="stopped by Ctrl-C")
            if not self.stop.signal:
                raise
        except Exception as error:
            self.result = replace(failed(cell, self.folder, error), seconds=self.spent + time.monotonic() - self.begun)
            write_result(self.result)
        return self.result

    def _became(self, **changes: Any) -> None:
        self.result = replace(self.result, seconds=self.spent + time.monotonic() - self.begun, **changes)
        write_result(self.result)

    # ------------------------------------------------------------------------------------------- training

    def _train(self, parts: Parts) -> None:
        last = self.folder / LAST
        state = _read_state(last) if last.exists() else None
        self._became(status="running", reason="")
        facts = run_facts(self.cell, parts)
        resumed = state is not None and state.get("recorder") is not None
        with recording(
            self.folder / ARCHIVE,
            parts,
            self.how,
            facts=facts,
            source=self.source,
            state=state["recorder"] if resumed and state is not None else None,
        ) as recorder:
            training = Training(parts, recorder=recorder, evaluate=self.how.evaluate)
            if state is not None:
                training.load_state_dict(state)
                self.say(f"{self.cell.label}: goes on from step {training.step} of {parts.total}")
            else:
                seed_all(self.cell.seed + 1)  # dropout's own draws, apart from those of the first weights
            tell = None if self.tell is None else lambda t: self.tell(self.cell, t)  # type: ignore[misc]
            try:
                training.run(self.stop, lambda: self._save(training), tell, self.how.save_every)
            finally:
                self.result = replace(self.result, step=training.step, epoch=training.epoch)
            self._save(training)
        parts.driver.finish()
        ended, metrics = parts, dict(training.metrics)
        if parts.average is not None:
            self._write(UNAVERAGED, parts, training, {**facts, "average": "none"}, f"{self.cell.label}, unaveraged")
            ended = averaged(parts, training.epoch)
            if self.how.evaluate and parts.task.test is not None:
                metrics |= {f"unaveraged.{k}": v for k, v in metrics.items() if k.startswith("test_")}
                metrics |= evaluate(ended)
        self._write(FINAL, ended, training, facts, self.cell.label)
        self._became(
            status="trained",
            metrics=metrics,
            notes=ended.notes,
            final_weights=fingerprint_of(unwrap(ended.model).state_dict()),
        )
        last.unlink(missing_ok=True)

    def _save(self, training: Training) -> None:
        write_whole(self.folder / LAST, training.state_dict())
        self._became(step=training.step, epoch=training.epoch)

    def _write(self, file: str, parts: Parts, training: Training, facts: Mapping[str, Any], name: str) -> None:
        """Write a checkpoint of the training's end.

        Averaged weights come without the optimizer, which stepped others, and without a step: what the recorder
        measured at the last one is not theirs.
        """
        own = facts.get("average", "none") == "none"
        cell, source = self.cell, self.source
        at_end = text_in_force(cell.loss, training.in_force) if cell.loss else ""
        extra = {"loss_at_end": at_end} if at_end != cell.loss else {}
        named: dict[str, Any] = {}
        if source.reference:
            settings = source.settings(cell.settings, cell.seed)
            named = {"task": source.reference, "settings": settings, "task_loss": at_end}
        save_checkpoint(
            self.folder / file,
            parts.model,
            optimizer=parts.optimizer if own else None,
            step=training.step if own else None,
            epoch=training.epoch,
            further={**facts, **extra, "name": name},
            **named,
        )

    # ------------------------------------------------------------------------------------------- measuring

    def _measure(self, own: Task, parts: Parts) -> None:
        if not self.how.measure:
            self._became(status="complete")
            return
        facts = run_facts(self.cell, parts)
        outcome, left = measure_final(self.folder, own, self.cell, self.source, self.how, facts, stop=self.stop)
        if left:
            raise Interrupted(self.stop.why)
        numbers = flat_numbers({k: v for k, v in outcome.as_dict().items() if k not in ("samples", "seconds")})
        self._became(
            status="complete",
            metrics={**self.result.metrics, **numbers},
            notes=tuple(dict.fromkeys((*self.result.notes, *outcome.warnings))),
        )


def run_facts(cell: Cell, parts: Parts) -> dict[str, Any]:
    """Return the settings of a cell's run as archive and checkpoint keep them: flat, under the archive's names."""
    own = parts.task.loss if parts.task.loss is not None else parts.task.batch_loss
    facts: dict[str, Any] = {
        "loss": cell.loss or getattr(own, "__name__", type(own).__name__),
        "schedule": cell.schedule,
        "optimizer": cell.optimizer,
        "batch_size": cell.batch_size if cell.batch_size == FULL else parts.batches.size,
        "lr": parts.lr,
        "seed": cell.seed,
        "epochs": cell.epochs,
    }
    if cell.clip is not None:
        facts["clip"] = cell.clip
    if cell.average:
        facts["average"] = cell.average
    facts |= {f"drive.{k}": v for k, v in cell.drive.items()}
    return facts | {k: v for k, v in cell.settings.items() if k not in facts}


def _read_state(path: Path) -> dict[str, Any]:
    """Return a saved state. Raises TrainingError where it can't be read."""
    try:
        check_entries(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, torch raises nearly anything
        raise TrainingError(
            f"{path} can't be read ({in_a_line(error)[:200]}); delete it to train the cell from the start"
        ) from error
