"""Tasks out of Lightning modules and Transformers models: what they already say is not asked again.

Both kinds of model compute their own loss. Where a standard loss of the model's outputs reproduces it on the first
batch, the task is built from that loss: its weights are known, and Gauss-Newton works. Otherwise the model's own loss
is taken as it is (`batch_loss`), and the objective verifies its weights.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from .data import first_line
from .errors import LandscapeError, ObjectiveError, TaskError
from .labels import default_prediction
from .objective import Objective
from .parameters import unwrap
from .reduction import torch_loss_settings
from .tasks import Task

# A loss summed in another order differs by rounding, by less than this (relative; chosen by us): a weak regularizer
# beside a standard loss must not be taken for rounding, so that the comparison is made in float64 where it can be.
SAME_LOSS = {torch.float64: 1e-11, torch.float32: 1e-5}
# Up to so many parameters (0.8 GB in float64, chosen by us).
SMALL = 100_000_000

Forward = Callable[[nn.Module, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class _Standard:
    """A way to compute the model's loss from its outputs: `forward` gives (outputs, target) for `loss`."""

    name: str
    forward: Forward
    loss: Callable[..., Any]


def transformers_task(model: Any, dataset: Any, collator: Any = None, *, test: Any = None, **settings: Any) -> Task:
    """Return a Task from a Transformers model, a dataset and a collator.

    Args:
        model: any model whose forward takes `labels` and returns its loss.
        dataset: a map-style dataset (or a list) of feature dicts, or a DataLoader of ready batches.
        collator: makes a batch of features; `transformers.default_data_collator` if None.
        test: held-out data of the same form.
        settings: further arguments of Task (`batch_size` 8 by default, as Trainer's).

    Costs one forward pass over a small first batch. Raises TaskError for a model that returns no loss, or whose
    attention kernel lies outside PyTorch and cannot be differentiated twice.
    """
    transformers = _need("transformers")
    inner = unwrap(model)
    attention = getattr(getattr(inner, "config", None), "_attn_implementation", None)
    if isinstance(attention, str) and ("flash" in attention or attention == "flex_attention"):
        raise TaskError(
            f"the model runs its attention on {attention}, which has no second derivative: load it with "
            'from_pretrained(..., attn_implementation="sdpa")'
        )
    collate = _Columns(inner, collator or transformers.default_data_collator)
    batch_size = settings.pop("batch_size", 8)
    train, held_out = (_loader(d, collate, batch_size) for d in (dataset, test))
    settings.setdefault("name", type(inner).__name__)
    call = functools.partial(_call_transformer, takes_cache="use_cache" in _taken(inner))

    def own(model: nn.Module, batch: Any) -> torch.Tensor:
        outputs = call(model, batch)
        loss = getattr(outputs, "loss", None)
        if loss is None:
            raise TaskError(
                f"{type(model).__name__} returned no loss: the batch (keys {', '.join(batch)}) needs what its forward "
                "calls labels"
            )
        return loss

    own.__name__ = f"{type(inner).__name__}.loss"
    ignored = getattr(getattr(inner, "config", None), "semantic_loss_ignore_index", -100)
    shapes = (
        ("cross entropy of pixels", _upsampled, functools.partial(F.cross_entropy, ignore_index=ignored)),
        ("next-token cross entropy", _shifted, F.cross_entropy),
        ("token cross entropy", _tokens, F.cross_entropy),
        ("cross entropy", _plain, F.cross_entropy),
        ("binary cross entropy", _plain, F.binary_cross_entropy_with_logits),
        ("squared error", _squeezed, F.mse_loss),
    )
    standards = [_Standard(name, functools.partial(_from_logits, call, pair), loss) for name, pair, loss in shapes]
    return _build(model, own, standards, train, held_out, settings)


