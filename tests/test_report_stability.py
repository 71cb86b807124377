"""The report's sections on stability and second opinions, from results alone."""

from __future__ import annotations

import math

import numpy as np

from landscape.curvature.agreement import Agreement
from landscape.curvature.thresholds import BatchSharpness, Coherence, Stability
from landscape.report.blocks import Notes, Picture, Table
from landscape.report.runs import make_run
from landscape.report.sections import build_sections
from landscape.report.sections.second_opinions import build as build_opinions
from landscape.report.sections.stability import build as build_stability


def margin(ratio: float = 0.5) -> Stability:
    return Stability(
        eigenvalue=ratio * 38,
        residual=0.01,
        threshold=38.0,
        ratio=ratio,
        lr=0.1,
        operator="hessian",
        formula="2 (1 + b) / lr",
        optimizer="sgd",
    )


def batch(threshold: float = 20.0) -> BatchSharpness:
    return BatchSharpness(value=12.0, stderr=1.5, threshold=threshold, batches=8, batch=128)


def coherence() -> Coherence:
    return Coherence(
        sigma=8.4,
        stderr=1.0,
        eigenvalue=0.9,
        threshold=math.nan,
        largest=np.array([1.0, 2.0]),
        samples=2,
        population=2,
        batch=1,
    )


def agreement() -> Agreement:
    return Agreement(
        ours=np.array([2.0, 5.0]),
        theirs=np.array([2.0001, 7.0]),
        difference=np.array([5e-5, 0.2857]),
        tolerance=np.array([1e-3, 0.1]),
        names=("lambda_1", "trace"),
        tools=("ARPACK", "PyHessian"),
    )


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for _, rows in table.groups for row in rows]


def test_stability_shows_the_shares_of_the_thresholds_and_what_they_are_made_of():
    built = build_stability([make_run("a", [margin(), batch(), coherence()]), make_run("b", [batch(math.nan)])])
    assert built is not None
    assert isinstance(built.blocks[0], Picture)
    table = next(b for b in built.blocks if isinstance(b, Table))
    first, second = texts(table)
    assert first == ["a", "sgd", "0.1", "hessian", "19.000", "38.00", "0.5000", "12.0", "20.00", "8.4", "–"]
    assert second == ["b", *["–"] * 6, "12.0", "–", "–", "–"]
    notes = next(b for b in built.blocks if isinstance(b, Notes))
    assert any("margin" in text and "b" in text for _, text in notes.items)


def test_second_opinions_mark_what_disagrees():
    built = build_opinions([make_run("a", [agreement()]), make_run("b", [margin()])])
    assert built is not None
    table, notes = built.blocks
    assert isinstance(table, Table)
    assert isinstance(notes, Notes)
    assert [row[1:3] for row in texts(table)] == [["lambda_1", "ARPACK"], ["trace", "PyHessian"]]
    assert [row.cells[-1].level for _, rows in table.groups for row in rows] == ["pass", "warn"]
    assert texts(table)[1][3:7] == ["5.00000", "7.00000", "0.29", "0.10"]


def test_each_stands_in_its_own_section_and_not_among_the_others():
    runs = [make_run("a", [margin(), batch(), coherence(), agreement()])]
    assert [s.id for s in build_sections(runs) if s.id in ("stability", "second-opinions", "other")] == [
        "stability",
        "second-opinions",
    ]
    assert build_stability([make_run("a", [agreement()])]) is None
    assert build_opinions([make_run("a", [margin()])]) is None
