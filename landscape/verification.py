"""What is checked before a task is measured: that its loss is the same twice, and by what its batches are weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from .batch import batch_size_of, map_tensors, slice_batch, stays_whole, tensors_of
from .errors import LandscapeError, NonFiniteLossError, ObjectiveError, TaskError
from .outputs import labels_there
from .quantized import observers
from .reduction import (
    SUMMED,
    TERM,
    WEIGH,
    known_weight,
    pieces,
    sample_weight,
    split_value,
    tells_weights,
    verify_mean,
    verify_slopes,
)
from .seeding import seed_all, seeded
from .session import batchnorm_layers
from .sparse import same
from .stateful import written

if TYPE_CHECKING:
    from .objective import Objective

# Blocks of samples behind a standard error: its own relative error is 1/sqrt(2*64) = 9% (chosen by us).
BLOCKS = 64
# Seeds over which a loss that draws random numbers is compared with that of its parts, and how far they lie apart; how
# many standard errors apart the two may be, and below which share of the loss they are alike whatever the noise: a sum
# is 44% off (all chosen by us).
SEEDS, SEED_STEP, NOISE, LITTLE = 8, 100_003, 6.0, 0.05


@dataclass(frozen=True)
class Verified:
    """What the first passes found out, once for each task, draw and precision.

    `weighing` says where the batches' weights come from: "own" (returned by the loss), "torch" (known), "samples"
    (verified) or "none" (a task without a loss). `inner_gradient` and `copies` say what the task needs: autograd
    switched on in its forward pass, and batches that it may write into. `changed` are the buffers that a forward pass
    changes.
    """

    weighing: str
    has_labels: bool
    notes: tuple[str, ...]
    inner_gradient: bool = False
    copies: bool = False
    changed: tuple[str, ...] = ()


def verify(objective: Objective) -> Verified:
    """Compare two passes over the draw, and each batch with its parts where its weight is not known.

    Costs two forward passes, and a third for a loss that returns no weight and is not computed from outputs that can
    be cut; where that draws random numbers, twice `SEEDS` over the first batch. Raises ObjectiveError naming the random
    layer, the batch whose loss is not finite, or the loss that can't say its weight.
    """
    objective.copies = True
    try:
        return _verify(objective)
    except TaskError as error:
        if objective.inner_gradient or "does not require grad" not in str(error):
            raise
        objective.inner_gradient = True  # the task differentiates in its forward pass: a PINN, a force field
        return _verify(objective)


def _verify(objective: Objective) -> Verified:
    if objective.task.loss is None and objective.task.batch_loss is None:
        return Verified("none", labels_there(objective), (), objective.inner_gradient, copies=True)
    if count := observers(objective.model):
        raise ObjectiveError(
            f"{count} layers observe the ranges of what they quantize, and change them at each call, so that the loss "
            "of a batch depends on what is in it: stop that in the task with "
            "model.apply(torch.ao.quantization.disable_observer)"
        )
    with seeded(None), objective.measuring():
        found = [_verify_batch(objective, i) for i in range(len(objective))]
    objective.passes += 2
    if not any(f.weight for f in found):
        raise ObjectiveError(f"every {objective.split} sample has weight 0: nothing is left to average")
    weighing = next((f.weighing for f in reversed(found) if f.weighing != "own"), "own")
    notes: tuple[str, ...] = ()
    if any(f.weighing == "samples" for f in found):
        how = "verified: each batch's mean is that of its parts"
        if any(f.compared == "seeds" for f in found):
            how = f"verified: the first batch's mean is that of its parts, over {SEEDS} seeds and within their noise"
        elif not any(f.compared for f in found):
            how = f"not verified: {'batches of one sample' if objective.can_cut() else 'no cutting'}"
        notes = (f"batches are weighed by their samples ({how})",)
    notes += tuple(f.doubt for f in found if f.doubt)
    if note := written(objective.model, objective.names, objective.parameters, objective.center):
        notes += (note,)
    labels, changed = labels_there(objective), tuple(objective.buffers.changed)
    if objective.task.ignored is not None:
        notes += (f"label {objective.task.ignored} is left out as the loss leaves it out: its gradient there is 0",)
    return Verified(weighing, labels, notes, objective.inner_gradient, any(f.written for f in found), changed)


@dataclass(frozen=True)
class _Found:
    """Of one batch: where its weight comes from and what it is, whether its loss was compared with that of its parts,
    whether the task wrote into it, and what speaks against a weight that the loss returned.
    """

    weighing: str
    weight: float
    compared: Literal["", "exactly", "seeds"]
    written: bool
    doubt: str = ""


def _verify_batch(objective: Objective, i: int) -> _Found:
    batch, outputs, target, value = objective.value(i)
    written = any(t._version or t.requires_grad for t in tensors_of(batch))  # it was a fresh copy
    batch = objective.batch(i)
    objective.buffers.notice()
    mean, own, terms = split_value(value)
    first = float(mean.detach())
    again = float(split_value(objective.value(i)[3])[0].detach())
    if not _same(first, again, mean.dtype):
        raise ObjectiveError(_random_layer(objective, i, batch, first, again))
    known = known_weight(objective.task.loss, outputs, target) if own is None else None
    if i == 0 and isinstance(own, torch.Tensor):
        # Without a graph, as in every pass but those for gradients, a second loss looks like a weight.
        with torch.enable_grad():
            split_value(objective.value(i)[3])
    weight = float(own) if own is not None else known
    if not math.isfinite(first) and weight != 0:
        raise NonFiniteLossError(
            f"the loss at the checkpoint is {first} on {objective.split} batch {i}: nothing can be measured around it "
            "(look for diverged weights, or for inputs that are not finite)"
        )
    if own is not None and weight is not None:
        doubt = _doubt(objective, batch, outputs, target, first, mean.dtype) if i == 0 and weight > 0 else ""
        return _Found("own", weight, "", written, doubt)
    if known is not None:
        return _Found("torch", known, "", written)
    if _compare_with_parts(objective, batch, outputs, target, first, terms, mean.dtype):
        return _Found("samples", 1.0, "exactly", written)
    compared = i == 0 and _compare_over_seeds(objective, i, outputs)
    return _Found("samples", 1.0, "seeds" if compared else "", written)


def _compare_with_parts(
    objective: Objective,
    batch: Any,
    outputs: Any,
    target: Any,
    whole: float,
    terms: Mapping[str, Any],
    dtype: torch.dtype,
) -> bool:
    """Check that a batch's mean is that of its parts; return whether it could be compared."""
    size = batch_size_of(batch)
    if size is None and not _runs_again(objective, outputs):
        size = batch_size_of((outputs, target))  # a graph's batch doesn't say how many samples it has, these do
    if size == 1 or not (objective.can_cut() or objective.can_cut(outputs)):
        sample_weight(outputs, batch, objective.what)
        return False
    if size is None or not objective.can_cut(outputs):
        sample_weight(outputs, batch, objective.what)
        raise ObjectiveError(
            f"{objective.what} returns a mean without its weight, and its outputs can't be cut into samples to verify "
            "one: return (mean, weight), where weight is the mean's own denominator"
        )
    try:
        parts, again = _parts(objective, batch, outputs, target, size)
    except LandscapeError as error:
        raise ObjectiveError(
            f"{objective.what} can't say its weight: it takes a whole batch of {size} samples, but fails on a part of "
            "it. Return (mean, weight), where weight is the mean's own denominator; or set rebatch=False if the loss "
            "couples the samples of a batch"
        ) from error

    def compare(mean: float, means: list[float], what: str, how: str = WEIGH) -> None:
        pairs = [(m, n) for m, (n, _) in zip(means, parts, strict=True)]
        verify_mean(mean, pairs, what, relative=_tolerance(dtype), how=how)

    try:
        compare(whole, [float(mean.detach()) for _, (mean, _, _) in parts], objective.what)
    except ObjectiveError:
        # Of several terms, say which: boxes may be averaged over, where the others are means over pictures.
        for name, value in terms.items():
            compare(
                float(value), [float(of.get(name, math.nan)) for _, (_, _, of) in parts], f"the term {name!r}", TERM
            )
        raise
    if not tells_weights([(float(mean.detach()), n) for n, (mean, _, _) in parts], relative=_tolerance(dtype)):
        _compare_slopes(objective, batch, outputs, target, [int(n) for n, _ in parts], again)
    return True


