"""Terms that train calibration: differentiable calibration errors of the top label."""

from __future__ import annotations

import torch

from ...errors import TrainingError
from ..inputs import LOGITS
from ..loss import safe_sqrt
from ..registries import losses


def _top(outputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each prediction's confidence and whether it is right, flat."""
    confidence, predicted = outputs.softmax(1).max(1)
    return confidence.flatten(), (predicted == target).to(outputs.dtype).flatten()


@losses.register(
    "mmce",
    takes=LOGITS,
    rebatch=False,
    source="Kumar, Sarawagi and Jain 2018, Trainable Calibration Measures for Neural Networks from Kernel Mean "
    "Embeddings, PMLR 80",
    about={"width": ("of the Laplacian kernel, in units of confidence", "the paper's: 0.4", "(0, inf)")},
)
def mmce(outputs: torch.Tensor, target: torch.Tensor, width: float = 0.4) -> torch.Tensor:
    """Maximum mean calibration error of a batch, the kernel norm of (correct - confidence)."""
    confidence, correct = _top(outputs, target)
    gap = correct - confidence
    kernel = torch.exp(-(confidence[:, None] - confidence[None, :]).abs() / width)
    return safe_sqrt((gap[:, None] * gap[None, :] * kernel).mean())


@losses.register(
    "soft_ece",
    takes=LOGITS,
    rebatch=False,
    source="Karandikar et al. 2021, Soft Calibration Objectives for Neural Networks, arXiv:2108.00106",
    about={
        "bins": ("of equal width", "the paper's: 15"),
        "temperature": ("how soft the membership in a bin is", "the paper's: 0.01", "(0, inf)"),
        "norm": ("p of the norm over the bins", "the paper's: 2", "[1, inf)"),
    },
)
def soft_ece(
    outputs: torch.Tensor, target: torch.Tensor, bins: int = 15, temperature: float = 0.01, norm: float = 2.0
) -> torch.Tensor:
    """Expected calibration error of a batch with soft membership in the bins."""
    if bins < 1 or not temperature > 0 or not norm >= 1:
        raise TrainingError(f"soft_ece needs bins >= 1, temperature > 0, norm >= 1; got {bins}, {temperature}, {norm}")
    confidence, correct = _top(outputs, target)
    centers = (torch.arange(bins, device=outputs.device, dtype=outputs.dtype) + 0.5) / bins
    member = (-(confidence[:, None] - centers).square() / temperature).softmax(1)
    gap = (member * (correct - confidence)[:, None]).sum(0)
    # size^(1 - p) |sum of gaps|^p = size |mean gap|^p; a bin that nothing reaches has neither.
    size = member.sum(0).clamp(min=1e-12)
    total = (gap.abs().pow(norm) * size.pow(1 - norm)).sum() / len(confidence)
    return safe_sqrt(total) if norm == 2 else total if norm == 1 else total.clamp(min=1e-30).pow(1 / norm)


@losses.register(
    "correctness_calibration",
    takes=LOGITS,
    source="Liu et al. 2024, Optimizing Calibration by Gaining Aware of Prediction Correctness, arXiv:2404.13016 (the "
    "squared form from memory)",
)
def correctness_calibration(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared distance of the confidence from whether the prediction is right."""
    confidence, correct = _top(outputs, target)
    return (confidence - correct).square().mean()
