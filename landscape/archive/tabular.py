"""Archives as CSV and Parquet: a folder with a table for each quantity, or one file with a row for each number."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArchiveError
from .convert import archive_exporter, whole_file, whole_folder
from .reader import Archive
from .schema import plain
from .tables import TEXT, WHOLE, Table, long_table, tables

_OPTIONS = {"superseded": "yes: also rows that a resumed run has overtaken, marked in a column of their own"}


@archive_exporter("csv", ".csv", _OPTIONS)
def write_csv(archive: Archive, out: Path, *, force: bool, checkpoint: str | None, superseded: Any = False) -> None:
    """A folder with a CSV table for each quantity, events, results and settings; OUT.csv: all numbers in one table.

    Numbers are written so that they are read back exactly; what was not recorded is empty.
    """
    _write(archive, out, ".csv", _csv, force=force, checkpoint=checkpoint, superseded=superseded)


@archive_exporter("parquet", ".parquet", _OPTIONS)
def write_parquet(archive: Archive, out: Path, *, force: bool, checkpoint: str | None, superseded: Any = False) -> None:
    """The tables of csv as Parquet files, with units in their metadata; needs pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ArchiveError(
            "Parquet needs pyarrow: pip install 'landscape-probe[parquet]'; or take --format csv"
        ) from None
    _write(archive, out, ".parquet", _parquet, force=force, checkpoint=checkpoint, superseded=superseded)


def _write(
    archive: Archive,
    out: Path,
    suffix: str,
    write: Callable[[Table, Path], None],
    *,
    force: bool,
    checkpoint: str | None,
    superseded: Any,
) -> None:
    late = str(superseded).lower() in ("yes", "true", "1")
    if out.name.endswith(suffix) and not out.is_dir():
        if late:
            raise ArchiveError(
                f"superseded=yes needs a folder, where rows are marked: leave {suffix} out of {out.name}"
            )
        table = long_table(archive, checkpoint=checkpoint)
        with whole_file(out, force=force) as path:
            write(table, path)
        return
    found = tables(archive, superseded=late, checkpoint=checkpoint)
    with whole_folder(out, force=force) as folder:
        for table in found:
            write(table, folder / f"{_file_name(table.name)}{suffix}")
        about = {"run": plain(archive.run), "attributes": plain(archive.attributes)}
        (folder / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _csv(table: Table, path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        for piece in table.pieces():
            columns = [_cells(piece[name], name) for name in table.columns]
            writer.writerows(zip(*columns, strict=True))


def _cells(values: Any, name: str) -> list[Any]:
    found = values.tolist() if isinstance(values, np.ndarray) else values
    if name in WHOLE:
        return ["" if v < 0 else v for v in found]  # a result that belongs to no step
    return ["" if v != v else v for v in found]


def _parquet(table: Table, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: pa.string() if name in TEXT else pa.int64() if name in WHOLE else pa.float64()
             for name in table.columns}  # fmt: skip
    schema = pa.schema(list(kinds.items()), metadata={k: v for k, v in table.about.items() if v})
    with pq.ParquetWriter(path, schema) as writer:
        for piece in table.pieces():
            arrays = [pa.array(_or_null(piece[n], n), kind) for n, kind in kinds.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _or_null(values: Any, name: str) -> Any:
    if name in WHOLE and not isinstance(values, np.ndarray):
        return [None if v < 0 else v for v in values]
    return values


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