def _compare_slopes(objective: Objective, batch: Any, outputs: Any, target: Any, sizes: list[int], again: bool) -> None:
    """Check that the gradient of a batch's mean is that of its parts: in the outputs, or where the model must run on
    each part (`again`) in the weights, which costs another two passes over the batch.
    """
    inputs: list[torch.Tensor] = list(objective.parameters)

    def loose(t: torch.Tensor) -> torch.Tensor:
        if not t.is_floating_point():
            return t
        inputs.append(t.detach().requires_grad_())
        return inputs[-1]

    cut, size = sizes[0], sum(sizes)
    with torch.enable_grad():
        outputs = outputs if again else map_tensors(outputs, loose)
        runs = [(0, size), (0, cut), (cut, size)]
        found = _values_of_parts(objective, batch, outputs, target, runs, again=again)
        whole, *parts = [(split_value(value)[0], float(stop - start)) for start, stop, value in found]
        verify_slopes(whole[0], parts, inputs, objective.what)


def _parts(
    objective: Objective, batch: Any, outputs: Any, target: Any, size: int
) -> tuple[list[tuple[float, Any]], bool]:
    """Return (size, split value) of two unequal parts of a batch, and whether the model ran on them again.

    Equal ones would hide a sum over the batch behind its mean.

    Outputs with rows of their own are cut by these (the tokens of all samples in a line): by the samples' number
    nothing of them would be cut, and the whole would be compared with itself. Where the loss fails on such a part, the
    rows are none of its samples' (steps of time, as CTC has them first), and the model runs on parts of the batch.
    """
    again = _runs_again(objective, outputs)
    rows = size if again else batch_size_of(outputs) or size

    def values(count: int, again: bool) -> list[tuple[float, Any]]:
        cut = max(1, count // 3)
        found = _values_of_parts(objective, batch, outputs, target, [(0, cut), (cut, count)], again=again)
        return [(float(stop - start), split_value(value)) for start, stop, value in found]

    try:
        return values(rows, again), again
    except LandscapeError:
        if again or rows == size or objective.draw.whole or objective.task.rng != "refuse":
            raise
        return values(size, True), True


def _compare_over_seeds(objective: Objective, i: int, outputs: Any) -> bool:
    """Check that a batch's mean is that of its parts within its noise, where each part draws random numbers of its own.

    Returns whether it could be compared. Costs 2 `SEEDS` passes over the batch.
    """
    size = batch_size_of(objective.batch(i))
    if not (_runs_again(objective, outputs) and can_redraw(objective) and size and size > 1):
        return False
    cut = max(1, size // 3)
    wholes, sums, means = np.zeros((3, SEEDS))
    for s in range(SEEDS):
        seed_all(objective.task.seed + 1 + i + SEED_STEP * s)
        wholes[s] = float(split_value(objective.loss_value(*objective.forward(objective.batch(i))))[0].detach())
        for start, stop in ((0, cut), (cut, size)):
            part = slice_batch(objective.batch(i), start, stop, size)
            value = float(split_value(objective.loss_value(*objective.forward(part)))[0].detach())
            means[s] += value * (stop - start) / size
            sums[s] += value
    objective.passes += 2 * SEEDS / len(objective)
    if not np.isfinite([wholes, means]).all() or _same_within_noise(wholes, means):
        return bool(np.isfinite([wholes, means]).all())
    over = f"over {SEEDS} seeds, {objective.what} is {wholes.mean():.4g} on a whole batch of {size}"
    if _same_within_noise(wholes, sums):
        raise ObjectiveError(f"{over}, and its parts sum up to that ({sums.mean():.4g}): {SUMMED}")
    raise ObjectiveError(
        f"{over}, and its parts average {means.mean():.4g}: it is no plain mean over samples. Return (mean, weight), "
        "where weight is the mean's own denominator; or set rebatch=False if the loss couples the samples of a batch"
    )


def _same_within_noise(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two numbers of each seed differ by no more than their spread explains, or by little."""
    apart, noise = abs(float((a - b).mean())), float((a - b).std(ddof=1)) / math.sqrt(len(a))
    return apart <= max(NOISE * noise, LITTLE * float(np.abs(a).mean()))


def _doubt(objective: Objective, batch: Any, outputs: Any, target: Any, whole: float, dtype: torch.dtype) -> str:
    """Say where a batch's mean is not that of its two parts by the weights that the loss returned for them.

    That may be meant (a sum with weight 1, a Dice loss), so that it is told rather than refused.
    """
    size = batch_size_of(batch)
    if size is None or size == 1 or not objective.can_cut(outputs):
        return ""
    size = size if _runs_again(objective, outputs) else batch_size_of(outputs) or size
    cut = max(1, size // 3)
    try:
        values = [v for _, _, v in _values_of_parts(objective, batch, outputs, target, [(0, cut), (cut, size)])]
        parts = [(float(m.detach()), float(w)) for m, w, _ in map(split_value, values) if w is not None and w > 0]
    except LandscapeError:
        return ""
    total = sum(w for _, w in parts)
    mean = sum(m * w for m, w in parts) / total if total else math.nan
    if abs(mean - whole) <= _tolerance(dtype) * max(abs(whole), *(abs(m) for m, _ in parts), 1e-12):
        return ""
    return (
        f"{objective.what} returned weights by which the parts of a batch don't average to the whole ({mean:.6g} "
        f"against {whole:.6g}): the numbers depend on how the data are cut into batches; a weight that is its mean's "
        "own denominator (samples, pixels or tokens not ignored) avoids that"
    )


def _tolerance(dtype: torch.dtype) -> float:
    # float32 sums of a batch cut in two agree to a few units in the last place times the batch size. The precision
    # is the loss's own: some models compute it in float32 whatever their weights are.
    return 1e-9 if dtype == torch.float64 else 1e-4


def blocks(objective: Objective, batch: Any, outputs: Any, target: Any) -> list[tuple[float, float]]:
    """Return (mean, weight) of blocks of this batch's samples; of the whole batch where it can't be cut.

    Neither can outputs that have other rows than samples: nobody knows whose they are.
    """
    size = batch_size_of(batch)
    others = not _runs_again(objective, outputs) and batch_size_of(outputs) != size
    if size is None or others or not objective.can_cut(outputs):
        mean, weight, _ = objective.weighed(None, outputs, target, batch)
        return [(float(mean.detach()), weight)]
    found = []
    runs = pieces(size, math.ceil(BLOCKS / objective.total))
    for start, stop, value in _values_of_parts(objective, batch, outputs, target, runs):
        mean, weight, _ = objective.weigh(
            None,
            value,
            slice_batch(outputs, start, stop, size),
            slice_batch(target, start, stop, size),
            None if objective.draw.whole else slice_batch(batch, start, stop, size),  # the outputs say how many
        )
        if weight > 0:
            found.append((float(mean.detach()), weight))
    return found


def block_error(found: list[tuple[float, float]], mean: float) -> float:
    """Return the standard error of a ratio of sums from (mean, weight) of its blocks (linearized)."""
    n = len(found)
    if n < 2:
        return math.nan
    total = sum(w for _, w in found)
    return math.sqrt(n / (n - 1) * sum((w * (v - mean)) ** 2 for v, w in found)) / total


def _values_of_parts(
    objective: Objective,
    batch: Any,
    outputs: Any,
    target: Any,
    runs: list[tuple[int, int]],
    *,
    again: bool | None = None,
) -> list[tuple[int, int, Any]]:
    """Return (start, stop, what the loss returns) for runs of a batch's samples.

    Outputs are cut where the loss is computed from them. A batch_loss task runs its model on each part (`again`), and
    so does one whose outputs hold a single number: a loss that the model computed itself can't be cut.
    """
    again = _runs_again(objective, outputs) if again is None else again
    size = batch_size_of(batch if again else outputs)
    assert size is not None
    found = []
    for start, stop in runs:
        if again:
            value = objective.loss_value(*objective.forward(slice_batch(batch, start, stop, size)))
        else:
            value = objective.loss_value(
                slice_batch(outputs, start, stop, size), slice_batch(target, start, stop, size)
            )
        found.append((start, stop, value))
    return found


def _runs_again(objective: Objective, outputs: Any) -> bool:
    """Say whether the loss of a part needs the model to run on it."""
    return objective.task.batch_loss is not None or _holds_a_number(outputs)


def can_cut(objective: Objective, outputs: Any = None) -> bool:
    """Say whether a batch may be cut by samples without changing what the loss means."""
    task = objective.task
    if not task.rebatch or _takes_batch_statistics(objective):
        return False
    own = task.batch_loss is not None or _holds_a_number(outputs)
    if own and task.rng != "refuse":
        return False  # each part would draw its own random numbers
    if outputs is None or own:
        return not objective.draw.whole  # the batches themselves are cut
    return batch_size_of(outputs) is not None and not stays_whole(outputs)


def can_redraw(objective: Objective) -> bool:
    """Say whether batches may be cut where each part then draws random numbers of its own (rng="fixed")."""
    task = objective.task
    return task.rng == "fixed" and task.rebatch and not objective.draw.whole and not _takes_batch_statistics(objective)


def _takes_batch_statistics(objective: Objective) -> bool:
    return objective.task.batchnorm == "batch" and bool(batchnorm_layers(objective.model))


def _holds_a_number(outputs: Any) -> bool:
    return any(t.ndim == 0 and t.is_floating_point() for t in tensors_of(outputs))


def _same(first: float, again: float, dtype: torch.dtype) -> bool:
    """Whether two passes agree to rounding: a kernel that sums in another order each time is no random layer."""
    if math.isnan(first) and math.isnan(again):
        return True
    relative = 1e-13 if dtype == torch.float64 else 1e-6
    return first == again or abs(first - again) <= relative * max(abs(first), abs(again))


def _random_layer(objective: Objective, i: int, batch: Any, first: float, again: float) -> str:
    """Say which module makes two passes over batch i differ, the first whose outputs do, and what helps."""
    turns = [_outputs_of_modules(objective, batch) for _ in range(2)]
    culprit = "the loss function itself"
    for (name, a), (_, b) in zip(*turns, strict=False):
        if any(not same(x, y) for x, y in zip(a, b, strict=False)):
            culprit = name
            break
    said = (
        f"the loss is not deterministic: two passes over the same batch gave {first:.8g} and {again:.8g}; they first "
        f"differ in {culprit}. "
    )
    if _differs_seeded(objective, i):
        return (
            f"{said}Seeding torch, NumPy and random before each pass does not help: it draws from its own generator "
            "(torch.Generator, numpy.random.default_rng, random.Random), which can't be fixed from outside, or keeps "
            "something from call to call. Seed that generator anew at each call (generator.manual_seed(0) as its first "
            'line), or draw from torch\'s own, which Task(rng="fixed") seeds'
        )
    return f'{said}Measure in eval mode, remove the randomness, or set Task(rng="fixed")'


def _differs_seeded(objective: Objective, i: int) -> bool:
    """Say whether two passes over batch i differ although every generator that has no owner was seeded before each."""
    with seeded(0):
        first = split_value(objective.value(i)[3])[0].detach()
    with seeded(0):
        again = split_value(objective.value(i)[3])[0].detach()
    return not _same(float(first), float(again), first.dtype)


def _outputs_of_modules(objective: Objective, batch: Any) -> list[tuple[str, list[torch.Tensor]]]:
    record: list[tuple[str, list[torch.Tensor]]] = []

    def watch(name: str) -> Any:
        def keep(module: nn.Module, _: Any, output: Any) -> None:
            label = f"{name or 'the model'} ({type(module).__name__})"
            record.append((label, [t.detach().clone() for t in tensors_of(output)]))

        return keep

    hooks = [m.register_forward_hook(watch(name)) for name, m in objective.model.named_modules()]
    try:
        objective.forward(map_tensors(batch, torch.clone))
    finally:
        for hook in hooks:
            hook.remove()
    return record
