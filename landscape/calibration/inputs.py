"""Predictions and labels as people have them, checked and never guessed: one row a prediction, class scores last."""

from __future__ import annotations

import dataclasses
import warnings as _warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from ..errors import MeasurementError
from ..widest import with_float64

Kind = Literal["logits", "probabilities"]
#: What a row of predictions is: one of several classes, class 1 or not, several labels each there or not, or the
#: confidence of a predicted label that is right or wrong.
Form = Literal["multiclass", "binary", "multilabel", "top-label"]
# Class scores that are widened to float64 at a time: 32 MiB (chosen by us; fits any cache hierarchy's last level).
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Predictions:
    """Predictions laid out on their device: `scores` (n, C), or (n,) where one number is all, in their own precision.

    `truth` (n,) int64 holds the labels; `dtype` the precision that the scores came in. `form` says what a row is:
    multi-label predictions are n * L rows here, `column` (n * L,) says of which of the `columns` = L labels. `groups`
    (n,) int64 numbers what rows belong together: what the caller gave (`named`), or the `members` samples that pixels,
    tokens and labels came from. `warnings` are for whoever shows the numbers, `where` names a row for messages.
    """

    kind: Kind
    form: Form
    scores: torch.Tensor
    truth: torch.Tensor
    dtype: str
    dependent: bool
    warnings: tuple[str, ...] = ()
    groups: torch.Tensor | None = None
    members: int = 0
    named: bool = False
    column: torch.Tensor | None = None
    columns: int = 1
    where: Callable[[int], str] = lambda row: f"row {row}"

    @property
    def binary(self) -> bool:
        """Whether `scores` are those of class 1 alone (or of the predicted label)."""
        return self.scores.ndim == 1

    @property
    def classes(self) -> int:
        """Number of classes; of a multi-label task, number of labels."""
        if self.form == "multilabel":
            return self.columns
        return 2 if self.binary else self.scores.shape[1]

    @property
    def values(self) -> np.ndarray:
        """The scores as a NumPy array on the host; bfloat16 as float32, which holds it exactly."""
        scores = self.scores.cpu()
        return (scores.float() if scores.dtype == torch.bfloat16 else scores).numpy()

    @property
    def labels(self) -> np.ndarray:
        """The labels as a NumPy array on the host, (n,) int64."""
        return self.truth.cpu().numpy()

    def select(self, rows: Any) -> Predictions:
        """Return the predictions of these rows (a slice: without a copy)."""
        return dataclasses.replace(
            self,
            scores=self.scores[rows],
            truth=self.truth[rows],
            groups=None if self.groups is None else self.groups[rows],
            column=None if self.column is None else self.column[rows],
        )

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give (values in float64, labels) in blocks of rows, so that memory stays bounded."""
        step = max(1, _CHUNK // (1 if self.binary else self.classes))
        values, labels = self.values, self.labels
        for start in range(0, len(labels), step):
            rows = slice(start, start + step)
            yield values[rows].astype(np.float64), labels[rows]


def lay_out(
    *,
    logits: Any,
    probabilities: Any,
    labels: Any,
    ignore_index: int | None,
    class_dim: int,
    kind: Form | None,
    groups: Any,
) -> Predictions:
    """Bring shapes and types in order, without a look at the numbers (which may lie on a device)."""
    if (logits is None) == (probabilities is None):
        raise MeasurementError(
            f"give logits= or probabilities=, exactly one of them, got {'neither' if logits is None else 'both'}: "
            "which of the two the numbers are is never guessed"
        )
    for name, value in (("ignore_index", ignore_index), ("class_dim", class_dim)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if kind not in (None, *get_args(Form)):
        raise MeasurementError(f"kind={kind!r} is not one of {', '.join(map(repr, get_args(Form)))} or None")
    what: Kind = "probabilities" if logits is None else "logits"
    if kind == "top-label" and what == "logits":
        raise MeasurementError('kind="top-label" needs the confidences themselves: pass them as probabilities=')
    values, dtype = _floating(what, probabilities if logits is None else logits)
    truth = _whole(labels).to(values.device)
    shape = truth.shape
    if kind in ("binary", "top-label"):
        scores = _one_each(what, values, truth, kind)
    elif kind == "multilabel":
        if values.shape != shape or values.ndim != 2:
            raise MeasurementError(
                f'kind="multilabel" needs {what} and labels of one shape (n, labels), labels 0 or 1; got '
                f"{_shape(values)} and {_shape(truth)}"
            )
        scores = values.reshape(-1)
    else:
        scores = _flatten(what, values, truth, class_dim)
        if kind == "multiclass" and scores.ndim == 1:
            raise MeasurementError(
                f'kind="multiclass" needs {what} of shape (n, classes), got {_shape(values)}; '
                'for a binary task leave kind= out, or give kind="binary"'
            )
    form: Form = kind or ("binary" if scores.ndim == 1 else "multiclass")
    several = truth.ndim > 1 and truth.shape[1:].numel() > 1
    members, named = _members(groups, shape, several, values.device)

    def position(row: int) -> str:
        return f"position ({', '.join(str(int(i)) for i in np.unravel_index(row, shape))})"

    return Predictions(
        kind=what,
        form=form,
        scores=scores,
        truth=truth.reshape(-1),
        dtype=dtype,
        dependent=several,
        groups=members,
        members=shape[0],
        named=named,
        column=torch.arange(shape[1], device=values.device).repeat(shape[0]) if form == "multilabel" else None,
        columns=shape[1] if form == "multilabel" else 1,
        where=position if truth.ndim > 1 else Predictions.where,
    )


def kept(predictions: Predictions, ignore_index: int | None) -> Predictions:
    """Leave out the rows whose label is `ignore_index`; raises MeasurementError where none is left."""
    if ignore_index is None:
        return predictions
    rows = torch.nonzero(predictions.truth != ignore_index).reshape(-1)
    total = len(predictions.truth)
    if not len(rows):
        raise MeasurementError(f"no predictions: all {total} labels are ignore_index={ignore_index}")
    if len(rows) == total:
        return predictions
    name = predictions.where
    return dataclasses.replace(predictions.select(rows), where=lambda row: name(int(rows[row])))


def tensor_of(value: Any) -> tuple[torch.Tensor, str]:
    """Return (tensor on its device, or the host where that has no float64; name of its dtype), copied only there."""
    if isinstance(value, torch.Tensor):
        return with_float64(value.detach()), str(value.dtype).removeprefix("torch.")
    found = np.asarray(value)
    name = found.dtype.name  # without the byte order
    if found.dtype.kind not in "biuf" or name in ("float128", "longdouble"):
        return torch.empty(found.shape, device="meta"), name
    if found.dtype.kind == "u":
        found = found.astype(np.int64)
    if not found.dtype.isnative or any(stride < 0 for stride in found.strides):
        found = found.astype(found.dtype.newbyteorder("="), order="C")
    with _warnings.catch_warnings():
        # A read-only array (a memory map) is only read here; copying it could double what memory holds.
        _warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(found), name


def _floating(kind: Kind, value: Any) -> tuple[torch.Tensor, str]:
    found, dtype = tensor_of(value)
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise MeasurementError(
            f"{kind} must be floating point numbers (float16, bfloat16, float32 or float64), got {dtype}"
        )
    return found, dtype


def _whole(labels: Any) -> torch.Tensor:
    if labels is None:
        raise MeasurementError("labels are missing: give labels=, one class index for each prediction")
    found, dtype = tensor_of(labels)
    if not dtype.startswith(("int", "uint", "bool")):
        raise MeasurementError(
            f"labels must be class indices (integers), got {dtype}; convert them, e.g. labels.astype(int) or "
            "labels.long()"
        )
    return found.long()


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def _one_each(what: Kind, values: torch.Tensor, truth: torch.Tensor, kind: Form) -> torch.Tensor:
    """Return the scores of class 1 in the order of truth.reshape(-1): any shape, or one more dimension of size 1."""
    if values.ndim == truth.ndim + 1 and 1 in (values.shape[-1], values.shape[min(1, values.ndim - 1)]):
        values = values.squeeze(-1) if values.shape[-1] == 1 else values.squeeze(1)
    if values.shape != truth.shape:
        raise MeasurementError(
            f'kind="{kind}" needs one of the {what} for each label, of one shape; got {_shape(values)} and '
            f"{_shape(truth)}"
        )
    return values.reshape(-1)


def _flatten(kind: Kind, values: torch.Tensor, labels: torch.Tensor, class_dim: int) -> torch.Tensor:
    """Return values as (n,) or (n, C) in the order of labels.reshape(-1)."""
    shape = tuple(labels.shape)
    if labels.ndim == 1 and values.ndim == 1:
        if len(values) != len(labels):
            raise MeasurementError(f"{len(values)} {kind} for {len(labels)} labels; give one label a prediction")
        return values
    if labels.ndim == 0 or values.ndim != labels.ndim + 1:
        raise MeasurementError(
            f"{kind} of shape {_shape(values)} don't fit labels of shape {shape}: expected (n, classes) with (n,), "
            "(n, classes, ...) with (n, ...), or (n,) with (n,) for a binary task; labels are class indices, not "
            'one-hot (several labels for each sample: kind="multilabel"; a binary task for each pixel: kind="binary")'
        )
    if not -values.ndim <= class_dim < values.ndim:
        raise MeasurementError(f"class_dim={class_dim} is not a dimension of {kind} of shape {_shape(values)}")
    last = values.movedim(class_dim, -1)
    if class_dim == 1 and tuple(last.shape[:-1]) != shape == tuple(values.shape[:-1]):
        last = values  # (n, length, classes), as language models have them: no other dimension can hold the classes
    if tuple(last.shape[:-1]) != shape:
        hint = "" if tuple(values.shape[:-1]) != shape else "; they fit with class_dim=-1"
        raise MeasurementError(
            f"{kind} of shape {_shape(values)} with the classes along dim {class_dim} don't fit labels of shape "
            f"{shape}: expected labels of shape {tuple(last.shape[:-1])}{hint}"
        )
    if last.shape[-1] < 2:
        raise MeasurementError(
            f"{kind} of shape {_shape(values)} have {last.shape[-1]} class; for a binary task give them with shape "
            "(n,), e.g. [:, 0]"
        )
    return last if labels.ndim == 1 else last.reshape(-1, last.shape[-1])


def _members(groups: Any, shape: torch.Size, several: bool, device: torch.device) -> tuple[torch.Tensor | None, bool]:
    """Return each row's group and whether the caller named it; rows of one sample are a group of themselves."""
    if groups is None:
        if not several:
            return None, False
        found = torch.arange(shape[0], device=device)
    else:
        found, dtype = tensor_of(groups)
        if not dtype.startswith(("int", "uint")):
            raise MeasurementError(
                f"groups must be integers, one for each sample, got {dtype}; number names with "
                "numpy.unique(names, return_inverse=True)[1]"
            )
        found = found.long().to(device)
        if found.shape == shape:
            return found.reshape(-1), True
        if found.shape != shape[:1]:
            raise MeasurementError(
                f"groups of shape {_shape(found)} don't fit labels of shape {tuple(shape)}: give one for each sample"
            )
    each = shape[1:].numel()
    return found.repeat_interleave(each, output_size=len(found) * each), groups is not None
