"""Saved predictions as people have them: scores and labels out of .npz, .pt, .csv and .parquet files, by name."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import MeasurementError
from .inputs import Form, Kind

#: Names that are taken for what they say; a table's scores are these with the class behind them: logit_0, p_0.
NAMES: Mapping[str, tuple[str, ...]] = {
    "logits": ("logits", "logit"),
    "probabilities": ("probabilities", "probs", "probability", "prob", "p"),
    "labels": ("labels", "label", "targets", "target"),
}
SUFFIXES = (".npz", ".pt", ".pth", ".csv", ".tsv", ".parquet")
_KINDS: tuple[Kind, ...] = ("logits", "probabilities")


@dataclass(frozen=True)
class SavedPredictions:
    """Scores of one kind with their labels, as they lie in a file; `notes` say what was taken for what."""

    path: str
    kind: Kind
    scores: Any
    labels: Any
    groups: Any = None
    notes: tuple[str, ...] = ()

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of `calibration_error` and `recalibrate`."""
        return {self.kind: self.scores, "labels": self.labels, "groups": self.groups}


def read_saved(
    path: str | os.PathLike[str],
    *,
    logits: str | None = None,
    probabilities: str | None = None,
    labels: str | None = None,
    groups: str | None = None,
    kind: Form | None = None,
) -> SavedPredictions:
    """Return scores and labels from a file of saved predictions; nothing in the file is executed.

    Args:
        path: .npz (NumPy), .pt or .pth (a dict of tensors, read with weights_only), .csv or .tsv (a header, one
            row a prediction; also .gz), .parquet (with the extra landscape-probe[parquet]).
        logits, probabilities: the name of the array that holds the scores, or of the columns without the class number
            ("logit" for logit_0, logit_1, ...); in a table the name of a single column is the score of class 1 of
            a binary task. None looks for the usual names (`NAMES`).
        labels: the name of the labels, class indices.
        groups: the name of whole numbers that say which samples depend on each other (the patient of each scan); never
            looked for unasked.
        kind: as in `calibration_error`; unless it says otherwise, a single column is noted to be a binary task.

    Whether numbers are logits or probabilities is never guessed from them: where neither name is there, or both are,
    the error says which option to give. Memory: the file's numbers, in float64 for tables.

    Raises MeasurementError in one line for everything that does not fit.
    """
    where = Path(path)
    if not where.is_file():
        raise MeasurementError(
            f"no predictions at {path}; " + ("it is a folder" if where.is_dir() else "check the path")
        )
    if logits is not None and probabilities is not None:
        raise MeasurementError("give --logits or --probabilities, one of them: which of the two the numbers are")
    suffix = _suffix(where)
    reader = _READERS.get(suffix)
    if reader is None:
        hint = (
            "; save scores and labels together with numpy.savez(path, logits=..., labels=...)"
            if suffix == ".npy"
            else ""
        )
        raise MeasurementError(f"{path} is none of {', '.join(SUFFIXES)}{hint}")
    named = {"logits": logits, "probabilities": probabilities, "labels": labels, "groups": groups}
    found = reader(where, named)
    if np.ndim(found.scores) == 1 and kind in (None, "binary"):
        one = {"logits": "logit", "probabilities": "probability"}[found.kind]
        note = f"one column: the {one} of class 1 of a binary task"
        found = dataclasses.replace(found, notes=(*found.notes, note))
    return found


