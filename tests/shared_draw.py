"""Processes that share one draw, each beside the same numbers of one process alone: run by test_shared_draw.py.

Writes what each found to `<folder>/rank<r>.json`, a name to [shared, alone], or to what was raised.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.curvature import graphs
from landscape.curvature.operators import Operator
from landscape.errors import LandscapeError
from landscape.objective import Objective

SIZES = (6, 6, 6, 6, 3)  # of two processes, the one would have three batches


def net(*, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.Tanh()]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []), nn.Linear(6, 3)).double()


def samples(seed: int = 1, n: int = sum(SIZES)) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


def batches(seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(*(t.split(list(SIZES)) for t in samples(seed)), strict=True))


def large() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return five batches of so many samples that blocks of them stand behind a standard error."""
    return list(zip(*(t.split(40) for t in samples(n=200)), strict=True))


def task(model: nn.Module | None = None, data: Any = None, **settings: Any) -> ls.Task:
    return ls.Task(model or net(), F.cross_entropy, data or batches(), **settings)


def both(make: Callable[[], ls.Task], measure: Callable[[Objective], Any]) -> list[Any]:
    """Return what is measured with the draw shared, and by this process alone."""
    found = []
    for group in (True, None):
        with Objective(make(), process_group=group) as objective:
            found.append(measure(objective))
    return found


def products(of: Callable[..., Operator], **how: Any) -> Callable[[Objective], Any]:
    def measure(objective: Objective) -> Any:
        with of(objective, **how) as A:
            g = torch.Generator().manual_seed(3)
            V = torch.randn(A.shape[0], 2, generator=g, dtype=torch.float64)
            return (A @ V).tolist()

    return measure


def looked(objective: Objective) -> Any:
    found = objective.evaluate(accuracy=True, stderr=True)
    return [found.loss, found.stderr, found.accuracy, found.accuracy_stderr, found.blocks, found.accuracy_blocks]


def lined(objective: Objective) -> Any:
    direction = ls.random_direction(objective, seed=0)
    return ls.line(objective, direction, [-0.5, 0.0, 0.5]).loss.tolist()


def spectra(objective: Objective) -> Any:
    with ls.Hessian(objective) as H:
        pairs = ls.eigenpairs(H, k=3, which="both", tol=1e-8)
        density = ls.spectral_density(H, steps=8, draws=2)
        return [
            pairs.values.tolist(),
            float(ls.trace(H, draws=4).value),
            density.trace,
            density.frobenius,
            density.largest,
        ]


def same() -> dict[str, Any]:
    """Return what has to be the same, shared and alone."""
    found: dict[str, Any] = {
        "gradient": both(task, lambda o: torch.cat([g.reshape(-1) for g in o.gradient()]).tolist()),
        "evaluation": both(task, looked),
        "evaluation of large batches": both(lambda: task(data=large()), looked),
        "line": both(task, lined),
        "spectra": both(task, spectra),
        "sharpness": both(task, lambda o: ls.sharpness(o, rho=0.05).values.tolist()),
        "one batch": both(lambda: task(data=[samples()]), products(ls.Hessian)),
        "one batch, evaluated": both(lambda: task(data=[samples()]), lambda o: o.evaluate().loss),
        "one batch that stays whole": both(lambda: task(data=[samples()], rebatch=False), products(ls.Hessian)),
        "one batch that stays whole, evaluated": both(
            lambda: task(data=[samples()], rebatch=False), lambda o: o.evaluate().loss
        ),
        "random numbers": both(
            lambda: task(net(dropout=0.5), mode="train", rng="fixed"),
            lambda o: [looked(o), products(ls.Hessian)(o)],
        ),
        "statistics": both(
            lambda: task(net(norm=True), batchnorm="recompute"), lambda o: [lined(o), products(ls.Hessian)(o)]
        ),
        "labels drawn": both(task, products(ls.Fisher, kind="monte-carlo", draws=2, seed=5)),
        "labels drawn for one batch": both(
            lambda: task(data=[samples()]), products(ls.Fisher, kind="monte-carlo", seed=5)
        ),
    }
    for name, kind, how in (
        ("Hessian, rebuilt", ls.Hessian, {"strategy": "rebuild"}),
        ("Hessian, forward", ls.Hessian, {"strategy": "forward"}),
        ("a block", ls.Hessian, {"parameters": "2"}),
        ("Gauss-Newton", ls.GaussNewton, {}),
        ("Fisher", ls.Fisher, {"kind": "empirical"}),
    ):
        found[name] = both(task, products(kind, **how))
    return found


