"""The record of a training on the page: reduced honestly, drawn over one axis, complete, also while it is going on."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from report_samples import about, calibration, performance, settings
from test_report import Page, executable, numbers, page
from training_samples import LAYERS, history, record, series

from landscape.archive.history import Event, History
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.segments import live_folder
from landscape.report.figures.training import gradients
from landscape.report.formats import write_report
from landscape.report.recorded import CURVE_BUCKETS, MAP_BUCKETS, MOST_ROWS, reduce
from landscape.report.runs import gather, make_run, trainings, unique


def given(*parts, events=()) -> History:
    return History({s.name: s for s in parts}, tuple(events))


class TestReduction:
    def test_a_short_record_is_kept_as_it_is(self):
        s = series("loss", ("loss",), [1, 2, 4, 8], [0.5, np.nan, 0.3, 0.2])
        found = reduce(given(s)).curves["loss"]
        assert not found.reduced
        np.testing.assert_array_equal(found.steps, s.steps)
        np.testing.assert_array_equal(found.mean, s.values)

    @pytest.mark.parametrize("rows", [CURVE_BUCKETS + 1, 4096, 20_011])
    def test_buckets_hold_the_mean_and_both_ends_of_their_rows(self, rows):
        x = np.random.default_rng(0).normal(size=(rows, 2)).cumsum(axis=0)
        x[rows // 3, 0], x[rows // 2, 1] = 1e6, np.nan
        found = reduce(given(series("loss", ("a", "b"), np.arange(7, 7 + rows), x))).curves["loss"]
        assert found.reduced
        assert found.rows == rows
        assert CURVE_BUCKETS / 2 <= len(found.steps) <= CURVE_BUCKETS
        assert found.counts.sum(axis=0).tolist() == [rows, rows - 1]
        np.testing.assert_allclose((found.mean * found.counts).sum(axis=0), np.nansum(x, axis=0), rtol=1e-9)
        assert np.nanmax(found.high[:, 0]) == 1e6  # a spike of one step stays
        np.testing.assert_array_equal(np.nanmin(found.low, axis=0), np.nanmin(x, axis=0))
        assert (found.low <= found.mean).all()
        assert (found.mean <= found.high).all()
        width = int(found.steps[2] - found.steps[1])
        rows_of = (np.arange(rows) // width) == 1
        np.testing.assert_allclose(found.mean[1, 0], x[rows_of, 0].mean(), rtol=1e-12)

    def test_a_constant_stays_the_constant(self):
        found = reduce(given(series("learning_rate", ("0",), np.arange(9999), np.full(9999, 0.1)))).curves
        assert set(found["learning_rate"].mean.ravel()) == {0.1}

    def test_coarser_buckets_are_neighbors_joined(self):
        x = np.random.default_rng(1).normal(size=(5000, 1))
        found = reduce(given(series("loss", ("loss",), np.arange(5000), x))).curves["loss"]
        coarse = found.coarser(50)
        assert len(coarse.steps) == 50
        assert coarse.counts.sum() == 5000
        np.testing.assert_allclose((coarse.mean * coarse.counts).sum(), x.sum(), atol=1e-9)
        assert (coarse.low.min(), coarse.high.max()) == (x.min(), x.max())

    def test_rows_that_a_resumed_run_has_overtaken_are_left_out(self):
        s = series("loss", ("loss",), [1, 2, 3, 3, 4], [1.0, 2.0, 99.0, 3.0, 4.0])
        overtaken = replace(s, superseded=np.array([0, 0, 1, 0, 0], dtype=bool))
        assert reduce(given(overtaken)).curves["loss"].mean.ravel().tolist() == [1.0, 2.0, 3.0, 4.0]

    @pytest.mark.parametrize("layers", [3, 300, 5000])
    def test_layers_become_the_rows_of_a_map_joined_by_their_modules(self, layers):
        names = tuple(f"block{i // 10}.part{i % 10}" for i in range(layers))
        x = np.abs(np.random.default_rng(2).normal(size=(700, layers)))
        found = reduce(given(series("gradient_norm", ("global", *names), np.arange(700), np.c_[x.sum(1), x])))
        assert found.curves["gradient_norm"].names == ("global",)
        rows = found.maps["gradient_norm"]
        assert len(rows.names) <= MOST_ROWS
        assert len(rows.steps) <= MAP_BUCKETS
        # Norms join as the root of their summed squares: of each step, before the mean over steps.
        np.testing.assert_allclose(
            np.sum(reduce(given(series("gradient_norm", names, [1], x[:1]))).maps["gradient_norm"].mean ** 2),
            np.sum(x[0] ** 2),
        )

    def test_memory_is_bounded(self):
        """A record is read piece by piece: what is held at once does not grow with the training."""
        held = []

        class Pieces(History):
            def pieces(self, name, rows=1000):
                for piece in super().pieces(name, rows):
                    held.append(piece.values.nbytes)
                    yield piece

        n = 50_000
        s = series("gradient_norm", ("global", "a", "b"), np.arange(n), np.ones((n, 3)))
        assert reduce(Pieces({"gradient_norm": s})).curves["gradient_norm"].rows == n
        assert len(held) == 50

    def test_epochs_are_interpolated_and_go_on_behind_the_last(self):
        found = reduce(given(series("epoch", ("epoch",), [10, 20, 30], [1, 2, 3], axis="epoch")))
        np.testing.assert_allclose(found.epoch(np.array([0, 5, 20, 35])), [0, 0.5, 2, 3.5])
        assert np.isnan(reduce(given(series("loss", ("loss",), [1], [1]))).epoch(np.array([3.0]))).all()

    def test_many_events_are_counted_and_thinned(self):
        many = [Event(i, "skipped_step", "x") for i in range(5000)] + [
            Event(9, "spike"),
            Event(8, "spike", "", 1, True),
        ]
        found = reduce(given(series("loss", ("loss",), [1], [1]), events=many))
        assert found.counted == {"skipped_step": 5000, "spike": 1}
        assert len(found.events["skipped_step"]) <= 400


class TestPage:
    def test_every_quantity_is_drawn(self):
        found = page([make_run("a", [performance()], history=history())])
        wanted = {"losses", "schedules", "gradients", "layer-map", "updates", "noise", "edge", "calibration-steps"}
        assert wanted | {"logged", "events", "recorded"} <= set(found.charts)
        assert "Training dynamics" in found.text

    def test_charts_over_steps_share_their_link_their_axis_and_their_extent(self):
        charts = page(unique([make_run(str(i), [], history=history(i, 300 * (i + 1))) for i in range(2)])).charts
        linked = [c for c in charts.values() if c.get("link")]
        assert len(linked) == 11
        assert len({json.dumps(c["extent"]) for c in linked}) == 1
        assert linked[0]["extent"]["step"] == pytest.approx([-6, 606])
        assert linked[0]["extent"]["epoch"] == pytest.approx([-0.12, 12.12])
        for chart in linked:
            assert "@axis" in json.dumps(chart["panels"])
            assert all({"step", "epoch"} <= set(s["columns"]) for s in chart["series"])

    def test_the_numbers_are_the_records(self):
        h = history(steps=200)
        columns = page([make_run("a", [], history=h)]).charts["losses"]["series"][0]["columns"]
        np.testing.assert_array_equal(numbers(columns["step"]), h["loss"].steps)
        np.testing.assert_array_equal(numbers(columns["loss"]), h["loss"].column("loss"))

    def test_a_reduced_record_is_said_to_be_one(self):
        found = page([make_run("a", [], history=history(steps=5000))])
        assert "Records of up to 5,000 rows are drawn in buckets of about" in found.text
        assert {"loss", "loss_min", "loss_max"} <= set(found.charts["losses"]["series"][0]["columns"])
        assert "drawn in buckets" not in page([make_run("a", [], history=history(steps=200))]).text

    def test_gradients_of_sharpness_aware_steps_compare_at_the_weights(self):
        def run(name, index, events=(), **norms):
            parts = [series(q, ("global",), np.arange(1, 5), [v] * 4) for q, v in norms.items()]
            return make_run(name, [], history=given(*parts, events=events), index=index)

        plain = run("plain", 0, gradient_norm=1.0)
        climbs = run("climbs", 1, [Event(0, "sharpness_aware", "SAM climbs")], gradient_norm=5.0, ascent_norm=2.5)
        foreign = run("foreign", 2, [Event(0, "sharpness_aware", "SAM climbs")], gradient_norm=4.0)
        chart = gradients([plain, climbs])
        assert [key for key, _ in chart.controls[0].options] == ["after", "ascent"]
        drawn = [(t["run"], str(t["y"])) for t in chart.panels[0].views["ascent.linear"]]
        assert [run for run, _ in drawn] == [0, 1]
        assert ["gradient_norm" in drawn[0][1], "ascent_norm" in drawn[1][1]] == [True, True]
        assert "Of climbs it is the norm at the weights that SAM climbed to" in chart.caption
        alone = gradients([plain, foreign])
        assert [key for key, _ in alone.controls[0].options] == ["after"]
        assert "Of foreign it is the norm" in alone.caption
        assert "SAM" not in gradients([plain]).caption

    def test_the_layers_of_all_runs_share_one_color_scale(self):
        runs = unique([make_run(str(i), [], history=history(i)) for i in range(3)])
        chart = page(runs).charts["layer-map"]
        traces = [p["views"]["gradient_norm"][0] for p in chart["panels"]]
        assert len({(t["zmin"], t["zmax"]) for t in traces}) == 1
        columns = chart["series"][0]["columns"]
        assert columns["layer"] == list(LAYERS)
        codes = np.frombuffer(base64.b64decode(columns["log10_gradient_norm"]["base64"]), "<i2")
        packed = columns["log10_gradient_norm"]
        values = packed["zero"] + packed["step"] * codes.astype(float)
        kept = runs[0].recorded.maps["gradient_norm"]
        np.testing.assert_allclose(values.reshape(kept.mean.shape), np.log10(kept.mean), atol=packed["step"])

    def test_events_are_marked_and_told(self):
        found = page([make_run("a", [], history=history())])
        assert "schedule: phase 2 of 2 begins" in found.text
        assert found.charts["events"]["series"][0]["columns"]["event"] == ["skipped step", "spike", "schedule switch"]
        losses = json.dumps(found.charts["losses"]["panels"])
        assert "spike at step" in losses

    def test_calibration_has_its_interval_and_the_edge_its_threshold(self):
        charts = page([make_run("a", [], history=history())]).charts
        band = charts["calibration-steps"]["panels"][0]["views"]["ece.linear"]
        assert [t["y"]["ref"][1] for t in band] == [f"calibration.{n}" for n in ("ece_low", "ece_high", "ece")]
        edge = charts["edge"]["panels"][0]["views"]["edge.log"]
        edge = edge if isinstance(edge, list) else charts["edge"]["panels"][0]["views"][edge["same"]]
        assert {t["y"]["ref"][1] for t in edge} == {"curvature.lambda_max", "curvature.threshold"}

    @pytest.mark.parametrize("evil", ["</script><script>alert(1)</script>", "<b>%{x}</b>"])
    def test_names_in_a_record_are_text(self, evil):
        s = series("gradient_norm", ("global", evil), [1, 2], [[1, 2], [3, 4]])
        odd = series(evil, (evil,), [1, 2], [1, 2])
        h = given(s, odd, series("loss", ("loss", evil), [1, 2], [[1, 1], [2, 2]]), events=[Event(1, evil, evil)])
        found = page([make_run("a", [], history=h)])
        assert found.charts["recorded"]
        assert len(executable(found)) == 3
        assert evil in found.text

        for chart in found.charts.values():
            for panel in chart["panels"]:
                traces = [t for view in panel["views"].values() if isinstance(view, list) for t in view]
                shown = [t.get("hovertemplate", "") for t in traces]
                assert not [text for text in shown if "<b>" in text or "%{x}</b>" in text or "<script" in text.lower()]
            titles = [layout["yaxis"].get("title", {}).get("text", "") for layout in chart["layouts"].values()]
            assert not [text for text in titles if "<" in text]

    @pytest.mark.parametrize(
        "h",
        [
            given(series("loss", ("loss",), [1], [np.nan])),
            given(series("loss", ("loss",), [1], [1.0])),
            given(series("loss", ("loss",), [0, 1, 2], [np.inf, -np.inf, np.nan])),
            given(series("learning_rate", ("0", "1"), [1, 2], [[0, 0], [0, 0]])),
            given(series("epoch", ("epoch",), [5], [1], axis="epoch")),
            given(events=[Event(0, "start")]),
            given(series("loss", ("loss",), [], np.empty((0, 1)))),
            given(series("gradient_norm", (), [1, 2], np.empty((2, 0)))),
        ],
    )
    def test_hardly_anything_recorded(self, h):
        assert page([make_run("a", [], history=h), make_run("b", [calibration()], index=1)]).text


class TestArchives:
    def test_a_run_without_results_is_a_run(self, tmp_path):
        path = record(tmp_path / "a.h5", history(), settings(0), attributes=about(0))
        found = Page(write_report(path, tmp_path / "r.html").read_text("utf-8"))
        assert "Training dynamics" in found.text
        assert "losses" in found.charts

    def test_a_run_that_was_killed(self, tmp_path):
        path = record(tmp_path / "a.h5", history(), settings(0), attributes=about(0), finish=False)
        assert live_folder(path).is_dir()
        (run,) = gather([path])
        assert run.status == "killed"
        found = Page(write_report(path, tmp_path / "r.html").read_text("utf-8"))
        assert "was killed: its record ends at step 600" in found.text
        assert "losses" in found.charts

    def test_a_run_that_is_still_going_on(self, tmp_path):
        from landscape.archive.segments import hold

        path = record(tmp_path / "a.h5", history(), settings(0), attributes=about(0), finish=False)
        lock = hold(live_folder(path))
        try:
            (run,) = gather([path])
            assert run.status == "running"
            text = Page(write_report(path, tmp_path / "r.html").read_text("utf-8")).text
            assert "is still training: this is its record up to step 600" in text
        finally:
            if lock is not None:
                os.close(lock)

    def test_checkpoints_of_one_training_share_its_record_which_is_drawn_once(self, tmp_path):
        path = record(tmp_path / "a.h5", history(), settings(0), attributes=about(0))
        for step in (300, 600):
            subject = Subject(f"{step}.pt", str(step), "digits", step, name="a")
            save_archive(path, performance(), subject=subject, append=True)
        runs = gather([path])
        assert [r.step for r in runs] == [300, 600]
        assert [r.step for r in trainings(runs)] == [600]
        charts = Page(write_report(path, tmp_path / "r.html").read_text("utf-8")).charts
        assert len(charts["losses"]["series"]) == 2  # loss, logged: of one run

    def test_a_damaged_record_leaves_the_rest(self, tmp_path):
        import h5py

        path = record(tmp_path / "a.h5", history(), settings(0), attributes=about(0))
        with h5py.File(path, "r+") as file:
            del file["steps/loss/value"]
        found = Page(write_report(path, tmp_path / "r.html").read_text("utf-8"))
        assert "steps/loss" in found.text
        assert "gradients" in found.charts


def test_a_series_says_what_it_holds_in_one_line() -> None:
    found = series("curvature", ("lambda_max", "threshold"), np.arange(0, 4000, 2), np.ones((2000, 2)), "loss")
    assert repr(found) == "Series('curvature': 2,000 rows of lambda_max, threshold, step 0 to 3,998, in loss)"
    assert repr(series("loss", ("loss",), np.zeros(0, int), np.zeros((0, 1)))) == "Series('loss': 0 rows of loss)"
