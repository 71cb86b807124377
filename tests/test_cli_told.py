"""The few words in which the terminal tells results whose arrays would fill it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from landscape.cli.summary import summarize
from landscape.curvature.estimates import DiagonalEstimate, NormEstimate, SamplingError
from landscape.curvature.spectrum import LayerCurvature
from landscape.curvature.thresholds import BatchSharpness, Stability
from landscape.surface.fields import EigenvalueMap
from landscape.surface.routes import Trajectory

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


def test_a_trajectory_says_how_far_it_went_and_where_its_plane_misleads():
    found = Trajectory(
        step=np.arange(3.0),
        coordinates=np.zeros((3, 2)),
        distance=np.array([6.5, 2.0, 0.0]),
        off_plane=np.zeros(3),
        loss=np.array([2.0, 1.0, 0.5]),
        loss_stderr=np.full(3, 0.01),
        plane_loss=np.array([2.1, 0.2, 0.5]),
        gap=np.array([0.1, -0.8, 0.0]),
        gap_stderr=np.array([0.02, 0.03, 0.0]),
        share=np.array([0.95, 0.04, 0.01]),
        captured=0.994,
        direction_norms=np.ones(2),
        cosine=0.0,
    )
    text = line(found)
    assert "3 checkpoints over 6.500 axes hold 95% and 4% of the variance 99.4% of the squared distances" in text
    assert text.endswith("largest gap of the plane's loss to the checkpoint's own −0.800 ± 0.030")


def test_an_eigenvalue_map_counts_what_has_not_converged():
    largest = np.array([[4.0, 2.0], [8.0, 5.0]])
    found = EigenvalueMap(
        alpha=np.arange(2.0),
        beta=np.arange(2.0),
        largest=largest,
        smallest=np.array([[-1.0, -1.0], [-1.0, 1.0]]),
        largest_residual=np.zeros((2, 2)),
        smallest_residual=np.zeros((2, 2)),
        converged=np.array([[True, True], [True, False]]),
        products=np.full((2, 2), 9),
        direction_norms=np.ones(2),
    )
    words = "eigenvalue map 2 × 2 points λ max 2.000 to 8.000 −λ min / λ max up to 0.500 1 not converged"
    assert line(found) == words
