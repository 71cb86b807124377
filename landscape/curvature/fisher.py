"""The Fisher information matrix: exact (type 2), from labels drawn from the model, and the empirical one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from ..errors import MeasurementError
from ..objective import Objective
from ..tasks import Task
from .graphs import BatchGraph, JacobianGraph, NoGraph, Tensors, needs_outputs
from .likelihoods import terms_of
from .operators import GaussNewton
from .products import Strategy

Kind = Literal["type-2", "monte-carlo", "empirical"]


class Fisher(GaussNewton):
    """The Fisher information of the model's predictive distribution, averaged over the draw: positive semi-definite.

    F = sum_r w_r E[g_r g_r^T] / sum_r w_r over the terms r that the loss's mean counts (a label or token for cross
    entropy, an element for binary cross entropy and squared error), g_r the term's gradient in the parameters:

    - "type-2": the expectation over the model's own labels, exactly. For these losses it is the Gauss-Newton matrix
      (Martens 2020, "New insights and perspectives on the natural gradient method", JMLR 21(146), section 9), and is
      computed as that.
    - "monte-carlo": `draws` labels drawn from the model for each term (Kunstner, Hennig and Balles 2019,
      arXiv:1905.12558, equation 5); an unbiased estimate, fixed by `seed`.
    - "empirical": at the true labels. No approximation of the Fisher or the Hessian away from a perfect fit (the same
      paper is about that); it is what many optimizers call so.

    Args:
        task, parameters, split, strategy, memory: as for `Operator`.
        kind: see above.
        draws: labels drawn for each term with "monte-carlo" (default 1: chosen by us, as in Kunstner et al.).
        seed: of the labels, drawn on the CPU.

    Costs as GaussNewton: a product takes about 1.5 gradients through a kept graph, by operation count. Raises
    MeasurementError for a loss that is no likelihood known here (see `likelihoods.py`), and for a batch_loss task.
    """

    title = "Fisher"

    def __init__(
        self,
        task: Task | Objective,
        parameters: str | Sequence[str] | None = None,
        *,
        kind: Kind = "type-2",
        draws: int = 1,
        seed: int = 0,
        split: str = "train",
        strategy: Strategy = "auto",
        memory: int | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise MeasurementError(f"kind={kind!r} is unknown; choose from {', '.join(get_args(Kind))}")
        if draws < 1:
            raise MeasurementError(f"draws={draws} must be at least 1")
        super().__init__(task, parameters, split=split, strategy=strategy, memory=memory)
        self.kind: Kind = kind
        self.title = f"Fisher ({kind})"
        # Labels are drawn batch by batch.
        self.joinable = kind != "monte-carlo"
        self._draws = draws
        self._seed = seed

    def graph(self, i: int, parameters: Tensors) -> BatchGraph:
        objective = self.objective
        needs_outputs(objective)
        _, outputs, target, _ = objective.value(i)
        drawn = self.kind == "monte-carlo"
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + objective.number(i)) if drawn else None
        terms = terms_of(objective.task.loss, outputs, target, self._draws, generator)
        if self.kind == "type-2":
            return super().graph(i, parameters)
        weight = float(terms.weights.sum())
        if weight == 0:
            return NoGraph()
        self._see_through([outputs], parameters)
        return JacobianGraph([outputs], weight, parameters, lambda forward: [terms.outer(forward[0])])
