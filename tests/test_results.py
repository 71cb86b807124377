"""What every Result can do: describe itself, survive a round trip, print in a few lines."""

from __future__ import annotations

import subprocess
import sys
from typing import get_type_hints

import numpy as np
import pytest
from torch import nn
from untouched import data, net

from landscape import Task, draw, plane
from landscape.curvature.thresholds import StabilityThreshold
from landscape.errors import MeasurementError
from landscape.results import RESULT_MODULES, Result, StoredResult, Variable, measurements, rebuild


def test_printing_shows_the_summary_not_the_arrays():
    text = str(plane(Task(net(), nn.CrossEntropyLoss(), data())))
    assert text.startswith("Plane, complete")
    assert "center_loss" in text
    assert len(text.splitlines()) < 15


@pytest.mark.parametrize("kind", ["eigenvalues", "calibration", "trace", "plane"])
def test_a_result_that_failed_says_why_rather_than_stumble_over_numbers_it_lacks(kind):
    """As an archive gives it back: what a task could not give is recorded as its kind, without any number."""
    check = {"name": "measured", "level": "fail", "message": "no second derivative"}
    failed = rebuild(kind, {}, {"status": "failed", "checks": [check]})
    assert str(failed) == f"{type(failed).__name__}, failed\n  measured: no second derivative"
    with pytest.raises(MeasurementError, match=f"nothing to draw: {kind} was not measured .no second derivative"):
        draw(failed)


def test_printing_a_result_tells_its_warnings_and_notes():
    found = StabilityThreshold(threshold=2.0, warnings=("half of it is missing",), notes=("measured in float32",))
    assert str(found).splitlines()[-2:] == ["  warning: half of it is missing", "  note: measured in float32"]


def test_an_unknown_kind_comes_back_with_its_numbers():
    found = rebuild("mine", {"x": Variable(np.arange(3.0), ("k",)), "s": Variable(np.array(2.0), ())}, {"who": "me"})
    assert isinstance(found, StoredResult)
    assert found.x.tolist() == [0, 1, 2]
    assert (found.s, found.who) == (2.0, "me")
    assert "s: 2" in str(found)


def test_what_any_measurement_gives_is_read_as_its_own_class_without_torch():
    given = {
        m.name: get_type_hints(m.run)["return"] for m in measurements().values() if "landscape" in m.run.__module__
    }
    unknown = {n: c.__module__ for n, c in given.items() if c.__module__ not in RESULT_MODULES and c is not Result}
    assert unknown == {}
    code = (
        f"import sys, importlib; [importlib.import_module(m) for m in {RESULT_MODULES!r}]; print(sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"'torch'", "'scipy.stats'", "'sklearn'"} & set(loaded.strip("[]\n").split(", "))
