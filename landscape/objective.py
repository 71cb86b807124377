"""The objective: loss and gradient over one fixed draw of the data, the same at every call.

Batches are combined by the denominators of their own means, so that loss, gradient and Hessian are those of the
whole draw however it is cut into batches.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .data import batch_size_of, first_line, seed_all, seeded, slice_batch, tensors_of, to_device
from .errors import LandscapeError, MeasurementError, ObjectiveError, TaskError
from .labels import default_prediction, default_target, hits, known_ignore_index
from .parameters import owners, trainable, unwrap
from .reduction import known_weight, pieces, sample_weight, split_value, verify_mean
from .session import batchnorm_layers, prepared, quiet_rnn, recomputing
from .tasks import Task

# Blocks of samples behind a standard error: its own relative error is 1/sqrt(2*64) = 9% (chosen by us).
BLOCKS = 64


@dataclass(frozen=True)
class Evaluation:
    """Loss (and accuracy) of one no-grad pass; `stderr` is over the samples, NaN where it was not asked for."""

    loss: float
    stderr: float = math.nan
    accuracy: float = math.nan
    accuracy_stderr: float = math.nan
    terms: dict[str, float] = field(default_factory=dict)
    samples: int = 0


@dataclass(frozen=True)
class _Verified:
    """What the first passes found out: once for each task, draw and precision."""

    weighing: str  # "own" (returned), "torch" (known), "samples" (verified)
    has_labels: bool
    notes: tuple[str, ...]


class Objective:
    """The weighted mean loss of a task over one split's fixed draw; use it as a context manager.

    Inside `with`, the model stands on the device in the precision and mode of the task, working on copies of its
    tensors. On every way out model, buffers, mode, gradients, RNG state and backend flags are exactly as before.
    The first entry compares two passes and verifies the weights of the batches (2 forward passes; once a task).

    Attributes, inside `with`: `names`, `parameters` (live, trainable, tied ones once), `center` (their values at
    entry), `samples`, `fingerprint` of the draw, `notes`, `has_labels`, `passes` (forward passes spent; a gradient
    counts 3).

    Raises ObjectiveError where the loss cannot be measured, TaskError where data or task functions fail.
    """

    def __init__(
        self, task: Task, split: str = "train", *, max_samples: int | None = None, seed: int | None = None
    ) -> None:
        if not isinstance(task, Task):
            raise TypeError(f"Objective needs a landscape.Task, got {type(task).__name__}")
        self.task = task
        self.split = split
        self.draw = task.draw(split, max_samples=max_samples, seed=seed)
        self.model: nn.Module = unwrap(task.model)
        self.device, self.dtype, self._notes = _place(task, self.model)
        self.samples = self.draw.samples
        self.fingerprint = self.draw.fingerprint
        self.passes = 0.0
        self._stack: contextlib.ExitStack | None = None
        self._stale_statistics = False

    # ------------------------------------------------------------------------------------------ in and out

    def __enter__(self) -> Objective:
        if self._stack is not None:
            raise RuntimeError("this Objective is already entered; make another one")
        task = self.task
        chosen = trainable(self.model)
        self.names = tuple(chosen)
        self.parameters = tuple(chosen.values())
        with contextlib.ExitStack() as stack:
            stack.enter_context(quiet_rnn())
            stack.enter_context(
                prepared(
                    self.model,
                    device=self.device,
                    dtype=self.dtype,
                    mode=task.mode,
                    batchnorm=task.batchnorm,
                    seed=task.seed,
                )
            )
            # The parameters' tensors are ours until the end: what they hold now is the centre.
            self.center = tuple(p.data for p in self.parameters)
            for p in self.parameters:
                p.data = p.data.clone()
            self._batches = self._load()
            self._weights: list[float | None] = [None] * len(self._batches)
            self._stale_statistics = task.batchnorm == "recompute"
            self._facts = self._verify()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        stack, self._stack = self._stack, None
        self._batches = []
        self.center = ()
        if stack is not None:
            stack.close()

    def _load(self) -> list[Any]:
        batches = list(self.draw.batches)
        if self.device.type == "cuda":
            need = sum(t.numel() * t.element_size() for b in batches for t in tensors_of(b))
            free, _ = torch.cuda.mem_get_info(self.device)
            if need > free // 2:  # half, chosen by us: graphs and the Krylov basis need the rest
                self._on_host = True
                return batches
        self._on_host = False
        return [to_device(b, self.device, self.dtype) for b in batches]

    def _batch(self, i: int) -> Any:
        batch = self._batches[i]
        return to_device(batch, self.device, self.dtype) if self._on_host else batch

    @property
    def entered(self) -> bool:
        """Whether we are inside `with`."""
        return self._stack is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know about how they came about."""
        found = (*self._notes, *self.draw.notes)
        return (*found, *self._facts.notes) if self.entered else found

    @property
    def has_labels(self) -> bool:
        """Whether accuracy and calibration can be computed."""
        return self._facts.has_labels

    def __len__(self) -> int:
        return len(self.draw.batches)

    def modules_of(self) -> dict[str, nn.Module]:
        """Return for each trainable parameter's name the module that holds it."""
        held = owners(self.model)
        return {name: held[name] for name in self.names}

    # --------------------------------------------------------------------------------------------- weights

    def move(self, directions: Sequence[Sequence[torch.Tensor]], coefficients: Sequence[float]) -> None:
        """Set the weights to center + sum_i c_i d_i; exactly the centre when every c_i is 0."""
        with torch.no_grad():
            for j, (p, center) in enumerate(zip(self.parameters, self.center, strict=True)):
                p.copy_(center)
                for direction, c in zip(directions, coefficients, strict=True):
                    if c != 0.0:
                        p.add_(direction[j], alpha=float(c))
        self._stale_statistics = self.task.batchnorm == "recompute"

    def reset(self) -> None:
        """Put the weights back to the centre, exactly."""
        self.move((), ())

    def _refresh_statistics(self) -> None:
        if not self._stale_statistics:
            return
        self._stale_statistics = False
        with torch.no_grad(), recomputing(self.model):
            for i in range(len(self)):
                self._seed(i)
                self._forward(self._batch(i))
        self.passes += 1

    # ------------------------------------------------------------------------------------------- one batch

    def _seed(self, i: int) -> None:
        if self.task.rng == "fixed":
            seed_all(self.task.seed + 1 + i)

    def _forward(self, batch: Any) -> tuple[Any, Any]:
        """Return (outputs, target) of the task's forward; for a batch_loss task (its loss, None)."""
        task = self.task
        if task.batch_loss is not None:
            return task.batch_loss(self.model, batch), None
        if task.forward is not None:
            return task.forward(self.model, batch)
        if isinstance(batch, dict):
            return self.model(**batch), batch
        if isinstance(batch, tuple | list) and len(batch) == 2:
            return self.model(batch[0]), batch[1]
        held = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise TaskError(
            f"a batch of {held} is neither (x, y) nor a dict: say how to use it with "
            "forward=lambda model, batch: (outputs, target)"
        )

    def _mean(self, i: int | None, outputs: Any, target: Any, batch: Any) -> tuple[torch.Tensor, float, dict[str, Any]]:
        """Return (mean, weight, terms) of one batch; the weight of batch `i` is remembered when the data fix it."""
        task = self.task
        if task.batch_loss is not None:
            value = outputs
        elif task.loss is not None:
            value = task.loss(outputs, target)
        else:
            raise ObjectiveError(
                f"the task {task.name or type(self.model).__name__} has no loss: give Task(loss=...) or batch_loss="
            )
        known = self._weights[i] if i is not None else None
        mean, weight, terms = split_value(value)
        if weight is not None:
            number = float(weight)
            if not (number >= 0 and math.isfinite(number)):
                raise ObjectiveError(f"the loss returned the weight {number}; expected a finite number >= 0")
            return mean, number, terms
        if known is None:
            known = known_weight(task.loss, outputs, target)
            if known is None:
                known = sample_weight(outputs, batch, self._what())
            if i is not None:
                self._weights[i] = known
        return mean, known, terms

    def _what(self) -> str:
        function = self.task.batch_loss or self.task.loss
        return f"the loss {getattr(function, '__name__', type(function).__name__)}"

    def batch_loss(self, i: int) -> tuple[torch.Tensor, float]:
        """Return (mean loss with its graph, weight) of batch i at the current weights; weight 0 counts nothing."""
        self._refresh_statistics()
        self._seed(i)
        batch = self._batch(i)
        outputs, target = self._call(self._forward, batch)
        mean, weight, _ = self._call(self._mean, i, outputs, target, batch)
        return mean, weight

    def batch_outputs(self, i: int) -> tuple[Any, Any, Any]:
        """Return (outputs with graph, target, batch) of batch i; refuses a batch_loss task, which has no outputs."""
        if self.task.batch_loss is not None:
            raise MeasurementError(
                "Gauss-Newton and Fisher need the model's outputs, which a batch_loss task doesn't give: "
                "use Hessian, or give Task(loss=..., forward=...)"
            )
        self._refresh_statistics()
        self._seed(i)
        batch = self._batch(i)
        outputs, target = self._call(self._forward, batch)
        return outputs, target, batch

    def loss_of(self, i: int, outputs: Any, target: Any, batch: Any) -> tuple[torch.Tensor, float]:
        """Return (mean loss, weight) of batch i from outputs at hand."""
        mean, weight, _ = self._call(self._mean, i, outputs, target, batch)
        return mean, weight

    def _call(self, function: Any, *args: Any) -> Any:
        """Run something of the user's; what it raises becomes one line that names the batch's shapes."""
        try:
            return function(*args)
        except (LandscapeError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in _shown(args))
            raise TaskError(
                f"the task failed on a {self.split} batch: {type(error).__name__}: {first_line(error)}"
                + (f" (tensors: {shapes})" if shapes else "")
            ) from error

    # -------------------------------------------------------------------------------------------- the mean

    def evaluate(self, *, accuracy: bool = False, stderr: bool = False) -> Evaluation:
        """Return the mean loss over the draw at the current weights, without gradients: one forward pass.

        `accuracy` adds the share of right labels (NaN where the task has none), from the same pass unless the
        task has its own `predict`. `stderr` adds the standard error of the loss over the samples, from about 64
        blocks of samples (for a batch_loss task: a second pass).
        """
        self._refresh_statistics()
        total = total_weight = 0.0
        terms: dict[str, float] = {}
        right = counted = 0
        blocks: list[tuple[float, float]] = []
        with torch.no_grad():
            means: list[torch.Tensor] = []
            weights: list[float] = []
            batch_terms: list[dict[str, torch.Tensor]] = []
            for i in range(len(self)):
                self._seed(i)
                batch = self._batch(i)
                outputs, target = self._call(self._forward, batch)
                mean, weight, parts = self._call(self._mean, i, outputs, target, batch)
                means.append(mean.double())
                weights.append(weight)
                batch_terms.append(parts)
                if accuracy and self.has_labels:
                    found = self._call(self._hits, batch, outputs, target)
                    right, counted = right + found[0], counted + found[1]
                if stderr:
                    blocks += self._blocks(batch, outputs, target)
            # One synchronization for the whole pass.
            values = torch.stack(means).tolist()
        self.passes += 1
        for value, weight, parts in zip(values, weights, batch_terms, strict=True):
            if weight > 0:
                total += weight * value
                total_weight += weight
                for k, v in parts.items():
                    terms[k] = terms.get(k, 0.0) + weight * float(v)
        if total_weight == 0:
            raise ObjectiveError(f"every {self.split} sample has weight 0: nothing is left to average")
        loss = total / total_weight
        share = right / counted if counted else math.nan
        return Evaluation(
            loss=loss,
            stderr=_block_error(blocks, loss) if stderr else math.nan,
            accuracy=share,
            accuracy_stderr=math.sqrt(share * (1 - share) / counted) if counted else math.nan,
            terms={k: v / total_weight for k, v in terms.items()},
            samples=self.samples,
        )

    def gradient(self) -> tuple[torch.Tensor, ...]:
        """Return the gradient of the mean loss at the current weights: one forward and one backward pass.

        A parameter that the loss doesn't depend on has gradient 0.
        """
        sums = [torch.zeros_like(p) for p in self.parameters]
        total_weight = 0.0
        for i in range(len(self)):
            mean, weight = self.batch_loss(i)
            if weight == 0:
                continue
            grads = torch.autograd.grad(mean, self.parameters, materialize_grads=True, allow_unused=True)
            torch._foreach_add_(sums, grads, alpha=weight)
            total_weight += weight
        self.passes += 3
        torch._foreach_div_(sums, total_weight)
        return tuple(sums)

    def total_weight(self) -> float:
        """Return the sum of the batches' weights, the denominator of every mean over this draw."""
        if any(w is None for w in self._weights):
            return sum(self.batch_loss(i)[1] for i in range(len(self)))
        return sum(w for w in self._weights if w is not None)

    # ----------------------------------------------------------------------------------------- predictions

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits, labels) of the draw on the CPU: (n, classes) or, for a binary task, (n,), and (n,).

        Positions to be ignored are left out. Raises MeasurementError for a task without labels.
        """
        if not self.has_labels:
            raise MeasurementError(
                f"the task {self.task.name or type(self.model).__name__} has no class labels on its {self.split} data: "
                "give Task(predict=lambda model, batch: (logits, labels))"
            )
        self._refresh_statistics()
        found = []
        with torch.no_grad():
            for i in range(len(self)):
                self._seed(i)
                batch = self._batch(i)
                if self.task.predict is not None or self.task.batch_loss is not None:
                    pair = self._call(self._predict, batch, None, None)
                else:
                    outputs, target = self._call(self._forward, batch)
                    pair = self._call(self._predict, batch, outputs, target)
                assert pair is not None
                found.append((pair[0].cpu(), pair[1].cpu()))
        self.passes += 1
        logits, labels = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def _predict(self, batch: Any, outputs: Any, target: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        ignore = known_ignore_index(self.task.loss)
        if self.task.predict is not None:
            pair = self.task.predict(self.model, batch)
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise TaskError(f"predict returned a {type(pair).__name__}; expected (logits, labels)")
            logits, labels = pair
            if (
                isinstance(labels, torch.Tensor)
                and labels.is_floating_point()
                and bool((labels == labels.round()).all())
            ):
                labels = labels.long()  # predict says that these are class labels
            return default_prediction(logits, labels, None, ignore)
        if self.task.batch_loss is not None:
            return None
        return default_prediction(outputs, default_target(target), self.task.loss, ignore)

    def _hits(self, batch: Any, outputs: Any, target: Any) -> tuple[int, int]:
        pair = self._predict(batch, outputs, target)
        return (0, 0) if pair is None else hits(*pair)

    # -------------------------------------------------------------------------------------------- standard error

    def _blocks(self, batch: Any, outputs: Any, target: Any) -> list[tuple[float, float]]:
        """Return (mean, weight) of blocks of this batch's samples; the batch itself where it can't be cut."""
        size = batch_size_of(batch)
        count = math.ceil(BLOCKS / len(self))
        whole = [(0, size or 1)] if size is None or not self._can_split(outputs) else pieces(size, count)
        found = []
        for start, stop in whole:
            if len(whole) == 1:
                part_batch, part_outputs, part_target = batch, outputs, target
            else:
                assert size is not None
                part_batch = slice_batch(batch, start, stop, size)
                if self.task.batch_loss is not None:
                    part_outputs, part_target = self._call(self._forward, part_batch)
                else:
                    part_outputs = slice_batch(outputs, start, stop, size)
                    part_target = slice_batch(target, start, stop, size)
            mean, weight, _ = self._call(self._mean, None, part_outputs, part_target, part_batch)
            if weight > 0:
                found.append((float(mean), weight))
        return found

    def _can_split(self, outputs: Any) -> bool:
        """Whether a batch may be cut: by samples, without changing what the loss means."""
        coupled = not self.task.rebatch or (self.task.batchnorm == "batch" and bool(batchnorm_layers(self.model)))
        if self.task.batch_loss is not None:
            return not coupled and self.task.rng == "refuse"
        return not coupled and batch_size_of(outputs) is not None

    # ------------------------------------------------------------------------------------------- verification

    def _verify(self) -> _Verified:
        task = self.task
        if task.loss is None and task.batch_loss is None:
            return _Verified("none", self._labels_there(), ())
        key = (self.split, self.fingerprint, self.device, self.dtype, id(self.model))
        if key not in task._verified:
            with seeded(None):
                task._verified[key] = self._first_passes()
        return task._verified[key]

    def _first_passes(self) -> _Verified:
        """Compare two passes, and the whole of each batch with its parts where the weight is not known."""
        # float32 sums of a batch cut differently agree to a few units in the last place times the batch size.
        relative = 1e-4 if self.dtype == torch.float32 else 1e-9
        notes: list[str] = []
        weighing = "own"
        self._refresh_statistics()
        with torch.no_grad():
            for i in range(len(self)):
                batch = self._batch(i)
                self._seed(i)
                outputs, target = self._call(self._forward, batch)
                value = outputs if task_computes(self.task) else self._call(self._loss_value, outputs, target)
                mean, own, _ = split_value(value)
                first = float(mean)
                self._seed(i)
                again = float(self._call(self._mean, i, *self._call(self._forward, batch), batch)[0])
                if not _same(first, again, self.dtype):
                    raise ObjectiveError(self._random_layer(batch, first, again))
                known = None if own is not None else known_weight(self.task.loss, outputs, target)
                weight = float(own) if own is not None else known
                if not math.isfinite(first) and weight != 0:
                    raise ObjectiveError(
                        f"the loss at the checkpoint is {first} on {self.split} batch {i}: nothing can be measured "
                        "around it (look for diverged weights, or for inputs that are not finite)"
                    )
                if weight is None:
                    weighing = "samples"
                    self._verify_batch(batch, outputs, target, first, relative)
                elif own is None:
                    weighing = "torch"
        self.passes += 2
        if weighing == "samples":
            if self.task.rebatch:
                notes.append("batches are weighed by their samples: verified, each batch's mean is that of its parts")
            else:
                notes.append("batches are weighed by their samples (rebatch=False: their parts were not compared)")
        return _Verified(weighing, self._labels_there(), tuple(notes))

    def _loss_value(self, outputs: Any, target: Any) -> Any:
        assert self.task.loss is not None
        return self.task.loss(outputs, target)

    def _verify_batch(self, batch: Any, outputs: Any, target: Any, whole: float, relative: float) -> None:
        size = batch_size_of(batch)
        if size == 1 or not self.task.rebatch:
            return
        if size is None or not self._can_split(outputs):
            if self.task.batchnorm == "batch" or self.task.rng == "fixed":
                return
            sample_weight(outputs, batch, self._what())
            raise ObjectiveError(
                f"{self._what()} returns a mean without its weight, and its outputs can't be cut into samples to "
                "verify one: return (mean, weight), where weight is the mean's own denominator"
            )
        cut = max(1, size // 3)  # unequal parts: equal ones would hide a sum over the batch behind its mean
        parts = []
        for start, stop in ((0, cut), (cut, size)):
            part = slice_batch(batch, start, stop, size)
            if task_computes(self.task):
                piece = self._call(self._forward, part)[0]
            else:
                piece = self._call(
                    self._loss_value, slice_batch(outputs, start, stop, size), slice_batch(target, start, stop, size)
                )
            parts.append((float(split_value(piece)[0]), float(stop - start)))
        verify_mean(whole, parts, self._what(), relative=relative)

    def _labels_there(self) -> bool:
        """Whether the first batch gives logits and class labels."""
        task = self.task
        if task.predict is None and task.batch_loss is not None:
            return False
        with torch.no_grad():
            batch = self._batch(0)
            self._seed(0)
            if task.predict is not None:
                return self._call(self._predict, batch, None, None) is not None
            outputs, target = self._call(self._forward, batch)
            return self._call(self._predict, batch, outputs, target) is not None

    def _random_layer(self, batch: Any, first: float, again: float) -> str:
        """Say which module makes two passes differ: the first whose outputs do."""
        seen: list[list[tuple[str, list[torch.Tensor]]]] = [[], []]
        hooks = []
        for turn in (0, 1):
            record = seen[turn]
            for name, module in self.model.named_modules():

                def keep(module: nn.Module, _: Any, output: Any, name: str = name, record: Any = record) -> None:
                    label = f"{name or 'the model'} ({type(module).__name__})"
                    record.append((label, [t.detach().clone() for t in tensors_of(output)]))

                hooks.append(module.register_forward_hook(keep))
            try:
                self._forward(batch)
            finally:
                for hook in hooks:
                    hook.remove()
                hooks.clear()
        culprit = "the loss function itself"
        for (name, a), (_, b) in zip(*seen, strict=False):
            if any(not torch.equal(x, y) for x, y in zip(a, b, strict=False)):
                culprit = name
                break
        return (
            f"the loss is not deterministic: two passes over the same batch gave {first:.8g} and {again:.8g}; "
            f'they first differ in {culprit}. Measure in eval mode, remove the randomness, or set Task(rng="fixed")'
        )


def task_computes(task: Task) -> bool:
    """Whether the task's own batch_loss computes the loss."""
    return task.batch_loss is not None


