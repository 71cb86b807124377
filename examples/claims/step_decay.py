"""Claim: a step decay of the learning rate makes the loss jump.

    python step_decay.py [--seeds 8] [--quick] [--figures DIR]

A sweep trains the digits with a rate that falls to a tenth after two thirds of the run, and with one that stays: both
are the same training, bit for bit, up to the switch. What the recorder kept of every step gives the loss of each epoch;
the change from the three epochs before to the one that follows is compared with the same change at ten epochs before
the switch, where nothing happened (its root mean square), and with the run whose rate stayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Claim, Finding, digits, figure_path, main, over, perceptron, trained
from torch import nn

import landscape as ls
from landscape import Task
from landscape.probes import CellResult, How, LearningRate  # pyright: ignore[reportMissingImports]

#: Chosen so that the loss has stopped falling ten epochs before the switch. With the switch after 20 of 30 epochs,
#: tried first, it was still falling then: the fall at the switch was 0.22 [0.14, 0.30] of the ordinary ones.
EPOCHS, SWITCH, RATE, BATCH, IMAGES, WIDTH = 45, 30, 0.1, 32, 1400, 32
OPTIMIZER = "sgd(momentum=0.9, weight_decay=0.0005)"
#: Epochs before that a change is measured from; epochs without a switch; how many of their changes a jump exceeds.
BEFORE, ORDINARY, JUMP = 3, 10, 2.0
HOW = How(evaluate=1, measure=False, probes=[LearningRate()])


def losses_by_epoch(result: CellResult) -> dict[str, np.ndarray]:
    """Return the mean loss of the steps of each epoch, (epochs,), and the test loss at the end of each."""
    history = ls.open_archive(result.archive).history
    return {
        "train": history["loss"].column("loss").reshape(result.cell.epochs, -1).mean(axis=1),
        "test": history["logged"].column("test_loss"),
    }


def changes(loss: np.ndarray) -> np.ndarray:
    """Return by how much log loss fell to each epoch, from the 4th on, from the mean of the three before it."""
    log = np.log(loss)
    return np.array([log[t - BEFORE : t].mean() - log[t] for t in range(BEFORE, len(log))])


def measure(seeds: Sequence[int], quick: bool = False, figures: Path | None = None) -> Claim:
    images, epochs, switch, ordinary = (300, 9, 6, 3) if quick else (IMAGES, EPOCHS, SWITCH, ORDINARY)

    def task(seed: int) -> Task:
        train, test = digits(seed, images)
        return Task(perceptron(WIDTH), nn.CrossEntropyLoss(), train, test)

    schedules = (f"step(every={switch})", "constant")
    lists = {"schedule": schedules, "optimizer": OPTIMIZER, "epochs": epochs, "batch_size": BATCH, "lr": RATE}
    stepped, stayed = trained(task, losses_by_epoch, how=HOW, seeds=tuple(seeds), **lists).values()
    findings, beside = [], []
    for split, decides in (("train", True), ("test", False)):
        drops = [changes(r[split])[switch - BEFORE] for r in stepped]
        usual = [
            np.sqrt(np.mean(changes(r[split])[switch - BEFORE - ordinary : switch - BEFORE] ** 2)) for r in stepped
        ]
        beside.append(over(f"{split} loss: share of its logarithm that fell at the switch", drops))
        beside.append(over(f"{split} loss: the same at the {ordinary} epochs before (root mean square)", usual))
        findings += [
            Finding(
                f"fall of the log {split} loss at the switch over that of ordinary epochs above {JUMP:g}",
                np.array(drops) / usual,
                above=JUMP,
                decides=decides,
            ),
            Finding(
                f"{split} loss of the epoch after the switch: that of the run whose rate stayed over this one above 1",
                [float(np.log(b[split][switch] / a[split][switch])) for a, b in zip(stepped, stayed, strict=True)],
                log=True,
                decides=decides,
            ),
        ]
    if figures is not None:
        draw(stepped, stayed, switch, figures)
    return Claim(
        "step decay",
        "A step decay makes the loss jump down at the switch",
        "He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385 (figure 4)",
        f"{images} digits, 64-{WIDTH}-10, {OPTIMIZER}, batch {BATCH}, rate {RATE:g} falling to a tenth after {switch} "
        f"of {epochs} epochs; paired by seed with the rate that stays",
        findings,
        beside,
        rule=f"held where the 95% interval over seeds lies wholly above {JUMP:g} (fall over ordinary falls) and "
        "above 1 (against the rate that stays), did not hold where wholly below",
    )


def draw(stepped: list[dict[str, np.ndarray]], stayed: list[dict[str, np.ndarray]], switch: int, figures: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for rows, color, label in ((stayed, "#999999", "rate stays"), (stepped, "#0072B2", "step decay")):
        lines = np.array([r["train"] for r in rows])
        axes.plot(np.arange(1, lines.shape[1] + 1), lines.T, color=color, linewidth=0.5, alpha=0.5)
        axes.plot(
            np.arange(1, lines.shape[1] + 1), np.exp(np.log(lines).mean(0)), color=color, linewidth=2, label=label
        )
    axes.axvline(switch + 0.5, color="0.3", linestyle=":", label="switch")
    axes.set(xlabel="epoch", ylabel="mean training loss of the epoch (nats)", yscale="log")
    axes.legend()
    figure.savefig(figure_path(figures, "step_decay"), dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(measure, seeds=8)
