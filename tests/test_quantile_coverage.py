"""Predicted quantiles: how often targets lie below them, and whether intervals hold where horizons depend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import mean_pinball_loss
from torch import nn

from landscape import losses
from landscape.calibration.quantile_heads import measure_quantiles, quantile_coverage
from landscape.errors import MeasurementError, ObjectiveError, TrainingError
from landscape.results import measurements, rebuild
from landscape.tasks import Task

LEVELS = [0.1, 0.5, 0.9]


def series(rng: np.random.Generator, n: int, horizon: int = 6, shared: float = 0.8) -> np.ndarray:
    """Return targets (n, horizon), standard normal, whose horizons share a part of their error."""
    own = rng.standard_normal((n, horizon)) * np.sqrt(1 - shared)
    return own + rng.standard_normal((n, 1)) * np.sqrt(shared)


def right(n: int, horizon: int = 6, levels=LEVELS) -> np.ndarray:
    return np.broadcast_to(norm.ppf(levels), (n, horizon, len(levels))).copy()


def test_frequencies_losses_and_widths_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    y, z = series(rng, 40), right(40) + rng.standard_normal((40, 6, 3)) * 0.5
    found = quantile_coverage(quantiles=z, targets=y, levels=LEVELS)
    assert found.frequency == pytest.approx([(y <= z[..., i]).mean() for i in range(3)])
    losses_ = [mean_pinball_loss(y.ravel(), z[..., i].ravel(), alpha=q) for i, q in enumerate(LEVELS)]
    assert found.pinball == pytest.approx(losses_, rel=1e-12)
    assert found.mean_pinball == pytest.approx(np.mean(losses_), rel=1e-12)
    assert found.nominal == pytest.approx([0.8])
    assert found.coverage == pytest.approx([((z[..., 0] <= y) & (y <= z[..., 2])).mean()])
    assert found.width == pytest.approx([(z[..., 2] - z[..., 0]).mean()])
    assert found.crossing == pytest.approx((np.diff(z, axis=-1) < 0).any(-1).mean())
    each = np.stack([np.maximum(q * (y - z[..., i]), (q - 1) * (y - z[..., i])) for i, q in enumerate(LEVELS)], -1)
    by_sample = each.mean(axis=(1, 2))
    assert found.mean_pinball_stderr == pytest.approx(by_sample.std(ddof=1) / 40**0.5, rel=1e-12)
    assert (found.samples, found.predictions) == (40, 240)


def test_quantiles_may_stand_second_and_levels_in_any_order() -> None:
    rng = np.random.default_rng(1)
    y, z = series(rng, 30), right(30) + rng.standard_normal((30, 6, 3)) * 0.1
    one = quantile_coverage(quantiles=z, targets=y, levels=LEVELS)
    two = quantile_coverage(quantiles=np.moveaxis(z, -1, 1)[:, [2, 0, 1]], targets=y, levels=[0.9, 0.1, 0.5])
    assert one.frequency.tolist() == two.frequency.tolist()
    assert two.level.tolist() == LEVELS
    single = quantile_coverage(quantiles=z[:, 0], targets=y[:, :1], levels=LEVELS)
    assert (
        single.frequency.tolist()
        == quantile_coverage(quantiles=z[:, 0], targets=y[:, 0], levels=LEVELS).frequency.tolist()
    )


def test_intervals_hold_and_the_test_rejects_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    n, draws = 80, 300
    held, naive, rejected, wrong = np.zeros(3), np.zeros(3), 0, 0
    central = 0
    for _ in range(draws):
        y = series(rng, n)
        found = quantile_coverage(quantiles=right(n), targets=y, levels=LEVELS)
        low, high = found.frequency_interval.T
        held += (low <= LEVELS) & (np.array(LEVELS) <= high)
        spread = 1.96 * np.sqrt(found.frequency * (1 - found.frequency) / y.size)
        naive += np.abs(found.frequency - LEVELS) <= spread
        central += found.coverage_interval[0, 0] <= 0.8 <= found.coverage_interval[0, 1]
        rejected += found.calibration_p_value < 0.05
        wrong += quantile_coverage(quantiles=0.6 * right(n), targets=y, levels=LEVELS).calibration_p_value < 0.05
    # 300 draws of 95% have a standard error of 1.3%.
    assert (held / draws >= 0.91).all(), held / draws
    assert central / draws >= 0.91
    assert (naive / draws < 0.75).all()
    assert 0.02 <= rejected / draws <= 0.095
    assert wrong / draws > 0.95


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shift + x[..., None] + torch.tensor(norm.ppf(LEVELS))


class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("q", torch.tensor(LEVELS))

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        e = y[..., None] - z
        return torch.maximum(self.q.to(e) * e, (self.q.to(e) - 1) * e).mean()


def forecast(loss: object) -> Task:
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.standard_normal((50, 6)))
    return Task(Head(), loss, test=(x, x + torch.from_numpy(series(rng, 50))), batch_size=16)


@pytest.mark.parametrize("loss", [OwnLoss(), losses.build("pinball(levels=[0.1, 0.5, 0.9])"), losses.build("pinball")])
def test_a_task_is_judged_by_the_levels_of_its_loss(loss) -> None:
    task = forecast(loss)
    x, y = task.test
    found = measure_quantiles(task)
    direct = quantile_coverage(quantiles=task.model(x).detach(), targets=y, levels=LEVELS)
    assert found.frequency_interval.tolist() == direct.frequency_interval.tolist()
    assert found.level == pytest.approx(LEVELS)
    assert (found.split, found.samples, found.cost.passes) == ("test", 50, 1)
    again = rebuild("quantile_coverage", found.variables(), found.attributes())
    assert again.summary() == found.summary()


def test_what_is_not_known_or_does_not_fit_is_refused_with_what_to_write() -> None:
    task = forecast(lambda z, y: (y[..., None] - z).square().mean())
    with pytest.raises(MeasurementError, match=r"--option quantile_coverage.levels=0.1\+0.5\+0.9"):
        measure_quantiles(task)
    assert measure_quantiles(task, levels="0.1+0.5+0.9").samples == 50
    with pytest.raises(MeasurementError, match=r"\(16, 6, 3\) don't fit targets of shape \(16, 6\) and 2 levels"):
        measure_quantiles(task, levels="0.1+0.9")
    with pytest.raises(MeasurementError, match="write them as"):
        measurements()["quantile_coverage"].check(levels="10+90")
    y = series(np.random.default_rng(0), 10)
    y[3, 3] = np.nan
    with pytest.raises(MeasurementError, match="1 of 60 targets are not finite"):
        quantile_coverage(quantiles=right(10), targets=y, levels=LEVELS)
    with pytest.raises(MeasurementError, match="each once"):
        quantile_coverage(quantiles=right(10), targets=series(np.random.default_rng(0), 10), levels=[0.1, 0.1, 0.9])


def test_the_pinball_loss_refuses_levels_that_do_not_fit() -> None:
    z, y = torch.zeros(4, 3), torch.zeros(4)
    with pytest.raises(ObjectiveError, match="2 levels, and outputs of shape"):
        losses.build("pinball(levels=[0.1, 0.9])")(z, y)
    with pytest.raises(TrainingError, match="within"):
        losses.build("pinball(levels=[0, 0.5, 1])")(z, y)
