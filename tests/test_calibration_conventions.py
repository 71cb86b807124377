"""The named conventions give what the packages give, to the last bit: equality, no tolerance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape.calibration.checked import read_predictions
from landscape.calibration.conventions import netcal
from landscape.calibration.scores import calibration_error
from landscape.errors import MeasurementError

torchmetrics_functional = pytest.importorskip("torchmetrics.functional.classification")
netcal_metrics = pytest.importorskip("netcal.metrics")

BINS = (1, 2, 5, 10, 15, 33)
DTYPES = ("float32", "float64")
# Five three-class predictions worked out by hand (two ties with the maximum in row 3).
WORKED = np.array([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [0.2, 0.5, 0.3]])
WORKED_LABELS = np.array([1, 0, 2, 1, 0])


def multiclass(seed: int, n: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return random probabilities and labels with exact 0 and 1, confidences on bin edges, and ties mixed in."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.4), size=n)
    for row in range(0, n, 4):
        p[row] = 0.0
        edge = rng.choice([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 7 / 15, 10 / 33])
        where = rng.permutation(classes)
        p[row, where[0]] = edge
        rest = 1.0 - edge
        second = min(edge, rest) if rng.random() < 0.5 else rest / 2  # the first: a tie where edge <= 0.5
        p[row, where[1]], p[row, where[2]] = second, rest - second
    labels = np.where(rng.random(n) < 0.6, p.argmax(1), rng.integers(classes, size=n))
    return p, labels


def binary(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = np.concatenate(
        [rng.random(n // 2), np.arange(16) / 15, np.arange(34) / 33, np.arange(11) / 10, [0.0, 1.0, 0.5, 0.0, 1.0]]
    )
    return p, (rng.random(len(p)) < p**0.7).astype(np.int64)


def guo_reference(probabilities: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    """The published definition, written anew: float32 edges by linspace, (lo, hi], accumulated in float32."""
    sure, chosen = probabilities.max(dim=1) if probabilities.ndim == 2 else (probabilities, torch.ones_like(labels))
    right = chosen == labels
    grid = torch.linspace(0, 1, bins + 1)
    total = torch.zeros(1)
    for lo, hi in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        here = (sure > lo) & (sure <= hi)
        weight = here.float().mean()
        if here.any():
            total += (sure[here].mean() - right[here].float().mean()).abs() * weight
    return total.item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("seed", range(4))
def test_several_classes_equal_the_packages(seed: int, bins: int, dtype: str) -> None:
    p, y = multiclass(seed)
    p = p.astype(dtype)
    tensor, truth = torch.from_numpy(p), torch.from_numpy(y)

    def ours(convention: str) -> tuple[float, float]:
        found = calibration_error(probabilities=p, labels=y, bins=bins, convention=convention)  # type: ignore[arg-type]
        return found.ece, found.mce

    metric = torchmetrics_functional.multiclass_calibration_error
    assert ours("torchmetrics") == (
        metric(tensor, truth, 5, n_bins=bins).item(),
        metric(tensor, truth, 5, n_bins=bins, norm="max").item(),
    )
    assert ours("netcal") == (netcal_metrics.ECE(bins).measure(p, y), netcal_metrics.MCE(bins).measure(p, y))
    assert ours("guo")[0] == guo_reference(tensor, truth, bins)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("seed", range(4))
def test_a_binary_task_equals_the_packages(seed: int, bins: int, dtype: str) -> None:
    p, y = binary(seed)
    p = p.astype(dtype)
    tensor, truth = torch.from_numpy(p), torch.from_numpy(y)

    def ours(convention: str) -> float:
        return calibration_error(probabilities=tensor, labels=truth, bins=bins, convention=convention).ece  # type: ignore[arg-type]

    assert ours("torchmetrics") == torchmetrics_functional.binary_calibration_error(tensor, truth, n_bins=bins).item()
    assert ours("netcal") == netcal_metrics.ECE(bins).measure(p, y)
    assert ours("guo") == guo_reference(tensor, truth, bins)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_equals_torchmetrics(dtype: str) -> None:
    kind = getattr(torch, dtype)
    p, y = multiclass(7)
    tensor, truth = torch.from_numpy(p).to(kind), torch.from_numpy(y)
    found = calibration_error(probabilities=tensor, labels=truth, convention="torchmetrics")
    assert found.ece == torchmetrics_functional.multiclass_calibration_error(tensor, truth, 5).item()
    p, y = binary(7)
    tensor, truth = torch.from_numpy(p).to(kind), torch.from_numpy(y)
    found = calibration_error(probabilities=tensor, labels=truth, convention="torchmetrics")
    assert found.ece == torchmetrics_functional.binary_calibration_error(tensor, truth).item()


def test_float16_equals_netcal() -> None:
    p, y = multiclass(8)
    p = p.astype(np.float16)
    found = calibration_error(probabilities=p, labels=y, convention="netcal")
    with np.errstate(over="ignore", invalid="ignore"):  # netcal rounds float16 to 7 decimals, and says so
        theirs = netcal_metrics.ECE(15).measure(p, y)
    assert found.ece == theirs


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_segmentation_and_ignored_pixels_equal_torchmetrics(dtype: str) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 6, 5, generator=g, dtype=getattr(torch, dtype)) * 2
    labels = torch.randint(0, 4, (3, 6, 5), generator=g)
    labels[torch.rand(3, 6, 5, generator=g) < 0.2] = -100
    theirs = torchmetrics_functional.multiclass_calibration_error(logits, labels, 4, n_bins=10, ignore_index=-100)
    ours = calibration_error(logits=logits, labels=labels, bins=10, ignore_index=-100, convention="torchmetrics")
    assert ours.ece == theirs.item()
    flat = logits.movedim(1, -1).reshape(-1, 4)[labels.reshape(-1) != -100].softmax(dim=1)
    kept = labels[labels != -100]
    assert calibration_error(logits=logits, labels=labels, bins=10, ignore_index=-100, convention="guo").ece == (
        guo_reference(flat, kept, 10)
    )
    netcals = netcal_metrics.ECE(10).measure(flat.numpy(), kept.numpy())
    ours = calibration_error(logits=logits, labels=labels, bins=10, ignore_index=-100, convention="netcal")
    assert ours.ece == netcals


def test_binary_logits_equal_torchmetrics() -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(1)) * 3
    labels = (torch.rand(300, generator=torch.Generator().manual_seed(2)) < logits.sigmoid()).long()
    ours = calibration_error(logits=logits, labels=labels, convention="torchmetrics")
    assert ours.ece == torchmetrics_functional.binary_calibration_error(logits, labels).item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_columns_are_the_positive_class_for_netcal_and_the_top_label_for_torchmetrics(dtype: str) -> None:
    p, y = binary(3)
    two = np.stack([1 - p, p], axis=1).astype(dtype)
    assert calibration_error(probabilities=two, labels=y, convention="netcal").ece == (
        netcal_metrics.ECE(15).measure(two, y)
    )
    theirs = torchmetrics_functional.multiclass_calibration_error(torch.from_numpy(two), torch.from_numpy(y), 2)
    assert calibration_error(probabilities=two, labels=y, convention="torchmetrics").ece == theirs.item()


def test_netcal_refuses_two_labels_of_many_classes_and_so_do_we() -> None:
    p, y = multiclass(0)
    y = y % 2
    with pytest.raises(RuntimeError, match="binary"):
        netcal_metrics.ECE(15).measure(p, y)
    with pytest.raises(MeasurementError, match="at most two values"):
        calibration_error(probabilities=p, labels=y, convention="netcal")


def test_netcal_counts_and_averages_with_different_edges_below_float64() -> None:
    # 0.7 in float32 is 0.699999988: below the float64 edge 0.7 it counts in bin 6, and enters the mean of bin 7.
    p = read_predictions(
        logits=None,
        probabilities=WORKED.astype(np.float32),
        labels=WORKED_LABELS,
        ignore_index=None,
        class_dim=1,
    )
    assert netcal(p, 10).index.tolist() == [8, 7, 6, 4, 5]


@pytest.mark.parametrize(
    ("convention", "expected"), [("torchmetrics", 0.525), ("netcal", 0.475), ("guo", 0.475), (None, 0.475)]
)
def test_a_confidence_of_one(convention: str | None, expected: float) -> None:
    found = calibration_error(
        probabilities=np.array([0.95, 1.0]),
        labels=np.array([1, 0]),
        bins=10,
        convention=convention,  # type: ignore[arg-type]
        strict=False,
    )
    # 1e-7: torchmetrics' 0.95 is float32 in its multi-class form; netcal clips 1 to 1 - 2e-16.
    assert found.ece == pytest.approx(expected, abs=1e-7)
    if convention == "torchmetrics":
        assert found.counts.tolist() == [0] * 9 + [1, 1]
        assert found.edges[-2:].tolist() == [1.0, 1.0]


# Each convention in each precision: 5, 10 and 15 bins. The packages' numbers, found by running them.
TABLE = {
    (None, "float64"): (0.20, 0.36, 0.36),
    (None, "float32"): (0.36, 0.36, 0.36),
    ("torchmetrics", "float64"): (0.36, 0.36, 0.36),
    ("torchmetrics", "float32"): (0.36, 0.36, 0.36),
    ("netcal", "float64"): (0.20, 0.20, 0.36),
    ("netcal", "float32"): (0.36, 0.38, 0.36),
    ("guo", "float64"): (0.20, 0.36, 0.36),
    ("guo", "float32"): (0.20, 0.36, 0.36),
}


@pytest.mark.parametrize(("key", "expected"), TABLE.items(), ids=str)
def test_the_worked_predictions(key: tuple[str | None, str], expected: tuple[float, ...]) -> None:
    convention, dtype = key
    p = WORKED.astype(dtype)
    for bins, value in zip((5, 10, 15), expected, strict=True):
        found = calibration_error(
            probabilities=p,
            labels=WORKED_LABELS,
            bins=bins,
            convention=convention,  # type: ignore[arg-type]
            strict=False,
        )
        assert found.ece == pytest.approx(value, abs=1e-7)  # float32 inputs are 0.36 to 7 digits
        if convention == "netcal":
            assert found.ece == netcal_metrics.ECE(bins).measure(p, WORKED_LABELS)
        if convention == "torchmetrics":
            theirs = torchmetrics_functional.multiclass_calibration_error(
                torch.from_numpy(p), torch.from_numpy(WORKED_LABELS), 3, n_bins=bins
            )
            assert found.ece == theirs.item()


def test_guo_drops_a_confidence_of_zero_but_counts_it() -> None:
    p = np.array([0.0, 0.0, 0.9, 0.9])
    y = np.array([1, 1, 1, 0])
    found = calibration_error(probabilities=p, labels=y, bins=2, convention="guo")
    assert found.counts.sum() == 2
    assert found.ece == pytest.approx(0.4 * 2 / 4, abs=1e-7)  # |0.9 - 0.5| for half of the four samples
    with pytest.raises(MeasurementError, match="every confidence is 0"):
        calibration_error(probabilities=np.zeros(4), labels=y, bins=2, convention="guo")


@pytest.mark.parametrize("convention", ["torchmetrics", "netcal", "guo"])
def test_the_table_belongs_to_the_convention(convention: str) -> None:
    p, y = multiclass(5)
    found = calibration_error(probabilities=p, labels=y, convention=convention)  # type: ignore[arg-type]
    rows = found.counts > 0
    gaps = np.abs(found.confidences - found.accuracies)[rows]
    assert len(found.edges) == found.bins + 1
    # 1e-6: the conventions' own sums are float32.
    assert np.sum(gaps * found.counts[rows]) / found.samples == pytest.approx(found.ece, abs=1e-6)
    assert gaps.max() == pytest.approx(found.mce, abs=1e-6)
