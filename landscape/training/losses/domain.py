"""Losses across domains and views: consistency of predictions, distances between distributions of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...errors import TrainingError
from ..inputs import DOMAINS, TWO_LOGITS
from ..registries import losses


@losses.register(
    "consistency",
    kind="domain",
    takes=TWO_LOGITS,
    source="Laine and Aila 2017, Temporal Ensembling for Semi-Supervised Learning, arXiv:1610.02242 (mse); Tarvainen "
    "and Valpola 2017, Mean teachers, arXiv:1703.01780 (the teacher gets no gradient)",
    about={
        "measure": ("mse or kl, between the softmaxes", "the papers': mse"),
        "exact": ("True: the second logits get a gradient, too", "Mean teachers': False"),
    },
    trial={"exact": True},
)
def consistency(
    outputs: tuple[torch.Tensor, torch.Tensor], target: None, measure: str = "mse", exact: bool = False
) -> torch.Tensor:
    """Distance of the predictions for one view from those for another, or from a teacher's."""
    student, teacher = outputs
    teacher = teacher if exact else teacher.detach()
    if measure == "mse":
        return (student.softmax(1) - teacher.softmax(1)).square().mean()
    if measure == "kl":
        log_q, log_p = F.log_softmax(teacher, 1), F.log_softmax(student, 1)
        return (log_q.exp() * (log_q - log_p)).sum(1).mean()
    raise TrainingError(f"measure={measure!r} is not one of mse, kl")


@losses.register(
    "coral",
    kind="domain",
    takes=DOMAINS,
    rebatch=False,
    source="Sun and Saenko 2016, Deep CORAL: Correlation Alignment for Deep Domain Adaptation, arXiv:1607.01719",
)
def coral(outputs: tuple[torch.Tensor, torch.Tensor], target: None) -> torch.Tensor:
    """Squared Frobenius distance of the two covariances over 4 d^2."""
    if min(len(o) for o in outputs) < 2:
        raise TrainingError("coral needs two samples of each domain in a batch: one has no covariance")
    a, b = (_covariance(o) for o in outputs)
    return (a - b).square().sum() / (4 * a.shape[0] ** 2)


def _covariance(x: torch.Tensor) -> torch.Tensor:
    centered = x - x.mean(0)
    return centered.T @ centered / (len(x) - 1)


@losses.register(
    "mmd",
    kind="domain",
    takes=DOMAINS,
    rebatch=False,
    source="Gretton et al. 2012, A Kernel Two-Sample Test, JMLR 13 (the biased estimate); Long et al. 2015, Learning "
    "Transferable Features with Deep Adaptation Networks, arXiv:1502.02791 (the sum of kernels)",
    about={"widths": ("sigmas of the Gaussian kernels that are averaged", "chosen by us: factors of 2 around 1")},
)
def mmd(
    outputs: tuple[torch.Tensor, torch.Tensor],
    target: None,
    widths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0),
) -> torch.Tensor:
    """Squared maximum mean discrepancy of two sets of features, with Gaussian kernels."""
    a, b = outputs
    return _kernel(a, a, widths) + _kernel(b, b, widths) - 2 * _kernel(a, b, widths)


def _kernel(a: torch.Tensor, b: torch.Tensor, widths: tuple[float, ...]) -> torch.Tensor:
    squared = (a[:, None] - b[None, :]).square().sum(2)
    return torch.stack([torch.exp(-squared / (2 * w * w)).mean() for w in widths]).mean()