def lightning_task(module: Any, datamodule: Any, *, held_out: str = "val", **settings: Any) -> Task:
    """Return a Task from a LightningModule and a LightningDataModule.

    Args:
        module: its `training_step` gives the loss, evaluated in eval mode (mode="train" changes that).
        datamodule: `setup("fit")` is called, `prepare_data` is not: nothing is downloaded. A DataLoader, or a dict of
            loaders {"train": ..., "test": ...}, does as well.
        held_out: "val" (default: it is there for every module that validates) or "test": which loader of the
            datamodule gives the test split.
        settings: further arguments of Task.

    Costs one forward pass over the first batch. Raises TaskError for manual optimization, several loaders, a module
    that needs its Trainer to compute the loss.
    """
    _need("lightning", "pytorch_lightning")
    inner = unwrap(module)
    if not getattr(inner, "automatic_optimization", True):
        raise TaskError(
            f"{type(inner).__name__} optimizes manually: its training_step returns no loss to measure; "
            "give Task(module, batch_loss=...)"
        )
    train, test = _lightning_data(datamodule, held_out)
    settings.setdefault("name", type(inner).__name__)
    extra = ("batch_idx",) if len(_arguments(inner.training_step)) > 1 else ()

    def own(module: Any, batch: Any) -> Any:
        with _not_logging(module):
            loss = module.training_step(batch, *(0 for _ in extra))
        if isinstance(loss, Mapping):
            loss = loss.get("loss")
        if loss is None:
            raise TaskError(f"training_step of {type(module).__name__} returned no loss for a batch")
        return loss

    own.__name__ = f"{type(inner).__name__}.training_step"
    criteria = [m for m in inner.modules() if m is not inner and torch_loss_settings(m)]
    losses = [*criteria, F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss]
    standards = [_Standard(getattr(x, "__name__", type(x).__name__), _pair, x) for x in losses]
    return _build(module, own, standards, train, test, settings)


# ------------------------------------------------------------------------------------------- which loss is it


def _build(
    model: Any, own: Callable[..., Any], standards: list[_Standard], train: Any, test: Any, settings: dict[str, Any]
) -> Task:
    """Return a Task with the standard loss that equals the model's own on the first batch, else with its own."""
    shared = {**settings, "train": train, "test": test}
    plain = Task(model, batch_loss=own, **shared)
    if "predict" in settings or "forward" in settings or plain.mode == "train":
        return plain
    found, predict = _recognize(plain, own, standards)
    if found is not None:
        return Task(model, found.loss, forward=found.forward, **shared)
    return Task(model, batch_loss=own, predict=predict, **shared)


def _recognize(
    task: Task, own: Callable[..., Any], standards: list[_Standard]
) -> tuple[_Standard | None, Callable[..., Any] | None]:
    """Return the standard loss that the model computes, and a predict for a model that computes another one."""
    found: list[_Standard] = []
    predicts: list[Forward] = []

    def look(model: nn.Module, batch: Any) -> tuple[torch.Tensor, float]:
        expected = own(model, batch)
        value = float(expected.detach())
        for standard in standards:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of targets that don't fit the losses that are tried
                    outputs, target = standard.forward(model, batch)
                    mine = float(standard.loss(outputs, target))
            except Exception:  # a loss that does not even fit these outputs is not theirs
                continue
            if abs(mine - value) <= SAME_LOSS.get(expected.dtype, 1e-5) * max(abs(value), 1e-3):
                found.append(standard)
                break
            if default_prediction(outputs, target, None) is not None:
                predicts.append(standard.forward)
        return expected, 1.0

    batch = _first(task.draw("train", max_samples=_PROBE).batches)
    # An iterator gives batches, where a list of one could be read as one of samples (a dict with a flag in it).
    probe = task.replace(batch_loss=look, train=iter([batch]), test=None)
    if sum(p.numel() for p in task.model.parameters()) <= SMALL:
        # A model that casts to float32 inside fails in float64, and is compared in its own precision; so is one that
        # DistributedDataParallel trains.
        with contextlib.suppress(TaskError, ObjectiveError), Objective(probe.replace(dtype=torch.float64)):
            return (found[0] if found else None), (predicts[0] if predicts else None)
        found.clear()
        predicts.clear()
    with Objective(probe):
        pass
    return (found[0] if found else None), (predicts[0] if predicts else None)


#: Samples of the first batch that is looked at: two different losses agree on so many by chance in no model.
_PROBE = 8


def _first(batches: Any) -> Any:
    return next(iter(batches))


