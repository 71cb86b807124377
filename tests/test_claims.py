"""The claims as experiments: each runs, says what was expected and what came, and its rule decides as it says."""

from __future__ import annotations

import importlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

CLAIMS = Path(__file__).resolve().parents[1] / "examples" / "claims"
SCRIPTS = ("large_batches", "warmup", "skip_connections", "edge_of_stability", "squentropy", "step_decay")
VERDICTS = ("held", "did not hold", "can't be told")


@pytest.fixture
def load(monkeypatch):
    """Import a script as it imports its neighbours: from its own folder."""
    monkeypatch.syspath_prepend(str(CLAIMS))

    def imported(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield imported
    for name in (*SCRIPTS, "common", "run_all"):
        sys.modules.pop(name, None)


def test_every_script_is_tested_here_and_run_by_run_all(load):
    assert {p.stem for p in CLAIMS.glob("*.py")} == {*SCRIPTS, "common", "run_all"}
    assert set(load("run_all").CLAIMS) == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_claim_says_what_was_expected_and_what_came(name, load, tmp_path):
    claim = load("common").timed(load(name).measure, range(2), quick=True, figures=tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    for finding in claim.findings:
        assert len(finding.values) == 2
        assert np.isfinite(finding.values).all(), finding.expected
        assert finding.verdict in VERDICTS
    assert any(f.decides for f in claim.findings)
    said = str(claim)
    for word in ("source", "setting", "rule"):
        assert re.search(rf"^  {word} +\S", said, re.MULTILINE)
    for word in ("expected", "came", "here"):
        assert len(re.findall(rf"^  {word} +\S", said, re.MULTILINE)) == len(claim.findings)
    last = said.splitlines()[-1]
    assert re.fullmatch(rf"  => ({'|'.join(VERDICTS)})  \(\d+ s of processor time\)", last)
    assert "nan" not in said


def test_gradient_descent_comes_to_the_edge_of_stability(load):
    """Deterministic but for the seed: lambda_max of the last third is 2 / rate within 20%."""
    edge, common = load("edge_of_stability"), load("common")
    x, y = common.digits(0, 200)[0]
    record = edge.descend((edge.CONTRAST * x, y), 0.3, 0, 600)
    largest = record.column("lambda_max")
    assert record.column("threshold") == pytest.approx(2 / 0.3)
    assert largest[0] < 0.9 * 2 / 0.3
    assert largest[-8:].mean() == pytest.approx(2 / 0.3, rel=0.2)


class TestRule:
    """The interval over seeds decides; whatever isn't clear can't be told."""

    @pytest.mark.parametrize(
        ("values", "verdict"),
        [
            ([1.0, 1.1, 0.9], "held"),
            ([-1.0, -1.1, -0.9], "did not hold"),
            ([1.0, -1.0, 0.5], "can't be told"),
            ([0.0, 0.0, 0.0], "can't be told"),
            ([1.0], "can't be told"),
            ([math.nan, math.nan], "can't be told"),
            ([1.0, 1.1, 0.9, math.nan], "held"),
        ],
    )
    def test_sign(self, values, verdict, load):
        assert load("common").Finding("above 0", values).verdict == verdict

    @pytest.mark.parametrize(
        ("values", "verdict"),
        [
            ([1.0, 1.01], "held"),
            ([2.0, 2.01], "did not hold"),
            ([0.5, 0.51], "did not hold"),
            ([1, 1.5], "can't be told"),
        ],
    )
    def test_limits(self, values, verdict, load):
        assert load("common").Finding("within 0.8 to 1.2", values, above=0.8, below=1.2).verdict == verdict

    def test_a_claim_holds_where_all_that_decides_does(self, load):
        common = load("common")
        yes, no, open_ = ([s + 0.01 * i for i in range(3)] for s in (1.0, -1.0, -0.01))

        def verdict(*findings):
            return common.Claim("", "", "", "", findings).verdict

        held, against, unclear = (common.Finding("", v) for v in (yes, no, open_))
        aside = common.Finding("", no, decides=False)
        assert (held.verdict, against.verdict, unclear.verdict) == VERDICTS
        assert verdict(held, aside) == "held"
        assert verdict(held, unclear) == "can't be told"
        assert verdict(held, unclear, against) == "did not hold"

    def test_runs_without_a_number_are_counted(self, load):
        came = load("common").Finding("above 1", [0.0, 0.1, math.nan], log=True).came
        assert came.startswith("x 1.05 [")
        assert came.endswith("2 seeds (1 without a number)")


def test_run_all_writes_a_table(tmp_path):
    command = [sys.executable, "-W", "error", str(CLAIMS / "run_all.py"), "--quick", "--only", "squentropy"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    head, line, *rows = done.stdout.splitlines()
    assert head == "| claim | expected | came (mean, 95% interval) | here |"
    assert line == "| --- | --- | --- | --- |"
    assert len(rows) == 6
    assert all(row.count(" | ") == 3 for row in rows)
    assert "Squentropy" in done.stderr
    assert not list(tmp_path.iterdir())
