"""What a pass over an objective's draw gives: the mean loss with its error, or logits and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .batch import batch_size_of
from .errors import MeasurementError, NoLabelsError, ObjectiveError
from .ignoring import ignored_by
from .labels import hits_of_samples, labels_of_each, rights_of_samples, rows_of_samples
from .outputs import lacking_labels, predicted, prediction_of
from .perplexity import Likelihood, is_language_model, likelihood, nll_of_samples
from .reduction import known_weight, pieces, sample_weight, split_value
from .verification import BLOCKS, block_error, blocks

if TYPE_CHECKING:
    from .objective import Objective


@dataclass(frozen=True)
class Evaluation:
    """Loss (and accuracy) of one no-grad pass; `stderr` is over the samples, NaN where it was not asked for.

    `accuracy_stderr`, too, is over the samples, not over their pixels or tokens, which depend on each other (NaN for
    a single sample).
    `likelihood` is that of a language model's tokens, None for other tasks and where no errors were asked for.
    `blocks` are the (mean, weight) of the blocks of samples behind `stderr`, the same samples at every weights, so
    that differences between two evaluations have a paired standard error; `accuracy_blocks` are the (share of right
    predictions, their number) of such blocks.
    """

    loss: float
    stderr: float = math.nan
    accuracy: float = math.nan
    accuracy_stderr: float = math.nan
    terms: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    blocks: tuple[tuple[float, float], ...] = ()
    accuracy_blocks: tuple[tuple[float, float], ...] = ()
    likelihood: Likelihood | None = None


@dataclass
class Looked:
    """What a pass found of one batch, for `averaged`; numbers are tensors as long as nobody has to wait for them.

    `place` is the batch's in the draw. `further` are (mean, weight) of each criterion. `rights` are the right
    predictions and how many there are, of the batch or of each of its samples (`of_samples`, with None for one each);
    `surprise` the NLL of each sample and its tokens; `blocks` what stands behind the standard error.
    """

    place: tuple[int, ...]
    mean: torch.Tensor
    weight: float
    terms: dict[str, torch.Tensor]
    further: dict[str, tuple[torch.Tensor, float]]
    rights: tuple[torch.Tensor, torch.Tensor | int | None] | None = None
    of_samples: bool = False
    surprise: tuple[torch.Tensor, torch.Tensor] | None = None
    blocks: list[tuple[float, float]] = field(default_factory=list)


def look(
    objective: Objective, accuracy: bool, stderr: bool, criteria: Mapping[str, Callable[[Any, Any], Any]]
) -> list[Looked]:
    """Pass over the objective's batches, and return what is found of each; see `Objective.evaluate`."""
    every = []
    with objective.measuring():
        for i in range(len(objective)):
            batch, outputs, target, value = objective.value(i)
            mean, weight, terms = objective.weigh(i, value, outputs, target, batch)
            further = {n: _further(objective, n, c, outputs, target, batch) for n, c in criteria.items()}
            found = Looked(objective.place(i), mean.detach().double(), weight, terms, further)
            if accuracy and objective.has_labels and stderr:
                rights, counts, nll = objective.call(_scored, objective, i, outputs, target)
                found.rights, found.of_samples = (rights, counts), True
                if nll is not None and counts is not None:
                    found.surprise = (nll, counts)
            elif accuracy and objective.has_labels:
                found.rights = objective.call(_hits, objective, i, outputs, target)
            if stderr:
                # The forward may have taken the labels out of the other one.
                found.blocks = blocks(objective, objective.batch(i), outputs, target)
            every.append(found)
    objective.passes += 1
    return every


