"""Weights out of every file that people have, safely, and into a model."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .checkpoints.contents import Contents, NeedsPickle, take_apart, without_ema
from .checkpoints.files import Found, read_file, unpickle_in_full
from .checkpoints.fit import Fitted, fit
from .checkpoints.folders import ADAPTERS, read_adapter, read_folder, read_index, shard_of
from .checkpoints.naming import reference_in
from .errors import CheckpointError
from .parameters import unwrap
from .task_files import TaskReference
from .tasks import Task

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What one checkpoint holds, on the CPU and in the dtypes of the file.

    Attributes:
        path: as it was given.
        weights: {name: tensor}; after `load_checkpoint` under the model's names.
        optimizers: the state_dict of each optimizer ("state" and "param_groups", in the file's order) by its name in
            the file; one alone is called "". Files of `save_checkpoint` carry the parameters' names as "param_names" in
            each group; after `load_checkpoint` they are the model's.
        step, epoch: whole numbers, or None where the file has none.
        facts: the plain (JSON-able) values found beside the weights: loss, schedule, lr, hyper_parameters, ...
        task: the task that the checkpoint names, or None.
        notes: everything that a user should hear of: a prefix removed, averaged weights that are there too,
            classes made inert, dtypes converted.
        chosen: the `weights` that it was read with.
    """

    path: str
    weights: dict[str, torch.Tensor]
    optimizers: dict[str, dict[str, Any]]
    step: int | None
    epoch: int | None
    facts: dict[str, Any]
    task: TaskReference | None
    notes: tuple[str, ...]
    chosen: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted names, shapes, dtypes and bytes of the weights, hexadecimal.

        Computed when it is first asked for, because it costs about three times as much as reading the file.
        """
        return fingerprint_of(self.weights)

    @property
    def optimizer(self) -> dict[str, Any] | None:
        """The state of the optimizer, of the first one where there are several; None where there is none."""
        return next(iter(self.optimizers.values()), None)

    def __repr__(self) -> str:
        several = f"optimizers {', '.join(self.optimizers)}" if len(self.optimizers) > 1 else "optimizer"
        have = [f"{len(self.weights)} tensors", *([several] if self.optimizers else [])]
        have += [f"{n} {v}" for n, v in (("step", self.step), ("epoch", self.epoch)) if v is not None]
        return f"Checkpoint({self.path!r}, {', '.join(have)})"


def fingerprint_of(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 over the sorted names, shapes, dtypes and bytes of weights, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checkpoint(
    path: str | os.PathLike[str], *, weights: str | None = None, trust_pickle: bool = False
) -> Checkpoint:
    """Return what a checkpoint holds, without a task or model.

    Reads .pt, .pth, .ckpt and .bin files (a state_dict, or one under model, state_dict, model_state_dict, ema,
    ...; Lightning checkpoints), .safetensors, folders of sharded files with their index, Transformers, Diffusers
    and Accelerate folders, and torch.distributed.checkpoint folders.

    Args:
        path: a file or a folder.
        weights: "ema" or "model" where both are there (default: model), else the name of an entry ("generator")
            or a prefix of the names ("student.").
        trust_pickle: run the code in the file where its weights cannot be had otherwise. Only for your own files.

    Safety: weights load with `weights_only=True`; where unknown classes stand beside them, those become inert
    objects that call nothing, and are named in the notes. Cost: one read of the file (two with strangers).

    Raises CheckpointError for what is missing, damaged, no checkpoint, ambiguous, or would have to run code.
    """
    return read_for(None, path, weights, trust_pickle)


def read_for(
    model: nn.Module | None, path: str | os.PathLike[str], weights: str | None = None, trust_pickle: bool = False
) -> Checkpoint:
    """Return the same for this model, unwrapped: its parts that lie in several entries are put together."""
    where = Path(path)
    found = _find(where, trust_pickle)
    try:
        parts = take_apart(found.value, weights=weights, model=model)
    except NeedsPickle as error:
        if not trust_pickle or where.is_dir():
            raise CheckpointError(f"{path} is refused: {error}") from None
        found = unpickle_in_full(where)
        parts = _apart(found, weights, path, model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if (shards := shard_of(where)) is not None:
        raise CheckpointError(f"{path} is one of {shards} shards; give its folder ({where.parent})")
    return replace(_checkpoint(str(path), found, parts), chosen=weights)


def load_checkpoint(
    path: str | os.PathLike[str] | Checkpoint,
    task: Task | nn.Module,
    *,
    weights: str | None = None,
    trust_pickle: bool = False,
) -> Checkpoint:
    """Read a checkpoint and load its weights, strictly, INTO `task.model`, which is changed in place.

    The names are fitted first: one common prefix whose removal makes them equal (`module.`, `_orig_mod.`,
    `model.`, ...) is removed, tied weights stored once are filled in, and both are said in the notes; see
    `landscape.checkpoints.fit.fit`. Parts of the model in several entries of a file, {"encoder": ..., "decoder": ...},
    are put together where they fit exactly. A model inside DistributedDataParallel, DataParallel or torch.compile is
    unwrapped. The weights are converted to the model's dtypes; those of the Checkpoint returned stay as in the
    file. Nothing is changed when anything does not fit.

    Args: `path` may also be what `read_checkpoint` returned, which is then not read again (`weights` and
    `trust_pickle` have been decided there); `task` is a Task or a module; the others as in `read_checkpoint`.
    Raises CheckpointError as `read_checkpoint`, and naming the missing, extra and misshapen keys.
    """
    model = unwrap(task if isinstance(task, nn.Module) else task.model)
    checkpoint = path if isinstance(path, Checkpoint) else read_for(model, path, weights, trust_pickle)
    fitted, notes = _fitted(checkpoint, model)
    with torch.no_grad():
        model.load_state_dict(fitted.weights, strict=False)  # fit() made sure that only counters are absent
    broken = [k for k, v in fitted.weights.items() if v.is_floating_point() and not _finite(v)]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        notes = (*notes, f"NaN or infinite values in {', '.join(broken[:3])}{more}")
    optimizers = {n: _renamed(o, lambda k: fitted.names.get(k, k)) for n, o in checkpoint.optimizers.items()}
    return replace(checkpoint, weights=fitted.weights, optimizers=optimizers, notes=(*checkpoint.notes, *notes))


def _find(path: Path, trust: bool) -> Found:
    if path.is_dir():
        return read_folder(path, trust_pickle=trust)
    if path.name.endswith(".index.json") and path.is_file():
        return read_index(path, trust_pickle=trust)
    if path.name in ADAPTERS:
        return read_adapter(path, trust_pickle=trust)
    return read_file(path, trust_pickle=trust)


def _apart(found: Found, weights: str | None, path: Any, model: nn.Module | None) -> Contents:
    try:
        return take_apart(found.value, weights=weights, model=model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _checkpoint(path: str, found: Found, parts: Contents) -> Checkpoint:
    notes = [*found.notes, *parts.notes]
    facts = {**found.facts, **parts.facts}
    task = None
    if parts.own is not None:
        own_facts = parts.own.get("facts")
        facts |= own_facts if isinstance(own_facts, dict) else {}
        task = reference_in(parts.own, notes)
        if "recalibration" in parts.own:
            notes.append(
                "a recalibration lies beside the weights, and is not applied: landscape.load_recalibration reads it"
            )
    step = parts.step if parts.step is not None else facts.pop("global_step", None)
    epoch = parts.epoch
    if epoch is None and isinstance(facts.get("epoch"), float) and facts["epoch"].is_integer():
        epoch = int(facts.pop("epoch"))
    optimizers = _with_names(parts.optimizers, parts.own or {})
    if parts.prefix:
        optimizers = {n: _renamed(o, lambda k: k.removeprefix(parts.prefix)) for n, o in optimizers.items()}
    return Checkpoint(path, parts.weights, optimizers, step, epoch, facts, task, tuple(notes))


def _with_names(optimizers: Mapping[str, dict[str, Any]], own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the states with the names of their parameters, where `save_checkpoint` kept them beside."""
    each = own.get("optimizers_parameters")
    names = each if isinstance(each, Mapping) and len(optimizers) > 1 else {"": own.get("optimizer_parameters")}
    return {key: _named_groups(state, names.get(key)) for key, state in optimizers.items()}


