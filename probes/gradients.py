"""Gradient norms at each step: of the whole and of each parameter, before and after clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.dynamics.norms import not_finite
from landscape.widest import wide

from .probe import EVERY_STEP, Followed, Probe, Quantity, Run, Step
from .when import When


class GradientNorms(Probe):
    """Norms of the gradients that each optimizer step uses: `gradient_norm`, global and for each parameter.

    Unscaled under GradScaler (a step that it skips has no row, save with a fused optimizer, which takes the step and
    leaves the weights as they are), after clipping. What `Recorder.clip_grad_norm_`, `clip_grad_value_` or `clipped`
    was told gives `gradient_norm_before` and `clip` (coefficient and limit). NaN is a parameter without a gradient;
    tensors whose gradient isn't finite are counted in `skipped`. Right to 1e-6 up to 25 million elements a tensor; one
    pass over the gradients, no synchronization.

    Of a sharpness-aware optimizer `gradient_norm` is that of the gradient which its base steps by, taken at the weights
    that it climbed to; the norm at the weights themselves, which compares with other optimizers', is `ascent_norm`
    where it tells (`landscape.optimizers`' own do, unscaled and unclipped as the closure left it).

    Args:
        when: which steps; every one by default.
        layers: False records the global norm alone.
    """

    name = "gradients"

    def __init__(self, when: When = EVERY_STEP, *, layers: bool = True) -> None:
        self.when, self.layers = when, layers
        self._clips: dict[str, Clip] = {}
        self._clipped_of: dict[str, Followed] = {}
        #: By optimizer, the step whose gradients were copied, to be measured when it was taken.
        self._copied: dict[str, int] = {}

    def everywhere(self, run: Run) -> bool:
        return any(f.sharded for f in run.followed)

    def start(self, run: Run) -> Sequence[Quantity]:
        # Where parameters came or went their columns are declared anew; a clipping of others is still to be recorded.
        same = {f.name for f in run.followed if _same(self._clipped_of.get(f.name), f)}
        self._clips = {name: clip for name, clip in self._clips.items() if name in same}
        self._copied.clear()
        found = []
        for f in run.followed:
            doc = "Euclidean norm of the gradient, as it was used"
            found += [
                Quantity(f"gradient_norm{f.suffix}", f.columns(self.layers), "loss / weight", doc),
                Quantity(f"skipped{f.suffix}", ("steps", "tensors"), "", "steps skipped; gradients that aren't finite"),
            ]
            if climbs(f.optimizer):
                doc = "Euclidean norm of the gradient at the weights, along which the step climbed before it"
                found.append(Quantity(f"ascent_norm{f.suffix}", ("global",), "loss / weight", doc))
        return found

    def clip(self, run: Run, followed: Followed, clip: Clip) -> None:
        """Take note of a clipping, for the step that comes."""
        if followed.name not in self._clips:
            doc = "Euclidean norm of the gradient before clipping"
            name = f"gradient_norm_before{followed.suffix}"
            run.declare(Quantity(name, followed.columns(self.layers), "loss / weight", doc))
            doc = "what clipping multiplied the gradient by (NaN: values were clipped), and its limit"
            run.declare(Quantity(f"clip{followed.suffix}", ("coefficient", "limit"), "", doc))
        self._clips[followed.name], self._clipped_of[followed.name] = clip, followed

    def on_gradients(self, run: Run, step: Step) -> None:
        f = step.followed
        clip = self._clips.get(f.name)
        if clip is not None and clip.step == step.number:
            row = self._clipped(run, step, clip)
        elif f.packed is not None and not step.closure and f.packed.takes(step.gradients):
            step.copy(f.packed.views, step.gradients)  # type: ignore[arg-type]  # none of them is None
            self._copied[f.name] = step.number
            return
        else:
            row = f.norms(step.gradients)
        self._record(run, step, row)

    def after(self, run: Run, step: Step) -> None:
        f = step.followed
        climbed = getattr(f.optimizer, "ascent_norm", None)
        if isinstance(climbed, Tensor):
            run.record(f"ascent_norm{f.suffix}", step.number, (float(climbed),) if f.on_host else climbed.reshape(1))
        if self._copied.get(f.name) == step.number and f.packed is not None:
            self._record(run, step, f.packed.copied())

    def close(self) -> None:
        self._clips.clear()
        self._clipped_of.clear()

    def _record(self, run: Run, step: Step, row: Any) -> None:
        f = step.followed
        if step.scale is not None:
            row = scaled(row, 1 / (float(step.scale) if f.on_host else wide(step.scale)))
        if f.on_host:
            if not math.isfinite(row[0]):
                self._not_finite(run, step, row)
        else:
            # A parameter without a gradient has a NaN, too: it is no tensor that isn't finite.
            tensors = not_finite(row[1:]) - sum(g is None for g in step.gradients)
            skipped = torch.zeros_like(row[0]) if step.found_inf is None else wide(step.found_inf).reshape(())
            run.record(f"skipped{f.suffix}", step.number, torch.stack([skipped, wide(tensors)]))
        run.record(f"gradient_norm{f.suffix}", step.number, row if self.layers else row[:1])

    def _not_finite(self, run: Run, step: Step, row: Any) -> None:
        f = step.followed
        present = (n for n, g in zip(f.names, step.gradients, strict=True) if g is not None)
        norms = (v for v, g in zip(row[1:], step.gradients, strict=True) if g is not None)
        bad = [n for n, v in zip(present, norms, strict=True) if not math.isfinite(v)]
        skipped = float(step.found_inf) if step.found_inf is not None else 0.0
        run.record(f"skipped{f.suffix}", step.number, (skipped, float(len(bad))))
        if skipped:
            run.event("skipped_step", "the fused optimizer leaves the weights as they are", step.number)
        shown = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        run.event("not_finite", f"the gradient of {shown or 'all parameters together'} is not finite", step.number)

    def _clipped(self, run: Run, step: Step, clip: Clip) -> Any:
        f = step.followed
        run.record(f"gradient_norm_before{f.suffix}", step.number, clip.before if self.layers else clip.before[:1])
        coefficient, limit = clip.coefficient, clip.limit
        unchanged = coefficient is not None and clip.versions == versions(step.gradients)
        row = scaled(clip.before, coefficient) if unchanged else f.norms(step.gradients)
        if isinstance(coefficient, Tensor):
            pair: Any = torch.stack([coefficient, torch.full_like(coefficient, limit)])
        else:
            pair = (math.nan if coefficient is None else coefficient, limit)
        run.record(f"clip{f.suffix}", step.number, pair)
        return row


def climbs(optimizer: Any) -> bool:
    """Whether an optimizer tells the norm of the gradient that it climbed along (`landscape.training.sam.SAM`)."""
    return hasattr(optimizer, "ascent_norm")


def _same(old: Followed | None, new: Followed) -> bool:
    return old is not None and [*map(id, old.parameters)] == [*map(id, new.parameters)]


def scaled(row: Any, factor: Any) -> Any:
    """Return a row of norms times a factor: floats on the host, else a tensor."""
    return tuple(v * factor for v in row) if isinstance(row, tuple) else row * factor


class Clip:
    """One clipping: norms before it (1 + k,), the coefficient (None where values were clipped), the limit."""

    def __init__(
        self, step: int, before: Any, coefficient: Tensor | float | None, limit: float, versions: tuple[Any, ...]
    ) -> None:
        self.step, self.before, self.coefficient, self.limit = step, before, coefficient, limit
        #: How often each gradient had been changed in place when it was clipped.
        self.versions = versions


def versions(gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Return which tensors the gradients are, and how often each was changed in place."""
    return tuple(-1 if g is None else (id(g), g._version) for g in gradients)
