"""Trainings that were only recorded: their last numbers are compared and written, and marked as what they are."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import report_samples as samples
from click.testing import CliRunner
from test_report import page
from training_samples import history, record, series

from landscape.archive.history import History
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.cli.main import main
from landscape.report.markdown import markdown
from landscape.report.measures import measures
from landscape.report.pairs import compare_runs
from landscape.report.paper import make_figure
from landscape.report.recorded import reduce
from landscape.report.runs import gather, make_run
from landscape.report.tables import as_csv, as_json


def probed(place: int, steps: tuple[int, ...] = (0, 300, 590)) -> dict[tuple[str, int], Any]:
    """Return what probes measured: sharper and less calibrated with every step."""
    found: dict[tuple[str, int], Any] = {}
    for i, step in enumerate(steps):
        found["curvature", step] = [samples.eigenvalues(1.0 + place + i, seed=place)]
        found["surface", step] = [samples.line(1.0 + i)]
        found["calibration", step + 10] = [samples.calibration(0.95, 0.01 * (1 + i + place), seed=place)]
    return found


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recorded")
    found = []
    for i in range(2):
        (folder / f"run{i}").mkdir()
        path = folder / f"run{i}" / "run.h5"
        found.append(record(path, history(i), samples.settings(i), attributes=samples.about(i), probed=probed(i)))
    return found


def values(path: Path) -> dict[str, Any]:
    (run,) = gather([path])
    return {m.key: m.read(run) for m in measures([run])}


class TestNumbers:
    def test_the_last_results_of_probes_with_their_steps(self, paths):
        found = values(paths[0])
        last = samples.eigenvalues(3.0, seed=0)
        assert found["lambda_max"].number == float(np.max(last.values))
        assert found["lambda_max"].error == float(last.residuals[int(np.argmax(last.values))])
        assert (found["lambda_max"].step, found["ece"].step) == (590, 600)
        assert found["ece"].number == samples.calibration(0.95, 0.03, seed=0).ece

    def test_the_last_rows_of_the_record(self, paths):
        h, found = history(0), values(paths[0])
        curvature = h["curvature"]
        assert found["trace"].number == curvature.column("trace")[-1]
        assert found["trace"].error == curvature.column("trace_stderr")[-1]
        assert found["stability_ratio"].number == 1 - curvature.column("margin")[-1]
        assert found["recorded.accuracy"].number == h["logged"].column("accuracy")[-1]
        assert {found[k].step for k in ("trace", "stability_ratio", "recorded.accuracy")} == {600}

    def test_the_loss_is_the_mean_of_the_last_epochs_batches(self, paths):
        loss = history(0)["loss"].column("loss")[-50:]  # 600 steps, 12 epochs
        found = values(paths[0])["recorded.loss"]
        assert found.number == pytest.approx(loss.mean(), rel=1e-12)
        assert found.error == pytest.approx(loss.std(ddof=1) / math.sqrt(50), rel=1e-9)

    @pytest.mark.parametrize(("steps", "rows"), [(5, 1), (250, 25), (3000, 100)])
    def test_without_epochs_it_is_that_of_the_last_tenth_of_a_hundred_steps_at_most(self, steps, rows):
        x = np.random.default_rng(0).normal(size=steps)
        s = series("loss", ("loss",), np.arange(1, steps + 1), x)
        final = reduce(History({"loss": s})).finals["loss", "loss"]
        assert (final.step, final.rows) == (steps, rows)
        assert final.value == pytest.approx(x[-rows:].mean())

    def test_a_last_number_is_the_last_that_is_a_number(self):
        s = series("logged", ("a", "b"), [1, 2, 3], [[1, 5], [2, np.nan], [np.nan, np.inf]])
        finals = reduce(History({"logged": s})).finals
        assert [(finals["logged", n].value, finals["logged", n].step) for n in "ab"] == [(2, 2), (5, 1)]

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_loss_that_ended_not_finite_is_no_number_from_before(self, bad, tmp_path):
        loss = np.array([3.0, 2.0, 1.0, bad, bad])
        h = History({"loss": series("loss", ("loss",), np.arange(1, 6), loss)})
        found = values(record(tmp_path / "a.h5", h, {}, attributes={}))["recorded.loss"]
        assert (found.known, found.missing) == (False, "not finite after step 3")

    def test_a_loss_that_became_finite_again_and_a_term_that_comes_now_and_then_are_numbers(self):
        rows = [[3.0, 1.0], [np.nan, np.nan], [1.0, np.nan]]
        finals = reduce(History({"loss": series("loss", ("loss", "penalty"), [1, 2, 3], rows)})).finals
        assert [finals["loss", n].broken for n in ("loss", "penalty")] == [False, False]

    def test_what_was_measured_afterwards_comes_first(self, tmp_path):
        path = record(tmp_path / "a.h5", history(0), {}, attributes={}, probed=probed(0))
        subject = Subject("a.pt", step=600)
        save_archive(path, [samples.eigenvalues(9.0), samples.performance()], subject=subject, append=True)
        found = values(path)
        assert (found["lambda_max"].step, found["train_loss"].step) == (None, None)
        assert found["lambda_max"].number == float(np.max(samples.eigenvalues(9.0).values))
        # Measured at exactly the checkpoint's step, so at its weights; the record's own columns aren't needed.
        assert found["ece"].step == 600
        assert "recorded.loss" not in found

    def test_what_was_measured_at_other_weights_does_not_speak_for_a_checkpoint(self, tmp_path):
        path = record(tmp_path / "a.h5", history(0), {}, attributes={}, probed=probed(0))
        save_archive(path, [samples.performance()], subject=Subject("a.pt", step=450), append=True)
        found = values(path)
        assert [found[k].missing for k in ("lambda_max", "ece", "trace")] == ["not measured"] * 3

    def test_a_result_that_cannot_be_read_is_a_problem(self, paths, tmp_path):
        copy = tmp_path / "run.h5"
        copy.write_bytes(paths[0].read_bytes())
        with h5py.File(copy, "r+") as file:
            del file["probes/curvature/00000590/values"]
        (run,) = gather([copy])
        assert run.problems == ("eigenvalues of step 590 lacks values: written by another version; measure it again",)
        assert run.get("eigenvalues") is None
        assert page([run]).text


class TestOutputs:
    def test_names_are_those_of_the_folders(self, paths):
        assert [r.name for r in gather(paths)] == ["run0", "run1"]

    def test_the_page_says_what_the_numbers_are(self, paths):
        text = page(gather(paths)).text
        assert "Only recorded, not measured afterwards: run0, run1." in text
        assert "step 590" in text
        assert "batch loss" in text

    def test_csv_json_and_markdown_have_them_with_their_steps(self, paths):
        runs = gather(paths)
        row = next(csv.DictReader(io.StringIO(as_csv(runs))))
        assert (row["lambda_max_step"], row["ece_step"]) == ("590", "600")
        assert float(row["recorded.loss"]) > 0
        shown = json.loads(as_json(runs))["runs"][0]["measures"]
        assert shown["lambda_max"]["while_training_at_step"] == 590
        assert "step 590" in markdown(runs)

    def test_the_caption_of_a_figure_says_it(self, paths):
        caption = make_figure(gather(paths), "eigenvalues").caption
        assert "Measured while training: run0 after step 590 and run1 after step 590." in caption

    def test_measured_runs_have_no_such_columns(self):
        runs = samples.sample_runs(2, points=5)
        assert "_step" not in as_csv(runs).splitlines()[0]
        assert "while_training" not in as_json(runs)

    def test_odd_names_of_columns_can_be_written_in_a_condition(self):
        s = series("logged", ("val/loss", "a b>c"), [1], [[1.0, 2.0]])
        runs = [make_run(n, [], history=History({"logged": s}), index=i) for i, n in enumerate("ab")]
        assert set(compare_runs(*runs)) == {"recorded.val/loss", "recorded.a_b_c"}


class TestCommand:
    def call(self, *arguments: object) -> Any:
        return CliRunner().invoke(main, ["compare", *map(str, arguments)])

    def test_two_recorded_trainings_are_compared(self, paths):
        done = self.call(*paths)
        assert done.exit_code == 0, done.output
        assert "at step 590" in done.stdout
        assert "at step N: measured while it trained" in done.stdout

    @pytest.mark.parametrize(
        ("condition", "status"),
        [
            ("recorded.val_loss > +1000", 0),
            ("recorded.val_loss > 0", 1),
            ("lambda_max > +1%", 1),
            ("ece < -0.5", 0),
            ("recorded.accuracy < 0.999 and recorded.loss > 0", 1),
        ],
    )
    def test_conditions_judge_them(self, paths, condition, status):
        assert self.call(*paths, "--fail-if", condition).exit_code == status

    def test_json_says_the_steps(self, paths):
        found = json.loads(self.call(*paths, "--json").stdout)["comparisons"][0]["differences"]
        assert found["lambda_max"]["while_training_at_step"] == [590, 590]

    def test_a_recorded_training_beside_a_measured_checkpoint(self, paths, tmp_path):
        (other,) = samples.write_archives(tmp_path, 1, points=5)
        found = json.loads(self.call(other, paths[0], "--json").stdout)["comparisons"][0]["differences"]
        assert found["ece"]["while_training_at_step"] == [None, 600]

    def test_show_has_a_bar_of_reliability(self, paths):
        done = CliRunner().invoke(main, ["show", str(paths[0])])
        assert done.exit_code == 0, done.output
        assert "reliability" in done.stdout
        assert "at step 600" in done.stdout
        assert "samples in each bin" in done.stdout
