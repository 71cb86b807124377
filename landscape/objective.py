"""The objective: loss and gradient over one fixed draw of the data, the same at every call.

Batches are combined by the denominators of their own means, so that loss, gradient and Hessian are those of the
whole draw however it is cut into batches.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from .batch import bytes_of, map_tensors, to_device
from .errors import LandscapeError, ObjectiveError, OutOfMemory, TaskError
from .hooks import check_hooks
from .loaded import Loaded, Place, regrouped
from .memory import REMEDY, give_back, ran_out
from .mishaps import what_failed
from .outputs import forward_of
from .parameters import owners, trainable, unwrap
from .passes import Evaluation, Looked, Predicted, all_predictions, averaged, gradients, look
from .placement import place, placed
from .reduction import known_weight, sample_weight, split_value
from .seeding import seed_all
from .session import batchnorm_layers, prepared, quiet_rnn, recomputing
from .sharing import BEGINNING, END, Group, Share, Together, digest, group_here
from .stateful import Buffers
from .tasks import Task
from .verification import Verified, can_cut, can_redraw, verify

_T = TypeVar("_T")

# The entered objectives of each model, in the order in which they were entered.
_OPEN: weakref.WeakKeyDictionary[nn.Module, list[Objective]] = weakref.WeakKeyDictionary()


class Objective:
    """The weighted mean loss of a task over one split's fixed draw; use it as a context manager.

    Inside `with`, the model stands on the device in the precision and mode of the task, working on copies of its
    tensors. On every way out model, buffers, mode, gradients, RNG state and backend flags are exactly as before. The
    first entry compares two passes and verifies the weights of the batches (2 forward passes, once for each task and
    set of weights). `split` is "train" or "test"; `max_samples` and `seed` of the draw are the task's own where they
    are None. `regroup` shuffles the samples into batches of this size (the last may be smaller), where the task and the
    batches allow it; `largest` says how many samples the largest batch then holds. With `redraw` a batch_loss that
    draws random numbers (rng="fixed") allows it, too: each new batch draws its own.

    `process_group` (True for the default one of torch.distributed, or a ProcessGroup) shares the draw between
    processes, as torchrun starts them: each passes over its part of the batches, with its own device and graphs, and
    all get the numbers of the whole draw. Every process must enter it, and make the same calls in the same order.
    Shared are `evaluate` (slices, planes, paths), `gradient` and the products of operators (eigenvalues, traces,
    densities); all else each process does for the whole draw, whose data it holds, the checks at the first entry, too.
    What fails in one process is raised in all.

    Attributes, inside `with`: `names`, `parameters` (live, trainable, tied ones once), `center` (their values at
    entry), `samples`, `fingerprint` of the draw, `notes`, `has_labels`, `passes` (forward passes spent; a gradient
    counts 3).

    Raises ObjectiveError where the loss cannot be measured, TaskError where data or task functions fail.
    """

    def __init__(
        self,
        task: Task,
        split: str = "train",
        *,
        max_samples: int | None = None,
        seed: int | None = None,
        regroup: int | None = None,
        redraw: bool = False,
        process_group: Group | Literal[True] | None = None,
    ) -> None:
        if not isinstance(task, Task):
            raise TypeError(f"Objective needs a landscape.Task, got {type(task).__name__}")
        self.task = task
        self.split = split
        self._regroup, self._redraw = regroup, redraw
        self.process_group = process_group = group_here() if process_group is None else process_group
        #: What falls to this process, where several share the draw, inside `with`.
        self.share: Share | None = None
        self.model: nn.Module = unwrap(task.model)
        with contextlib.nullcontext() if process_group is None else Together(process_group).telling(BEGINNING):
            self.draw = task.draw(split, max_samples=max_samples, seed=seed)
            self.device, self.dtype, self._notes = place(task, self.model)
            check_hooks((self.model, task.loss), self.device, self.dtype)
        self.samples = self.draw.samples
        self.fingerprint = self.draw.fingerprint
        self.passes = 0.0
        #: How often the weights were moved: what was computed at other weights is stale.
        self.moves = 0
        self._loaded = Loaded([])
        self._stack: contextlib.ExitStack | None = None
        self._stale_statistics = False
        self._holding = False
        #: In how many parts each batch was cut, for want of memory.
        self._cut = 1
        #: Whether the task differentiates in its forward pass (a PINN), so that no pass may switch autograd off.
        self.inner_gradient = False
        #: Whether the task writes into its batches, so that each pass needs a copy.
        self.copies = False

    # ------------------------------------------------------------------------------------------ in and out

    def __enter__(self) -> Objective:
        if self._stack is not None:
            raise RuntimeError("this Objective is already entered; make another one")
        together = None if self.process_group is None else Together(self.process_group, self.device)
        with contextlib.ExitStack() as stack:
            with contextlib.nullcontext() if together is None else together.telling(BEGINNING):
                self._begin(stack)
            if together is not None:
                self._share_out(together)
            self._stack = stack.pop_all()
        _OPEN.setdefault(self.model, []).append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        stack, self._stack = self._stack, None
        share, self.share = self.share, None
        self._loaded = Loaded([])
        self.center = ()
        if stack is None:
            return
        opened = _OPEN[self.model]
        later = opened[opened.index(self) + 1 :]
        try:
            # Each puts back what it found: in another order the model would be left with a working copy.
            with stack:
                opened.remove(self)
                for objective in reversed(later):
                    objective.__exit__(*error)
            if later:
                raise RuntimeError(
                    "an Objective entered later on the same model was still open; both are closed now and the model is "
                    "as it was: leave the one entered last first"
                )
        except BaseException as failure:
            if share is not None:
                share.together.leave(failure)
            raise
        if share is not None:
            share.together.leave(error[1] if any(error) else None)

    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Prepare the model, with what undoes it on the stack, load the batches and verify them."""
        task = self.task
        chosen = trainable(self.model)
        self.names = tuple(chosen)
        self.parameters = tuple(chosen.values())
        stack.enter_context(quiet_rnn())
        stack.enter_context(
            prepared(
                self.model,
                loss=task.loss,
                device=self.device,
                dtype=self.dtype,
                mode=task.mode,
                batchnorm=task.batchnorm,
                seed=task.seed,
            )
        )
        # The parameters keep the memory that they have now, into which views of the model's own may look.
        self.center = tuple(p.data.clone() for p in self.parameters)
        self._cut = 1
        self._loaded = Loaded(self._regrouped(self._load()))
        self._stale_statistics = task.batchnorm == "recompute"
        self._loss = placed(task.loss, self.device, self.dtype)
        self.buffers = Buffers(self.model)
        self._facts = self._within_memory(self._verified)
        self.inner_gradient, self.copies = self._facts.inner_gradient, self._facts.copies
        self.buffers.expect(self._facts.changed)

    def _share_out(self, together: Together) -> None:
        """Take this process's part of the batches, if all have the same ones."""
        same = (self.split, self.fingerprint, len(self.names), sum(p.numel() for p in self.parameters), str(self.dtype))
        cuts = [told["cut"] for told in together.agree(BEGINNING, same, digest(self.center), cut=self._cut)]
        with together.telling(END):
            while self._cut < max(cuts):  # another one's memory didn't hold more
                self._loaded.halve()
                self._cut *= 2
            self.share = Share(together, self._loaded, cut=self.task.rng != "fixed" and self.can_cut())

    def agreed(self, decision: bool) -> bool:
        """Return a decision that doesn't follow from the numbers, such as one by the clock, alike in all processes."""
        return decision if self.share is None else self.share.together.agreed(decision)

    def _verified(self) -> Verified:
        # Other weights are verified anew: a task may have been given diverged ones since. A NaN equals no key.
        sums = torch.stack([c.double().sum() for c in self.center]).tolist()
        key = (self.split, self.fingerprint, self.device, self.dtype, id(self.model), *sums)
        known = self.task._verified
        if key not in known:
            known[key] = verify(self)
        return known[key]

    def _load(self) -> list[Any]:
        batches = list(self.draw.batches)
        if self.device.type == "cuda":
            need = sum(map(bytes_of, batches))
            free, _ = torch.cuda.mem_get_info(self.device)
            if need > free // 2:  # half, chosen by us: graphs and the Krylov basis need the rest
                self._on_host = True
                return batches
        self._on_host = False
        return [to_device(b, self.device, self.dtype) for b in batches]

    def _regrouped(self, batches: list[Any]) -> list[Any]:
        if self._regroup is None or not (self.can_cut() or (self._redraw and can_redraw(self))):
            return batches
        return regrouped(batches, self.draw.sizes, self._regroup, self.draw.seed)

    def halve(self) -> bool:
        """Cut every batch in two, for the rest of this `with`; False, and nothing done, where that isn't allowed.

        For a pass that runs out of memory. The mean over the draw stays what it is.
        """
        if self.task.rng == "fixed" or not self.can_cut() or not self._loaded.halve():
            return False
        self.moves += 1
        return True

    def _within_memory(self, run: Callable[[], _T]) -> _T:
        """Return what a pass over the draw gives; where it runs out of memory, with batches cut in two until it fits.

        Raises OutOfMemory where they can't be cut any further.
        """
        while True:
            try:
                return run()
            except Exception as error:
                if not ran_out(error) or isinstance(error, OutOfMemory):
                    raise
            # Behind the error, which held the failed pass's tensors.
            give_back(self.device)
            if not self.halve():
                tried = f"1/{self._cut} of a batch" if self._cut > 1 else "one batch"
                raise OutOfMemory(f"out of memory on {tried}, and the task doesn't allow it to be cut; {REMEDY}")
            self._cut *= 2

    def join_batches(self, count: int) -> Loaded | None:
        """Return every `count` successive batches as one, for `using`; None where that isn't allowed, or where the
        batches don't fit together.

        For passes that take their time in calls. The mean over the draw stays what it is, as far as the weights are
        known to be right (`verify`): compare before relying on it.
        """
        own_statistics = self.task.batchnorm == "recompute" and bool(batchnorm_layers(self.model))
        if self.task.rng == "fixed" or own_statistics or not self.can_cut():
            return None
        return self._loaded.joined(count)

    @contextlib.contextmanager
    def using(self, batches: Loaded | None) -> Iterator[None]:
        """Have other batches of the same samples inside; None leaves them as they are."""
        before = self._loaded
        self._loaded = before if batches is None else batches
        try:
            yield
        finally:
            self._loaded = before

    @property
    def total(self) -> int:
        """Batches of the whole draw, also in a pass over a part of it."""
        return self._loaded.total

    def place(self, i: int) -> Place:
        """Return where batch i stands in the draw, which orders what several processes found."""
        return self._loaded.places[i]

    def number(self, i: int) -> int:
        """Return what seeds the random numbers of batch i: a number of its own, the same however the draw is shared."""
        return self._loaded.number(i)

    @property
    def largest(self) -> int:
        """Samples of the largest batch."""
        return self._loaded.largest

    def batch(self, i: int) -> Any:
        """Return batch i on the device, for one pass."""
        batch = self._loaded.batches[i]
        if self._on_host:
            batch = to_device(batch, self.device, self.dtype)
        # Containers are made anew for each pass: a forward may pop the labels out of its batch.
        return map_tensors(batch, torch.clone if self.copies else lambda t: t)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Switch autograd off, unless the task differentiates in its forward pass."""
        with torch.set_grad_enabled(self.inner_gradient):
            yield

    @property
    def entered(self) -> bool:
        """Whether we are inside `with`."""
        return self._stack is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know about how they came about."""
        cut = (f"out of memory on whole batches: they are cut in {self._cut}",) if self._cut > 1 else ()
        found = (*self._notes, *self.draw.notes, *cut)
        if not self.entered:
            return found
        return (*found, *self._facts.notes, *filter(None, [self.buffers.note]))

    @property
    def has_labels(self) -> bool:
        """Whether accuracy and calibration can be computed."""
        return self._facts.has_labels

    def __repr__(self) -> str:
        called, dtype = self.task.name or type(self.model).__name__, str(self.dtype).removeprefix("torch.")
        return f"Objective({called}, {self.samples} {self.split} samples, {dtype} on {self.device})"

    def __len__(self) -> int:
        return len(self._loaded) if self.entered or self._loaded else len(self.draw.batches)

    def modules_of(self) -> dict[str, nn.Module]:
        """Return for each trainable parameter's name the module that holds it."""
        held = owners(self.model)
        return {name: held[name] for name in self.names}

    # --------------------------------------------------------------------------------------------- weights

    def move(self, directions: Sequence[Sequence[torch.Tensor]], coefficients: Sequence[float]) -> None:
        """Set the weights to center + sum_i c_i d_i; exactly the centre when every c_i is 0."""
        with torch.no_grad():
            for j, (p, center) in enumerate(zip(self.parameters, self.center, strict=True)):
                steps = [(d[j], float(c)) for d, c in zip(directions, coefficients, strict=True) if c != 0.0]
                if not steps:
                    p.copy_(center)
                    continue
                # The first step reads the centre and writes the weight in one go: this is bound by memory.
                torch.add(center, steps[0][0], alpha=steps[0][1], out=p)
                for d, c in steps[1:]:
                    p.add_(d, alpha=c)
        self._stale_statistics = self.task.batchnorm == "recompute" and not self._holding
        self.moves += 1

    def reset(self) -> None:
        """Put the weights back to the centre, exactly."""
        self.move((), ())

    def held(self) -> dict[str, torch.Tensor]:
        """Return the model's parameters and buffers by name as they are now, tied ones under each of their names."""
        model = self.model
        found: dict[str, torch.Tensor] = dict(model.named_buffers(remove_duplicate=False))
        return found | dict(model.named_parameters(remove_duplicate=False))

    @contextlib.contextmanager
    def writing(self) -> Iterator[dict[str, torch.Tensor]]:
        """Give what `held` does, to be written into; every later pass starts from the buffers that were left there."""
        self.buffers.reset()
        with torch.no_grad():
            yield self.held()
        self.buffers.keep()
        self.moves += 1

    @contextlib.contextmanager
    def holding_statistics(self) -> Iterator[None]:
        """Hold BatchNorm statistics that are recomputed at those of the weights as they are now, to which we come back.

        What a derivative differentiates: it takes the statistics for constants.
        """
        self._refresh_statistics()
        before, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = before

    def _refresh_statistics(self) -> None:
        if not self._stale_statistics:
            return
        self._stale_statistics = False
        # Those of the whole draw, also in a pass over a part of it.
        every = None if self.share is None else self.share.every
        with self.measuring(), recomputing(self.model), self.using(every):
            for i in range(len(self)):
                self._seed(i)
                self.forward(self.batch(i))
        self.passes += 1

    # ------------------------------------------------------------------------------------------- one batch

    def _seed(self, i: int) -> None:
        if self.task.rng == "fixed":
            seed_all(self.task.seed + 1 + self.number(i))

    def forward(self, batch: Any) -> tuple[Any, Any]:
        """Return (outputs, target) of the task's forward; for a batch_loss task (its loss, None).

        What the task raises becomes a TaskError that names the exception and the batch's shapes.
        """
        self.buffers.reset()
        return self.call(self._forward, batch)

    def _forward(self, batch: Any) -> tuple[Any, Any]:
        if self.task.batch_loss is not None:
            return self.task.batch_loss(self.model, batch), None
        return forward_of(self.task, self.model, batch)

    def loss_value(self, outputs: Any, target: Any) -> Any:
        """Return what the task's loss returns for these outputs (for a batch_loss task: the outputs are its loss)."""
        if self.task.batch_loss is not None:
            return outputs
        if self.task.loss is None:
            raise ObjectiveError(
                f"the task {self.task.name or type(self.model).__name__} has no loss: "
                "give Task(loss=...), or, where the model returns its own loss, "
                "Task(batch_loss=lambda model, batch: model(**batch)['loss'])"
            )
        return self.call(self._loss, outputs, target)

    def begin(self, i: int) -> Any:
        """Return batch i for a pass that starts now: its seed is set, and the running statistics are up to date."""
        self._refresh_statistics()
        self._seed(i)
        return self.batch(i)

    def value(self, i: int) -> tuple[Any, Any, Any, Any]:
        """Return (batch, outputs, target, what the loss returned) of batch i at the current weights."""
        batch = self.begin(i)
        outputs, target = self.forward(batch)
        return batch, outputs, target, self.loss_value(outputs, target)

    def weighed(
        self, i: int | None, outputs: Any, target: Any, batch: Any
    ) -> tuple[torch.Tensor, float, dict[str, Any]]:
        """Return (mean, weight, terms) of a batch from its outputs; `i` is its number in the draw, if it has one."""
        return self.weigh(i, self.loss_value(outputs, target), outputs, target, batch)

    def weigh(
        self, i: int | None, value: Any, outputs: Any, target: Any, batch: Any
    ) -> tuple[torch.Tensor, float, dict[str, Any]]:
        """Return (mean, weight, terms) from what the loss returned; a weight that the data fix is remembered."""
        mean, own, terms = split_value(value)
        if own is not None:
            weight = float(own)
            if not (weight >= 0 and math.isfinite(weight)):
                raise ObjectiveError(f"the loss returned the weight {weight}; expected a finite number >= 0")
            return mean, weight, terms
        weight = self._loaded.weights[i] if i is not None else None
        if weight is None:
            weight = known_weight(self.task.loss, outputs, target)
            if weight is None:
                weight = sample_weight(outputs, batch, self.what)
            if i is not None:
                self._loaded.weights[i] = weight
        return mean, weight, terms

    @property
    def plain_labels(self) -> dict[int, Any]:
        """Targets by batch that were looked at once, and are labels of classes that are all there."""
        return self._loaded.plain

    @property
    def what(self) -> str:
        """The loss, as errors call it."""
        function = self.task.batch_loss or self.task.loss
        return f"the loss {getattr(function, '__name__', type(function).__name__)}"

    def can_cut(self, outputs: Any = None) -> bool:
        """Say whether a batch may be cut by samples without changing what the loss means."""
        return can_cut(self, outputs)

    def batch_loss(self, i: int) -> tuple[torch.Tensor, float]:
        """Return (mean loss with its graph, weight) of batch i at the current weights; weight 0 counts nothing."""
        batch, outputs, target, value = self.value(i)
        mean, weight, _ = self.weigh(i, value, outputs, target, batch)
        return mean, weight

    def call(self, function: Any, *args: Any) -> Any:
        """Run something of the user's; what it raises becomes one line that names the batch's shapes."""
        try:
            return function(*args)
        except LandscapeError:
            raise
        except Exception as error:
            if ran_out(error):
                raise
            raise TaskError(what_failed(error, args, self.task, self.split, self.dtype)) from error

    # -------------------------------------------------------------------------------------------- the mean

    def evaluate(
        self,
        *,
        accuracy: bool = False,
        stderr: bool = False,
        criteria: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    ) -> Evaluation:
        """Return the mean loss over the draw at the current weights, without gradients: one forward pass.

        `accuracy` adds the share of right labels (NaN where the task has none), from the same pass unless the
        task has its own `predict`. `stderr` adds the standard error of the loss over the samples, from about 64
        blocks of samples (for a batch_loss task: a second pass). `criteria` are further losses of (outputs, target)
        by name, each averaged by its own weights (by samples where it says none), from the same pass; their means
        stand among `terms`.
        """

        def run() -> list[Looked]:
            return self._within_memory(lambda: look(self, accuracy, stderr, criteria or {}))

        if self.share is None:
            return averaged(self, run(), stderr)
        with self.using(self.share.whole):
            found = self.share.together.gather("an evaluation", run, digest(self.parameters))
        return averaged(self, sorted(found, key=lambda f: f.place), stderr)

    def gradient(self) -> tuple[torch.Tensor, ...]:
        """Return the gradient of the mean loss at the current weights: one forward and one backward pass.

        A parameter that the loss doesn't depend on has gradient 0.
        """

        def run() -> tuple[list[torch.Tensor], float]:
            return self._within_memory(lambda: gradients(self))

        if self.share is None:
            sums, weight = run()
        else:
            with self.using(self.share.even):
                sums, weight = self.share.together.add("a gradient", run, (), digest(self.parameters))
        torch._foreach_div_(sums, weight)
        return tuple(sums)

    def total_weight(self) -> float:
        """Return the sum of the batches' weights, the denominator of every mean over this draw."""
        if any(w is None for w in self._loaded.weights):
            return sum(self.batch_loss(i)[1] for i in range(len(self)))
        return sum(w for w in self._loaded.weights if w is not None)

    # ----------------------------------------------------------------------------------------- predictions

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits, labels) of the draw on the CPU: (n, classes) or, for a binary task, (n,), and (n,).

        Positions to be ignored are left out. Raises MeasurementError for a task without labels.
        """
        found = self.all_predictions()
        return found.logits, found.labels

    def all_predictions(self) -> Predicted:
        """Return the predictions of the draw, which sample each comes from, and how many labels a sample has.

        The groups are None where that isn't known: a `predict` that returns another number of rows than of samples
        (pixels, tokens) without their shape.
        """
        return self._within_memory(lambda: all_predictions(self))


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
