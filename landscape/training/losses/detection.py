"""Losses of detection: overlaps of boxes (x1, y1, x2, y2), and the sum of class, box and objectness."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..inputs import BOXES, DETECTION
from ..registries import losses
from ._softmax import of_label

_DIOU = "Zheng et al. 2020, Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, arXiv:1911.08287"


def _tiny(x: torch.Tensor) -> float:
    return torch.finfo(x.dtype).eps


def _sides(boxes: torch.Tensor) -> torch.Tensor:
    """Return width and height, (n, 2); a box that is turned inside out has none."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (IoU, union, sides of the smallest box around both)."""
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = _sides(a).prod(1) + _sides(b).prod(1) - common
    around = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    return common / (union + _tiny(a)), union, around


def _far(a: torch.Tensor, b: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of the centers over the squared diagonal of the box around both."""
    apart = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]).square().sum(1) / 4
    return apart / (around.square().sum(1) + _tiny(a))


@losses.register(
    "iou",
    kind="detection",
    takes=BOXES,
    source="Yu et al. 2016, UnitBox: An Advanced Object Detection Network, arXiv:1608.01471 (here 1 - IoU, "
    "not its log)",
)
def iou(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - intersection over union."""
    return (1 - _overlap(outputs, target)[0]).mean()


@losses.register(
    "giou",
    kind="detection",
    takes=BOXES,
    source="Rezatofighi et al. 2019, Generalized Intersection over Union, arXiv:1902.09630",
)
def giou(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - IoU + the share of the box around both that neither fills."""
    overlap, union, around = _overlap(outputs, target)
    hull = around.prod(1)
    return (1 - overlap + (hull - union) / (hull + _tiny(outputs))).mean()


@losses.register("diou", kind="detection", takes=BOXES, source=_DIOU)
def diou(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - IoU + squared distance of the centers over the squared diagonal of the box around both."""
    overlap, _, around = _overlap(outputs, target)
    return (1 - overlap + _far(outputs, target, around)).mean()


def _ciou(a: torch.Tensor, b: torch.Tensor, exact: bool) -> torch.Tensor:
    overlap, _, around = _overlap(a, b)
    (w, h), (wt, ht) = _sides(a).unbind(1), _sides(b).unbind(1)
    # atan2(w, h) is atan(w / h), also where a side is 0; both 0 has no angle, and takes pi/4 with a zero gradient.
    tilt = torch.atan2(wt + _tiny(a), ht + _tiny(a)) - torch.atan2(w + _tiny(a), h + _tiny(a))
    v = 4 / math.pi**2 * tilt.square()
    trade = v / (1 - overlap + v + _tiny(a))
    return 1 - overlap + _far(a, b, around) + (trade if exact else trade.detach()) * v


@losses.register(
    "ciou",
    kind="detection",
    takes=BOXES,
    trial={"exact": True},
    source=_DIOU,
    about={"exact": ("True: also differentiate the trade-off, which the paper holds fixed", "the paper's: False")},
)
def ciou(outputs: torch.Tensor, target: torch.Tensor, exact: bool = False) -> torch.Tensor:
    """DIoU plus alpha v, where v compares the aspect ratios."""
    return _ciou(outputs, target, exact).mean()


@losses.register(
    "detection",
    kind="detection",
    takes=DETECTION,
    trial={"exact": True},
    source="Redmon et al. 2016, You Only Look Once, arXiv:1506.02640 (the three parts); the box part is CIoU, " + _DIOU,
    about={
        "l1": ("weight of the classes", "chosen by us", "[0, inf)"),
        "l2": ("weight of the boxes", "YOLO's weight of its coordinates: 5", "[0, inf)"),
        "l3": ("weight of the objectness", "chosen by us", "[0, inf)"),
        "exact": ("see ciou", "the paper's: False"),
    },
)
def detection(
    outputs: dict[str, torch.Tensor],
    target: dict[str, torch.Tensor],
    l1: float = 1.0,
    l2: float = 5.0,
    l3: float = 1.0,
    exact: bool = False,
) -> dict[str, torch.Tensor]:
    """Terms l1 cross-entropy + l2 CIoU of the candidates with an object + l3 objectness, each over all candidates.

    One denominator for the three, the number of candidates, so that batches combine; YOLO sums over an image.
    """
    there = (target["obj"] > 0.5).to(outputs["obj"].dtype)
    labels = torch.where(there > 0, target["cls"], torch.zeros_like(target["cls"]))  # whatever the others carry
    classes = -of_label(F.log_softmax(outputs["cls"], 1), labels)
    boxes = _ciou(outputs["box"], target["box"], exact)
    return {
        "cls": l1 * torch.where(there > 0, classes, torch.zeros_like(classes)).mean(),
        "box": l2 * torch.where(there > 0, boxes, torch.zeros_like(boxes)).mean(),
        "obj": l3 * F.binary_cross_entropy_with_logits(outputs["obj"], there),
    }
