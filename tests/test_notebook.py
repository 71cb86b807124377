"""What a notebook shows of results and archives: numbers, a picture, and nothing that an archive could smuggle in."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report_samples as samples

from landscape.archive.reader import open_archive
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.writer import ArchiveWriter
from landscape.results import Check

EVIL = '<script>alert("x")</script>'


class Tags(HTMLParser):
    """Collects the tags, and fails where they don't nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("result", samples.results(0, 5), ids=lambda r: r.kind)
def test_every_result_has_a_table_and_a_picture(result) -> None:
    text = result._repr_html_()
    assert {"table", "tr"} <= Tags(text).seen or result.kind == "sample_scores"
    if result.kind != "sample_scores":
        assert "data:image/png;base64," in text


def test_a_number_has_its_uncertainty_and_loud_checks_are_shown() -> None:
    trace = replace(samples.trace(), checks=(Check("a", "pass", "fine"), Check("b", "fail", EVIL)), warnings=(EVIL,))
    text = trace._repr_html_()
    assert re.search(r"<td>value</td><td>\d+\.?\d* ± \d", text)
    assert "1 of 2 checks pass" in text
    assert "FAIL b" in text
    assert "<script" not in text
    assert Tags(text).seen <= {"div", "b", "small", "table", "tr", "td", "ul", "li", "img"}


def test_a_result_without_a_picture_says_why() -> None:
    text = replace(samples.plane(n=3), loss=np.full((3, 3), np.nan))._repr_html_()
    assert "no figure: no point of this plane is finite" in text
    assert "center loss" in text


def test_an_archive_shows_its_checkpoints_escaped(tmp_path: Path) -> None:
    for name in (EVIL, "b"):
        subject = Subject(f"{name}.pt", name, "digits", name=name)
        save_archive(tmp_path / "run.h5", samples.results(0, 5), subject=subject, append=name == "b")
    text = open_archive(tmp_path / "run.h5")._repr_html_()
    assert {"table", "img"} <= Tags(text).seen
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "λ max" in text


def test_an_empty_and_a_damaged_archive_are_shown(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "run.h5"):
        pass
    archive = open_archive(tmp_path / "run.h5")
    assert "no results" in archive._repr_html_()
    archive.path.write_bytes(b"")
    assert "is not an HDF5 file" in archive._repr_html_()


def test_results_stay_light_until_a_notebook_asks() -> None:
    code = "import sys, landscape.results, landscape.archive.reader\n"
    code += "print(*(n in sys.modules for n in ('matplotlib', 'torch')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
