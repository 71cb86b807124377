"""Segmentation on pictures made on the spot: discs and squares on a noisy ground, a class for each pixel.

Most pixels are ground: does Dice, or a focal weight, find the small shapes better, and what becomes of the confidence?

    landscape sweep segmentation_task.py --loss "cross_entropy,focal(gamma=2),0.5*cross_entropy + 0.5*dice" \\
                    --lr 0.1 --seeds 2 --epochs 15 -o runs
    landscape report runs/*/run.h5 -o segmentation.html
"""

from __future__ import annotations

import torch
from torch import nn

from landscape import Task, task

CLASSES, SIZE = 3, 24


def pictures(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (n, 1, 24, 24) and labels (n, 24, 24): 0 ground, 1 disc, 2 square."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(n, SIZE, SIZE, dtype=torch.int64)
    for shape in (1, 2):
        center = torch.randint(5, SIZE - 5, (n, 2, 1, 1), generator=g)
        radius = torch.randint(2, 5, (n, 1, 1), generator=g)
        down, across = (rows - center[:, 0]).abs(), (columns - center[:, 1]).abs()
        inside = down**2 + across**2 <= radius**2 if shape == 1 else torch.maximum(down, across) <= radius
        labels[inside] = shape
    brightness = torch.tensor([0.0, 1.0, 0.7])[labels]
    noise = 0.35 * torch.randn(n, SIZE, SIZE, generator=g)
    return (brightness + noise).unsqueeze(1), labels


def network(width: int) -> nn.Module:
    """Return a small fully convolutional net, without downsampling: shapes are as large as its field of view."""
    layers: list[nn.Module] = []
    for channels_in, dilation in ((1, 1), (width, 2), (width, 2)):
        layers += [nn.Conv2d(channels_in, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, CLASSES, 1))


@task
def shapes(width: int = 12) -> Task:
    """Every pixel is a prediction: accuracy and calibration count them all."""
    train, test = pictures(256, seed=1), pictures(64, seed=2)
    return Task(network(width), nn.CrossEntropyLoss(), train, test, name="shapes", batch_size=32, max_samples=64)
