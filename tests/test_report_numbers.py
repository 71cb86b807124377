"""How numbers are written, what is read off a run, which scale is taken, and what a rank correlation may claim."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from report_samples import calibration, eigenvalues, performance, sample_runs
from scipy import stats

from landscape.comparison.ranks import FEWEST, kendall
from landscape.curvature.spectrum import ScaledCurvature, SharpnessEstimate
from landscape.report.measures import measures, settings, sharpness_names
from landscape.report.numbers import count, given, interval, number, seconds, span, uncertain
from landscape.report.runs import flat, make_run, unique
from landscape.report.scales import finite, scales
from landscape.report.sections.sharpness import build as sharpness_section
from landscape.results import Check, StoredResult

# ------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (812.345, 14.2, ("812", "14")),
        (0.05123, 0.0031, ("0.0512", "0.0031")),
        (99.996, 0.99, ("100.00", "0.99")),
        (99.99, 0.996, ("100.0", "1.0")),
        (0.0, 0.01, ("0.000", "0.010")),
        (-0.0004, 0.3, ("0.00", "0.30")),
        (-2.5, 0.13, ("−2.50", "0.13")),
        (3e-9, 2.0, ("0.0", "2.0")),
        (5.0, 2.0e6, ("0.0 × 10⁶", "2.0 × 10⁶")),
        (1.23e6, 4.5e4, ("1.230 × 10⁶", "0.045 × 10⁶")),
        (1e-9, 2e-11, ("1.000 × 10⁻⁹", "0.020 × 10⁻⁹")),
        (34.2, 1e-13, ("34.2000", "1.0 × 10⁻¹³")),
        (5.0, 0.0, ("5.000", "0")),
        (1.0, math.nan, ("1.000", "")),
        (math.inf, 1.0, ("∞", "")),
        (math.nan, 1.0, ("NaN", "")),
    ],
)
def test_digits_follow_the_uncertainty(value, error, text):
    assert uncertain(value, error) == text


def test_an_interval_has_the_digits_of_its_width():
    assert interval(0.0312, 0.0221, 0.0441) == ("0.031", "[0.022, 0.044]")
    assert interval(1.0, 0.4, 1.6) == ("1.00", "[0.40, 1.60]")  # ± 0.60
    assert interval(0.0312, math.nan, math.nan) == ("0.03120", "")
    assert interval(2.9075184, 2.9075168, 2.90752) == ("2.9075184", "[2.9075168, 2.9075200]")
    # A width that is rounding, of numbers that are all the same, must not fill the column with digits.
    assert interval(-0.0045, -0.0045 - 1e-17, -0.0045 + 1e-17) == ("−0.004500", "[−0.004500, −0.004500]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(0.000123456), "0.0001235"),
        (number(1234567.0), "1.235 × 10⁶"),
        (number(-1.5), "−1.500"),
        (given(0.1), "0.1"),
        (given(1e-8), "10⁻⁸"),
        (given(2e-8), "2 × 10⁻⁸"),
        (given(64.0), "64"),
        (count(269722), "269,722"),
        (seconds(0.4), "0.4 s"),
        (seconds(200), "3 min 20 s"),
        (seconds(7199), "119 min 59 s"),
        (seconds(7200), "2 h 00 min"),
        (seconds(8000), "2 h 13 min"),
        (span(6.04, 9.2), "6 to 9.2 s"),
        (span(0.00112, 0.0014), "0.0011 to 0.0014 s"),
        (span(12.2, 12.4), "12 s"),
        (span(50, 180), "0.83 to 3 min"),
        (span(5000, 10000), "1.4 to 2.8 h"),
        (span(math.nan, math.nan), "NaN"),
    ],
)
def test_single_numbers(text, expected):
    assert text == expected


# ------------------------------------------------------------------------------------------------ reading runs


def values(run) -> dict:
    return {m.key: m.read(run) for m in measures([run])}


def test_the_gap_is_test_minus_train_with_both_errors():
    found = values(sample_runs(1)[0])
    result = performance(6.0, 0.958)
    assert found["gap_loss"].number == pytest.approx(result.loss[1] - result.loss[0])
    assert found["gap_loss"].error == pytest.approx(math.hypot(*result.loss_stderr))
    assert found["gap_accuracy"].number == pytest.approx(result.accuracy[0] - result.accuracy[1])


@pytest.mark.parametrize(
    ("which", "values_", "smallest", "largest_read", "smallest_read"),
    [
        ("both", [9.0, 4.0], [-2.0, -1.0], 9.0, -2.0),
        ("largest", [9.0, 4.0], [], 9.0, None),
        ("smallest", [-2.0, -1.0], [], None, -2.0),
        ("magnitude", [9.0, -4.0], [], 9.0, None),
        ("magnitude", [-9.0, 4.0], [], None, None),
    ],
)
def test_only_an_end_that_was_measured_is_read(which, values_, smallest, largest_read, smallest_read):
    def every(x):
        return np.full(len(x), 0.1)

    pairs = replace(
        eigenvalues(),
        which=which,
        values=np.array(values_),
        residuals=every(values_),
        smallest=np.array(smallest),
        smallest_residuals=every(smallest),
    )
    found = values(make_run("a", [pairs]))
    for key, expected in (("lambda_max", largest_read), ("lambda_min", smallest_read)):
        if expected is None:
            assert "only which" in found[key].missing
        else:
            assert (found[key].number, found[key].error) == (expected, 0.1)


def test_what_is_missing_says_why():
    failed = StoredResult(stored_kind="calibration", status="failed", checks=(Check("measured", "fail", "no labels"),))
    found = values(make_run("a", [failed, performance()]))
    assert found["ece"].missing == "failed: no labels"
    assert found["lambda_max"].missing == "not measured"
    assert values(make_run("a", [], status="interrupted"))["ece"].missing == "not measured: the run was interrupted"
    unfitted = replace(calibration(), temperature=math.nan)
    assert values(make_run("a", [unfitted]))["temperature"].missing == "not fitted"


def test_the_latest_usable_result_counts():
    failed = StoredResult(stored_kind="performance", status="failed")
    run = make_run("a", [performance(1.0), performance(2.0), failed])
    assert run.get("performance").loss[0] == performance(2.0).loss[0]


def test_settings_that_differ_are_columns_and_the_others_are_said_once():
    differ, same = settings(sample_runs(8))
    assert differ == ["loss", "schedule", "seed"]
    assert same == {"optimizer": "sgd", "lr": "0.1", "batch_size": "64"}


def test_nested_settings_are_flat_and_none_is_lost():
    told = flat({"lr": 0.1, "optimizer": {"name": "sgd", "lr": 0.2}})
    assert told == {"lr": 0.1, "name": "sgd", "optimizer.lr": 0.2}


def test_of_a_models_own_configuration_what_differs_is_named():
    config = {"transformers_version": "5.0", "model_type": "bert", "hidden_act": "gelu", "id2label": {"0": "A"}}
    runs = [
        make_run(str(size), [], settings=flat({"lr": 0.1, "config": {**config, "hidden_size": size}}))
        for size in (16, 32)
    ]
    assert len(runs[0].settings) == 6  # all of it is kept
    assert settings(runs) == (["model: hidden_size"], {"lr": "0.1"})
    assert settings(runs[:1]) == ([], {"lr": "0.1"})
    # A configuration of one's own is made of settings that were chosen.
    assert settings([make_run("a", [], settings=flat({"config": {"depth": 3}}))])[1] == {"depth": "3"}


def test_names_are_made_unique_by_what_differs():
    def named(**facts):
        return make_run("a", [], **facts)

    assert [r.name for r in unique([named(step=1), named(step=2)])] == ["a @ 1", "a @ 2"]
    assert [r.name for r in unique([named(archive="x/1.h5"), named(archive="x/2.h5")])] == ["a (1.h5)", "a (2.h5)"]
    assert [r.name for r in unique([named(archive="x/1.h5"), named(archive="y/1.h5")])] == ["a (x)", "a (y)"]
    folders = [named(archive="x.h5", checkpoint=f"runs/{n}/a.pt") for n in "pq"]
    assert [r.name for r in unique(folders)] == ["a (p)", "a (q)"]
    assert [r.name for r in unique([named(step=1), named(step=1)])] == ["a #1", "a #2"]
    assert [r.index for r in unique([named(), make_run("b", [])])] == [0, 1]


def test_sharpness_measures_come_from_the_runs():
    assert sharpness_names(sample_runs(2)) == [("sharpness", name) for name in ("sam", "adaptive", "average")]
    assert "sharpness.sam" in {m.key for m in measures(sample_runs(1))}


def test_scaled_curvature_stands_among_the_sharpness_measures_with_its_mark_and_unit():
    found = ScaledCurvature(
        values=np.array([4.0, 0.5]),
        stderr=np.array([0.1, 0.01]),
        rescaling=np.array([True, False]),
        names=("trace", "trace_filter"),
        units=("loss / parameter^2", "loss"),
    )
    keskar = SharpnessEstimate(
        values=np.array([0.25]),
        stderr=np.array([math.nan]),
        rho=np.array([1e-3]),
        rescaling=np.array([True]),
        names=("keskar",),
        units=("%",),
    )
    runs = [make_run("a", [found, keskar])]
    columns = {m.key: m.read(runs[0]) for m in measures(runs) if m.group == "Sharpness"}
    assert (columns["scaled.trace_filter"].number, columns["scaled.trace_filter"].error) == (0.5, 0.01)
    assert columns["sharpness.keskar"].text() == ("0.2500", "")
    built = sharpness_section(runs)
    assert built is not None
    text = repr(built)
    for shown in ("rise, % of 1 + loss", "loss / parameter²", "trace_filter", "yes: compare with care"):
        assert shown in text


# ------------------------------------------------------------------------------------------------ scales


def test_a_wide_range_is_logarithmic_by_default_and_a_narrow_one_linear():
    assert scales(np.array([0.01, 5.0]))[1] == "log"
    assert scales(np.array([1.0, 5.0]))[1] == "linear"
    assert scales(np.array([0.01, 5.0]))[0]["log"].kind == "log"


def test_a_loss_at_or_below_zero_takes_asinh():
    found, default = scales(np.array([-0.5, 0.0, 400.0]), np.array([0.5]))
    assert (found["log"].kind, found["log"].width, default) == ("asinh", 0.5, "log")
    np.testing.assert_allclose(found["log"].forward(np.array([400.0])), np.arcsinh(800.0))


def test_what_is_not_finite_has_no_position():
    scale = scales(np.array([0.01, 5.0]))[0]["log"]
    assert np.isnan(scale.forward(np.array([np.nan, np.inf, -1.0, 0.0]))).all()
    assert finite([np.array([np.nan, 1.0]), np.array([np.inf])]).tolist() == [1.0]


@pytest.mark.parametrize("low", [1e-7, 0.013, 0.9, 40.0])
@pytest.mark.parametrize("ratio", [1.0, 1.0001, 1.5, 30.0, 1e6])
@pytest.mark.parametrize("kind", ["linear", "log"])
def test_ticks_lie_inside_the_range_and_there_are_few(low, ratio, kind):
    scale = scales(np.array([low, low * ratio]))[0][kind]
    positions, texts = scale.ticks()
    assert 1 <= len(positions) <= 10
    assert len(set(texts)) == len(texts) == len(positions)
    slack = 1e-9 * max(1.0, abs(scale.range[0]), abs(scale.range[1]))
    assert all(scale.range[0] - slack <= p <= scale.range[1] + slack for p in positions)


# ------------------------------------------------------------------------------------------------ ranks


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [5, 8, 40])
def test_tau_is_scipys(n, ties):
    rng = np.random.default_rng(n)
    x = rng.integers(0, 4, n).astype(float) if ties else rng.normal(size=n)
    y = x + rng.normal(size=n)
    expected = stats.kendalltau(x, y)
    found = kendall(x, y)
    assert found.tau == pytest.approx(expected.statistic, abs=1e-12)
    assert found.low <= found.tau <= found.high
    if not ties:  # scipy's p-value is exact up to n = 33 without ties; ours is good to 4 sd of 2,000 permutations
        p = expected.pvalue
        assert found.p_value == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 2000) + 2e-3)


def test_few_runs_give_no_correlation():
    assert math.isnan(kendall(np.arange(FEWEST - 1), np.arange(FEWEST - 1)).tau)
    assert math.isnan(kendall(np.arange(6), np.array([0, 1, np.nan, np.nan, np.nan, 2])).tau)
    assert math.isnan(kendall(np.ones(6), np.arange(6)).tau)


def test_full_agreement_of_five_runs_is_no_certainty():
    found = kendall(np.arange(5), np.arange(5))
    assert found.tau == 1
    assert found.low < 0.3  # the bootstrap alone would say [1, 1]


@pytest.mark.parametrize("tau", [0.0, 0.8])
def test_the_interval_holds_the_truth_at_least_as_often_as_it_says(tau):
    n, trials, r = 6, 150, math.sin(math.pi * tau / 2)  # a Gaussian copula has this tau
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(trials):
        x = rng.normal(size=n)
        found = kendall(x, r * x + math.sqrt(1 - r * r) * rng.normal(size=n), draws=200, seed=seed)
        held += found.low <= tau <= found.high
    assert held / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)
