"""The autograd graph of one batch, through which vectors are multiplied by its Hessian or Gauss-Newton matrix."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from ..batch import map_tensors
from ..data import first_line
from ..errors import MeasurementError, ObjectiveError
from ..objective import Objective
from .rewritten import __name__ as OURS

Tensors = Sequence[torch.Tensor]


class BatchGraph(Protocol):
    """One batch's graph: its `weight` in the mean, and products with its matrix through the graph."""

    weight: float

    def product(self, v: Tensors, *, last: bool = False) -> Tensors:
        """Return A_i v; `last` frees the graph on the way."""
        ...


class NoGraph:
    """A batch that counts nothing: every label ignored."""

    weight = 0.0

    def product(self, v: Tensors, *, last: bool = False) -> Tensors:
        return v


class HessianGraph:
    """The gradient of one batch's mean loss with its graph; H v is the derivative of gradient . v."""

    def __init__(self, mean: torch.Tensor, weight: float, parameters: Tensors) -> None:
        self.weight = weight
        self._parameters = parameters
        gradient = torch.autograd.grad(mean, parameters, create_graph=True, allow_unused=True)
        # Where the loss is linear in a parameter, or doesn't hold it, the gradient is a constant without a graph.
        self._curved = [(g, j) for j, g in enumerate(gradient) if g is not None and g.requires_grad]

    def product(self, v: Tensors, *, last: bool = False) -> Tensors:
        return self._multiply(v, last, batched=False)

    def block(self, V: Tensors) -> Tensors:
        """Return H V for columns stacked along dimension 0 of each tensor, in one vectorized pass."""
        return self._multiply(V, last=False, batched=True)

    def _multiply(self, v: Tensors, last: bool, batched: bool) -> Tensors:
        if not self._curved:
            return [torch.zeros_like(t) for t in v]
        found = torch.autograd.grad(
            [g for g, _ in self._curved],
            self._parameters,
            grad_outputs=[v[j] for _, j in self._curved],
            retain_graph=not last,
            allow_unused=True,
            is_grads_batched=batched,
        )
        return [torch.zeros_like(t) if g is None else g for g, t in zip(found, v, strict=True)]


class JacobianGraph:
    """J and J^T of the model's outputs of one batch, and what lies between them: J^T M J v.

    `middle` gets J v (a tensor for each output) and returns M J v. J v comes from two transposed products, so that
    no forward-mode rule of the user's model is needed.
    """

    def __init__(self, outputs: Tensors, weight: float, parameters: Tensors, middle: Any) -> None:
        self.weight = weight
        self._outputs = outputs
        self._parameters = parameters
        self._middle = middle
        self._dummy = [torch.zeros_like(t, requires_grad=True) for t in outputs]
        transposed = torch.autograd.grad(
            outputs, parameters, grad_outputs=self._dummy, create_graph=True, allow_unused=True, materialize_grads=True
        )
        self._held = [(t, j) for j, t in enumerate(transposed) if t.requires_grad]

    def product(self, v: Tensors, *, last: bool = False) -> Tensors:
        if not self._held:
            return [torch.zeros_like(p) for p in self._parameters]
        forward = torch.autograd.grad(
            [t for t, _ in self._held],
            self._dummy,
            grad_outputs=[v[j] for _, j in self._held],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.autograd.grad(
            self._outputs,
            self._parameters,
            grad_outputs=self._middle(forward),
            retain_graph=not last,
            allow_unused=True,
            materialize_grads=True,
        )


def needs_outputs(objective: Objective) -> None:
    """Raise MeasurementError for a batch_loss task, whose outputs nobody knows."""
    if objective.task.batch_loss is not None:
        raise MeasurementError(
            "Gauss-Newton and Fisher need the model's outputs, which a batch_loss task doesn't give: "
            "use Hessian, or give Task(loss=..., forward=...)"
        )


def _apart(objective: Objective, i: int) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, float]:
    """Return (outputs, leaves, mean loss, weight) of batch i: the tensors that the model gives with their graph,
    and the same tensors cut off from it, of which the mean loss is a function.

    Cut off, because an output may be computed from another one (logits from features): the derivative of the
    loss in the features would then hold the way through the logits, and count it twice.
    """
    needs_outputs(objective)
    batch = objective.begin(i)
    outputs, target = objective.forward(batch)
    live: list[torch.Tensor] = []
    leaves: list[torch.Tensor] = []

    def cut(t: torch.Tensor) -> torch.Tensor:
        if not t.requires_grad:
            return t
        live.append(t)
        leaves.append(t.detach().requires_grad_())
        return leaves[-1]

    loose = map_tensors(outputs, cut)
    mean, weight, _ = objective.weighed(i, loose, target, batch)
    return live, leaves, mean, weight


