"""The measurements that `landscape probe` runs when asked: density, norm and diagonal of the Hessian, and sampling."""

from __future__ import annotations

from ..objective import Objective
from ..results import Option, measurement
from ..tasks import Task
from .density import spectral_density
from .diagonals import diagonal
from .estimates import DiagonalEstimate, NormEstimate, SamplingError, SpectralDensity
from .kernels import Kernel
from .measure import noted
from .moments import frobenius_norm
from .operators import Hessian
from .sampling import sampling_error, to_precision

#: Forward passes for one product, and beside all products: the gradients' graphs 3, to verify the task 2.
_PRODUCT, _BESIDE = 6, 5
_SPLIT = Option("train", "the data whose mean loss is differentiated", choices=("train", "test"))
_DRAWS = Option(32, "random vectors")


def _draws_passes(*, draws: int = 32, **_: object) -> float:
    return _PRODUCT * draws + _BESIDE


def _density_passes(*, steps: int = 64, draws: int = 8, **_: object) -> float:
    return _PRODUCT * steps * draws + _BESIDE


def _sampling_passes(**_: object) -> float:
    # The largest eigenvalue takes about 15 products, on three levels of parts.
    return 3 * (15 * _PRODUCT + _BESIDE)


@measurement(
    "density",
    order=26,
    default=False,
    preset={"quick": {"steps": 32, "draws": 4}, "standard": {}, "thorough": {"steps": 128, "draws": 16}},
    options={
        "steps": Option(64, "Lanczos steps for each random vector"),
        "draws": Option(8, "random vectors"),
        "kernel": Option("gaussian", "gaussian, pyhessian or papyan", choices=("gaussian", "pyhessian", "papyan")),
        "precision": Option(None, "go on until the density's standard error is this share of the eigenvalues"),
        "split": _SPLIT,
    },
    estimate=_density_passes,
    needs=("second derivative",),
)
def measure_density(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    steps: int = 64,
    draws: int = 8,
    kernel: Kernel = "gaussian",
    precision: float | None = None,
    split: str = "train",
) -> SpectralDensity:
    """Eigenvalue density of the Hessian of the mean loss, with a band over random vectors; see `spectral_density`."""
    with Objective(task, split) as objective:
        return noted(
            spectral_density(
                Hessian(objective), steps, draws, kernel, seed=seed, precision=precision, progress=progress
            ),
            objective,
        )


@measurement(
    "frobenius",
    section="curvature",
    order=27,
    default=False,
    preset={"quick": {"draws": 16}, "standard": {}, "thorough": {"draws": 128}},
    options={
        "draws": _DRAWS,
        "precision": Option(None, "go on until the standard error is this share of the norm"),
        "split": _SPLIT,
    },
    estimate=_draws_passes,
    needs=("second derivative",),
)
def measure_frobenius(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    draws: int = 32,
    precision: float | None = None,
    split: str = "train",
) -> NormEstimate:
    """Frobenius norm of the Hessian of the mean loss, with its standard error; see `frobenius_norm`."""
    with Objective(task, split) as objective:
        return noted(
            frobenius_norm(Hessian(objective), draws, seed=seed, precision=precision, progress=progress), objective
        )


@measurement(
    "diagonal",
    order=28,
    default=False,
    preset={"quick": {"draws": 16}, "standard": {}, "thorough": {"draws": 128}},
    options={
        "method": Option(
            "hutchinson", "hutchinson or xdiag", "Bekas, Kokiopoulou and Saad 2007", ("hutchinson", "xdiag")
        ),
        "draws": _DRAWS,
        "precision": Option(None, "go on until the entries' standard errors are this share of the diagonal"),
        "split": _SPLIT,
    },
    estimate=_draws_passes,
    needs=("second derivative",),
)
def measure_diagonal(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    method: str = "hutchinson",
    draws: int = 32,
    precision: float | None = None,
    split: str = "train",
) -> DiagonalEstimate:
    """Diagonal of the Hessian of the mean loss by parameter tensor, with standard errors; see `diagonal`."""
    with Objective(task, split) as objective:
        return noted(
            diagonal(Hessian(objective), method, draws, seed=seed, precision=precision, progress=progress), objective
        )


@measurement(
    "sampling",
    order=29,
    default=False,
    options={
        "measurement": Option("eigenvalues", "the measurement to follow; of the eigenvalues the largest"),
        "precision": Option(None, "draw more samples until the numbers are known to this share, all errors together"),
        "split": _SPLIT,
    },
    estimate=_sampling_passes,
    needs=("second derivative",),
)
def measure_sampling(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    measurement: str = "eigenvalues",
    precision: float | None = None,
    split: str = "train",
) -> SamplingError:
    """How far a number moves with the samples that it is measured on; see `sampling_error` and `to_precision`."""
    if precision is None:
        return sampling_error(task, measurement, split=split, seed=seed, progress=progress)
    return to_precision(task, measurement, precision, split=split, seed=seed, progress=progress)
