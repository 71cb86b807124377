"""`landscape probe`, `show` and `report`: numbers, JSON keys, archives, and a measurement of the user's own."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import small_world
from small_world import done, landscape, results

from landscape import open_archive
from landscape import results as registry
from landscape.probes.prediction import RESTS_ON


@pytest.fixture
def world(tmp_path, monkeypatch):
    small_world.enter(tmp_path, monkeypatch)
    small_world.build(tmp_path)
    return tmp_path


KEYS = {
    "checkpoint", "task", "device", "dtype", "samples", "parameters", "loss", "accuracy", "curvature", "sharpness",
    "surface", "calibration", "archive", "report", "seconds", "notes", "warnings",
}  # fmt: skip


def test_the_whole_run(world):
    result = landscape("probe", "tiny.pt", "--preset", "quick", "--report", "report.html", "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["results"]
    assert set(found) >= KEYS
    assert found["checkpoint"] == "tiny.pt"
    assert found["task"] == "tasks.py:tiny"
    assert (found["device"], found["dtype"], found["samples"], found["parameters"]) == ("cpu", "float32", 200, 67)
    assert set(found["loss"]) == set(found["accuracy"]) == {"train", "test"}
    assert set(found["curvature"]) >= {"eigenvalues", "residuals", "smallest", "trace", "products"}
    assert set(found["curvature"]["trace"]) >= {"value", "stderr"}
    assert "value" in found["sharpness"]["sam"]
    assert set(found["surface"]) >= {"center_loss", "evaluated", "points", "error"}
    assert set(found["calibration"]) >= {"ece", "ece_ci", "bins", "mce", "brier", "nll", "temperature"}
    assert len(found["calibration"]["ece_ci"]) == 2
    # The numbers agree among themselves and with the archive.
    archive = open_archive(found["archive"])
    by_kind = {e.kind: e.result for e in archive.entries}
    assert found["surface"]["center_loss"] == found["loss"]["train"]
    assert found["surface"]["points"] == 15 * 15
    assert found["curvature"]["eigenvalues"] == by_kind["eigenvalues"].values.tolist()
    assert found["curvature"]["products"] == by_kind["eigenvalues"].products + by_kind["trace"].products
    assert archive.status == "complete"
    assert {e.subject.label for e in archive.entries} == {"tiny"}
    assert (world / found["report"]).stat().st_size > 100_000


def test_what_was_not_measured_is_null(world):
    (found,) = results("tiny.pt", "--only", "performance")
    assert set(found) >= KEYS
    assert [found[name] for name in ("curvature", "sharpness", "surface", "calibration", "report")] == [None] * 5
    assert found["loss"]["train"] > 0


def test_a_model_that_is_no_classifier_lacks_nothing(world):
    """The preset's calibration is told of and fails nothing; one that was asked for by name does."""
    asked = ("probe", "plain.pt", "--task", "tasks.py:own_loss", "--max-samples", "8")
    only = ("--only", "performance,calibration")
    for more, failed, out in ((("--grid", "3"), False, "usual.h5"), (only, True, "named.h5")):
        said = landscape(*asked, *more, "-o", out, "--preset", "quick").stderr
        assert "not measured: calibration: the task Sequential has no class labels" in " ".join(said.split())
        assert ("FAILED" in landscape("show", out).stdout) == failed
        assert (open_archive(out).select("calibration") != []) == failed


def test_not_finite_is_null_with_a_warning(world):
    result = landscape("probe", "plain.pt", "--task", "tasks.py:regression", "--only", "performance", "--json")
    (found,) = json.loads(result.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))["results"]
    assert found["accuracy"] == {"train": None, "test": None}
    assert any(w.startswith("not finite, shown as null: accuracy.train") for w in found["warnings"])
    assert "warning: not finite, shown as null" in result.stderr


def test_the_table_for_people(world):
    result = landscape("probe", "tiny.pt", "--only", "performance,curvature,surface", "--preset", "quick")
    assert result.exit_code == 0
    assert re.search(r"^  loss +train [\d.]+ ± [\d.]+   test ", result.stdout, re.M)
    assert re.search(r"^  curvature +λ max ", result.stdout, re.M)
    assert re.search(r"^  plane +15 × 15 points", result.stdout, re.M)
    assert re.search(r"^  archive +\S*tiny.landscape.h5$", result.stdout, re.M)
    assert "next: landscape report tiny.landscape.h5" in result.stderr
    assert "task: tasks.py:tiny()" in result.stderr


def test_several_checkpoints(world):
    found = results("tiny.pt", "other.pt", "--only", "performance")
    assert [f["checkpoint"] for f in found] == ["tiny.pt", "other.pt"]
    assert sorted(p.name for p in world.glob("*.h5")) == ["other.landscape.h5", "tiny.landscape.h5"]


