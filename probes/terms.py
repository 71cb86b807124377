"""The terms of a loss: their gradients' norms, and whether they pull in the same direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from landscape.dynamics.norms import tensor_norms
from landscape.widest import wide

from .probe import Probe, Quantity, Run
from .when import When, every


class LossTerms(Probe):
    """`term_gradient_norm` of each term of the loss, and `term_cosine` of each pair of terms' gradients.

    The terms are what `Recorder.log(loss=..., name=tensor)` is given before `backward`, or a loss {term: value}: those
    that have a graph. One backward pass for each term at each of the probe's steps; the loop's own is as it was.

    Args:
        when: which steps; every 50th by default (chosen by us: two terms then cost 2 to 3% of the time).
    """

    name = "terms"

    def __init__(self, when: When | None = None) -> None:
        self.when = when if when is not None else every(steps=50)
        self._declared: tuple[str, ...] = ()
        self._done = -1

    def start(self, run: Run) -> Sequence[Quantity]:
        run.alone("the gradients of a loss's terms")
        return ()

    def lacked(self) -> str:
        if self._done >= 0:
            return ""
        return (
            ": at none of its steps was a term logged that has a graph; write rec.log(loss=loss, first=a, second=b) "
            "with the terms' tensors, or rec.log(loss={'first': a, 'second': b}) before loss.backward()"
        )

    def terms(self, run: Run, number: int, terms: Mapping[str, Tensor]) -> None:
        """Measure the gradients of these terms, for step `number`; of several micro-batches, of the first."""
        if self._done == number:
            return
        self._done = number
        parameters = [p for p in run.followed[0].parameters if p.requires_grad]
        gradients = {}
        for name, value in terms.items():
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            gradients[name] = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        norms = {n: torch.linalg.vector_norm(tensor_norms(g)) for n, g in gradients.items()}
        pairs = {
            f"{a}|{b}": _dot(gradients[a], gradients[b]) / (norms[a] * norms[b]) for a, b in combinations(gradients, 2)
        }
        if tuple(gradients) != self._declared:
            self._declared = tuple(gradients)
            run.declare(Quantity("term_gradient_norm", self._declared, "loss / weight", "norm of each term's gradient"))
            if pairs:
                run.declare(Quantity("term_cosine", tuple(pairs), "", "cosine of the gradients of two terms"))
        run.record("term_gradient_norm", number, torch.stack(list(norms.values())))
        if pairs:
            run.record("term_cosine", number, torch.stack(list(pairs.values())))


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.sum(wide(x) * wide(y)) for x, y in zip(a, b, strict=True)]).sum()
