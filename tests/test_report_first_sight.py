"""What a reader sees first: which runs are drawn, what the tables call things, nothing beyond the edge of the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import report_samples as samples
from test_report import numbers, page

from landscape.report.effects import effects, rests_on
from landscape.report.page import _charts, drawn_first, with_something
from landscape.report.runs import make_run, unique
from landscape.report.sections import build_sections


def sweep(settings: int, seeds: int) -> list[Any]:
    return unique(
        [
            make_run(f"loss {i}, seed {s}", [samples.trace(1.0 + i + 0.1 * s)], settings={"loss": f"l{i}", "seed": s})
            for i in range(settings)
            for s in range(seeds)
        ]
    )


@pytest.mark.parametrize(
    ("settings", "seeds", "drawn"),
    [
        (1, 4, [0, 1, 2, 3]),
        (2, 5, [0, 1, 2, 5, 6, 7]),
        (3, 3, [0, 1, 3, 4, 6, 7]),
        (6, 2, [0, 2, 4, 6, 8, 10]),
        (11, 2, [0, 4, 8, 12, 16, 20]),
    ],
)
def test_one_run_of_each_setting_is_drawn_first(settings, seeds, drawn):
    assert drawn_first(sweep(settings, seeds)) == drawn


def test_the_page_is_made_for_those_that_are_drawn_first():
    runs = unique([make_run(f"{i}, seed {s}", [samples.calibration(seed=i)], settings={"loss": f"l{i}", "seed": s})
                   for i in range(7) for s in range(2)])  # fmt: skip
    found = page(runs)
    made = {int(a["data-run"] or 0) for _, a in found.tags if a.get("class") == "panel" and a.get("data-run")}
    assert made == set(drawn_first(runs))
    assert len(found.charts["reliability"]["panels"]) == len(runs) + 1


def test_no_figure_is_empty_at_first_sight():
    """What a run alone has is drawn, though it isn't one of those that stand for the others."""
    runs = sweep(11, 1)
    alone = next(r.index for r in runs if r.index not in drawn_first(runs))
    lined = unique(
        [replace(r, results={**r.results, "line": (samples.line(),)}) if r.index == alone else r for r in runs]
    )
    charts = [c for s in build_sections(lined) for c in _charts(s.blocks)]
    shown = with_something(drawn_first(lined), charts)
    assert shown == sorted([*drawn_first(lined), alone])
    assert all({part.run for part in (*c.series, *c.panels)} & set(shown) for c in charts)


def test_a_setting_is_not_called_by_its_seed():
    text = page(sweep(2, 3)).text
    assert "loss 0, seed 0" in text
    assert "loss 0, seed " not in text.replace("loss 0, seed 0", "").replace("loss 0, seed 1", "").replace(
        "loss 0, seed 2", ""
    )


def test_a_single_run_has_a_row_for_each_number_and_what_it_is():
    (run,) = samples.sample_runs(1, points=5)
    found = page([run])
    assert "expected calibration error, share, with its 95% interval" in found.text
    heads = [a for tag, a in found.tags if tag == "th" and a.get("scope") == "col"]
    assert len(heads) >= 3
    assert not [a for tag, a in found.tags if tag == "button" and "data-sort" in a and a.get("data-sort") == "10"]


def test_a_norm_that_nobody_measured_has_no_column():
    assert "Frobenius norm" not in page(samples.sample_runs(2, points=5)).text


def test_the_band_of_the_risk_begins_with_the_first_prediction_and_ends_within_the_chart():
    chart = page([make_run("a", [samples.calibration()])]).charts["risk-coverage"]
    (series,) = chart["series"]
    high = numbers(series["columns"]["risk_high"])
    assert np.isfinite(high).all()
    assert high[-1] < chart["layouts"]["all"]["yaxis"]["range"][1] < 0.5


def test_one_seed_is_one_seed():
    runs = unique([make_run(n, [samples.trace(1.0 + i)], settings={"loss": n, "seed": 0}) for i, n in enumerate("abc")])
    assert {rests_on(r).split(", ")[1] for r in effects(runs)[0]} <= {"1 seed", "3 independent runs"}
