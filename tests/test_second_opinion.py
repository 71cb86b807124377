"""The comparison with ARPACK and PyHessian: what agrees, what is said where something doesn't, and `--check`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_world
import torch
from torch import nn

from landscape import Task, open_archive
from landscape.curvature import second_opinion
from landscape.curvature.second_opinion import measure_reference


def task() -> Task:
    g = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = 2 * torch.randn(30, 4, generator=g).double(), torch.randint(3, (30,), generator=g)
    return Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=7)


def levels(result) -> dict[str, str]:
    return {c.name: c.level for c in result.checks}


def test_all_agree_within_their_tolerances():
    found = measure_reference(task(), k=2)
    assert found.names == ("lambda_1", "lambda_1", "lambda_2", "lambda_2", "trace")
    assert found.tools == ("ARPACK", "PyHessian", "ARPACK", "PyHessian", "PyHessian")
    assert set(levels(found).values()) == {"pass"}
    assert len(found.checks) == 6
    assert (found.difference <= found.tolerance).all()
    assert (np.abs(found.ours - found.theirs) <= found.difference * np.maximum(found.ours, found.theirs) * 1.001).all()
    assert found.tolerance[1] == 1e-2
    assert found.tolerance[0] < 1e-2
    shown = found.summary()
    assert shown["lambda_1"]["ARPACK"]["agrees"] is True
    assert shown["product"]["PyHessian"]["difference"] < 1e-12
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("tool", "name", "level"),
    [("arpack_eigenpairs", "lambda_1, ARPACK", "fail"), ("pyhessian_eigenpairs", "lambda_1, PyHessian", "warn")],
)
def test_another_eigenvalue_is_said(monkeypatch, tool, name, level):
    right = getattr(second_opinion, tool)

    def wrong(*arguments, **settings):
        found = right(*arguments, **settings)
        return replace(found, values=1.02 * found.values)

    monkeypatch.setattr(second_opinion, tool, wrong)
    found = measure_reference(task())
    assert levels(found)[name] == level
    assert [c.name for c in found.checks if c.level != "pass"] == [name]
    # 2% less what the tools differ by themselves.
    assert next(c.value for c in found.checks if c.name == name) == pytest.approx(0.02, abs=2e-3)
    assert "is allowed" in found.warnings[0]
    assert found.summary()["lambda_1"][name.split(", ")[1]]["agrees"] is False


def test_another_trace_is_said(monkeypatch):
    right = second_opinion.pyhessian_trace
    monkeypatch.setattr(
        second_opinion, "pyhessian_trace", lambda *a, **k: replace(right(*a, **k), value=right(*a, **k).value * 3)
    )
    assert levels(measure_reference(task()))["trace, PyHessian"] == "warn"


class TestCheck:
    @pytest.fixture
    def world(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        small_world.build(tmp_path)

    def test_it_prints_each_difference_beside_its_tolerance_and_keeps_them(self, world):
        text = small_world.done("probe", "tiny.pt", "--only", "performance", "--check")
        rows = [line.split("  ")[1] for line in text.splitlines() if "they differ by" in line]
        assert [r.strip() for r in rows] == ["lambda_1, ARPACK", "lambda_1, PyHessian", "trace, PyHessian"]
        assert "a product by PyHessian and one of ours differ by" in text
        assert "is allowed" in text
        assert "train" in text  # what was asked for is measured, too
        (kept,) = open_archive("tiny.landscape.h5").select("reference")
        assert [c.level for c in kept.result.checks] == ["pass"] * 5  # the second derivative's own, too
        assert kept.result.tools[0] == "ARPACK"

    def test_its_settings_and_json(self, world):
        (shown,) = small_world.results(
            "tiny.pt", "--only", "trace", "--check", "--option", "reference.k=2", "--option", "reference.draws=8"
        )
        assert set(shown["reference"]) == {"lambda_1", "lambda_2", "trace", "product", "products"}
        assert shown["curvature"]["trace"]

    def test_without_it_nothing_is_compared(self, world):
        (shown,) = small_world.results("tiny.pt", "--only", "trace")
        assert "reference" not in shown
