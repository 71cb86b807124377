"""How a batch's products are made: through graphs that are kept, rebuilt, or by forward mode; chosen by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch

from ..batch import bytes_of, tensors_of
from ..data import first_line
from ..errors import LandscapeError, MeasurementError, OutOfMemory, TaskError
from ..loaded import Loaded
from ..memory import REMEDY, give_back, ran_out
from ..objective import Objective
from ..sharing import Share, digest
from ..side_by_side import sharers
from ..sparse import parts
from .compiled import CompiledProducts
from .graphs import BatchGraph, Tensors, explained
from .joining import batches_to_join
from .rewritten import cheap_second_derivatives, torch_derivatives
from .trials import GAIN, agree, by_columns, findings, probe_vector, quiet, timed

Strategy = Literal["auto", "keep", "rebuild", "forward", "linearize", "compile"]

#: Share of the memory that is free, taken for kept graphs by default (chosen by us): of the host's a quarter, since
#: others live there too, of a GPU's a half.
HOST_SHARE, DEVICE_SHARE = 0.25, 0.5
#: Where the host doesn't say what is free (chosen by us).
UNKNOWN_HOST = 2 << 30
#: Columns that are multiplied at once when vectorized, at most (chosen by us: more gains little and costs memory).
BLOCK = 16
#: Under which name the trials' findings hold whether convolutions are faster channels last.
LAST = "channels last"


#: What the strategies that are never picked by themselves do, in words.
_SPECIAL = {
    "forward": "forward over reverse mode",
    "linearize": "linearized gradients, kept",
    "compile": "compiled, nothing kept",
}


class Source(Protocol):
    """What an operator tells of itself, batch by batch."""

    objective: Objective
    #: Whether the operator stays what it is when batches are joined, or shared out in parts.
    joinable: bool

    def graph(self, i: int, parameters: Tensors) -> BatchGraph:
        """Return the graph of batch i."""
        ...

    def functional(self, i: int, parameters: Tensors) -> tuple[Callable[[Tensors], torch.Tensor], Callable[[], float]]:
        """Return (parameters -> mean loss of batch i, () -> its weight), for torch.func."""
        ...

    def compiled(self) -> CompiledProducts:
        """Return the products as compiled code."""
        ...


class Products:
    """The products of one operator, batch by batch, with what is kept between them.

    `strategy` "auto" keeps the gradients' graphs of as many batches as fit in `memory` bytes (the first graph is
    measured), and rebuilds the others at each product, or takes forward mode over reverse mode for them where one
    trial shows that it is faster. Blocks of vectors go through a kept graph in one vectorized pass where a trial
    shows that this is faster than one by one; two-dimensional convolutions on a CPU run channels last where one trial
    for each draw shows that this is faster; batches so small that the calls take the time are joined where trials show
    the same product, faster, and every graph can be kept. (A choice by time can fall out otherwise the next time, and
    the numbers then differ by rounding; the other strategies repeat bit for bit.) Graphs are kept only while the
    operator is entered (`with A:`), and dropped when the weights move. What was chosen, and why, is said by `how`.
    """

    def __init__(self, operator: Source, strategy: Strategy, memory: int | None) -> None:
        if strategy not in get_args(Strategy):
            raise MeasurementError(f"strategy={strategy!r} is unknown; choose from {', '.join(get_args(Strategy))}")
        if memory is not None and memory < 0:
            raise MeasurementError(f"memory={memory} must be a number of bytes, 0 or more")
        self._operator = operator
        self._objective = operator.objective
        self._strategy: Strategy = strategy
        self._memory = memory
        self.notes: list[str] = []
        self._halved = False
        self._joined: Loaded | None = None
        self.release()

    def leave(self) -> None:
        """Drop every graph, and the batches that were joined."""
        self._joined = None
        self.release()

    def release(self) -> None:
        """Drop every graph and what was found out about them."""
        self._kept: dict[int, Any] = {}
        self._bytes = 0
        self._budget = 0
        self._to_keep: int | None = None
        self._other: str = "forward" if self._strategy == "forward" else "rebuild"
        self._why = ""
        self._vectorize: bool | None = None
        self._compiled: CompiledProducts | None = None
        self._moves = self._objective.moves
        self._last = self._strategy == "auto" and findings(self._objective).get(LAST, False)

    @property
    def how(self) -> str:
        """How products are made, in words; what is planned, before the first one."""
        share = self._objective.share
        if share is None:
            return self._how()
        with self._objective.using(self._part(share)):
            return f"process {share.together.place + 1} of {share.together.of}: {self._how()}"

    def _how(self) -> str:
        if self._strategy in _SPECIAL:
            return _SPECIAL[self._strategy]
        batches, kept = len(self._objective if self._joined is None else self._joined), self._to_keep
        other = "rebuilt at each product" if self._other == "rebuild" else "forward over reverse mode"
        layout = "; convolutions channels last" if self._last else ""
        block = {None: layout, True: f"{layout}; blocks vectorized", False: f"{layout}; blocks one by one"}[
            self._vectorize
        ]
        if kept is None:
            return f"{self._strategy}, decided at the first product inside `with`"
        if kept == 0:
            return f"graphs {other}{self._why}{block}"
        size = f"about {kept * self._bytes / 2**20:.0f} MiB"
        if kept >= batches:
            joined = "" if self._joined is None else f" (joined from {len(self._objective)})"
            every = "the one batch" if batches == 1 else f"all {batches} batches"
            return f"graphs of {every}{joined} kept, {size}{block}"
        return f"graphs of {kept} of {batches} batches kept, {size}; the others {other}{self._why}{block}"

    @property
    def held(self) -> tuple[int, int]:
        """(bytes of the first batch's graph, graphs kept)."""
        return self._bytes, len(self._kept)

    def multiply(self, columns: torch.Tensor, parameters: Tensors, keep: bool) -> tuple[torch.Tensor, float]:
        """Return (sum_i w_i A_i V, sum_i w_i) as ((k, n), float) for `columns` (k, n)."""
        share = self._objective.share
        if share is None:
            return self._alone(columns, parameters, keep)

        def run() -> tuple[list[torch.Tensor], float]:
            if not len(self._objective):  # fewer batches than processes
                return [torch.zeros_like(columns)], 0.0
            found, weight = self._alone(columns, parameters, keep)
            return [found], weight

        with self._objective.using(self._part(share)):
            found, weight = share.together.add("a product", run, columns.shape, digest([columns]))
        return found[0], weight

    def _part(self, share: Share) -> Loaded:
        return share.even if self._operator.joinable else share.uncut

    def _alone(self, columns: torch.Tensor, parameters: Tensors, keep: bool) -> tuple[torch.Tensor, float]:
        """Return what `multiply` does, of the batches that the objective has now."""
        if self._moves != self._objective.moves:
            self.release()
        while True:  # ends: each way of saving memory is taken once, then it raises
            try:
                return self._multiply(columns, parameters, keep)
            except Exception as error:
                if not ran_out(error):
                    raise
            self._economize()

    def _economize(self) -> None:
        """After running out of memory: keep nothing; where nothing was kept, halve the batches if the task allows."""
        keeping = bool(self._kept) or self._strategy in ("keep", "linearize", "compile")
        self.leave()
        give_back(self._objective.device)
        if keeping:
            self._strategy = "rebuild"
            self.notes.append("out of memory with the graphs kept: they are rebuilt at each product")
        elif not self._halved and self._objective.halve():
            self._halved = True
            self.notes.append("out of memory on a whole batch: the batches are cut in two")
        else:
            tried = "half a batch" if self._halved else "one batch, and the task doesn't allow it to be cut"
            raise OutOfMemory(f"out of memory on {tried}; {REMEDY}, or select fewer parameters")

    def _multiply(self, columns: torch.Tensor, parameters: Tensors, keep: bool) -> tuple[torch.Tensor, float]:
        k = len(columns)
        cut = columns.split([p.numel() for p in parameters], dim=1)
        shaped = [part.view(k, *p.shape) for part, p in zip(cut, parameters, strict=True)]
        if keep and self._strategy == "auto" and LAST not in (found := findings(self._objective)):
            self._last = found[LAST] = self._faster_channels_last(parameters)
        try:
            with cheap_second_derivatives(self._last) if self._reverse else nullcontext():
                if keep and self._strategy == "auto" and self._operator.joinable and self._joined is None:
                    self._join(parameters)
                with self._objective.using(self._joined):
                    sums, total, built = self._over_batches(parameters, shaped, keep)
        except (RuntimeError, LandscapeError) as error:
            if ran_out(error):
                raise
            if self._last:
                # A batch of another shape may not like it, though the first one did.
                findings(self._objective)[LAST] = False
                self.release()
                return self._multiply(columns, parameters, keep)
            # The task was verified in reverse mode: where it fails in another one, the strategy is why.
            own = isinstance(error, LandscapeError) and not (
                isinstance(error, TaskError) and self._strategy in _SPECIAL
            )
            raise error if own else self._explained(error) from error
        # By operation count, in forward passes: a gradient with its graph 3, a product through it 6.
        self._objective.passes += 3 * built + 6 * k
        return torch.cat([t.view(k, -1) for t in sums], dim=1), total

    def _over_batches(self, parameters: Tensors, V: Tensors, keep: bool) -> tuple[list[torch.Tensor], float, float]:
        """Return (sum_i w_i A_i V, sum_i w_i, graphs built as a share of all)."""
        sums = [torch.zeros_like(v) for v in V]
        total, built = 0.0, 0.0
        for i in range(len(self._objective)):
            weight, products, fresh = self._batch(i, parameters, V, keep)
            built += fresh / len(self._objective)
            if weight > 0:
                torch._foreach_add_(sums, products, alpha=weight)
                total += weight
        return sums, total, built

    @property
    def _reverse(self) -> bool:
        """Whether all derivatives are taken in reverse mode; forward mode goes through torch's own functions."""
        return self._strategy not in ("forward", "linearize")

    def _explained(self, error: Exception) -> Exception:
        if self._strategy in _SPECIAL:
            return MeasurementError(
                f"strategy={self._strategy!r} fails on this model ({first_line(error)}); use strategy='auto'"
            )
        return explained(error)

    def _batch(self, i: int, parameters: Tensors, V: Tensors, keep: bool) -> tuple[float, list[Any], float]:
        """Return (weight, A_i V, graphs built) for batch i."""
        if self._strategy == "linearize":
            return self._linearized(i, parameters, V, keep)
        if self._strategy == "compile":
            if self._compiled is None:
                self._compiled = self._operator.compiled()
            known = len(self._compiled)
            weight, multiply = self._compiled.of(i, parameters)
            return weight, by_columns(multiply, V), float(len(self._compiled) - known)
        if self._to_keep is None:
            self._plan(parameters, keep)
        if i >= (self._to_keep or 0) and self._other == "forward":
            weight, multiply = self._forward(i, parameters)
            with torch_derivatives():
                return weight, by_columns(multiply, V), 0.0
        graph, fresh = self._kept.get(i), 0.0
        if graph is None:
            graph, fresh = self._operator.graph(i, parameters), 1.0
            if i < (self._to_keep or 0):
                self._kept[i] = graph
        if graph.weight == 0:
            return 0.0, [], fresh
        return graph.weight, self._through(graph, V, i in self._kept), fresh

    # ----------------------------------------------------------------------------------------- what to keep

    def _plan(self, parameters: Tensors, keep: bool) -> None:
        """Decide how many batches' graphs are kept, and what happens to the others."""
        objective = self._objective
        self._to_keep = 0
        if not keep or self._strategy in ("rebuild", "forward"):
            return
        batch = tensors_of(objective.batch(0))  # lives anyway, as a view of all data often
        self._budget = free_memory(objective.device) if self._memory is None else self._memory
        unmeasured = False
        try:
            self._bytes = graph_bytes(lambda: self._operator.graph(0, parameters), [*parameters, *batch])
        except TaskError as error:
            if "saved tensor hooks" not in str(error):
                raise
            unmeasured = True  # torch.func inside the task refuses them
        objective.passes += 3 / len(objective)
        self._to_keep = len(objective)
        if self._strategy == "keep":
            return
        if unmeasured:
            self._to_keep = 0
            self._why = " (the task uses torch.func, so that nobody knows how large a graph is; 'keep' keeps them all)"
            return
        # Batches differ in size only at the end of the draw: the first one is the measure.
        self._to_keep = min(len(objective), self._budget // max(1, self._bytes))
        if self._to_keep < len(objective):
            self._why = f" (a graph takes {self._bytes / 2**20:.0f} MiB, the budget is {self._budget / 2**20:.0f} MiB)"
            self._try_forward(len(objective) - 1, parameters)

    def _join(self, parameters: Tensors) -> None:
        """Join batches that are too small, as the trials with the first operator of this kind said."""
        objective = self._objective
        before = len(objective)
        found, kind = findings(objective), ("joined", type(self._operator), before)
        if kind not in found:
            if self._to_keep is None:
                self._plan(parameters, True)
            # Twice, since the trial, and the making of a large graph, hold more than the graphs that are kept; what is
            # joined is a copy of the data.
            each = self._bytes + bytes_of(objective.batch(0))
            fits = before > 1 and 2 * before * each <= self._budget
            build = partial(self._operator.graph, parameters=parameters)
            found[kind] = batches_to_join(objective, build, parameters) if fits else 1
        if found[kind] == 1:
            return
        self._joined = objective.join_batches(found[kind])
        if self._joined is None:
            found[kind] = 1
        else:
            self.release()

    def _faster_channels_last(self, parameters: Tensors) -> bool:
        """Try two-dimensional convolutions channels last, on the first batch: the same product, and faster?"""
        if self._objective.device.type != "cpu" or not any(p.ndim == 4 for p in parameters):
            return False
        v = probe_vector(parameters)

        def product(last: bool) -> Tensors:
            with cheap_second_derivatives(last):
                return by_columns(self._operator.graph(0, parameters).product, v, free=True)

        # A graph and a product each; once, since the gain is large or not worth having.
        self._objective.passes += 2 * 9 / len(self._objective)
        try:
            plain, slow = timed(partial(product, False), self._objective.device, times=1)
            other, fast = timed(partial(product, True), self._objective.device, times=1)
        except (RuntimeError, LandscapeError):  # the model views memory in its own way, or can't be multiplied at all
            return False
        return agree(plain, other) and fast * GAIN < slow

    def _try_forward(self, i: int, parameters: Tensors) -> None:
        """Take forward mode for the batches that are not kept, if it agrees with reverse mode and is faster."""
        v = probe_vector(parameters)

        def rebuilt() -> Tensors:
            return self._through(self._operator.graph(i, parameters), v, False)

        def forward() -> Tensors:
            with torch_derivatives():
                return by_columns(self._forward(i, parameters)[1], v)

        self._objective.passes += 36 / len(self._objective)
        try:
            plain, slow = timed(rebuilt, self._objective.device)
            other, fast = timed(forward, self._objective.device)
        except (RuntimeError, LandscapeError):  # no forward-mode rule for some operation
            return
        if agree(plain, other) and fast * GAIN < slow:
            self._other = "forward"
            self._why += f"; forward mode took {fast / slow:.2f} times as long"

    # ------------------------------------------------------------------------------------------ one product

    def _through(self, graph: BatchGraph, V: Tensors, kept: bool) -> list[Any]:
        """Return A_i V through a graph: vectorized where that was found to be faster."""
        k = len(V[0])
        block: Callable[[Tensors], Tensors] | None = getattr(graph, "block", None)
        if k == 1 or block is None or self._strategy != "auto" or self._vectorize is False:
            return by_columns(graph.product, V, free=not kept)
        width = max(1, min(BLOCK, k, (self._budget // self._bytes) if self._bytes else BLOCK))
        if self._vectorize is None:
            self._vectorize = width > 1 and self._vectorized_wins(graph, block, [v[:width] for v in V])
            return self._through(graph, V, kept)
        pieces = [quiet(partial(block, [v[a : a + width] for v in V])) for a in range(0, k, width)]
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def _vectorized_wins(self, graph: BatchGraph, block: Callable[[Tensors], Tensors], V: Tensors) -> bool:
        device = self._objective.device
        self._objective.passes += 6 * 4 * len(V[0]) / len(self._objective)
        plain, slow = timed(lambda: by_columns(graph.product, V), device)
        try:
            quiet(lambda: block([v[:2] for v in V]))
            other, fast = timed(lambda: quiet(lambda: block(V)), device)
        except (RuntimeError, torch.OutOfMemoryError):  # no batching rule for some operation, or too wide
            return False
        return agree(plain, other) and fast * GAIN < slow

    def _forward(self, i: int, parameters: Tensors) -> tuple[float, Callable[[Tensors], Tensors]]:
        """Return (weight, v -> H_i v) by forward over reverse mode: jvp of grad."""
        function, weight = self._operator.functional(i, parameters)
        gradient = torch.func.grad(function)

        def multiply(v: Tensors) -> Tensors:
            return [t.detach() for t in quiet(lambda: torch.func.jvp(gradient, (tuple(parameters),), (tuple(v),))[1])]

        return weight(), multiply

    def _linearized(self, i: int, parameters: Tensors, V: Tensors, keep: bool) -> tuple[float, list[Any], float]:
        found, fresh = self._kept.get(i), 0.0
        if found is None:
            found, fresh = _linearize(*self._operator.functional(i, parameters), parameters), 1.0
            if keep:
                self._kept[i] = found
        weight, multiply = found
        return weight, by_columns(multiply, V), fresh


def _linearize(
    function: Callable[[Tensors], torch.Tensor], weight: Callable[[], float], parameters: Tensors
) -> tuple[float, Callable[[Tensors], Tensors]]:
    linear = quiet(lambda: torch.func.linearize(torch.func.grad(function), tuple(parameters))[1])
    return weight(), lambda v: [t.detach() for t in linear(tuple(v))]


def graph_bytes(build: Callable[[], Any], besides: Sequence[torch.Tensor]) -> int:
    """Return the bytes of the tensors that the graph built by `build()` keeps alive besides these."""
    own = {part.untyped_storage().data_ptr() for t in besides for part in parts(t)}
    held: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        for part in parts(t):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        graph = build()
    del graph
    return sum(held.values())


def free_memory(device: torch.device) -> int:
    """Return the default budget for kept graphs on this device, in bytes: this process's part, where several work."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(DEVICE_SHARE * (free + idle)) // sharers("device")
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(HOST_SHARE * 1024 * int(found.split()[1])) // sharers("host")
    except (OSError, StopIteration, ValueError):
        return UNKNOWN_HOST // sharers("host")
