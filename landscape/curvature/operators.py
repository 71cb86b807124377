"""Symmetric curvature operators of the mean loss over a task's fixed draw: products with vectors on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import nn

from ..errors import MeasurementError, ObjectiveError
from ..objective import Objective
from ..parameters import trainable
from ..session import batchnorm_layers
from ..tasks import Task
from .compiled import CompiledProducts
from .graphs import (
    BatchGraph,
    HessianGraph,
    JacobianGraph,
    NoGraph,
    Tensors,
    custom_functions,
    depends_on,
    loss_curvature,
    noticing_hooks,
)
from .operands import check_vector
from .products import Products, Strategy

By = Literal["layer", "tensor"]


class Operator:
    """A symmetric (n, n) operator over the trainable parameters; `A @ v` for v (n,) and `A @ V` for V (n, k).

    Use it as a context manager to keep the model prepared, and the graphs that fit, across many products; outside
    `with`, each product prepares and restores the model by itself. `products` counts the columns multiplied so far,
    `how` says in words how they were made.

    Args:
        task: a Task, or an Objective to share.
        parameters: None for all trainable ones, or names and prefixes of names ("layer4", "head.weight").
        split: the data to take the mean over; the training data by default.
        strategy: "auto" measures and picks; "keep" keeps every batch's graph; "rebuild" keeps none; "forward" and
            "linearize" go by forward over reverse mode, the second with the linearized gradients kept, and "compile"
            traces the product for torch.compile (the last three for the Hessian only, and never picked by themselves:
            see `compiled.py`, and docs/decisions.md for what was measured).
        memory: bytes for graphs that are kept with "auto"; by default a quarter of the host's free memory, or half of
            the GPU's (chosen by us).

    Out of memory, the graphs are rebuilt instead of kept, or the batches cut in two, once each, and `notes` says so.
    """

    #: What `Eigenpairs.operator` says.
    title = "operator"
    #: Whether the matrix stays what it is when batches are joined, or cut: "auto" then may join them, and processes
    #: that share the draw cut those that are left over.
    joinable = False

    def __init__(
        self,
        task: Task | Objective,
        parameters: str | Sequence[str] | None = None,
        *,
        split: str = "train",
        strategy: Strategy = "auto",
        memory: int | None = None,
    ) -> None:
        self.objective = task if isinstance(task, Objective) else Objective(task, split)
        every = trainable(self.objective.model)
        self.names = select(tuple(every), parameters)
        self._sizes = {name: every[name].numel() for name in self.names}
        n = sum(self._sizes.values())
        self.shape = (n, n)
        self.dtype = self.objective.dtype
        self.device = self.objective.device
        self.split = self.objective.split
        self.products = 0
        self._how: tuple[Strategy, int | None] = (strategy, memory)
        self._products = Products(self, strategy, memory)
        self._depth = 0
        self._ours = False
        self._seen = False
        self._customs: tuple[str, ...] = ()
        self._held = _held_statistics(self.objective)

    def __enter__(self) -> Operator:
        if self._depth == 0 and not self.objective.entered:
            self.objective.__enter__()
            self._ours = True
        self._depth += 1
        return self

    def __exit__(self, *error: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self._products.leave()
        if self._ours:
            self._ours = False
            self.objective.__exit__(*error)

    @property
    def passes(self) -> float:
        """Forward passes over the draw that the objective has spent so far, its checks included."""
        return self.objective.passes

    @property
    def how(self) -> str:
        """How products are made, and why so."""
        return self._products.how

    @property
    def held(self) -> tuple[int, int]:
        """(bytes of one batch's graph, graphs kept), as measured at the first product inside `with`."""
        return self._products.held

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know: of the task as it is measured, and of what happened on the way."""
        return (*self.objective.notes, *self._held, *self._customs, *self._products.notes)

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        """Return A v, on the device and in the dtype of the operator; `v` is (n,) or (n, k)."""
        check_vector(v, self.shape[0])
        rows = v.detach().to(self.device, self.dtype).reshape(self.shape[0], -1).T.contiguous()
        if not len(rows):
            return v.new_zeros(v.shape, dtype=self.dtype, device=self.device)
        lasting = self._depth > 0
        with self:
            live = dict(zip(self.objective.names, self.objective.parameters, strict=True))
            found, total = self._products.multiply(rows, [live[name] for name in self.names], keep=lasting)
            if total == 0:
                raise ObjectiveError(f"every {self.split} sample has weight 0: there is no mean to differentiate")
        self.products += len(rows)
        return (found / total).T.reshape(v.shape).contiguous()

    def restricted(self, parameters: str | Sequence[str]) -> Self:
        """Return the diagonal block of these parameters (names or prefixes), on the same objective."""
        return self._block(select(self.names, parameters))

    def blocks(self, by: By = "layer") -> dict[str, Self]:
        """Return the diagonal blocks of each layer (the module that holds the parameters), or of each tensor, by name.

        Multiply them one after the other, inside `with` of the whole operator: the model is then prepared once.
        """
        if by not in get_args(By):
            raise MeasurementError(f"by={by!r} is unknown; choose from {', '.join(get_args(By))}")
        groups: dict[str, list[str]] = {}
        for name in self.names:
            groups.setdefault((name.rpartition(".")[0] or name) if by == "layer" else name, []).append(name)
        return {group: self._block(names) for group, names in groups.items()}

    def _block(self, names: Sequence[str]) -> Self:
        block = copy.copy(self)
        block.names = tuple(names)
        block._sizes = {name: self._sizes[name] for name in names}
        block.shape = (sum(block._sizes.values()),) * 2
        block.products = 0
        block._products = Products(block, *self._how)
        block._depth, block._ours, block._seen, block._customs = 0, False, False, ()
        return block

    def graph(self, i: int, parameters: Tensors) -> BatchGraph:
        """Return the graph of batch i, to multiply vectors by its matrix."""
        raise TypeError(f"{type(self).__name__} has no product of its own; use Hessian, GaussNewton or Fisher")

    def functional(self, i: int, parameters: Tensors) -> tuple[Callable[[Tensors], torch.Tensor], Callable[[], float]]:
        """Return (parameters -> mean loss of batch i, () -> its weight), for torch.func."""
        raise MeasurementError(
            f"{type(self).__name__} has no forward-mode product: use strategy 'auto', 'keep' or 'rebuild'"
        )

    def compiled(self) -> CompiledProducts:
        """Return the products as compiled code."""
        raise MeasurementError(
            f"{type(self).__name__} has no compiled product: use strategy 'auto', 'keep' or 'rebuild'"
        )

    def locate(self, product: torch.Tensor) -> str:
        """Return the names of the parameters in which a product (n,) is not finite, the worst three."""
        bad = (~torch.isfinite(product)).split([self._sizes[name] for name in self.names])
        counts = sorted(((int(b.sum()), name) for b, name in zip(bad, self.names, strict=True)), key=lambda c: -c[0])
        hit = [name for count, name in counts if count]
        return ", ".join(hit[:3]) + (f" and {len(hit) - 3} more" if len(hit) > 3 else "")

    def _see_through(self, tensors: Tensors, inputs: Tensors) -> None:
        """Look, once for each operator, for custom functions between these tensors and the inputs.

        One that is once_differentiable is refused; others are noted.
        """
        if self._seen:
            return
        once, customs = custom_functions(tensors, inputs)
        if once:
            raise ObjectiveError(
                f"the operation {', '.join(once)} is differentiable only once (torch.autograd.function."
                "once_differentiable), so that the model or its loss has no second derivative; write its backward in "
                "torch operations and without that decorator, or take differences of gradients: "
                "FiniteDifferences(task), or --only eigenvalues_by_differences"
            )
        if customs:
            self._customs += (
                f"the second derivative of {', '.join(customs)} (torch.autograd.Function) is taken from its own "
                "backward: a tensor detached in there would be missing without a word; `landscape check`, or A @ v "
                "beside FiniteDifferences(task) @ v, shows whether it is",
            )
        self._seen = True

    def _see_hooks(self, hooks: Sequence[str]) -> None:
        """Note, once for each operator, hooks on tensors that the forward pass registered."""
        if hooks and not self._seen:
            self._customs += (
                f"the forward pass puts a hook on a tensor ({hooks[0]}): derivatives go through what it returns, "
                "and where it changes gradients, or computes them without create_graph=True, they are others than the "
                "loss's without a word; `landscape check`, or A @ v beside FiniteDifferences(task) @ v, shows whether "
                "they are",
            )

    def to_scipy(self) -> Any:
        """Return a scipy LinearOperator over NumPy vectors; one product and two copies across devices a call."""
        from scipy.sparse import linalg

        def product(x: Any) -> Any:
            return (self @ torch.as_tensor(x, device=self.device, dtype=self.dtype)).cpu().numpy()

        dtype = {torch.float32: "float32", torch.float64: "float64"}[self.dtype]
        make: Any = linalg.LinearOperator  # its signature is lost on type checkers: __new__ picks a subclass
        return make(self.shape, matvec=product, rmatvec=product, matmat=product, dtype=dtype)

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({self.shape[0]} parameters, {self.split} data, {kind} on {self.device})"


class Hessian(Operator):
    """The Hessian of the mean loss: H v by differentiating gradient . v.

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian", doi:10.1162/neco.1994.6.1.147.

    H = sum_b w_b H_b / sum_b w_b with w_b the denominator of each batch's mean, so that it is the Hessian of the
    whole draw however it is cut. Units: loss / parameter^2. By operation count a product through a kept graph costs
    two gradients (measured on a CPU: 1.9 on a ResNet-20, 2.4 on a small transformer), and rebuilding the graph one
    more; a block of k columns shares the graph.

    Args, as for every operator (see `landscape.curvature.operators.Operator` for what they cost and do):
        task: a Task, or an Objective to share.
        parameters: None for all trainable ones, or names and prefixes of names ("layer4", "head.weight").
        split: the data to take the mean over; the training data by default.
        strategy: how products are made; "auto" measures and picks (default), `how` then says what.
        memory: bytes for graphs that are kept; None for a share of what is free.

    Raises ObjectiveError naming the operation that has no second derivative, and where the loss can't be measured;
    MeasurementError for parameters that there are none of.
    """

    title = "Hessian"
    joinable = True

    def graph(self, i: int, parameters: Tensors) -> BatchGraph:
        with noticing_hooks() as hooks:
            mean, weight = self.objective.batch_loss(i)
        if weight == 0:
            return NoGraph()
        self._see_hooks(hooks)
        self._see_through([mean], parameters)
        return HessianGraph(mean, weight, parameters)

    def functional(self, i: int, parameters: Tensors) -> tuple[Callable[[Tensors], torch.Tensor], Callable[[], float]]:
        names = [f"model.{name}" for name in self.names]
        holder = _Holder(self.objective, i)

        def loss(values: Tensors) -> torch.Tensor:
            self.objective.buffers.reset()
            # A transformed function may not write into what it didn't make: BatchNorm counts its batches.
            state = {name: b.clone() for name, b in holder.named_buffers()} | dict(zip(names, values, strict=True))
            return torch.func.functional_call(holder, state, ())

        def weight() -> float:
            with self.objective.measuring():
                return self.objective.batch_loss(i)[1]

        return loss, weight

    def compiled(self) -> CompiledProducts:
        return CompiledProducts(self.objective, self.names)


class _Holder(nn.Module):
    """Makes the loss of batch i the output of a module, so that torch.func can swap the model's parameters."""

    def __init__(self, objective: Objective, i: int) -> None:
        super().__init__()
        self.model = objective.model
        self._loss = lambda: objective.batch_loss(i)[0]
        self._swapped = objective.buffers.swapped

    def forward(self) -> torch.Tensor:
        with self._swapped():
            return self._loss()


class GaussNewton(Operator):
    """The generalized Gauss-Newton matrix J^T H_L J (Schraudolph 2002, doi:10.1162/08997660260028683).

    J is the Jacobian of the model's outputs, H_L the Hessian of the loss in them; for softmax cross entropy
    H_L = diag(p) - p p^T, and the matrix is the type-2 Fisher. Positive semi-definite for a convex loss. J v comes
    from two transposed products, so that no forward-mode rule of the user's model is needed. Arguments (task,
    parameters, split, strategy, memory) and errors as for `Hessian`; batch_loss tasks, whose outputs nobody knows, are
    refused by a MeasurementError.
    """

    title = "Gauss-Newton"
    joinable = True

    def graph(self, i: int, parameters: Tensors) -> BatchGraph:
        def seen(tensors: Tensors, leaves: Tensors) -> None:
            if not self._seen and depends_on(tensors[-1], parameters):
                self._customs += (
                    "the loss depends on the weights beside the model's outputs (a penalty on the weights?): that is "
                    f"not in {self.title}, which has the part through the outputs alone; Hessian has both",
                )
            self._see_hooks(hooks)
            self._see_through(tensors, [*parameters, *leaves])

        with noticing_hooks() as hooks:
            outputs, weight, middle = loss_curvature(self.objective, i, seen)
        return JacobianGraph(outputs, weight, parameters, middle) if weight else NoGraph()


def _held_statistics(objective: Objective) -> tuple[str, ...]:
    """Say, where BatchNorm statistics follow the weights, that derivatives don't."""
    if objective.task.batchnorm != "recompute" or not batchnorm_layers(objective.model):
        return ()
    return (
        "derivatives take the recomputed BatchNorm statistics for constants: how these move with the weights is not in "
        "them (batchnorm='batch' differentiates through the statistics)",
    )


def select(names: tuple[str, ...], wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names that are wanted, or lie under a wanted prefix, in the model's order."""
    if wanted is None:
        return names
    asked = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    missing = [w for w in asked if not any(n == w or n.startswith(w + ".") for n in names)]
    if missing or not asked:
        layers = list(dict.fromkeys(n.rpartition(".")[0] or n for n in names))
        raise MeasurementError(
            f"no trainable parameter is called or lies under {missing[0] if missing else '(nothing)'!r}; "
            f"there are {', '.join(layers[:8])}{' ...' if len(layers) > 8 else ''}"
        )
    return tuple(n for n in names if any(n == w or n.startswith(w + ".") for w in asked))
