"""The page in a real browser, opened from disk with the network off: no error, and everything a person does works.

Needs Debian's chromium; what checks accessibility needs axe-core too (AXE_CORE=.../axe.min.js). `make test-browser`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from browser import Browser, Page, browser, chromium
from report_samples import about, calibration, line, plane, results, settings, write_archives
from training_samples import history, record

from landscape.report.formats import write_report
from landscape.report.page import render_report
from landscape.report.runs import make_run, unique

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="needs a chromium: apt-get install chromium"),
]

EVIL = "<script>alert(1)</script>"
#: Milliseconds until the first content is on the screen (the issue's limit).
FIRST_PAINT = 2000


@pytest.fixture(scope="module")
def chrome():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page like the demo's, one of a single run, and one of 100 runs."""
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for name, n, points, steps in (("four", 4, 25, 800), ("one", 1, 25, 300), ("hundred", 100, 15, 120)):
        (folder / name).mkdir()
        paths = write_archives(folder / name, n, points, steps)
        made[name] = write_report(paths, folder / f"{name}.html")
    runs = unique([make_run(f"{EVIL}{i}", results(i, 9), settings={"loss": EVIL}, about=about(i)) for i in range(14)])
    made["evil"] = folder / "evil.html"
    made["evil"].write_text(render_report(runs, title=EVIL), "utf-8")
    return made


@pytest.fixture(scope="module")
def held(chrome: Browser):
    """Pages that several tests look at; opening one takes seconds."""
    found: dict[str, Page] = {}
    yield found
    for page in found.values():
        page.close()


@pytest.fixture
def opened(chrome: Browser, pages, held):
    """Open a page by its name: the one that is open already, at this size, unless it is to be `fresh`."""
    used: list[tuple[Page, bool]] = []

    def open(name: str, width: int = 1280, *, dark: bool = False, fresh: bool = False) -> Page:
        if fresh:
            page = chrome.open(pages[name], width, 900, dark=dark)
        else:
            page = held.get(name) or held.setdefault(name, chrome.open(pages[name], width, 900, dark=dark))
            page.call("Page.bringToFront")  # a page behind another one draws nothing
            page.look(width, 900, dark=dark)
            page.value("scrollTo(0, 0); new Promise((r) => setTimeout(r, 250))")
        used.append((page, fresh))
        return page

    yield open
    for page, fresh in used:
        problems = page.complaints()
        if fresh:
            page.close()
        assert not problems


FILTER = ".table-tools[data-for=runs-table] input[type=search]"
HEADS = "[...document.querySelectorAll('#runs-table thead tr:last-child th')]"
ROWS = "[...document.querySelectorAll('#runs-table tbody tr:not(.group):not([hidden])')]"


def names(page: Page) -> list[str]:
    """Return the names of the rows that are shown, in order."""
    return page.value(f"{ROWS}.map((r) => r.cells[0].textContent.trim())")


def place(page: Page, key: str) -> int:
    return page.value(f"{HEADS}.findIndex((h) => h.dataset.key === '{key}')")


def column(page: Page, key: str) -> list[float]:
    return [float(v) for v in page.value(f"{ROWS}.map((r) => r.cells[{place(page, key)}].dataset.sort)")]


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def axis(page: Page, chart: str) -> list[float]:
    return page.value(f"document.querySelector('#figure-{chart} .plot')._fullLayout.xaxis.range.map(Number)")


def drawn(page: Page, chart: str) -> None:
    page.show(f"#figure-{chart} .plot")
    page.wait(f"document.querySelector('#figure-{chart} .plot')._fullLayout")


# ------------------------------------------------------------------------------------------------ whole pages


@pytest.mark.parametrize("name", ["four", "one", "hundred", "evil"])
def test_everything_is_drawn_without_an_error_and_nothing_is_asked_of_a_network(opened, name):
    page = opened(name)
    page.scroll_through(1500)
    page.wait("[...document.querySelectorAll('figure.chart')].every((f) => f.querySelector('.panel:not([hidden])'))")
    assert page.value("document.querySelectorAll('.plot .main-svg, .plot canvas').length") > 8
    assert page.complaints() == []
    assert [u for u in page.asked() if not u.startswith("file:")] == []
    assert len(page.asked()) == 1


