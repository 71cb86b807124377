"""What probes measured at several steps: drawn together, on common scales, each told by its step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import report_samples as samples
from test_report import numbers, page
from training_samples import history, record, series

from landscape.archive.history import History
from landscape.report.chart import Series
from landscape.report.figures.moments import ONE_BY_ONE, _filled
from landscape.report.moments import MOST, MOST_OF_ALL, evenly, moments
from landscape.report.runs import gather, make_run
from landscape.report.scales import Ordered

STEPS = tuple(range(0, 600, 50))


def probed(place: int, steps: tuple[int, ...] = STEPS) -> dict[tuple[str, int], Any]:
    found: dict[tuple[str, int], Any] = {}
    for i, step in enumerate(steps):
        found["surface", step] = [samples.line(1.0 + i), samples.plane(1.0 + i, place, 7)]
        found["calibration", step] = [samples.calibration(0.95, 0.005 * (1 + i), seed=place) for _ in range(2)]
    return found


def recorded(folder: Path, n: int = 2, steps: tuple[int, ...] = STEPS) -> list[Path]:
    return [
        record(
            folder / f"{i}.h5", history(i), samples.settings(i), attributes=samples.about(i), probed=probed(i, steps)
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    return recorded(tmp_path_factory.mktemp("moments"))


@pytest.fixture(scope="module")
def charts(paths) -> dict[str, Any]:
    return page(gather(paths)).charts


class TestChoice:
    @pytest.mark.parametrize(("n", "most"), [(1, 5), (5, 5), (6, 5), (100, 8), (3, 2)])
    def test_evenly_with_both_ends(self, n, most):
        found = evenly(n, most)
        assert found == sorted(set(found))
        assert len(found) == min(n, most)
        assert (found[0], found[-1]) == (0, n - 1)
        assert np.ptp(np.diff(found)) <= 1 if len(found) > 1 else True

    def test_the_first_and_the_last_are_among_them(self, paths):
        one, two = moments(gather(paths), "line")
        assert (len(one.found), one.measured) == (MOST, len(STEPS))
        assert (one.found[0][0], one.found[-1][0]) == (0, 550)
        assert [s for s, _ in one.found] == [s for s, _ in two.found]

    def test_of_many_trainings_few_moments_are_read(self, paths):
        (run, _) = gather(paths)
        many = [make_run(str(i), [], history=run.history, index=i) for i in range(60)]
        assert sum(len(m.found) for m in moments(many, "line")) <= MOST_OF_ALL

    def test_once_is_no_succession(self, tmp_path):
        (path,) = recorded(tmp_path, 1, (100,))
        found = page(gather([path])).charts
        assert "lines-steps" not in found
        assert "lines" in found

    def test_one_that_cannot_be_read_is_said(self, tmp_path):
        (path,) = recorded(tmp_path, 1, (0, 100, 200))
        with h5py.File(path, "r+") as file:
            group = file["probes/surface"]
            (name,) = [n for n in group if n.startswith("00000100") and "beta" not in group[n]]
            del group[f"{name}/loss"]
        found = page(gather([path]))
        assert "1 lines can’t be read from the record." in found.text
        assert len(found.charts["lines-steps"]["panels"][0]["views"]["linear"]) == 2

    def test_steps_stand_in_order_evenly_apart(self):
        order = Ordered((0, 1, 10, 1000, 5000))
        assert [order.share(s) for s in order.steps] == [0, 0.25, 0.5, 0.75, 1]
        places, texts = order.ticks(3)
        assert (places, texts) == ([0, 0.5, 1], ["0", "10", "5,000"])
        assert Ordered((7,)).ticks()[1] == ["7"]


class TestPictures:
    def test_lines_lie_over_one_another_from_dark_to_bright(self, charts):
        chart = charts["lines-steps"]
        assert len(chart["panels"]) == 2
        traces = chart["panels"][0]["views"]["linear"]
        assert [t["line"]["color"]["css"] for t in traces] == [f"time-{i}" for i in range(MOST)]
        columns = chart["series"][0]["columns"]
        np.testing.assert_array_equal(numbers(columns["loss"]), samples.line(1.0).loss)
        assert set(numbers(columns["step"])) == {0}
        assert chart["series"][0]["name"].endswith("step 0")

    def test_one_surface_at_a_time_on_one_scale(self, charts):
        chart = charts["surfaces-steps"]
        views = [v for p in chart["panels"] for v in p["views"].values() if isinstance(v, list)]
        assert {len(v) for v in views} == {3}
        log = [p["views"][f"{k}.log"][0] for p in chart["panels"] for k in range(ONE_BY_ONE)]
        assert len({(t["zmin"], t["zmax"]) for t in log}) == 1
        shown = json.dumps(chart["panels"][0]["views"]["0.log"])
        assert "step 0" in shown
        assert "the weights of step 0" in shown

    def test_reliability_of_all_steps_or_of_one_with_its_bands(self, charts):
        chart = charts["reliability-steps"]
        views = chart["panels"][0]["views"]
        assert len(views["all"]) == 1 + ONE_BY_ONE - 1
        assert len(views["0"]) == 5  # diagonal, band, dots, counts, the step
        drawn = chart["series"][views["all"][1]["x"]["ref"][0]]
        whole = chart["series"][0]["columns"]
        share, samples = numbers(whole["share_of_samples"]), numbers(whole["samples"])
        kept = (share >= 0.01) & (samples >= 5)
        assert 0 < kept.sum() < len(kept)
        np.testing.assert_array_equal(numbers(drawn["columns"]["accuracy"]), numbers(whole["accuracy"])[kept])

    def test_a_line_goes_through_no_bins_of_few_samples(self):
        counts = np.array([2, 4, 5, 89])
        columns = {"confidence": np.linspace(0.2, 0.9, 4), "accuracy": np.ones(4), "samples": counts}
        kept = _filled(Series({**columns, "share_of_samples": counts / 100}, ("confidence",)))
        assert kept.columns["samples"].tolist() == [5, 89]

    def test_trainings_with_other_steps_are_chosen_by_place(self, tmp_path):
        one = recorded(tmp_path, 1)
        (tmp_path / "b").mkdir()
        two = recorded(tmp_path / "b", 1, (0, 7, 500))
        found = page(gather([*one, *two]))
        assert "2 of 6" in found.text
        second = found.charts["surfaces-steps"]["panels"][1]["views"]
        shown = ["step 7" in json.dumps(second[f"{k}.linear"]) for k in range(6)]
        assert shown == [False, False, True, True, False, False]

    def test_many_measurements_are_a_line_without_marks(self):
        for rows, mode in ((50, "lines+markers"), (100, "lines")):
            steps = np.arange(rows)
            found = series(
                "curvature", ("lambda_max", "threshold"), steps, np.stack([steps + 1.0, steps + 2.0], axis=1)
            )
            view = page([make_run("a", [], history=History({"curvature": found}))]).charts["edge"]["panels"][0]["views"]
            drawn = next(v for v in view.values() if isinstance(v, list))
            assert [t["mode"] for t in drawn] == [mode, "lines"]

    def test_eigenvalues_have_their_residuals_and_the_threshold(self):
        h = history()
        eigenvalue, curvature = h["eigenvalue"], h["curvature"]
        residual = series("eigenvalue_residual", ("1", "2", "3"), eigenvalue.steps, 0.01 * eigenvalue.values)
        full = History({**h.quantities, "eigenvalue_residual": residual})
        view = page([make_run("a", [], history=full)]).charts["edge"]["panels"][0]["views"]
        top = next(v for k, v in view.items() if k.startswith("top") and isinstance(v, list))
        assert [t["error_y"]["array"]["ref"][1] for t in top[:3]] == [f"eigenvalue_residual.{k}" for k in "123"]
        assert top[3]["y"]["ref"][1] == "curvature.threshold"
        assert [t["mode"] for t in top] == ["lines+markers"] * 3 + ["lines"]  # a threshold is a line
        trace = next(v for k, v in view.items() if k.startswith("trace") and isinstance(v, list))
        assert trace[0]["error_y"]["array"]["ref"][1] == "curvature.trace_stderr"
        # The threshold of an adaptive optimizer is one for another operator's eigenvalues.
        other = series("curvature", curvature.names, curvature.steps, curvature.values * 0.9)
        adaptive = History({**full.quantities, "curvature": other})
        view = page([make_run("a", [], history=adaptive)]).charts["edge"]["panels"][0]["views"]
        top = next(v for k, v in view.items() if k.startswith("top") and isinstance(v, list))
        assert len(top) == 3

    def test_a_band_that_reaches_zero_is_on_a_linear_axis_at_first(self):
        at = np.arange(1, 6)
        rows = [[0.5, 0.4, 0.6], [0.2, 0.1, 0.3], [0.05, 0.0, 0.1], [0.02, 0.0, 0.1], [0.01, 0.0, 0.1]]
        s = series("calibration", ("ece", "ece_low", "ece_high"), at, rows, axis="epoch")
        assert scale_of(page([make_run("a", [], history=History({"calibration": s}))])) == "linear"
        rows = [[e, 0.9 * e, 1.1 * e] for e, _, _ in rows]
        s = series("calibration", ("ece", "ece_low", "ece_high"), at, rows, axis="epoch")
        assert scale_of(page([make_run("a", [], history=History({"calibration": s}))])) == "log"


def scale_of(found: Any) -> str | None:
    """Return the scale that the calibration over epochs is shown on at first."""
    inputs = [a for tag, a in found.tags if tag == "input" and a.get("name") == "calibration-steps-scale"]
    return next(a["value"] for a in inputs if "checked" in a)
