"""A model led along a path: its losses at each position, straight between states or along a trained curve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..objective import Objective
from ..parameters import unwrap
from ..passes import Evaluation
from ..session import batchnorm_layers, recomputing
from ..tasks import Task
from .curve import Trained, train_middle
from .states import State, mixable, others

Tensors = Sequence[torch.Tensor]
#: Running mean and variance of each BatchNorm layer, in order.
Moments = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Found:
    """Of one split: an Evaluation at each position, and of each state with its own statistics."""

    points: list[Evaluation]
    states: list[Evaluation]
    samples: int
    notes: tuple[str, ...]


class Walk:
    """A model led along a path: weights, buffers and running statistics set at each position."""

    def __init__(
        self,
        task: Task,
        names: tuple[str, ...],
        states: Sequence[State],
        points: int,
        policy: str,
        accuracy: bool,
        progress: bool,
    ) -> None:
        self.task = task
        self.names = names
        self.states = states
        self.policy = policy
        self.accuracy = accuracy
        self.progress = progress
        self.passes = 0.0
        self.middles: list[list[torch.Tensor]] = []
        self._tied = names_of_tied(unwrap(task.model), names)
        self._moments: list[Moments] = []
        inner = np.linspace(0.0, 1.0, points)
        # (segment, t): the last point of a segment is the first one of the next, and evaluated once.
        self.positions = [(0, 0.0)] + [(s, float(t)) for s in range(len(states) - 1) for t in inner[1:]]

    @property
    def position(self) -> np.ndarray:
        return np.array([s + t for s, t in self.positions])

    def at(self, objective: Objective, segment: int, t: float) -> None:
        """Set parameters, frozen parameters and buffers to those of the path at t on a segment."""
        a, b = self.states[segment], self.states[segment + 1]
        first, last = a.chosen(self.names), b.chosen(self.names)
        if self.middles and 0 < t < 1:
            shares, ends = bezier_weights(t), (first, self.middles[segment], last)
        else:
            shares, ends = (1 - t, t), (first, last)
        set_mixed(objective.parameters, ends, shares)
        beside, measured = [others(s, self.names) for s in (a, b)], {id(p) for p in objective.parameters}
        with objective.writing() as live:
            for name, tensor in live.items():
                # Further names of tied parameters are none of their own: those have moved along the curve already.
                if name in beside[0] and id(tensor) not in measured and mixable(tensor):
                    set_mixed([tensor], [[o[name]] for o in beside], (1 - t, t))

    def recompute(self) -> None:
        """Estimate BatchNorm's statistics over the train draw at every position, and keep them."""
        with Objective(self.task, "train") as objective, self._bar("statistics", len(self.positions)) as bar:
            layers = batchnorm_layers(objective.model)
            for segment, t in self.positions:
                self.at(objective, segment, t)
                with objective.measuring(), recomputing(objective.model):
                    for i in range(len(objective)):
                        objective.value(i)
                objective.passes += 1
                self._moments.append([_moments(layer) for layer in layers])
                bar.update()
            self.passes += objective.passes

    def evaluate(self, split: str) -> Found:
        """Evaluate one split at every position, and every state as it is."""
        points, own = [], []
        with Objective(self.task, split) as objective:
            layers = batchnorm_layers(objective.model)
            with self._bar(f"path, {split}", len(self.positions)) as bar:
                for i, (segment, t) in enumerate(self.positions):
                    self.at(objective, segment, t)
                    if self._moments:
                        for layer, (mean, variance) in zip(layers, self._moments[i], strict=True):
                            layer.running_mean.copy_(mean)  # type: ignore[union-attr]
                            layer.running_var.copy_(variance)  # type: ignore[union-attr]
                    points.append(objective.evaluate(accuracy=self.accuracy, stderr=True))
                    bar.update()
            for i in range(len(self.states)):
                self.at(objective, min(i, len(self.states) - 2), float(i == len(self.states) - 1))
                own.append(objective.evaluate())
            self.passes += objective.passes
            has_labels = self.accuracy and objective.has_labels
            self.accuracy = has_labels
            return Found(points, own, objective.samples, objective.notes)

    def train(self, steps: int, rate: float, seed: int) -> list[Trained]:
        """Train the middle point of each segment's curve on the train draw."""
        made = []
        with Objective(self.task, "train") as objective:
            for segment in range(len(self.states) - 1):
                self.at(objective, segment, 0.5)  # buffers that batch statistics don't replace
                ends = [
                    [w.to(p.device, p.dtype) for w, p in zip(s.chosen(self.names), objective.parameters, strict=True)]
                    for s in self.states[segment : segment + 2]
                ]
                with self._bar(f"curve {segment + 1}", steps) as bar:
                    made.append(train_middle(objective, *ends, steps=steps, rate=rate, seed=seed, update=bar.update))
            self.passes += objective.passes
        self.middles = [m.middle for m in made]
        return made

    def distances(self) -> np.ndarray:
        """Return the Euclidean distance between the ends of each segment, over the trainable parameters."""
        return np.array(
            [
                math.sqrt(
                    sum(
                        float((b.weights[n].cpu().double() - a.weights[n].cpu().double()).square().sum())
                        for n in self.names
                    )
                )
                for a, b in itertools.pairwise(self.states)
            ]
        )

    def middle_states(self) -> list[dict[str, torch.Tensor]]:
        """Return each middle point as a state_dict on the CPU; its running statistics are those half way."""
        made = []
        for segment, middle in enumerate(self.middles):
            a, b = self.states[segment], self.states[segment + 1]
            state = {k: v.detach().clone() for k, v in a.weights.items()}
            for name, value in state.items():
                if mixable(value):
                    set_mixed([value], [[a.weights[name]], [b.weights[name]]], (0.5, 0.5))
            for name, value in zip(self.names, middle, strict=True):
                for tied in self._tied[name]:
                    if tied in state:
                        state[tied].copy_(value)
            made.append(state)
        return made

    def _bar(self, what: str, total: int) -> Any:
        return tqdm(total=total, desc=what, leave=False, disable=not self.progress)


def bezier_weights(t: float) -> tuple[float, float, float]:
    """Return the shares of first end, middle and last end of the quadratic Bezier curve at t."""
    return (1 - t) ** 2, 2 * t * (1 - t), t**2


def set_mixed(targets: Tensors, ends: Sequence[Tensors], shares: Sequence[float]) -> None:
    """Write sum_i shares_i * ends_i into the targets; a single end with share 1 arrives bit for bit."""
    with torch.no_grad():
        for j, target in enumerate(targets):
            parts = [(end[j].to(target.device, target.dtype), c) for end, c in zip(ends, shares, strict=True) if c]
            if len(parts) == 1 and parts[0][1] == 1.0:
                target.copy_(parts[0][0])
                continue
            torch.mul(parts[0][0], parts[0][1], out=target)
            for value, c in parts[1:]:
                target.add_(value, alpha=c)


def names_of_tied(model: nn.Module, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Return for each of these parameters all the names that the model has it under."""
    every = dict(model.named_parameters(remove_duplicate=False))
    return {name: [n for n, p in every.items() if p is every[name]] for name in names}


def _moments(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.running_mean.clone(), layer.running_var.clone()
