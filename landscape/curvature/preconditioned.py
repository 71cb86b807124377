"""Operators seen through a diagonal: S A S, and the Hessian as an optimizer with its state meets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import MeasurementError
from ..objective import Objective
from ..parameters import trainable
from ..tasks import Task
from .operands import dimension_of, origin_of
from .operators import Hessian, Operator
from .optimizer_state import OptimizerState, read_optimizer
from .stability import threshold_of

_NAMED = (
    "save it with its parameters' names: torch.optim.AdamW(model.named_parameters(), ...), or "
    "landscape.save_checkpoint(path, model, optimizer=optimizer)"
)

#: Partial orders that are followed at most: beyond them the shapes say too little (chosen by us).
MOST_WAYS = 10_000


class Scaled:
    """The symmetric operator S A S + diag(d) for a symmetric A and a diagonal S, in A's precision and on its device.

    Args:
        A: an operator with `shape`, `dtype`, `device` and `A @ v`, or a dense tensor (n, n).
        scale: the diagonal of S, (n,).
        diagonal: d, (n,); None for 0.
        title: what results call it.

    Works wherever an operator does (`eigenpairs`, `trace`, `.to_scipy()`). A product costs one of A's.
    """

    def __init__(
        self, A: Any, scale: torch.Tensor, diagonal: torch.Tensor | None = None, *, title: str = "scaled"
    ) -> None:
        n, self.dtype, self.device = dimension_of(A)
        self.A = A
        self.shape = (n, n)
        self.title = f"{title} {origin_of(A)[0]}"
        self.split = origin_of(A)[1]
        self.names: tuple[str, ...] = getattr(A, "names", ())
        #: Names the parameters in which a product is not finite, where A can.
        self.locate = getattr(A, "locate", None)
        self.products = 0
        self.scale = self._placed(scale, "scale")
        self.diagonal = None if diagonal is None else self._placed(diagonal, "diagonal")

    def _placed(self, values: torch.Tensor, name: str) -> torch.Tensor:
        values = values.detach().to(self.device, self.dtype)
        if values.shape != self.shape[:1]:
            raise MeasurementError(f"{name} has shape {tuple(values.shape)}; expected ({self.shape[0]},)")
        if not bool(torch.isfinite(values).all()):
            raise MeasurementError(f"{name} is not finite")
        return values

    def __enter__(self) -> Scaled:
        if hasattr(self.A, "__enter__"):
            self.A.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if hasattr(self.A, "__exit__"):
            self.A.__exit__(*error)

    @property
    def passes(self) -> float:
        """Forward passes over the draw that A's objective has spent so far."""
        return float(getattr(self.A, "passes", 0.0))

    @property
    def how(self) -> str:
        """How A's products are made."""
        return str(getattr(self.A, "how", ""))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know."""
        return tuple(getattr(self.A, "notes", ()))

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        """Return (S A S + diag(d)) v; `v` is (n,) or (n, k)."""
        v = v.to(self.device, self.dtype)
        across = (slice(None), *(None,) * (v.ndim - 1))
        product = self.scale[across] * (self.A @ (self.scale[across] * v))
        self.products += 1 if v.ndim == 1 else v.shape[1]
        return product if self.diagonal is None else product + self.diagonal[across] * v

    to_scipy = Operator.to_scipy

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}, {self.shape[0]} parameters)"


class Preconditioned(Scaled):
    """The symmetric R^1/2 (A + W) R^1/2 whose largest eigenvalue decides whether an optimizer's steps are stable.

    R = (lr_g gain_g) / (lr gain) / D for each weight: D is the denominator of the last step exactly as torch.optim had
    it (Adam and AMSGrad with both bias corrections and eps outside the root, AdaGrad, RMSprop plain and centered; 1
    for SGD), lr_g the learning rate of the weight's group and lr the largest group's, so that with one learning rate
    the operator is D^-1/2 H D^-1/2. W is the weight decay; a decoupled one (AdamW) counts (1 + b) lr_g w / (lr gain)
    on the diagonal, which is exact too. A weight that the optimizer does not hold, or has never got a gradient for,
    does not move: its row is 0. Source: Cohen et al. 2022, arXiv:2207.14484.

    `threshold` is the largest stable eigenvalue (a `StabilityThreshold`), `notes` say what was assumed.

    Args:
        A: a Hessian (or Gauss-Newton) operator of the model, or a Task or Objective to take the Hessian of.
        optimizer: a torch optimizer, or its state_dict as a checkpoint keeps it. Its state belongs to parameters by
            identity, by name ("param_names"), or by the order of the model's parameters, where count and shapes agree.
        name: which optimizer it is, where a state_dict's settings don't tell.

    Raises MeasurementError where the threshold is not defined, and where the state is missing or doesn't fit.
    """

    def __init__(self, A: Any, optimizer: Any, *, name: str | None = None) -> None:
        if isinstance(A, Task | Objective):
            A = Hessian(A)
        if not isinstance(A, Operator):
            raise TypeError(f"Preconditioned needs an operator over a model's parameters, got {type(A).__name__}")
        state = optimizer if isinstance(optimizer, OptimizerState) else read_optimizer(optimizer, name)
        self.threshold = threshold_of(state, preconditioned=True)
        if not self.threshold.defined:
            raise MeasurementError(f"there is no preconditioned operator: it is {self.threshold.notes[0]}")
        ratios, shifts, still = _diagonals(state, A)
        self._remarks = self.threshold.notes
        if still:
            some = f"{', '.join(still[:3])}{' ...' if len(still) > 3 else ''}"
            self._remarks += (f"the optimizer does not move {some}: rows of 0",)
        super().__init__(A, ratios.sqrt(), shifts, title="preconditioned")

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the optimizer, and what A has to say."""
        return (*self._remarks, *super().notes)


