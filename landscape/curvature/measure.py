"""The curvature measurements that `landscape probe` runs: both ends of the Hessian's spectrum, and its trace."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ..errors import MeasurementError
from ..objective import Objective
from ..parameters import trainable
from ..results import Option, Result, measurement
from ..tasks import Task
from .fisher import Fisher
from .lanczos import Method, eigenpairs
from .operators import GaussNewton, Hessian, Operator, select
from .sampling import to_precision, with_sampling
from .search import Stop, Which
from .spectrum import Eigenpairs, TraceEstimate
from .traces import trace

R = TypeVar("R", bound=Result)

#: Forward passes for one product through a kept graph, and beside all products: the graphs 3, to verify the task 2.
_PRODUCT, _BESIDE = 6, 5
#: What the eigenvalues may be those of.
OPERATORS: dict[str, type[Operator]] = {"hessian": Hessian, "gauss-newton": GaussNewton, "fisher": Fisher}


def _eigenvalue_passes(*, k: int = 10, k_smallest: int = 1, which: str = "both", **_: object) -> tuple[float, float]:
    # Audit included, as measured on trained nets; the smallest eigenvalues lie at the dense end of the spectrum. With
    # large ones as dense it takes up to twice as many: of 27 states of small nets 26 lay between.
    products = 25 + 1.3 * (k + k_smallest) if which == "both" else 8 + 2.4 * k
    return _PRODUCT * products + _BESIDE, 2 * _PRODUCT * products + _BESIDE


def most_eigenpairs(task: Task, *, parameters: str | None = None, **_: object) -> dict[str, int]:
    """Return how many eigenvalues there are at either end: as many as parameters are selected."""
    every = trainable(task.model)
    n = sum(every[name].numel() for name in select(tuple(every), _several(parameters)))
    return {"k": n, "k_smallest": n}


def _several(parameters: str | None) -> list[str] | None:
    return None if parameters is None else [name.strip() for name in str(parameters).split("+")]


def _trace_passes(*, draws: int = 32, **_: object) -> float:
    return _PRODUCT * draws + _BESIDE


@measurement(
    "eigenvalues",
    section="curvature",
    order=20,
    preset={"quick": {"k": 5}, "standard": {}, "thorough": {"k": 20, "k_smallest": 3}},
    options={
        "k": Option(10, "largest eigenvalues"),
        "k_smallest": Option(1, 'smallest eigenvalues, with which="both"'),
        "tol": Option(1e-3, "residual allowed, as a share of |lambda_1|", "the published tools' tolerance"),
        "stop": Option(
            "residual",
            "residual: within tol; value: each eigenvalue proven to tol, its vector less so",
            choices=("residual", "value"),
        ),
        "which": Option(
            "both", "largest, smallest, both or magnitude", choices=("largest", "smallest", "both", "magnitude")
        ),
        "operator": Option(
            "hessian", "hessian, gauss-newton or fisher (type 2)", choices=("hessian", "gauss-newton", "fisher")
        ),
        "parameters": Option(None, "names or prefixes of the parameters to differentiate in, separated by +; or all"),
        "method": Option(
            "lanczos", "lanczos, arpack or pyhessian (by magnitude)", choices=("lanczos", "arpack", "pyhessian")
        ),
        "precision": Option(
            None, "take as few samples as give the first eigenvalue to this share, all errors together"
        ),
        "split": Option("train", "the data whose mean loss is differentiated", choices=("train", "test")),
    },
    estimate=_eigenvalue_passes,
    needs=("second derivative",),
    most=most_eigenpairs,
)
def measure_eigenvalues(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    k: int = 10,
    k_smallest: int = 1,
    tol: float = 1e-3,
    stop: Stop = "residual",
    which: Which = "both",
    operator: str = "hessian",
    parameters: str | None = None,
    method: Method = "lanczos",
    precision: float | None = None,
    split: str = "train",
) -> Eigenpairs:
    """Largest and smallest eigenvalues of the Hessian, with residuals and a check for missed ones.

    Of the mean loss over the task's draw; see `eigenpairs` for the methods and the cost. With `precision` the draw is
    as small as `to_precision` finds for the first eigenvalue, and the task's own size is the most that is drawn.
    """
    if operator not in OPERATORS:
        raise MeasurementError(f"operator={operator!r} is unknown; choose from {', '.join(OPERATORS)}")
    chosen = _several(parameters)
    drawn = None
    if precision is not None:
        one = {"k": 1, "which": "largest" if which == "both" else which, "tol": tol, "method": method}
        one |= {"operator": operator, "parameters": parameters}
        drawn = to_precision(task, "eigenvalues", precision, split=split, seed=seed, progress=progress, **one)
        task = task.replace(max_samples=drawn.samples)
    with Objective(task, split) as objective:
        found = eigenpairs(
            OPERATORS[operator](objective, chosen),
            k,
            which,
            tol,
            seed=seed,
            stop=stop,
            k_smallest=k_smallest if which == "both" else None,
            method=method,
            progress=progress,
        )
        found = noted(found, objective)
    return found if drawn is None else with_sampling(found, drawn)


@measurement(
    "trace",
    section="curvature",
    order=25,
    preset={"quick": {"draws": 16}, "standard": {}, "thorough": {"draws": 128}},
    options={
        "draws": Option(32, "random vectors"),
        "precision": Option(None, "go on until the standard error is this share of the trace"),
        "method": Option(
            "hutchinson",
            "hutchinson, hutch++, xtrace or pyhessian",
            "Hutchinson 1990",
            ("hutchinson", "hutch++", "xtrace", "pyhessian"),
        ),
        "split": Option("train", "the data whose mean loss is differentiated", choices=("train", "test")),
    },
    estimate=_trace_passes,
    needs=("second derivative",),
)
def measure_trace(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    draws: int = 32,
    precision: float | None = None,
    method: str = "hutchinson",
    split: str = "train",
) -> TraceEstimate:
    """Trace of the Hessian of the mean loss, with its standard error; see `trace`."""
    with Objective(task, split) as objective:
        found = trace(Hessian(objective), method, draws, seed=seed, precision=precision, progress=progress)
        return noted(found, objective)


def noted(found: R, objective: Objective) -> R:
    """Add what the objective has to say, how many samples it holds, and the passes that its checks took."""
    return replace(
        found,
        notes=tuple(dict.fromkeys((*objective.notes, *found.notes))),
        settings={**found.settings, "samples": objective.samples},
        cost=replace(found.cost, passes=objective.passes),
    )