@pytest.mark.parametrize("name", ["four", "hundred"])
@pytest.mark.parametrize("width", [380, 1280, 1440, 1600])
def test_nothing_is_wider_than_the_page(opened, name, width):
    page = opened(name, width)
    until(lambda: page.value("document.documentElement.scrollWidth") <= width)
    page.scroll_through(1500)  # figures are drawn for this width when they come into sight
    # What is wider scrolls inside a box of its own.
    beyond = "e.getBoundingClientRect().right > innerWidth + 1 && e.getClientRects().length"
    boxed = "e.closest('.scroll, nav, svg, .choices')"
    all_of = "[...document.querySelectorAll('main *')]"
    too_wide = f"{all_of}.filter((e) => !{boxed} && {beyond}).map((e) => e.outerHTML.slice(0, 90))"
    until(lambda: page.value(too_wide) == [])  # figures are drawn again a moment after the window has changed


@pytest.mark.parametrize(("name", "width"), [("four", 1440), ("hundred", 1440), ("four", 1100), ("hundred", 1000)])
def test_the_table_of_runs_fits_the_page(opened, name, width):
    page = opened(name, width, fresh=True)
    for table in ("runs-table", "seeds-table"):
        boxes = page.value(
            f"(() => {{ const t = document.getElementById('{table}'); if (!t) return null;"
            "const b = t.closest('.scroll'); return [b.scrollWidth, b.clientWidth]; })()"
        )
        assert boxes is None or boxes[0] <= boxes[1]


def test_the_first_paint_comes_soon(opened):
    page = opened("hundred", fresh=True)
    paint = page.value("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < FIRST_PAINT


def test_a_name_that_is_markup_is_text(opened):
    page = opened("evil")
    page.scroll_through(1500)
    assert page.value("document.scripts.length") == page.value("document.querySelectorAll('body > script').length")
    assert page.value("document.querySelector('h1').textContent") == EVIL
    assert names(page)[0].startswith(EVIL)
    page.click("#runs-table .pick[value='13']")
    until(lambda: page.value("document.querySelectorAll('#figure-surfaces .panel[data-run=\"13\"]').length") == 1)
    head = "document.querySelector('#figure-surfaces .panel[data-run=\"13\"] h4').textContent.trim()"
    assert page.value(head) == f"{EVIL}13"


# ------------------------------------------------------------------------------------------------ tables


def test_sorting_by_a_heading(opened):
    page = opened("hundred")
    before = column(page, "lambda_max")
    page.click("#runs-table th[data-key='lambda_max'] button")
    assert column(page, "lambda_max") == sorted(before, reverse=True)
    assert (
        page.value("document.querySelector('#runs-table th[data-key=lambda_max]').getAttribute('aria-sort')")
        == "descending"
    )
    page.click("#runs-table th[data-key='lambda_max'] button")
    assert column(page, "lambda_max") == sorted(before)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("label_smoothing cosine", 25),
        ("loss=label_smoothing", 50),
        ("seed<3", 12),
        ("seed>=23 schedule=cosine", 4),
        ("schedule!=cosine", 50),
        ('"cross_entropy cosine"', 25),
        ("nothing like it", 0),
        ("", 100),
    ],
)
def test_filtering_rows(opened, text, kept):
    page = opened("hundred")
    page.type(FILTER, text)
    until(lambda: len(names(page)) == kept)
    said = page.value("document.querySelector('#runs-table-found').textContent")
    assert said == (f"{kept} of 100 match" if text else "")


def test_a_filter_that_is_not_understood_says_so(opened):
    page = opened("hundred")
    said = "document.querySelector('#runs-table-found').textContent"
    page.type(FILTER, "nonsense<3")
    until(lambda: page.value(said) == "there is no column nonsense")
    assert len(names(page)) == 100
    page.type(FILTER, "")


def test_what_a_filter_keeps_is_drawn(opened):
    page = opened("hundred", fresh=True)
    drawn(page, "surfaces")
    page.type(FILTER, "seed=24")
    until(lambda: len(names(page)) == 4)
    page.click(".draw-found")
    page.show("#figure-surfaces .panels")
    shown = "[...document.querySelectorAll('#figure-surfaces .panel:not([hidden])')].map((p) => Number(p.dataset.run))"
    until(lambda: page.value(shown) == [96, 97, 98, 99])
    chips = "[...document.querySelectorAll('#figure-lines .chip')].map((c) => Number(c.dataset.run))"
    page.show("#figure-lines")
    until(lambda: page.value(chips) == [96, 97, 98, 99])


