"""Curvature while training: the largest eigenvalues on a fixed batch, against the optimizer's threshold."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from landscape.curvature.lanczos import eigenpairs
from landscape.curvature.margin import as_trained, threshold_at
from landscape.curvature.operators import Hessian
from landscape.curvature.optimizer_state import read_optimizer
from landscape.curvature.preconditioned import Preconditioned, covers
from landscape.curvature.spectrum import Eigenpairs
from landscape.curvature.traces import trace
from landscape.errors import MeasurementError
from landscape.parameters import inside_ddp
from landscape.results import Check

from .derivatives import twice_differentiable
from .probe import Found, Now, Probe, Quantity, Run
from .when import When, log_spaced

_COLUMNS = (
    "lambda_max",
    "threshold",
    "margin",
    "trace",
    "trace_stderr",
    "products",
    "seconds",
)
#: How the names of the checks begin that say whether an eigenvalue was missed.
_AUDIT = "multiplicity"


class CurvatureProbe(Probe):
    """The k largest Hessian eigenvalues of the task's loss on one fixed draw, and how far the optimizer is from
    unstable.

    Quantities: `eigenvalue` (1 ... k), `eigenvalue_residual`, and `curvature`: lambda_max of the operator that decides
    stability (the Hessian, or the preconditioned one of an adaptive optimizer), its `threshold`, the `margin`
    1 - lambda_max / threshold (below 0: the steps along it grow), the trace with its standard error, products and
    seconds. Of several optimizers the first is judged. Each measurement starts from the eigenvectors of the one before
    and a random vector ten times as long, so that an eigenvalue that has overtaken them in other weights (an expert
    that was idle) is mostly seen: of 100 made-up cases it is missed in 8 for k = 1, in 11 for k = 2, in 36 for k = 5
    (from nothing 2, 4 and 35). verify=True looks for it each time.
    The first one compares a Hessian product with differences of gradients, as `landscape probe` does, and a loss whose
    second derivative misses a part (a detached advantage, a straight-through gradient) switches the probe off; not
    under DistributedDataParallel, which bears no other precision.
    BatchNorm uses batch statistics, as the training steps do, unless the task says otherwise. Needs
    `Recorder(..., task=...)`.

    Args:
        k: eigenvalues.
        samples: of the fixed draw; 512 by default (chosen by us: lambda_max of a subsample is biased upward, and
            comparable along the run because the draw stays the same).
        when: by default log-spaced within 5% of the run's time.
        tol: residual allowed, as a share of lambda_1.
        draws: of the trace; 0 leaves it out.
        verify: audit for missed eigenvalues each time (see `eigenpairs`); by default once: at the first measurement,
            and with a budget at the second, because the first is made whatever it costs and the audit is half of that.
        shared: let all processes of a distributed training measure together, each on its part of the draw, instead of
            having them wait for the first one; each needs the same task with the same data.
    """

    name = "curvature"
    expensive = True

    def __init__(
        self,
        k: int = 1,
        *,
        samples: int | None = 512,
        when: When | None = None,
        tol: float = 1e-2,
        draws: int = 0,
        verify: bool | None = None,
        split: str = "train",
        shared: bool = False,
    ) -> None:
        self.shared = shared
        self.when = when if when is not None else log_spaced(budget=0.05)
        self.k, self.samples, self.tol, self.draws, self.verify, self.split = k, samples, tol, draws, verify, split
        self._vectors: torch.Tensor | None = None
        self._measured = 0
        self._audit: tuple[int, list[Check]] | None = None
        self._preconditioned: torch.Tensor | None = None

    def everywhere(self, run: Run) -> bool:
        return self.shared

    def start(self, run: Run) -> Sequence[Quantity]:
        if run.task is None:
            raise MeasurementError(
                "curvature needs the data of a task: Recorder(..., task=Task(model, loss, train=...))"
            )
        run.alone("curvature")
        task, _ = as_trained(run.task)
        self._measured, self._audit = 0, None
        self._task = task if self.samples is None else task.replace(max_samples=self.samples)
        ranks = tuple(str(i + 1) for i in range(self.k))
        return [
            Quantity("eigenvalue", ranks, "loss / weight^2", "largest eigenvalues of the Hessian on the probe's draw"),
            Quantity("eigenvalue_residual", ranks, "loss / weight^2", "residual of each eigenpair"),
            Quantity(
                "curvature",
                _COLUMNS,
                "",
                "the eigenvalue that decides stability, its threshold, 1 - eigenvalue / threshold; trace; cost",
            ),
        ]

    def measure(self, run: Run, now: Now) -> Found:
        started = time.perf_counter()
        verify = self._measured == (self.when.budget is not None) if self.verify is None else self.verify
        compare = not self._measured
        self._measured += 1
        with run.objective(self._task, self.split, self.shared) as objective:
            H = Hessian(objective)
            compared = (self._derivatives(),) if compare and not inside_ddp(run.wrapped) else ()
            k = min(self.k, H.shape[0])
            pairs = eigenpairs(H, k, "largest", self.tol, self._vectors, run.seed + now.step, verify=verify)
            self._vectors = pairs.vectors
            if self.verify is None:
                pairs = self._with_audit(pairs, now.step, verify)
            largest, limit, products = float(pairs.values[0]), math.nan, pairs.products
            with_state = read_optimizer(run.followed[0].optimizer)
            found = threshold_at(with_state, objective)
            if found.defined:
                limit = found.threshold
                if found.operator == "preconditioned" or not covers(with_state, H):
                    largest, limit, more = self._of_preconditioned(H, with_state, run.seed + now.step)
                    products += more
            estimate = trace(H, draws=self.draws, seed=run.seed) if self.draws else None
        if estimate is not None:
            products += estimate.products
        values, residuals = _padded(pairs.values, self.k), _padded(pairs.residuals, self.k)
        row = {
            "lambda_max": largest,
            "threshold": limit,
            "margin": 1 - largest / limit,
            "trace": math.nan if estimate is None else float(estimate.value),
            "trace_stderr": math.nan if estimate is None else float(estimate.stderr),
            "products": float(products),
            "seconds": time.perf_counter() - started,
        }
        rows: dict[str, Sequence[float]] = {
            "eigenvalue": values,
            "eigenvalue_residual": residuals,
            "curvature": [row[c] for c in _COLUMNS],
        }
        return Found(rows, (replace(pairs, checks=(*pairs.checks, *compared)),))

    def _derivatives(self) -> Check:
        """Compare a Hessian product with differences of gradients; MeasurementError where a part is missing."""
        check = twice_differentiable(self._task)
        if check.level == "fail":
            raise MeasurementError(check.message)
        return check

    def _with_audit(self, pairs: Eigenpairs, step: int, audited: bool) -> Eigenpairs:
        """Return the pairs with what the run's one audit found, once it is made, where they had none of their own."""
        if audited:
            self._audit = (step, [c for c in pairs.checks if c.name.startswith(_AUDIT)])
        elif self._audit is not None:
            at, found = self._audit
            told = f" (at step {at}; not looked for again since: verify=True does so each time)"
            kept = [c for c in pairs.checks if not c.name.startswith(_AUDIT)]
            checks = (*kept, *(replace(c, message=c.message + told) for c in found))
            return replace(pairs, checks=checks)
        return pairs

    def _of_preconditioned(self, H: Any, state: Any, seed: int) -> tuple[float, float, int]:
        """Return the eigenvalue and the threshold of the preconditioned operator, NaN before the first step's state."""
        try:
            A = Preconditioned(H, state)
        except MeasurementError:
            return math.nan, math.nan, 0
        pairs = eigenpairs(A, 1, "largest", self.tol, self._preconditioned, seed, verify=False)
        self._preconditioned = pairs.vectors
        return float(pairs.values[0]), A.threshold.threshold, pairs.products

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._vectors = self._preconditioned = None  # a resumed run starts cold, and says the same within tol


def _padded(values: Any, k: int) -> list[float]:
    found = [float(v) for v in values]
    return [*found, *[math.nan] * (k - len(found))]
