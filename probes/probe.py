"""What a probe is: it declares what it records, and is asked at its moments of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape.dynamics.norms import host_norms, tensor_norms
from landscape.dynamics.packed import Packed, PackedNorms
from landscape.dynamics.sharded import is_sharded, sharded_norms
from landscape.errors import MeasurementError
from landscape.objective import Objective
from landscape.results import Result
from landscape.sharing import rank

from .when import When, every

if TYPE_CHECKING:
    from landscape.tasks import Task

#: Of a probe that can be had at every step.
EVERY_STEP = every(steps=1)


@dataclass(frozen=True)
class Quantity:
    """What a probe records under one name: its columns, unit and meaning, and whether steps or epochs count it."""

    name: str
    columns: tuple[str, ...]
    units: str = ""
    doc: str = ""
    axis: str = "step"


@dataclass(frozen=True)
class Followed:
    """One optimizer and those of the model's parameters that it moves.

    `suffix` goes behind the names of quantities: "" where there is one optimizer, ".name" where there are several.
    """

    name: str
    optimizer: Any
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    suffix: str = ""

    @cached_property
    def sharded(self) -> bool:
        """Whether a part of each parameter lies on each process."""
        return any(is_sharded(p) for p in self.parameters)

    @cached_property
    def on_host(self) -> bool:
        """Whether all parameters lie on a CPU, whole."""
        return not self.sharded and all(p.device.type == "cpu" for p in self.parameters)

    def columns(self, layers: bool) -> tuple[str, ...]:
        """Return the columns of a quantity that has a number for the whole and, with `layers`, for each parameter."""
        return ("global", *self.names) if layers else ("global",)

    @cached_property
    def packed(self) -> PackedNorms | None:
        """What takes the norms of a small model's tensors on a CPU; None of other models."""
        return PackedNorms(self.parameters) if self.on_host and Packed.fits(self.parameters) else None

    def norms(self, tensors: Sequence[Tensor | None]) -> Any:
        """Return (1 + k,) in float64: the joint norm and the norm of each parameter's tensor, NaN for None.

        Floats of parameters on a CPU, elsewhere a tensor on their device, which is not waited for.
        """
        if self.on_host:
            found = self.packed(tensors) if self.packed is not None else None
            return host_norms(tensors) if found is None else found
        found = [i for i, t in enumerate(tensors) if t is not None]
        present: list[Any] = [tensors[i] for i in found]
        norms = sharded_norms(present) if self.sharded else tensor_norms(present)
        joint = torch.linalg.vector_norm(norms)
        if len(found) == len(tensors):
            return torch.cat([joint[None], norms])
        each, absent = iter(norms.unbind()), norms.new_full((), torch.nan)
        return torch.stack([joint, *(absent if t is None else next(each) for t in tensors)])


