"""Loss, accuracy and gradient norm of a checkpoint: the numbers that every other one is read beside."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .objective import Objective
from .passes import Evaluation
from .performance import Performance
from .perplexity import Likelihood
from .results import Check, Cost, measurement
from .tasks import Task

#: Blocks of samples below which a standard error's own error is told: 24% at ten (chosen by us).
FEW = 10


@measurement("performance", section="performance", order=10, estimate=lambda **_: 8.0)
def evaluate_checkpoint(task: Task, *, seed: int = 0, progress: bool = False) -> Performance:
    """Loss, accuracy and gradient norm on each split's draw, with standard errors.

    Costs two forward passes a split to verify the objective (once a task), one to measure, and one gradient.
    A language model's tokens give its perplexity, too: exp of the mean negative log likelihood of its logits, whatever
    loss it trains with, with a 95% interval over the sequences.
    Losses are in the loss's own unit (nats for cross entropy), means over the draw; the gradient is that of the
    first split's mean loss with respect to the trainable parameters.
    Raises ObjectiveError where the loss can't be measured (not deterministic, not finite, without a weight).
    """
    del seed, progress  # the draw carries its own seed; four passes need no bar
    start = time.perf_counter()
    found: list[tuple[str, Evaluation, Objective]] = []
    gradient_norm = weight_norm = math.nan
    notes: list[str] = []
    passes = 0.0
    parameters = 0
    for split in task.splits:
        with Objective(task, split) as objective:
            found.append((split, objective.evaluate(accuracy=True, stderr=True), objective))
            if len(found) == 1:
                gradient_norm = _norm(objective.gradient())
                weight_norm = _norm(objective.center)
                parameters = sum(p.numel() for p in objective.parameters)
            notes += [n for n in (*objective.notes, *_rests_on(split, found[-1][1])) if n not in notes]
            passes += objective.passes

    def column(name: str) -> np.ndarray:
        return np.array([getattr(e, name) for _, e, _ in found])

    loss_blocks = _padded([e.blocks for _, e, _ in found])
    accuracy_blocks = _padded([e.accuracy_blocks for _, e, _ in found])
    return Performance(
        loss=column("loss"),
        loss_stderr=column("stderr"),
        accuracy=column("accuracy"),
        accuracy_stderr=column("accuracy_stderr"),
        samples=column("samples"),
        block_loss=loss_blocks[0],
        block_weight=loss_blocks[1],
        block_accuracy=accuracy_blocks[0],
        block_count=accuracy_blocks[1],
        **_perplexity([e.likelihood for _, e, _ in found]),
        parameters=parameters,
        gradient_norm=gradient_norm,
        weight_norm=weight_norm,
        splits=tuple(s for s, _, _ in found),
        fingerprints=tuple(o.fingerprint for _, _, o in found),
        checks=(
            Check("objective", "pass", "two passes over every batch agreed, and the weights of the batches are known"),
        ),
        notes=tuple(notes),
        cost=Cost(passes=passes, seconds=time.perf_counter() - start),
    )


def _rests_on(split: str, found: Evaluation) -> list[str]:
    """Say where a standard error is a rough one itself, because batches could not be cut into samples."""
    n = len(found.blocks)
    if not 2 <= n < FEW or n == found.samples:
        return []
    return [
        f"the standard error of the {split} loss rests on {n} batches, which can't be cut into samples: it is known to "
        f"about {100 / math.sqrt(2 * (n - 1)):.0f}% only; more samples (max_samples) or smaller batches tell more"
    ]


def _perplexity(found: Sequence[Likelihood | None]) -> dict[str, Any]:
    """Return the fields of a language model; none for other tasks."""
    if not any(found):
        return {}
    unknown = Likelihood(math.nan, np.full(2, math.nan), 0, ())
    every = [one or unknown for one in found]
    return {
        "perplexity": np.array([one.perplexity for one in every]),
        "perplexity_interval": np.array([one.perplexity_interval for one in every]),
        "tokens": np.array([one.tokens for one in every]),
        "block_nll": _padded([one.blocks for one in every])[0],
    }


def _padded(blocks: Sequence[Sequence[tuple[float, float]]]) -> np.ndarray:
    """Return the means and weights of each split's blocks, (2, splits, most blocks): NaN behind a split's last."""
    parts = np.full((2, len(blocks), max(map(len, blocks))), np.nan)
    for i, of_split in enumerate(blocks):
        if of_split:
            parts[:, i, : len(of_split)] = np.transpose(of_split)
    return parts


def _norm(tensors: tuple[torch.Tensor, ...]) -> float:
    """Return the Euclidean norm over all tensors, summed in float64."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