def averaged(objective: Objective, every: Sequence[Looked], stderr: bool) -> Evaluation:
    """Return the means over the draw from what was found of all its batches."""
    total = total_weight = 0.0
    terms: dict[str, float] = {}
    # One synchronization for the whole pass.
    for value, found in zip(torch.stack([f.mean for f in every]).tolist(), every, strict=True):
        if found.weight > 0:
            total += found.weight * value
            total_weight += found.weight
            for k, v in found.terms.items():
                terms[k] = terms.get(k, 0.0) + found.weight * float(v)
    if total_weight == 0:
        raise ObjectiveError(f"every {objective.split} sample has weight 0: nothing is left to average")
    loss = total / total_weight
    averages = {k: v / total_weight for k, v in terms.items()}
    for name in every[0].further:
        parts = [f.further[name] for f in every]
        whole = sum(w for _, w in parts)
        averages[name] = sum(w * float(m) for m, w in parts if w > 0) / whole if whole else math.nan
    share, share_error = _accuracy([f.rights for f in every if f.rights is not None])
    each = [f.rights for f in every if f.rights is not None and f.of_samples]
    surprise = [f.surprise for f in every if f.surprise is not None]
    found_blocks = [b for f in every for b in f.blocks]
    return Evaluation(
        loss=loss,
        stderr=block_error(found_blocks, loss) if stderr else math.nan,
        accuracy=share,
        accuracy_stderr=share_error,
        terms=averages,
        samples=objective.samples,
        blocks=tuple(found_blocks),
        accuracy_blocks=tuple(_blocks_of(each)),
        likelihood=likelihood(surprise, tuple(_blocks_of(surprise))) if len(surprise) == len(each) else None,
    )


def gradients(objective: Objective) -> tuple[list[torch.Tensor], float]:
    """Return the sum of the batches' gradients times their weights, and that of their weights."""
    sums = [torch.zeros_like(p) for p in objective.parameters]
    total_weight = 0.0
    for i in range(len(objective)):
        mean, weight = objective.batch_loss(i)
        if weight == 0:
            continue
        grads = torch.autograd.grad(mean, objective.parameters, materialize_grads=True, allow_unused=True)
        torch._foreach_add_(sums, grads, alpha=weight)
        total_weight += weight
    objective.passes += 3
    return sums, total_weight


def _hits(objective: Objective, i: int, outputs: Any, target: Any) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Return (right, all) of batch i, or of each of its samples where these hold several predictions.

    Labels that were looked at once, and are all there, are only compared.
    """
    if target is not None and objective.plain_labels.get(i) is target:
        return (outputs.argmax(dim=1) == target).sum(), len(target)
    known = _labels(objective, i, outputs, target)
    if known is None:
        return torch.zeros((), dtype=torch.long, device="cpu"), 0
    return hits_of_samples(*known)


def _labels(objective: Objective, i: int, outputs: Any, target: Any) -> Any:
    """Return what `rights_of_samples` takes, None where batch i has no class labels; remember plain ones."""
    batch, task = objective.batch(i), objective.task  # the forward may have emptied the other one
    pair, given = prediction_of(task, objective.model, batch, outputs, target)
    if pair is None:
        return None
    if task.predict is None and isinstance(outputs, torch.Tensor) and isinstance(target, torch.Tensor):
        scores = outputs.ndim == 2 and outputs.shape[1] > 1
        if scores and target.ndim == 1 and len(pair[1]) == len(target):
            objective.plain_labels[i] = target
    return (*pair, given, batch_size_of(batch), ignored_by(task))


def _scored(
    objective: Objective, i: int, outputs: Any, target: Any
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return (right, all, NLL) of each sample of batch i: its right predictions (k,), how many predictions it holds
    (None: one each), and of a language model its NLL (None for other tasks).
    """
    known = _labels(objective, i, outputs, target)
    if known is None:
        return torch.zeros(0, device="cpu"), None, None
    rights, counts = rights_of_samples(*known)
    spoken = counts is not None and is_language_model(objective.task, objective.model, known[0])
    return rights, counts, nll_of_samples(*known) if spoken else None


