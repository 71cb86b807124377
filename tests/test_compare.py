"""Two runs in a pipeline: the grammar of conditions, the differences behind it, the exit status."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_samples as samples
from click.testing import CliRunner

from landscape.cli.main import main
from landscape.comparison.conditions import Clause, Joined, Sides, parse_condition
from landscape.comparison.paired import Difference
from landscape.errors import LandscapeError, MeasurementError
from landscape.report.pairs import compare_runs, pair_up
from landscape.report.runs import make_run, unique

NAN = math.nan


def sides(first: float, second: float, half: float = 0.1) -> Sides:
    d = second - first
    ends = [(v, v - half / 2, v + half / 2) for v in (first, second)]
    return Sides(ends[0], ends[1], Difference(d, d - half, d + half))


VALUES = {"ece": sides(0.2, 0.5), "nll": sides(2.0, 2.05), "zero": sides(0.0, 1.0), "bare": sides(1.0, 2.0, NAN)}

# ------------------------------------------------------------------------------------------------ grammar


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("ece > +0.01", Clause("ece", ">", 0.01, "change")),
        ("ece>+.01", Clause("ece", ">", 0.01, "change")),
        ("test_accuracy < -1e-2", Clause("test_accuracy", "<", -0.01, "change")),
        ("sharpness.sam >= +5%", Clause("sharpness.sam", ">=", 0.05, "share")),
        ("ece <= 0.1", Clause("ece", "<=", 0.1, "own")),
        ("order > +1", Clause("order", ">", 1.0, "change")),  # a name that begins like a word
    ],
)
def test_a_comparison_is_read(text: str, clause: Clause) -> None:
    assert parse_condition(text) == clause


def test_and_binds_before_or() -> None:
    found = parse_condition("a > 1 or b > 2 and c < 3")
    assert isinstance(found, Joined)
    assert found.word == "or"
    assert str(found) == "a > 1 or b > 2 and c < 3"
    assert isinstance(found.parts[1], Joined)
    assert found.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "can't be read at its end"),
        ("ece", "can't be read at its end"),
        ("ece >", "can't be read at its end"),
        ("ece = 1", "at '= 1'"),
        ("ece > +0.01 and", "at its end"),
        ("ece > +0.01 nll > 1", "at 'nll > 1'"),
        ("and > 1", "at 'and > 1'"),
        ("ece > and", "at 'and'"),
        ("__import__('os').system('x') > 1", r"read at .\('os'\)"),
        ("ece > 5%", r"has no sign: a share is a change, write \+5%"),
        ("ece > nan", "at 'nan'"),
        ("1 > ece", "at '1 > ece'"),
    ],
)
def test_anything_else_is_refused_at_its_place(text: str, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        parse_condition(text)


# ------------------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("text", "holds", "sure"),
    [
        ("ece > +0.1", True, True),  # +0.3 [0.2, 0.4]
        ("ece > +0.25", True, False),
        ("ece > +0.35", False, False),
        ("ece > +0.5", False, True),
        ("ece > 0.4", True, True),  # 0.5 [0.45, 0.55]
        ("ece > +100%", True, False),  # +150% [100, 200]
        ("nll > +5%", False, False),  # +2.5% [-2.5, 7.5]
        ("nll < -10%", False, True),
        ("bare > +0.5", True, None),
        ("ece > +0.1 and ece > +0.25", True, False),
        ("ece > +0.1 and ece > +0.5", False, True),
        ("ece > +0.1 or ece > +0.35", True, True),
        ("ece > +0.25 or bare > +0.5", True, None),
        ("ece > +0.1 or bare > +0.5", True, True),
        ("ece > +0.1 and bare > +0.5", True, None),
        ("ece > +0.35 or ece > +0.5", False, False),
    ],
)
def test_a_condition_holds_surely_or_not(text: str, holds: bool, sure: bool | None) -> None:
    found = parse_condition(text).judge(VALUES)
    assert (found.holds, found.sure) == (holds, sure)


def test_what_cannot_be_judged_is_an_error() -> None:
    for text, message in (
        ("mce > 0.1", "'mce' can't be compared: both runs must have it; they share ece, nll, zero, bare"),
        ("zero > +5%", "zero is 0 in the first run"),
        ("gone > +1", "gone is not a number"),
    ):
        with pytest.raises(MeasurementError, match=message):
            parse_condition(text).judge({**VALUES, "gone": sides(NAN, 1.0)} if "gone" in text else VALUES)


# ------------------------------------------------------------------------------------------------ numbers


def test_shared_samples_are_compared_in_pairs_and_the_rest_is_not() -> None:
    a, b = samples.sample_runs(2)
    found = compare_runs(a, b)
    assert found["ece"].how == "paired"
    assert found["lambda_max"].how == "residual"
    assert found["trace"].how == "independent"
    assert found["test_accuracy"].how == "independent"  # 0.97 of other data than the scores'
    trace = found["trace"].difference
    pair: Any = (a.get("trace"), b.get("trace"))
    assert trace.value == pytest.approx(pair[1].value - pair[0].value)
    half = 1.959964 * math.hypot(pair[0].stderr, pair[1].stderr)
    assert (trace.low, trace.high) == pytest.approx((trace.value - half, trace.value + half))


def _with_blocks(shift: float, fingerprint: str = "d4e5f6", seed: int = 0) -> Any:
    """A run whose blocks vary widely, the same way in every run of this seed; the test split has fewer."""
    rng = np.random.default_rng(seed)
    loss, weight = rng.normal(2.0, 1.0, (2, 8)) + shift, rng.integers(5, 9, (2, 8)).astype(float)
    loss[:, 0] += 3 * shift
    loss[1, 6:] = weight[1, 6:] = np.nan
    mean = np.nansum(loss * weight, axis=1) / np.nansum(weight, axis=1)
    made = samples.performance()
    changes = {"loss": mean, "block_loss": loss, "block_weight": weight, "fingerprints": ("a1b2c3", fingerprint)}
    return make_run("a", [replace(made, loss_stderr=np.array([0.4, 0.4]), **changes)])


def test_losses_on_one_draw_are_compared_in_pairs_of_blocks() -> None:
    a, b = unique([_with_blocks(0.0), _with_blocks(0.01)])
    found = compare_runs(a, b)
    assert [found[k].how for k in ("train_loss", "test_loss", "gap_loss", "train_accuracy")] == [
        "paired", "paired", "paired", "independent",
    ]  # fmt: skip
    weight = np.asarray(a.get("performance").block_weight)[1, :6]  # type: ignore[union-attr]
    change = np.full(6, 0.01)
    change[0] = 0.04
    value = np.average(change, weights=weight)
    spread = math.sqrt(6 / 5 * ((weight * (change - value)) ** 2).sum()) / weight.sum()
    difference = found["test_loss"].difference
    assert difference.value == pytest.approx(value)
    assert difference.high - difference.value == pytest.approx(2.570582 * spread)  # Student's, 5 degrees of freedom
    assert found["test_loss"].difference.value == pytest.approx(
        found["test_loss"].second.number - found["test_loss"].first.number
    )


def test_the_accuracy_of_the_paired_predictions_is_paired_too() -> None:
    runs = []
    for run in samples.sample_runs(2):
        share = run.get("calibration").accuracy  # type: ignore[union-attr]
        made = replace(run.get("performance"), accuracy=np.array([0.99, share]))  # type: ignore[type-var]
        runs.append(replace(run, results={**run.results, "performance": (made,)}))
    found = compare_runs(*runs)
    assert found["test_accuracy"].how == "paired"
    assert found["test_accuracy"].difference == found["accuracy"].difference
    assert found["train_accuracy"].how == "independent"


def test_losses_on_other_draws_are_not() -> None:
    found = compare_runs(*unique([_with_blocks(0.0), _with_blocks(0.01, "other")]))
    assert [found[k].how for k in ("train_loss", "test_loss", "gap_loss")] == ["paired", "independent", "independent"]
    without = unique([make_run("a", [samples.performance()]), _with_blocks(0.01)])  # from an older archive
    assert compare_runs(*without)["test_loss"].how == "independent"


def test_runs_with_nothing_in_common_share_no_number() -> None:
    a, b = unique([make_run("a", [samples.trace()]), make_run("b", [samples.plane(n=5)])])
    assert compare_runs(a, b) == {}


def test_checkpoints_are_paired_by_name() -> None:
    first = [make_run(n, [], checkpoint=f"runs/{n}.pt") for n in ("x", "y")]
    second = [make_run(n, [], checkpoint=f"runs/{n}.pt") for n in ("y", "z")]
    assert [(a.name, b.name) for a, b in pair_up(first, second)] == [("y", "y")]
    assert [(a.name, b.name) for a, b in pair_up(first[:1], second[1:])] == [("x", "z")]
    assert [(a.name, b.name) for a, b in pair_up(first, second, ["x.pt", "z"])] == [("x", "z")]
    with pytest.raises(LandscapeError, match="choose with --checkpoint"):
        pair_up(first, [second[1]])
    with pytest.raises(LandscapeError, match="no checkpoint 'q'; there are y, z"):
        pair_up(first, second, ["x", "q"])
    with pytest.raises(LandscapeError, match="got 3 names"):
        pair_up(first, second, ["x", "y", "z"])


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    first, second = samples.write_archives(tmp_path_factory.mktemp("compare"), 2, points=5)
    return str(first), str(second)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["compare", *arguments])


def test_the_exit_status_says_whether_a_condition_holds(archives: tuple[str, str]) -> None:
    assert call(*archives).exit_code == 0
    done = call(*archives, "--fail-if", "trace > +1000")
    assert done.exit_code == 0
    assert "ok   trace > +1000: does not hold, over the whole interval" in done.stdout
    done = call(*archives, "--fail-if", "trace > +1000", "--fail-if", "trace < -1")
    assert done.exit_code == 1
    assert "FAIL trace < -1: holds, over the whole interval (trace -" in done.stdout


def test_within_the_uncertainty_it_fails_unless_it_must_be_sure(archives: tuple[str, str]) -> None:
    shown = json.loads(call(*archives, "--json").stdout)["comparisons"][0]["differences"]["test_accuracy"]
    low, value = shown["interval"][0], shown["difference"]
    between = f"test_accuracy > {(low + value) / 2:+.6f}"
    assert call(*archives, "--fail-if", between).exit_code == 1
    done = call(*archives, "--fail-if", between, "--sure")
    assert done.exit_code == 0
    assert "holds, within the uncertainty" in done.stdout


def test_the_json_is_one_strict_object(archives: tuple[str, str]) -> None:
    done = call(*archives, "--json", "--fail-if", "ece < -0.5")
    shown = json.loads(done.stdout)
    assert (shown["schema"], shown["failed"]) == (1, False)
    (found,) = shown["comparisons"]
    assert found["conditions"] == [{"condition": "ece < -0.5", "holds": False, "sure": True, "failed": False}]
    assert found["differences"]["ece"]["compared"] == "paired"
    assert found["first"]["archive"] == archives[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-if", "ece is bad"], "can't be read at 'is bad'"),
        (["--fail-if", "mce > 0.1"], "they share"),
        (["--checkpoint", "nobody"], "there is no checkpoint 'nobody'"),
    ],
)
def test_bad_conditions_are_one_line(archives: tuple[str, str], arguments: list[str], message: str) -> None:
    done = call(*archives, *arguments)
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_missing_archive_is_one_line(archives: tuple[str, str], tmp_path: Path) -> None:
    done = call(archives[0], str(tmp_path / "none.h5"))
    assert done.exit_code == 1
    assert "no archive at" in done.output