def loss_curvature(objective: Objective, i: int, seen: Any) -> tuple[Tensors, float, Any]:
    """Return (outputs, weight, H_L) of batch i: H_L multiplies by the Hessian of the mean loss in the outputs.

    `seen(tensors, inputs)` is told what will be differentiated twice, before it is. Raises MeasurementError for a
    batch_loss task.
    """
    outputs, leaves, mean, weight = _apart(objective, i)
    if not outputs:
        raise ObjectiveError("the model's outputs don't depend on its parameters: Gauss-Newton is undefined")
    if weight == 0:
        return (), 0.0, None
    slope = torch.autograd.grad(mean, leaves, create_graph=True, allow_unused=True)
    if any(s is not None and t.ndim == 0 for s, t in zip(slope, leaves, strict=True)):
        raise ObjectiveError(
            "the loss takes a single number out of the model's outputs (a loss that the model computed): "
            "Gauss-Newton needs a loss computed from the logits; give Task(loss=...) with a forward that returns "
            "(logits, target), or use Hessian"
        )
    used = [j for j, s in enumerate(slope) if s is not None]
    outputs, leaves = [outputs[j] for j in used], [leaves[j] for j in used]
    kept = [s for s in slope if s is not None]
    seen([*outputs, mean], leaves)
    curved = [(s, j) for j, s in enumerate(kept) if s.requires_grad]

    def multiply(forward: Tensors) -> Tensors:
        if not curved:  # a loss that is linear in the outputs
            return [torch.zeros_like(t) for t in leaves]
        return torch.autograd.grad(
            [s for s, _ in curved],
            leaves,
            grad_outputs=[forward[j] for _, j in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    return outputs, weight, multiply


def depends_on(tensor: torch.Tensor, inputs: Tensors) -> bool:
    """Say whether a tensor's graph leads to one of the inputs."""
    return bool(_between([tensor], inputs))


@contextlib.contextmanager
def noticing_hooks() -> Iterator[list[str]]:
    """Yield a list that gets an entry for each hook that somebody registers on a tensor inside."""
    original, found = torch.Tensor.register_hook, list[str]()

    def register(self: torch.Tensor, hook: Any) -> Any:
        found.append(getattr(hook, "__name__", type(hook).__name__))
        return original(self, hook)

    torch.Tensor.register_hook = register  # type: ignore[method-assign]
    try:
        yield found
    finally:
        torch.Tensor.register_hook = original  # type: ignore[method-assign]


def custom_functions(tensors: Sequence[torch.Tensor], inputs: Tensors) -> tuple[list[str], list[str]]:
    """Return the custom functions between these tensors and inputs: those differentiable only once, and the others.

    The gradient that one of the first kind gives leads to no parameter, so autograd.grad skips it without a word: a
    product would silently miss that part of the model. The others may miss a part, if they detach it. Our own
    convolutions (`rewritten.py`) are left out.
    """
    nodes = _between(tensors, inputs)
    customs = [n for n in nodes if getattr(getattr(n, "_forward_cls", None), "__module__", OURS) != OURS]
    once = {n.name().removesuffix("Backward") for n in customs if _only_once(n)}
    return sorted(once), sorted({n.name().removesuffix("Backward") for n in customs} - once)


def _between(tensors: Sequence[torch.Tensor], inputs: Tensors) -> set[Any]:
    """Return the nodes of the autograd graph that lie between these tensors and the inputs."""
    wanted = {id(p) for p in inputs}
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


def explained(error: Exception) -> Exception:
    """Turn autograd's refusals into a line that names the operation and the way out."""
    text = first_line(error)
    found = re.search(r"derivative for '?(?:aten::)?([\w.]+)'? is not implemented", text)
    if found:
        return ObjectiveError(
            f"the operation {found[1]} in the model or its loss has no second derivative: replace it by one that has "
            "(for attention: torch.nn.functional.scaled_dot_product_attention, which is run on its math kernel), or "
            "take differences of gradients: FiniteDifferences(task), or --only eigenvalues_by_differences"
        )
    if "does not require grad" in text:
        return ObjectiveError(
            "the loss doesn't depend on the parameters through torch operations (detached, or computed outside "
            "torch): it can't be differentiated"
        )
    return ObjectiveError(f"the loss can't be differentiated twice: {text}")
