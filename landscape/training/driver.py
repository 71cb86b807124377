"""Drive named scalars of a training through their schedules, and say at each step which values are in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import TrainingError
from .loss import NamedLoss
from .registries import schedules as registry
from .registry import nearest
from .schedule import Progress, Schedule
from .weighted import WeightedLoss

#: Names for the two parts of Adam's betas.
_BETAS = {"beta1": 0, "beta2": 1}


def drive(
    optimizer: Optimizer | None,
    schedules: Mapping[str, Schedule | str],
    total_steps: int,
    *,
    steps_per_epoch: int = 1,
    loss: Any = None,
    values: Mapping[str, float] | None = None,
) -> Driver:
    """Return a driver of named scalars; call `driver.step()` before each optimizer step.

        driver = drive(optimizer, {"lr": "warmup_cosine", "clip": "ramp(5, 1)"}, total, values={"clip": 5.0}, loss=loss)
        for batch in batches:
            now = driver.step()                  # sets them, and returns what is in force: {"lr": 0.1, "clip": 5.0}
            ...

    A name is one of: a number of the optimizer's groups (lr, weight_decay, momentum, eps ...; beta1 and beta2 for the
    parts of betas); `loss.SETTING` or, in a weighted sum, `loss.TERM.SETTING` (loss.gamma, loss.label_smoothing); or a
    name in `values`, which is not set anywhere: the loop takes it from what `step` returns (a clipping norm, a share of
    examples, a number of layers). Weights that a weighted sum schedules follow by themselves, as `weight.TERM`.

    A schedule that multiplies (cosine, step ...) multiplies what the scalar is now; one of values (ramp, stages ...)
    sets it.

    Args:
        optimizer: whose groups are driven; each keeps its own base value, a group that is added later the one that it
            comes with. None where only others are.
        schedules: name -> schedule, or its string.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: for schedules that count epochs.
        loss: the loss whose settings or weights are driven.
        values: name -> base value of scalars that the loop itself applies.

    Raises TrainingError for an unknown name (the nearest ones are offered), a schedule longer than the run, and a
    factor on a base value of 0.
    """
    made = {n: registry.build(s) if isinstance(s, str) else s for n, s in schedules.items()}
    return Driver(optimizer, made, total_steps, steps_per_epoch, loss, values or {})


class Driver:
    """See `drive`. `notes` say what is worth knowing about the schedules in this run, `in_force` the last values."""

    def __init__(
        self,
        optimizer: Optimizer | None,
        schedules: Mapping[str, Schedule],
        total: int,
        steps_per_epoch: int,
        loss: Any,
        values: Mapping[str, float],
    ) -> None:
        self.total, self.steps_per_epoch = total, steps_per_epoch
        self.schedules = dict(schedules)
        #: Steps that were taken.
        self.taken = 0
        self.in_force: dict[str, float] = {}
        self._optimizer, self._loss, self._values = optimizer, loss, dict(values)
        found: list[str] = []
        for schedule in self.schedules.values():
            found += schedule.check(total, steps_per_epoch)
        if isinstance(loss, WeightedLoss):
            found += loss.check(total, steps_per_epoch)
        self.notes = tuple(found)
        self._bases = {name: self._base(name) for name in self.schedules}
        for name, schedule in self.schedules.items():
            if schedule.relative and not any(self._bases[name].values()):
                raise TrainingError(
                    f"{name} is 0, and {schedule} multiplies it: nothing would change; give it a value first, or a "
                    "schedule of values such as ramp(0, 0.1)"
                )

    # ----------------------------------------------------------------------------------------------- running

    def step(self) -> dict[str, float]:
        """Set every scalar for the coming optimizer step, and return the values in force by name.

        Groups with values of their own give name, name.1, name.2 ... Raises TrainingError after the last step, and for
        a group without the number that is driven.
        """
        if self.taken >= self.total:
            raise TrainingError(
                f"the run goes on after its {self.total} steps, and its schedules have ended: they are shorter than "
                "the run; give drive the true number of steps"
            )
        progress = Progress(self.taken, self.total, self.steps_per_epoch)
        now: dict[str, float] = {}
        for name, schedule in self.schedules.items():
            value = schedule(progress)
            targets = {k: value * base if schedule.relative else value for k, base in self._bases_now(name).items()}
            self._set(name, targets)
            first = next(iter(targets.values()))
            alike = all(v == first for v in targets.values())
            now |= {name: first} if alike else targets
        if isinstance(self._loss, WeightedLoss):
            now |= {f"weight.{n}": w for n, w in self._loss.advance(progress).items()}
        self.taken += 1
        self.in_force = now
        return dict(now)

    def observe(self, metric: float) -> None:
        """Tell the schedules that look at a metric (plateau) its value, usually once an epoch."""
        for schedule in self.schedules.values():
            if schedule.stateful:
                schedule.observe(metric)  # type: ignore[attr-defined]

    def finish(self) -> None:
        """Raise TrainingError where the run ended before its schedules did: their last part was never reached."""
        if self.taken < self.total:
            raise TrainingError(
                f"the run ended after {self.taken} of its {self.total} steps: the schedules are longer than the run, "
                "and their end was never reached"
            )

    # ----------------------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: where it stands, the base values, and what plateaus have seen."""
        states = {n: s.state_dict() for n, s in self.schedules.items() if s.stateful}  # type: ignore[attr-defined]
        return {
            "taken": self.taken,
            "total": self.total,
            "steps_per_epoch": self.steps_per_epoch,
            "schedules": {n: repr(s) for n, s in self.schedules.items()},
            "bases": {n: dict(b) for n, b in self._bases.items()},
            "states": states,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; the next `step` sets the values of the next step.

        Raises TrainingError where the run or its schedules are others than those that were saved.
        """
        mine = self.state_dict()
        for what in ("total", "steps_per_epoch", "schedules"):
            if state[what] != mine[what]:
                raise TrainingError(
                    f"the saved run has {what} {state[what]}, this one {mine[what]}: it can't be resumed"
                )
        self.taken = int(state["taken"])
        self._bases = {n: dict(b) for n, b in state["bases"].items()}
        for name, saved in state["states"].items():
            self.schedules[name].load_state_dict(saved)  # type: ignore[attr-defined]

    # ----------------------------------------------------------------------------------------------- scalars

    def _base(self, name: str) -> dict[str, float]:
        """Return the base value of a scalar, one for each group of the optimizer."""
        if name in self._values:
            return {name: float(self._values[name])}
        if name.startswith("loss."):
            return {name: float(self._setting(name)[0]())}
        groups = self._optimizer.param_groups if self._optimizer is not None else []
        if groups and (name in _numbers(groups[0])):
            return {_key(name, i): _number(g, i, name) for i, g in enumerate(groups)}
        known = [*self._values, *(_numbers(groups[0]) if groups else ()), *self._loss_names()]
        raise TrainingError(
            f"nothing here is called {name!r}{nearest(name, known)} (a scalar that the loop itself applies is given "
            f"with its base value: values={{{name!r}: ...}})"
        )

    def _bases_now(self, name: str) -> dict[str, float]:
        """Return the base values of the groups that the optimizer has now; one that came since has its own."""
        bases = self._bases[name]
        if name in self._values or name.startswith("loss.") or self._optimizer is None:
            return bases
        groups = self._optimizer.param_groups
        for i, group in enumerate(groups):
            if _key(name, i) not in bases:
                base = _number(group, i, name)
                # A rate that is a tensor is the optimizer's default, too: by now it holds what it was driven to.
                same = (j for j in range(i) if isinstance(group.get(name), torch.Tensor))
                shared = next((j for j in same if groups[j].get(name) is group[name]), None)
                bases[_key(name, i)] = base if shared is None else bases[_key(name, shared)]
        return {_key(name, i): bases[_key(name, i)] for i in range(len(groups))}

    def _set(self, name: str, targets: Mapping[str, float]) -> None:
        if name in self._values:
            return
        if name.startswith("loss."):
            self._setting(name)[1](targets[name])
            return
        assert self._optimizer is not None
        for group, value in zip(self._optimizer.param_groups, targets.values(), strict=True):
            if name in _BETAS and name not in group:
                betas = list(group["betas"])
                betas[_BETAS[name]] = value
                group["betas"] = tuple(betas)
            elif isinstance(group[name], torch.Tensor):  # capturable optimizers keep the learning rate on the device
                group[name].fill_(value)
            else:
                group[name] = value

    def _loss_names(self) -> list[str]:
        if isinstance(self._loss, WeightedLoss):
            parts = self._loss.parts.items()
            return [f"loss.{n}.{s}" for n, part in parts for s in _settings(part)]
        return [f"loss.{s}" for s in _settings(self._loss)] if self._loss is not None else []

    def _setting(self, name: str) -> tuple[Callable[[], float], Callable[[float], None]]:
        """Return how a setting of the loss is read and set."""
        if name not in self._loss_names():
            raise TrainingError(f"the loss has nothing called {name!r}{nearest(name, self._loss_names())}")
        *path, setting = name.split(".")[1:]
        part = self._loss.parts[".".join(path)] if path else self._loss
        if isinstance(part, NamedLoss):
            return lambda: part.settings[setting], lambda v: part.settings.__setitem__(setting, v)
        return lambda: getattr(part, setting), lambda v: setattr(part, setting, v)


def _key(name: str, group: int) -> str:
    return name if group == 0 else f"{name}.{group}"


def _number(group: Mapping[str, Any], number: int, name: str) -> float:
    """Return what a group of the optimizer has under this name."""
    found = _numbers(group)
    if name not in found:
        raise TrainingError(
            f"group {number} of the optimizer has no {name} to be driven, it has {', '.join(found) or 'no number'}; "
            f"give it one: {{'params': ..., {name!r}: ...}}"
        )
    return found[name]


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a parameter group that can be driven."""
    found = {}
    for name, value in group.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number or (isinstance(value, torch.Tensor) and value.numel() == 1 and name != "params"):
            found[name] = float(value)
    if "betas" in group:
        found |= {n: float(group["betas"][i]) for n, i in _BETAS.items()}
    return found


def _settings(loss: Any) -> list[str]:
    """Return the settings of a loss that are numbers."""
    chosen = loss.settings if isinstance(loss, NamedLoss) else vars(loss) if isinstance(loss, nn.Module) else {}
    return [
        n
        for n, v in chosen.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and not n.startswith("_") and n != "training"
    ]
