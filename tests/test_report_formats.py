"""Reports as PDF, folders of figures, Markdown, CSV and JSON: every number, escaped text, clear refusals."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_samples as samples
from click.testing import CliRunner

from landscape.cli.main import main
from landscape.errors import LandscapeError
from landscape.report.booklet import LETTERS, LINES, _pages, write_booklet
from landscape.report.formats import FORMATS, format_of, target_of, write_report, write_report_as
from landscape.report.markdown import escaped, markdown
from landscape.report.measures import measures
from landscape.report.paper import make_figure
from landscape.report.pictures import every_figure, write_pictures
from landscape.report.runs import make_run, unique
from landscape.report.style import PAPER
from landscape.report.tables import as_csv, as_json

EVIL = "<script>alert(1)</script> | `x` @octocat #12 [a](b) *b* $x$"


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ------------------------------------------------------------------------------------------------ tables


def test_the_csv_holds_every_number_in_full() -> None:
    runs = samples.sample_runs(4, points=5)
    rows = read(as_csv(runs))
    assert len(rows) == 4
    for row, run in zip(rows, runs, strict=True):
        assert row["run"] == run.name
        assert row["set.loss"] == run.settings["loss"]
        for measure in measures(runs):
            value = measure.read(run)
            if value.known:
                assert float(row[measure.key]) == value.number
            for part, number in (("_error", value.error), ("_low", value.low), ("_high", value.high)):
                if math.isfinite(number):
                    assert float(row[measure.key + part]) == number


def test_what_is_missing_has_its_reason_and_formulas_are_disarmed() -> None:
    runs = unique([make_run("=cmd()", [samples.trace()]), make_run("b", [], status="failed", settings={"x": "+1"})])
    first, second = read(as_csv(runs))
    assert first["run"] == "'=cmd()"
    assert second["trace_missing"] == "not measured: the run failed"
    assert second["set.x"] == "'+1"
    assert "ece" not in first


def test_the_json_is_strict_and_holds_the_effects() -> None:
    runs = samples.sample_runs(12, points=5)
    shown = json.loads(as_json(runs), parse_constant=lambda c: pytest.fail(c))
    assert (shown["schema"], len(shown["runs"])) == (1, 12)
    found = shown["runs"][0]["measures"]["ece"]
    assert found["low"] <= found["value"] <= found["high"]
    assert {e["measure"] for e in shown["effects"]} >= {"trace", "ece"}
    assert shown["runs"][0]["checks"]["to_look_at"] == 1


# ------------------------------------------------------------------------------------------------ Markdown


def test_markdown_shows_tables_and_no_html() -> None:
    text = markdown(samples.sample_runs(4, points=5))
    assert text.startswith("# 4 runs of digits\n")
    assert "| Run | loss | schedule |" in text
    for line in text.splitlines():
        assert "<" not in line
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert "## Is it right?" in text


def test_markdown_text_is_escaped_and_calls_nobody() -> None:
    run = replace(samples.sample_runs(1, points=5)[0], name=EVIL)
    text = markdown([run])
    assert "<script>" not in text
    assert "@octocat" not in text
    assert "#12" not in text
    assert r"\|" in text
    assert escaped("a\nb") == "a b"
    assert escaped("1 < 2 & `c`") == r"1 &lt; 2 &amp; \`c\`"


# ------------------------------------------------------------------------------------------------ figures


def test_a_folder_of_figures_has_captions_and_references(tmp_path: Path) -> None:
    paths = write_pictures(samples.sample_runs(2, points=5), tmp_path / "figures", "svg")
    names = [p.name for p in paths]
    assert {"plane.svg", "calibration.svg", "eigenvalues.svg", "captions.md", "references.bib"} <= set(names)
    words = (tmp_path / "figures" / "captions.md").read_text()
    assert "## plane" in words
    assert (tmp_path / "figures" / "references.bib").read_text().count("@software{landscape-probe") == 1
    assert not list((tmp_path / "figures").glob(".*"))


def test_many_runs_are_drawn_in_part_and_effects_with_enough_seeds() -> None:
    runs = [
        replace(r, results={k: v for k, v in r.results.items() if k in ("trace", "performance")})
        for r in samples.sample_runs(12)
    ]
    found = dict(every_figure(runs))
    trace: Any = found["trace"]
    assert trace.caption.endswith("The first 6 of 12 runs.")
    effects: Any = found["effects"]
    assert "3 seeds" in effects.caption
    assert "effects" not in dict(every_figure(runs[:8]))
    assert make_figure(runs, "ablation", column="single").figure.get_size_inches()[0] == PAPER.single
    with pytest.raises(LandscapeError, match="too few seeds"):
        make_figure(runs[:8], "effects")
    with pytest.raises(LandscapeError, match="don't differ in a setting"):
        make_figure(runs[:1], "effects")


def test_the_pdf_has_tables_and_a_page_for_each_figure(tmp_path: Path) -> None:
    kept = ("trace", "line", "performance")
    runs = [replace(r, results={k: r.results[k] for k in kept}) for r in samples.sample_runs(2)]
    runs[0] = replace(runs[0], name=EVIL)
    write_booklet(runs, tmp_path / "a.pdf")
    data = (tmp_path / "a.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", data)) == 4  # the tables, line, trace, the checks
    write_booklet(runs, tmp_path / "b.pdf")
    assert (tmp_path / "b.pdf").read_bytes() == data


def test_pages_hold_what_fits() -> None:
    pages = _pages([f"line {i}" for i in range(2 * LINES + 1)])
    assert [len(p) for p in pages] == [LINES, LINES, 1]
    assert LETTERS > 100


# ------------------------------------------------------------------------------------------------ formats and places


@pytest.mark.parametrize(
    ("out", "name", "form"),
    [
        ("r.html", None, "html"),
        ("r.PDF", None, "pdf"),
        ("r.markdown", None, "md"),
        ("x", "csv", "csv"),
        ("a.b", "json", "json"),
    ],
)
def test_the_format_is_named_or_the_ending(out: str, name: str | None, form: str) -> None:
    assert format_of(out, name) == form


def test_figures_go_into_a_folder_of_that_name() -> None:
    assert target_of("out/figs.png", "png") == Path("out/figs")
    assert target_of("out/figs", "svg") == Path("out/figs")
    assert target_of("out/r.pdf", "pdf") == Path("out/r.pdf")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return samples.write_archives(tmp_path_factory.mktemp("formats"), 2, points=5)


@pytest.mark.parametrize("form", ["html", "md", "csv", "json"])
def test_the_command_writes_each_format_once(form: str, archives: list[Path], tmp_path: Path) -> None:
    assert form in FORMATS
    out = tmp_path / f"r.{form}"
    arguments = ["report", *map(str, archives), "-o", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout.strip()) == (0, str(out)), done.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "--force" in again.output
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0


def test_the_ending_decides_what_is_written_from_python_too(archives: list[Path], tmp_path: Path) -> None:
    assert write_report(archives, tmp_path / "r.md").read_text("utf-8").startswith("#")
    assert json.loads(write_report(archives[0], tmp_path / "r.json").read_text("utf-8"))
    assert write_report(archives, tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(LandscapeError, match="exists"):
        write_report(archives, tmp_path / "r.md", force=False)


@pytest.mark.parametrize(
    ("out", "form", "message"),
    [
        ("r.docx", None, "tells no report format: let it be one of html, pdf"),
        ("r.html", "word", "no report format 'word'; there are html, pdf"),
        ("nowhere/r.md", None, "the folder .*nowhere does not exist"),
        ("", "md", "is a folder, expected a file such as"),
        ("file.png", None, "is a file, expected a folder"),
    ],
)
def test_bad_places_are_refused(out: str, form: str | None, message: str, archives: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LandscapeError, match=message):
        write_report_as(archives, tmp_path / out, form)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_nothing_to_draw_and_no_archive_are_said(tmp_path: Path) -> None:
    with pytest.raises(LandscapeError, match="at least one archive"):
        write_report_as([], tmp_path / "r.md")
    with pytest.raises(LandscapeError, match="nothing that could be drawn"):
        write_pictures([make_run("a", [])], tmp_path / "f", "png")


def test_markdown_does_not_speak_of_what_only_a_page_has() -> None:
    text = markdown(samples.sample_runs(2))
    assert "Beside a number: ±" in text
    assert "Small print" not in text
