"""What became of cells: a result for each, whatever happened, as a file in its folder. No torch here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from landscape.archive.schema import dump_json, load_json
from landscape.errors import TrainingError

from .grid import Cell

Status = Literal["pending", "running", "interrupted", "trained", "complete", "diverged", "failed"]
#: After these a resumed sweep has nothing left to do.
FINISHED: tuple[Status, ...] = ("complete", "diverged", "failed")
#: Files of a cell's folder.
ARCHIVE, FINAL, LAST, STATE, ERROR, LOCK = "run.h5", "final.pt", "last.pt", "cell.json", "error.txt", ".lock"
#: The last weights of a training whose average is its end.
UNAVERAGED = "unaveraged.pt"


@dataclass(frozen=True)
class CellResult:
    """One cell as it stands.

    Attributes:
        status: pending; running (or killed at it); interrupted (saved, left); trained (not measured yet); complete;
            diverged or failed, with the reason.
        step, steps, epoch: optimizer steps taken, of how many; epochs ended. seconds: spent on training and measuring.
        metrics: numbers by name: train_loss, test_accuracy, curvature.trace.value, ...
        initial_weights, final_weights, order: SHA-256 of the weights before and after, and of the data order: equal for
            cells that may be compared.
        attempts: how often it was begun or gone on with. notes: what is worth knowing.
    """

    cell: Cell
    folder: str = ""
    status: Status = "pending"
    reason: str = ""
    step: int = 0
    steps: int = 0
    epoch: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    initial_weights: str = ""
    final_weights: str = ""
    order: str = ""
    attempts: int = 0
    notes: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in FINISHED

    @property
    def archive(self) -> Path:
        """The archive of its training and of the measurements of its final checkpoint."""
        return Path(self.folder) / ARCHIVE

    @property
    def checkpoint(self) -> Path:
        """Its final checkpoint."""
        return Path(self.folder) / FINAL

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, the folder left out: a sweep may be moved."""
        own = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("cell", "folder")}
        return {"cell": self.cell.to_dict(), **own, "metrics": dict(self.metrics), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], folder: str) -> CellResult:
        """Rebuild a result; keys of a newer version are dropped."""
        own = {k: data[k] for k in cls.__dataclass_fields__ if k in data and k not in ("cell", "folder")}
        own["notes"] = tuple(own.get("notes", ()))
        return cls(cell=Cell.from_dict(data["cell"]), folder=folder, **own)


def write_result(result: CellResult) -> None:
    """Write `cell.json`, whole or not at all. Raises TrainingError where the folder can't be written."""
    write_text(Path(result.folder) / STATE, json.dumps(json.loads(dump_json(result.to_dict())), indent=1))


class UnreadableError(TrainingError):
    """A `cell.json` that can't be read."""


def set_aside(cell: Cell, folder: Path) -> CellResult:
    """Put a `cell.json` that can't be read beside itself, and return that the cell goes on from its last state."""
    os.replace(folder / STATE, folder / f"{STATE}.damaged")
    found = CellResult(cell, str(folder), status="interrupted", reason=f"its {STATE} could not be read")
    write_result(found)
    return found


def read_result(cell: Cell, folder: Path) -> CellResult:
    """Return what `cell.json` of a cell's folder says, pending where there is none.

    Raises UnreadableError where it can't be read, TrainingError where it is of another cell.
    """
    path = folder / STATE
    try:
        data = load_json(path.read_text(encoding="utf-8"))
        found = CellResult.from_dict(data, str(folder))
    except FileNotFoundError:
        return CellResult(cell, str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableError(
            f"{path} can't be read ({error}); --resume sets it aside and goes on from the cell's last saved state"
        ) from None
    if found.cell.axes != cell.axes:
        raise TrainingError(f"{folder} holds another cell ({found.cell.label}), expected {cell.label}")
    return replace(found, cell=cell)  # whose label may have become longer: the sweep was extended


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise TrainingError(f"{path} can't be written: {error.strerror or error}") from error


def flat_numbers(found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of nested data under dotted names; of a list its first, booleans and NaN left out."""
    numbers: dict[str, float] = {}
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{name}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], int | float):
            numbers[name] = float(value[0])
        elif isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            numbers[name] = float(value)
    return numbers
