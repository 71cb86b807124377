"""Write checkpoints: whole or not at all, with the task that they name."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..durable import sync_folder
from ..errors import CheckpointError, MeasurementError
from ..parameters import unwrap
from ..plain import check_plain, plain_copy
from ..several import by_name
from ..task_files import TaskReference
from ..tasks import Task
from .naming import FORMAT, named, reference_to

if TYPE_CHECKING:
    from ..calibration.recalibrated import Recalibration


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
        task, made_with = named(task)
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
    own: dict[str, Any] = {"format": FORMAT, "version": _version(), "task": None, "facts": plain_copy(facts)}
    if task_loss and task is None:
        raise CheckpointError("task_loss belongs to a task; give task='file.py:name' too")
    if task is not None:
        known = task if isinstance(task, TaskReference) else reference_to(task)
        own |= {"task": known.reference, "settings": plain_copy(settings or {}), "task_sha256": known.sha256}
    if task_loss:
        own["task_loss"] = task_loss
    if recalibration is not None:
        from ..calibration.stored import pack

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
    sync_folder(target.parent)


def _version() -> str:
    from .. import __version__

    return __version__
