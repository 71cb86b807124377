"""Saved predictions as people have them: scores and labels out of .npz, .pt, .csv and .parquet files, by name."""

from __future__ import annotations

import dataclasses
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import MeasurementError
from .inputs import Form
from .saved import KINDS, NAMES, SavedPredictions, find_groups, find_labels, find_scores, in_short
from .saved_tables import read_csv, read_parquet

SUFFIXES = (".npz", ".pt", ".pth", ".csv", ".tsv", ".parquet")


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
        _is_array(held.get(n)) for kind in KINDS for n in NAMES[kind]
    )


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _read_npz(path: Path, named: Mapping[str, str | None]) -> SavedPredictions:
    try:
        with open(path, "rb") as raw:  # NumPy would leave a damaged file open
            if raw.read(4) not in (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUM"):
                # NumPy would take it for a pickle, and advise to run it.
                raise MeasurementError(
                    f"{path} is no .npz file (its first bytes aren't a zip's); save it with numpy.savez"
                )
            raw.seek(0)
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise MeasurementError(f"{path} holds a single array without a name; save it with numpy.savez")
            with file:
                # Only the arrays that are asked for are read; the others may be large.
                return _from_arrays(path, _Lazy(file), named)
    except MeasurementError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise MeasurementError(f"{path} can't be read as .npz: {in_short(error)}") from error


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
            f"{path} can't be read with weights_only=True: {in_short(error)}; save a dict of tensors: "
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
    kind, key = find_scores(path, names, named, described)
    label = find_labels(path, names, named, described)
    group = find_groups(path, names, named, described)
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


_READERS: Mapping[str, Callable[[Path, Mapping[str, str | None]], SavedPredictions]] = {
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
