"""Begin the archive of a recorded run, or find the one that a resumed run goes on with."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.archive.compaction import begin_run, set_status
from landscape.archive.history import History
from landscape.archive.joining import read_history
from landscape.archive.reader import open_archive
from landscape.archive.segments import SUFFIX, hold, live_folder, read_segment, segment_paths
from landscape.errors import ArchiveError
from landscape.provenance import provenance
from landscape.sharing import rank

from .probe import Followed

#: Values of an optimizer's groups that a setting names one by one (chosen by us: a column stays narrow).
MOST_GROUPS = 4


@dataclass
class Opened:
    """An archive that this process writes: the lock it holds, its run, how often it was resumed, its earlier record."""

    lock: int | None = None
    run_id: str = ""
    session: int = 0
    earlier: History = field(default_factory=History)
    #: Where a resumed run goes on, unless load_state_dict says otherwise: epochs, and steps by optimizer.
    epoch: int = 0
    taken: Mapping[str, int] = field(default_factory=dict)
    #: Where on its lattice each probe measured, or was left out, when the steps were first taken; so in all processes.
    decided: Mapping[str, Mapping[int, bool]] = field(default_factory=dict)
    #: The archive, the status that it had before ("" where this process made it), and the process.
    path: Path | None = None
    status: str = ""
    process: int = field(default_factory=os.getpid)

    def undo(self) -> None:
        """Leave the disk as it was, and let another process write the archive: nothing was recorded.

        Of a run that was resumed only the status is as before; one that `force` replaced is gone.
        """
        if self.path is not None and self.process == os.getpid():  # a forked child's end is not the training's
            folder = live_folder(self.path)
            with contextlib.suppress(OSError, ArchiveError):
                rows = segment_paths(folder)
                if self.status:
                    set_status(self.path, self.status)
                elif not rows:
                    self.path.unlink(missing_ok=True)
                if not rows:
                    shutil.rmtree(folder)
        self.release()

    def release(self) -> None:
        """Let another process write the archive."""
        lock, self.lock, self.path = self.lock, None, None
        if lock is not None:
            with contextlib.suppress(OSError):
                os.close(lock)

    def spent(self) -> tuple[float, float]:
        """Return the seconds that earlier sessions took, and those of them that went into recording."""
        series = self.earlier.get("time")
        if series is None or not len(series.steps):
            return 0.0, 0.0
        elapsed, recording = (float(np.nanmax(series.column(n), initial=0.0)) for n in ("elapsed", "recording"))
        return elapsed, recording

    def epochs(self, step: int) -> int:
        """Return how many epochs had ended at this step of the earlier record."""
        ended = self.earlier.get("epoch")
        if ended is None:
            return 0
        found = ended.current()
        return int(max(found.values[found.steps <= step, 0], default=0))


def open_run(path: Path, settings: Mapping[str, Any], *, resume: bool, force: bool) -> Opened:
    """Make the archive at `path`, or take up the one that is there, and hold it for this process.

    Raises ArchiveError where it exists (unless `resume` or `force`), another recorder writes it, or nothing can be
    written there.
    """
    folder = live_folder(path)
    opened = Opened()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            opened.lock = hold(folder)  # before anything that another recorder has made is touched
        if resume and (path.exists() or any(folder.glob(f"*{SUFFIX}"))):
            opened.session = 1 + _sessions(path)
            opened.earlier = read_history(path)
            if path.exists():
                opened.status = open_archive(path).status
                set_status(path, "running")
            else:
                begin_run(path, run=settings, attributes=provenance(), beside=True)
        else:
            begin_run(path, run=settings, attributes=provenance(), force=force)
            opened.release()  # of a folder that was replaced
        opened.path = path
        opened.run_id = str(open_archive(path).attributes.get("run_id", ""))
        folder.mkdir(exist_ok=True)
        if opened.lock is None:
            opened.lock = hold(folder)
        return opened
    except OSError as error:
        opened.release()
        raise ArchiveError(f"{path} cannot be written: {error.strerror or error}") from error
    except BaseException:
        opened.release()
        raise


def open_together(
    path: Path, followed: Sequence[Followed], settings: Mapping[str, Any], *, resume: bool, force: bool
) -> tuple[Opened, int, int]:
    """Open the run in the first process of a distributed training, and tell the others; returns (it, rank, processes).

    What the first one raises is raised in all of them, and all go on from the same step. Without a distributed training
    as `open_run`.
    """
    place, world = rank()
    opened, trouble = Opened(), None
    if place == 0:
        try:
            opened = open_run(path, settings, resume=resume, force=force)
            opened.decided = _decisions(opened.earlier)
            if resume and opened.earlier:
                opened.taken = {f.name: max(opened.earlier.last_of(f.suffix), 0) for f in followed}
                opened.epoch = opened.epochs(next(iter(opened.taken.values())))
        except ArchiveError as error:
            trouble = str(error)
    if world > 1:
        told = [(trouble, opened.run_id, opened.session, opened.epoch, dict(opened.taken), opened.decided)]
        torch.distributed.broadcast_object_list(told, src=0)
        trouble, opened.run_id, opened.session, opened.epoch, opened.taken, opened.decided = told[0]
    if trouble is not None:
        raise ArchiveError(trouble)
    return opened, place, world


def _decisions(earlier: History) -> dict[str, dict[int, bool]]:
    series = earlier.get("probe_seconds")
    if series is None:
        return {}
    found: dict[str, dict[int, bool]] = {}
    for i, name in enumerate(series.names):
        rows = zip(series.steps.tolist(), series.values[:, i].tolist(), strict=True)
        found[name] = {step: seconds > 0 for step, seconds in rows if not math.isnan(seconds)}
    return found


def settings_of(followed: Sequence[Followed], facts: Mapping[str, Any], reference: str | None) -> dict[str, Any]:
    """Return what /run says: the settings of each optimizer, then what the user says.

    Of several optimizers each setting carries its optimizer's name, as the quantities do (`lr.generator`). Where groups
    differ, all their values are named. The learning rate is the one that was chosen, not what a warm-up makes of it
    before the first step: torch's schedulers keep it in the group as `initial_lr`, OneCycleLR as `max_lr`.
    """
    own: dict[str, Any] = {}
    for f in followed:
        own[f"optimizer{f.suffix}"] = type(f.optimizer).__name__.lower()
        for name, keys in (("lr", ("max_lr", "initial_lr", "lr")), ("momentum", ()), ("weight_decay", ())):
            of_groups = [_first_number(group, keys or (name,)) for group in f.optimizer.param_groups]
            values = [*dict.fromkeys(v for v in of_groups if v is not None)]
            if values:
                own[f"{name}{f.suffix}"] = values[0] if len(values) == 1 else _of_groups(values)
    if reference is not None:
        own["task"] = reference
    return {**own, **facts}


def _first_number(group: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    return next((float(v) for k in keys if isinstance(v := group.get(k), int | float)), None)


def _of_groups(values: Sequence[float]) -> str:
    """Return the values of groups that differ as text, the ends alone of many."""
    if len(values) <= MOST_GROUPS:
        return ", ".join(f"{v:g}" for v in values)
    return f"{min(values):g} to {max(values):g}, {len(values)} values"


def _sessions(path: Path) -> int:
    """Return the number of the last session that wrote this archive."""
    found = [0]
    with contextlib.suppress(ArchiveError):
        found.append(int(open_archive(path).attributes.get("sessions", 1)) - 1)
    for segment in sorted(live_folder(path).glob(f"*{SUFFIX}")):
        with contextlib.suppress(ArchiveError):
            found.append(int(read_segment(segment).facts.get("session", 0)))
    return max(found)
