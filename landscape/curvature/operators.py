"""Symmetric curvature operators of the mean loss over a task's fixed draw: products with vectors on the device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..data import first_line
from ..errors import MeasurementError, ObjectiveError
from ..objective import Objective
from ..parameters import flatten, trainable, unflatten
from ..tasks import Task

Tensors = Sequence[torch.Tensor]


class Operator:
    """A symmetric (n, n) operator over the trainable parameters; `A @ v` for v (n,) and `A @ V` for V (n, k).

    Use it as a context manager to keep the model prepared across many products; outside `with`, each product
    prepares and restores the model by itself. `products` counts the columns multiplied so far.

    Args:
        task: a Task, or an Objective to share.
        parameters: None for all trainable ones, or names and prefixes of names ("layer4", "head.weight").
        split: the data to take the mean over; the training data by default.
    """

    #: What `Eigenpairs.operator` says.
    title = "operator"

    def __init__(
        self, task: Task | Objective, parameters: str | Sequence[str] | None = None, *, split: str = "train"
    ) -> None:
        self.objective = task if isinstance(task, Objective) else Objective(task, split)
        every = trainable(self.objective.model)
        self.names = _select(tuple(every), parameters)
        self._sizes = {name: every[name].numel() for name in self.names}
        n = sum(self._sizes.values())
        self.shape = (n, n)
        self.dtype = self.objective.dtype
        self.device = self.objective.device
        self.split = self.objective.split
        self.products = 0
        self._depth = 0
        self._ours = False
        self._seen = False

    def __enter__(self) -> Operator:
        if self._depth == 0 and not self.objective.entered:
            self.objective.__enter__()
            self._ours = True
        self._depth += 1
        return self

    def __exit__(self, *error: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._ours:
            self._ours = False
            self.objective.__exit__(*error)

    @property
    def passes(self) -> float:
        """Forward passes over the draw that the objective has spent so far, its checks included."""
        return self.objective.passes

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        """Return A v, on the device and in the dtype of the operator; `v` is (n,) or (n, k)."""
        if not isinstance(v, torch.Tensor):
            raise TypeError(f"A @ v needs a torch.Tensor, got {type(v).__name__}; for NumPy use A.to_scipy()")
        if v.ndim not in (1, 2) or v.shape[0] != self.shape[0]:
            raise MeasurementError(
                f"a vector of shape {tuple(v.shape)} doesn't fit the operator of shape {self.shape}; "
                f"expected ({self.shape[0]},) or ({self.shape[0]}, k)"
            )
        columns = v.to(self.device, self.dtype).reshape(self.shape[0], -1)
        with self:
            live = dict(zip(self.objective.names, self.objective.parameters, strict=True))
            parameters = [live[name] for name in self.names]
            vectors = [unflatten(column.contiguous(), parameters) for column in columns.T]
            sums = [torch.zeros(self.shape[0], device=self.device, dtype=self.dtype) for _ in vectors]
            total = 0.0
            for i in range(len(self.objective)):
                weight = self._add(i, parameters, vectors, sums)
                total += weight
            if total == 0:
                raise ObjectiveError(f"every {self.split} sample has weight 0: there is no mean to differentiate")
        self.products += len(sums)
        # By operation count, in forward passes: the gradient's graph 3, each product through it 3 more.
        self.objective.passes += 3 + 3 * len(sums)
        return (torch.stack(sums, dim=1) / total).reshape(v.shape)

    def _add(self, i: int, parameters: Tensors, vectors: Sequence[Tensors], sums: list[torch.Tensor]) -> float:
        """Add weight * (A_i v) to each sum for batch i, and return the batch's weight."""
        try:
            weight = 0.0
            for column, (weight, product) in zip(sums, self._batch(i, parameters, vectors), strict=True):
                if weight > 0:
                    column.add_(flatten(product), alpha=weight)
            return weight
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _explained(error) from error

    def _batch(self, i: int, parameters: Tensors, vectors: Sequence[Tensors]) -> Iterator[tuple[float, Tensors]]:
        """Yield (weight, A_i v) for each vector."""
        raise TypeError(f"{type(self).__name__} has no product of its own; use Hessian or GaussNewton")

    def _see_through(self, tensors: Sequence[torch.Tensor], parameters: Tensors) -> None:
        """Refuse, once for each operator, a once_differentiable function between these tensors and the parameters.

        The gradient that it gives leads to no parameter, so autograd.grad skips it without a word: the product would
        silently miss that part of the model.
        """
        if self._seen:
            return
        self._seen = True
        customs = sorted({n.name().removesuffix("Backward") for n in _between(tensors, parameters) if _only_once(n)})
        if customs:
            raise ObjectiveError(
                f"the operation {', '.join(customs)} is differentiable only once (torch.autograd.function."
                "once_differentiable), so that the model or its loss has no second derivative; write its backward in "
                "torch operations and without that decorator"
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
    whole draw however it is cut. Units: loss / parameter^2. One product costs a forward, a backward and a double
    backward pass over the draw (3.5 gradients measured for a small transformer); a block of k columns shares the
    first two. Raises ObjectiveError naming the operation that has no second derivative.
    """

    title = "Hessian"

    def _batch(self, i: int, parameters: Tensors, vectors: Sequence[Tensors]) -> Iterator[tuple[float, Tensors]]:
        mean, weight = self.objective.batch_loss(i)
        if weight == 0:
            for _ in vectors:
                yield 0.0, ()
            return
        gradient = torch.autograd.grad(mean, parameters, create_graph=True, allow_unused=True)
        self._see_through([mean], parameters)
        # Where the loss is linear in a parameter, or doesn't hold it, the gradient is a constant without a graph.
        curved = [(g, j) for j, g in enumerate(gradient) if g is not None and g.requires_grad]
        for k, v in enumerate(vectors):
            if not curved:
                yield weight, [torch.zeros_like(p) for p in parameters]
                continue
            product = torch.autograd.grad(
                [g for g, _ in curved],
                parameters,
                grad_outputs=[v[j] for _, j in curved],
                retain_graph=k + 1 < len(vectors),
                allow_unused=True,
                materialize_grads=True,
            )
            yield weight, product


class GaussNewton(Operator):
    """The generalized Gauss-Newton matrix J^T H_L J (Schraudolph 2002, doi:10.1162/08997660260028683).

    J is the Jacobian of the model's outputs, H_L the Hessian of the loss in them; for softmax cross entropy
    H_L = diag(p) - p p^T, and the matrix is the type-2 Fisher. Positive semi-definite for a convex loss. J v comes
    from two transposed products, so that no forward-mode rule of the user's model is needed. Refuses batch_loss
    tasks, whose outputs nobody knows.
    """

    title = "Gauss-Newton"

    def _batch(self, i: int, parameters: Tensors, vectors: Sequence[Tensors]) -> Iterator[tuple[float, Tensors]]:
        objective = self.objective
        z, leaves, mean, weight = objective.batch_outputs(i)
        if not z:
            raise ObjectiveError("the model's outputs don't depend on its parameters: Gauss-Newton is undefined")
        if weight == 0:
            for _ in vectors:
                yield 0.0, ()
            return
        slope = torch.autograd.grad(mean, leaves, create_graph=True, allow_unused=True)
        if any(s is not None and t.ndim == 0 for s, t in zip(slope, leaves, strict=True)):
            raise ObjectiveError(
                "the loss takes a single number out of the model's outputs (a loss that the model computed): "
                "Gauss-Newton needs a loss computed from the logits; give Task(loss=...) with a forward that returns "
                "(logits, target), or use Hessian"
            )
        used = [j for j, s in enumerate(slope) if s is not None]
        z, leaves, slope = [z[j] for j in used], [leaves[j] for j in used], [s for s in slope if s is not None]
        curved = [(s, j) for j, s in enumerate(slope) if s.requires_grad]
        dummy = [torch.zeros_like(t, requires_grad=True) for t in z]
        transposed = torch.autograd.grad(
            z, parameters, grad_outputs=dummy, create_graph=True, allow_unused=True, materialize_grads=True
        )
        self._see_through([*z, mean], [*parameters, *leaves])
        held = [(t, j) for j, t in enumerate(transposed) if t.requires_grad]
        for v in vectors:
            if not curved or not held:
                yield weight, [torch.zeros_like(p) for p in parameters]
                continue
            forward = torch.autograd.grad(
                [t for t, _ in held],
                dummy,
                grad_outputs=[v[j] for _, j in held],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            bent = torch.autograd.grad(
                [s for s, _ in curved],
                leaves,
                grad_outputs=[forward[j] for _, j in curved],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            product = torch.autograd.grad(
                z, parameters, grad_outputs=bent, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            yield weight, product


def _between(tensors: Sequence[torch.Tensor], parameters: Tensors) -> set[Any]:
    """Return the nodes of the autograd graph that lie between these tensors and the parameters."""
    wanted = {id(p) for p in parameters}
    before: dict[Any, list[Any]] = {t.grad_fn: [] for t in tensors if t.grad_fn is not None}
    waiting, reached = list(before), []
    while waiting:
        node = waiting.pop()
        if id(getattr(node, "variable", None)) in wanted:
            reached.append(node)
        for deeper, _ in node.next_functions:
            if deeper is not None:
                if deeper not in before:
                    before[deeper] = []
                    waiting.append(deeper)
                before[deeper].append(node)
    found = set(reached)
    while reached:
        for node in before[reached.pop()]:
            if node not in found:
                found.add(node)
                reached.append(node)
    return found


def _only_once(node: Any) -> bool:
    """Whether a node is a custom function whose backward torch's once_differentiable wraps."""
    backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
    return getattr(backward, "__code__", None) is _ONCE


#: What once_differentiable puts around every backward that it is given.
_ONCE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__


def _select(names: tuple[str, ...], wanted: str | Sequence[str] | None) -> tuple[str, ...]:
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


def _explained(error: RuntimeError) -> Exception:
    """Turn autograd's refusals into a line that names the operation and the way out."""
    text = first_line(error)
    found = re.search(r"derivative for '?(?:aten::)?([\w.]+)'? is not implemented", text)
    if found:
        return ObjectiveError(
            f"the operation {found[1]} in the model or its loss has no second derivative: replace it by one that has "
            "(for attention: torch.nn.functional.scaled_dot_product_attention, which is run on its math kernel)"
        )
    if "does not require grad" in text:
        return ObjectiveError(
            "the loss doesn't depend on the parameters through torch operations (detached, or computed outside "
            "torch): it can't be differentiated"
        )
    return ObjectiveError(f"the loss can't be differentiated twice: {text}")
