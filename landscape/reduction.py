"""By what weight the means of batches combine: known for torch.nn's losses, verified for others, never guessed.

H = sum_b w_b H_b / sum_b w_b is the Hessian of the mean over all samples only if w_b is the denominator of batch
b's own mean: the number of samples, of tokens not ignored, or the sum of the class weights of its targets.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .batch import batch_size_of, tensors_of
from .errors import ObjectiveError

# Mean over the elements of the outputs (after broadcasting against the target).
_BY_ELEMENT = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.PoissonNLLLoss,
    nn.HingeEmbeddingLoss,
)
# Mean over the first dimension, whatever comes behind it is averaged or summed for each sample.
_BY_SAMPLE = (
    nn.MultiMarginLoss,
    nn.MultiLabelMarginLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.TripletMarginLoss,
    nn.CTCLoss,
)
_BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
}


def split_value(value: Any) -> tuple[torch.Tensor, float | torch.Tensor | None, dict[str, torch.Tensor]]:
    """Return (mean, weight or None, terms) from what a loss returned.

    Raises ObjectiveError for anything but a scalar mean, `(mean, weight)` or `{term: mean}`, and, where autograd is
    on, for a weight that depends on the parameters: that is a second loss, or a mean that no denominator combines.
    """
    weight: float | torch.Tensor | None = None
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ObjectiveError(
                f"the loss returned a tuple of {len(value)}; expected a mean, (mean, weight) or {{term: mean}}, whose "
                "terms are added up"
            )
        value, weight = value
        if isinstance(weight, torch.Tensor):
            if weight.requires_grad:
                raise ObjectiveError(
                    "the loss returned a pair whose second entry depends on the parameters; expected (mean, weight), "
                    "the weight being a count such as samples or tokens. For two losses return their sum, or "
                    "{'name': mean, ...}, whose terms are added up"
                )
            weight = weight.detach()
            if weight.numel() != 1:
                raise ObjectiveError(
                    f"the loss returned a weight of shape {tuple(weight.shape)}; expected one number, "
                    "the mean's own denominator"
                )
    terms: dict[str, torch.Tensor] = {}
    if isinstance(value, Mapping):
        if not value:
            raise ObjectiveError("the loss returned no terms; expected at least one {term: mean}")
        terms = {str(k): _scalar(v, f"term {k!r} of the loss") for k, v in value.items()}
        _refuse_total(terms)
        mean = functools.reduce(torch.add, terms.values())
    else:
        mean = _scalar(value, "the loss")
    return mean, weight, {k: v.detach() for k, v in terms.items()}


def _refuse_total(terms: Mapping[str, torch.Tensor]) -> None:
    """Refuse a term called loss or total beside others: it is their sum, and would be counted twice."""
    total = next((k for k in terms if k.lower() in ("loss", "total", "total_loss", "loss_total")), None)
    if total is not None and len(terms) > 1:
        others = ", ".join(k for k in terms if k != total)
        raise ObjectiveError(
            f"the loss returned the term {total!r} beside {others}: the terms are added up, so that a total would be "
            "counted twice; return the terms alone, or the total alone"
        )


def _scalar(value: Any, what: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ObjectiveError(f"{what} is a {type(value).__name__}; expected a tensor with one element (a mean)")
    if value.numel() != 1:
        raise ObjectiveError(
            f'{what} has shape {tuple(value.shape)}; expected its mean (reduction="mean"), one number a batch'
        )
    return value.reshape(())


def known_weight(loss: Callable[..., Any] | None, outputs: Any, target: Any) -> float | None:
    """Return the denominator of a torch loss's mean for this batch, None where the loss is not one we know.

    Raises ObjectiveError for a torch loss whose reduction is not a mean.
    """
    settings = torch_loss_settings(loss)
    if settings is None:
        return None
    kind, options = settings
    reduction = options.get("reduction", "mean")
    if issubclass(kind, nn.KLDivLoss) and reduction == "batchmean":
        return float(len(outputs))
    if reduction != "mean":
        raise ObjectiveError(
            f'{kind.__name__} has reduction={reduction!r}; expected reduction="mean": batches are combined by the '
            "denominators of their means"
        )
    if not isinstance(outputs, torch.Tensor) or not isinstance(target, torch.Tensor):
        return None
    if issubclass(kind, _BY_CLASS):
        return _class_weight(kind, options, outputs, target)
    if issubclass(kind, nn.KLDivLoss):
        return float(outputs.numel())
    if issubclass(kind, _BY_ELEMENT):
        if outputs.ndim != target.ndim:
            return None  # (n, 1) against (n,) pairs every sample with every other: verified, not trusted
        return float(math.prod(torch.broadcast_shapes(outputs.shape, target.shape)))
    if issubclass(kind, nn.CTCLoss):  # (length, n, classes), or (length, classes) of one sample
        return float(outputs.shape[1]) if outputs.ndim == 3 else 1.0
    return float(len(outputs)) if outputs.ndim else 1.0


def _class_weight(
    kind: type[nn.Module], options: Mapping[str, Any], outputs: torch.Tensor, target: torch.Tensor
) -> float:
    if target.is_floating_point():  # class probabilities: a plain mean over samples (and positions)
        return float(outputs.numel() // outputs.shape[1 if outputs.ndim > 1 else 0])
    kept = target[target != options.get("ignore_index", -100)]
    weight = options.get("weight")
    if weight is None:
        return float(kept.numel())
    return float(weight.detach().to(kept.device, torch.float64)[kept].sum())


def torch_loss_settings(loss: Any) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Return (torch.nn class, its settings) of a loss module, a torch function, or a partial of one."""
    options: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        if loss.args:
            return None
        options = {**loss.keywords, **options}
        loss = loss.func
    if loss in _FUNCTIONS if callable(loss) and getattr(loss, "__hash__", None) else False:
        if not {"size_average", "reduce"}.isdisjoint(options):
            return None  # the deprecated names for another reduction: verified like any other loss
        return _FUNCTIONS[loss], options
    known = (*_BY_ELEMENT, *_BY_SAMPLE, *_BY_CLASS, nn.KLDivLoss)
    for kind in known:
        # A subclass that computes something else in its forward is not the loss that we know.
        if isinstance(loss, kind) and type(loss).forward is kind.forward:
            names = ("reduction", "weight", "ignore_index")
            return kind, {n: getattr(loss, n) for n in names if hasattr(loss, n)}
    return None


