"""The page: complete from any number of runs and any missing part, safe, offline, and true to the archives."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report_samples import (
    about,
    calibration,
    curl,
    eigenvalues,
    line,
    performance,
    plane,
    results,
    sample_runs,
    settings,
    sharpness,
    trace,
    write_archives,
)

from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.errors import ArchiveError, LandscapeError
from landscape.report.formats import write_report
from landscape.report.page import default_title, render_report, short_task
from landscape.report.runs import gather, make_run, unique
from landscape.report.sections.cells import setting_columns
from landscape.results import Check, StoredResult

VOID = {"meta", "link", "br", "hr", "img", "input", "path"}
MEGABYTE = 1e6


class Page(HTMLParser):
    """The page as a browser reads it: elements, visible text, and the JSON of each chart."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def charts(self) -> dict[str, dict]:
        return {
            a["id"].removeprefix("data-"): json.loads(unpacked(a, text))
            for a, text in self.scripts
            if (a.get("id") or "").startswith("data-")
        }

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


def unpacked(attributes, text):
    return text if attributes["type"] == "application/json" else gzip.decompress(base64.b64decode(text))


def executable(found: Page) -> list[str]:
    return [text for a, text in found.scripts if not (a.get("type") or "").startswith("application/")]


def page(runs, **options) -> Page:
    return Page(render_report(runs, **options))


def numbers(column: dict) -> np.ndarray:
    """Decode a column as the page's script does."""
    if "fill" in column:
        return np.full(column["shape"], column["fill"])
    types = {"f8": "<f8", "f4": "<f4", "i4": "<i4", "u1": "u1"}
    return np.frombuffer(base64.b64decode(column["base64"]), types[column["dtype"]]).reshape(column["shape"])


# ------------------------------------------------------------------------------------------------ whole pages


@pytest.mark.parametrize("n", [1, 2, 4, 12])
def test_a_page_of_n_runs_has_every_section_and_a_row_for_each_run(n):
    found = page(sample_runs(n, points=9))
    ids = {a.get("id") for _, a in found.tags}
    expected = {"runs", "surfaces", "calibration", "curvature", "lines", "sharpness", "checks", "provenance"}
    assert expected <= ids
    assert ("sharp-flat" in ids) == (n > 1)
    for run in sample_runs(n):
        assert run.name in found.text
    assert len(found.charts["surfaces"]["series"]) == n
    assert sum("pick" in (a.get("class") or "") for a in found.all("input")) == (n if n > 1 else 0)


