"""Claim: residual connections smooth the loss surface.

    python skip_connections.py [--seeds 5] [--quick] [--figures DIR]

Nets of 26 layers with BatchNorm, with and without skips, learn 1,000 digits at 16 x 16 pixels in the same order. Around
each a filter-normalized plane is measured, interpolated where 2% of the range is kept. Four numbers say how smooth it
is: its maximum; how many points the interpolation needs; its roughness; and the barrier on the straight way from the
first weights to the last.

Roughness is how far log loss goes up and down along the plane's rows and columns beyond one valley each, as a share of
that valley: 0 for every surface whose rows and columns fall to one minimum and rise again, however steep they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import Claim, Data, Finding, column, digits, figure_path, main, over
from torch import Tensor, nn

import landscape as ls
from landscape import Plane, Task

#: Chosen on seed 100, where at 18 layers both learn the digits and differ little. At 26 the nets without skips learn
#: them in part only: their loss at the centre is higher, and the surfaces differ for that, too.
BLOCKS, WIDTH, IMAGES, SIZE, EPOCHS, BATCH, RATE = 6, 6, 1000, 16, 15, 100, 0.1
#: Images on which a surface is measured, points of its sides, and the error allowed to interpolation.
SAMPLES, SIDE, TOLERANCE, PATH = 250, 21, 0.02, 15


class Block(nn.Module):
    """Two convolutions with BatchNorm, whose skip has no parameters (He et al. 2016, option A)."""

    def __init__(self, inside: int, outside: int, stride: int, skip: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.skip, self.stride, self.more = skip, stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.skip:
            out = out + nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return out.relu()


def residual_net(skip: bool, blocks: int, width: int) -> nn.Sequential:
    """Return a net of 4 * blocks + 2 layers: a stem to 8 x 8, two stages, ten outputs."""
    stem = [nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    first = [Block(width, width, 1, skip) for _ in range(blocks)]
    second = [Block(width, 2 * width, 2, skip), *(Block(2 * width, 2 * width, 1, skip) for _ in range(blocks - 1))]
    return nn.Sequential(*stem, *first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def train(model: nn.Module, data: Data, epochs: int, seed: int) -> None:
    x, y = data
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * -(-len(x) // BATCH))
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def roughness(surface: Plane) -> float:
    """Return how far log loss goes up and down beyond one valley in each row and column, as a share of the valleys."""
    extra = valleys = 0.0
    for z in (np.log(surface.loss), np.log(surface.loss).T):
        valley = z[:, 0] + z[:, -1] - 2 * z.min(axis=1)
        extra += float((np.abs(np.diff(z, axis=1)).sum(axis=1) - valley).sum())
        valleys += float(valley.sum())
    return extra / valleys


def look(skip: bool, seed: int, quick: bool) -> tuple[dict[str, float], Plane]:
    """Return the numbers of one net, and the plane around it."""
    data, held_out = digits(seed, 200 if quick else IMAGES, SIZE)
    torch.manual_seed(seed)
    model = residual_net(skip, 2 if quick else BLOCKS, WIDTH)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, data, 2 if quick else EPOCHS, seed)
    task = Task(model, nn.CrossEntropyLoss(), data, held_out, max_samples=100 if quick else SAMPLES)
    steps = np.linspace(-1, 1, 11 if quick else SIDE)
    surface = ls.plane(task, alphas=steps, betas=steps, tol=TOLERANCE, accuracy=False, bend=False, seed=seed)
    path = ls.interpolate(task, first, model.state_dict(), points=5 if quick else PATH, accuracy=False)
    with torch.no_grad():
        accuracy = (model(held_out[0]).argmax(1) == held_out[1]).double().mean().item()
    numbers = {
        "largest loss": float(surface.loss.max()),
        "points": float(surface.evaluated.sum()),
        "roughness": roughness(surface),
        "barrier": float(path.barrier[0, 0]),
        "train loss": surface.center_loss,
        "test accuracy": accuracy,
    }
    return numbers, surface


def measure(seeds: Sequence[int], quick: bool = False, figures: Path | None = None) -> Claim:
    found = {skip: [look(skip, seed, quick) for seed in seeds] for skip in (True, False)}
    if figures is not None:
        draw({skip: own[0][1] for skip, own in found.items()}, figures)
    rows = {skip: [numbers for numbers, _ in own] for skip, own in found.items()}
    both = {name: (column(rows[True], name), column(rows[False], name)) for name in rows[True][0]}
    beside = [
        f"{'with skips' if skip else 'without skips'}: " + "; ".join(over(n, both[n][i]) for n in both)
        for i, skip in enumerate((True, False))
    ]

    def ratio(name: str) -> np.ndarray:
        return np.log(both[name][1] / both[name][0])

    def difference(name: str) -> np.ndarray:
        return both[name][1] - both[name][0]

    layers = 4 * (2 if quick else BLOCKS) + 2
    return Claim(
        "skip connections",
        "Residual connections smooth the loss surface",
        "Li et al. 2018, Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913, section 5",
        f"{layers} layers of {WIDTH} and {2 * WIDTH} channels, {200 if quick else IMAGES:,} digits at 16 x 16, "
        "the same training with and without skips; filter-normalized plane from -1 to 1; paired by seed",
        [
            Finding("largest loss on the plane, without skips over with: above 1", ratio("largest loss"), log=True),
            Finding("points that the interpolation needs, without over with: above 1", ratio("points"), log=True),
            Finding("roughness of log loss, without minus with: above 0", difference("roughness")),
            Finding("barrier from the first weights, without minus with: above 0", difference("barrier"), units="nats"),
        ],
        beside,
    )


def draw(surfaces: dict[bool, Plane], figures: Path) -> None:
    from matplotlib import cm, colors
    from matplotlib import pyplot as plt

    values = np.concatenate([s.loss.ravel() for s in surfaces.values()])
    levels = np.geomspace(values.min(), values.max(), 25)  # one scale for both: they are compared
    norm = colors.LogNorm(levels[0], levels[-1])
    figure, both = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained", sharex=True, sharey=True)
    for axes, (skip, s) in zip(both, surfaces.items(), strict=True):
        axes.contourf(s.alpha, s.beta, s.loss.T, levels=levels, norm=norm, cmap="viridis")
        axes.set(title="with skips" if skip else "without skips", xlabel="step along d1", aspect="equal")
    both[0].set_ylabel("step along d2")
    scale = cm.ScalarMappable(norm, "viridis")
    figure.colorbar(scale, ax=both, label="training loss (nats)", format="%.3g")
    figure.savefig(figure_path(figures, "skip_connections"), dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(measure, seeds=5)
