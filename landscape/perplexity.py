"""Perplexity of a language model: how likely it finds the tokens, with an interval over their sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .calibration.intervals import ratio_interval
from .labels import sums_of_samples
from .tasks import Task
from .tokens import next_token


@dataclass(frozen=True)
class Likelihood:
    """Mean negative log likelihood of a token in nats, its 95% interval (2,), and the number of tokens that count.

    Tokens of one sequence depend on each other, so that the interval is one over sequences: of a ratio of sums, with
    its skewness removed and Student's quantile (see `landscape.calibration.intervals.mean_interval`). `blocks` are the
    (mean, tokens) of runs of sequences, for comparisons in pairs.
    """

    nll: float
    interval: np.ndarray
    tokens: int
    blocks: tuple[tuple[float, float], ...]

    @property
    def perplexity(self) -> float:
        """Perplexity: exp of the mean (inf where that is too large)."""
        return float(_exp(self.nll))

    @property
    def perplexity_interval(self) -> np.ndarray:
        """Its 95% interval, (2,)."""
        return _exp(self.interval)


def is_language_model(task: Task, model: nn.Module, logits: torch.Tensor) -> bool:
    """Return whether predictions (n, classes) are of tokens: the task says so, or the classes are what a table embeds.

    Labels of pixels, or of words by their kind, are none of the model's own vocabulary.
    """
    if logits.ndim != 2:
        return False
    if task.forward is next_token or task.pairing == "next":
        return True
    return any(isinstance(m, nn.Embedding) and m.num_embeddings == logits.shape[1] for m in model.modules())


def nll_of_samples(
    logits: torch.Tensor, labels: torch.Tensor, given: torch.Tensor | None, samples: int | None, ignore_index: int
) -> torch.Tensor:
    """Return the summed negative log likelihood of each sample's tokens in nats, (k,) float64; as `rights_of_samples`.

    Of the logits as they are, whatever loss the task trains with (smoothed labels, a balancing term, a distillation).
    """
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    each = F.cross_entropy(wide, labels, reduction="none").double()
    return sums_of_samples(each, labels, given, samples, ignore_index)[0]


def likelihood(
    found: Sequence[tuple[torch.Tensor, torch.Tensor]], blocks: tuple[tuple[float, float], ...]
) -> Likelihood | None:
    """Return the likelihood of the tokens from (NLL, tokens) of each batch's samples, (k,) both; None without any."""
    if not found:
        return None
    sums, counts = (
        np.concatenate([t.detach().cpu().double().numpy() for t in side]) for side in zip(*found, strict=True)
    )
    there = counts > 0
    sums, counts = sums[there], counts[there]
    if not len(counts):
        return None
    nll = float(sums.sum() / counts.sum())
    return Likelihood(nll, ratio_interval(sums, counts)[1], int(counts.sum()), blocks)


def _exp(x: float | np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(x)