def test_runs_that_are_drawn_differ_in_their_looks_and_keep_them(opened):
    page = opened("hundred", fresh=True)
    looks = """Object.fromEntries([...document.querySelectorAll('#runs-table .pick:checked')].map((box) => {
      const swatch = box.parentElement.querySelector('.swatch');
      return [box.value, [getComputedStyle(swatch).color, swatch.firstElementChild.getAttribute('d')]];
    }))"""
    drawn(page, "lines")
    first = page.value(looks)
    assert len(first) == 6
    assert len({color for color, _ in first.values()}) == 6
    lines = """[...new Set(document.querySelector('#figure-lines .plot')._fullData.filter((t) => t.mode === 'lines'
      && t.fill === 'none' && t.line.width === 2).map((t) => t.line.color))]"""
    assert len(page.value(lines)) == 6
    others = [str(n) for n in range(100) if str(n) not in first][:5]
    for n in others:
        page.value(f"document.querySelector('#runs-table .pick[value=\"{n}\"]').click()")
    more = page.value(looks)
    assert set(more) == {*first, *others}
    assert len({tuple(look) for look in more.values()}) == 11
    assert {n: more[n] for n in first} == first


def test_columns_are_chosen(opened):
    page = opened("four", 1600)
    head = "document.querySelector('#runs-table th[data-key=lambda_min]').hidden"
    page.click(".table-tools[data-for=runs-table] .columns summary")
    was = page.value(head)
    page.click(f".table-tools[data-for=runs-table] .choices input[value='{place(page, 'lambda_min')}']")
    until(lambda: page.value(head) != was)
    page.press("Escape", 27)
    assert page.value("document.querySelector('details.columns').open") is False


# ------------------------------------------------------------------------------------------------ figures


def test_turning_one_surface_turns_all(opened):
    page = opened("four", 1400)
    page.show("#figure-surfaces .plot")
    page.wait("document.querySelectorAll('#figure-surfaces .plot canvas').length >= 4")
    plots = "[...document.querySelectorAll('#figure-surfaces .panel:not([hidden]) .plot')]"
    eye = f"JSON.stringify({plots}.map((p) => p._fullLayout.scene.camera.eye.x.toFixed(3)))"
    before = page.value(eye)
    page.drag("#figure-surfaces .panel[data-panel='0'] .plot", 70, 15)

    def turned() -> bool:
        now = set(json.loads(page.value(eye)))
        return page.value(eye) != before and len(now) == 1

    until(turned)
    page.value("document.querySelector('#figure-surfaces .plot').focus()")
    moved = page.value(eye)
    page.press("ArrowLeft", 37)
    until(lambda: page.value(eye) != moved)


def test_zooming_in_one_figure_over_steps_zooms_in_all(opened):
    page = opened("four")
    page.value("document.querySelector('#figure-losses input[value=step]').click()")
    for chart in ("losses", "schedules", "gradients"):
        drawn(page, chart)
    whole = axis(page, "losses")
    assert axis(page, "schedules") == whole
    page.drag("#figure-losses .plot", 200, 0)
    until(lambda: axis(page, "losses")[1] - axis(page, "losses")[0] < 0.6 * (whole[1] - whole[0]))
    until(lambda: axis(page, "schedules") == pytest.approx(axis(page, "losses")))
    assert axis(page, "gradients") == pytest.approx(axis(page, "losses"))
    drawn(page, "edge")  # drawn only now: it begins where the others are
    assert axis(page, "edge") == pytest.approx(axis(page, "losses"))
    page.value("document.querySelector('#figure-losses .plot').focus()")
    page.press("0", 48)
    until(lambda: axis(page, "losses") == pytest.approx(whole))
    until(lambda: axis(page, "schedules") == pytest.approx(whole))


def test_steps_and_epochs_change_together(opened):
    page = opened("four")
    for chart in ("losses", "schedules"):
        drawn(page, chart)
    page.click("#figure-losses input[data-option=axis][value=epoch] + span")
    until(lambda: axis(page, "losses")[1] < 20)
    until(lambda: axis(page, "schedules") == pytest.approx(axis(page, "losses")))
    assert page.value("document.querySelector('#figure-schedules input[value=epoch]').checked")


def test_the_numbers_of_a_figure_are_saved(opened):
    page = opened("hundred")
    page.show("#figure-losses")
    page.wait("document.querySelector('#figure-losses .plot')._fullLayout")
    page.value("window.saved = []; URL.createObjectURL = (b) => (saved.push(b), 'blob:x'); 0")
    page.value("HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; }; 0")
    page.click("#figure-losses .csv")
    page.wait("window.saved.length")
    text = page.value("window.saved[0].text()")
    assert page.value("window.savedAs") == "losses.csv"
    assert text.splitlines()[0].startswith("run,step,epoch,loss")
    assert "cross_entropy constant,1,0.1," in text
    page.click("#figure-layer-map .csv")
    page.wait("window.saved.length > 1")
    lines = page.value("window.saved[1].text()").splitlines()
    assert lines[0] == "run,step,layer,epoch,log10_gradient_norm"
    assert "undefined" not in "".join(lines[:200])