def _pair(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    x, y = batch
    return model(x), y


def _from_logits(
    call: Callable[[nn.Module, Any], Any], pair: Callable[[Any, Any], tuple[Any, Any]], model: nn.Module, batch: Any
) -> tuple[Any, Any]:
    return pair(call(model, batch).logits, batch["labels"])


def _shifted(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each position predicts the next label; (n, classes, length) so that a sample keeps its row."""
    return logits[:, :-1].transpose(1, 2), labels[:, 1:]


def _tokens(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.transpose(1, 2), labels


def _plain(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits, labels


def _upsampled(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Segmentation models give logits (n, classes, h, w) for fewer pixels than there are labels (n, H, W)."""
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False), labels


def _squeezed(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.squeeze(-1), labels.squeeze(-1) if labels.ndim > 1 else labels


def _call_transformer(model: nn.Module, batch: Any, *, takes_cache: bool) -> Any:
    # A cache of keys and values is of use only to generation, and holds on to the graph.
    return model(**batch, use_cache=False) if takes_cache else model(**batch)


# ------------------------------------------------------------------------------------------------------ data


class _Columns:
    """A collator that first drops the columns that the model's forward doesn't take, as Trainer does."""

    def __init__(self, model: nn.Module, collator: Callable[[list[Any]], Any]) -> None:
        self.names = _taken(model) | {"label", "label_ids"}
        self.collator = collator

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        kept = [{k: v for k, v in f.items() if k in self.names} if isinstance(f, Mapping) else f for f in features]
        return dict(self.collator(kept))


def _loader(data: Any, collate: _Columns, batch_size: int) -> Any:
    if data is None or isinstance(data, DataLoader):
        return data
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TaskError(f"the dataset is a {type(data).__name__}; expected a list or map-style dataset of features")
    return DataLoader(data, batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]


def _lightning_data(source: Any, held_out: str) -> tuple[Any, Any]:
    if held_out not in ("val", "test"):
        raise TaskError(f"held_out={held_out!r} is not one of 'val', 'test'")
    if isinstance(source, Mapping):
        unknown = set(source) - {"train", "test"}
        if unknown:
            raise TaskError(f"the loaders have the key {sorted(unknown)[0]!r}; expected 'train' and 'test'")
        return source.get("train"), source.get("test")
    if not hasattr(source, "train_dataloader"):
        return source, None
    try:
        source.setup("fit")
        if held_out == "test":
            source.setup("test")
        train = source.train_dataloader()
        held = getattr(source, f"{held_out}_dataloader")()
    except LandscapeError:
        raise
    except Exception as error:
        raise TaskError(
            f"{type(source).__name__} failed to give its loaders: {type(error).__name__}: {first_line(error)} "
            "(prepare_data is not called: its files must be there)"
        ) from error
    return _one(train, "train"), _one(held, held_out)


@contextlib.contextmanager
def _not_logging(module: Any) -> Iterator[None]:
    """Let self.log() and self.log_dict() do nothing: outside of its Trainer's loop Lightning raises there."""
    names = ("log", "log_dict")
    held = {n: vars(module)[n] for n in names if n in vars(module)}
    try:
        vars(module).update(dict.fromkeys(names, _nothing))
        yield
    finally:
        for n in names:
            vars(module).pop(n, None)
        vars(module).update(held)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for a method whose effect is not wanted."""


def _one(loader: Any, name: str) -> Any:
    """Return the one loader of a datamodule's answer; none for an empty one."""
    if loader is None or (isinstance(loader, list | tuple | Mapping) and not loader):
        return None
    if isinstance(loader, list | tuple) and len(loader) == 1:
        return loader[0]
    if isinstance(loader, list | tuple | Mapping):
        raise TaskError(
            f"the datamodule gives {len(loader)} {name} loaders; choose: Task.from_lightning(module, "
            '{"train": ..., "test": ...})'
        )
    return loader


def _arguments(function: Any) -> tuple[str, ...]:
    """Return the names of what a function, or a module's forward, takes."""
    return tuple(inspect.signature(getattr(function, "forward", function)).parameters)


def _taken(model: nn.Module) -> set[str]:
    """Return the names of what a model's forward takes, those that a forward(*args, **kwargs) hides included."""
    inner = getattr(model, "get_base_model", None)  # PEFT's wrapper passes all on
    base = inner() if callable(inner) else model
    forwards = [vars(c)["forward"] for m in (model, base) for c in type(m).__mro__ if "forward" in vars(c)]
    return {name for f in forwards for name in _arguments(f)}


def _need(*packages: str) -> Any:
    """Import the first of these that is installed; say how to get it where none is."""
    for package in packages:
        try:
            return __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
    raise TaskError(f"{packages[0]} is not installed: pip install 'landscape-probe[{packages[0]}]'")