def _named_groups(optimizer: dict[str, Any], names: Any) -> dict[str, Any]:
    if not isinstance(names, list) or len(names) != len(optimizer["param_groups"]):
        return optimizer
    groups = [
        {**g, "param_names": list(n)} if isinstance(n, list) and len(n) == len(g.get("params", ())) else g
        for g, n in zip(optimizer["param_groups"], names, strict=True)
    ]
    return {**optimizer, "param_groups": groups}


def _renamed(optimizer: dict[str, Any], to: Callable[[str], str]) -> dict[str, Any]:
    """Return a state whose groups' names of parameters are changed like those of the weights."""
    groups = [
        {**g, "param_names": [to(str(n)) for n in g["param_names"]]} if "param_names" in g else g
        for g in optimizer["param_groups"]
    ]
    return {**optimizer, "param_groups": groups}


def _fitted(checkpoint: Checkpoint, model: nn.Module) -> tuple[Fitted, tuple[str, ...]]:
    """Fit the weights; where averaged weights stand among them, and only without these, those are left out."""
    try:
        fitted = fit(checkpoint.weights, model)
        return fitted, fitted.notes
    except CheckpointError as error:
        part = without_ema(checkpoint.weights)
        if part is not None:
            with contextlib.suppress(CheckpointError):
                fitted = fit(part[1], model)
                return fitted, (f"the averaged weights under {part[0]!r} are left out", *fitted.notes)
        raise CheckpointError(f"{checkpoint.path} {error}") from None


def _finite(value: torch.Tensor) -> bool:
    # A sum is one cheap pass; where it overflows, the exact look decides.
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())