def refused(rank: int) -> dict[str, str]:
    """Return what is raised where the processes don't do the same, or one of them fails."""
    found = {}

    def attempt(name: str, run: Callable[[Objective], Any], make: Callable[[], ls.Task] = task) -> None:
        made = make()
        before = {n: p.data_ptr() for n, p in made.model.named_parameters()}
        try:
            with Objective(made, process_group=True) as objective:
                run(objective)
            found[name] = "nothing"
        except (LandscapeError, ZeroDivisionError, KeyboardInterrupt, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
        assert {n: p.data_ptr() for n, p in made.model.named_parameters()} == before

    def fails(objective: Objective) -> None:
        if rank == 1:
            raise ZeroDivisionError("division by zero")
        objective.evaluate()

    def fails_inside(objective: Objective) -> None:
        if rank == 1:
            objective.value = lambda i: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
        objective.evaluate()

    def interrupted(objective: Objective) -> None:
        if rank == 1:
            raise KeyboardInterrupt
        products(ls.Hessian)(objective)

    def fails_again(objective: Objective) -> None:
        """Go on from one error, and fail between two calls then."""
        value = objective.value
        with contextlib.suppress(LandscapeError, ZeroDivisionError):
            fails_inside(objective)
        objective.value = value  # pyright: ignore[reportAttributeAccessIssue]
        fails(objective)

    def fails_twice(objective: Objective) -> None:
        for _ in range(2):
            with contextlib.suppress(LandscapeError, ZeroDivisionError):
                fails_inside(objective)
        objective.gradient()

    def goes_on(objective: Objective) -> None:
        """Call what nobody else is there to answer."""
        if rank == 0:
            with contextlib.suppress(LandscapeError):
                objective.evaluate()
            objective.evaluate()

    def fails_at_length(objective: Objective) -> None:
        if rank == 1:
            raise ZeroDivisionError(1000 * "\N{GRINNING FACE}")
        objective.evaluate()

    def leaves_one_open(objective: Objective) -> None:
        Objective(objective.task, process_group=True).__enter__()
        fails(objective)

    def other_vector(objective: Objective) -> None:
        with ls.Hessian(objective) as H:
            _ = H @ torch.full((H.shape[0],), 1.0 + rank, dtype=torch.float64)

    def other_weights(objective: Objective) -> None:
        objective.move([[torch.full_like(p, 0.1 * rank) for p in objective.parameters]], [1.0])
        objective.evaluate()

    attempt("other data", lambda o: None, lambda: task(data=batches(seed=1 + rank)))
    attempt("other calls", lambda o: o.evaluate() if rank else o.gradient())
    attempt("one call fewer", lambda o: None if rank else o.evaluate())
    attempt("another vector", other_vector)
    attempt("other weights", other_weights)
    attempt("an error between calls", fails)
    attempt("an error in a call", fails_inside)
    attempt("Ctrl-C", interrupted)
    attempt("an error behind one that was caught", fails_again)
    attempt("an error in a call behind two that were caught", fails_twice)
    attempt("going on alone", goes_on)
    attempt("an error of many characters", fails_at_length)
    attempt("an objective left open", leaves_one_open)
    attempt("nothing after all that", looked)
    bad = samples()[0].clone()
    if rank == 1:
        bad[0, 0] = math.nan
    attempt("a loss that is not finite", lambda o: None, lambda: task(data=(bad, samples()[1])))
    return found


def starved(rank: int) -> list[Any]:
    """Return products where the second process has no memory for whole batches."""
    made = graphs.HessianGraph.__init__

    def init(self: Any, mean: torch.Tensor, *rest: Any, **more: Any) -> None:
        if rank == 1 and full:
            full.pop()
            raise torch.OutOfMemoryError("out of memory")
        made(self, mean, *rest, **more)

    full = [1]
    graphs.HessianGraph.__init__ = init  # type: ignore[method-assign]
    try:
        return both(task, products(ls.Hessian, strategy="rebuild"))
    finally:
        graphs.HessianGraph.__init__ = made  # type: ignore[method-assign]


def dies(rank: int) -> str:
    """Return what the first process is told where the second one is gone."""
    try:
        with Objective(task(), process_group=True) as objective:
            if rank == 1:
                os._exit(9)
            objective.evaluate()
    except LandscapeError as error:
        return str(error)
    return "nothing"


def main(folder: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    where = Path(folder)
    try:
        Objective(task(), process_group=True).__enter__()
        alone = "nothing"
    except LandscapeError as error:
        alone = str(error)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found: dict[str, Any] = {"alone": alone, "same": same()}
    if world == 2:
        found |= {"refused": refused(rank), "starved": starved(rank)}
    path = where / f"rank{rank}.json"
    path.write_text(json.dumps(found))
    if world == 2:
        found["dies"] = dies(rank)
        path.write_text(json.dumps(found))
    else:
        dist.barrier()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