def test_the_document_is_well_formed_and_can_be_read_without_eyes_or_mouse():
    found = page(sample_runs(4))
    ids = [a["id"] for _, a in found.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert found.all("html")[0]["lang"] == "en"
    assert {a["href"] for a in found.all("a")} <= {f"#{i}" for i in ids}
    assert {a["aria-labelledby"] for _, a in found.tags if a.get("aria-labelledby")} <= set(ids)
    assert all(a.get("scope") for a in found.all("th"))
    plots = [a for a in found.all("div") if a.get("class") == "plot"]
    assert plots
    assert all(a.get("aria-label") and a.get("role") == "img" for a in plots)
    assert all(a.get("type") == "button" for a in found.all("button"))
    levels = [int(t[1]) for t, _ in found.tags if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_a_page_from_archives(tmp_path):
    out = write_report(write_archives(tmp_path, 2, points=9), tmp_path / "report.html")
    found = Page(out.read_text("utf-8"))
    assert out.stat().st_size < 15 * MEGABYTE
    assert "2 runs of digits" in found.text
    for said in (
        "landscape probe runs/0.pt -o runs/0.h5",
        "2.13.0",
        "00ab34cd56",
        str(tmp_path / "1.h5"),
        "2026-03-14",
    ):
        assert said in found.text
    assert not list(tmp_path.glob(".*partial"))


def test_several_checkpoints_of_one_archive_are_several_runs(tmp_path):
    for i in range(2):
        subject = Subject(f"{i}.pt", str(i), "digits", i, name=f"run {i}", facts={"loss": "mse", "lr": i})
        save_archive(tmp_path / "a.h5", results(i, 9), subject=subject, append=i > 0)
    found = Page(write_report(tmp_path / "a.h5", tmp_path / "r.html").read_text("utf-8"))
    assert "2 runs of digits" in found.text
    assert "run 0" in found.text
    assert "run 1" in found.text


def test_a_loss_that_was_reached_is_not_the_name_of_a_loss(tmp_path):
    for i, value in enumerate((1.07, 0.97)):
        subject = Subject(f"{i}.pt", str(i), "mine", i, name=f"run {i}", facts={"loss": value, "lr": 0.1})
        save_archive(tmp_path / "a.h5", results(i, 9), subject=subject, append=i > 0)
    assert [run.settings for run in gather([tmp_path / "a.h5"])] == [{"lr": 0.1}] * 2
    assert "different losses" not in Page(write_report(tmp_path / "a.h5", tmp_path / "r.html").read_text("utf-8")).text


def test_settings_that_tell_runs_apart_are_put_away_behind_those_that_do_not():
    own = [{"loss": "mse", "schedule": s, "average": a} for s, a in itertools.product(("cosine", "step"), ("ema", ""))]
    runs: Any = [SimpleNamespace(settings=o) for o in own]
    rank = {c.key: c.rank for c in setting_columns(("loss", "schedule", "average"), runs)}
    assert rank["schedule"] < rank["average"] < rank["loss"]


def test_settings_of_the_first_writing_are_not_those_of_a_subject_appended_later(tmp_path):
    path = tmp_path / "a.h5"
    first, second = Subject(name="first"), Subject(name="second", checkpoint="b.pt")
    save_archive(path, results(0, 9), subject=first, run={"loss": "focal"})
    save_archive(path, results(1, 9), subject=second, append=True)
    save_archive(path, results(2, 9), subject=first, append=True, run={"schedule": "cosine"})
    found = {run.name: run.settings for run in gather([path])}
    assert found["first"] == {"loss": "focal", "schedule": "cosine"}
    assert found["second"] == {}


@pytest.mark.parametrize(
    ("reference", "short"),
    [
        ("examples/digits.py:digits", "digits"),
        ("/home/me/examples/my_net.py", "my_net"),
        ("a/my_net.py:task", "my_net"),
        ("package.module:task", "module"),
        ("digits", "digits"),
    ],
)
def test_a_task_is_called_by_its_name(reference, short):
    assert short_task(reference) == short
    assert default_title(sample_runs(4, task=reference)) == f"4 runs of {short}"


# ------------------------------------------------------------------------------------------------ the same numbers


def test_a_planes_numbers_in_the_page_are_the_archives(tmp_path):
    loss = plane().loss.copy()
    loss[0, 0], loss[1, 1], loss[2, 2] = np.nan, np.inf, 0.1 + 0.2
    odd = replace(plane(n=25, m=25), loss=loss)
    save_archive(tmp_path / "a.h5", odd, subject=Subject("a.pt", "f", "digits", name="a"))
    chart = Page(write_report(tmp_path / "a.h5", tmp_path / "r.html").read_text("utf-8")).charts["surfaces"]
    columns = chart["series"][0]["columns"]
    for key, expected in (("loss", loss), ("alpha", odd.alpha), ("beta", odd.beta)):
        np.testing.assert_array_equal(numbers(columns[key]), expected, strict=True)
    assert chart["series"][0]["dims"] == ["alpha", "beta"]


def test_single_precision_stays_single_precision():
    loss = plane().loss.astype(np.float32)
    column = page([make_run("a", [replace(plane(), loss=loss)])]).charts["surfaces"]["series"][0]["columns"]["loss"]
    np.testing.assert_array_equal(numbers(column), loss, strict=True)


def test_the_numbers_behind_every_figure_are_in_the_page():
    charts = page(sample_runs(3, points=9)).charts
    of_calibration = {"reliability", "recalibration", "confidences", "risk-coverage"}
    assert set(charts) == {"surfaces", "eigenvalues", "trace", "lines", "sharpness", "sharp-flat", *of_calibration}
    pairs = eigenvalues(6.0, seed=0)
    np.testing.assert_array_equal(numbers(charts["eigenvalues"]["series"][0]["columns"]["eigenvalue"]), pairs.values)
    table = calibration(0.958, 0.045, seed=0)
    np.testing.assert_array_equal(numbers(charts["reliability"]["series"][0]["columns"]["samples"]), table.counts)
    np.testing.assert_array_equal(numbers(charts["lines"]["series"][0]["columns"]["loss"]), line(6.0).loss)


def test_every_trace_points_at_a_column_that_is_there():
    charts = page([*sample_runs(3, points=9), make_run("extra", [curl()], index=3)]).charts

    def walk(node, chart):
        if isinstance(node, dict):
            if "ref" in node:
                series, column = node["ref"]
                assert column in chart["series"][series]["columns"], (chart["id"], node)
            for value in node.values():
                walk(value, chart)
        elif isinstance(node, list):
            for value in node:
                walk(value, chart)

    for chart in charts.values():
        walk(chart["panels"], chart)
        for panel in chart["panels"]:
            assert set(panel["views"]) == set(chart["layouts"]), chart["id"]


def test_the_view_that_the_controls_choose_is_one_that_was_made():
    """The script joins the controls of a figure in the order of the page: also where one has a single option."""
    few = [make_run(str(i), [performance(i + 1), eigenvalues(i + 1), calibration(seed=i)], index=i) for i in range(2)]
    for runs in (few, few[:1], sample_runs(3, points=5)):
        found = page(runs)
        chosen: dict[str, list[str | None]] = {}
        figure = ""
        for tag, attributes in found.tags:
            figure = (attributes["data-chart"] or "") if tag == "figure" else figure
            if "data-control" in attributes and (attributes["type"] == "hidden" or "checked" in attributes):
                chosen.setdefault(figure, []).append(attributes["value"])
        assert chosen
        for name, values in chosen.items():
            assert ".".join(str(v) for v in values) in found.charts[name]["layouts"]


def test_a_runs_numbers_stand_in_its_row():
    text = page(sample_runs(1)).text
    for said in ("0.0720 ± 0.0066", "0.198 ± 0.011", "0.958 ± 0.011", "228.23 ± 0.024", "1246 ± 15"):
        assert said in text


# ------------------------------------------------------------------------------------------------ one scale


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_surfaces_share_one_color_range_one_height_range_and_one_span(scale):
    runs = sample_runs(4)
    wide = replace(plane(1.0), alpha=np.linspace(-2, 1, 25))
    chart = page([*runs, make_run("wide", [wide], index=4)]).charts["surfaces"]
    solid = [p["views"][f"3d.{scale}"][0] for p in chart["panels"]]
    flat = [p["views"][f"contour.{scale}"][0] for p in chart["panels"]]
    assert len(solid) == 5
    assert len({(t["cmin"], t["cmax"]) for t in solid} | {(t["zmin"], t["zmax"]) for t in flat}) == 1
    losses = np.concatenate([r.get("plane").loss.ravel() for r in runs] + [wide.loss.ravel()])
    low, high = losses.min(), losses.max()
    if scale == "log":
        low, high = math.log10(low), math.log10(high)
    assert (solid[0]["cmin"], solid[0]["cmax"]) == pytest.approx((low, high))
    layout = chart["layouts"][f"3d.{scale}"]
    assert layout["scene"]["zaxis"]["range"] == pytest.approx([low, high])
    assert layout["scene"]["xaxis"]["range"] == [-2.0, 1.0]
    assert not any(p["layout"] for p in chart["panels"])  # nothing of a panel's own could differ


def checked(found: Page, name: str) -> str | None:
    return next(a["value"] for a in found.all("input") if a.get("name") == name and "checked" in a)


def test_a_huge_range_is_logarithmic_first_and_said():
    found = page([replace(r, settings={**r.settings, "loss": "cross_entropy"}) for r in sample_runs(4)])
    assert checked(found, "surfaces-scale") == "log"
    assert "so the logarithmic height is shown first" in found.text


def test_losses_that_differ_are_drawn_above_their_own_centers_first_and_it_is_said():
    # The same basin on another floor, as a smoothed label's: the pictures are the same.
    floor = replace(plane(), loss=plane().loss + 0.5, center_loss=plane().center_loss + 0.5)
    runs = [make_run(n, [p], settings={"loss": n}) for n, p in (("plain", plane()), ("smoothed", floor))]
    found = page(unique(runs))
    assert checked(found, "surfaces-scale") == "rise"
    assert "the heights above each run's own center are shown first" in found.text
    assert "above each center" in found.text
    chart = found.charts["surfaces"]
    rise = plane().loss - plane().center_loss
    for view in ("3d.rise", "contour.rise"):
        traces = [p["views"][view][0] for p in chart["panels"]]
        assert [t["z"]["above"] for t in traces] == [plane().center_loss, floor.center_loss]
        low, high = (("cmin", "cmax"), ("zmin", "zmax"))[view != "3d.rise"]
        ends = np.arcsinh(np.array([rise.min(), rise.max()]) / (0.01 * rise.max()))
        assert all((t[low], t[high]) == pytest.approx(ends) for t in traces)
    assert [p["views"]["3d.rise"][1]["z"] for p in chart["panels"]] == [[0.0], [0.0]]


def test_a_single_surface_and_one_without_a_center_stand_on_their_losses():
    lost = replace(plane(), center_loss=float("nan"))
    for runs in ([make_run("a", [plane()])], [make_run("a", [plane()]), make_run("b", [lost], index=1)]):
        assert not any("rise" in view for view in page(runs).charts["surfaces"]["panels"][0]["views"])


def test_a_small_range_is_linear_first():
    gentle = replace(plane(), loss=1 + 0.1 * plane().loss, center_loss=1.001)
    assert checked(page([make_run("a", [gentle])]), "surfaces-scale") == "linear"


def test_losses_at_zero_or_below_take_asinh_and_it_is_said():
    low = replace(plane(6.0), loss=plane(6.0).loss - 0.072, center_loss=0.0)
    found = page([make_run("a", [low, plane(6.0)]), make_run("b", [low], index=1)])
    assert "asinh" in found.text
    assert found.charts["surfaces"]["panels"][1]["views"]["3d.log"][0]["z"]["scale"][0] == "asinh"


def test_holes_are_counted():
    loss = plane().loss.copy()
    loss[:2, :3] = np.nan
    assert "6 points not finite (holes)" in page([make_run("a", [replace(plane(), loss=loss)])]).text


def test_points_that_were_interpolated_are_counted():
    evaluated = np.zeros((25, 25), dtype=bool)
    evaluated[::2, ::2] = True
    text = page([make_run("a", [replace(plane(), evaluated=evaluated, error=0.02)])]).text
    assert "169 of 625 points evaluated, error ≲ 2.0% of the range" in text


# ------------------------------------------------------------------------------------------------ safety

EVIL = "</script><script>alert(1)</script>"
EVILS = (EVIL, "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", "<!--<script>", "a\u2028b")


@pytest.mark.parametrize("evil", EVILS)
def test_text_from_archives_is_text(evil):
    bad = [
        replace(performance(), warnings=(evil,), checks=(Check(evil, "warn", evil),)),
        replace(plane(n=5), directions=(evil, evil), split=evil),
        replace(sharpness(), names=(evil, "b", "c"), settings={evil: evil}),
        replace(calibration(), convention=evil),
        replace(eigenvalues(), operator=evil, split=evil),
        StoredResult(stored_kind=evil, stored=curl().variables()),
    ]
    facts = {
        "task": evil,
        "checkpoint": evil,
        "archive": evil,
        "fingerprint": evil,
        "settings": {evil: evil, "loss": evil},
        "about": {"command_line": evil, "versions": {evil: evil}, "created": evil},
        "problems": (evil,),
    }
    runs = unique([make_run(f"{i}{evil}", bad, **facts) for i in range(2)])
    html = render_report(runs, title=evil)
    found = Page(html)
    clean = Page(render_report(unique([make_run("x", bad[:0]), make_run("y", bad[:0])])))
    executable = [a for a, _ in found.scripts if not (a.get("type") or "").startswith("application/")]
    assert (
        len(executable)
        == len([a for a, _ in clean.scripts if not (a.get("type") or "").startswith("application/")])
        == 3
    )
    assert not found.all("img")
    assert not [a for _, a in found.tags if any(k.startswith("on") for k in a)]
    assert " ".join(evil.split()) in found.text
    assert json.loads(next(t for a, t in found.scripts if a.get("id") == "page-data"))["runs"][0]["name"] == f"0{evil}"
    assert all(json.loads(t) for a, t in found.scripts if a.get("type") == "application/json")


def test_names_do_not_reach_plotlys_own_markup():
    """Plotly reads tags and %{...} in its texts; a run's name is only ever passed by number."""
    found = page(unique([make_run("<b>NAME</b>%{x}", results(i, 5)) for i in range(6)]))
    for chart in found.charts.values():
        assert "NAME" not in json.dumps([chart["panels"], chart["layouts"]])


def test_nothing_is_fetched():
    html = render_report(sample_runs(2, points=9))
    found = Page(html)
    for tag, attributes in found.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ours = Path(__file__).parents[1] / "landscape/report/templates/report.js"
    for word in ("fetch(", "XMLHttpRequest", "import(", "http://", "https://", "WebSocket", "sendBeacon"):
        assert word not in ours.read_text("utf-8")


def test_the_policy_lets_no_script_run_but_these_and_forbids_the_network():
    found = page(sample_runs(1, points=5))
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy  # so default-src holds for it
    for text in executable(found):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


# ------------------------------------------------------------------------------------------------ parts missing


def test_only_calibration():
    found = page([make_run("a", [calibration()])])
    assert set(found.charts) == {"reliability", "confidences", "risk-coverage"}
    assert "Not measured: loss train" in found.text


def test_only_surfaces():
    found = page(unique([make_run("a", [plane(1.0)]), make_run("b", [plane(6.0)])]))
    assert set(found.charts) == {"surfaces"}


def test_nothing_measured_at_all():
    text = page([make_run("a", [])]).text
    assert "hold no self-checks" in text


def test_a_run_that_lacks_what_another_has_is_named_with_the_reason():
    failed = StoredResult(
        stored_kind="calibration", status="failed", checks=(Check("measured", "fail", "no labels here"),)
    )
    other = make_run("b", [performance(), failed])
    found = page(unique([*sample_runs(1), other]))
    assert "No calibration for b: failed: no labels here." in found.text
    assert "No surface for b: not measured." in found.text
    assert "not measured" in found.text


def test_a_failed_run_is_shown_as_failed():
    found = page(unique([make_run("a", [], status="failed"), *sample_runs(1)]))
    assert "the run that wrote this archive failed" in found.text
    assert "not measured: the run failed" in found.text or any(
        "the run failed" in (a.get("title") or "") for _, a in found.tags
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_everywhere(value):
    def spoiled(result):
        changed = {
            k: np.full_like(np.asarray(v.data, dtype=float), value) if v.dims else value
            for k, v in result.variables().items()
            if v.data.dtype.kind == "f" and not v.coordinate
        }
        return replace(result, **changed)

    every = [spoiled(r) for r in (*results(0, 9), curl())]
    found = page(unique([make_run("bad", every), *sample_runs(2, points=9)]))
    assert "No surface for bad: not one finite number." in found.text
    assert len(found.charts["surfaces"]["series"]) == 2
    alone = page([make_run("bad", every)])
    assert "surfaces" not in alone.charts
    assert ("NaN" if np.isnan(value) else "∞") in alone.text


def test_a_kind_that_is_not_known_here_is_shown():
    stored = StoredResult(stored_kind="novelty", stored=curl().variables(), checks=(Check("c", "pass", "fine"),))
    found = page(unique([make_run("a", [stored]), make_run("b", [stored])]))
    assert "Other measurements" in found.text
    assert "total (nats)" in found.text
    assert "1.250 ± 0.031" in found.text
    assert {"other-novelty-curve", "other-novelty-pairs"} <= set(found.charts)
    curve = found.charts["other-novelty-curve"]["series"][0]["columns"]
    np.testing.assert_array_equal(numbers(curve["curve"]), curl().curve)
    np.testing.assert_allclose(numbers(curve["curve_high"]), curl().curve + 1.959964 * 0.05)


def test_a_result_that_lacks_a_number_is_left_out_and_said(tmp_path):
    import h5py

    (path,) = write_archives(tmp_path, 1, points=9)
    with h5py.File(path, "r+") as file:
        group = next(iter(file["results/plane"].values()))
        del group["evaluated"]
    found = Page(write_report(path, tmp_path / "r.html").read_text("utf-8"))
    assert "lacks evaluated: written by another version" in found.text
    assert "surfaces" not in found.charts
    assert "1 failed" in found.text


def test_tasks_are_grouped_with_a_note():
    found = page(unique([*sample_runs(2, points=9), *sample_runs(2, points=9, task="other.py:faces")]))
    assert "4 runs of 2 tasks" in found.text
    assert "These runs belong to 2 tasks" in found.text
    assert "Task other.py:faces" in found.text
    assert found.text.count("With 2 runs of task") == 2


# ------------------------------------------------------------------------------------------------ what it says


def test_runs_that_can_not_be_compared_are_said():
    one, two = sample_runs(2, points=5)
    assert "trained with different losses" in page(sample_runs(4, points=5)).text
    changed = replace(one, about={**one.about, "dtype": "float64"}, index=1, name="b")
    assert "measured with different dtype (float32, float64)" in page([one, changed]).text
    other_draw = replace(performance(), fingerprints=("zzz", "d4e5f6"))
    assert (
        "different draws of the data"
        in page(unique([make_run("a", [performance()]), make_run("b", [other_draw])])).text
    )
    fewer = replace(performance(), samples=np.array([100, 360]))
    assert (
        "different numbers of samples (100, 1,024)"
        in page(unique([make_run("a", [performance()]), make_run("b", [fewer])])).text
    )
    assert "measured with different" not in page([one, two]).text


def test_intervals_that_overlap_are_said_to_overlap():
    apart = [replace(calibration(), ece=e, ece_interval=np.array([e - 0.01, e + 0.01])) for e in (0.05, 0.10)]
    close = [replace(calibration(), ece=e, ece_interval=np.array([e - 0.04, e + 0.04])) for e in (0.05, 0.10)]
    for tables, said in ((apart, "their 95% intervals do not overlap"), (close, "their 95% intervals overlap")):
        text = page(unique([make_run(n, [t]) for n, t in zip("ab", tables, strict=True)])).text
        assert f"a factor of 2.0; {said}" in text


def test_few_runs_allow_no_conclusion_about_flatness():
    text = page(sample_runs(4, points=5)).text
    assert "With 4 runs nothing can be concluded" in text
    assert "Andriushchenko et al. 2023" in text
    assert "Dinh et al. 2017" in text
    assert "Kendall" not in text


def test_five_runs_get_a_rank_correlation_with_its_interval_and_the_caution():
    text = page(sample_runs(6, points=5)).text
    assert "nothing can be concluded" not in text
    assert "Kendall’s τ" in text
    assert "Andriushchenko et al. 2023" in text
    assert re.search(r"λ max loss gap \(test − train\) [−0-9.]+ \[[−0-9.]+, [−0-9.]+\]", text)


def test_checks_are_told_by_icon_and_word_and_counted():
    result = replace(
        performance(),
        checks=(Check("a", "pass", "fine"), Check("b", "warn", "raise k", 0.5, 0.1), Check("c", "fail", "do it again")),
        warnings=("augmentation is on",),
    )
    found = page([make_run("r", [result])])
    assert "1 checks passed, 1 to look at, 1 failed." in found.text
    for word in ("✓ pass", "! warn", "✕ fail", "raise k", "do it again", "augmentation is on (performance; r)"):
        assert word in found.text
    assert found.text.index("do it again") < found.text.index("raise k")


def test_rescaling_is_marked():
    text = page(sample_runs(1)).text
    assert "sam 0.05 yes: compare with care" in text
    assert "adaptive 0.5 no" in text


def test_costs_are_summed():
    text = page([make_run("a", [trace(), eigenvalues()])]).text
    assert "What was spent: 84 products, 504 passes over the data, 15 s in all." in text


def test_what_was_compared_is_said_first():
    text = page(sample_runs(4, points=5)).text
    assert "1,024 train, 360 test samples" in text[: text.index("At a glance")]
    assert "26,122" in text[: text.index("At a glance")]
    assert settings(0)["optimizer"] in text
    assert about(0)["device"] in text


# ------------------------------------------------------------------------------------------------ bad input


def refused(run, *words: str) -> None:
    with pytest.raises(LandscapeError) as caught:
        run()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_no_archive(tmp_path):
    refused(lambda: write_report([], tmp_path / "r.html"), "at least one archive")
    with pytest.raises(ArchiveError):
        write_report([], tmp_path / "r.html")


def test_a_file_that_is_no_archive_leaves_nothing(tmp_path):
    (tmp_path / "a.h5").write_text("no")
    refused(lambda: write_report([tmp_path / "a.h5"], tmp_path / "r.html"), "a.h5")
    refused(lambda: write_report([tmp_path / "none.h5"], tmp_path / "r.html"), "none.h5")
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5"}


def test_places_that_can_not_be_written(tmp_path):
    paths = write_archives(tmp_path, 1, points=5)
    refused(lambda: write_report(paths, tmp_path), "is a folder", "report.html")
    refused(lambda: write_report(paths, tmp_path / "no" / "r.html"), "the folder", "does not exist; create it")


def test_an_existing_page_is_kept_without_force(tmp_path):
    paths = write_archives(tmp_path, 1, points=5)
    (tmp_path / "r.html").write_text("mine")
    refused(lambda: write_report(paths, tmp_path / "r.html", force=False), "exists")
    assert (tmp_path / "r.html").read_text() == "mine"
    write_report(paths, tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size > MEGABYTE


def test_the_page_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    paths = write_archives(tmp_path, 1, points=5)
    (tmp_path / "r.html").write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    refused(lambda: write_report(paths, tmp_path / "r.html"), "No space left")
    assert (tmp_path / "r.html").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"0.h5", "r.html"}


# ------------------------------------------------------------------------------------------------ lightness


def test_neither_torch_nor_matplotlib_is_imported(tmp_path):
    paths = write_archives(tmp_path, 2, points=9)
    code = (
        "import sys; from landscape import write_report; write_report(sys.argv[1:-1], sys.argv[-1]);"
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'scipy.stats') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths), str(tmp_path / "r.html")],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_drawing_imports_no_torch():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from report_samples import plane; from landscape import draw;"
        "draw(plane()); print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_many_runs_stay_below_the_size(tmp_path):
    html = render_report(sample_runs(40, points=51))
    assert len(html.encode()) < 15 * MEGABYTE
