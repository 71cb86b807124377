"""Logits and class labels out of what models and batches hold, and the accuracy they give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .errors import MeasurementError
from .reduction import torch_loss_settings

# What Transformers, segmentation and language models write for "don't count this"; torch's default as well.
IGNORE_INDEX = -100
#: What the labels of a dict batch are called, the first one that is there.
LABEL_NAMES = ("labels", "label", "targets", "target", "y")
# Losses that take each logit (or probability) for a decision of its own.
_SIGMOIDS = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss, nn.MultiLabelSoftMarginLoss)
_REGRESSIONS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss)


def known_ignore_index(loss: Any) -> int:
    """Return the label that a loss leaves out, as its settings or its attribute `ignore_index` say; else torch's."""
    settings = torch_loss_settings(loss)
    said = settings[1].get("ignore_index") if settings else getattr(loss, "ignore_index", None)
    return said if isinstance(said, int) else IGNORE_INDEX


def default_target(target: Any) -> Any:
    """Return the labels inside a target: itself, or the entry called labels, label, targets, target or y."""
    if isinstance(target, Mapping):
        for name in LABEL_NAMES:
            if isinstance(target.get(name), torch.Tensor):
                return target[name]
        return None
    return target


def logits_of(outputs: Any) -> torch.Tensor | None:
    """Return the logits in what a model returned: itself, its attribute `logits` or its entry of that name."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    return logits if isinstance(logits, torch.Tensor) else None


def default_prediction(
    outputs: Any, labels: Any, loss: Any, ignore_index: int = IGNORE_INDEX, several: bool = False
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return (logits, labels) with one row a prediction, None where these are no classes.

    (n, classes) with (n,) integer labels; (n, classes, ...) with (n, ...) for segmentation; (n, length, classes)
    with (n, length) for tokens; (n,) or (n, 1) with labels 0 and 1 for a binary task; (n, labels) with the same for
    several labels that are each there or not, where the loss takes them so or `several` says that they are meant
    (else they may be one-hot): n * labels rows, those of a sample together. Rows to ignore are left out.
    """
    logits = logits_of(outputs)
    if logits is None or not isinstance(labels, torch.Tensor):
        return None
    if not logits.is_floating_point() or logits.ndim == 0 or not len(logits):
        return None
    settings = torch_loss_settings(loss)
    kind = settings[0] if settings else None
    if kind is not None and issubclass(kind, nn.BCELoss):
        logits = torch.logit(logits.double())  # BCELoss takes probabilities: the same predictions as logits
    if labels.is_floating_point() or labels.shape == logits.shape:
        return _binary(logits, labels, kind, several)
    if logits.ndim == 2 and labels.ndim == 1 and len(labels) == len(logits):
        if logits.shape[1] == 1:
            return _binary(logits, labels, kind, several)
        return _kept(logits, labels, ignore_index)
    if logits.ndim >= 3 and labels.shape == logits.shape[:1] + logits.shape[2:]:
        classes = logits.shape[1]
        return _kept(logits.movedim(1, -1).reshape(-1, classes), labels.reshape(-1), ignore_index)
    if logits.ndim >= 3 and labels.shape == logits.shape[:-1]:
        return _kept(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index)
    return None


def _binary(
    logits: torch.Tensor, labels: torch.Tensor, kind: type[nn.Module] | None, several: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return flat logits and labels of a binary task, or of several labels; None for a regression or soft labels."""
    if kind is not None and issubclass(kind, _REGRESSIONS):
        return None
    classifies = kind is not None and issubclass(kind, _SIGMOIDS)
    if logits.numel() != labels.numel() or (logits.ndim == 2 and logits.shape[1] != 1 and not (classifies or several)):
        return None
    if labels.is_floating_point() and not classifies:
        return None
    if not bool(((labels == 0) | (labels == 1)).all()):
        return None
    return logits.reshape(-1), labels.reshape(-1).long()


def _kept(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    keep = labels != ignore_index
    logits, labels = logits[keep], labels[keep].long()
    classes = logits.shape[1]
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        raise MeasurementError(
            f"label {int(labels[wrong][0])} lies outside the {classes} classes of the logits; labels run from 0 to "
            f"{classes - 1}, and {ignore_index} is ignored (or what the loss has as its ignore_index): mend them, give "
            "the model more classes, or say what counts with Task(predict=lambda model, batch: (logits, labels))"
        )
    return logits, labels


def rows_of_samples(labels: Any, rows: int, ignore_index: int = IGNORE_INDEX) -> torch.Tensor | None:
    """Return which entry of `labels` (n, ...) each of the rows of `default_prediction` comes from, as (rows,).

    None where their number doesn't fit: then nobody knows.
    """
    if not isinstance(labels, torch.Tensor) or labels.ndim == 0:
        return None
    own = torch.arange(len(labels), device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    own = own.expand(labels.shape).reshape(-1)
    if not labels.is_floating_point() and len(own) != rows:
        own = own[labels.reshape(-1) != ignore_index]
    return own if len(own) == rows else None


def labels_of_each(labels: Any, logits: torch.Tensor) -> int:
    """Return how many labels, each there or not, a sample has by `labels` (n, labels) and flat `logits`; else 1."""
    several = isinstance(labels, torch.Tensor) and labels.ndim == 2 and logits.ndim == 1
    return labels.shape[1] if several and labels.numel() == len(logits) else 1


def right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return which predictions are right (n,): the first class wins a tie, a binary logit of 0 counts as class 0."""
    predicted = (logits > 0).long() if logits.ndim == 1 else logits.argmax(dim=1)
    return predicted == labels


def hits(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return (right, all), right on the device; see `right`."""
    return right(logits, labels).sum(), len(labels)


def hits_of_samples(
    logits: torch.Tensor, labels: torch.Tensor, given: torch.Tensor | None, samples: int | None, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Return (right, all) of a batch: one number each, or (k,) where its samples hold several predictions each.

    Those of one sample (pixels, tokens) depend on each other, and an error is one over the k samples. `given` are the
    labels in their own shape; where they don't tell which sample a prediction is of, the batch counts as one.
    """
    rights, counts = rights_of_samples(logits, labels, given, samples, ignore_index)
    return (rights.sum(), len(labels)) if counts is None else (rights, counts)


def rights_of_samples(
    logits: torch.Tensor, labels: torch.Tensor, given: torch.Tensor | None, samples: int | None, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the right predictions of each sample and how many it holds, (k,) each; see `hits_of_samples`.

    None for the second where each holds one.
    """
    return sums_of_samples(right(logits, labels), labels, given, samples, ignore_index)


def sums_of_samples(
    found: torch.Tensor, labels: torch.Tensor, given: torch.Tensor | None, samples: int | None, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the sums over each sample of what was found of its predictions (n,), and how many these are, (k,) each.

    None for the second where each sample holds one. One sum where nothing tells which sample a prediction is of.
    """
    if len(labels) <= (samples if samples is not None else len(labels)) and (given is None or given.ndim < 2):
        return found, None
    rows = rows_of_samples(given, len(labels), ignore_index)
    if rows is None or given is None or samples not in (None, len(given)):
        return found.sum().reshape(1), torch.tensor([len(labels)], device=found.device)
    size = len(given)
    return torch.bincount(rows, found.double(), size), torch.bincount(rows, minlength=size)
