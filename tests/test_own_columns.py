"""Numbers of users' own measurements beside ours: in tables, comparisons, conditions and means over seeds."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import report_samples as samples
from click.testing import CliRunner

from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.cli.main import main
from landscape.report.markdown import markdown
from landscape.report.measures import measures
from landscape.report.pairs import compare_runs
from landscape.report.runs import make_run, unique
from landscape.report.tables import as_csv
from landscape.results import Result, StoredResult, array


@dataclass(frozen=True, kw_only=True)
class Margins(Result, kind="our_margins"):
    """A user's measurement with each kind of scalar."""

    level: np.ndarray = array("level", coordinate=True)
    margin: np.ndarray = array("level", units="logit")
    mean: float = array(units="logit", stderr="mean_stderr", doc="mean margin")
    mean_stderr: float = array(units="logit")
    share: float = array(interval="share_interval", doc="share of positive margins")
    share_interval: np.ndarray = array("bound")
    samples: int = array()
    flag: bool = array()


def margins(mean: float, stderr: float = 0.1, **others) -> Margins:
    given = {"share": 0.5, "share_interval": np.array([0.4, 0.7]), "samples": 40, "flag": True} | others
    return Margins(level=np.arange(3.0), margin=np.arange(3.0), mean=mean, mean_stderr=stderr, **given)


def columns(*results: Result) -> dict:
    run = make_run("a", results)
    return {m.key: m.read(run) for m in measures([run]) if m.group == "Own"}


def test_each_scalar_is_a_column_with_the_error_it_declares() -> None:
    found = columns(margins(2.0))
    assert set(found) == {"our_margins.mean", "our_margins.share", "our_margins.samples"}
    mean, share, count = found.values()
    assert (mean.number, mean.error, mean.how) == (2.0, 0.1, "standard error")
    assert (mean.low, mean.high) == pytest.approx((2 - 1.959964 * 0.1, 2 + 1.959964 * 0.1), rel=1e-12)
    assert (share.number, share.low, share.high, share.how) == (0.5, 0.4, 0.7, "interval")
    assert count.number == 40
    assert np.isnan(count.error)
    assert columns(margins(np.nan))["our_margins.mean"].missing == "not finite"
    assert columns(margins(1.0, status="failed")) == {}


def test_what_this_package_measures_has_its_own_columns_and_no_others() -> None:
    assert columns(*(r for _, r in samples.sample_runs(1)[0].every())) == {}


def test_a_kind_whose_class_is_not_known_has_the_same_columns() -> None:
    known = margins(2.0)
    stored = StoredResult(stored_kind="our_margins", stored=known.variables())
    assert str(columns(stored)) == str(columns(known))


def test_two_runs_are_compared_by_them_and_a_condition_may_name_them(tmp_path: Path) -> None:
    runs = unique([make_run("a", [margins(2.0)]), make_run("b", [margins(2.6, 0.2)])])
    compared = compare_runs(*runs)["our_margins.mean"]
    half = 1.959964 * np.hypot(0.1, 0.2)
    assert compared.label == "our margins mean"
    found = (compared.difference.value, compared.difference.low, compared.difference.high)
    assert found == pytest.approx((0.6, 0.6 - half, 0.6 + half), rel=1e-9)
    paths = [str(tmp_path / f"{name}.h5") for name in "ab"]
    for path, value in zip(paths, (2.0, 2.6), strict=True):
        save_archive(Path(path), [margins(value)], subject=Subject("a.pt", "00ab34cd56", "digits", 1, 1, "a", {}))
    outcome = CliRunner().invoke(main, ["compare", *paths, "--fail-if", "our_margins.mean > +0.5"])
    assert outcome.exit_code == 1, outcome.output
    assert "FAIL our_margins.mean > +0.5" in outcome.output
    assert CliRunner().invoke(main, ["compare", *paths, "--fail-if", "our_margins.mean > +0.7"]).exit_code == 0


def test_tables_have_them() -> None:
    runs = unique([make_run("a", [margins(2.0)]), make_run("b", [])])
    first, second = csv.DictReader(io.StringIO(as_csv(runs)))
    assert (first["our_margins.mean"], first["our_margins.mean_error"]) == ("2.0", "0.1")
    assert second["our_margins.mean"] == ""
    assert "our margins mean" in markdown(runs)