def test_printing_opens_what_is_folded_and_closes_it_again(opened):
    page = opened("one")
    closed = page.value("document.querySelectorAll('details:not([open])').length")
    assert closed > 2
    page.value("dispatchEvent(new Event('beforeprint')); 0")
    assert page.value("document.querySelectorAll('details:not([open])').length") == 0
    page.value("dispatchEvent(new Event('afterprint')); 0")
    assert page.value("document.querySelectorAll('details:not([open])').length") == closed


def test_what_nobody_scrolled_to_is_printed(opened):
    page = opened("four", fresh=True)
    packed = "[...document.querySelectorAll('script[id^=data-][type=\"application/gzip\"]')]"
    assert page.value(f"{packed}.length") > 0
    page.wait(f"{packed}.every((d) => 'loaded' in document.getElementById('figure-' + d.id.slice(5)).dataset)")
    page.value("dispatchEvent(new Event('beforeprint')); 0")
    empty = page.value(
        "[...document.querySelectorAll('figure[data-chart]')].filter((f) => ![...f.querySelectorAll('.plot')]"
        ".some((p) => p._fullLayout)).map((f) => f.dataset.chart)"
    )
    assert empty == []


# ------------------------------------------------------------------------------------------------ for everybody


@pytest.mark.skipif(not os.environ.get("AXE_CORE"), reason="AXE_CORE names no axe.min.js: npm install axe-core")
@pytest.mark.parametrize(
    ("name", "dark", "width"),
    [("four", False, 380), ("four", False, 1280), ("four", True, 1280), ("one", True, 380), ("hundred", False, 1280)],
)
def test_axe_finds_no_serious_fault(opened, monkeypatch, name, dark, width):
    page = opened(name, width, dark=dark)
    monkeypatch.setattr(page.browser, "patience", 300.0)  # it holds the page for as long as it looks at 20,000 elements
    page.value("document.querySelectorAll('details').forEach((d) => (d.open = true)); 0")
    page.call("Runtime.evaluate", expression=Path(os.environ["AXE_CORE"]).read_text("utf-8"))
    found = page.value(
        "axe.run({ resultTypes: ['violations'] }).then((r) => r.violations"
        ".filter((v) => ['serious', 'critical'].includes(v.impact))"
        ".map((v) => v.id + ': ' + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 140)).join(' | ')))"
    )
    page.value("document.querySelectorAll('main details').forEach((d) => (d.open = false)); 0")
    assert found == []


def test_runs_are_reached_and_drawn_by_keyboard(opened):
    page = opened("four")
    drawn(page, "lines")
    page.value("document.querySelector('#figure-lines .chip').focus()")
    page.press(" ", 32)
    until(lambda: page.value("document.querySelector('#figure-lines .chip').getAttribute('aria-pressed')") == "false")
    until(lambda: page.value("document.querySelector('#figure-lines .plot').data.length") == 3)


# ------------------------------------------------------------------------------------------------ over a training


def test_what_probes_measured_while_training_is_drawn(chrome: Browser, tmp_path):
    probed = {}
    for i, step in enumerate((0, 150, 300)):
        probed["surface", step] = [line(1.0 + i), plane(1.0 + i, 0, 9)]
        probed["calibration", step] = [calibration(0.95, 0.02 * i)]
    path = record(tmp_path / "a.h5", history(0, 300), settings(0), attributes=about(0), probed=probed)
    page = chrome.open(write_report([path], tmp_path / "a.html"), 1280, 900)
    try:
        page.scroll_through()
        for name in ("lines", "surfaces", "reliability"):
            page.show(f"#figure-{name}-steps")
            page.wait(f"document.querySelector('#figure-{name}-steps .plot .main-svg') !== null")
        lines = "[...document.querySelectorAll('#figure-lines-steps .js-line')].map((l) => l.style.stroke)"
        assert len(set(page.value(lines))) == 3
        shown = "document.querySelector('#figure-surfaces-steps .textpoint').textContent.trim()"
        assert page.value(shown) == "step 300"
        page.show("#figure-surfaces-steps")
        page.click("#figure-surfaces-steps input[value='0'] + span")
        page.wait(f"{shown} === 'step 0'")
        bars = "document.querySelectorAll('#figure-reliability-steps .colorbar:not([hidden])').length"
        assert page.value(bars) == 1
        page.show("#figure-reliability-steps")
        page.click("#figure-reliability-steps input[value='2'] + span")
        page.wait(f"{bars} === 0")
        assert page.value("document.documentElement.scrollWidth") <= 1280
        assert page.complaints() == []
    finally:
        page.close()
