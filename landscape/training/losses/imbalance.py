"""Losses for unequal classes and hard examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import TrainingError
from ..inputs import BINARY, LOGITS
from ..loss import safe_sqrt
from ..registries import losses

_COUNTS = ("training samples of each class, in order", "your data")


def class_balanced_weights(counts: Sequence[float], beta: float = 0.999) -> torch.Tensor:
    """Return (1 - beta) / (1 - beta^n) of each class, scaled to sum to the number of classes (Cui et al. 2019).

    Raises TrainingError for a count below 1 and a beta outside [0, 1).
    """
    n = torch.as_tensor(counts, dtype=torch.float64)
    if n.ndim != 1 or not len(n) or not bool((n >= 1).all()):
        raise TrainingError(f"counts={list(counts)} must hold the samples of each class, at least 1 each")
    if not 0 <= beta < 1:
        raise TrainingError(f"beta={beta} must lie in [0, 1)")
    weights = (1 - beta) / (1 - beta**n)
    return weights * len(n) / weights.sum()


@losses.factory(
    "class_balanced",
    takes=LOGITS,
    source="Cui et al. 2019, Class-Balanced Loss Based on Effective Number of Samples, arXiv:1901.05555; the mean is "
    "PyTorch's, over the sum of the weights",
    about={"counts": _COUNTS, "beta": ("0 weighs classes equally, near 1 by 1 / counts", "the paper's middle choice")},
    trial={"counts": (40, 20, 10, 5)},
    torch="torch.nn.CrossEntropyLoss",
)
def class_balanced(counts: Sequence[float], beta: float = 0.999) -> nn.Module:
    """Cross-entropy weighted by the inverse effective number of samples, (1 - beta) / (1 - beta^n)."""
    weights = class_balanced_weights(counts, beta)
    return nn.CrossEntropyLoss(weight=weights.to(torch.get_default_dtype()))


@losses.register(
    "logit_adjusted",
    takes=LOGITS,
    trial={"counts": (40, 20, 10, 5)},
    source="Menon et al. 2021, Long-tail learning via logit adjustment, arXiv:2007.07314",
    about={"counts": _COUNTS, "tau": ("strength; 1 is consistent for the balanced error", "the paper's")},
)
def logit_adjusted(
    outputs: torch.Tensor, target: torch.Tensor, counts: Sequence[float], tau: float = 1.0
) -> torch.Tensor:
    """Cross-entropy of logits + tau log of the class shares."""
    n = outputs.new_tensor(counts)
    if len(n) != outputs.shape[1] or not bool((n > 0).all()):
        raise TrainingError(
            f"counts has {len(n)} entries for {outputs.shape[1]} classes; give a positive count for each"
        )
    adjustment = tau * (n / n.sum()).log()
    return F.cross_entropy(outputs + adjustment.reshape(1, -1, *[1] * (outputs.ndim - 2)), target)


@losses.register(
    "ohem",
    takes=LOGITS,
    rebatch=False,
    source="Shrivastava et al. 2016, Training Region-based Object Detectors with Online Hard Example Mining, "
    "arXiv:1604.03540",
    about={"share": ("share of the batch (samples or pixels) that counts, the hardest", "chosen by us")},
)
def ohem(outputs: torch.Tensor, target: torch.Tensor, share: float = 0.25) -> torch.Tensor:
    """Mean cross-entropy of the hardest share of a batch (at least one)."""
    if not 0 < share <= 1:
        raise TrainingError(f"share={share} must lie in (0, 1]")
    each = F.cross_entropy(outputs, target, reduction="none").flatten()
    return each.topk(max(1, round(share * len(each)))).values.mean()


_METRICS = ("accuracy", "f1", "balanced_accuracy", "g_mean")


@losses.register(
    "anyloss",
    takes=BINARY,
    rebatch=False,
    source="Han, Moniz and Chawla 2024, AnyLoss: Transforming Classification Metrics into Loss Functions, "
    "arXiv:2405.14745 (from memory)",
    about={
        "metric": (", ".join(_METRICS), "chosen by us"),
        "amplify": ("L: how sharply probabilities are pushed to 0 and 1", "the paper's: 73", "(0, inf)"),
    },
)
def anyloss(outputs: torch.Tensor, target: torch.Tensor, metric: str = "f1", amplify: float = 73.0) -> torch.Tensor:
    """1 - a metric of a soft confusion matrix, whose counts sum sigmoid(L (p - 1/2))."""
    if metric not in _METRICS:
        raise TrainingError(f"anyloss has no metric {metric!r}; it has {', '.join(_METRICS)}")
    yes = torch.sigmoid(amplify * (outputs.sigmoid() - 0.5)).flatten()
    y = target.flatten().to(yes.dtype)
    hits, rejected = (y * yes).sum(), ((1 - y) * (1 - yes)).sum()
    positives, negatives = y.sum(), (1 - y).sum()
    # A batch without a positive or a negative has no such rate: 0 hits of none count as a rate of 0.
    sensitivity = hits / positives.clamp(min=1)
    specificity = rejected / negatives.clamp(min=1)
    if metric == "accuracy":
        return 1 - (hits + rejected) / len(y)
    if metric == "balanced_accuracy":
        return 1 - (sensitivity + specificity) / 2
    if metric == "g_mean":
        return 1 - safe_sqrt(sensitivity * specificity)
    return 1 - 2 * hits / (positives + yes.sum()).clamp(min=torch.finfo(yes.dtype).tiny)
