"""Claim: squentropy calibrates better than cross-entropy.

    python squentropy.py [--seeds 8] [--quick] [--figures DIR]

A sweep trains the same net from the same first weights with both losses on 300 digits, and looks at its confidence on
the 1,497 others. Lower is better throughout; differences are paired by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Claim, Finding, column, digits, figure_path, main, over, perceptron, trained
from torch import nn

import landscape as ls
from landscape import Task
from landscape.calibration.table import Calibration
from landscape.probes import CellResult, How  # pyright: ignore[reportMissingImports]

#: Few images, so that there are mistakes to be sure or unsure of; all of them are learned by heart.
IMAGES, WIDTH, EPOCHS, BATCH, RATE = 300, 128, 60, 32, 0.05
LOSSES = ("cross_entropy", "squentropy")
#: Of every final checkpoint, on all images that were held out.
HOW = How(record=False, evaluate=0, only=["calibration"], max_samples=2000)
#: What is compared: name, whether it decides (the claim is about calibration; the others are told beside).
COMPARED = {"ECE": True, "NLL": True, "debiased ECE": False, "Brier score": False, "error": False}


def read(result: CellResult) -> dict[str, float]:
    """Return the scores of a final checkpoint."""
    found = next(e.result for e in ls.open_archive(result.archive).entries if e.kind == "calibration")
    assert isinstance(found, Calibration)
    return {
        "ECE": found.ece,
        "low": float(found.ece_interval[0]),
        "high": float(found.ece_interval[1]),
        "debiased ECE": found.ece_debiased,
        "NLL": found.nll,
        "Brier score": found.brier,
        "error": 1 - found.accuracy,
        "overconfidence": found.overconfidence,
        "temperature": result.metrics.get("calibration.temperature", float("nan")),
    }


def measure(seeds: Sequence[int], quick: bool = False, figures: Path | None = None) -> Claim:
    epochs = 3 if quick else EPOCHS

    def task(seed: int) -> Task:
        train, test = digits(seed, IMAGES)
        return Task(perceptron(WIDTH), nn.CrossEntropyLoss(), train, test)

    lists = {"loss": LOSSES, "epochs": epochs, "batch_size": BATCH, "lr": RATE, "seeds": tuple(seeds)}
    rows = trained(task, read, how=HOW, **lists)
    entropy, square = (rows[loss] for loss in LOSSES)
    beside = []
    for loss, own in rows.items():
        shown = (*COMPARED, "overconfidence", "temperature")
        beside.append(f"{loss}: " + "; ".join(over(name, column(own, name)) for name in shown))
        ends = ", ".join(f"[{r['low']:.3f}, {r['high']:.3f}]" for r in own)
        beside.append(f"{loss}: each seed's own 95% interval of the ECE: {ends}")
    findings = [
        Finding(
            f"{name} of cross-entropy minus that of squentropy above 0",
            column(entropy, name) - column(square, name),
            decides=decides,
        )
        for name, decides in COMPARED.items()
    ]
    if figures is not None:
        draw(rows, figures)
    return Claim(
        "squentropy",
        "Squentropy calibrates better than cross-entropy",
        "Hui, Belkin and Wright 2023, Cut your Losses with Squentropy, arXiv:2302.03952",
        f"{IMAGES} digits, 64-{WIDTH}-10, SGD with momentum 0.9, rate {RATE:g}, batch {BATCH}, {epochs} epochs; "
        f"judged on the {1797 - IMAGES} others; paired by seed",
        findings,
        beside,
    )


def draw(rows: dict[str, list[dict[str, float]]], figures: Path) -> None:
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(6.5, 3.5), layout="constrained")
    for name, axes in zip(("ECE", "NLL"), both, strict=True):
        values = np.array([column(own, name) for own in rows.values()])
        axes.plot(values, color="0.6", linewidth=0.8, marker="o", markersize=4)
        axes.set_xticks(range(len(rows)), list(rows))
        axes.set(ylabel=f"{name} ({'share' if name == 'ECE' else 'nats'})", xlim=(-0.3, 1.3), ylim=(0, None))
    figure.savefig(figure_path(figures, "squentropy"), dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(measure, seeds=8)
