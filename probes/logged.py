"""What the loop tells the recorder: losses of a step, and other numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from landscape.widest import widest

from .probe import Quantity, Run

_LOSS = "the loss that the step went down, and its terms"
#: The columns of a loss without terms.
_ALONE = ("loss",)
_OTHER = "numbers that the loop logged"
_BOOKKEEPING = "what the loop logged about its own running"
#: So many losses without a step are too many, and so many times those of the longest step so far (chosen by us).
_MANY, _TIMES = 2000, 10


class Logged:
    """Collects what was logged for a step, averages micro-batches, and records it when the step is taken.

    A loop logs before its step or behind it. Which of the two shows at the first step: nothing was logged before it, or
    (where GradScaler skipped steps before that) less often than gradients were zeroed.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        #: What was logged since the last step, and how much of it before each zero_grad that came behind some of it.
        self._calls: list[dict[str, Any]] = []
        self._cuts: list[int] = []
        #: How many losses a step had at most, and whether it was told that there are too many without one.
        self._longest, self._told = 0, False
        #: How often gradients were thrown away since the last step.
        self._thrown = 0
        #: Whether the loop logs behind its step; None until that is known.
        self._behind: bool | None = None
        self._late_for: int | None = None
        self._zeroed = False
        #: The last step whose loss is known.
        self._known = -1
        self._columns: dict[str, tuple[str, ...]] = {}

    def add(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take in what a loop logged, and return the loss's terms whose graph is still to be gone through."""
        if "loss" not in values:
            self.record("logged", self._run.step, values, _OTHER)
            return {}
        loss = values["loss"]
        if len(self._calls) >= _MANY:
            self._forget()
        if len(values) == 1 and type(loss) is Tensor and not self._behind:
            self._calls.append({"loss": _light(loss)})  # what nearly every loop logs
            return {}
        named = _flat(values)
        if self._behind:
            if self._late_for is not None:
                self._known, self._late_for = self._late_for, None
            elif self._zeroed:
                return {}  # of a step that was skipped: the gradients were zeroed since the last one that was taken
            # A second call for the same step is a row of its own: what it names stands beside the first.
            self.record("loss", self._known, named, _LOSS)
            return {}
        self._calls.append({name: _light(value) for name, value in named.items()})
        return {n: v for n, v in named.items() if n != "loss" and isinstance(v, Tensor) and v.requires_grad}

    def keep_books(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values that say nothing of the model: seconds, samples a second."""
        if values:
            self.record("bookkeeping", step, values, _BOOKKEEPING)

    def add_at(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values of a step that was taken; a loss that it has already stands."""
        if "loss" in values and self._known != step:
            # A loop that says which step it means may log another's before its step all the same.
            self._known, self._late_for, self._behind = step, None, False if self._behind is False else None
            self.record("loss", step, _flat({"loss": values["loss"]}), _LOSS)
        rest = {n: v for n, v in values.items() if n != "loss"}
        if rest:
            self.record("logged", step, rest, _OTHER)

    def zeroed(self, *, thrown: bool) -> None:
        """The gradients were zeroed; `thrown` says that no step had used them."""
        self._thrown += thrown
        self._zeroed = True
        if self._calls:
            self._cuts.append(len(self._calls))

    def commit(self, step: int, *, closure: bool = False) -> None:
        """Record what was logged for the step that was just taken; with a closure, what its first call logged."""
        calls, self._zeroed = self._calls, False
        if self._thrown:
            if self._behind is None and len(calls) <= self._thrown:
                calls = []  # a loss for each step that was skipped, none for this one: they are logged behind
            else:
                # What was logged last is this step's; what came before it was of steps that were skipped.
                calls = calls[max((cut for cut in self._cuts if cut < len(calls)), default=0) :]
            self._thrown = 0
        if self._calls:
            self._longest = max(self._longest, len(self._calls))
            self._calls, self._cuts = [], []
        if calls and not self._behind:
            self._behind, self._known = False, step
            call = calls[0] if closure or len(calls) == 1 else _mean(calls)
            if len(call) == 1 and self._columns.get("loss") == _ALONE and type(call["loss"]) is float:
                self._run.record("loss", step, (call["loss"],))
            else:
                self.record("loss", step, call, _LOSS)
        elif self._behind is not False:
            self._behind, self._late_for = True, step

    def _forget(self) -> None:
        """Forget losses for which no step will come, and say so once: a loop may train something else by now."""
        if len(self._calls) < _TIMES * self._longest:
            return
        if not self._told:
            self._told = True
            told = (
                f"{len(self._calls)} losses were logged since step {self._run.step}, and the optimizer took no step: "
                "they are not recorded. If model or optimizer were replaced, make a Recorder for the new ones"
            )
            self._run.event("no_step", told)
            warnings.warn(told, RuntimeWarning, stacklevel=4)
        self._calls, self._cuts = [], []

    def record(self, quantity: str, step: int, values: Mapping[str, Any], doc: str) -> None:
        """Record one row of named values; a new name is a new column."""
        columns = self._columns.get(quantity, ())
        if tuple(values) == columns:
            row = tuple(values.values())
        else:
            new = [n for n in values if n not in columns]
            if new:
                columns = self._columns[quantity] = (*columns, *new)
                self._run.declare(Quantity(quantity, columns, "", doc))
            row = tuple(values.get(n, torch.nan) for n in columns)
        for value in row:
            if type(value) is not float:
                row = _row(tuple(map(_light, row)))
                break
        self._run.record(quantity, step, row)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"loss": total, term: value ...} of what a loss may be: a number, {term: value}, (value, weight)."""
    loss = values["loss"]
    if isinstance(loss, tuple):
        loss = loss[0]
    rest = {n: v for n, v in values.items() if n != "loss"}
    if isinstance(loss, Mapping):
        return {"loss": sum(loss.values()), **loss, **rest}
    return {"loss": loss, **rest}


def _light(value: Any) -> Any:
    """Return a number, or a tensor without its graph on the device where it is."""
    if type(value) is float:
        return value
    if not isinstance(value, Tensor):
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TypeError(f"a logged value is a number or a tensor of one element, got {value!r:.80}") from None
    if type(value) is not Tensor and hasattr(value, "full_tensor"):
        value = value.full_tensor()  # type: ignore[operator]
    if value.is_cpu:
        try:
            return value.item()
        except RuntimeError:
            if value.numel() == 1:
                raise
            raise _of_several(value) from None
    if value.numel() != 1:
        raise _of_several(value)
    # A copy: the loop may change it in place before it is written.
    return value.detach().reshape(()).to(widest(value.device), copy=True)


def _of_several(value: Tensor) -> ValueError:
    return ValueError(f"a logged value has one element, got a tensor of shape {tuple(value.shape)}")


def _mean(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each name over the calls that gave it."""
    found: dict[str, list[Any]] = {}
    for call in calls:
        for name, value in call.items():
            found.setdefault(name, []).append(value)
    return {name: sum(several) / len(several) for name, several in found.items()}


def _row(values: tuple[Any, ...]) -> Any:
    held = next((v for v in values if isinstance(v, Tensor)), None)
    if held is None:
        return values
    # Filled, not copied: a copy from the host would wait for the device.
    return torch.stack([v if isinstance(v, Tensor) else held.new_full((), v) for v in values])
