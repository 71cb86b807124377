"""The gradient noise scale, from the batches that the training makes anyway."""

from __future__ import annotations

import math
import threading
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape.dynamics.noise import NoiseScale
from landscape.dynamics.norms import tensor_norms
from landscape.errors import MeasurementError
from landscape.objective import Objective
from landscape.widest import wide

from .probe import EVERY_STEP, Found, Now, Probe, Quantity, Run, Step
from .sink import Landing
from .when import When, every

_COLUMNS = ("noise_scale", "squared_gradient", "variance")
#: Steps without accumulation after which its lack is said (chosen by us: before the end of a first try).
_PATIENCE = 20
#: Steps whose numbers may wait for a thread that writes, which there is none of in all but the first process.
_MOST_PENDING = 256


class GradientNoise(Probe):
    """`noise_scale`: the simple noise scale tr(Sigma) / |G|^2 in samples, with its two parts, smoothed over steps.

    Needs gradients of small and of big batches of the same step (McCandlish et al. 2018, arXiv:1812.06162):

    - source="micro-batches": the backward passes that a loop accumulates; |g_b|^2 of each is that of what it added to
      the gradients. Costs a copy of the gradients and two passes over them a micro-batch.
    - source="ranks": what each process of DistributedDataParallel computed before the average, by a communication hook
      that averages as DDP's own does. One all-reduce of a number a step.
    - source="samples": gradients of single samples of the task's fixed draw, `samples` of them, one backward pass each,
      at the probe's moments alone; needs `Recorder(..., task=...)`. This one is not smoothed.

    Args:
        batch_size: samples of the small batch: of one micro-batch, or of one process (for "samples" it is 1).
        source: see above.
        accumulation: "mean" where the loop divides each loss by the number of micro-batches, "sum" where it doesn't.
            Sums that a loop divides afterwards by a power of two are taken for scaled ones under GradScaler, unless the
            optimizer is fused (variance and squared gradient alone are off by that): divide the losses there.
        when: which steps; every one by default, every 100th for "samples".
        samples: of the draw, for "samples"; 64 by default (chosen by us).
        decay: of the exponential means.
    """

    name = "noise"

    def __init__(
        self,
        batch_size: int = 1,
        *,
        source: Literal["micro-batches", "ranks", "samples"] = "micro-batches",
        accumulation: Literal["mean", "sum"] = "mean",
        when: When | None = None,
        samples: int = 64,
        decay: float = 0.99,
    ) -> None:
        if isinstance(batch_size, When):
            raise MeasurementError(
                "GradientNoise takes the samples of a micro-batch first; say GradientNoise(when=every(...))"
            )
        if source not in ("micro-batches", "ranks", "samples"):
            raise MeasurementError(f"source={source!r} is not one of 'micro-batches', 'ranks' or 'samples'")
        if accumulation not in ("mean", "sum"):
            raise MeasurementError(f"accumulation={accumulation!r} is not one of 'mean' or 'sum'")
        if batch_size < 1 or samples < 2:
            raise MeasurementError(f"batch_size={batch_size} must be at least 1, samples={samples} at least 2")
        self.batch_size, self.source, self.accumulation, self.samples = batch_size, source, accumulation, samples
        self.expensive = source == "samples"
        self.when = when if when is not None else every(steps=100) if self.expensive else EVERY_STEP
        self._scale = NoiseScale(decay)
        self._handles: list[Any] = []
        self._parameters: list[Any] = []
        self._before: list[Tensor | None] | None = None
        self._squares: list[Tensor] = []
        self._averages: list[Tensor] = []
        self._listening = self._queued = False
        self._group: Any = None
        self._undivided = 0
        #: Steps whose numbers are on their way to the host; the thread that writes takes them into the means.
        self._pending: deque[_Row] = deque()
        self._settling = threading.Lock()

    def everywhere(self, run: Run) -> bool:
        return self.source == "ranks"

    def start(self, run: Run) -> Sequence[Quantity]:
        self._parameters = [p for p in run.followed[0].parameters if p.requires_grad]
        if any(f.sharded for f in run.followed):
            raise MeasurementError("the noise scale of a sharded model isn't measured: its gradients are never whole")
        if self.source == "samples":
            run.alone("gradients of single samples")
        if self.source == "samples" and run.task is None:
            raise MeasurementError("gradients of single samples need the data of a task: Recorder(..., task=...)")
        self.close()
        if self.source == "micro-batches":
            self._handles = [p.register_post_accumulate_grad_hook(self._accumulated) for p in self._parameters]
        if self.source == "ranks":
            self._attach_to_ddp(run)
        return [Quantity("noise_scale", _COLUMNS, "samples, gradient^2", "gradient noise scale and its two parts")]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ------------------------------------------------------------------------------------- micro-batches

    def ready(self, run: Run, number: int) -> None:
        self._listening, self._queued = True, False
        self._before, self._squares, self._averages = None, [], []

    def discard(self, run: Run) -> None:
        if self._listening:
            self.ready(run, 0)

    def _accumulated(self, parameter: Tensor) -> None:
        """One gradient of a backward pass has arrived: be called again when all have."""
        if self._listening and not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_done)

    def _backward_done(self) -> None:
        self._queued = False
        now = [None if p.grad is None else p.grad.detach() for p in self._parameters]
        # A parameter that no micro-batch has used yet (an expert that was not chosen) has no gradient before.
        before = self._before or [None] * len(now)
        added = [g if b is None else g - b for g, b in zip(now, before, strict=True) if g is not None]
        self._squares.append(tensor_norms(added).square().sum())
        self._before = [None if g is None else g.clone() for g in now]

    # ------------------------------------------------------------------------------------- ranks

    def _attach_to_ddp(self, run: Run) -> None:
        model: Any = run.wrapped
        if self._group is not None:
            return  # a hook can be registered only once, and stays
        if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
            raise MeasurementError("source='ranks' needs a model in DistributedDataParallel")
        group = model.process_group
        world = torch.distributed.get_world_size(group)

        def average(state, bucket):  # without annotations: DDP takes none but its own classes themselves
            buffer = bucket.buffer()
            if self._listening:
                self._squares.append(tensor_norms([buffer]).square()[0])
            buffer.div_(world)
            work: Any = torch.distributed.all_reduce(buffer, group=group, async_op=True)

            def averaged(done):
                value = done.value()[0]
                if self._listening:
                    # Here, before anything clips it.
                    self._averages.append(tensor_norms([value]).square()[0])
                return value

            return work.get_future().then(averaged)

        model.register_comm_hook(None, average)
        self._world, self._group = world, group

    # ------------------------------------------------------------------------------------- at the step

    def on_gradients(self, run: Run, step: Step) -> None:
        if self.source == "samples" or step.followed is not run.followed[0]:
            return
        if step.closure:
            raise MeasurementError(
                "the noise scale needs one backward pass for each batch, a closure makes as many as it likes"
            )
        if not self._squares:
            return
        if self.source == "ranks":
            parts = self._world
            small, big = torch.stack(self._squares).sum() / parts, torch.stack(self._averages).sum()
            torch.distributed.all_reduce(small, group=self._group)
        else:
            parts = len(self._squares)
            if parts < 2:
                self._count_undivided(run, step)
                return  # a step of one batch has no smaller one to compare with
            # What was accumulated, not what clipping made of it; a share of the mean, or a sum of gradients.
            accumulated = [g for g in self._before or () if g is not None]
            small, big = torch.stack(self._squares).mean(), tensor_norms(accumulated).square().sum()
            small, big = (small * parts**2, big) if self.accumulation == "mean" else (small, big / parts**2)
        self._listening = False
        self._before = None
        row = _Row(self, parts, Landing(self._numbers(run, step, small, big)))
        self._pending.append(row)
        if step.followed.on_host or len(self._pending) > _MOST_PENDING:
            self.settle()
        run.record("noise_scale", step.number, row if row.values is None else row.values)

    def _count_undivided(self, run: Run, step: Step) -> None:
        """Say once that a loop without accumulation gives nothing: its user would find no row, and no reason."""
        self._undivided += 1
        if self._undivided == _PATIENCE:
            text = (
                f"no noise scale in {_PATIENCE} steps of one backward pass each: expected accumulated micro-batches; "
                'use GradientNoise(source="samples") with Recorder(..., task=...)'
            )
            run.event("not_measured", f"noise: {text}", step.number)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _numbers(self, run: Run, step: Step, small: Tensor, big: Tensor) -> Tensor:
        """Return what `settle` needs, on the device: (small, big, norm of the gradients now, clipping, scale)."""
        size: Any = math.nan
        if step.scale is None:
            now = [p.grad for p in self._parameters if p.grad is not None]
            size = torch.linalg.vector_norm(tensor_norms(now)) if now else 0.0
        number, coefficient = run.clipped.get(step.followed.name, (-1, None))
        clipping = coefficient if number == step.number and coefficient is not None else 1.0
        given = (small, big, size, clipping, math.nan if step.scale is None else step.scale)
        like = wide(small)
        # Filled, not copied: a copy from the host would wait for the device.
        return torch.stack([wide(v).reshape(()) if isinstance(v, Tensor) else like.new_full((), v) for v in given])

    def settle(self, last: _Row | None = None) -> None:
        """Take the numbers of steps into the means, one after the other, up to this row; all without one.

        Of a model on a device the thread that writes rows does so: reading the numbers waits for the device.
        """
        with self._settling:
            while self._pending and (last is None or last.values is None):
                row = self._pending.popleft()
                small, big, size, clipping, scale = row.landing.array.tolist()
                if math.isnan(scale):
                    scale = self._scale_at_backward(big, size, clipping, row.parts)
                self._scale.add(small / scale**2, big / scale**2, self.batch_size, self.batch_size * row.parts)
                row.values = _row(self._scale)

    def _scale_at_backward(self, big: float, size: float, clipping: float, parts: int) -> float:
        """Return what GradScaler multiplied the gradients by, where only their sizes tell; 1 without it.

        The gradients now are those of the mean, or the sum that was accumulated, which a loop may also have divided by
        `parts` itself: a quotient of `parts` is taken for that, as scales are rarely so small.
        """
        if self.source != "micro-batches" or self.accumulation == "mean":
            return _scale_of(big, size, clipping) or 1.0
        scale = _scale_of(big * parts**2, size, clipping) or _scale_of(big, size, clipping) or 1.0
        return 1.0 if scale == parts else scale

    # ------------------------------------------------------------------------------------- single samples

    def measure(self, run: Run, now: Now) -> Found | None:
        assert run.task is not None
        task = run.task.replace(max_samples=self.samples)
        total: list[Tensor] | None = None
        squares = []
        # Each sample draws random numbers of its own, as it does in training: they are part of its gradient's noise.
        with Objective(task, "train", regroup=1, redraw=True) as objective:
            if objective.largest > 1:
                raise MeasurementError(
                    f"the task's batches can't be split into single samples: {objective.largest} together "
                    "(rebatch=False, or a graph); accumulate micro-batches instead"
                )
            for i in range(len(objective)):
                mean, _ = objective.batch_loss(i)
                gradient = torch.autograd.grad(mean, objective.parameters, materialize_grads=True, allow_unused=True)
                squares.append(float(tensor_norms(gradient).square().sum()))
                parts = [wide(g) for g in gradient]
                total = parts if total is None else [t + g for t, g in zip(total, parts, strict=True)]
        if total is None or len(squares) < 2:
            return None
        n = len(squares)
        big = float(tensor_norms([t / n for t in total]).square().sum())
        scale = NoiseScale(0.0)
        scale.add(sum(squares) / n, big, 1, n)
        return Found({"noise_scale": _row(scale)})

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"decay": self._scale.decay, "steps": self._scale.steps, "g2": self._scale._g2, "s": self._scale._s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self._scale = NoiseScale(state["decay"], state["steps"], state["g2"], state["s"])


class _Row:
    """One step's row: `values` are there when the numbers of the step, and of those before it, have been read."""

    __slots__ = ("_probe", "landing", "parts", "values")

    def __init__(self, probe: GradientNoise, parts: int, landing: Landing) -> None:
        self._probe, self.parts, self.landing = probe, parts, landing
        self.values: tuple[float, float, float] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._probe.settle(self)
        return np.array(self.values, dtype=dtype)


def _row(scale: NoiseScale) -> tuple[float, float, float]:
    return (scale.value, scale.squared_gradient, scale.variance)


def _scale_of(big: float, size: float, clipping: float) -> float | None:
    """Return what GradScaler multiplied gradients by when they were computed, None where that can't be seen.

    A fused optimizer says so. Others got gradients that were unscaled meanwhile, and perhaps clipped: the scale is what
    is left of the quotient, where that is a power of two, as GradScaler's are.
    """
    size = size / clipping if clipping else 0.0
    if not (size > 0 and math.isfinite(size) and big > 0 and math.isfinite(big)):
        return None
    quotient = math.log2(math.sqrt(big) / size)
    return 2.0 ** round(quotient) if abs(quotient - round(quotient)) < 1e-3 else None
