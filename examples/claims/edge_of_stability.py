"""Claim: under full-batch gradient descent the sharpness rises to 2 / learning rate, and stays there.

    python edge_of_stability.py [--seeds 4] [--quick] [--figures DIR]

A tanh net learns 500 digits by gradient descent on all of them at once, with half the squared error on one-hot labels
(summed over the classes, mean over the images: with another factor the learning rate means something else). A
`CurvatureProbe` follows the largest Hessian eigenvalue against the threshold of the optimizer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import Claim, Data, Finding, digits, figure_path, main, over, perceptron
from torch import Tensor, nn

import landscape as ls
from landscape import Task
from landscape.archive.history import Series
from landscape.probes import CurvatureProbe, Recorder, every  # pyright: ignore[reportMissingImports]

#: Chosen so that both thresholds lie above the eigenvalue at the start. A rate of 0.4 was tried first: it came to its
#: edge as well (1.05 [1.03, 1.06] of the threshold), but the interval at the start (0.61 to 1.10) reached beyond it.
RATES, STEPS, EVERY, IMAGES, WIDTH = (0.2, 0.3), 1500, 25, 500, 32
#: What the standardized pixels are multiplied by (their deviation as shares of white): the eigenvalue begins low.
CONTRAST = 0.376
#: Share of the run, at its end, over which "stays there" is judged; how near 1 lambda_max / threshold must be: 20%.
END, NEAR = 1 / 3, (0.8, 1.2)


def half_squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * (outputs - nn.functional.one_hot(labels, outputs.shape[1])).square().sum(1).mean()


def descend(data: Data, rate: float, seed: int, steps: int) -> Series:
    """Return what the probe recorded: lambda_max and threshold every few steps."""
    x, y = data
    torch.manual_seed(seed)
    model = perceptron(WIDTH, WIDTH, activation=nn.Tanh)
    task = Task(model, half_squared_error, train=(x, y), batch_size=len(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    probe = CurvatureProbe(samples=None, when=every(steps=EVERY))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        with Recorder(path, model, optimizer, task=task, probes=[probe]) as recorder:
            for _ in range(steps):
                loss = half_squared_error(model(x), y)
                recorder.log(loss=loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return ls.open_archive(path).history["curvature"]


def measure(seeds: Sequence[int], quick: bool = False, figures: Path | None = None) -> Claim:
    rates, steps, images = ((0.3,), 500, 200) if quick else (RATES, STEPS, IMAGES)
    findings, beside, curves = [], [], {}
    for rate in rates:
        records = []
        for seed in seeds:
            (x, y), _ = digits(seed, images)
            records.append(descend((CONTRAST * x, y), rate, seed, steps))
        ratios = np.array([r.column("lambda_max") / r.column("threshold") for r in records])
        threshold = float(records[0].column("threshold")[0])
        curves[rate] = records[0].steps, ratios * threshold, threshold
        end = ratios[:, -round(END * ratios.shape[1]) :].mean(axis=1)
        beside.append(over(f"rate {rate:g}: lambda_max at the start", ratios[:, 0] * threshold))
        beside.append(over(f"rate {rate:g}: lambda_max over the last third", end * threshold))
        begun = f"rate {rate:g}: lambda_max / threshold at the start below 1, so that it has to rise"
        findings.append(Finding(begun, ratios[:, 0], above=0.0, below=1.0))
        ended = f"rate {rate:g}: lambda_max / threshold ({threshold:.3g}) over the last third within {NEAR}"
        findings.append(Finding(ended, end, above=NEAR[0], below=NEAR[1]))
    if figures is not None:
        draw(curves, figures)
    return Claim(
        "edge of stability",
        "Sharpness rises to 2 / learning rate under full-batch gradient descent",
        "Cohen et al. 2021, Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, "
        "arXiv:2103.00065",
        f"{images} digits, tanh net 64-{WIDTH}-{WIDTH}-10, half the squared error, {steps} steps of gradient descent",
        findings,
        beside,
        rule="held where the 95% interval over seeds lies within the limits, did not hold where outside of them",
    )


def draw(curves: dict[float, tuple[np.ndarray, np.ndarray, float]], figures: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for color, (rate, (steps, largest, threshold)) in zip(("#0072B2", "#D55E00"), curves.items(), strict=False):
        axes.plot(steps, largest.T, color=color, linewidth=1)
        axes.axhline(threshold, color=color, linestyle="--", label=f"2 / {rate:g}")
    axes.set(xlabel="step", ylabel="largest Hessian eigenvalue (loss / weight²)", ylim=(0, None))
    axes.legend(title="threshold")
    figure.savefig(figure_path(figures, "edge_of_stability"), dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(measure, seeds=4)
