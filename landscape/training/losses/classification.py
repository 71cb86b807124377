"""Losses of classification on logits: likelihoods, hinges, focal and polynomial variants."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import TrainingError
from ..inputs import BINARY, LOGITS, ROWS, SHARES, SIGNED
from ..registries import losses
from ._softmax import label_terms, of_label, one_hot

_SHANNON = "negative log-likelihood of a softmax; Bridle 1990 (from memory)"
_FOCAL = "Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002"
_POLY = "Leng et al. 2022, PolyLoss, arXiv:2204.12511"
_GAMMA = ("how strongly easy samples are weighted down", "the paper's best", "[0, inf)")

losses.register(
    "bce",
    takes=SHARES,
    source="negative log-likelihood of a Bernoulli variable",
    about={},
    torch="torch.nn.BCEWithLogitsLoss",
    doc="Binary cross-entropy of logits.",
)(nn.BCEWithLogitsLoss)

losses.register(
    "cross_entropy",
    takes=LOGITS,
    source=_SHANNON,
    about={
        "ignore_index": ("the label that is left out", "PyTorch's default"),
        "label_smoothing": ("share of the uniform distribution in the target", "PyTorch's default", "[0, 1]"),
    },
    torch="torch.nn.CrossEntropyLoss",
    doc="Cross-entropy of logits.",
)(nn.CrossEntropyLoss)


@losses.factory(
    "label_smoothing",
    takes=LOGITS,
    source="Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567",
    about={"smoothing": ("share of the uniform distribution in the target", "the paper's", "[0, 1]")},
    torch="torch.nn.CrossEntropyLoss",
)
def label_smoothing(smoothing: float = 0.1) -> nn.Module:
    """Cross-entropy against labels mixed with the uniform distribution."""
    return nn.CrossEntropyLoss(label_smoothing=smoothing)


@losses.register(
    "temperature_ce",
    takes=LOGITS,
    source="Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531; Guo et al. 2017, "
    "arXiv:1706.04599",
    about={"temperature": ("what the logits are divided by", "1: plain cross-entropy")},
)
def temperature_ce(outputs: torch.Tensor, target: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Cross-entropy of logits / temperature."""
    if not temperature > 0:
        raise TrainingError(f"temperature={temperature} must be above 0")
    return F.cross_entropy(outputs / temperature, target)


