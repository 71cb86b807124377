"""Losses against wrong labels: bounded ones, normalized ones, and sums of an active and a passive one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ...errors import TrainingError
from ..inputs import LOGITS
from ..registries import losses
from ._softmax import label_terms, log_not, of_label

_APL = "Ma et al. 2020, Normalized Loss Functions for Deep Learning with Noisy Labels, arXiv:2006.13554"
_LOG_ZERO = ("log 0 in the label's distribution", "the paper's: -4", "(-inf, 0)")


def _absolute(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 2 * label_terms(outputs, target)[1].exp()


def _reverse(outputs: torch.Tensor, target: torch.Tensor, log_zero: float = -4.0) -> torch.Tensor:
    return -log_zero * label_terms(outputs, target)[1].exp()


def _normalized_ce(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    log_p = F.log_softmax(outputs, dim=1)
    return of_label(log_p, target) / log_p.sum(1)


def _normalized_focal(outputs: torch.Tensor, target: torch.Tensor, gamma: float = 0.5) -> torch.Tensor:
    log_p = F.log_softmax(outputs, dim=1)
    each = torch.exp(gamma * log_not(log_p)) * log_p
    return of_label(each, target) / each.sum(1)


@losses.register(
    "gce",
    takes=LOGITS,
    source="Zhang and Sabuncu 2018, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy "
    "Labels, arXiv:1805.07836",
    about={"q": ("0 tends to cross-entropy, 1 is the absolute error over 2", "the paper's: 0.7")},
)
def gce(outputs: torch.Tensor, target: torch.Tensor, q: float = 0.7) -> torch.Tensor:
    """Generalized cross-entropy, (1 - p^q) / q."""
    if not 0 < q <= 1:
        raise TrainingError(f"q={q} must lie in (0, 1]")
    return (-torch.expm1(q * label_terms(outputs, target)[0]) / q).mean()


@losses.register(
    "class_mae",
    takes=LOGITS,
    source="Ghosh et al. 2017, Robust Loss Functions under Label Noise for Deep Neural Networks, arXiv:1712.09482",
)
def class_mae(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute distance of the softmax from the label, 2 (1 - p)."""
    return _absolute(outputs, target).mean()


@losses.register(
    "rce",
    takes=LOGITS,
    source="Wang et al. 2019, Symmetric Cross Entropy for Robust Learning with Noisy Labels, arXiv:1908.06112",
    about={"log_zero": _LOG_ZERO},
)
def rce(outputs: torch.Tensor, target: torch.Tensor, log_zero: float = -4.0) -> torch.Tensor:
    """Reverse cross-entropy, the softmax's under the label, with log 0 = A."""
    return _reverse(outputs, target, log_zero).mean()


@losses.register("nce", takes=LOGITS, source=_APL)
def nce(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Normalized cross-entropy, over the sum of the cross-entropies of all classes."""
    return _normalized_ce(outputs, target).mean()


@losses.register(
    "nfl",
    takes=LOGITS,
    source=_APL,
    about={"gamma": ("focusing", "the paper's for the normalized focal loss: 0.5", "[0, inf)")},
)
def nfl(outputs: torch.Tensor, target: torch.Tensor, gamma: float = 0.5) -> torch.Tensor:
    """Normalized focal loss, over the sum of the focal losses of all classes."""
    return _normalized_focal(outputs, target, gamma).mean()


_ACTIVE: dict[str, Callable[..., torch.Tensor]] = {"nce": _normalized_ce, "nfl": _normalized_focal}
_PASSIVE: dict[str, Callable[..., torch.Tensor]] = {"mae": _absolute, "rce": _reverse}


@losses.register(
    "apl",
    takes=LOGITS,
    source=_APL,
    about={
        "alpha": ("weight of the active part", "the paper's for CIFAR-10: 1", "[0, inf)"),
        "beta": ("weight of the passive part", "the paper's for CIFAR-10: 1", "[0, inf)"),
        "active": ("nce or nfl", "the paper's best on CIFAR-10"),
        "passive": ("mae or rce", "the paper's best on CIFAR-10"),
    },
)
def apl(
    outputs: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    active: str = "nce",
    passive: str = "rce",
) -> torch.Tensor:
    """Active-passive loss: alpha times a normalized loss plus beta times a bounded one."""
    for given, known in ((active, _ACTIVE), (passive, _PASSIVE)):
        if given not in known:
            raise TrainingError(f"apl has no part {given!r}; expected one of {', '.join(known)}")
    return (alpha * _ACTIVE[active](outputs, target) + beta * _PASSIVE[passive](outputs, target)).mean()