def _blocks_of(found: Sequence[tuple[torch.Tensor, torch.Tensor | int | None]]) -> Iterator[tuple[float, float]]:
    """Yield (mean over predictions, their number) of runs of each batch's samples, about `BLOCKS` in all."""
    for rights, counts in found:
        of_each = _listed(rights)
        numbers = [1.0] * len(of_each) if counts is None else _listed(counts)
        for start, stop in pieces(len(of_each), math.ceil(BLOCKS / len(found))):
            if number := sum(numbers[start:stop]):
                yield sum(of_each[start:stop]) / number, float(number)


def _accuracy(found: Sequence[tuple[torch.Tensor, torch.Tensor | int | None]]) -> tuple[float, float]:
    """Return the share of right predictions and its standard error, from `Looked.rights` of each batch."""
    # Samples of one prediction each are counted together.
    summed = [(rights.sum(), len(rights)) if counts is None else (rights, counts) for rights, counts in found]
    pairs = [
        (float(r), float(n)) for rights, counts in summed for r, n in zip(_listed(rights), _listed(counts), strict=True)
    ]
    counted = sum(n for _, n in pairs)
    if not counted:
        return math.nan, math.nan
    share = sum(r for r, _ in pairs) / counted
    if all(rights.ndim == 0 for rights, _ in summed):
        return share, math.sqrt(share * (1 - share) / counted)
    return share, block_error([(r / n, n) for r, n in pairs if n], share)


def _listed(numbers: torch.Tensor | int) -> list[float]:
    return numbers.reshape(-1).tolist() if isinstance(numbers, torch.Tensor) else [numbers]


def _further(
    objective: Objective, name: str, criterion: Callable[[Any, Any], Any], outputs: Any, target: Any, batch: Any
) -> tuple[torch.Tensor, float]:
    """Return (mean, weight) of a further criterion on one batch."""
    mean, own, _ = split_value(objective.call(criterion, outputs, target))
    if own is not None:
        return mean.detach().double(), float(own)
    weight = known_weight(criterion, outputs, target)
    return mean.detach().double(), weight if weight is not None else sample_weight(
        outputs, batch, f"the criterion {name}"
    )


@dataclass(frozen=True)
class Predicted:
    """The predictions of a draw on the CPU: logits (n, classes), or (n,) where each is a decision, and labels (n,).

    `groups` (n,) numbers the sample that each comes from, None where that isn't known. `several` is the number of
    labels that each sample has of its own, each there or not, in this order; 1 for what is no multi-label task.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    groups: torch.Tensor | None
    several: int


def all_predictions(objective: Objective) -> Predicted:
    """See `Objective.all_predictions`."""
    if not objective.has_labels:
        raise NoLabelsError(lacking_labels(objective.task, objective.split))
    found, groups, several, seen = [], [], set(), 0
    with objective.measuring():
        for i in range(len(objective)):
            pair, given = predicted(objective, i)
            assert pair is not None
            found.append((pair[0].detach().cpu(), pair[1].cpu()))
            several.add(labels_of_each(given, pair[0]))
            size = batch_size_of(objective.batch(i))
            rows = rows_of_samples(given, len(pair[1]), ignored_by(objective.task))
            # Labels that are no longer one entry a sample don't tell which sample a row is of.
            whole = given is not None and size in (None, len(given))
            groups.append(rows.cpu() + seen if rows is not None and whole else None)
            seen += size or (len(given) if given is not None else 0)
    objective.passes += 1
    logits, labels = zip(*found, strict=True)
    widths = {tuple(z.shape[1:]) for z in logits}
    if len(widths) > 1:
        counts = " and ".join(str(*w) for w in sorted(widths))
        raise MeasurementError(
            f"the {objective.split} batches are told apart in {counts} classes; expected as many in each. Where the "
            "classes are the samples of a batch (a contrastive loss), give batches of one size (drop_last=True), or "
            "Task(predict=lambda model, batch: (logits, labels))"
        )
    known = [g for g in groups if g is not None]
    return Predicted(
        torch.cat(logits),
        torch.cat(labels),
        torch.cat(known) if len(known) == len(groups) else None,
        several.pop() if len(several) == 1 else 1,
    )
