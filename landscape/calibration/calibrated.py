"""A calibrated model to use: the recalibration behind a model's outputs, and the file that carries it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoints.files import read_file
from ..checkpoints.writing import save_checkpoint
from ..errors import CheckpointError, LandscapeError
from .maps import PARAMETERS
from .recalibrated import Recalibration, apply_map
from .stored import unpack


class Calibrated(nn.Module):
    """A model whose outputs are calibrated: `recalibration.apply(model(...))`, in the precision of the outputs.

    Args:
        model: returns class scores as the recalibration takes them (`recalibration.input`): a tensor, or a mapping or
            object with `logits`, of which a copy with calibrated logits is returned.
        recalibration: of `recalibrate` or `load_recalibration`.
        class_dim: where the classes lie (1: torch; -1 for Transformers' (n, length, C)).

    Logits stay logits: argmax, softmax and losses go on as before. The map's parameters are buffers in float64: they
    move with `.to(device)`, and are in the state_dict; gradients flow through to the model. Cost: one elementwise pass
    for temperature and vector scaling, a search in the knots of each class for the others.

    Raises MeasurementError in `forward` where the outputs have another number of classes.
    """

    def __init__(self, model: nn.Module, recalibration: Recalibration, *, class_dim: int = 1) -> None:
        super().__init__()
        self.model = model
        self.method = recalibration.method
        self.input = recalibration.input
        self.binary = bool(recalibration.binary)
        self.classes = int(recalibration.classes)
        self.class_dim = class_dim
        for name, value in recalibration.parameters.items():
            self.register_buffer(name, torch.from_numpy(np.array(value)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.model(*args, **kwargs)
        if isinstance(outputs, torch.Tensor):
            return self._calibrated(outputs)
        found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        if not isinstance(found, torch.Tensor):
            raise LandscapeError(
                f"the model returned a {type(outputs).__name__}, expected a tensor, or a mapping or object with logits"
            )
        changed = copy.copy(outputs)
        if isinstance(changed, Mapping):
            changed["logits"] = self._calibrated(found)  # type: ignore[index]
        else:
            changed.logits = self._calibrated(found)
        return changed

    def _calibrated(self, scores: torch.Tensor) -> torch.Tensor:
        found = apply_map(
            scores,
            self.method,
            {name: getattr(self, name) for name in PARAMETERS[self.method]},
            binary=self.binary,
            classes=self.classes,
            given=self.input,
            wanted=self.input,
            class_dim=self.class_dim,
        )
        return found.to(scores.dtype)

    def extra_repr(self) -> str:
        return f"method={self.method!r}, input={self.input!r}, classes={self.classes}"


def save_recalibration(path: str | os.PathLike[str], recalibration: Recalibration) -> None:
    """Write a recalibration alone; `save_checkpoint(path, model, recalibration=...)` writes it beside the weights.

    The file appears whole or not at all, and opens with `torch.load(path, weights_only=True)`. Raises CheckpointError
    for a path that cannot be written.
    """
    save_checkpoint(path, {}, recalibration=recalibration)


def load_recalibration(path: str | os.PathLike[str]) -> Recalibration:
    """Return the recalibration that a checkpoint of ours holds (`landscape calibrate -o`, `save_checkpoint`).

    Nothing in the file is executed. The map comes back with its scores before and after. Three lines make a calibrated
    model of a checkpoint::

        landscape.load_checkpoint("calibrated.pt", model)
        model = landscape.Calibrated(model, landscape.load_recalibration("calibrated.pt"))
        probabilities = model(x).softmax(dim=1)

    Raises CheckpointError for a file that is missing, damaged, or holds no recalibration.
    """
    held = read_file(Path(path)).value
    own = held.get("landscape") if isinstance(held, Mapping) else None
    packed = own.get("recalibration") if isinstance(own, Mapping) else None
    if not isinstance(packed, Mapping):
        raise CheckpointError(
            f"{path} holds no recalibration; write one with landscape calibrate {Path(path).name} -o calibrated.pt"
        )
    try:
        return unpack(packed)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the recalibration in {path} is damaged or unknown: {error}; write it again") from error
