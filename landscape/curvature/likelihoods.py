"""Losses that are negative log-likelihoods: the slope of each term in the outputs, at true labels or drawn ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MeasurementError
from ..reduction import torch_loss_settings


@dataclass(frozen=True)
class Terms:
    """The terms that a loss's mean counts: one for each label (a token, a pixel), or for each element of the outputs.

    `slopes` (draws, R, C) are the derivatives of each term in its own C outputs, `weights` (R,) what the mean counts
    it by; `classes` says whether the C outputs of a term lie along dimension 1 (C > 1) or a term is one element.
    """

    slopes: Tensor
    weights: Tensor
    classes: bool

    def rows(self, outputs: Tensor) -> Tensor:
        """Return outputs, or what has their shape, as (R, C)."""
        if not self.classes:
            return outputs.reshape(-1, 1)
        dim = 1 if outputs.ndim > 1 else 0
        return outputs.movedim(dim, -1).reshape(-1, outputs.shape[dim])

    def outer(self, along: Tensor) -> Tensor:
        """Return sum_r w_r s_r (s_r . u_r) / sum_r w_r, averaged over the draws, in the shape of `along` (J v)."""
        u = self.rows(along)
        bent = (self.slopes * (self.slopes * u).sum(-1, keepdim=True)).mean(0)
        bent = bent * (self.weights / self.weights.sum()).unsqueeze(-1)
        if not self.classes:
            return bent.reshape(along.shape)
        dim = 1 if along.ndim > 1 else 0
        return bent.reshape(along.movedim(dim, -1).shape).movedim(-1, dim)


def terms_of(loss: Any, outputs: Any, target: Any, draws: int, generator: torch.Generator | None) -> Terms:
    """Return the terms of a batch's loss; labels are drawn from the model where a generator is given.

    Known are CrossEntropyLoss (class weights, ignore_index; no label smoothing), BCEWithLogitsLoss (no weights) and
    MSELoss, as modules, functions and partials. A mean of (z - y)^2 is the likelihood of a normal distribution of
    variance 1/2. Raises MeasurementError for every other loss.
    """
    kind, options = _known(loss)
    if not isinstance(outputs, Tensor) or not isinstance(target, Tensor):
        raise MeasurementError(
            f"Fisher needs one tensor of outputs and one of targets, got a {type(outputs).__name__} and a "
            f"{type(target).__name__}: give Task(forward=lambda model, batch: (logits, labels))"
        )
    z = outputs.detach()
    if kind is nn.CrossEntropyLoss:
        return _categorical(z, target, options, draws, generator)
    if z.shape != target.shape:
        raise MeasurementError(
            f"Fisher needs targets in the shape of the outputs, {tuple(z.shape)}, got {tuple(target.shape)}"
        )
    flat, labels = z.reshape(1, -1, 1), target.detach().to(z.dtype).reshape(1, -1, 1)
    if kind is nn.BCEWithLogitsLoss:
        p = flat.sigmoid()
        if generator is not None:
            labels = (_uniform((draws, *p.shape[1:]), p, generator) < p).to(z.dtype)
        slopes = p - labels
    else:
        noise = None if generator is None else _normal((draws, *flat.shape[1:]), flat, generator)
        slopes = 2 * (flat - labels) if noise is None else noise * math.sqrt(2.0)
    return Terms(slopes, torch.ones(slopes.shape[1], dtype=z.dtype, device=z.device), False)


def _known(loss: Any) -> tuple[type[nn.Module], dict[str, Any]]:
    found = torch_loss_settings(loss)
    name = getattr(loss, "__name__", type(loss).__name__)
    if found is None or found[0] not in (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss):
        raise MeasurementError(
            f"the loss {name} is no likelihood that Fisher knows (cross entropy, binary cross entropy with logits, "
            "squared error): use GaussNewton"
        )
    kind, options = found
    smoothing = options.get("label_smoothing", getattr(loss, "label_smoothing", 0.0))
    weighted = kind is not nn.CrossEntropyLoss and (
        options.get("weight") is not None or options.get("pos_weight", getattr(loss, "pos_weight", None)) is not None
    )
    if smoothing or weighted:
        what = "label smoothing" if smoothing else "weights of its elements"
        raise MeasurementError(f"the loss {name} with {what} is no likelihood of its labels: use GaussNewton")
    return kind, options


def _categorical(
    z: Tensor, target: Tensor, options: dict[str, Any], draws: int, generator: torch.Generator | None
) -> Terms:
    dim = 1 if z.ndim > 1 else 0
    logits = z.movedim(dim, -1).reshape(-1, z.shape[dim])
    p = logits.softmax(-1)
    if target.is_floating_point():  # class probabilities, each sample counting once
        truth = target.to(z.dtype).movedim(dim, -1).reshape(p.shape)
        weights = torch.ones(len(p), dtype=z.dtype, device=z.device)
        if options.get("weight") is not None:
            raise MeasurementError("class weights with class probabilities are no likelihood: use GaussNewton")
    else:
        labels = target.reshape(-1)
        kept = labels != options.get("ignore_index", -100)
        safe = torch.where(kept, labels, 0)
        truth = nn.functional.one_hot(safe, p.shape[-1]).to(z.dtype)
        given = options.get("weight")
        weights = kept.to(z.dtype) * (1.0 if given is None else given.detach().to(z.device, z.dtype)[safe])
    if generator is None:
        return Terms((p - truth).unsqueeze(0), weights, True)
    edges = p.cumsum(-1)
    # Where the last class's sum falls short of the number drawn by rounding, the last class is meant.
    drawn = (_uniform((draws, len(p), 1), p, generator) > edges).sum(-1).clamp_max(p.shape[-1] - 1)
    return Terms(p - nn.functional.one_hot(drawn, p.shape[-1]).to(z.dtype), weights, True)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw on the CPU, so that every device sees the same labels."""
    return torch.rand(shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)
