"""`sweep.json`: which sweep a folder belongs to: it may grow, and nothing of another one is mixed in. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from landscape.archive.schema import plain
from landscape.errors import TrainingError

from .grid import Cell, joined
from .locking import locked
from .outcome import write_text

NAME, FORMAT = "sweep.json", 1
#: What may lie in the folder of a sweep that has not begun: range tests.
_OURS = ("lr_find.h5",)
#: Values of an axis that an error names.
_SHOWN = 4


@dataclass(frozen=True)
class Manifest:
    """A sweep: its task, its cells, and how each is recorded and measured.

    `task` is "file.py:name" ("" for a function without a file), `sha256` of that file. `how` are the fields of
    `cell.How` that are plain. What was measured doesn't make another sweep of it: cells, task and file do.
    """

    task: str
    sha256: str
    cells: tuple[Cell, ...]
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of what decides the weights that come out: the task and the cells."""
        decisive = {"task": self.task, "cells": [c.to_dict() for c in self.cells]}
        return hashlib.sha256(json.dumps(plain(decisive), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "task": self.task,
            "task_sha256": self.sha256,
            "how": plain(dict(self.how)),
            "cells": [plain(c.to_dict()) for c in self.cells],
        }

    def differs_from(self, there: Manifest) -> str:
        """Return in words why this sweep can't go on in the folder of another, "" where one holds all of the other."""
        if self.task != there.task:
            return f"its task is {there.task or 'a function'}, here it is {self.task or 'a function'}"
        mine = {c.key for c in self.cells}
        strange = next((c for c in there.cells if c.key not in mine), None)
        if strange is None or mine <= {c.key for c in there.cells}:
            return ""
        # Of a grid, some axis leaves out what the strange cell has there; of a list of cells perhaps none does.
        for name in dict.fromkeys([*strange.axes, *(k for c in self.cells for k in c.axes)]):
            own = _said(name, strange.axes.get(name))
            listed = list(dict.fromkeys(_said(name, c.axes.get(name)) for c in self.cells))
            if own not in listed:
                return f"{name} of cell {strange.index} is {own}, here it is {' or '.join(listed[:_SHOWN])}"
        return f"its cell {strange.index} ({strange.label}) is not among the {len(self.cells)} here"


def _said(name: str, value: Any) -> str:
    return "the task's own" if name == "loss" and not value else repr(plain(value))


def read_manifest(folder: str | Path) -> Manifest | None:
    """Return the manifest of a folder, None where there is none. Raises TrainingError where it can't be read."""
    path = Path(folder) / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] > FORMAT:
            raise TrainingError(f"{path} was written by a newer landscape; update to go on with it")
        cells = tuple(Cell.from_dict(c) for c in data["cells"])
        return Manifest(data["task"], data["task_sha256"], cells, data.get("how", {}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{path} can't be read ({error}); choose another folder") from None


def claim(folder: str | Path, manifest: Manifest, *, resume: bool = False, changed: bool = False) -> Manifest:
    """Make the folder this sweep's, or find that it is; return the sweep as the folder then has it.

    A sweep with all the cells that are there and further ones extends it: those there keep their folders and numbers.
    One that is a part of what is there finds its own. Several jobs of an array may do so at once. Args as for `admit`.

    Raises TrainingError as `admit`, and where the folder holds other files or can't be written.
    """
    folder = Path(folder)
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = read_manifest(folder)
        if there is None:
            others = [p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name not in _OURS]
            if others and not _claimed_meanwhile(path):
                raise TrainingError(f"{folder} holds files that are no sweep's ({others[0]}); choose another folder")
            there = _create(path, manifest)
        if there is None:
            return manifest
        admit(folder, manifest, there, resume=resume, changed=changed)
        if not _new(manifest, there):
            return there
        with locked(folder):
            there = read_manifest(folder) or there  # as it is now that nobody else extends it
            admit(folder, manifest, there, resume=resume, changed=changed)
            extended = replace(there, cells=joined(manifest.cells, there.cells))
            write_text(path, _text(extended))
        return extended
    except OSError as error:
        raise TrainingError(f"{folder} can't be written: {error.strerror or error}") from error


def admit(folder: str | Path, manifest: Manifest, there: Manifest, *, resume: bool, changed: bool) -> None:
    """Find whether a sweep may go on in a folder that holds `there`, or extend it.

    `resume`: the sweep may be there already. `changed`: the task's file may be another one than it was.

    Raises TrainingError where the folder belongs to another sweep (and says where they differ), was made with another
    task's file, or holds this sweep without `resume`.
    """
    different = manifest.differs_from(there)
    if different:
        raise TrainingError(
            f"{folder} holds another sweep: {different}; choose another folder (what extends a sweep lists all that "
            "it has, and more)"
        )
    if manifest.sha256 != there.sha256 and not changed:
        raise TrainingError(
            f"the task's file {manifest.task.rpartition(':')[0]} changed since the sweep in {folder} was begun, so "
            "that its cells would not be comparable; choose another folder, or pass --allow-changed if the change "
            "doesn't matter"
        )
    if not resume:
        new = _new(manifest, there)
        what = f"{len(there.cells)} of these {len(manifest.cells)} cells" if new else "this sweep"
        add = f", and to add the other {new}" if new else ""
        raise TrainingError(f"{folder} holds {what} already; pass --resume to go on with it{add}")


def _new(manifest: Manifest, there: Manifest) -> int:
    old = {c.key for c in there.cells}
    return sum(c.key not in old for c in manifest.cells)


def _claimed_meanwhile(path: Path) -> bool:
    return path.exists()


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest.to_dict(), indent=1)


def _create(path: Path, manifest: Manifest) -> Manifest | None:
    """Write the manifest whole, or return the one that another process was first with."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(_text(manifest) + "\n", encoding="utf-8")
    try:
        os.link(beside, path)  # fails where there is one, however many try at once
        return None
    except FileExistsError:
        return read_manifest(path.parent)
    except OSError:  # a file system without hard links: the last one wins, and all write the same
        os.replace(beside, path)
        return None
    finally:
        beside.unlink(missing_ok=True)


def share(cells: Sequence[Cell], text: str) -> tuple[Cell, ...]:
    """Return the cells of one job of an array: "3/18" is the third of 18 nearly equal shares, "3" the third cell.

    Raises TrainingError for a share that there is none of.
    """
    number, slash, parts = text.partition("/")
    try:
        i, n = int(number), int(parts) if slash else len(cells)
    except ValueError:
        raise TrainingError(f"{text!r} is no share of the cells; type 3/18, or 3 for the third cell") from None
    if not 1 <= i <= n:
        raise TrainingError(f"there is no share {text}; they run from 1 to {n}")
    return tuple(cells[i - 1 :: n])