class Step:
    """One optimizer step as probes see it: `number` counts this optimizer's steps from 1.

    `scale` is what the gradients are multiplied by, and `found_inf` 1 where the step is skipped for it (a fused
    optimizer under GradScaler); None elsewhere.
    """

    __slots__ = ("_copies", "_gradients", "closure", "followed", "found_inf", "number", "scale")

    def __init__(
        self,
        followed: Followed,
        number: int,
        scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        closure: bool = False,
        gathers: bool = False,
    ) -> None:
        self.followed, self.number, self.scale, self.found_inf = followed, number, scale, found_inf
        #: Whether the step was given a closure, which computes gradients inside it, several times perhaps.
        self.closure = closure
        self._gradients: list[Tensor | None] | None = None
        self._copies: tuple[list[Tensor], list[Tensor]] | None = ([], []) if gathers else None

    def copy(self, into: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Copy tensors into others before the step is taken: what several probes want, on a CPU, in one call of torch.

        Only `before` and `on_gradients` may ask for it.
        """
        if self._copies is None:
            torch._foreach_copy_(list(into), list(tensors))
        else:
            self._copies[0].extend(into)
            self._copies[1].extend(tensors)

    def copy_gathered(self) -> None:
        """Make the copies that were asked for so far, and each later one at once."""
        gathered, self._copies = self._copies, None
        if gathered is not None and gathered[0]:
            torch._foreach_copy_(*gathered)

    @property
    def gradients(self) -> list[Tensor | None]:
        """The gradient of each parameter, None where it has none."""
        if self._gradients is None:
            self._gradients = [p.grad for p in self.followed.parameters]
        return self._gradients


@dataclass(frozen=True)
class Now:
    """A moment between two steps: after `step` optimizer steps and `epoch` epochs."""

    step: int
    epoch: int
    ends_epoch: bool = False


@dataclass(frozen=True)
class Found:
    """What an expensive probe measured: rows by quantity, and Results to keep beside them."""

    rows: Mapping[str, Sequence[float]] = field(default_factory=dict)
    results: tuple[Result, ...] = ()


class Probe:
    """Measures something at certain moments of a training. Override what the probe needs; the rest does nothing.

    A cheap probe overrides `before`, `on_gradients` or `after`, which run inside the optimizer's hooks; one that costs
    time sets `expensive` and overrides `measure`, which runs between steps and is timed. Whatever a probe raises
    switches it off; the training goes on.
    """

    #: The probe's name in the archive.
    name: str = ""
    expensive: bool = False
    #: Of an expensive probe that measures when an epoch or an evaluation ends, not by its own lattice.
    evaluates: bool = False
    #: Steps on which hooks run for a cheap probe.
    when: When = EVERY_STEP

    def everywhere(self, run: Run) -> bool:
        """Whether every process of a distributed training takes part; else the first one measures alone."""
        return False

    def start(self, run: Run) -> Sequence[Quantity]:
        """Prepare, and return what will be recorded. Called once the model and the optimizers are known."""
        return ()

    def before(self, run: Run, step: Step) -> None:
        """Look at the weights and the settings of a step that is about to be taken."""

    def on_gradients(self, run: Run, step: Step) -> None:
        """Look at the gradients that a step uses: before it, or behind it where the optimizer takes a closure."""

    def after(self, run: Run, step: Step) -> None:
        """Look at the weights of a step that was taken."""

    def ready(self, run: Run, number: int) -> None:
        """Prepare for step `number`, which comes next and is one of this probe's."""

    def discard(self, run: Run) -> None:
        """Forget what was seen of a step that is not taken: its gradients were thrown away."""

    def measure(self, run: Run, now: Now) -> Found | None:
        """Measure between two steps; None where there is nothing yet."""

    def lacked(self) -> str:
        """Return what a probe that saw nothing at its moments waited for, and the line to write (": ..."); "" else."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""

    def close(self) -> None:
        """Remove whatever the probe attached."""


class Run:
    """What probes may know and do: the model, its optimizers, a task, and where rows go.

    `model` is the module inside DistributedDataParallel and torch.compile; `wrapped` the one that trains.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        model: nn.Module,
        followed: tuple[Followed, ...],
        task: Task | None,
        seed: int,
        sink: Any,
    ) -> None:
        self.wrapped, self.model, self.followed, self.task, self.seed = wrapped, model, followed, task, seed
        self._sink = sink
        #: Optimizer steps taken so far by the first optimizer, and epochs ended.
        self.step = self.epoch = 0
        #: Whether a probe is measuring, so that the model runs on other data, at other weights.
        self.measuring = False
        #: By optimizer, the last step whose gradients were clipped, and the coefficient.
        self.clipped: dict[str, tuple[int, Any]] = {}
        #: Predictions seen by `Recorder.observe` since the last epoch's end, by split.
        self.observed: dict[str, Any] = {}

    def record(self, quantity: str, step: int, values: Any) -> None:
        """Add a row: floats, an array, or a float64 tensor on any device, which is not waited for."""
        self._sink.record(quantity, step, values)

    def event(self, kind: str, message: str, step: int | None = None) -> None:
        """Note that something happened."""
        self._sink.event(self.step if step is None else step, kind, message)

    def objective(self, task: Task, split: str, shared: bool) -> Objective:
        """Return the objective that a probe measures on, its draw shared by the processes of the training if wanted."""
        return Objective(task, split, process_group=True if shared and rank()[1] > 1 else None)

    def alone(self, what: str) -> None:
        """Raise MeasurementError where one process can't run the model by itself, as a probe would.

        Sharded weights, and SyncBatchNorm in several processes, need every process in each pass.
        """
        if any(f.sharded for f in self.followed):
            raise MeasurementError(
                f"{what} of a sharded model can't be measured while it trains: probe its checkpoints"
            )
        if rank()[1] > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in self.model.modules()):
            raise MeasurementError(
                f"{what} of a model with SyncBatchNorm can't be measured while it trains: probe its checkpoints"
            )

    def declare(self, quantity: Quantity) -> None:
        """Take a further quantity, or further columns of one, from now on."""
        self._sink.declare([quantity])
