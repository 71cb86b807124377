"""What makes counting fast loses nothing: counts and sums in one number, either library's exponentials, no shift."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_calibration_accumulator import logits_of
from torch import nn

from landscape.calibration import exponentials
from landscape.calibration.accumulator import CalibrationAccumulator
from landscape.calibration.packed import PackedSums


def test_packed_sums_are_exact_however_many_share_a_cell() -> None:
    g = torch.Generator().manual_seed(0)
    packed = PackedSums(7)
    counts, sums = torch.zeros(7, dtype=torch.int64), torch.zeros(7, dtype=torch.float64)
    expected: list[list[float]] = [[] for _ in range(7)]
    for n in (131_071, 1, 70_000, 61_071):
        c = 2.0**-7 + (1 - 2.0**-7) * torch.rand(n, generator=g)
        c[:: max(1, n // 50)] = 1.0
        keys = torch.randint(0, 3, (n,), generator=g) * 3  # some cells stay empty
        assert packed.fits(c)
        if not packed.room(n):
            packed.take(counts, sums)
        packed.add(keys, c)
        for key, value in zip(keys.tolist(), c.double().tolist(), strict=True):
            expected[key].append(value)
    packed.take(counts, sums)
    packed.take(counts, sums)  # nothing is left
    assert counts.tolist() == [len(x) for x in expected]
    assert sums.tolist() == [math.fsum(x) for x in expected]


@pytest.mark.parametrize(
    "c",
    [torch.tensor([0.5, -0.0]), torch.tensor([0.5, 0.007]), torch.full((131_072,), 0.5), torch.ones(2).double()],
    ids=["-0.0", "small", "many", "float64"],
)
def test_what_cannot_be_packed_exactly_is_not(c: torch.Tensor) -> None:
    assert not PackedSums(4).fits(c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confidences_of_zero_may_have_a_sign(dtype: torch.dtype) -> None:
    c = torch.tensor([-0.0, 0.0, -0.0, 0.25, 1.0], dtype=dtype)
    y = torch.tensor([0, 1, 1, 1, 1])
    found = CalibrationAccumulator(kind="top-label", bins=[0, 1e-4, 0.5, 1]).update(probabilities=c, labels=y).compute()
    assert found.counts.tolist() == [3, 1, 1]
    assert found.ece == pytest.approx((2 + 0.75) / 5, rel=1e-15)


def test_sums_are_exact_in_any_order_and_with_any_batches() -> None:
    """Saturated confidences share one cell; some batches can be packed, and some can't."""
    g = torch.Generator().manual_seed(0)
    c = torch.where(torch.rand(400_000, generator=g) < 0.7, 1.0, torch.rand(400_000, generator=g))
    y = (torch.rand(400_000, generator=g) < c).long()
    whole = CalibrationAccumulator(kind="top-label", exact=0).update(probabilities=c, labels=y).totals()
    split = CalibrationAccumulator(kind="top-label", exact=0)
    rows = torch.cat([(c >= 0.01).nonzero(), (c < 0.01).nonzero()])[:, 0]
    for part in rows.split(90_000):
        split.update(probabilities=c[part], labels=y[part])
    other = split.totals()
    assert whole.table.counts.tolist() == other.table.counts.tolist()
    assert whole.table.correct.tolist() == other.table.correct.tolist()
    exact = [math.fsum(c[(c > k / 15) & (c <= (k + 1) / 15)].double().tolist()) for k in range(15)]
    for table in (whole.table, other.table):
        np.testing.assert_allclose(table.confidence_sums, exact, rtol=1e-13)


@pytest.mark.parametrize("by_numpy", [True, False])
def test_both_libraries_give_the_same_exponentials(by_numpy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exponentials, "_by_numpy", lambda: by_numpy)
    z, y = logits_of(0)
    found = CalibrationAccumulator().update(logits=z, labels=y).compute()
    assert found.nll == pytest.approx(nn.functional.cross_entropy(z.double(), y).item(), rel=1e-14)
    assert found.mean_confidence == pytest.approx(z.double().softmax(1).amax(1).mean().item(), rel=1e-14)


@pytest.mark.parametrize("low", [-1e4, -300.5, 299.5])
def test_rows_far_from_zero_are_shifted_and_single_low_logits_do_not_matter(low: float) -> None:
    z = torch.randn(300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(300) % 40
    z[:, 7] = -1e4  # vanishes without a shift
    z[3] += low
    found = CalibrationAccumulator().update(logits=z, labels=y).compute()
    assert found.nll == pytest.approx(nn.functional.cross_entropy(z, y).item(), rel=1e-12)
    assert found.mean_confidence == pytest.approx(z.softmax(1).amax(1).mean().item(), rel=1e-13)