@losses.register("brier", takes=LOGITS, source="Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2")
def brier(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Brier score, the squared distance of the softmax from the label, summed over the classes."""
    return (outputs.softmax(1) - one_hot(outputs, target)).square().sum(1).mean()


@losses.register("binary_brier", takes=BINARY, source="Brier 1950, as used for two classes")
def binary_brier(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared distance of the sigmoid from the target 0 or 1."""
    return (outputs.sigmoid() - target).square().mean()


def _shortfall(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    sign = torch.where(target > 0, 1.0, -1.0).to(outputs.dtype)
    return (1 - sign * outputs).clamp(min=0)


@losses.register(
    "hinge", takes=SIGNED, source="Cortes and Vapnik 1995, Support-Vector Networks, doi:10.1007/BF00994018"
)
def hinge(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Shortfall of the signed score below 1, max(0, 1 - y f)."""
    return _shortfall(outputs, target).mean()


@losses.register(
    "squared_hinge", takes=SIGNED, source="Cortes and Vapnik 1995, doi:10.1007/BF00994018 (the L2 form; from memory)"
)
def squared_hinge(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Square of the hinge."""
    return _shortfall(outputs, target).square().mean()


losses.register(
    "multiclass_hinge",
    takes=ROWS,
    source="Weston and Watkins 1999, Support Vector Machines for Multi-Class Pattern Recognition (from memory)",
    about={
        "p": ("power of each shortfall, 1 or 2", "PyTorch's default"),
        "margin": ("by how much the label's score must lead", "PyTorch's default", "[0, inf)"),
    },
    second=False,
    torch="torch.nn.MultiMarginLoss",
    doc="Shortfalls of the label's score below every other's plus a margin, over the number of classes.",
)(nn.MultiMarginLoss)


def _focal(outputs: torch.Tensor, target: torch.Tensor, gamma: float) -> torch.Tensor:
    log_p, log_rest = label_terms(outputs, target)
    # exp(gamma log(1 - p)), not (1 - p)^gamma: its derivatives stay finite where p rounds to 1.
    return -torch.exp(gamma * log_rest) * log_p


@losses.register(
    "focal",
    takes=LOGITS,
    source=_FOCAL,
    about={
        "gamma": _GAMMA,
        "alpha": ("weight of every class, or a list with one for each; None: 1", "none by default: chosen by us"),
    },
)
def focal(
    outputs: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, alpha: float | list[float] | None = None
) -> torch.Tensor:
    """Cross-entropy weighted by (1 - p)^gamma, so that easy samples count little."""
    value = _focal(outputs, target, gamma)
    if alpha is not None:
        weights = outputs.new_tensor(alpha)
        if weights.ndim and len(weights) != outputs.shape[1]:
            raise TrainingError(f"focal has {len(weights)} weights alpha for {outputs.shape[1]} classes; give one each")
        value = value * (weights[target] if weights.ndim else weights)
    return value.mean()


@losses.register(
    "binary_focal",
    takes=BINARY,
    source=_FOCAL,
    about={
        "gamma": _GAMMA,
        "alpha": ("weight of the positives, 1 - alpha that of the negatives", "the paper's best", "[0, 1]"),
    },
)
def binary_focal(
    outputs: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, alpha: float | None = 0.25
) -> torch.Tensor:
    """Binary cross-entropy weighted by (1 - p)^gamma of what is true."""
    positive = target > 0.5
    signed = torch.where(positive, outputs, -outputs)
    value = torch.exp(gamma * F.logsigmoid(-signed)) * -F.logsigmoid(signed)
    if alpha is not None:
        value = value * torch.where(positive, alpha, 1 - alpha).to(value.dtype)
    return value.mean()


@losses.register(
    "poly1",
    takes=LOGITS,
    source=_POLY,
    about={"epsilon": ("what is added to the first coefficient of the expansion in 1 - p", "the paper's example: 1")},
)
def poly1(outputs: torch.Tensor, target: torch.Tensor, epsilon: float = 1.0) -> torch.Tensor:
    """Cross-entropy plus epsilon (1 - p)."""
    log_p, log_rest = label_terms(outputs, target)
    return (epsilon * log_rest.exp() - log_p).mean()


@losses.register(
    "poly1_focal",
    takes=LOGITS,
    source=_POLY,
    about={"epsilon": ("what is added to the first coefficient", "the paper's example: 1"), "gamma": _GAMMA},
)
def poly1_focal(outputs: torch.Tensor, target: torch.Tensor, epsilon: float = 1.0, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss plus epsilon (1 - p)^(gamma + 1)."""
    log_p, log_rest = label_terms(outputs, target)
    return (epsilon * torch.exp((gamma + 1) * log_rest) - torch.exp(gamma * log_rest) * log_p).mean()


@losses.register(
    "squentropy",
    takes=LOGITS,
    source="Hui, Belkin and Wright 2023, Cut your Losses with Squentropy, arXiv:2302.03952",
)
def squentropy(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus the mean square of the logits of the other classes."""
    others = (outputs * (1 - one_hot(outputs, target))).square().sum(1) / (outputs.shape[1] - 1)
    return F.cross_entropy(outputs, target) + others.mean()


@losses.register(
    "z_loss",
    takes=LOGITS,
    source="de Brebisson and Vincent 2016, The Z-loss: a shift and scale invariant classification loss belonging to "
    "the Spherical Family, arXiv:1604.08859",
    about={"a": ("steepness", "chosen by us: 1"), "b": ("where the softplus turns", "chosen by us: 0")},
)
def z_loss(outputs: torch.Tensor, target: torch.Tensor, a: float = 1.0, b: float = 0.0) -> torch.Tensor:
    """Softplus of the label's standardized logit, softplus(a (b - z)) / a: shifts and scales change nothing."""
    centered = outputs - outputs.mean(1, keepdim=True)
    # 1e-12 under the root, chosen by us: equal logits have no z-score, and stay finite.
    z = of_label(centered, target) / (centered.square().mean(1) + 1e-12).sqrt()
    return F.softplus(a * (b - z)).mean() / a


@losses.register(
    "one_vs_rest",
    takes=LOGITS,
    source="Padhy et al. 2020, Revisiting One-vs-All Classifiers, arXiv:2007.05134; Kanai et al. 2023, "
    "arXiv:2207.10283",
)
def one_vs_rest(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sum over the classes of the binary cross-entropy of each against the rest."""
    return _one_vs_rest(outputs, target).mean()


def _one_vs_rest(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.softplus(outputs * (1 - 2 * one_hot(outputs, target))).sum(1)


@losses.register(
    "sovr",
    takes=LOGITS,
    rebatch=False,
    source="Kanai et al. 2023, One-vs-the-Rest Loss to Focus on Important Samples in Adversarial Training, "
    "arXiv:2207.10283",
    about={
        "share": (
            "share of the batch, that with the smallest margins, which gets one-vs-rest",
            "chosen by us",
            "[0, 1]",
        ),
        "weight": ("of the one-vs-rest part", "chosen by us", "[0, inf)"),
    },
)
def sovr(outputs: torch.Tensor, target: torch.Tensor, share: float = 0.4, weight: float = 1.0) -> torch.Tensor:
    """Cross-entropy, switched to one-vs-rest for the samples of a batch with the smallest logit margins."""
    if not 0 <= share <= 1:
        raise TrainingError(f"share={share} must lie in [0, 1]")
    others = outputs.masked_fill(one_hot(outputs, target).bool(), -torch.inf).amax(1)
    margin = (of_label(outputs, target) - others).detach().flatten()
    value, switched = F.cross_entropy(outputs, target, reduction="none").flatten(), _one_vs_rest(outputs, target)
    small = torch.zeros_like(margin, dtype=torch.bool)
    small[margin.argsort(stable=True)[: round(share * len(margin))]] = True
    return torch.where(small, weight * switched.flatten(), value).mean()


@losses.register(
    "ldr",
    takes=LOGITS,
    source="Zhu et al. 2023, Label Distributionally Robust Losses for Multi-class Classification, arXiv:2112.14869",
    about={
        "temperature": (
            "lambda: small ones look at the worst class, large ones at the mean",
            "chosen by us",
            "(0, inf)",
        ),
        "margin": ("c: by how much the label's logit must lead", "chosen by us"),
    },
)
def ldr(outputs: torch.Tensor, target: torch.Tensor, temperature: float = 1.0, margin: float = 0.0) -> torch.Tensor:
    """Label-distributionally robust loss, lambda log mean_k exp((z_k - z_label + c [k is not the label]) / lambda)."""
    gaps = outputs - of_label(outputs, target).unsqueeze(1) + margin * (1 - one_hot(outputs, target))
    return temperature * (torch.logsumexp(gaps / temperature, 1) - math.log(outputs.shape[1])).mean()


def sparsemax_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean projection of logits (n, classes, ...) onto the simplex along dim 1."""
    z = logits - logits.amax(1, keepdim=True).detach()
    ordered = z.detach().sort(1, descending=True).values
    ranks = torch.arange(1, z.shape[1] + 1, device=z.device, dtype=z.dtype).reshape(1, -1, *[1] * (z.ndim - 2))
    support = (1 + ranks * ordered > ordered.cumsum(1)).sum(1, keepdim=True)
    cut = ordered.gather(1, support - 1)
    inside = z >= cut
    tau = (torch.where(inside, z, torch.zeros_like(z)).sum(1, keepdim=True) - 1) / inside.sum(1, keepdim=True)
    return (z - tau).clamp(min=0)


@losses.register(
    "sparsemax",
    takes=LOGITS,
    source="Martins and Astudillo 2016, From Softmax to Sparsemax, arXiv:1602.02068",
)
def sparsemax(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Convex loss whose gradient is sparsemax(logits) minus the label."""
    p = sparsemax_probabilities(outputs)
    gaps = outputs - of_label(outputs, target).unsqueeze(1)
    return ((p * gaps).sum(1) - 0.5 * p.square().sum(1) + 0.5).mean()
