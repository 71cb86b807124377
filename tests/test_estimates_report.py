"""Density, diagonal, norm and sampling error where people see them: archived bit for bit, drawn, and in the report."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape import (
    Eigenpairs,
    Result,
    diagonal,
    draw,
    eigenpairs,
    frobenius_norm,
    open_archive,
    save_archive,
    spectral_density,
    write_report,
)
from landscape.curvature.estimates import DiagonalEstimate, SamplingError, SpectralDensity
from landscape.errors import MeasurementError
from landscape.report.figures.density import densities, floor_of
from landscape.report.figures.diagonal import diagonals
from landscape.report.runs import make_run


def matrix(seed: int = 0) -> torch.Tensor:
    """Return a dense matrix with outliers 9, 5 and 2 and a bulk around zero."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64)).Q
    values = torch.cat([torch.tensor([9.0, 5.0, 2.0]).double(), 0.1 * torch.randn(57, generator=generator).double()])
    return basis @ torch.diag(values) @ basis.T


def density() -> SpectralDensity:
    return spectral_density(matrix(), steps=30, draws=4)


def layered() -> DiagonalEstimate:
    return dataclasses.replace(
        diagonal(matrix(), draws=8),
        sums=np.array([10.0, -1.0]),
        sums_stderr=np.array([2.0, 0.5]),
        sizes=np.array([50, 10]),
        quantiles=np.zeros((2, 5)),
        noise=np.ones(2),
        names=("layer.weight", "layer.bias"),
    )


def sampled(resolved: bool = True, population: float = 50_000.0) -> SamplingError:
    """Return a number that falls with the samples: 9, 6, 5 on parts, 4.7 or an upper estimate of 5 for all."""
    return SamplingError(
        values=np.array([5.0]),
        estimates=np.array([4.7 if resolved else 5.0]),
        interval=np.array([[4.2, 5.2]]),
        bias=np.array([0.3]),
        bias_error=np.array([0.1]),
        stderr=np.array([0.2]),
        own=np.array([0.01]),
        error=np.array([0.1]),
        resolved=np.array([resolved]),
        sizes=np.array([64.0, 256.0, 1024.0]),
        parts=np.array([16, 4, 1]),
        means=np.array([[9.0], [6.0], [5.0]]),
        spreads=np.array([[2.0], [1.0], [math.nan]]),
        samples=1024,
        population=population,
        work=0.06,
        names=("lambda_1",),
        split="train",
    )


EVERY = {
    "density": density,
    "frobenius": lambda: frobenius_norm(matrix(), draws=4),
    "diagonal": layered,
    "sampling": sampled,
}


# ------------------------------------------------------------------------------------------- archived


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_comes_back_from_an_archive_bit_for_bit(kind: str, tmp_path: Path) -> None:
    result: Result = EVERY[kind]()
    save_archive(tmp_path / "run.h5", [result])
    (entry,) = open_archive(tmp_path / "run.h5").entries
    back = entry.result
    assert type(back) is type(result)
    assert back.summary() == result.summary()
    for name, variable in result.variables().items():
        np.testing.assert_array_equal(back.variables()[name].data, variable.data)
    assert back.checks == result.checks


def test_a_density_from_an_archive_still_has_its_moments(tmp_path: Path) -> None:
    result = density()
    save_archive(tmp_path / "run.h5", [result])
    (entry,) = open_archive(tmp_path / "run.h5").entries
    assert entry.result.moment(3) == result.moment(3)


# ------------------------------------------------------------------------------------------- drawn


def test_a_density_is_drawn_from_a_tenth_of_an_eigenvalue_up_with_its_band() -> None:
    result = density()
    ax = draw(result)
    assert ax.get_yscale() == "log"
    peak = 1 / (60 * result.sigma * math.sqrt(2 * math.pi))
    assert ax.get_ylim()[0] == pytest.approx(0.1 * peak) == pytest.approx(floor_of(result))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), result.density)
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(result.band.max())
    assert "loss / parameter²" in ax.get_xlabel()
    assert "share of eigenvalues" in ax.get_ylabel()
    linear = draw(result, scale="linear")
    assert (linear.get_yscale(), linear.get_ylim()[0]) == ("linear", 0.0)


def test_eigenvalues_are_marked_at_the_foot() -> None:
    pairs: Eigenpairs = eigenpairs(matrix(), 3, "both", k_smallest=1)
    ax = draw(density(), eigenvalues=pairs, label="run")
    marks = next(line for line in ax.lines if line.get_label() == "eigenvalues")
    np.testing.assert_allclose(marks.get_xdata(), [*pairs.values, *pairs.smallest])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["run", "eigenvalues"]


def test_a_diagonal_is_drawn_with_its_intervals_and_names() -> None:
    ax = draw(layered())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["layer.weight", "layer.bias"]
    ends = ax.collections[0].get_segments()
    assert ends[0][:, 0] == pytest.approx([10 - 1.96 * 2, 10 + 1.96 * 2], rel=1e-4)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (sampled(), "estimate for 50,000 samples, 95% interval"),
        (sampled(resolved=False), "upper estimate for 50,000 samples"),
        (sampled(population=math.inf), "estimate for the source"),
    ],
)
def test_a_sampling_error_is_drawn_with_what_the_number_is_called(result: SamplingError, words: str) -> None:
    ax = draw(result)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert any(words in t for t in texts)
    assert ax.get_ylabel() == "λ max (loss / parameter²)"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["64", "256", "1,024"]


def test_what_cannot_be_drawn_is_one_clear_line() -> None:
    with pytest.raises(MeasurementError, match="number=1: this result holds 1 numbers"):
        draw(sampled(), number=1)
    with pytest.raises(MeasurementError, match="zero or not finite everywhere"):
        draw(dataclasses.replace(density(), density=np.zeros(3), grid=np.arange(3.0), band=np.zeros((3, 2))))
    with pytest.raises(MeasurementError, match="no sum of this diagonal is finite"):
        draw(dataclasses.replace(layered(), sums=np.full(2, math.nan)))


# ------------------------------------------------------------------------------------------- in the report


def test_the_report_shows_all_of_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_archive(tmp_path / f"{name}.h5", [eigenpairs(matrix(), 3), *(make() for make in EVERY.values())])
    write_report([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("Spectral density", "Diagonal by parameter tensor", "Sampling error", "Numbers from the quadrature"):
        assert words in page
    assert "of the sum of |eigenvalue|, how much lies below zero" in page
    assert "[4.20, 5.20]" in page


def test_charts_hold_the_results_own_numbers() -> None:
    result = density()
    pairs = eigenpairs(matrix(), 3)
    runs = [make_run("a", [result, pairs]), make_run("b", [layered()])]
    chart = densities(runs)
    assert chart is not None
    np.testing.assert_array_equal(chart.series[0].columns["density"], result.density)
    np.testing.assert_array_equal(chart.series[0].columns["high"], result.band[:, 1])
    np.testing.assert_allclose(chart.series[1].columns["at"], pairs.values)
    assert "Ticks at the foot" in chart.caption
    alone = densities([make_run("a", [result])])
    assert alone is not None
    assert "Ticks" not in alone.caption
    chart = diagonals(runs)
    assert chart is not None
    np.testing.assert_array_equal(chart.series[0].columns["sum"], [10.0, -1.0])
    assert densities([runs[1]]) is None
    assert diagonals([runs[0]]) is None
