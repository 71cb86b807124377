"""What a sweep consists of: cells, from a full grid or from a file, each with a name of its own. No torch here."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from landscape.archive.schema import plain
from landscape.errors import TrainingError
from landscape.task_files import parse_setting
from landscape.training.expressions import parse_call, parse_sum
from landscape.training.registry import nearest

#: SGD with momentum 0.9, at rate 0.1 where none is given: He et al. 2016, arXiv:1512.03385, section 4.2.
OPTIMIZER, RATE = "sgd(momentum=0.9)", 0.1
SCHEDULE = "constant"
#: Chosen by us: the demo's, which take the digits to 99%.
EPOCHS = 20
#: All training samples in one batch.
FULL = "full"
#: Longest readable part of a folder's name; the number in front makes it unique.
_LONGEST = 80


@dataclass(frozen=True)
class Cell:
    """One training: what is combined in it, in the strings of `landscape.losses`, `schedules` and `optimizers`.

    Attributes:
        index: place in the sweep, from 1.
        loss: "" for the task's own.
        schedule: of the learning rate. optimizer: with its settings. lr: replaces the optimizer's; None keeps it.
        batch_size: samples, "full" for all of them in one batch, None for the size that the data come in.
        seed: of initial weights and data order. epochs: passes over the training data.
        settings: of the task's function.
        drive: further scalars and their schedules (`landscape.training.driver`). clip: largest gradient norm.
        average: of the weights that the training ends with (`landscape.training.averaging`), "" for the last ones.
        name: of its folder. label: what tells it apart from the others, for people.
    """

    index: int = 1
    loss: str = ""
    schedule: str = SCHEDULE
    optimizer: str = OPTIMIZER
    batch_size: int | str | None = None
    lr: float | None = RATE
    seed: int = 0
    epochs: int = EPOCHS
    settings: Mapping[str, Any] = field(default_factory=dict)
    drive: Mapping[str, str] = field(default_factory=dict)
    clip: float | None = None
    average: str = ""
    name: str = "cell"
    label: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        """Rebuild a cell; keys of a newer version are dropped."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})

    @property
    def axes(self) -> dict[str, Any]:
        """All that decides its result, flat: what tells two cells apart."""
        own = {k: getattr(self, k) for k in ("loss", "schedule", "optimizer", "batch_size", "lr", "epochs", "clip")}
        drive = {f"drive.{k}": v for k, v in self.drive.items()}
        if self.average:
            drive["average"] = self.average
        return {**own, **drive, **{k: v for k, v in self.settings.items() if k not in own}, "seed": self.seed}

    @property
    def key(self) -> str:
        """The axes as text: the same for two cells that are one training."""
        return json.dumps(plain(self.axes), sort_keys=True)


def grid(
    *,
    loss: Sequence[str] = ("",),
    schedule: Sequence[str] = (SCHEDULE,),
    optimizer: Sequence[str] | None = None,
    batch_size: Sequence[int | str | None] = (None,),
    lr: Sequence[float | None] = (None,),
    seeds: int | Sequence[int] = 1,
    epochs: int = EPOCHS,
    settings: Mapping[str, Any] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    drive: Mapping[str, str] | None = None,
    clip: float | None = None,
    average: Sequence[str] = ("",),
) -> tuple[Cell, ...]:
    """Return the full grid: every combination of what is listed, the seeds innermost.

    Without an optimizer it is SGD with momentum 0.9, whose rate is 0.1 where none is given. `vary` are settings of the
    task's function with their values; `seeds` a number of seeds (0, 1, ...) or the seeds.
    Raises TrainingError for an empty list, a repeated entry, and for values that are none.
    """
    if optimizer is None:
        optimizer, lr = (OPTIMIZER,), tuple(RATE if x is None else x for x in lr)
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    varied = {k: tuple(v) for k, v in (vary or {}).items()}
    listed = {
        "loss": tuple(_canonical_sum(x) for x in loss),
        "schedule": tuple(str(parse_call(x)) for x in schedule),
        "optimizer": tuple(str(parse_call(x, nested=True)) for x in optimizer),
        "batch_size": tuple(batch_size),
        "lr": tuple(lr),
        "average": tuple(_canonical_average(x) for x in average),
        **{f"vary {k}": v for k, v in varied.items()},
        "seeds": seeds,
    }
    for what, values in listed.items():
        if not values:
            raise TrainingError(f"{what} lists nothing: give at least one")
        twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
        if twice is not None:
            raise TrainingError(f"{what} lists {twice!r} twice")
    found = []
    for combination in itertools.product(*listed.values()):
        chosen = dict(zip(listed, combination, strict=True))
        own = {k.removeprefix("vary "): chosen.pop(k) for k in list(chosen) if k.startswith("vary ")}
        seed = chosen.pop("seeds")
        common = {"settings": {**(settings or {}), **own}, "drive": _canonical_drive(drive), "clip": clip}
        found.append(checked(Cell(**chosen, **common, seed=seed, epochs=epochs)))
    return named(found)


