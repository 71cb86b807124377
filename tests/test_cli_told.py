"""The few words in which the terminal tells results whose arrays would fill it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from landscape.cli.summary import summarize
from landscape.curvature.estimates import DiagonalEstimate, NormEstimate, SamplingError
from landscape.curvature.spectrum import LayerCurvature
from landscape.curvature.thresholds import BatchSharpness, Stability

NAMES = ("stem", "middle", "head", "scale", "bias")


def line(result) -> str:
    return " ".join(summarize({"x": result}).split())


def test_layers_name_the_three_with_the_most_curvature():
    found = LayerCurvature(
        largest=np.array([1.0, 30.0, 2.0, 4.0, -1.0]),
        residuals=np.full(5, 1e-3),
        converged=np.ones(5, bool),
        sizes=np.arange(1, 6),
        whole=31.0,
        names=NAMES,
    )
    assert line(found) == "layers λ max 31.00 over all middle 30.00 scale 4.000 head 2.000 2 layers below"


def test_a_diagonal_names_the_tensors_with_the_largest_sums():
    found = DiagonalEstimate(
        sums=np.array([5.0, 1.0, 9.0, 2.0, -3.0]),
        sums_stderr=np.full(5, 0.5),
        sizes=np.full(5, 2),
        quantiles=np.zeros((5, 5)),
        noise=np.zeros(5),
        relative_error=0.1,
        trace=14.0,
        trace_stderr=1.0,
        names=NAMES,
    )
    assert line(found) == "diagonal sum 14.0 ± 1.0 head 9.00 ± 0.50 stem 5.00 ± 0.50 scale 2.00 ± 0.50"


def test_a_norm_has_its_error_and_its_draws():
    assert line(NormEstimate(value=10.0, stderr=1.0, samples=np.ones(16))) == "frobenius 10.0 ± 1.0 16 draws"


@pytest.mark.parametrize(("population", "target"), [(1200.0, "all 1,200"), (math.inf, "their source")])
def test_a_sampling_error_says_what_it_is_an_estimate_of(population, target):
    found = SamplingError(
        values=np.array([12.0]),
        estimates=np.array([11.0]),
        interval=np.array([[10.0, 12.0]]),
        bias=np.array([1.0]),
        bias_error=np.array([0.5]),
        stderr=np.array([0.2]),
        own=np.array([0.0]),
        error=np.array([0.1]),
        resolved=np.array([False]),
        sizes=np.array([10.0]),
        parts=np.array([1]),
        means=np.ones((1, 1)),
        spreads=np.ones((1, 1)),
        samples=512,
        population=population,
        names=("lambda_1",),
    )
    text = line(found)
    assert "lambda_1 12.00, upper estimate 11" in text
    assert text.endswith(f"from 512 samples, for {target}")


def test_a_threshold_is_given_with_its_learning_rate_or_said_to_be_undefined():
    edge = Stability(eigenvalue=30.0, residual=0.01, threshold=20.0, ratio=1.5, lr=0.1)
    assert line(edge) == "stability λ max 30.000 ± 0.010 threshold 20.00 at learning rate 0.1000 1.50 times it"
    none = BatchSharpness(value=3.0, stderr=0.5, threshold=math.nan, batches=8, batch=128)
    assert line(none).endswith("3.00 ± 0.50 threshold not defined for this optimizer")