def covers(state: OptimizerState, A: Operator) -> bool:
    """Say whether an optimizer moves every parameter of an operator; settings alone are taken to."""
    if not any(state.members):
        return True
    return set(A.names) <= set(assigned(state, A.objective.model))


def _diagonals(state: OptimizerState, A: Operator) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return (R, R W, names of weights that don't move), in float64 on the CPU, in the order of A's parameters."""
    model = A.objective.model
    shapes = {n: p.shape for n, p in model.named_parameters()}
    places = assigned(state, model) if any(state.members) else dict.fromkeys(A.names, (-1, 0))
    reference = max(state.rules, key=lambda r: r.rate).rate
    ratios, shifts, still = [], [], []
    for name in A.names:
        ratio = torch.zeros(shapes[name], dtype=torch.float64, device="cpu")
        shift = torch.zeros_like(ratio)
        key, group = places.get(name, (-1, -1))
        d = state.denominator(key, group) if state.adaptive and group >= 0 else torch.ones((), device="cpu")
        if group < 0 or d is None:
            still.append(name)
        else:
            rule = state.rules[group]
            if not bool((d > 0).all()):
                by = (
                    "NaN (its state is damaged, or a centered variance below 0 by rounding)"
                    if bool(d.isnan().any())
                    else ""
                )
                raise MeasurementError(f"the optimizer divides {name} by {by or '0 (eps=0, and no gradient yet)'}")
            ratio += rule.rate / reference / d.detach().cpu().double()
            shift += ratio * rule.coupled + (1 + rule.momentum) * rule.lr * rule.decoupled / reference
        ratios.append(ratio.reshape(-1))
        shifts.append(shift.reshape(-1))
    if len(still) == len(A.names):
        raise MeasurementError(
            f"the optimizer's state has no denominators for {still[0]} and the others: it has made no step, or a "
            "checkpoint keeps its settings only"
        )
    return torch.cat(ratios), torch.cat(shifts), still


def assigned(state: OptimizerState, model: nn.Module) -> dict[str, tuple[int | str, int]]:
    """Return for each of the model's parameters that the optimizer holds its (key in the state, group).

    By identity for a live optimizer, else by the names that its groups keep, else by the order of the model's
    parameters, which each group is taken to keep, too. Raises MeasurementError where numbers, names or shapes don't
    agree, and where the shapes allow several orders.
    """
    every = dict(model.named_parameters())
    keys = [(key, g) for g, members in enumerate(state.members) for key in members]
    if state.live:
        known = {id(p): n for n, p in every.items()}
        names = [known.get(id(p), "") for p in state.live.values()]
    elif all("param_names" in g for g in state.groups) or all(isinstance(key, str) for key, _ in keys):
        # torch.distributed.checkpoint keeps names in the place of numbers.
        said = [str(n) for g in state.groups for n in g.get("param_names", g["params"])]
        names = [n if n in every else _unwrapped(n) for n in said]
    else:
        names = _by_order(state, model, every)
    found = {name: place for name, place in zip(names, keys, strict=True) if name in every}
    if not found:
        raise MeasurementError("the optimizer holds none of the model's parameters: is it another model's?")
    for name, (key, _) in found.items():
        shape = _shape(state, key)
        if shape is not None and shape != every[name].shape:
            raise MeasurementError(
                f"the optimizer's state {key} has shape {tuple(shape)}, the parameter {name} has "
                f"{tuple(every[name].shape)}: is it another model's?"
            )
    return found


def _by_order(state: OptimizerState, model: nn.Module, every: dict[str, nn.Parameter]) -> list[str]:
    """Return the name of each parameter of the optimizer, in its own order."""
    count = sum(len(members) for members in state.members)
    for names in (list(every), list(trainable(model))):
        if len(names) == count:
            break
    else:
        raise MeasurementError(
            f"the optimizer holds {count} parameters, the model {len(every)} ({len(trainable(model))} trainable): its "
            f"state can't be matched by order; {_NAMED}"
        )
    shapes = [[_shape(state, key) for key in members] for members in state.members]
    dealt = _dealt([every[n].shape for n in names], shapes)
    if dealt is None:
        raise MeasurementError(
            f"the optimizer's {len(state.groups)} group(s) can't be matched with the model's parameters by order: no "
            f"order, or more than one, fits the shapes; {_NAMED}"
        )
    ordered: list[list[str]] = [[] for _ in state.members]
    for name, group in zip(names, dealt, strict=True):
        ordered[group].append(name)
    return [name for group in ordered for name in group]


def _dealt(shapes: Sequence[torch.Size], groups: Sequence[Sequence[torch.Size | None]]) -> list[int] | None:
    """Return which group each shape goes to, if there is exactly one way to deal them out in order; else None.

    Groups such as "weights, with decay" and "biases and norms, without" keep the model's order each, but not together.
    A shape of None, of a parameter without state, fits anything.
    """
    ways: dict[tuple[int, ...], list[int] | None] = {(0,) * len(groups): []}  # None: more than one way
    for shape in shapes:
        following: dict[tuple[int, ...], list[int] | None] = {}
        for taken, way in ways.items():
            for g, members in enumerate(groups):
                if taken[g] < len(members) and members[taken[g]] in (None, shape):
                    now = (*taken[:g], taken[g] + 1, *taken[g + 1 :])
                    following[now] = None if now in following or way is None else [*way, g]
        ways = following
        if len(ways) > MOST_WAYS:
            return None
    return ways.get(tuple(len(members) for members in groups))


def _shape(state: OptimizerState, key: int | str) -> torch.Size | None:
    """Return the shape of a parameter as its state has it; None where it has no state of that shape."""
    kept = state.state.get(key) or {}
    return next((v.shape for k, v in kept.items() if isinstance(v, torch.Tensor) and k != "step"), None)


def _unwrapped(name: str) -> str:
    """Return a parameter's name without what DistributedDataParallel and torch.compile put before it."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
