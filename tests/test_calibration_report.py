"""The calibration part of the report: what is drawn are the results' own numbers, the worst classes come first."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from report_samples import calibration, recalibration, sample_runs, sample_scores
from scipy import stats

from landscape.calibration.scores import calibration_error
from landscape.comparison.paired import independent_difference
from landscape.comparison.scores import compare_samples, compare_summaries, same_samples
from landscape.comparison.shares import share_interval
from landscape.errors import MeasurementError
from landscape.report.blocks import Folded, Notes, Table
from landscape.report.figures import draw
from landscape.report.figures.calibration import reliability
from landscape.report.figures.confidence import confidences, draw_confidences
from landscape.report.figures.recalibration import before_and_after
from landscape.report.figures.risk_coverage import curve, draw_risk_coverage, risk_coverage
from landscape.report.numbers import number
from landscape.report.paper import make_figure
from landscape.report.runs import make_run, unique
from landscape.report.sections.reliability import build


def two_runs():
    return unique([make_run("a", [calibration(seed=1), sample_scores(seed=1)]), make_run("b", [calibration(seed=2)])])


def texts(blocks, kind):
    return [b for b in blocks if isinstance(b, kind)]


def table_of(section, words: str) -> Table:
    (found,) = [t for t in texts(section.blocks, Table) if words in t.caption]
    return found


# ------------------------------------------------------------------------------------------------ for papers


def test_before_and_after_are_drawn_into_one_diagram() -> None:
    result = recalibration()
    ax = draw(result)
    drawn = [c for c in ax.containers if c.get_label().startswith(("before", "after"))]
    assert len(drawn) == 2
    for container, stage in zip(drawn, ("before", "after"), strict=True):
        x, y = container.lines[0].get_data()
        table = result.diagram(stage)
        filled = table.counts > 0
        np.testing.assert_array_equal(x, table.confidences[filled])
        np.testing.assert_array_equal(y, table.accuracies[filled])
        assert f"{stage}: ECE {number(table.ece, 2)[:4]}" in ax.get_title("left")
    assert ax.get_title("left").startswith("temperature scaling, T 1.310 ± 0.031")
    assert ax.get_ylabel()
    file = io.BytesIO()
    ax.figure.savefig(file)
    assert file.tell() > 10_000
    with pytest.raises(MeasurementError, match="every bin"):
        draw(replace(result, counts=np.zeros((2, 15), dtype=int)))


def test_right_and_wrong_add_up_to_the_counts() -> None:
    result = calibration()
    ax = draw_confidences(result)
    right, wrong = (np.array([p.get_height() for p in c.patches]) for c in ax.containers[:2])
    np.testing.assert_allclose(right + wrong, result.counts / 2000, atol=1e-12)
    assert right.sum() == pytest.approx(result.accuracy, abs=1e-12)
    lines = [line.get_xdata()[0] for line in ax.lines]
    assert lines == pytest.approx([result.mean_confidence, result.accuracy], abs=1e-12)
    with pytest.raises(MeasurementError, match="every bin"):
        draw_confidences(replace(result, counts=np.zeros(15, dtype=int)))


def test_the_risk_at_full_coverage_is_the_error_rate() -> None:
    result = calibration()
    ax = draw_risk_coverage(result)
    x, y = ax.lines[0].get_data()
    assert x[-1] == 1.0
    assert y[-1] == pytest.approx(1 - result.accuracy, abs=1e-12)
    with pytest.raises(MeasurementError, match="no risk-coverage curve"):
        draw_risk_coverage(replace(result, risk=None))


def test_predictions_that_depend_on_each_other_have_no_band_made_for_independent_ones() -> None:
    alone, pixels = calibration(), replace(calibration(), groups=8)
    assert np.isfinite(curve(alone)[3]).all()
    assert np.isnan(curve(pixels)[2:]).all()
    np.testing.assert_array_equal(curve(pixels)[:2], curve(alone)[:2])
    ax = draw_risk_coverage(pixels)
    assert not ax.collections
    assert np.isfinite(ax.get_ylim()).all()
    chart = risk_coverage(unique([make_run("alone", [alone]), make_run("pixels", [pixels])]))
    assert chart is not None
    assert len(chart.panels[0].views["all"]) == 4  # a curve with its band's two edges, and a curve


def test_the_risks_band_begins_with_the_first_prediction_and_its_end_is_seen() -> None:
    result = calibration()
    flawless = replace(result, risk=np.zeros_like(np.asarray(result.risk)))
    for one in (result, flawless):
        x, _, _, high = curve(one)
        ax = draw_risk_coverage(one)
        outline = ax.collections[0].get_paths()[0].get_extents()
        assert (outline.x0, outline.x1) == (x[0], 1.0)
        assert outline.y1 == pytest.approx(high.max(), rel=1e-12)
        assert high[-1] < ax.get_ylim()[1] < 0.5
    both = draw_risk_coverage(flawless, ax=draw_risk_coverage(result))
    assert both.get_ylim()[1] > max(np.asarray(result.risk)[np.asarray(result.coverage) >= 0.05])


def test_a_shares_interval_is_the_exact_one() -> None:
    low, high = share_interval([0, 3, 10, 1], [10, 10, 10, 0])
    for i, hits in enumerate((0, 3, 10)):
        exact = stats.binomtest(hits, 10).proportion_ci(0.95, "exact")
        assert (low[i], high[i]) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert np.isnan([low[3], high[3]]).all()


# ------------------------------------------------------------------------------------------------ on the page


def test_the_charts_hold_the_numbers_of_each_stage() -> None:
    result = recalibration()
    chart = before_and_after(unique([make_run("a", [result])]))
    assert chart is not None
    stages = {str(s.columns["stage"][0]): s for s in chart.series if "stage" in s.columns}
    for stage, series in stages.items():
        np.testing.assert_array_equal(series.columns["samples"], result.diagram(stage).counts)
    (panel,) = chart.panels
    assert panel.lines[0] == "temperature scaling, T 1.310 ± 0.031"
    assert panel.lines[1].startswith(f"ECE {number(result.ece[0], 3)} → {number(result.ece[1], 3)}, change ")
    assert panel.lines[2] == "fitted on 1,000, judged on 1,000 others"
    crossed = before_and_after(unique([make_run("a", [replace(result, folds=5)])]))
    assert crossed is not None
    assert crossed.panels[0].lines[2] == "5-fold cross-fitting on 1,000 predictions"
    assert before_and_after(two_runs()) is None


def test_every_run_with_a_curve_is_in_one_picture() -> None:
    runs = unique([make_run("a", [calibration()]), make_run("b", [replace(calibration(), risk=None)])])
    chart = risk_coverage(runs)
    assert chart is not None
    assert chart.runs == {0}
    histograms = confidences(runs)
    assert histograms is not None
    assert histograms.runs == {0, 1}
    assert re.match(r"mean confidence 0\.904, accuracy 0\.8585 ± 0\.0078", histograms.panels[0].lines[0])


def test_the_worst_classes_come_first_and_the_others_wait() -> None:
    result = calibration()
    section = build(unique([make_run("a", [result])]))
    assert section is not None
    shown = table_of(section, "worst classes of 10")
    order = [f"class {k}" for k in np.argsort(-np.asarray(result.class_ece))]
    assert [row.cells[0].text for row in shown.groups[0][1]] == order[:5]
    (rest,) = texts(section.blocks, Folded)
    assert rest.title == "All 10 classes"
    (every,) = rest.blocks
    rows = {row.cells[0].text: row for row in every.groups[0][1]}
    assert list(rows) == order
    assert [c.text for c in rows["class 9"].cells[6:]] == ["never"] * 3  # predicted for no sample
    assert rows["class 9"].cells[6].quiet


def test_several_labels_have_frequencies_and_none_is_predicted() -> None:
    g = np.random.default_rng(0)
    p = g.random((400, 3))
    y = (g.random((400, 3)) < p * [1.0, 0.5, 0.1]).astype(int)
    section = build(unique([make_run("a", [calibration_error(probabilities=p, labels=y, kind="multilabel")])]))
    assert section is not None
    rows = table_of(section, "Classes one by one").groups[0][1]
    assert [row.cells[0].text for row in rows] == ["class 2", "class 1", "class 0"]
    for row, k in zip(rows, (2, 1, 0), strict=True):
        assert row.cells[2].text == str(y[:, k].sum())
        assert row.cells[4].sort == pytest.approx(y[:, k].mean(), rel=1e-12)
        assert [c.text for c in row.cells[5:]] == ["several labels"] * 4


def test_labels_that_count_by_themselves_are_held_against_how_often_they_are_there() -> None:
    """Calibrated labels, few of which are there: far fewer than are predicted rightly, which is no lack of trust."""
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 2, size=(4000, 3))
    y = (rng.random(p.shape) < p).astype(int)
    run = make_run("labels", [calibration_error(probabilities=p, labels=y, kind="multilabel")])
    result = run.get("calibration")
    ax = draw(result)
    assert ax.get_ylabel() == "frequency (share that has the label)"
    assert ax.child_axes[0].get_xlabel() == "probability of the label"
    lines = [line.get_xdata()[0] for line in draw_confidences(result).lines]
    assert lines == pytest.approx([p.mean(), y.mean()], abs=1e-9)
    chart = confidences([run])
    assert chart is not None
    first, second = chart.panels[0].lines
    assert first == f"mean probability {p.mean():.3f}, frequency {number(y.mean())}"
    off, low, high = map(float, re.findall(r"[-\d.]+", second.replace("−", "-")))
    assert second.startswith(f"too {'high' if p.mean() > y.mean() else 'low'} on the whole by")
    assert off == pytest.approx(abs(p.mean() - y.mean()), abs=1e-3)
    assert low < 0 < high
    assert "every label counts by itself" in chart.notes[0]
    (panel, _) = reliability([run]).panels  # type: ignore[union-attr]
    assert panel.layout["yaxis"]["title"]["text"] == "frequency"
    text = make_figure([run], "calibration")
    assert "12,000" in text.caption
    assert "how often the label is there" in text.caption
    assert "each label's probability" in text.methods


def test_runs_on_the_same_samples_are_compared_in_pairs() -> None:
    section = build(sample_runs(3, points=9))
    assert section is not None
    table = table_of(section, "Differences between runs, every pair")
    rows = table.groups[0][1]
    assert len(rows) == 3
    assert {row.cells[-1].text for row in rows} == {"paired"}
    assert {row.cells[-2].text for row in rows} == {"2,000"}
    five = build(sample_runs(5, points=9))
    assert five is not None
    assert len(table_of(five, "each with cross_entropy constant").groups[0][1]) == 4
    assert any("not corrected" in text for n in texts(section.blocks, Notes) for _, text in n.items)


def test_other_samples_and_missing_scores_are_said() -> None:
    runs = two_runs()
    section = build(runs)
    assert section is not None
    (row,) = table_of(section, "Differences").groups[0][1]
    assert row.cells[-1].text == "independent: single scores were not kept"
    found = compare_summaries(calibration(seed=1), calibration(seed=2))
    a, b = calibration(seed=1), calibration(seed=2)
    direct = independent_difference((a.ece, *a.ece_interval), (b.ece, *b.ece_interval))
    assert (found["ece"].low, found["ece"].high) == (direct.low, direct.high)
    half = stats.norm.ppf(0.975) * np.hypot(a.brier_stderr, b.brier_stderr)
    assert (found["brier"].low, found["brier"].high) == pytest.approx(
        (b.brier - a.brier - half, b.brier - a.brier + half)
    )
    one, other = sample_scores(seed=1), replace(sample_scores(seed=2), fingerprint="another")
    assert not same_samples(one, other)
    assert not any(d.paired for d in compare_samples(one, other).values())
    assert same_samples(one, sample_scores(seed=2))
    assert not same_samples(one, replace(one, predictions=2 * one.predictions))  # other rows were kept
    assert not same_samples(replace(one, fingerprint=""), replace(one, fingerprint=""))


def test_paired_differences_are_those_of_the_single_scores() -> None:
    one, other = sample_scores(seed=1), sample_scores(over=0.1, seed=2)
    paired = compare_samples(one, other)
    assert paired["nll"].value == pytest.approx(float(np.mean(other.nll.astype(float) - one.nll)), rel=1e-9)
    assert paired["accuracy"].value == pytest.approx(other.correct.mean() - one.correct.mean(), rel=1e-12)
    apart = compare_samples(one, replace(other, fingerprint="another"))
    for name in paired:
        assert paired[name].value == pytest.approx(apart[name].value, rel=1e-9)
        assert paired[name].high - paired[name].low < apart[name].high - apart[name].low


@pytest.mark.parametrize("bins", [10, 15])
def test_confidences_at_the_edges_of_bins_are_compared_in_the_bins_that_they_are_measured_in(bins) -> None:
    rng = np.random.default_rng(0)
    edges = np.arange(bins // 2 + 1, bins) / bins
    confidence = np.repeat(np.concatenate([edges, np.nextafter(edges, 1)]), 20)  # bins are (lo, hi]
    probabilities = np.stack([1 - confidence, confidence], axis=1)
    found = []
    for at, above in ((0.9, 0.1), (0.5, 0.6)):  # the first's gaps would cancel if they fell into one bin
        right = np.repeat([at, above], len(confidence) // 2)
        label = (rng.random(len(right)) < right).astype(int)
        top, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == label
        scores = replace(sample_scores(n=len(right)), confidence=top, correct=correct, bins=bins)
        found.append((scores, calibration_error(probabilities=probabilities, labels=label, bins=bins).ece))
    (one, before), (other, after) = found
    assert compare_samples(one, other)["ece"].value == pytest.approx(after - before, abs=1e-12)


def test_a_temperature_without_a_minimum_says_so() -> None:
    reason = "no temperature: no minimum above T=0.001: the logits tell these labels apart perfectly"
    bare = replace(calibration(), temperature=np.nan, temperature_stderr=np.nan, warnings=(reason,))
    section = build(unique([make_run("a", [bare])]))
    assert section is not None
    scores = table_of(section, "Scores of all held-out predictions")
    assert [c.text for c in scores.groups[0][1][0].cells][3] == "no minimum"
    notes = [text for n in texts(section.blocks, Notes) for _, text in n.items]
    assert f"Not recalibrated: a: {reason}." in notes
    assert not any("0.001 " in c.text for c in scores.groups[0][1][0].cells)


def test_other_bins_are_a_warning() -> None:
    runs = unique([make_run("a", [calibration()]), make_run("b", [calibration(bins=10)])])
    section = build(runs)
    assert section is not None
    assert any(
        level == "warn" and "binned differently" in t for n in texts(section.blocks, Notes) for level, t in n.items
    )
