"""Thresholds of stability: the largest eigenvalue at which an optimizer's steps on a quadratic do not grow."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from .optimizer_state import OptimizerState, Rule, read_optimizer
from .thresholds import StabilityThreshold


def stability_threshold(
    optimizer: Any, *, name: str | None = None, gradient_norm: float | None = None
) -> StabilityThreshold:
    """Return the largest eigenvalue at which this optimizer's full-batch steps on a quadratic do not grow.

    With the denominators D held as they are, each optimizer is a linear recursion, and its steps along an eigenvector
    grow once a root of the characteristic polynomial leaves the unit circle at -1 (Cohen et al. 2021,
    arXiv:2103.00065, appendix B, for SGD; Cohen et al. 2022, arXiv:2207.14484, for adaptive optimizers). lr the
    learning rate, b the momentum (beta_1), d the dampening:

    - SGD 2 / lr; heavy ball 2 (1 + b) / ((1 - d) lr); Nesterov 2 (1 + b) / ((1 + 2 b) lr): of the Hessian;
    - Adam, AdamW, AMSGrad 2 (1 + b) / ((1 - b) lr), AdaGrad 2 / lr (lr after its decay), RMSprop 2 (1 + b) / lr,
      centered or not: of D^-1/2 H D^-1/2, with D as torch.optim has it (`Preconditioned`);
    - weight decay w adds w to every eigenvalue: it lowers the Hessian's threshold by w, and is a part of the
      preconditioned operator (a decoupled one, as AdamW's, adds (1 + b) w / (1 - b) to its eigenvalues);
    - groups with learning rates, dampening or weight decay of their own: the operator is R^1/2 (H + W) R^1/2, with
      R = lr_g (1 - d_g) / D relative to the group with the largest; exact as long as they share one momentum;
    - SAM around SGD, rho its distance and |g| the norm of the gradient at the weights: its gradient is that at
      w + rho g / |g|, so that an eigenvalue h acts as h + rho h^2 / |g|, and the threshold is the h at which this is T,
      the base's own: |g| (sqrt(1 + 4 rho T / |g|) - 1) / (2 rho), of the Hessian (Long and Bartlett 2024,
      arXiv:2309.12488, for T = 2 / lr). It holds with |g| held as it is, and falls to 0 with it: on a quadratic,
      gradient descent with SAM ends in a cycle whose |g| puts it on this edge;
    - L-BFGS, groups with different momenta, a momentum of 1 or more, `maximize`, SAM around an adaptive optimizer, and
      ASAM, whose ascent has the weights' units: not defined, and the notes say why.

    Args:
        optimizer: a torch optimizer, its state_dict, or settings: see `read_optimizer`.
        name: which optimizer it is, where a state_dict's settings don't tell.
        gradient_norm: of the mean loss at the weights, for SAM; without it SAM's threshold is not defined.

    Raises MeasurementError for what is no optimizer, and for settings that none can have, such as a learning rate that
    is negative or not finite; one of 0, as at the end of a schedule, has no threshold, and the notes say so. Costs
    nothing.
    """
    return threshold_of(read_optimizer(optimizer, name), gradient_norm=gradient_norm)


def threshold_of(
    state: OptimizerState, *, preconditioned: bool = False, gradient_norm: float | None = None
) -> StabilityThreshold:
    """Return the threshold of an optimizer that has been read; `preconditioned`: for that operator in any case."""
    if state.climbs:
        return _of_sharpness_aware(state, preconditioned, gradient_norm)
    why = _why_not(state)
    if why:
        return StabilityThreshold(
            threshold=math.nan, operator="", optimizer=state.title, defined=False, notes=(why, *state.notes)
        )
    first = max(state.rules, key=lambda r: r.rate)
    limit, formula = _limit(state, first)
    alike = all((r.rate, r.coupled, r.decoupled) == (first.rate, first.coupled, first.decoupled) for r in state.rules)
    plain = alike and not state.adaptive and not preconditioned
    notes = list(state.notes)
    if plain and first.coupled:
        formula += " - weight decay"
    if not alike:
        notes.append(
            "the groups have learning rates, dampening or weight decay of their own: the threshold is that of the "
            "operator preconditioned by them, relative to the group with the largest"
        )
    return StabilityThreshold(
        threshold=limit / first.rate - (first.coupled if plain else 0.0),
        lr=first.lr,
        operator="hessian" if plain else "preconditioned",
        formula=formula,
        optimizer=state.title,
        notes=tuple(notes),
    )


def _of_sharpness_aware(state: OptimizerState, preconditioned: bool, gradient_norm: float | None) -> StabilityThreshold:
    """Return the edge of SAM around an optimizer whose own is known; see `stability_threshold`."""
    base = threshold_of(replace(state, climbs=()))
    rho, size = max(state.climbs), gradient_norm
    if state.climbs_adaptively:
        why = "not defined for ASAM: how far it climbs depends on each weight's size"
    elif not base.defined:
        why = base.notes[0]
    elif base.operator != "hessian" or preconditioned or min(state.climbs) != rho:
        why = (
            f"not defined for {state.title} here: known for SAM around plain SGD or momentum that moves all weights, "
            "with one learning rate and one rho"
        )
    elif size is None:
        why = "not defined for SAM by its settings alone: it depends on the gradient's norm (gradient_norm=...)"
    elif not (math.isfinite(size) and size >= 0):
        why = f"not defined at a gradient of norm {size}"
    else:
        T = base.threshold
        # The root of h + rho h^2 / |g| = T, in the form that neither cancels nor divides by rho or by |g| = 0.
        limit = T if rho == 0 else 2 * T * size / (size + math.sqrt(size * size + 4 * rho * T * size)) if size else 0.0
        formula = f"|g| (sqrt(1 + 4 rho T / |g|) - 1) / (2 rho), T = {base.formula}" if rho else base.formula
        notes = (f"rho {rho:g}, |g| {size:.6g}: T = {T:.6g} is the edge of {state.name} without the ascent",)
        return replace(base, threshold=limit, formula=formula, optimizer=state.title, notes=(*base.notes, *notes))
    return StabilityThreshold(
        threshold=math.nan, operator="", optimizer=state.title, defined=False, notes=(why, *state.notes)
    )


def _why_not(state: OptimizerState) -> str:
    """Return why there is no threshold; "" where there is one."""
    if state.name == "lbfgs":
        return "not defined for L-BFGS: its preconditioner, and with a line search its step, change at every step"
    if not state.rules:
        why = state.doubt or "its linear recursion is not known here"
        return f"not defined for {state.title or 'this optimizer'}: {why}"
    if any(g.get("maximize") for g in state.groups):
        return "not defined for maximize=True: the steps climb"
    if len({(r.momentum, r.nesterov) for r in state.rules}) > 1:
        return "not defined: the groups differ in momentum, and no single eigenvalue decides"
    if state.rules[0].momentum >= 1:
        return f"not defined: a momentum of {state.rules[0].momentum:g} grows at every curvature"
    if not max(r.lr for r in state.rules) > 0:
        chosen = max((float(g.get("initial_lr") or 0.0) for g in state.groups), default=0.0)
        before = f", whose own was {chosen:g}" if chosen else ""
        return (
            f"not defined: the learning rate is 0, as at the end of a schedule{before}; say at which rate to judge, as "
            f"with --option stability.lr={chosen or 0.01:g}"
        )
    if not max(r.rate for r in state.rules) > 0:
        return "not defined: a dampening of 1 never moves the weights by the gradient"
    return ""


def _limit(state: OptimizerState, rule: Rule) -> tuple[float, str]:
    """Return the largest stable rate * eigenvalue, and the threshold's formula.

    z^2 - (1 + b - a) z + b for heavy ball with a = rate h, z^2 - (1 + b)(1 - a) z + b (1 - a) for Nesterov: the root
    reaches -1 at these a, before any complex pair (of modulus sqrt(b), sqrt(b (1 - a))) leaves the circle. A decoupled
    decay q = lr w changes the first to z^2 - (1 - q + b - a) z + b (1 - q), where a + (1 + b) q takes a's place.
    """
    b = rule.momentum
    if b == 0:
        return 2.0, "2 / lr"
    if rule.nesterov:
        return 2 * (1 + b) / (1 + 2 * b), "2 (1 + b) / ((1 + 2 b) lr)"
    if state.name in ("adam", "adamw"):
        return 2 * (1 + b), "2 (1 + b1) / ((1 - b1) lr)"
    return 2 * (1 + b), "2 (1 + b) / ((1 - dampening) lr)" if rule.gain != 1 else "2 (1 + b) / lr"
