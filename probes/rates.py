"""The learning rate and its companions at each step, for each parameter group."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import torch

from landscape.widest import wide

from .probe import EVERY_STEP, Followed, Probe, Quantity, Run, Step
from .when import When

#: A learning rate that changes by more than this from one step to the next is an event (chosen by us: decay schedules
#: that are smooth stay far below, steps by a half or a tenth far above).
SWITCH = 1.5


class LearningRate(Probe):
    """`learning_rate`, `momentum` (beta_1 of Adam) and `weight_decay` of every parameter group, as the step uses them.

    A step of the learning rate by more than half again is noted as an event ("switch"). Costs a microsecond a group.
    """

    name = "rates"

    def __init__(self, when: When = EVERY_STEP) -> None:
        self.when = when
        #: By optimizer, the last learning rate and by how much it had changed then, if there was one before it.
        self._last: dict[str, tuple[float, float | None]] = {}

    def start(self, run: Run) -> Sequence[Quantity]:
        return [q for f in run.followed for q in _quantities(f)]

    def before(self, run: Run, step: Step) -> None:
        f = step.followed
        groups = f.optimizer.param_groups
        rates: list[Any] = [g.get("lr", nan) for g in groups]
        run.record(f"learning_rate{f.suffix}", step.number, _row(rates))
        run.record(f"momentum{f.suffix}", step.number, _row([_momentum(g) for g in groups]))
        run.record(f"weight_decay{f.suffix}", step.number, _row([g.get("weight_decay", nan) for g in groups]))
        first = rates[0]
        if type(first) is not float and isinstance(first, torch.Tensor):
            return
        last, change = self._last.get(f.name, (None, None))
        if last is None:
            self._last[f.name] = (first, None)
            return
        jumped = last > 0 and first > 0 and not 1 / SWITCH <= first / last <= SWITCH
        # The last steps of a linear decay halve it, too, and the second of a warm-up doubles it, but neither changes it
        # more than those beside them; at the second step none of them is known.
        if jumped and change is not None and abs(first - last) > 10 * abs(change):
            run.event("switch", f"learning rate {last:.4g} -> {first:.4g}", step.number)
        self._last[f.name] = (first, first - last)


def _quantities(f: Followed) -> list[Quantity]:
    groups = tuple(str(i) for i in range(len(f.optimizer.param_groups)))
    return [
        Quantity(f"learning_rate{f.suffix}", groups, "", "learning rate of each parameter group"),
        Quantity(f"momentum{f.suffix}", groups, "", "momentum, or beta_1, of each parameter group"),
        Quantity(f"weight_decay{f.suffix}", groups, "", "weight decay of each parameter group"),
    ]


def _momentum(group: dict[str, Any]) -> Any:
    return group["betas"][0] if "betas" in group else group.get("momentum", nan)


def _row(values: list[Any]) -> Any:
    """Return numbers as they are; where an optimizer keeps them on a device, one tensor there."""
    for value in values:
        if type(value) is not float and isinstance(value, torch.Tensor):
            break
    else:
        return tuple(values)
    held = next(v for v in values if isinstance(v, torch.Tensor))
    like = wide(held.detach()).reshape(())
    return torch.stack(
        [wide(v.detach()).reshape(()) if isinstance(v, torch.Tensor) else like.new_full((), v) for v in values]
    )
