"""Margin softmax on cosines between normalized features and class directions; `CosineHead` gives them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..inputs import COSINES, COSINES_AND_NORMS
from ..registries import losses
from ._softmax import one_hot

_SCALE = ("what the cosines are multiplied by", "the paper's: 64", "(0, inf)")


class CosineHead(nn.Module):
    """Last layer of a margin-softmax model: cosines (n, classes) of features (n, d) with a direction for each class.

    `norms=True` returns (cosines, norms of the features (n,)), as AdaFace takes them.
    """

    def __init__(self, features: int, classes: int, *, norms: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.xavier_normal_(self.weight)
        self.norms = norms

    def forward(self, features: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        cosines = F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T
        return (cosines, torch.linalg.vector_norm(features, dim=1)) if self.norms else cosines


def _clamped(cosines: torch.Tensor) -> torch.Tensor:
    # acos and its derivative need room below 1: 4 units in the last place (chosen by us).
    room = 4 * torch.finfo(cosines.dtype).eps
    return cosines.clamp(-1 + room, 1 - room)


@losses.register(
    "cosface",
    takes=COSINES,
    source="Wang et al. 2018, CosFace: Large Margin Cosine Loss for Deep Face Recognition, arXiv:1801.09414",
    about={"scale": _SCALE, "margin": ("what the label's cosine loses", "the paper's: 0.35")},
)
def cosface(outputs: torch.Tensor, target: torch.Tensor, scale: float = 64.0, margin: float = 0.35) -> torch.Tensor:
    """Cross-entropy of scale * (cosine - margin at the label)."""
    return F.cross_entropy(scale * (outputs.clamp(-1, 1) - margin * one_hot(outputs, target)), target)


@losses.register(
    "arcface",
    takes=COSINES,
    source="Deng et al. 2019, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, arXiv:1801.07698",
    about={"scale": _SCALE, "margin": ("what the label's angle gains, radians", "the paper's: 0.5")},
)
def arcface(outputs: torch.Tensor, target: torch.Tensor, scale: float = 64.0, margin: float = 0.5) -> torch.Tensor:
    """Cross-entropy of scale * cosine, with the label's angle enlarged by a margin."""
    cosines = _clamped(outputs)
    sines = (1 - cosines.square()).sqrt()
    # Beyond pi the cosine rises again: there the label's cosine loses margin * sin(margin), as in the authors' code.
    enlarged = torch.where(
        cosines > math.cos(math.pi - margin),
        cosines * math.cos(margin) - sines * math.sin(margin),
        cosines - margin * math.sin(margin),
    )
    return F.cross_entropy(scale * torch.where(one_hot(outputs, target).bool(), enlarged, cosines), target)


@losses.register(
    "adaface",
    takes=COSINES_AND_NORMS,
    rebatch=False,
    trial={"exact": True},
    source="Kim, Jain and Liu 2022, AdaFace: Quality Adaptive Margin for Face Recognition, arXiv:2204.00964; the norms "
    "are standardized over the batch (its running mean with alpha = 1), so that the loss has no state",
    about={
        "scale": _SCALE,
        "margin": ("m", "the paper's: 0.4"),
        "concentration": (
            "h: how many standard deviations of the norms span the margins",
            "the paper's: 0.333",
            "(0, inf)",
        ),
        "exact": ("True: also differentiate the norms, which the paper holds fixed", "the paper's: False"),
    },
)
def adaface(
    outputs: tuple[torch.Tensor, torch.Tensor],
    target: torch.Tensor,
    scale: float = 64.0,
    margin: float = 0.4,
    concentration: float = 0.333,
    exact: bool = False,
) -> torch.Tensor:
    """Cross-entropy with a margin that follows the features' norms: in the angle for small ones, added for large."""
    cosines, norms = outputs
    norms = (norms if exact else norms.detach()).clamp(0.001, 100)  # the bounds: the authors' code
    quality = ((norms - norms.mean()) / (norms.std() + 0.001) * concentration).clamp(-1, 1).unsqueeze(1)
    own = one_hot(cosines, target)
    room = 0.001  # of the angle to 0 and pi: the authors' code
    angle = (_clamped(cosines).acos() - own * margin * quality).clamp(room, math.pi - room)
    return F.cross_entropy(scale * (angle.cos() - own * margin * (1 + quality)), target)