def pieces(size: int, count: int) -> list[tuple[int, int]]:
    """Cut `size` samples into at most `count` runs of nearly equal length."""
    count = max(1, min(count, size))
    edges = [round(i * size / count) for i in range(count + 1)]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def sample_weight(outputs: Any, batch: Any, what: str) -> float:
    """Return the number of samples of a batch: the weight of a plain mean over samples.

    Raises ObjectiveError where the tensors don't agree on it.
    """
    for candidate in (batch, outputs):
        size = batch_size_of(candidate)
        if size is not None:
            return float(size)
    shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of(batch)[:4])
    raise ObjectiveError(
        f"{what} returns a mean without its weight, and the batch (tensors {shapes}) doesn't say how many samples "
        "it has: return (mean, weight), where weight is the mean's own denominator"
    )


#: What helps where a loss is the sum of its parts.
SUMMED = "return its mean, divided by their number, so that it means the same whatever the batches are"
#: What helps where a loss is a mean over something else than samples, and where one of several terms is: a loss has one
#: weight for all of them.
WEIGH = (
    "Return (mean, weight), where weight is the mean's own denominator (tokens not ignored, sum of class weights); or "
    "set rebatch=False if the loss couples the samples of a batch"
)
TERM = (
    "All terms are weighed alike: divide its sum by the number of samples instead, as the others are means over them; "
    "or set rebatch=False to take each batch's terms as they are in training"
)


#: A share of the weight up to which a part may be weighed wrong without its value showing it, and how far apart the
#: gradients may then be, as a share of the largest (both chosen by us: gradients in float32 are right to about 1e-5).
UNSEEN, SLOPES_APART = 1e-2, 1e-3


def tells_weights(parts: list[tuple[float, float]], *, relative: float) -> bool:
    """Say whether the values of these (mean, samples) are so far apart that a wrong weight would show in their mean.

    Those of an untrained model lie within 1e-4 of each other, whatever each of its parts weighs.
    """
    values = [v for v, _ in parts]
    return relative * max(map(abs, values)) <= UNSEEN * (max(values) - min(values))


def verify_slopes(
    whole: torch.Tensor, parts: list[tuple[torch.Tensor, float]], inputs: Sequence[torch.Tensor], what: str
) -> None:
    """Raise ObjectiveError unless the gradient of `whole` is the mean of those of `parts`, (mean, samples) pairs.

    It is taken in the last of these inputs on which the whole depends: a head, through which it is soon back.
    """

    def slope(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor | None:
        if not value.requires_grad:
            return None
        found = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)[0]
        return None if found is None else found.double()

    for at in reversed(inputs):
        g = slope(whole, at)
        if g is not None and g.any():
            break
    else:
        return
    total = sum(n for _, n in parts)
    found = [(torch.zeros_like(g) if (s := slope(value, at)) is None else s, n / total) for value, n in parts]
    apart = float((g - sum(s * share for s, share in found)).norm())
    largest = max(float(x.norm()) for x in (g, *(s for s, _ in found)))
    if not apart > SLOPES_APART * largest:
        return
    raise ObjectiveError(
        f"{what} can't say its weight: the gradient over a whole batch is no mean of those of its parts "
        f"({apart / largest:.1%} off; their values are too alike to tell), so it is no plain mean over samples. {WEIGH}"
    )


def verify_mean(
    whole: float, parts: list[tuple[float, float]], what: str, *, relative: float, how: str = WEIGH
) -> None:
    """Raise ObjectiveError unless `whole` is the mean of `parts`, (mean, samples) pairs weighted by samples.

    A mean over samples passes to rounding; a masked, class-weighted or batch-coupled loss, or a sum, does not, which
    `how` says what to do about.
    """
    total = sum(n for _, n in parts)
    mean = sum(v * n for v, n in parts) / total
    scale = max(abs(whole), max(abs(v) for v, _ in parts), 1e-12)
    if abs(whole - mean) <= relative * scale:  # False where a part is NaN: a mean over no sample that counts
        return
    if abs(whole - sum(v for v, _ in parts)) <= relative * scale:
        raise ObjectiveError(f"{what} sums over the samples of a batch ({whole:.6g} over {total:g} of them): {SUMMED}")
    raise ObjectiveError(
        f"{what} can't say its weight: over a whole batch it is {whole:.6g}, but its parts average {mean:.6g}, so it "
        f"is no plain mean over samples. {how}"
    )
