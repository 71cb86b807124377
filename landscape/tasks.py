"""A Task: a model, a loss and fixed data, in the forms in which people have them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import nn

from .data import Draw, Replay, draw_batches
from .errors import MissingSplitError, TaskError
from .plain import check_plain, plain_copy

Mode = Literal["eval", "train"]
BatchNorm = Literal["eval", "batch", "recompute"]
Rng = Literal["refuse", "fixed"]
#: A position's logits are for its own label, for that of the next position, or nobody can tell.
Pairing = Literal["own", "next", "unknown"]
F = TypeVar("F", bound=Callable[..., Any])
_ARGUMENTS = (
    *("model", "loss", "train", "test", "name", "forward", "batch_loss", "predict", "mode", "batchnorm", "rng"),
    *("rebatch", "max_samples", "seed", "device", "dtype", "batch_size", "optimizer"),
)


def task(function: F) -> F:
    """Mark a function that returns a Task; only marked functions are ever called by name.

    The Task remembers which one made it, with which settings, so that checkpoints can name it.
    """
    if not callable(function):
        raise TypeError(f"@task marks a function that returns a Task, got {type(function).__name__}")
    if not isinstance(function, FunctionType):
        function.__landscape_task__ = True  # type: ignore[attr-defined]
        return function

    # The file is that of the function itself, where others are wrapped around it.
    code = getattr(inspect.unwrap(function), "__code__", function.__code__)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Any:
        given = _given(function, args, kwargs)  # before the call, which may change it
        made = function(*args, **kwargs)
        if isinstance(made, Task) and given is not None:
            made.made_by = MadeBy(function.__module__, function.__qualname__, code.co_filename, *given)
        return made

    make.__landscape_task__ = True  # type: ignore[attr-defined]
    return cast(F, make)


@dataclass(frozen=True)
class MadeBy:
    """The marked function that made a task, and what it was given, by name; `problem` says what no checkpoint can hold.

    Nothing of theirs is kept: a Task can be pickled, and holds no data that its function was given.
    """

    module: str
    name: str
    file: str
    settings: dict[str, Any]
    problem: str = ""


def _given(
    function: FunctionType, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], str] | None:
    """Return (settings, problem) of a call; None where the function takes something else than its signature says."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:  # where that is wrong, the call itself will say so
        return None
    found = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
        elif name in found and parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            return {}, f"settings {name!r} were given by their place alone; a checkpoint keeps them by name"
    try:
        for name, value in found.items():
            check_plain(value, f"settings {name!r}")
    except TypeError as error:
        return {}, str(error)
    return plain_copy(found), ""