@contextlib.contextmanager
def as_objective(task: Task | Objective, split: str = "train") -> Iterator[Objective]:
    """Give an entered Objective: the one handed in, at its centre, or a new one for this task and split."""
    if isinstance(task, Objective):
        if task.entered:
            try:
                yield task
            finally:
                task.reset()
            return
        with task as objective:
            yield objective
        return
    with Objective(task, split) as objective:
        yield objective


def _place(task: Task, model: nn.Module) -> tuple[torch.device, torch.dtype, list[str]]:
    """Return (device, dtype, notes): the task's wish, else where and what the model is."""
    notes: list[str] = []
    floating = [p for p in model.parameters() if p.is_floating_point()]
    if not floating:
        trainable(model)
    devices = sorted({str(p.device) for p in model.parameters()})
    if task.device is not None:
        device = task.device
        if device.type == "cuda" and not torch.cuda.is_available():
            raise TaskError("device 'cuda' was asked for, but torch finds no CUDA device here; use device='cpu'")
    elif len(devices) > 1:
        raise TaskError(f"the model is spread over {', '.join(devices)}; give Task(device=...) to measure it on one")
    else:
        device = torch.device(devices[0])
    dtypes = {p.dtype for p in floating}
    dtype = task.dtype or (torch.float64 if torch.float64 in dtypes else torch.float32)
    changed = sorted(str(d).removeprefix("torch.") for d in dtypes if d != dtype)
    if changed:
        notes.append(f"{' and '.join(changed)} weights are measured in {str(dtype).removeprefix('torch.')}")
    return device, dtype, notes


def _same(first: float, again: float, dtype: torch.dtype) -> bool:
    """Whether two passes agree to rounding: kernels that sum in another order each time are not random layers."""
    if math.isnan(first) and math.isnan(again):
        return True
    relative = 1e-6 if dtype == torch.float32 else 1e-13
    return first == again or abs(first - again) <= relative * max(abs(first), abs(again))


def _block_error(blocks: list[tuple[float, float]], mean: float) -> float:
    """Return the standard error of a ratio of sums from (mean, weight) of its blocks (linearized)."""
    n = len(blocks)
    if n < 2:
        return math.nan
    total = sum(w for _, w in blocks)
    return math.sqrt(n / (n - 1) * sum((w * (v - mean)) ** 2 for v, w in blocks)) / total


def _shown(args: tuple[Any, ...]) -> list[torch.Tensor]:
    return [t for a in args if not isinstance(a, nn.Module | int) for t in tensors_of(a)][:4]
