"""Tables of predictions, .csv and .parquet: a column for each class, or one of lists, and one with the labels."""

from __future__ import annotations

import csv
import gzip
import re
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MeasurementError
from .inputs import Kind
from .saved import KINDS, NAMES, SavedPredictions, find_groups, find_labels, in_short, which_scores


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
    label = find_labels(path, header, named, shown)
    group = find_groups(path, header, named, shown)
    rest = [n for n in header if n not in (label, group)]
    found: list[tuple[Kind, str, tuple[str, ...]]] = []
    for kind in KINDS:
        key = named[kind]
        if key is not None:
            columns = _listed(path, rest, key, shown) if "," in key and key not in rest else _numbered(path, rest, key)
            if not columns:
                raise MeasurementError(
                    f"{path} has no column {key!r}, {key}_0 or {key}0 (--{kind}); it has {shown}; columns with names "
                    f"of their own are listed in the order of the classes: --{kind} A,B,C"
                )
            found = [(kind, key, columns)]
            break
        for name in NAMES[kind]:
            columns = _numbered(path, rest, name)
            if columns:
                found.append((kind, name, columns))
    if len(found) != 1:
        raise which_scores(path, [n for _, n, _ in found], shown)
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


def _listed(path: Path, header: Sequence[str], names: str, shown: str) -> tuple[str, ...]:
    """Return the columns "A,B,C", one for each class in this order."""
    columns = tuple(n.strip() for n in names.split(","))
    for name in columns:
        if name not in header:
            raise MeasurementError(f"{path} has no column {name!r} for the scores; it has {shown}")
    if len(set(columns)) < len(columns):
        raise MeasurementError(f"{names!r} lists a column twice; expected one for each class")
    return columns


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


def read_csv(path: Path, named: Mapping[str, str | None]) -> SavedPredictions:
    """Return the predictions of a .csv or .tsv file, .gz or not; raises MeasurementError in one line."""
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
        raise MeasurementError(f"{path} can't be read as text: {in_short(error)}") from error
    except ValueError as error:
        raise MeasurementError(f"{path}: {_located(error, header)}") from error
    if not len(found):
        raise MeasurementError(f"{path} has a header and no rows")
    k = len(columns.scores)
    return _from_table(path, columns, found[:, :k], found[:, k], found[:, -1] if columns.groups else None)


def _delimiter(path: Path, line: str) -> str:
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
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
    return in_short(error)


def read_parquet(path: Path, named: Mapping[str, str | None]) -> SavedPredictions:
    """Return the predictions of a .parquet file; raises MeasurementError in one line."""
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
        raise MeasurementError(f"{path} can't be read as parquet: {in_short(error)}") from error
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
