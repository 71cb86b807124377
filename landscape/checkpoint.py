"""Weights out of every file that people have, safely; and checkpoints of our own that name their task."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
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
from .errors import CheckpointError, MeasurementError, TaskError
from .parameters import unwrap
from .plain import check_plain, plain_copy
from .several import by_name
from .task_files import TaskReference, file_sha256, resolve_reference
from .tasks import Task

if TYPE_CHECKING:
    from .calibration.recalibrated import Recalibration

_FORMAT = 1


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


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module | Mapping[str, torch.Tensor],
    *,
    task: str | Task | TaskReference | None = None,
    settings: Mapping[str, Any] | None = None,
    task_loss: str = "",
    optimizer: torch.optim.Optimizer
    | Sequence[torch.optim.Optimizer]
    | Mapping[str, torch.optim.Optimizer]
    | None = None,
    step: int | None = None,
    epoch: int | None = None,
    recalibration: Recalibration | None = None,
    further: Mapping[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Write a checkpoint that names its task, so that `landscape probe` needs nothing else.

    The file appears whole or not at all: it is written beside the target, flushed to disk and renamed. Anybody
    reads it with `torch.load(path, weights_only=True)`: keys "model", "optimizer", "step", "epoch" and
    "landscape" (format, version, task, settings, task_sha256, parameter names of the optimizer, facts). Of several
    optimizers "optimizer" is the first one's state, and "optimizers" {name: state} of all.

    Args:
        path: the file; its folder exists. A file that is there is replaced.
        model: the network (unwrapped where it is compiled or data-parallel), or its state_dict.
        task: "file.py:name", a function marked @task in a file below the current directory, or a task of
            landscape itself ("landscape.probes.demo.digits:digits"); or a Task that such a function made; or the
            TaskReference that another checkpoint holds, or `reference_to` found: it isn't looked up again.
        settings: plain values that the task was called with; those of a Task and of a TaskReference are known.
        task_loss: a loss of the registry that stood in for the task's own, such as "focal(gamma=2)": `landscape probe`
            measures with it (a fact `loss=` is only shown).
        optimizer: its state is kept, with the names of its parameters. Of several, a list or {name: optimizer}; those
            of a list are called by their class where each is of another, else "0", "1", ...
        recalibration: of `recalibrate`, for this model; `load_recalibration` gives it back.
        facts: plain values (text, numbers, True, None, lists and dicts of these), such as loss="focal".
        further: facts whose names are those of arguments here, such as {"optimizer": "sgd(momentum=0.9)"}.

    Raises CheckpointError for a task that a checkpoint may not name, sharded tensors, or a path that cannot be
    written; TypeError for facts or settings that are not plain, and for what is no optimizer.
    """
    if isinstance(task, Task):
        task, made_with = _named(task)
        settings = made_with if settings is None else settings
    if isinstance(task, TaskReference):
        settings = task.settings if settings is None else settings
        task_loss = task_loss or task.loss
    for label, number in (("step", step), ("epoch", epoch)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise TypeError(f"{label} is a whole number or None, got {type(number).__name__}")
    facts = {**(further or {}), **facts}
    for label, values in (("settings", dict(settings or {})), ("facts", facts)):
        for name, value in values.items():
            check_plain(value, f"{label} {name!r}")
    if settings and task is None:
        raise CheckpointError("settings belong to a task; give task='file.py:name' too")
    own: dict[str, Any] = {"format": _FORMAT, "version": _version(), "task": None, "facts": plain_copy(facts)}
    if task_loss and task is None:
        raise CheckpointError("task_loss belongs to a task; give task='file.py:name' too")
    if task is not None:
        known = task if isinstance(task, TaskReference) else reference_to(task)
        own |= {"task": known.reference, "settings": plain_copy(settings or {}), "task_sha256": known.sha256}
    if task_loss:
        own["task_loss"] = task_loss
    if recalibration is not None:
        from .calibration.stored import pack

        own["recalibration"] = pack(recalibration)
    module = unwrap(model) if isinstance(model, nn.Module) else None
    content: dict[str, Any] = {
        "model": _to_cpu(dict(model) if isinstance(model, Mapping) else unwrap(model).state_dict())
    }
    several = _with_state(optimizer)
    if several:
        states = {name: _to_cpu(one.state_dict()) for name, one in several.items()}
        names = {name: _parameter_names(one, module) for name, one in several.items()}
        first = next(iter(several))
        content["optimizer"], own["optimizer_parameters"] = states[first], names[first]
        if len(several) > 1:
            content["optimizers"], own["optimizers_parameters"] = states, names
    content |= {"step": step, "epoch": epoch, "landscape": own}
    write_whole(path, content)


# Reading ------------------------------------------------------------------------------------------------------


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
        task = _reference(parts.own, notes)
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


def _reference(own: Mapping[str, Any], notes: list[str]) -> TaskReference | None:
    """Return the task that the file names; what is not text, or not plain, is somebody's trick or mistake."""
    if isinstance(own.get("format"), int) and own["format"] > _FORMAT:
        notes.append(f"written by a newer landscape ({own.get('version')}); what it added is not read")
    reference, settings, sha256 = own.get("task"), own.get("settings"), own.get("task_sha256")
    if reference is None:
        return None
    if not isinstance(reference, str) or not isinstance(settings, dict | None):
        notes.append("the task that the file names is no text with settings: ignored")
        return None
    loss = own.get("task_loss")
    known = (sha256 if isinstance(sha256, str) else None, loss if isinstance(loss, str) else "")
    return TaskReference(reference, dict(settings or {}), *known)


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


# Writing ------------------------------------------------------------------------------------------------------


def reference_of(task: Task) -> tuple[str, dict[str, Any]] | None:
    """Return ("file.py:name", settings) of the function that made a task; None where no checkpoint may name it."""
    try:
        return _named(task)
    except (CheckpointError, TypeError, OSError):  # the last where the current directory is gone
        return None


def _named(task: Task) -> tuple[str, dict[str, Any]]:
    """Return the same, or raise CheckpointError, or TypeError for settings that aren't plain, with the way out."""
    if task.made_by is None:
        raise CheckpointError(
            "expected a task that a function marked @task made, got one that was made otherwise (or changed since): "
            "give task='file.py:name'"
        )
    made = task.made_by
    if made.problem:
        raise TypeError(made.problem)
    if made.module in ("__main__", "__mp_main__"):  # the second is the script's name in processes that it starts
        raise CheckpointError(
            f"{made.name}() stands in the script that runs, which would run again where a checkpoint is measured: put "
            "it into a file of its own, or give task='file.py:name'"
        )
    if made.module.startswith("landscape."):
        reference = f"{made.module}:{made.name}"
    else:
        file = Path(made.file).resolve()
        below = file.is_relative_to(Path.cwd().resolve())
        reference = f"{file.relative_to(Path.cwd().resolve()).as_posix() if below else file}:{made.name}"
    try:
        resolve_reference(reference)
    except TaskError as error:
        said = str(error).replace("the checkpoint names", "the task is", 1)
        raise CheckpointError(f"a checkpoint cannot name this task: {said}") from error
    return reference, made.settings


def reference_to(task: str) -> TaskReference:
    """Return the task "file.py:name" as a checkpoint names it, with the SHA-256 of its file as it is now.

    Raises CheckpointError where no checkpoint may name it.
    """
    if not isinstance(task, str):
        raise TypeError(f"task is named as 'file.py:name', got {type(task).__name__}")
    try:
        file, _ = resolve_reference(task)
    except TaskError as error:
        said = str(error).replace("the checkpoint names", "task=", 1)
        raise CheckpointError(f"a checkpoint cannot name this task: {said}") from error
    return TaskReference(task, sha256=file_sha256(file))


def _to_cpu(state: Any) -> Any:
    """Return a state on the CPU, each tensor once (ties stay ties) and without the rest of a larger storage."""
    seen: dict[Any, torch.Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer):
                raise CheckpointError(
                    f"a {type(value).__name__} cannot be saved plainly; gather the whole state first "
                    "(torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True)"
                )
            key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device)
            if key not in seen or not value.numel():
                plain = value.detach().cpu()
                seen[key] = plain.clone() if plain.untyped_storage().nbytes() > plain.nbytes else plain
            return seen[key]
        if isinstance(value, Mapping):
            return {k: copied(v) for k, v in value.items()}
        return type(value)(map(copied, value)) if type(value) in (list, tuple) else value

    return copied(state)