def read_cells(path: str | Path, **defaults: Any) -> tuple[Cell, ...]:
    """Return the cells that a file lists: .json or .jsonl with an object for each, or .csv with a header.

    Keys are those of a `Cell` (loss, schedule, optimizer, batch_size, lr, seed, epochs, clip, settings, drive); what
    an entry leaves out comes from `defaults`, else from `Cell`. In a .csv any other column is a setting of the task's
    function, and drive.NAME a schedule of NAME. Raises TrainingError for a file that can't be read so.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} can't be read ({getattr(error, 'strerror', None) or error})") from None
    if path.suffix == ".csv":
        rows = [_from_csv(row) for row in csv.DictReader(text.splitlines())]
    else:
        try:
            many = path.suffix == ".jsonl"
            rows = [json.loads(line) for line in text.splitlines() if line.strip()] if many else json.loads(text)
        except ValueError as error:
            raise TrainingError(f"{path} is no JSON ({error}); expected a list of objects, one for each cell") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(r, Mapping) for r in rows):
        raise TrainingError(f"{path} lists no cells; expected an object (or a row) for each")
    known = [f.name for f in fields(Cell) if f.name not in ("index", "name", "label")]
    found = []
    for number, row in enumerate(rows, 1):
        unknown = next((k for k in row if k not in known), None)
        if unknown is not None:
            raise TrainingError(f"{path}, cell {number}: there is no {unknown!r} in a cell{nearest(unknown, known)}")
        given: dict[str, Any] = {**defaults, **row}
        if given.get("optimizer"):
            given.setdefault("lr", None)  # the optimizer's own
        given["settings"] = {**(defaults.get("settings") or {}), **(row.get("settings") or {})}
        given["drive"] = _canonical_drive({**(defaults.get("drive") or {}), **(row.get("drive") or {})})
        try:
            given["loss"] = _canonical_sum(given.get("loss") or "")
            given["schedule"] = str(parse_call(given.get("schedule") or SCHEDULE))
            given["average"] = _canonical_average(given.get("average") or "")
            given["optimizer"] = str(parse_call(given.get("optimizer") or OPTIMIZER, nested=True))
            found.append(checked(Cell(**given)))
        except TrainingError as error:
            raise TrainingError(f"{path}, cell {number}: {error}") from None
    return named(found)


def checked(cell: Cell) -> Cell:
    """Return the cell. Raises TrainingError for numbers that can't be."""
    whole = {"seed": (cell.seed, 0), "epochs": (cell.epochs, 1)}
    if cell.batch_size not in (None, FULL):
        whole["batch_size"] = (cell.batch_size, 1)  # type: ignore[assignment]
    for name, (value, least) in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            also = ", or 'full'" if name == "batch_size" else ""
            raise TrainingError(f"{name}={value!r} must be a whole number of at least {least}{also}")
    for name, value in (("lr", cell.lr), ("clip", cell.clip)):
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (math.isfinite(value) and value > 0):
            raise TrainingError(f"{name}={value!r} must be a positive number")
    return cell


