"""Tokens: which label belongs to which position of a language model's logits, found out rather than assumed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .batch import tensors_of
from .errors import TaskError
from .labels import IGNORE_INDEX, LABEL_NAMES, default_target, logits_of
from .reduction import split_value, torch_loss_settings
from .tasks import Pairing

# Relative; chosen by us: the same mean summed in another order, and of logits or a loss in half precision.
_SAME, _SAME_IN_HALF = 1e-5, 1e-2


def next_token(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits, labels) of a causal language model, each position with the label of the next one.

    The `forward` of a Task whose loss is torch's cross entropy:

        Task(model, F.cross_entropy, train=train, test=test, forward=landscape.next_token)

    `batch` is a dict with `input_ids` and what else the model takes, a pair (ids, labels), or the ids alone, each
    (n, length). Labels may be the ids themselves, as Transformers has them, or shifted already: the ids tell which;
    -100 where none counts. Without any, they are the ids where `attention_mask` is not 0. The model is called without
    labels, but for the `targets` of a pair (nanoGPT's gives all logits only then), and returns logits
    (n, length, vocabulary), or an object, a mapping or a tuple that holds them. Returned are logits
    (n, vocabulary, t), as cross entropy takes them, and labels (n, t): t is length - 1, or length where the labels
    came shifted.

    Raises TaskError for another batch, for labels that are neither the ids nor those that follow, and for a model that
    returns no such logits.
    """
    ids, labels, entries = _read(batch)
    shifted = _are_shifted(ids, labels)
    outputs = model(**_taken(model, entries)) if isinstance(batch, Mapping) else model(ids, **_targets(model, batch))
    if isinstance(outputs, tuple | list):
        outputs = next((x for x in outputs if isinstance(x, torch.Tensor) and x.ndim == 3), None)
    logits = logits_of(outputs)
    if logits is None or logits.ndim != 3 or logits.shape[:2] != labels.shape:
        got = "no logits" if logits is None else f"outputs of shape {tuple(logits.shape)}"
        raise TaskError(
            f"{type(model).__name__} returned {got} for labels of shape {tuple(labels.shape)}; expected logits "
            "(n, length, vocabulary) for labels (n, length)"
        )
    if shifted:
        return logits.transpose(1, 2), labels
    return logits[:, :-1].transpose(1, 2), labels[:, 1:]


def _read(batch: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return the ids (n, length), the labels as they came, and the entries of a dict."""
    entries = dict(batch) if isinstance(batch, Mapping) else {}
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    ids = entries.get("input_ids") if entries else batch[0] if pair else batch
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 2:
        held = f"a dict with {', '.join(map(str, entries))}" if entries else None
        held = held or (f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}")
        raise TaskError(
            f"next_token takes a dict with input_ids, a pair (ids, labels) or the ids alone, (n, length) int64, got "
            f"{held}; give Task a forward of your own: forward=lambda model, batch: (logits, labels)"
        )
    labels = default_target(entries) if entries else batch[1] if pair else None
    if labels is None:
        seen = entries.get("attention_mask")
        labels = ids if seen is None else ids.masked_fill(seen == 0, IGNORE_INDEX)
    return ids, labels, entries


def _are_shifted(ids: torch.Tensor, labels: torch.Tensor) -> bool:
    """Return whether each label is the id that follows its position, rather than its own. TaskError for neither."""
    if labels.shape == ids.shape:
        kept = labels != IGNORE_INDEX
        if torch.equal(labels[kept], ids[kept]):
            return False
        inner = kept[:, :-1]
        if torch.equal(labels[:, :-1][inner], ids[:, 1:][inner]):
            return True
    raise TaskError(
        f"the labels {tuple(labels.shape)} are neither the ids {tuple(ids.shape)} nor the ids that follow them: "
        "next_token is for causal language models; give Task a forward of your own: "
        "forward=lambda model, batch: (logits, labels)"
    )


def _taken(model: nn.Module, entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that the model's forward takes, labels left out: the loss is not to be computed twice."""
    taken = inspect.signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    kept = {n: x for n, x in entries.items() if n not in LABEL_NAMES and (anything or n in taken)}
    return {**kept, "use_cache": False} if "use_cache" in taken else kept  # the cache holds on to the graph


def _targets(model: nn.Module, batch: Any) -> dict[str, Any]:
    takes = "targets" in inspect.signature(model.forward).parameters
    return {"targets": batch[1]} if takes and not isinstance(batch, torch.Tensor) else {}


def are_tokens(logits: Any, labels: Any) -> bool:
    """Return whether these are logits (n, length, vocabulary) for class labels (n, length)."""
    if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return False
    if logits.ndim != 3 or labels.shape != logits.shape[:2] or labels.shape[1] < 2:
        return False
    return labels.shape != (logits.shape[0], logits.shape[2])  # torch's (n, classes, length), where both would do


def cross_entropies(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> tuple[float, float]:
    """Return the mean cross entropy in nats of each position's own label, and of the next position's."""
    classes = logits.detach().float().transpose(1, 2)
    own = F.cross_entropy(classes, labels, ignore_index=ignore_index)
    following = F.cross_entropy(classes[..., :-1], labels[:, 1:], ignore_index=ignore_index)
    return float(own), float(following)


def pairing(
    loss: Any, batch: Any, outputs: Any, target: Any, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int
) -> Pairing:
    """Find out for which label a position's logits are, from the loss that the task computes of them.

    A loss, or a term of it, that equals the cross entropy of either pairing decides. One that equals neither
    (smoothed labels, another mean) leaves it open where the labels repeat ids of the batch: their own position would
    have read them already. Where both agree (equal logits), such labels are taken for the next position's. Costs the
    loss and two cross entropies of one batch.
    """
    if torch_loss_settings(loss) is not None:
        return "own"  # torch's losses pair what they are given
    with torch.no_grad():
        mean, _, terms = split_value(loss(outputs, target))
        own, following = cross_entropies(logits, labels, ignore_index)
    half = torch.finfo(logits.dtype).bits < 32 or torch.finfo(mean.dtype).bits < 32
    tolerance = _SAME_IN_HALF if half else _SAME
    values = [float(mean), *map(float, terms.values())]
    fits = [any(abs(v - x) <= tolerance * max(abs(x), 1e-3) for v in values) for x in (own, following)]
    if fits[0] != fits[1]:
        return "own" if fits[0] else "next"
    if not any(_repeats(labels, x, ignore_index) for x in _others(batch, labels)):
        return "own"
    return "next" if fits[0] else "unknown"


def labels_repeat(batch: Mapping[Any, Any]) -> bool:
    """Return whether the labels of a dict batch are its `input_ids`, as those of a causal language model are."""
    ids, labels = batch.get("input_ids"), default_target(batch)
    return isinstance(ids, torch.Tensor) and isinstance(labels, torch.Tensor) and _repeats(labels, ids, IGNORE_INDEX)


def _repeats(labels: torch.Tensor, ids: torch.Tensor, ignore_index: int) -> bool:
    kept = labels != ignore_index
    return labels.shape == ids.shape and torch.equal(ids[kept], labels[kept])


def _others(batch: Any, labels: torch.Tensor) -> list[torch.Tensor]:
    return [x for x in tensors_of(batch) if x.dtype == labels.dtype and x is not labels]
