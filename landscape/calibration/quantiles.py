"""Calibration of a regression with Gaussian heads: do targets fall below predicted quantiles as often as said?"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from ..errors import MeasurementError
from ..results import Cost
from .inputs import tensor_of
from .intervals import clopper_pearson, mean_interval
from .table import QuantileCalibration

# Equal cells of the predicted distribution that targets are counted in (chosen by us: levels of a tenth of a percent).
_CELLS = 1000
_SQRT_PI, _SQRT_2PI, _HALF_LOG_2PI = math.sqrt(math.pi), math.sqrt(2 * math.pi), 0.5 * math.log(2 * math.pi)


def quantile_calibration(
    *,
    mean: Any,
    targets: Any,
    std: Any = None,
    variance: Any = None,
    log_variance: Any = None,
    levels: int = 20,
) -> QuantileCalibration:
    """How far the quantiles of predicted normal distributions are from the frequencies of the targets; CRPS and NLL.

    Args:
        mean, targets: floats of one shape, (n,) or (n, ...): every number is one prediction.
        std, variance, log_variance: exactly one of them, in that shape (or one that broadcasts to it).
        levels: quantiles i/levels, i = 1 .. levels - 1, are looked at (20: Kuleshov et al. 2018 show ten or more;
            chosen by us); a divisor of 1,000.

    `QuantileAccumulator` does the same batch by batch, on the device. Cost: one pass; float64 throughout.

    Raises MeasurementError in one line: several or none of the three scales, shapes that don't fit, no data, NaN or
    inf, a scale that is not positive (row named).
    Sources: Kuleshov, Fenner and Ermon 2018, arXiv:1807.00263, section 3.5 (quantile calibration); Gneiting and Raftery
    2007, doi:10.1198/016214506000001437, section 4.2 (CRPS of a normal distribution).
    """
    accumulator = QuantileAccumulator(levels=levels)
    accumulator.update(mean=mean, targets=targets, std=std, variance=variance, log_variance=log_variance)
    return accumulator.compute()


class QuantileAccumulator:
    """Count predictions of a regression with Gaussian heads as they come, in fixed memory (8 KiB), on their device.

    `update` takes a batch, `merge` another accumulator, `compute` gives the `QuantileCalibration`. Arguments, errors
    and sources as in `quantile_calibration`. Each update waits for the device once, to refuse faulty numbers.
    """

    def __init__(self, *, levels: int = 20) -> None:
        if isinstance(levels, bool) or not isinstance(levels, int | np.integer):
            raise TypeError(f"levels must be an integer, got {type(levels).__name__}")
        if levels < 2 or _CELLS % levels:
            raise MeasurementError(f"levels={levels} must be a divisor of {_CELLS} and at least 2, e.g. 10, 20 or 100")
        self.levels = int(levels)
        self.counts = torch.zeros(_CELLS, dtype=torch.int64, device="cpu")
        # Sums of CRPS and NLL and of their squares and cubes; of z^2, variance, squared error, standard deviation.
        self.sums = torch.zeros(10, dtype=torch.float64, device="cpu")

    def update(
        self, *, mean: Any, targets: Any, std: Any = None, variance: Any = None, log_variance: Any = None
    ) -> QuantileAccumulator:
        """Count a batch of predictions, each with its target."""
        center, y, scale = _read(mean, targets, std, variance, log_variance)
        if not len(y):
            return self
        if self.counts.device != y.device:
            self.counts, self.sums = self.counts.to(y.device), self.sums.to(y.device)
        z = (y - center) / scale
        below = torch.special.ndtr(z)
        density = torch.exp(-0.5 * z * z) / _SQRT_2PI
        crps = scale * (z * (2 * below - 1) + 2 * density - 1 / _SQRT_PI)
        nll = 0.5 * z * z + scale.log() + _HALF_LOG_2PI
        # Cells (lo, hi], 0 in the first; edges divided one by one.
        edges = torch.arange(1, _CELLS, dtype=torch.float64, device=y.device) / _CELLS
        at = torch.bucketize(below, edges)
        self.counts.scatter_add_(0, at, torch.ones_like(at))
        powers = [torch.stack([x.sum(), (x**2).sum(), (x**3).sum()]) for x in (crps, nll)]
        rest = torch.stack([(z * z).sum(), (scale * scale).sum(), ((y - center) ** 2).sum(), scale.sum()])
        self.sums += torch.cat([*powers, rest])
        return self

    def merge(self, other: QuantileAccumulator) -> QuantileAccumulator:
        """Add what another accumulator has counted; it stays as it is."""
        if other.levels != self.levels:
            raise MeasurementError(f"accumulators of {self.levels} and {other.levels} levels cannot be merged")
        self.counts += other.counts.to(self.counts.device)
        self.sums += other.sums.to(self.sums.device)
        return self

    def compute(self) -> QuantileCalibration:
        """Return the calibration of everything counted so far."""
        # Every probe imports this module, and scipy.stats takes a quarter of a second to import.
        from scipy.stats import binom, kstwo

        start = time.perf_counter()
        counts, sums = self.counts.cpu().numpy(), self.sums.cpu().numpy()
        n = int(counts.sum())
        if not n:
            raise MeasurementError("no predictions: nothing was counted")
        level = np.arange(1, self.levels) / self.levels
        below = np.cumsum(counts)[np.arange(1, self.levels) * (_CELLS // self.levels) - 1]
        observed = below / n
        gap = observed - level
        noise = observed * (1 - observed) / (n - 1) if n > 1 else np.full(len(level), math.nan)
        steps = np.arange(1, _CELLS) / _CELLS
        ks = float(np.abs(np.cumsum(counts)[:-1] / n - steps).max())
        crps_stderr, crps_interval = mean_interval(sums[:3], n)
        nll_stderr, nll_interval = mean_interval(sums[3:6], n)
        return QuantileCalibration(
            quantile_error=float(np.abs(gap).mean()),
            debiased_l2=float(max(0.0, (gap**2 - noise).mean())),
            ks=ks,
            calibration_p_value=float(kstwo.sf(ks, n)),
            crps=float(sums[0]) / n,
            crps_stderr=crps_stderr,
            crps_interval=crps_interval,
            nll=float(sums[3]) / n,
            nll_stderr=nll_stderr,
            nll_interval=nll_interval,
            rmse=math.sqrt(float(sums[8]) / n),
            mean_std=float(sums[9]) / n,
            rms_std=math.sqrt(float(sums[7]) / n),
            std_ratio=math.sqrt(float(sums[6]) / n),
            level=level,
            frequency=observed,
            frequency_interval=clopper_pearson(below, np.full(len(level), n)),
            consistency_band=np.stack([binom.ppf(q, n, level) / n for q in (0.025, 0.975)], axis=1),
            counts=counts.reshape(self.levels, -1).sum(axis=1),
            samples=n,
            settings={"levels": self.levels, "interval": "95%, Hall's transformation"},
            cost=Cost(seconds=time.perf_counter() - start),
        )


def _read(
    mean: Any, targets: Any, std: Any, variance: Any, log_variance: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return means, targets and standard deviations, flat and in float64, checked."""
    given = {"std": std, "variance": variance, "log_variance": log_variance}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise MeasurementError(
            f"give std=, variance= or log_variance=, exactly one of them, got {', '.join(named) or 'none'}: which of "
            "them the numbers are is never guessed"
        )
    name = named[0]
    values: dict[str, torch.Tensor] = {}
    for label, value in (("mean", mean), ("targets", targets), (name, given[name])):
        found, dtype = tensor_of(value)
        if dtype not in ("float16", "bfloat16", "float32", "float64"):
            raise MeasurementError(f"{label} must be floating point numbers, got {dtype}")
        values[label] = found.double()
    shape = values["targets"].shape
    if values["mean"].shape != shape:
        raise MeasurementError(
            f"mean of shape {tuple(values['mean'].shape)} doesn't fit targets of shape {tuple(shape)}; give one mean "
            "for each target"
        )
    try:
        values[name] = values[name].to(values["targets"].device).expand(shape)
    except RuntimeError:
        raise MeasurementError(
            f"{name} of shape {tuple(values[name].shape)} doesn't fit targets of shape {tuple(shape)}; give one "
            "for each target, or one for all"
        ) from None
    for label, value in values.items():
        _refuse(~torch.isfinite(value), value, f"{label} must be finite", shape)
    scale = values[name]
    if name == "log_variance":
        scale = torch.exp(scale / 2)
        _refuse(
            ~torch.isfinite(scale) | (scale <= 0), values[name], "log_variance must have a finite exponential", shape
        )
    else:
        _refuse(scale <= 0, scale, f"{name} must be positive", shape)
        scale = scale.sqrt() if name == "variance" else scale
    return values["mean"].to(scale.device).reshape(-1), values["targets"].reshape(-1), scale.reshape(-1)


def _refuse(wrong: torch.Tensor, values: torch.Tensor, message: str, shape: torch.Size) -> None:
    if bool(wrong.any()):
        first = int(wrong.reshape(-1).int().argmax())
        at = ", ".join(str(int(i)) for i in np.unravel_index(first, tuple(shape)))
        where = f"row {at}" if len(shape) < 2 else f"position ({at})"
        raise MeasurementError(
            f"{message}, got {float(values.reshape(-1)[first]):g} in {where} ({int(wrong.sum())} of {wrong.numel()} "
            "are); mend or leave them out"
        )
