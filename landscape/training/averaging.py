"""Averages of a training's weights by name, and the running average itself: torch.optim.swa_utils does both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from ..errors import TrainingError
from ..session import batchnorm_layers
from .expressions import parse_call
from .registry import Entry, Registry, options_of
from .schedule import checked_position, moment


@dataclass(frozen=True)
class Average:
    """How weights are averaged: whether those after a step are taken, and how they join the ones before.

    `due(step, total, per_epoch)` is asked behind each optimizer step, counted from 1; `join` is torch's.
    """

    due: Callable[[int, int, int], bool]
    join: Callable[..., None]


def ema(decay: float = 0.999) -> Average:
    """Exponential moving average of the weights after every step, begun with those after the first.

    average <- decay * average + (1 - decay) * weights, torch's `get_ema_multi_avg_fn`: the average of Tarvainen and
    Valpola 2017, section 2, with a decay that stays as it is (theirs is smaller at the beginning). Polyak and
    Juditsky's is the plain mean.
    """
    return Average(lambda step, total, per_epoch: True, get_ema_multi_avg_fn(decay))


def swa(start: float = 0.75) -> Average:
    """Plain mean of the weights at the ends of epochs, from a point of the run on."""
    checked_position(start, "start")

    def due(step: int, total: int, per_epoch: int) -> bool:
        return step % per_epoch == 0 and step // per_epoch > moment(start, total // per_epoch)

    return Average(due, get_swa_multi_avg_fn())


class Averages(Registry[Entry]):
    """Averages of the weights by name, with which trainings of a sweep may end: `landscape sweep --average`."""


averages = Averages("average", __name__)


def _add(make: Callable[..., Average], source: str, about: Mapping[str, tuple[str, str, str]]) -> None:
    doc = (make.__doc__ or "").split("\n")[0]
    averages.add(Entry(make.__name__, make, doc, source, options_of(make, about), "torch.optim.swa_utils"), make)


_add(
    ema,
    "Tarvainen and Valpola 2017, Mean teachers are better role models: Weight-averaged consistency targets improve "
    "semi-supervised deep learning results, arXiv:1703.01780; the decay is constant, as in torch",
    {"decay": ("share of the average that each step keeps", "PyTorch's default of get_ema_multi_avg_fn", "[0, 1)")},
)
_add(
    swa,
    "Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization, arXiv:1803.05407",
    {
        "start": (
            "share of the run, or epochs from 1 on, before it",
            "Izmailov et al. 2018: 75% of the budget",
            "[0, inf)",
        )
    },
)


class Averaging:
    """The running average of a network's weights over a training. `model` is the averaged network, a copy.

    Args:
        text: one of `averages` with its settings, such as "ema(decay=0.99)" or "swa(start=0.5)".
        model: the network that trains. total, per_epoch: optimizer steps of the run, and of an epoch.

    Raises TrainingError for an unknown name or setting, and for an average of less than two epochs.
    """

    def __init__(self, text: str, model: nn.Module, total: int, per_epoch: int) -> None:
        self.text = text
        self._rule: Average = averages.make(parse_call(text))
        self._total, self._per_epoch = total, per_epoch
        self._source = model
        if not any(self._rule.due(step, total, per_epoch) for step in (total - per_epoch, total - 1)):
            raise TrainingError(
                f"{text} averages the weights of one epoch of {total // per_epoch} at most: begin earlier, or train "
                "longer"
            )
        try:
            self._averaged = AveragedModel(model, multi_avg_fn=self._rule.join)
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(f"{text} needs a copy of the model, which can't be copied: {reason}") from error

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights, and the buffers of the one that trains."""
        return self._averaged.module

    @property
    def count(self) -> int:
        """How many weights were averaged so far."""
        return int(self._averaged.n_averaged)

    def stepped(self, step: int) -> None:
        """Take in the weights after this optimizer step, where it is one of the average's."""
        if self._rule.due(step, self._total, self._per_epoch):
            self._averaged.update_parameters(self._source)

    def estimate_statistics(self, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]) -> bool:
        """Estimate BatchNorm's running statistics anew at the averaged weights; return whether there are any.

        One pass in training mode, the mean over the batches (as Izmailov et al. 2018 do). `forward(model, batch)` is
        what a training step computes. Random numbers that the model draws are put back.
        """
        if not batchnorm_layers(self.model):
            return False
        with torch.random.fork_rng():
            update_bn(((batch,) for batch in batches), _Forward(self.model, forward))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the average as it stands."""
        return dict(self._averaged.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._averaged.load_state_dict(state)


class _Forward(nn.Module):
    """A network whose forward pass is a training step's, for `update_bn`, which knows of inputs alone."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, batch: Any) -> Any:
        return self._forward(self.model, batch)
