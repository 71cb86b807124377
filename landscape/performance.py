"""The result of evaluating a checkpoint: loss and accuracy on each split. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .results import Result, array


@dataclass(frozen=True, kw_only=True)
class Performance(Result, kind="performance"):
    """Loss and accuracy of a checkpoint on each split that the task has, and the perplexity of a language model.

    `splits` names the entries of every array, e.g. ("train", "test"). Standard errors are over the samples of
    the draw; NaN where the loss cannot be taken apart. Accuracy is NaN where there are no labels. Blocks of samples
    (64 a split, or its batches where there are more) let two checkpoints be compared in pairs.
    """

    loss: np.ndarray = array("split", units="loss", stderr="loss_stderr", doc="mean loss")
    loss_stderr: np.ndarray = array("split", units="loss", doc="standard error of the loss over the samples")
    accuracy: np.ndarray = array("split", units="share", stderr="accuracy_stderr", doc="share of right labels")
    accuracy_stderr: np.ndarray = array("split", units="share", doc="standard error over the samples")
    samples: np.ndarray = array("split", doc="samples in each draw")
    perplexity: np.ndarray | None = array(
        "split",
        interval="perplexity_interval",
        doc="exp of the mean negative log likelihood of a token, for language models",
        default=None,
    )
    perplexity_interval: np.ndarray | None = array(
        "split", "bound", doc="95% interval over the sequences, whose tokens depend on each other", default=None
    )
    tokens: np.ndarray | None = array("split", doc="tokens that count in each draw", default=None)
    parameters: int = array(doc="trainable parameters, tied ones counted once", default=0)
    gradient_norm: float = array(units="loss / parameter", doc="||gradient||_2 of the train loss")
    weight_norm: float = array(doc="||theta||_2")
    splits: tuple[str, ...] = ()
    block_loss: np.ndarray | None = array(
        "split",
        "block",
        units="loss",
        doc="mean loss of each block of samples; NaN behind a split's last",
        default=None,
    )
    block_weight: np.ndarray | None = array(
        "split", "block", doc="weight of each block: samples, tokens that count, or sums of class weights", default=None
    )
    block_accuracy: np.ndarray | None = array(
        "split",
        "accuracy_block",
        units="share",
        doc="share of right labels in each block of samples; NaN behind a split's last",
        default=None,
    )
    block_count: np.ndarray | None = array(
        "split", "accuracy_block", doc="labels in each block of samples", default=None
    )
    block_nll: np.ndarray | None = array(
        "split",
        "accuracy_block",
        units="nats",
        doc="mean negative log likelihood of a token in each block of samples, for language models",
        default=None,
    )
    fingerprints: tuple[str, ...] = field(default=(), metadata={"doc": "of each split's draw"})

    def summary(self) -> dict[str, Any]:
        at = dict(zip(self.splits, range(len(self.splits)), strict=True))

        def both(values: np.ndarray) -> dict[str, float | None]:
            return {s: float(values[at[s]]) if s in at else None for s in ("train", "test")}

        perplexity: dict[str, Any] = {}
        if self.perplexity is not None and self.perplexity_interval is not None:
            ends = {s: self.perplexity_interval[at[s]].tolist() if s in at else None for s in ("train", "test")}
            perplexity = {"perplexity": both(self.perplexity), "perplexity_ci": ends}
        return {
            "loss": both(self.loss),
            "loss_stderr": both(self.loss_stderr),
            "accuracy": both(self.accuracy),
            "accuracy_stderr": both(self.accuracy_stderr),
            **perplexity,
            "gradient_norm": self.gradient_norm,
            "weight_norm": self.weight_norm,
        }
