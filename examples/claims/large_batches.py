"""Claim: large batches end sharper, small ones flatter, and the learning rate can compensate.

    python large_batches.py [--seeds 8] [--quick] [--figures DIR]

A sweep trains the digits from the same first weights with small batches, with batches 16 times as large at the same
rate, and with these at 16 times the rate (linear scaling), for the same number of epochs; and, because the second then
takes 16 times fewer steps, once more for as many steps as the small batches take. Weight decay gives every training a
place to end at: without it the curvature of cross-entropy goes to 0 with the loss, and follows it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Claim, Finding, column, digits, figure_path, main, over, perceptron, trained
from torch import nn

from landscape import Task
from landscape.probes import Cell, How  # pyright: ignore[reportMissingImports]

#: Chosen on seeds 100 and 101: the small batches reach a loss of 0.05, and the scaled rate is stable.
SMALL, TIMES, RATE, EPOCHS, DECAY, IMAGES = 16, 16, 0.05, 20, 1e-3, 1400
LARGE = SMALL * TIMES
#: The four trainings: batch size, rate, epochs in multiples of the small batches'.
SETTINGS = {
    "small": (SMALL, RATE, 1),
    "large": (LARGE, RATE, 1),
    "large, same steps": (LARGE, RATE, TIMES),
    "large, scaled rate": (LARGE, RATE * TIMES, 1),
}
MEASURED = {"lambda_max": "curvature.eigenvalues", "trace": "curvature.trace.value"}
#: Of every final checkpoint, on all its training images.
HOW = How(
    record=False,
    evaluate=0,
    only=["performance", "eigenvalues", "trace"],
    options={"eigenvalues": {"k": 1, "which": "largest"}, "trace": {"draws": 32}},
)


def measure(seeds: Sequence[int], quick: bool = False, figures: Path | None = None) -> Claim:
    images, epochs = (300, 2) if quick else (IMAGES, EPOCHS)

    def task(seed: int) -> Task:
        train, test = digits(seed, images)
        return Task(perceptron(32), nn.CrossEntropyLoss(), train, test)

    optimizer = f"sgd(weight_decay={DECAY})"
    cells = [
        Cell(batch_size=batch, lr=rate, epochs=epochs * times, optimizer=optimizer, seed=seed)
        for batch, rate, times in SETTINGS.values()
        for seed in seeds
    ]
    found = trained(task, lambda r: dict(r.metrics), cells=cells, how=HOW)
    rows = dict(zip(SETTINGS, found.values(), strict=True))
    findings, beside = [], []
    for name, own in rows.items():
        numbers = {**MEASURED, "train loss": "loss.train", "test accuracy": "accuracy.test"}
        beside.append(f"{name:<18} " + "; ".join(over(n, column(own, key)) for n, key in numbers.items()))
    for name, key in MEASURED.items():
        logs = {setting: np.log(column(own, key)) for setting, own in rows.items()}
        sharper = logs["large"] - logs["small"]
        rest = logs["large, scaled rate"] - logs["small"]
        findings += [
            Finding(f"{name} of batch {LARGE} over that of batch {SMALL}: above 1", sharper, log=True),
            Finding(
                f"{name}: the scaled rate comes nearer to the small batches' than the same rate does (ratio above 1)",
                np.abs(sharper) - np.abs(rest),
                log=True,
            ),
            Finding(
                f"{name} of batch {LARGE} over that of batch {SMALL} after as many steps: above 1",
                logs["large, same steps"] - logs["small"],
                log=True,
                decides=False,
            ),
            Finding(
                f"{name} of batch {LARGE} at {TIMES} times the rate over that of batch {SMALL}: within a tenth of 1",
                rest,
                above=float(np.log(1 / 1.1)),
                below=float(np.log(1.1)),
                log=True,
                decides=False,
            ),
        ]
    if figures is not None:
        draw({s: [column(own, key) for key in MEASURED.values()] for s, own in rows.items()}, figures)
    return Claim(
        "large batches",
        "Large batches end sharper, small ones flatter, and the learning rate can compensate",
        "Keskar et al. 2017, arXiv:1609.04836; linear scaling: Goyal et al. 2017, arXiv:1706.02677",
        f"{images} digits, 64-32-10, cross-entropy, SGD with weight decay {DECAY:g}, {epochs} epochs, "
        f"batch {SMALL} against {LARGE}, rate {RATE:g}, scaled {RATE * TIMES:g}; paired by seed",
        findings,
        beside,
    )


def draw(values: dict[str, list[np.ndarray]], figures: Path) -> None:
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
    for k, (name, axes) in enumerate(zip(MEASURED, both, strict=True)):
        rows = np.array([own[k] for own in values.values()])
        axes.plot(rows, color="0.7", linewidth=0.8, marker="o", markersize=3)
        axes.plot(rows.mean(axis=1), color="#0072B2", linewidth=0, marker="_", markersize=24)
        axes.set_xticks(range(len(values)), [v.replace(", ", ",\n") for v in values])
        axes.set(ylabel=f"{name} (loss / weight²)", yscale="log")
    figure.savefig(figure_path(figures, "large_batches"), dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(measure, seeds=8)