class Task:
    """A model, a loss and fixed data: what every measurement is made on.

    Args:
        model: the network; never changed by a measurement (weights, buffers, mode, gradients).
        loss: `loss(outputs, target)` returns a mean, `(mean, weight)` or `{term: mean}`. The weight is the
            mean's own denominator: samples, tokens not ignored, or the sum of the class weights. It is known for
            the losses of torch.nn. A plain mean of another loss counts by samples, which is verified on every
            batch (the whole against its parts) and refused with a line where it does not hold.
        train, test: a DataLoader, a Dataset, an iterable or a list of batches, or a tuple of tensors `(X, y)`; a list
            that could be read in two ways (batches of numbers, or vectors that are samples) is refused. Batches
            may hold sparse tensors, packed sequences and objects with `.to()`; where rows may be a graph's nodes, and
            where they lie in such an object, no batch is cut.
        name: shown in reports.
        forward: `(model, batch) -> (outputs, target)`; by default `(model(x), y)` for a pair and
            `(model(**batch), batch)` for a dict. `landscape.next_token` is that of causal language models, with
            torch's cross entropy.
        batch_loss: `(model, batch) -> loss` for models that compute their own; `(mean, weight)` is accepted.
            The Hessian works, Gauss-Newton and Fisher refuse with a line.
        predict: `(model, batch) -> (logits, labels)` for calibration and accuracy; by default from `forward`. Logits
            and labels of one shape (n, labels) are those of several labels that are each there or not.
        mode: "eval" (default: what is deployed), or "train" for models that return a loss only there.
        batchnorm: "eval" uses the running statistics, "batch" those of each batch, "recompute" estimates them
            anew over the draw, its batches by their size, wherever the weights are moved; derivatives take them for
            constants there.
        rng: a loss that draws random numbers is refused ("refuse"), or the generators are forked and seeded for
            each batch ("fixed").
        rebatch: False when the loss needs its batches as they are (contrastive losses, batch statistics).
        max_samples: size of the fixed draw of each split; None takes all.
        seed: of the draw, shuffling and augmentation included.
        device, dtype: where and in what precision to measure; default: where the model is (of one on MPS, which has no
            float64, the CPU), in its own
            precision (float16 and bfloat16 weights are measured in float32, and said).
        batch_size: for data that come without batches (256, chosen by us: fits laptops, keeps BLAS busy).
        optimizer: the torch optimizer that trains the model, or its state_dict, or several ({name: optimizer} or a
            list), for what depends on it (stability thresholds); never stepped or changed. `landscape probe` puts the
            checkpoint's own here.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any] | None = None,
        train: Any = None,
        test: Any = None,
        *,
        name: str = "",
        forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None,
        batch_loss: Callable[[nn.Module, Any], Any] | None = None,
        predict: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None,
        mode: Mode = "eval",
        batchnorm: BatchNorm = "eval",
        rng: Rng = "refuse",
        rebatch: bool = True,
        max_samples: int | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 256,
        optimizer: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Task needs a torch.nn.Module as its model, got {type(model).__name__}")
        if isinstance(loss, type):
            raise TypeError(f"loss is the class {loss.__name__}; make an instance of it: loss={loss.__name__}()")
        for label, value in (
            ("loss", loss),
            ("forward", forward),
            ("batch_loss", batch_loss),
            ("predict", predict),
        ):
            if value is not None and not callable(value):
                raise TypeError(f"{label} must be callable, got {type(value).__name__}")
        if loss is not None and batch_loss is not None:
            raise TaskError("give loss or batch_loss, not both: batch_loss computes the loss from the batch alone")
        for label, value, kinds in (
            ("mode", mode, Mode),
            ("batchnorm", batchnorm, BatchNorm),
            ("rng", rng, Rng),
        ):
            if value not in get_args(kinds):
                raise TaskError(f"{label}={value!r} is not one of {', '.join(map(repr, get_args(kinds)))}")
        if max_samples is not None and max_samples < 1:
            raise TaskError(f"max_samples={max_samples} leaves no data; give a positive number or None for all")
        if batch_size < 1:
            raise TaskError(f"batch_size={batch_size} must be at least 1")
        if dtype is not None and dtype not in (torch.float32, torch.float64):
            raise TaskError(f"dtype={dtype} cannot carry second derivatives; use torch.float32 or torch.float64")
        self.model = model
        self.loss = loss
        self.train = _replayable(train)
        self.test = _replayable(test)
        self.name = name
        self.forward = forward
        self.batch_loss = batch_loss
        self.predict = predict
        self.mode: Mode = mode
        self.batchnorm: BatchNorm = batchnorm
        self.rng: Rng = rng
        self.rebatch = rebatch
        self.max_samples = max_samples
        self.seed = seed
        self.device = torch.device(device) if device is not None else None
        self.dtype = dtype
        self.batch_size = batch_size
        self.optimizer = optimizer
        #: Whether a token's logits are for its own label or the next one's; None until `outputs` has found out.
        self.pairing: Pairing | None = None
        #: The label that a loss of the user's own leaves out by itself; None until `ignoring` has found one.
        self.ignored: int | None = None
        #: Texts that `landscape.identity.hold` keeps of these arguments, by name.
        self.described: dict[str, str] = {}
        self._draws: dict[Any, Draw] = {}
        self._verified: dict[Any, Any] = {}
        self._findings: dict[Any, dict[Any, Any]] = {}
        #: The marked function that made this task, and what it was given; None for a task made otherwise.
        self.made_by: MadeBy | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Changed by hand, it is no longer what its function makes, nor what was verified and tried. An optimizer's
        # state is the checkpoint's anyway.
        if name in _ARGUMENTS and name != "optimizer" and "_findings" in self.__dict__:
            unknown = {"made_by": None, "_verified": {}, "_findings": {}, "pairing": None, "ignored": None}
            for known, none in unknown.items():
                object.__setattr__(self, known, none)
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> Task:
        """Return the same task with these arguments changed; model and data are shared, not copied."""
        unknown = set(changes) - set(_ARGUMENTS)
        if unknown:
            raise TypeError(f"Task has no argument {sorted(unknown)[0]!r}; it has {', '.join(_ARGUMENTS)}")
        other = Task(**{n: changes.get(n, getattr(self, n)) for n in _ARGUMENTS})
        if not {"train", "test"} & set(changes):
            other._draws = self._draws
        other.described = {name: text for name, text in self.described.items() if name not in changes}
        return other

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have data."""
        return tuple(s for s in ("train", "test") if getattr(self, s) is not None)

    def draw(self, split: str = "train", *, max_samples: int | None = None, seed: int | None = None) -> Draw:
        """Return the one fixed draw of a split; the same arguments give the same draw, taken only once.

        Raises MissingSplitError, a TaskError, where the split has no data.
        """
        data = getattr(self, split, None) if split in ("train", "test") else None
        if data is None:
            have = " and ".join(self.splits) or "none"
            other = f", or measure with split={self.splits[0]!r}" if self.splits else ""
            raise MissingSplitError(
                f"the task has no {split!r} data (it has: {have}); give Task(..., {split}=...){other}"
            )
        max_samples = self.max_samples if max_samples is None else max_samples
        seed = self.seed if seed is None else seed
        key = (split, id(data), max_samples, seed, self.batch_size, self.rebatch)
        if key not in self._draws:
            self._draws[key] = draw_batches(
                data,
                split=split,
                max_samples=max_samples,
                seed=seed,
                batch_size=self.batch_size,
                rebatch=self.rebatch,
            )
        return self._draws[key]

    @classmethod
    def from_lightning(cls, module: Any, datamodule: Any, **settings: Any) -> Task:
        """Return a Task from a LightningModule and a LightningDataModule (or a dict of loaders).

        The loss is the one that `module.training_step` returns, evaluated in eval mode; see
        `landscape.adapters.lightning_task`.
        """
        from .adapters import lightning_task

        return lightning_task(module, datamodule, **settings)

    @classmethod
    def from_transformers(
        cls, model: Any, dataset: Any, collator: Any = None, *, test: Any = None, **settings: Any
    ) -> Task:
        """Return a Task from a Transformers model that computes its own loss, a dataset and a collator.

        See `landscape.adapters.transformers_task`.
        """
        from .adapters import transformers_task

        return transformers_task(model, dataset, collator, test=test, **settings)

    def __repr__(self) -> str:
        loss = self.loss if self.loss is not None else self.batch_loss
        label = getattr(loss, "__name__", type(loss).__name__)
        return f"Task({self.name or type(self.model).__name__}, loss={label}, splits={self.splits})"


def _replayable(data: Any) -> Any:
    """Wrap a one-shot iterator, so that a second draw finds the batches that the first one took."""
    if data is None or isinstance(data, Mapping | str) or not isinstance(data, Iterable):
        return data
    return Replay(data) if isinstance(data, Iterator) else data
