"""Log-probabilities of the classes along dim 1, and of what is not the label, without overflow."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def of_label(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return x (n, classes, ...) at the labels (n, ...)."""
    return x.gather(1, labels.unsqueeze(1)).squeeze(1)


def one_hot(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the labels as 0 and 1 in the shape and dtype of x (n, classes, ...)."""
    return torch.zeros_like(x).scatter(1, labels.unsqueeze(1), 1.0)


def log_not(log_p: torch.Tensor) -> torch.Tensor:
    """Return log(1 - p) of each class from the log-probabilities (n, classes, ...).

    It stays finite where p rounds to 1, and so do its derivatives: only the top class can exceed 1/2, and its 1 - p is
    the sum of the others.
    """
    top = one_hot(log_p, log_p.argmax(1)).bool()
    rest = log_p.masked_fill(top, -torch.inf).logsumexp(1, keepdim=True)
    others = torch.log1p(-log_p.masked_fill(top, -1.0).exp())
    return torch.where(top, rest, others)


def log_not_label(log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return log(1 - p_label), (n, ...)."""
    own = one_hot(log_p, labels).bool()
    return log_p.masked_fill(own, -torch.inf).logsumexp(1)


def label_terms(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (log p_label, log(1 - p_label)), (n, ...) each."""
    log_p = F.log_softmax(logits, dim=1)
    return of_label(log_p, labels), log_not_label(log_p, labels)
