"""What each setting does, on the page: the right runs, settings and numbers; nothing claimed on too little."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import report_samples as samples
from scipy import stats

from landscape.report.blocks import Folded, Notes, Picture, Table
from landscape.report.effects import effects, last_of_each, rests_on, varied
from landscape.report.figures.effects import draw_effects
from landscape.report.measures import measures
from landscape.report.numbers import number
from landscape.report.page import render_report
from landscape.report.runs import Run, make_run, unique
from landscape.report.sections import ablation, sharp_flat

GRID = tuple(itertools.product(("ce", "focal"), ("constant", "cosine"), ("sgd", "adam")))


def sweep(seeds: int, **changes: object) -> list[Run]:
    """Return a full grid whose test accuracy and sharpness depend on the settings and on chance."""
    rng = np.random.default_rng(seeds)
    runs = []
    for i, ((loss, schedule, optimizer), seed) in enumerate(itertools.product(GRID, range(seeds))):
        sharp = 2.0 * {"ce": 3.0, "focal": 1.0}[loss] * math.exp(0.1 * rng.normal())
        accuracy = 0.9 + 0.02 * (schedule == "cosine") + 0.002 * rng.normal()
        found = [samples.performance(sharp, accuracy), samples.trace(sharp, i)]
        own = {"loss": loss, "schedule": schedule, "optimizer": optimizer, "seed": seed, **changes}
        own["lr"] = 0.1 if optimizer == "sgd" else 0.001
        runs.append(make_run(f"run {i}", found, task="digits", settings=own, archive=f"{i}.h5", step=100))
    return unique(runs)


def of(responses: list, key: str):
    return next(r for r in responses if r.measure.key == key)


def test_the_effects_are_those_of_the_runs_numbers() -> None:
    runs = sweep(4)
    found, left_out = effects(runs)
    accuracy = of(found, "test_accuracy")
    table = np.array([accuracy.measure.read(r).number for r in runs]).reshape(2, 2, 2, 4)
    schedule = next(e for e in accuracy.found.main if e.factors == ("schedule",))
    low, high = stats.ttest_1samp((table[:, 1] - table[:, 0]).mean(axis=(0, 1)), 0).confidence_interval(0.95)
    assert (schedule.low, schedule.high) == pytest.approx((low, high), rel=1e-8)
    assert accuracy.text(schedule)[0].startswith("+0.0")
    assert accuracy.found.balanced
    assert left_out == ["lr: it changes only together with optimizer, so that the two can't be told apart"]


def test_curvature_that_is_negative_somewhere_is_compared_by_difference() -> None:
    runs = sweep(4)
    below = replace(runs[5].get("trace"), value=-3.0)
    runs[5] = make_run("run 5", [below], task="digits", settings=runs[5].settings, archive="5.h5", step=100)
    trace = of(effects(runs)[0], "trace")
    loss = next(e for e in trace.found.main if e.factors == ("loss",))
    values = np.array([r.get("trace").value for r in runs]).reshape(2, -1)  # type: ignore[union-attr]
    assert (trace.ratio, trace.found.runs) == (False, 32)  # no logarithm leaves a run out
    assert trace.numbers(loss)[0] == pytest.approx(values[1].mean() - values[0].mean())


def test_degrees_of_freedom_that_differ_are_told_from_the_least_to_the_most() -> None:
    whole, part = (of(effects(runs)[0], "test_accuracy") for runs in (sweep(4), sweep(4)[:-5]))
    assert rests_on(whole).endswith("within seeds, 3.0 degrees of freedom")  # Student's, over four seeds
    df = [e.df for e in part.found.effects]
    assert max(df) - min(df) > 0.05
    assert rests_on(part).endswith(f", {number(min(df), 2)} to {number(max(df), 2)} degrees of freedom")


def test_curvature_is_compared_by_ratio() -> None:
    runs = sweep(4)
    trace = of(effects(runs)[0], "trace")
    loss = next(e for e in trace.found.main if e.factors == ("loss",))
    values = np.array([r.get("trace").value for r in runs]).reshape(2, -1)  # type: ignore[union-attr]
    assert trace.ratio
    assert trace.numbers(loss)[0] == pytest.approx(np.exp(np.log(values[1]).mean() - np.log(values[0]).mean()))
    assert trace.text(loss)[0].startswith("× 0.3")


def test_several_checkpoints_of_a_run_are_no_repetitions() -> None:
    runs = sweep(3)
    earlier = [
        make_run("early", r.results.get("performance", ()), settings=r.settings, archive=r.archive, step=1)
        for r in runs
    ]
    kept = last_of_each(unique([*earlier, *runs]))
    assert len(kept) == len(runs)
    assert {r.step for r in kept} == {100}


def test_settings_that_are_no_levels_are_named() -> None:
    runs = [make_run(f"{i}", [], settings={"lr": 0.01 * 1.1**i, "width": i % 2, "seed": i}) for i in range(12)]
    factors, seeds, left_out = varied(runs)
    assert list(factors) == ["width"]
    assert seeds == [str(i) for i in range(12)]
    assert left_out == ["lr: 12 different values are no levels to compare"]


def test_the_section_shows_effects_interactions_and_what_they_rest_on() -> None:
    found = ablation.build(sweep(4))
    assert found is not None
    kinds = [type(b) for b in found.blocks]
    assert kinds[1:] == [Picture, Table, Folded, Notes]
    table = found.blocks[2]
    assert isinstance(table, Table)
    assert [row.cells[0].text for row in table.groups[0][1]] == ["focal", "cosine", "adam"]
    assert "within seeds, 3.0 degrees of freedom" in table.columns[1].note
    notes = found.blocks[-1]
    assert isinstance(notes, Notes)
    assert any("by chance alone" in text for _, text in notes.items)


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_are_said_and_nothing_is_claimed(seeds: int) -> None:
    found = ablation.build(sweep(seeds))
    assert found is not None
    (notes,) = [b for b in found.blocks if isinstance(b, Notes)]
    assert notes.items[0][0] == "warn"
    assert f"rest on {seeds} seed" in notes.items[0][1]
    (table,) = [b for b in found.blocks if isinstance(b, Table)]
    assert {c.sub for row in table.groups[0][1] for c in row.cells[1:]} == {"too few seeds"}


def test_runs_without_differing_settings_have_no_such_section() -> None:
    runs = [make_run(f"{i}", samples.results(i), settings={"loss": "ce", "seed": i}) for i in range(5)]
    assert ablation.build(runs) is None
    assert ablation.build(samples.sample_runs(1)) is None


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [
        (lambda i: 0.8, "in these runs, a larger value goes with a larger gap"),
        (lambda i: 0.8 + 0.01 * i, "in these runs, a larger value goes with a smaller gap"),
        (lambda i: 0.8 + 0.01 * (5, 1, 9, 3, 11, 7, 0, 8, 2, 10, 4, 6)[i], "the interval holds 0: no ranking shown"),
    ],
)
def test_what_a_rank_correlation_says_is_which_way_the_gap_goes(accuracy, says) -> None:
    runs = [
        make_run(f"{i}", [samples.performance(i, accuracy(i)), samples.trace(i + 1.0)], archive=f"{i}.h5")
        for i in range(12)
    ]
    gaps = [measure.read(r).number for r in runs for measure in measures(runs) if measure.key == "gap_loss"]
    tau = stats.kendalltau(range(12), gaps).statistic
    assert [tau > 0.99, tau < -0.99, abs(tau) < 0.4] == [w in says for w in ("larger gap", "smaller gap", "holds 0")]
    found = sharp_flat.build(unique(runs))
    assert found is not None
    table = next(b for b in found.blocks if isinstance(b, Table))
    (row,) = [r for r in table.groups[0][1] if "trace" in r.cells[0].text and "loss" in r.cells[1].text]
    assert row.cells[5].text == says


def test_ranks_are_shown_within_settings() -> None:
    found = sharp_flat.build(sweep(4))
    assert found is not None
    (folded,) = [b for b in found.blocks if isinstance(b, Folded)]
    table = folded.blocks[1]
    assert isinstance(table, Table)
    told = {row.cells[2].text for row in table.groups[0][1]}
    assert told >= {"the same loss", "the same schedule", "only seed different"}
    same = next(row for row in table.groups[0][1] if row.cells[2].text == "the same loss")
    assert same.cells[5].text == "32 in 2"


def test_a_run_of_two_tasks_is_told_apart_and_text_is_escaped() -> None:
    runs = sweep(3, note="<script>alert(1)</script>")
    others = [
        make_run(r.name, r.results.get("performance", ()), task="other", settings=r.settings, archive="o" + r.archive)
        for r in runs
    ]
    loud = [make_run(f"x{i}", samples.results(i), task="digits", settings={"loss": "<b>", "seed": i}) for i in range(3)]
    page = render_report(unique([*runs, *others, *loud]))
    assert "(task other)" in page
    assert "<script>alert" not in page
    assert "<b>" not in page.split("</style>")[1].split("<script")[0]


def test_the_figure_draws_every_effect_with_its_interval() -> None:
    trace = of(effects(sweep(4))[0], "trace")
    ax = draw_effects(trace)
    assert ax.get_xscale() == "log"
    assert ax.get_yticklabels()[0].get_text() == "loss: focal\ninstead of ce"
    ax.figure.canvas.draw()