def looks_saved(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of saved predictions by its suffix or, for .pt, by the usual names in it."""
    where = Path(path)
    suffix = _suffix(where)
    if suffix not in (".pt", ".pth"):
        return suffix in _READERS or suffix == ".npy"
    try:
        held = _load_torch(where)
    except MeasurementError:
        return False
    return any(_is_array(held.get(n)) for n in NAMES["labels"]) and any(
        _is_array(held.get(n)) for kind in _KINDS for n in NAMES[kind]
    )


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


# ------------------------------------------------------------------------------------------------ arrays by name


def _read_npz(path: Path, named: Mapping[str, str | None]) -> SavedPredictions:
    try:
        with open(path, "rb") as raw:  # NumPy would leave a damaged file open
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise MeasurementError(f"{path} holds a single array without a name; save it with numpy.savez")
            with file:
                # Only the arrays that are asked for are read; the others may be large.
                return _from_arrays(path, _Lazy(file), named)
    except MeasurementError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise MeasurementError(f"{path} can't be read as .npz: {_short(error)}") from error


class _Lazy(Mapping[str, Any]):
    """The arrays of an .npz file, read when they are asked for, with the reason where one can't be."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getitem__(self, name: str) -> np.ndarray:
        return self.file[name]

    def __iter__(self):
        return iter(self.file.files)

    def __len__(self) -> int:
        return len(self.file.files)


def _read_torch(path: Path, named: Mapping[str, str | None]) -> SavedPredictions:
    return _from_arrays(path, _load_torch(path), named)


def _load_torch(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises all kinds for a damaged or foreign file
        raise MeasurementError(
            f"{path} can't be read with weights_only=True: {_short(error)}; save a dict of tensors: "
            "torch.save({'logits': logits, 'labels': labels}, path)"
        ) from error
    if not isinstance(held, Mapping):
        raise MeasurementError(
            f"{path} holds a {type(held).__name__}, expected a dict of tensors: "
            "torch.save({'logits': logits, 'labels': labels}, path)"
        )
    return held


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _from_arrays(path: Path, held: Mapping[str, Any], named: Mapping[str, str | None]) -> SavedPredictions:
    names = [str(n) for n in held]
    described = ", ".join(names[:20]) or "nothing"
    kind, key = _choose(path, names, named, described)
    label = _label(path, names, named, described)
    group = _group(path, names, named, described)
    scores, labels, groups = held[key], held[label], None if group is None else held[group]
    for name, value in ((key, scores), (label, labels), *([(group, groups)] if group else [])):
        if not _is_array(value):
            raise MeasurementError(f"{name!r} in {path} is a {type(value).__name__}, expected a tensor or an array")
    note = f"{kind} from {key!r}, labels from {label!r}" + (f", groups from {group!r}" if group else "")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if scores.ndim == 2 and scores.shape[1] == 1 and labels.ndim == 1:
        scores = scores[:, 0]
    return SavedPredictions(str(path), kind, scores, labels, groups, (note,))


def _choose(path: Path, names: Sequence[str], named: Mapping[str, str | None], described: str) -> tuple[Kind, str]:
    """Return which kind the scores are and what they are called, by the option given or the usual names."""
    for kind in _KINDS:
        key = named[kind]
        if key is not None:
            if key not in names:
                raise MeasurementError(f"{path} has no {key!r} (--{kind}); it holds {described}")
            return kind, key
    found: list[tuple[Kind, str]] = [(kind, n) for kind in _KINDS for n in NAMES[kind] if n in names]
    if len(found) == 1:
        return found[0]
    raise _which(path, [n for _, n in found], described)


def _which(path: Path, found: Sequence[str], described: str) -> MeasurementError:
    if found:
        return MeasurementError(
            f"{path} holds {' and '.join(found)}: say which to take with --logits NAME or --probabilities NAME"
        )
    return MeasurementError(
        f"{path} has neither logits nor probabilities by name; say what the scores are called, and which of the two "
        f"they are, with --logits NAME or --probabilities NAME; it holds {described}"
    )


def _label(path: Path, names: Sequence[str], named: Mapping[str, str | None], described: str) -> str:
    key = named["labels"]
    found = [n for n in NAMES["labels"] if n in names] if key is None else [n for n in (key,) if n in names]
    if len(found) == 1:
        return found[0]
    if key is not None:
        raise MeasurementError(f"{path} has no {key!r} (--labels); it holds {described}")
    told = f"holds {' and '.join(found)}" if found else f"has no labels by name; it holds {described}"
    raise MeasurementError(f"{path} {told}; say what the labels are called with --labels NAME")


def _group(path: Path, names: Sequence[str], named: Mapping[str, str | None], described: str) -> str | None:
    key = named["groups"]
    if key is not None and key not in names:
        raise MeasurementError(f"{path} has no {key!r} (--groups); it holds {described}")
    return key


# ------------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that hold the scores, class by class, and the one with the labels."""

    kind: Kind
    scores: tuple[str, ...]
    labels: str
    groups: str | None
    note: str

    @property
    def all(self) -> list[str]:
        """Every column that is read: the scores, the labels, the groups."""
        return [*self.scores, self.labels, *([self.groups] if self.groups else [])]


def _columns(path: Path, header: Sequence[str], named: Mapping[str, str | None]) -> _Columns:
    shown = ", ".join(header[:12]) + (f", ... ({len(header)} columns)" if len(header) > 12 else "")
    if len(set(header)) < len(header):
        twice = next(n for n in header if header.count(n) > 1)
        raise MeasurementError(f"{path} has the column {twice!r} twice; rename one")
    label = _label(path, header, named, shown)
    group = _group(path, header, named, shown)
    rest = [n for n in header if n not in (label, group)]
    found: list[tuple[Kind, str, tuple[str, ...]]] = []
    for kind in _KINDS:
        key = named[kind]
        if key is not None:
            columns = _numbered(path, rest, key)
            if not columns:
                raise MeasurementError(f"{path} has no column {key!r}, {key}_0 or {key}0 (--{kind}); it has {shown}")
            found = [(kind, key, columns)]
            break
        for name in NAMES[kind]:
            columns = _numbered(path, rest, name)
            if columns:
                found.append((kind, name, columns))
    if len(found) != 1:
        raise _which(path, [n for _, n, _ in found], shown)
    kind, _, columns = found[0]
    span = columns[0] if len(columns) == 1 else f"{columns[0]} to {columns[-1]}"
    note = f"{kind} from {span}, labels from {label!r}" + (f", groups from {group!r}" if group else "")
    return _Columns(kind, columns, label, group, note)


def _numbered(path: Path, header: Sequence[str], name: str) -> tuple[str, ...]:
    """Return the columns name_0, name_1, ... (or name0, ...) in the order of the classes, or the one called `name`."""
    for pattern in (rf"{re.escape(name)}_(\d+)", rf"{re.escape(name)}(\d+)"):
        found = {int(m[1]): n for n in header if (m := re.fullmatch(pattern, n))}
        if found:
            if sorted(found) != list(range(len(found))):
                missing = next(i for i in range(len(found) + 1) if i not in found)
                raise MeasurementError(
                    f"{path} has {len(found)} columns of {name!r}, but none for class {missing}: expected one for each "
                    f"class from 0 on, got {', '.join(found[i] for i in sorted(found)[:6])}"
                )
            return tuple(found[i] for i in range(len(found)))
    return (name,) if name in header else ()


def _from_table(
    path: Path, columns: _Columns, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray | None
) -> SavedPredictions:
    """Return the predictions of a table's columns; `labels` and `groups` may be whole numbers as floats."""
    labels = _whole(path, labels, "label", "a class index")
    groups = None if groups is None else _whole(path, groups, "group", "a whole number")
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    return SavedPredictions(str(path), columns.kind, scores, labels, groups, (columns.note,))


def _whole(path: Path, values: np.ndarray, what: str, expected: str) -> np.ndarray:
    if values.dtype.kind != "f":
        return values
    wrong = ~np.isfinite(values) | (values != np.round(values))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise MeasurementError(
            f"{path}: the {what} in row {row} is {values[row]:g}, expected {expected} (rows count from 0, without the "
            "header)"
        )
    return values.astype(np.int64)


def _read_csv(path: Path, named: Mapping[str, str | None]) -> SavedPredictions:
    opened: Callable[..., Any] = gzip.open if path.name.lower().endswith(".gz") else open
    header: list[str] = []
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = _delimiter(path, first)
            header += [n.strip() for n in next(csv.reader([first], delimiter=delimiter), [])]
            if not header:
                raise MeasurementError(f"{path} is empty; expected a header such as label,p_0,p_1 and a row each")
            columns = _columns(path, header, named)
            taken = [header.index(n) for n in columns.all]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an empty table: said below
                # NumPy's own C reader: 60 MB/s, and nothing but the numbers in memory.
                found = np.loadtxt(file, np.float64, None, delimiter, usecols=taken, ndmin=2, quotechar='"')
    except MeasurementError:
        raise
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise MeasurementError(f"{path} can't be read as text: {_short(error)}") from error
    except ValueError as error:
        raise MeasurementError(f"{path}: {_located(error, header)}") from error
    if not len(found):
        raise MeasurementError(f"{path} has a header and no rows")
    k = len(columns.scores)
    return _from_table(path, columns, found[:, :k], found[:, k], found[:, -1] if columns.groups else None)


def _delimiter(path: Path, line: str) -> str:
    if _suffix(path) == ".tsv":
        return "\t"
    return ";" if ";" in line and "," not in line else ","


def _located(error: ValueError, header: Sequence[str]) -> str:
    """Return NumPy's complaint with the line and column of the file."""
    text = str(error)
    found = re.search(r"could not convert string (.*) to \w+ at row (\d+), column (\d+)", text, re.DOTALL)
    if found:
        what = "an empty cell" if found[1] in ("''", '""') else found[1]
        # NumPy counts rows from 0 behind the header, and columns from 1 in the file.
        return (
            f"expected a number, got {what} in line {int(found[2]) + 2}, column {header[int(found[3]) - 1]!r}; "
            "scores are numbers, labels class indices"
        )
    found = re.search(r"at row (\d+) with (\d+) columns", text)
    if found:
        return f"line {int(found[1]) + 1} has {found[2]} cells, the header has {len(header)}"
    return _short(error)


def _read_parquet(path: Path, named: Mapping[str, str | None]) -> SavedPredictions:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MeasurementError(
            f"{path}: reading .parquet needs pyarrow; install it with pip install 'landscape-probe[parquet]'"
        ) from error
    try:
        header = parquet.read_schema(path).names
        columns = _columns(path, header, named)
        table = parquet.read_table(path, columns=columns.all)
        parts = [_numbers(path, n, table.column(n)) for n in columns.scores]
        labels = _numbers(path, columns.labels, table.column(columns.labels))
        groups = _numbers(path, columns.groups, table.column(columns.groups)) if columns.groups else None
    except (pyarrow.ArrowException, OSError) as error:
        raise MeasurementError(f"{path} can't be read as parquet: {_short(error)}") from error
    if not len(labels):
        raise MeasurementError(f"{path} has no rows")
    scores = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    return _from_table(path, columns, scores, labels, groups)


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:
    """Return a column of numbers as (n,), a column of lists of one length as (n, length); no empty cells."""
    import pyarrow
    from pyarrow import compute

    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise MeasurementError(
            f"{path}: row {row} of the column {name!r} is empty (rows count from 0); leave such rows out"
        )
    kind = column.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        lengths = compute.list_value_length(column).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        width = int(lengths[0]) if len(lengths) else 0
        if (lengths != width).any():
            row = int(np.argmax(lengths != width))
            raise MeasurementError(
                f"{path}: row {row} of the column {name!r} has {lengths[row]} numbers, row 0 has {width}; expected one "
                "for each class"
            )
        values = compute.list_flatten(column)  # pyright: ignore[reportAttributeAccessIssue]
        if values.null_count:
            raise MeasurementError(f"{path}: the lists in the column {name!r} have empty entries; leave such rows out")
        return values.to_numpy().reshape(len(lengths), width)
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)):
        raise MeasurementError(f"{path}: the column {name!r} holds {kind}, expected numbers")
    return column.to_numpy()


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


_READERS: Mapping[str, Callable[[Path, Mapping[str, str | None]], SavedPredictions]] = {
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
