"""Evidential classification: logits give the evidence of a Dirichlet distribution over the class probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...errors import TrainingError
from ..inputs import LOGITS
from ..registries import losses
from ._softmax import of_label, one_hot

_SENSOY = "Sensoy et al. 2018, Evidential Deep Learning to Quantify Classification Uncertainty, arXiv:1806.01768"
_EVIDENCE = ("relu, softplus or exp of the logits (exp of those clamped to [-10, 10])", "the paper's: relu")
_KL = (
    "weight of the divergence of the misleading evidence from none",
    "0 at the start: the paper's, annealed to 1",
    "[0, inf)",
)


def concentrations(logits: torch.Tensor, evidence: str = "relu") -> torch.Tensor:
    """Return the Dirichlet's concentrations, evidence + 1, in the shape of the logits.

    Raises TrainingError for an unknown kind of evidence.
    """
    if evidence == "relu":
        return F.relu(logits) + 1
    if evidence == "softplus":
        return F.softplus(logits) + 1
    if evidence == "exp":
        return logits.clamp(-10, 10).exp() + 1
    raise TrainingError(f"evidence={evidence!r} is not one of relu, softplus, exp")


def vacuity(logits: torch.Tensor, evidence: str = "relu") -> torch.Tensor:
    """Return the uncertainty of each prediction, classes over total concentration: (n, ...) in (0, 1]."""
    return logits.shape[1] / concentrations(logits, evidence).sum(1)


def _misleading(alpha: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return KL(Dir(alpha without the label's evidence) || Dir(1)), (n, ...)."""
    own = one_hot(alpha, labels)
    alpha = own + (1 - own) * alpha
    total = alpha.sum(1, keepdim=True)
    classes = alpha.new_tensor(float(alpha.shape[1]))
    constant = torch.lgamma(total.squeeze(1)) - torch.lgamma(classes) - torch.lgamma(alpha).sum(1)
    return constant + ((alpha - 1) * (torch.digamma(alpha) - torch.digamma(total))).sum(1)


@losses.register(
    "evidential",
    takes=LOGITS,
    source=_SENSOY,
    about={"evidence": _EVIDENCE, "kl": _KL},
)
def evidential(outputs: torch.Tensor, target: torch.Tensor, evidence: str = "relu", kl: float = 0.0) -> torch.Tensor:
    """Expected squared error of the Dirichlet's class probabilities, plus kl times the misleading evidence."""
    alpha = concentrations(outputs, evidence)
    total = alpha.sum(1, keepdim=True)
    p = alpha / total
    value = ((one_hot(alpha, target) - p).square() + p * (1 - p) / (total + 1)).sum(1)
    return (value + kl * _misleading(alpha, target)).mean() if kl else value.mean()


@losses.register(
    "evidential_likelihood",
    takes=LOGITS,
    source=_SENSOY + " (eq. 3, type-II maximum likelihood)",
    about={"evidence": _EVIDENCE, "kl": _KL},
)
def evidential_likelihood(
    outputs: torch.Tensor, target: torch.Tensor, evidence: str = "relu", kl: float = 0.0
) -> torch.Tensor:
    """Type-II likelihood of the Dirichlet, log S - log alpha_label, plus kl times the misleading evidence."""
    alpha = concentrations(outputs, evidence)
    value = alpha.sum(1).log() - of_label(alpha, target).log()
    return (value + kl * _misleading(alpha, target)).mean() if kl else value.mean()
