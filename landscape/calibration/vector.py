"""Vector scaling: a factor and a shift for each class's logit, a convex problem with one solution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from ..results import Check
from .columns import Columns
from .inputs import Predictions
from .temperature import temperature_of

#: Weight of the prior, in predictions (chosen by us: it decides nothing that more than a few labels speak about).
PRIOR = 1.0
_ITERATIONS = 1000
# Largest component of the projected gradient of the mean NLL (chosen by us; L-BFGS-B's own default is 1e-5).
_GRADIENT = 1e-6


@dataclass(frozen=True)
class VectorFit:
    """Factors and shifts (C,), or (1,) for a binary task, and how the search for them ended."""

    weights: np.ndarray
    biases: np.ndarray
    check: Check


def fit_vector(predictions: Predictions) -> VectorFit:
    """Fit softmax(w * z + b), w >= 0, by the mean NLL with a prior, in float64 (Guo et al. 2017, section 4.2).

    The NLL alone has no minimum where some class is told apart perfectly, and none that is unique (a constant added to
    b changes nothing). A Gaussian prior about the temperature-scaled logits makes it strictly convex: PRIOR / (2 n)
    (sum_k (w_k T - 1)^2 + sum_k b_k^2), T the fitted temperature (1 where there is none), so that logits on any scale
    give the same probabilities. w_k < 0 would turn a class's logit over, and is excluded (chosen by us). Solved by
    scipy's L-BFGS-B with the exact gradient. For a binary task it is Platt's sigmoid(w z + b).

    Cost: usually 10 to 60 evaluations of all softmaxes.
    """
    temperature = temperature_of(predictions)
    scale = 1 / temperature.value if temperature.converged else 1.0
    loss = _Loss(predictions, scale)
    k = loss.classes
    start = np.concatenate([np.ones(k), np.zeros(k)])
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * k + [(None, None)] * k,
        options={"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "ftol": 1e-15, "gtol": _GRADIENT},
    )
    u, b = found.x[:k], found.x[k:]
    _, gradient = loss(found.x)
    gradient[:k] = np.where((u <= 0) & (gradient[:k] > 0), 0.0, gradient[:k])
    largest = float(np.abs(gradient).max())
    level = "pass" if largest <= 10 * _GRADIENT else "warn"
    told = "is a minimum" if level == "pass" else "may not be a minimum"
    check = Check("vector scaling", level, f"the fit {told} of the NLL with its prior", largest, 10 * _GRADIENT)
    if predictions.binary:
        return VectorFit(u[1:] * scale, b[1:] - b[:1], check)
    return VectorFit(u * scale, b, check)


class _Loss:
    """Mean NLL with the prior, and its gradient, over logits times `scale`; a binary task has logits (0, z)."""

    def __init__(self, predictions: Predictions, scale: float) -> None:
        # A constant added to a row of logits changes what vector scaling makes of it: they stay as they are.
        self.columns = Columns(predictions, shifted=False)
        self.scale = scale
        self.classes = predictions.classes

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        k, n = self.classes, len(self.columns)
        u, b = x[:k] * self.scale, x[k:]
        value = 0.0
        by_u, by_b = np.zeros(k), np.zeros(k)
        for z, y in self.columns:
            s = z * u[:, None] + b[:, None]
            s -= s.max(axis=0)
            p = np.exp(s)
            total = p.sum(axis=0)
            at = np.arange(len(y))
            value += float(np.sum(np.log(total) - s[y, at]))
            p /= total
            p[y, at] -= 1.0
            by_b += p.sum(axis=1)
            by_u += np.einsum("cn,cn->c", p, z)
        prior = PRIOR / n
        value = value / n + prior / 2 * float(np.sum((x[:k] - 1) ** 2) + np.sum(b**2))
        return value, np.concatenate([by_u * self.scale / n + prior * (x[:k] - 1), by_b / n + prior * b])
