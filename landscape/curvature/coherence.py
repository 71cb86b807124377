"""SGD coherence: how alike the samples' own curvatures are, and from which eigenvalue on SGD diverges."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from tqdm import tqdm

from ..errors import MeasurementError
from ..memory import ran_out
from ..objective import Objective
from ..parameters import flatten
from ..results import Cost, Option, measurement
from ..session import batchnorm_layers
from ..tasks import Task
from .batch_sharpness import plain_rate
from .graphs import explained, loss_curvature
from .operators import GaussNewton
from .thresholds import Coherence

#: Outputs that a sample may have (each costs a backward pass), bytes for the factors of all samples, and groups of the
#: jackknife (all chosen by us).
MOST_OUTPUTS, MEMORY, GROUPS = 256, 1 << 30, 16
#: Share of the largest eigenvalue that one may lie below 0 and be rounding (chosen by us).
CONVEX = 1e-5


@measurement(
    "coherence",
    section="stability",
    default=False,
    order=32,
    preset={"quick": {"samples": 64}, "standard": {}, "thorough": {"samples": 512}},
    options={
        "samples": Option(128, "samples whose Gauss-Newton matrices are compared"),
        "batch": Option(128, "B, the batch size of the training", "as for sharpness"),
        "lr": Option(None, "learning rate; None: the optimizer's own, which the checkpoint carries"),
        "split": Option("train", "the data whose samples are taken", choices=("train", "test")),
    },
    # In passes over the draw: a forward and a backward pass for each output (10, say) of each sample taken.
    estimate=lambda samples=128, draw_samples=128, **_: 21.0 * samples / max(draw_samples, 1) + 2,
    needs=("second derivative", "outputs"),
)
def measure_coherence(
    task: Task | Objective,
    *,
    seed: int = 0,
    progress: bool = False,
    samples: int = 128,
    batch: int = 128,
    lr: float | None = None,
    split: str = "train",
) -> Coherence:
    """Coherence of the samples' Gauss-Newton matrices, and the eigenvalue beyond which SGD diverges.

    sigma = lambda_1(S) / max_i lambda_1(H_i), S_ij = sqrt(tr H_i H_j): n for n samples with the same rank-one H_i, 1
    for orthogonal ones. On a quadratic, SGD with batches of B (each sample in a batch with probability B / n) diverges
    in mean square if lambda_1(H) > 2 / lr or lambda_1(H) > (sigma / lr) / sqrt(n/B - 1) (Dexter et al. 2024,
    arXiv:2401.12332). Sufficient, not necessary: below the threshold nothing is promised. H_i is sample i's
    Gauss-Newton matrix, which is positive semi-definite; where samples have weights (class weights) it counts by its
    own, so that H is their mean. With fewer samples than the data hold, sigma is scaled up by their ratio; the largest
    H_i of all is then missed, and sigma too large.

    Costs a forward pass and a backward pass for each output, sample by sample. Raises MeasurementError for a loss that
    is not convex in the outputs, outputs of more than 256 numbers a sample, and tasks without single samples.
    """
    del seed
    start = time.perf_counter()
    for name, value in (("samples", samples), ("batch", batch)):
        if value < 1:
            raise MeasurementError(f"{name}={value} must be at least 1")
    if isinstance(task, Objective):
        task, split = task.task, task.split
    rate, notes = plain_rate(task, lr)
    small = task.replace(max_samples=min(samples, task.max_samples or samples))
    with Objective(small, split, regroup=1) as objective:
        if objective.largest > 1:
            raise MeasurementError(
                f"coherence needs single samples, but this task's batches of {objective.largest} can't be cut"
            )
        factors, cut = _factors(objective, progress)
        norms, largest, top = compare(factors)
        sigma = float(np.linalg.eigvalsh(norms)[-1] / largest.max())
        n = len(factors)
        if batchnorm_layers(objective.model):
            notes = (*notes, "BatchNorm runs on its running statistics: single samples have none of their own")
        population = max(n, objective.draw.available or n)
        limit = 2.0
        if batch < population:
            limit = min(limit, sigma * population / n / math.sqrt(population / batch - 1))
        return Coherence(
            sigma=sigma,
            stderr=_jackknife(norms, largest),
            eigenvalue=top,
            threshold=limit / rate,
            largest=largest,
            samples=n,
            population=population,
            batch=batch,
            lr=rate,
            split=objective.split,
            settings={"samples": samples, "batch": batch},
            warnings=cut,
            notes=(*objective.notes, *notes),
            cost=Cost(0, objective.passes, time.perf_counter() - start),
        )


def compare(factors: Sequence[torch.Tensor]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (S (n, n), lambda_1(H_i) (n,), lambda_1(mean H_i)) from factors F_i (rank, parameters), H_i = F_i^T F_i.

    tr H_i H_j = ||F_i F_j^T||_F^2, and the mean has the eigenvalues of the whole Gram matrix / n: nothing of the size
    (parameters, parameters) is made.
    """
    sizes = [len(f) for f in factors]
    rows = torch.cat(list(factors))
    gram = (rows @ rows.T).double().cpu()
    starts = np.concatenate([[0], np.cumsum(sizes)])
    squares = np.add.reduceat(np.add.reduceat(gram.numpy() ** 2, starts[:-1], axis=0), starts[:-1], axis=1)
    largest = [float(torch.linalg.eigvalsh(gram[a:b, a:b])[-1]) for a, b in pairwise(starts)]
    return np.sqrt(squares), np.array(largest), float(torch.linalg.eigvalsh(gram)[-1]) / len(factors)