def _with_state(optimizer: Any) -> dict[str, Any]:
    """Return the optimizers by name; TypeError for what has no state to save."""
    try:
        several = by_name(optimizer)
    except MeasurementError as error:
        raise CheckpointError(str(error)) from None
    for one in several.values():
        if not hasattr(one, "state_dict") or not hasattr(one, "param_groups"):
            raise TypeError(
                "optimizer is a torch.optim.Optimizer, a list of them or {name: optimizer}, got " + type(one).__name__
            )
    return several


def _parameter_names(optimizer: torch.optim.Optimizer, module: nn.Module | None) -> list[list[str]] | None:
    """Return the parameters' names in each group, in the optimizer's order; None where one has no name."""
    names = {id(p): n for n, p in module.named_parameters()} if module is not None else {}
    groups = [[names.get(id(p)) for p in g["params"]] for g in optimizer.param_groups]
    return None if any(n is None for g in groups for n in g) else groups  # type: ignore[return-value]


def write_whole(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a torch file that appears whole or not at all: beside its target, flushed to disk, renamed.

    Raises CheckpointError where it can't be written; what was there before is then untouched.
    """
    target = Path(os.path.realpath(path))  # a link (last.pt) stays a link
    if not target.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: the folder {target.parent} does not exist; make it first")
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:120]
        raise CheckpointError(f"{path} cannot be written: {reason}; what was there before is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, where the file system offers that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _version() -> str:
    from . import __version__

    return __version__
