"""What the loop tells the recorder: losses of a step, and other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .probe import Quantity, Run


class Logged:
    """Collects what was logged for a step, averages micro-batches, and records it when the step is taken."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pending: dict[str, list[Any]] = {}
        #: Whether the loop logs behind its step: nothing had been logged when the first one was taken.
        self._behind: bool | None = None
        self._late_for: int | None = None
        #: The last step whose loss is known.
        self._known = -1
        self._columns: dict[str, tuple[str, ...]] = {}

    def add(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take in what a loop logged, and return the loss's terms that still have a graph."""
        if "loss" not in values:
            self.record("logged", self._run.step, values, "numbers that the loop logged")
            return {}
        named = _flat(values)
        if self._behind and self._late_for is not None:
            self._known, self._late_for = self._late_for, None
            self.record("loss", self._known, named, _LOSS)
        else:
            for name, value in named.items():
                self._pending.setdefault(name, []).append(_light(value))
        terms = {n: v for n, v in named.items() if n != "loss" and isinstance(v, Tensor) and v.requires_grad}
        return terms

    def add_at(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values of a step that was taken; a loss that it has already stands."""
        if "loss" in values and self._known != step:
            self._known, self._late_for = step, None
            self.record("loss", step, _flat({"loss": values["loss"]}), _LOSS)
        rest = {n: v for n, v in values.items() if n != "loss"}
        if rest:
            self.record("logged", step, rest, "numbers that the loop logged")

    def commit(self, step: int) -> None:
        """Record what was logged for the step that was just taken."""
        if self._pending:
            self._behind, self._known = False, step
            pending, self._pending = self._pending, {}
            self.record("loss", step, {n: _mean(found) for n, found in pending.items()}, _LOSS)
        elif self._behind is not False:
            self._behind = True
            self._late_for = step

    def drop(self) -> None:
        """Forget what was logged for a step that is skipped."""
        self._pending = {}

    def record(self, quantity: str, step: int, values: Mapping[str, Any], doc: str) -> None:
        """Record one row of named values; a new name is a new column."""
        columns = self._columns.get(quantity, ())
        if tuple(values) == columns:
            row = [_light(v) for v in values.values()]
        else:
            new = [n for n in values if n not in columns]
            if new:
                columns = self._columns[quantity] = (*columns, *new)
                self._run.declare(Quantity(quantity, columns, "", doc))
            row = [_light(values[n]) if n in values else torch.nan for n in columns]
        self._run.record(quantity, step, _row(row))


_LOSS = "the loss that the step went down, and its terms"


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
    if type(value) is float or not isinstance(value, Tensor):
        return float(value)
    if type(value) is not Tensor and hasattr(value, "full_tensor"):
        value = value.full_tensor()  # type: ignore[operator]
    if value.numel() != 1:
        raise ValueError(f"a logged value has one element, got a tensor of shape {tuple(value.shape)}")
    # On a device a copy: the loop may change it in place before it is written.
    return value.item() if value.is_cpu else value.detach().reshape(()).double()


def _mean(found: list[Any]) -> Any:
    return found[0] if len(found) == 1 else sum(found) / len(found)


def _row(values: list[Any]) -> Any:
    held = next((v for v in values if isinstance(v, Tensor)), None)
    if held is None:
        return values
    # Filled, not copied: a copy from the host would wait for the device.
    return torch.stack([v if isinstance(v, Tensor) else held.new_full((), v) for v in values])
