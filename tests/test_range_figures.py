"""The picture of a learning-rate range test: its own numbers, where the loss turns and where it blows up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from landscape.errors import MeasurementError
from landscape.report.figures import draw
from landscape.report.figures.range_test import MARKS, range_tests
from landscape.report.paper import make_figure
from landscape.report.runs import make_run, unique
from landscape.report.sections import build_sections
from landscape.training.rates import RangeTest


def found(first: float = 2.0) -> RangeTest:
    rate = np.geomspace(1e-4, 10, 41)
    held = first * (1 - 0.8 * rate / (1 + rate) + np.where(rate > 3, (rate / 3) ** 4, 0))
    unknown = np.full(len(rate), np.nan)
    return RangeTest(
        rate=rate, loss=held + 0.01, held=held, stable=unknown, lambda_max=unknown, residual=unknown,
        steepest=0.5, best=2.5, divergence=math.nan, critical=1.25, critical_start=3.0,
    )  # fmt: skip


def test_the_curve_and_the_marks_are_the_results_own() -> None:
    result = found()
    ax = draw(result)
    curve = ax.lines[1]
    np.testing.assert_array_equal(curve.get_xdata(), result.rate)
    np.testing.assert_array_equal(curve.get_ydata(), result.held)
    marked = {line.get_label(): line.get_xdata()[0] for line in ax.lines[2:]}  # type: ignore[index]
    assert marked == {"falls fastest: 0.500": 0.5, "stability ends: 1.25": 1.25, "turns: 2.50": 2.5}  # never blew up
    assert ax.get_xscale() == "log"
    # Thrown out by a factor of 100, the loss leaves the picture rather than pressing the basin flat.
    assert ax.get_ylim()[1] < 3 * result.held[0] < result.held.max()


def test_a_range_test_without_a_finite_loss_is_refused() -> None:
    result = found()
    with pytest.raises(MeasurementError, match="nothing to draw"):
        draw(replace(result, held=np.full(len(result.rate), np.nan)))


def test_the_page_has_a_panel_for_each_with_its_numbers_in_words() -> None:
    runs = unique([make_run("sgd", [found()]), make_run("adam", [found(0.5)]), make_run("none", [])])
    chart = range_tests(runs)
    assert chart is not None
    assert [p.title for p in chart.panels] == ["sgd", "adam"]
    assert chart.panels[0].lines == ("falls fastest at 0.500, stability ends at 1.25, turns at 2.50",)
    assert chart.panels[0].layout is not None
    assert [s["x0"] for s in chart.panels[0].layout["shapes"]] == [0.5, 1.25, 2.5]
    titles = [s.title for s in build_sections(runs)]
    assert "Learning-rate range test" in titles
    assert "Other measurements" not in titles


def test_the_caption_says_what_every_line_is() -> None:
    text = make_figure([make_run("sgd", [found()])], "range_test").caption
    assert text.startswith("Training loss on the same samples before each step")
    assert all(words.split()[0] in text or name == "divergence" for name, words, *_ in MARKS)