def named(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Return the cells numbered, each with a folder's name and a label made of what differs between them.

    Raises TrainingError where two are the same.
    """
    cells = tuple(cells)
    axes = [c.axes for c in cells]
    differing = [k for k in dict.fromkeys(k for a in axes for k in a) if len({_text(a.get(k)) for a in axes}) > 1]
    differing.sort(key=lambda k: k == "seed")  # last, though not every cell has all the others
    found: list[Cell] = []
    seen: dict[str, int] = {}
    for index, (cell, own) in enumerate(zip(cells, axes, strict=True), 1):
        if cell.key in seen:
            raise TrainingError(f"cells {seen[cell.key]} and {index} are the same: {_label(own, list(own))}")
        seen[cell.key] = index
        label = _label(own, differing) or f"seed {cell.seed}"
        found.append(numbered(replace(cell, label=label), index, len(cells)))
    return tuple(found)


def numbered(cell: Cell, index: int, of: int) -> Cell:
    """Return the cell with its number and the folder's name that goes with it and its label."""
    # Windows knows no * in a name, and drops dots at its end.
    slug = re.sub(r"[^A-Za-z0-9_.=+]+", "-", cell.label.replace(" ", ""))[:_LONGEST].strip("-.")
    return replace(cell, index=index, name=f"{index:0{max(3, len(str(of)))}d}-{slug}")


def joined(cells: Sequence[Cell], there: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return cells as a folder with the cells `there` has them, or will have them: those there first, in their folders.

    Cells that extend it come behind, under the next numbers, and give the labels, because more may differ among them;
    of a part of what is there the labels stay. Returns `cells` where neither holds all of the other.
    """
    mine = {c.key: c for c in cells}
    old = {c.key: c for c in there}
    if mine.keys() <= old.keys():
        return tuple(c for c in there if c.key in mine)
    if not old.keys() <= mine.keys():
        return tuple(cells)
    kept = [replace(mine[c.key], index=c.index, name=c.name) for c in there]
    first = max((c.index for c in there), default=0) + 1
    new = (c for c in cells if c.key not in old)
    return (*kept, *(numbered(c, index, len(cells)) for index, c in enumerate(new, first)))


def _label(axes: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return what differs as people write it: names of losses, schedules and optimizers alone, the others with them."""
    said = []
    for name in names:
        value = axes.get(name)
        if name in ("loss", "schedule", "optimizer"):
            said.append(str(value).replace(" ", "") if value else "own loss")
        elif name == "average":
            said.append(str(value).replace(" ", "") if value else "no average")
        elif name == "batch_size":
            said.append(f"batch {value}" if value is not None else "own batches")
        elif value is not None:
            said.append(f"{name} {_text(value)}")
    return ", ".join(said)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _canonical_sum(text: str) -> str:
    return " + ".join(map(str, parse_sum(text))) if text else ""


def _canonical_average(text: str) -> str:
    """Return how weights are averaged; "" for none and "none"."""
    return "" if text in ("", "none") else str(parse_call(text))


def _canonical_drive(drive: Mapping[str, str] | None) -> dict[str, str]:
    return {k: str(parse_call(v)) for k, v in (drive or {}).items()}


def _from_csv(row: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a row with numbers as numbers; an empty field is left out."""
    own = {f.name for f in fields(Cell)} - {"settings", "drive", "index", "name", "label"}
    found: dict[str, Any] = {"settings": {}, "drive": {}}
    for key, text in row.items():
        if key is None or text is None:
            raise TrainingError("a row has more or fewer fields than the header")
        text = text.strip()
        if not text:
            continue
        if key.startswith("drive."):
            found["drive"][key.removeprefix("drive.")] = text
        elif key in ("loss", "schedule", "optimizer", "average"):
            found[key] = text
        else:
            value = parse_setting(f"{key}={text}")[1]
            if key in own:
                found[key] = value
            else:
                found["settings"][key] = value
    return found
