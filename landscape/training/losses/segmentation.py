"""Losses of dense prediction: overlaps for each image and class, and smoothness of the predicted maps."""

from __future__ import annotations

import torch

from ..inputs import MAPS, MASKS
from ..registries import losses
from ._softmax import one_hot

_SMOOTH = (
    "added to numerator and denominator: a class absent from both costs nothing",
    "common practice: 1",
    "[0, inf)",
)


def _shares(outputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predicted and true shares of each class, (n, classes, pixels)."""
    truth = target if target.is_floating_point() else one_hot(outputs, target)
    return outputs.softmax(1).flatten(2), truth.flatten(2)


@losses.register(
    "dice",
    kind="segmentation",
    takes=MASKS,
    source="Milletari, Navab and Ahmadi 2016, V-Net, arXiv:1606.04797",
    about={
        "smooth": _SMOOTH,
        "squared": ("True: squares in the denominator, as in V-Net", "chosen by us: Dice's own sums"),
    },
)
def dice(outputs: torch.Tensor, target: torch.Tensor, smooth: float = 1.0, squared: bool = False) -> torch.Tensor:
    """1 - the soft Dice overlap of each class in each image."""
    p, y = _shares(outputs, target)
    sizes = (p.square() + y.square() if squared else p + y).sum(2)
    return (1 - (2 * (p * y).sum(2) + smooth) / (sizes + smooth)).mean()


@losses.register(
    "jaccard",
    kind="segmentation",
    takes=MASKS,
    source="Rahman and Wang 2016, Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation, "
    "doi:10.1007/978-3-319-50835-1_22",
    about={"smooth": _SMOOTH},
)
def jaccard(outputs: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """1 - the soft intersection over union of each class in each image."""
    p, y = _shares(outputs, target)
    common = (p * y).sum(2)
    return (1 - (common + smooth) / ((p + y).sum(2) - common + smooth)).mean()


def jaccard_metric_of(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the Jaccard metric loss of shares p and y over the last dim, 0 where both are empty."""
    together, apart = (p + y).sum(-1), (p - y).abs().sum(-1)
    return 2 * apart / (together + apart).clamp(min=torch.finfo(p.dtype).tiny)


@losses.register(
    "jaccard_metric",
    kind="segmentation",
    takes=MASKS,
    source="Wang, Ning and Blaschko 2023, Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels, "
    "arXiv:2302.05666",
)
def jaccard_metric(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Jaccard loss that is a metric on shares in [0, 1]: 0 where prediction and soft label agree."""
    return jaccard_metric_of(*_shares(outputs, target)).mean()


@losses.register(
    "total_variation",
    kind="segmentation",
    takes=MAPS,
    source="Rudin, Osher and Fatemi 1992, Nonlinear total variation based noise removal algorithms, "
    "doi:10.1016/0167-2789(92)90242-F (the anisotropic form)",
)
def total_variation(outputs: torch.Tensor, target: None) -> torch.Tensor:
    """Mean absolute difference of the predicted shares between neighboring pixels, summed over the directions."""
    p = outputs.softmax(1)
    steps = [p.diff(dim=d).abs().mean() for d in range(2, p.ndim) if p.shape[d] > 1]
    return torch.stack(steps).sum() if steps else 0 * p.sum()