def _jackknife(norms: np.ndarray, largest: np.ndarray) -> float:
    """Return the standard error of sigma, from sigma / n with one group of samples left out at a time."""
    n = len(largest)
    groups = np.array_split(np.arange(n), min(GROUPS, n))
    if len(groups) < 4:  # fewer say nothing about their spread
        return math.nan
    shares = []
    for group in groups:
        kept = np.setdiff1d(np.arange(n), group)
        if not largest[kept].max() > 0:
            return math.nan
        shares.append(np.linalg.eigvalsh(norms[np.ix_(kept, kept)])[-1] / largest[kept].max() / len(kept))
    g = len(shares)
    return n * math.sqrt((g - 1) / g * float(((np.array(shares) - np.mean(shares)) ** 2).sum()))


def _factors(objective: Objective, progress: bool) -> tuple[list[torch.Tensor], tuple[str, ...]]:
    """Return F_i (rank, parameters) with H_i = F_i^T F_i for each sample that counts, and what had to be left out."""
    A = GaussNewton(objective)
    found: list[torch.Tensor] = []
    weights: list[float] = []
    held, cut, lowest, highest = 0, (), [], []
    for i in tqdm(range(len(objective)), desc="coherence", disable=not progress, leave=False):
        factor, weight, smallest, largest = _factor(A, i)
        if weight == 0:
            continue
        lowest.append(smallest)
        highest.append(largest)
        held += factor.numel() * factor.element_size()
        if held > MEMORY and found:
            cut = (f"{len(found)} samples only: the factors of more need over {MEMORY >> 20} MiB",)
            break
        found.append(factor)
        weights.append(weight)
    _needs_convex(min(lowest), max(highest), torch.finfo(objective.dtype).eps)
    mean = sum(weights) / len(weights)
    found = [f * math.sqrt(w / mean) for f, w in zip(found, weights, strict=True)]
    if not any(bool(f.any()) for f in found):
        raise MeasurementError("every sample's Gauss-Newton matrix is 0: coherence is not defined")
    return found, cut


def _needs_convex(lowest: float, highest: float, eps: float) -> None:
    """Refuse a loss with negative curvature in its outputs, by the smallest and the largest eigenvalue of all samples.

    Of a sample that is sure of its label (1 - p) is what is left of 1 and p: its curvature, however small, carries a
    rounding error of the size of eps, which is none of the loss.
    """
    if lowest < -max(CONVEX * highest, min(4 * eps, 0.1 * highest)):
        raise MeasurementError(
            f"the loss is not convex in the outputs (an eigenvalue of {lowest:.2g}): coherence needs positive "
            "semi-definite matrices"
        )


def _factor(A: GaussNewton, i: int) -> tuple[torch.Tensor, float, float, float]:
    """Return (F (rank, parameters), weight, smallest, largest eigenvalue of the loss's own Hessian) of sample i."""
    objective = A.objective
    parameters = objective.parameters
    try:
        outputs, weight, multiply = loss_curvature(objective, i, A._see_through)
        if weight == 0:
            return torch.zeros(0, device="cpu"), 0.0, 0.0, 0.0
        sizes = [t.numel() for t in outputs]
        if sum(sizes) > MOST_OUTPUTS:
            raise MeasurementError(
                f"a sample's outputs are {sum(sizes)} numbers; coherence takes up to {MOST_OUTPUTS}, because each "
                "costs a backward pass for each sample"
            )
        basis = torch.eye(sum(sizes), dtype=objective.dtype, device=objective.device)
        columns = [
            flatten(multiply([part.view_as(t) for part, t in zip(e.split(sizes), outputs, strict=True)])) for e in basis
        ]
        inner = torch.stack(columns).double()
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        kept = (values > 1e-12 * values[-1]) & (values > 0)
        roots = (vectors[:, kept] * values[kept].sqrt()).to(objective.dtype)
        rows = []
        for column in roots.T:
            parts = [part.view_as(t) for part, t in zip(column.split(sizes), outputs, strict=True)]
            rows.append(
                flatten(
                    torch.autograd.grad(
                        outputs,
                        parameters,
                        grad_outputs=parts,
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                )
            )
    except RuntimeError as error:
        raise error if ran_out(error) else explained(error) from error
    objective.passes += (1 + 2 * len(rows)) / len(objective)
    n = sum(p.numel() for p in parameters)
    factor = torch.stack(rows) if rows else torch.zeros(1, n, dtype=objective.dtype, device=objective.device)
    return factor, weight, float(values[0]), float(values[-1])