def test_append_adds_and_force_replaces(world):
    done("probe", "tiny.pt", "--only", "performance", "-o", "run.h5")
    assert landscape("probe", "tiny.pt", "--only", "line", "-o", "run.h5").exit_code == 1
    done("probe", "tiny.pt", "--only", "line", "-o", "run.h5", "--append")
    both = open_archive("run.h5")
    assert [e.kind for e in both.entries] == ["performance", "line"]
    assert len(both.subjects) == 1  # one row of the report's table
    done("probe", "tiny.pt", "--only", "line", "-o", "run.h5", "--force")
    assert [e.kind for e in open_archive("run.h5").entries] == ["line"]


def test_a_dry_run_measures_nothing(world):
    text = done("probe", "tiny.pt", "other.pt", "--dry-run")
    assert re.search(r"^  eigenvalues +(under 0.1|[\d.]+ to [\d.]+) s +[\d.]+ MiB$", text, re.M)
    assert text.rstrip().endswith(RESTS_ON)
    assert list(world.glob("*.h5*")) == []
    shown = json.loads(done("probe", "tiny.pt", "--dry-run", "--json"))["dry_run"]
    assert [m["name"] for m in shown[0]["measurements"]] == [
        m.name for m in registry.measurements().values() if m.default
    ]
    assert all(0 < m["seconds"][0] <= m["seconds"][1] for m in shown[0]["measurements"])


def test_options_settings_samples_and_precision_reach_the_measurement(world):
    (found,) = results(
        "tiny.pt", "--only", "performance,eigenvalues", "--set", "samples=80", "--max-samples", 90, "--seed", 5,
        "--option", "eigenvalues.k=3", "--dtype", "float64",
    )  # fmt: skip
    assert (found["samples"], found["dtype"], len(found["curvature"]["eigenvalues"])) == (90, "float64", 3)
    archive = open_archive(found["archive"])
    assert archive.attributes["seed"] == 5
    assert archive.run["samples"] == 80
    assert any("90 of 200 train samples, drawn with seed 5" in note for note in found["notes"])
    assert archive.subjects[0].facts["max_samples"] == 90


# -------------------------------------------------------------------------------- a measurement of one's own


def test_a_measurement_of_ones_own_is_one_file(world):
    (found,) = results("mine.pt", "--only", "performance,largest_weight", "--preset", "quick", "--report", "r.html")
    model = small_world.train(0).requires_grad_(False)
    expected = 2.0 * max(float(p.abs().max()) for p in model.parameters())  # the quick preset's scale
    assert found["largest_weight"] == {"value": pytest.approx(expected, rel=1e-6), "error": 0.25, "bad": None}
    assert any("largest_weight.bad" in w for w in found["warnings"])

    (entry,) = open_archive(found["archive"]).select("largest_weight")
    variable = entry.result.variables()["each"]
    assert variable.dims == ("tensor",)
    expected_each = [2.0 * float(p.abs().max()) for p in model.parameters()]
    np.testing.assert_allclose(variable.data, expected_each, rtol=1e-6)

    assert re.search(
        r"^largest_weight \*  \(largest_weight\)  The largest weight", done("list", "--task", "measures.py:tiny"), re.M
    )
    assert re.search(r"largest_weight 0001.*\n(?s:.*)value +\S+ ± 0.25", done("show", "--full", found["archive"]))
    assert "largest_weight" in (world / "r.html").read_text().replace(" ", "_")

    text = done("probe", "mine.pt", "--only", "largest_weight", "-o", "again.h5")
    assert re.search(r"^  largest weight +value [\d.]+ ± 0.25   bad NaN   each \[", text, re.M)


def test_an_archive_with_a_measurement_of_ones_own_is_read_where_its_class_is_not_known(world):
    done("probe", "mine.pt", "--only", "largest_weight", "-o", "mine.h5")
    registry._KINDS.pop("largest_weight")
    assert re.search(r"value +\S+ ± 0.25", done("show", "mine.h5"))
    shown = json.loads(done("show", "mine.h5", "--json"))
    assert shown["subjects"][0]["results"][0]["kind"] == "largest_weight"


# ---------------------------------------------------------------------------------------------- show, report


def test_show_and_report_of_several_archives(world):
    done("probe", "tiny.pt", "other.pt", "--only", "performance")
    files = ("tiny.landscape.h5", "other.landscape.h5")
    text = done("show", *files)
    assert text.index("tiny.landscape.h5") < text.index("other.landscape.h5")
    shown = json.loads(done("show", *files, "--json"))
    assert [a["subjects"][0]["label"] for a in shown["archives"]] == ["tiny", "other"]
    assert done("report", *files, "-o", "page.html") == "page.html\n"
    page = (world / "page.html").read_text()
    assert "cosine" in page
    assert "constant" in page
    refused = landscape("report", *files, "-o", "page.html")
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    done("report", *files, "-o", "page.html", "--force")
