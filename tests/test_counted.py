"""Numbers with their nouns: one line, two lines."""

from __future__ import annotations

import pytest

from landscape.counted import counted
from landscape.surface.basin import _Volume, _volume_check


@pytest.mark.parametrize(
    ("n", "words", "said"),
    [
        (1, ("line",), "1 line"),
        (0, ("line",), "0 lines"),
        (12345, ("row",), "12,345 rows"),
        (1, ("batch", "batches"), "1 batch"),
        (2, ("cell is", "cells are"), "2 cells are"),
    ],
)
def test_a_noun_agrees_with_its_number(n, words, said):
    assert counted(n, *words) == said


@pytest.mark.parametrize(("effective", "said"), [(1.001, "1 line rules"), (1.4, "1.4 lines rule")])
def test_lines_that_rule_a_volume_agree_with_their_number(effective, said):
    assert said in _volume_check([_Volume(0.0, 0.0, 0.0, 0.0, effective)], 0).message
