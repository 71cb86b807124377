"""What goes into the lines of JSON that processes speak to each other in: arguments, bytes, rows of numbers."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.errors import MeasurementError


def portable(value: Any, where: str) -> Any:
    """Return what a worker is told of a run's arguments: text, numbers, bools, None, and lists and mappings of these.

    Raises MeasurementError for anything else; `where` is what the value is called.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [portable(v, where) for v in value]
    if isinstance(value, Mapping):
        return {str(k): portable(v, f"{where}[{k!r}]") for k, v in value.items()}
    raise MeasurementError(
        f"{where} is a {type(value).__name__}, which can't be told to several workers; give text, numbers and lists of "
        "them, or measure with workers=1"
    )


def in_text(data: bytes) -> str:
    """Return bytes as a text."""
    return b64encode(data).decode("ascii")


def out_of_text(text: str) -> bytes:
    """Return the bytes that `in_text` was given."""
    return b64decode(text)


def rows_in_text(rows: np.ndarray) -> list[Any]:
    """Return (n, columns) float64 rows, bit for bit, as a text and the number of columns."""
    return [in_text(np.ascontiguousarray(rows, dtype="<f8").tobytes()), rows.shape[1]]


def rows_out_of_text(told: Sequence[Any]) -> np.ndarray:
    """Return the rows that `rows_in_text` was given."""
    text, columns = told
    return np.frombuffer(out_of_text(text), dtype="<f8").astype(np.float64).reshape(-1, columns)
