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
import torch
from click.testing import CliRunner
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score

from landscape import Task
from landscape.archive.save import save_archive
from landscape.calibration.quantile_heads import quantile_coverage
from landscape.class_measure import measure_classes
from landscape.cli.main import main
from landscape.comparison.conditions import Clause, Joined, Sides, parse_condition
from landscape.comparison.paired import Difference, block_difference, independent_difference
from landscape.errors import LandscapeError, MeasurementError
from landscape.evaluation import evaluate_checkpoint
from landscape.report.pairs import compare_runs, pair_up
from landscape.report.runs import make_run, unique

NAN = math.nan


def sides(first: float, second: float, half: float = 0.1) -> Sides:
    d = second - first
    ends = [(v, v - half / 2, v + half / 2) for v in (first, second)]
    return Sides(ends[0], ends[1], Difference(d, d - half, d + half))


VALUES = {
    "ece": sides(0.2, 0.5),
    "nll": sides(2.0, 2.05),
    "zero": sides(0.0, 1.0),
    "bare": sides(1.0, 2.0, NAN),
    "elbo": sides(-2.0, -1.0),
}

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
        ("elbo > +40%", True, True),  # +50% [45, 55] of 2: up is up where a number is negative, too
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


def _classified(model: torch.nn.Module, n: int, **settings: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """A run of a model on two splits of n samples, and whether each is right, as torch says directly."""
    g = torch.Generator().manual_seed(5)
    x, y = torch.randn(2, n, 4, generator=g), torch.randint(3, (2, n), generator=g)
    found = evaluate_checkpoint(Task(model, torch.nn.CrossEntropyLoss(), (x[0], y[0]), (x[1], y[1]), **settings))
    with torch.no_grad():
        train, test = ((model(a).argmax(1) == b).double().numpy() for a, b in zip(x, y, strict=True))
    return make_run("a", [found]), train, test


def _models() -> list[torch.nn.Linear]:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    with torch.no_grad():
        for p, q in zip(first.parameters(), second.parameters(), strict=True):
            q.copy_(p + 0.1 * torch.randn_like(p))
    return [first, second]


@pytest.mark.parametrize("batch_size", [256, 7])
def test_accuracies_on_one_draw_are_paired_sample_by_sample(batch_size: int) -> None:
    """With as many blocks as samples the standard error is the textbook one of the samples' differences."""
    (a, *first), (b, *second) = (_classified(m, 60, batch_size=batch_size) for m in _models())
    found = compare_runs(*unique([a, b]))
    half = {}
    for split, one, other in zip(("train", "test"), first, second, strict=True):
        change, difference = other - one, found[f"{split}_accuracy"].difference
        assert np.any(change)
        assert found[f"{split}_accuracy"].how == "paired"
        assert difference.value == pytest.approx(change.mean(), abs=1e-12)
        half[split] = 2.000995 * math.sqrt(np.var(change, ddof=1) / 60)  # Student's, 59 degrees of freedom
        assert difference.high - difference.value == pytest.approx(half[split], rel=1e-6)
        alone = math.sqrt(sum(v.mean() * (1 - v.mean()) / 60 for v in (one, other)))
        assert half[split] < 1.96 * alone
    gap = found["gap_accuracy"]
    assert gap.how == "paired"
    assert gap.difference.value == pytest.approx(gap.second.number - gap.first.number, abs=1e-12)
    assert gap.difference.high - gap.difference.value == pytest.approx(math.hypot(*half.values()), rel=1e-6)


def test_accuracies_of_many_samples_are_paired_in_blocks() -> None:
    (a, one, _), (b, other, _) = (_classified(m, 6400, batch_size=10_000) for m in _models())
    difference = compare_runs(*unique([a, b]))["train_accuracy"].difference
    means = (other - one).reshape(64, 100).mean(1)
    assert difference.value == pytest.approx(means.mean(), abs=1e-12)
    assert difference.high - difference.value == pytest.approx(
        1.998341 * math.sqrt(np.var(means, ddof=1) / 64), rel=1e-6
    )


def test_accuracies_of_pixels_are_paired_by_pictures_and_leave_out_what_is_ignored() -> None:
    g = torch.Generator().manual_seed(6)
    x, y = torch.randn(20, 4, 5, 5, generator=g), torch.randint(3, (20, 5, 5), generator=g)
    y[torch.rand(20, 5, 5, generator=g) < 0.3] = -100
    y[3] = -100  # a picture in which nothing counts
    runs, rights = [], []
    for linear in _models():
        model = torch.nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            model.weight.copy_(linear.weight[:, :, None, None])
            model.bias.copy_(linear.bias)  # type: ignore[union-attr]
            rights.append(((model(x).argmax(1) == y) & (y != -100)).flatten(1).sum(1).double().numpy())
        runs.append(
            make_run("a", [evaluate_checkpoint(Task(model, torch.nn.CrossEntropyLoss(), (x, y), batch_size=6))])
        )
    counts = (y != -100).flatten(1).sum(1).double().numpy()
    difference = compare_runs(*unique(runs))["train_accuracy"].difference
    value = (rights[1] - rights[0]).sum() / counts.sum()
    parts = (rights[1] - rights[0] - value * counts)[counts > 0]
    assert len(parts) == 19
    assert difference.value == pytest.approx(value, abs=1e-12)
    spread = math.sqrt(19 / 18 * (parts**2).sum()) / counts.sum()
    assert difference.high - difference.value == pytest.approx(2.100922 * spread, rel=1e-6)


def _segmented(number: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """A run with class scores of 20 pictures of 25 pixels, with the labels and what it predicts, (20, 25)."""
    g = torch.Generator().manual_seed(7)
    x, y = torch.randn(20, 4, 5, 5, generator=g), torch.randint(3, (20, 5, 5), generator=g)
    linear, model = _models()[number], torch.nn.Conv2d(4, 3, 1)
    with torch.no_grad():
        model.weight.copy_(linear.weight[:, :, None, None])
        model.bias.copy_(linear.bias)  # type: ignore[union-attr]
        predicted = model(x).argmax(1)
    found = measure_classes(Task(model, torch.nn.CrossEntropyLoss(), test=(x, y), batch_size=6))
    return make_run("a", [found]), y.flatten(1).numpy(), predicted.flatten(1).numpy()


def test_means_over_the_classes_are_paired_by_pictures() -> None:
    """Against scikit-learn's scores without each picture: the jackknife of the difference."""
    (a, y, one), (b, _, other) = _segmented(0), _segmented(1)
    found = compare_runs(*unique([a, b]))
    scores = {
        "mean_iou": lambda y, p: jaccard_score(y, p, average="macro"),
        "mean_f1": lambda y, p: f1_score(y, p, average="macro"),
        "balanced_accuracy": balanced_accuracy_score,
    }
    for name, score in scores.items():
        value = score(y.ravel(), other.ravel()) - score(y.ravel(), one.ravel())
        left = [np.delete(np.arange(20), i) for i in range(20)]
        without = np.array([score(y[i].ravel(), other[i].ravel()) - score(y[i].ravel(), one[i].ravel()) for i in left])
        half = 2.093024 * math.sqrt(19 / 20 * ((without - without.mean()) ** 2).sum())  # Student's, 19 of freedom
        compared = found[name]
        assert compared.how == "paired"
        assert compared.difference.value == pytest.approx(value, abs=1e-12)
        assert compared.difference.high - compared.difference.value == pytest.approx(half, rel=1e-5)  # kept in float32
        alone = independent_difference(*((v.number, v.low, v.high) for v in (compared.first, compared.second)))
        assert half < 0.8 * (alone.high - alone.value)
    same = compare_runs(*unique([a, _segmented(0)[0]]))["mean_iou"].difference
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def _quantiles(shift: float, levels: tuple[float, ...] = (0.1, 0.5, 0.9)) -> tuple[Any, np.ndarray]:
    """A run with predicted quantiles of 40 series of 6, and the mean pinball loss of each series."""
    rng = np.random.default_rng(3)
    y = rng.standard_normal((40, 1)) + 0.5 * rng.standard_normal((40, 6))
    z = np.array(levels) * 2 - 1 + shift * rng.standard_normal((40, 6, 1)) + np.zeros((40, 6, len(levels)))
    off = y[..., None] - z
    each = np.maximum(np.array(levels) * off, (np.array(levels) - 1) * off).mean(axis=(1, 2))
    found = quantile_coverage(quantiles=z, targets=y, levels=levels)
    return make_run("a", [replace(found, fingerprint="abc")]), each


def test_pinball_losses_are_paired_by_series() -> None:
    (a, one), (b, other) = _quantiles(0.0), _quantiles(0.2)
    compared = compare_runs(*unique([a, b]))["pinball"]
    assert compared.how == "paired"
    assert compared.difference.value == pytest.approx((other - one).mean(), rel=1e-12)
    half = 2.022691 * math.sqrt(np.var(other - one, ddof=1) / 40)  # Student's, 39 degrees of freedom
    assert compared.difference.high - compared.difference.value == pytest.approx(half, rel=1e-6)
    assert half < 0.5 * 1.96 * math.hypot(one.std() / 40**0.5, other.std() / 40**0.5)
    assert compare_runs(*unique([a, _quantiles(0.2, (0.2, 0.5, 0.8))[0]]))["pinball"].how == "independent"


def test_class_scores_and_quantiles_of_other_draws_or_older_archives_are_compared_as_before() -> None:
    for kind, key, made, older in (
        ("class_scores", "mean_iou", (_segmented(0)[0], _segmented(1)[0]), {"pull": None, "held": None}),
        ("quantile_coverage", "pinball", (_quantiles(0.0)[0], _quantiles(0.2)[0]), {"block_pinball": None}),
    ):
        for changes in (older, {"fingerprint": "other"}):
            a, b = (make_run("a", [r.get(kind)]) for r in made)  # type: ignore[list-item]
            b = make_run("a", [replace(b.get(kind), **changes)])  # type: ignore[type-var]
            assert compare_runs(*unique([a, b]))[key].how == "independent"


def test_a_run_and_itself_have_the_same_accuracy_exactly() -> None:
    a, b = unique([_classified(_models()[0], 100)[0] for _ in range(2)])
    difference = compare_runs(a, b)["train_accuracy"].difference
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_paired_accuracies_cover_and_are_narrower() -> None:
    """400 data sets: the true difference lies inside in 92% at least (95% is meant; four standard errors below)."""
    rng, n = np.random.default_rng(0), 640
    truth, inside, narrower = 0.03, 0, 0
    for _ in range(400):
        one = rng.random(n) < 0.8
        other = np.where(one, rng.random(n) < 0.98, rng.random(n) < 0.23).astype(float)  # .784 + .046 against .8
        blocks = [v.reshape(64, 10).mean(1) for v in (one.astype(float), other)]
        difference = block_difference(*blocks, np.full(64, 10.0))
        inside += difference.low <= truth <= difference.high
        alone = 1.96 * math.sqrt(sum(v.mean() * (1 - v.mean()) / n for v in (one.astype(float), other)))
        narrower += difference.high - difference.value < alone
    assert inside >= 0.92 * 400
    assert narrower >= 0.99 * 400


@pytest.mark.parametrize("lacking", ["both", "one", "draw"])
def test_accuracies_without_blocks_or_of_other_draws_are_compared_as_before(lacking: str) -> None:
    runs = [_classified(m, 60)[0] for m in _models()]
    older = {"block_accuracy": None, "block_count": None}
    changes: list[dict[str, Any]] = {
        "both": [older, older],
        "one": [{}, older],
        "draw": [{}, {"fingerprints": ("x", "y")}],
    }[lacking]
    runs = [
        make_run("a", [replace(r.get("performance"), **c)])  # type: ignore[type-var]
        for r, c in zip(runs, changes, strict=True)
    ]
    found = compare_runs(*unique(runs))["train_accuracy"]
    assert found.how == "independent"
    ends = [(v.number, v.low, v.high) for v in (found.first, found.second)]
    assert found.difference == independent_difference(*ends)


def test_losses_on_other_draws_are_not() -> None:
    found = compare_runs(*unique([_with_blocks(0.0), _with_blocks(0.01, "other")]))
    assert [found[k].how for k in ("train_loss", "test_loss", "gap_loss")] == ["paired", "independent", "independent"]
    without = unique([make_run("a", [samples.performance()]), _with_blocks(0.01)])  # from an older archive
    assert compare_runs(*without)["test_loss"].how == "independent"


def test_runs_with_nothing_in_common_share_no_number() -> None:
    a, b = unique([make_run("a", [samples.trace()]), make_run("b", [samples.plane(n=5)])])
    assert compare_runs(a, b) == {}


def test_what_one_run_lacks_is_said_with_the_reason(tmp_path: Path) -> None:
    whole, few = samples.sample_runs(2, points=5)
    broken = replace(samples.performance(), loss=np.array([0.3, math.nan]))
    paths = [
        str(save_archive(tmp_path / f"{i}.h5", found))
        for i, found in enumerate([[r for _, r in whole.every()], [few.get("trace"), broken]])
    ]
    out = call(*paths).output
    assert "not in A" not in out
    (line,) = (x for x in out.splitlines() if "lambda_max" in x)
    assert line.startswith("  not in B: ")
    assert line.endswith("(not measured)")
    assert "  not in B: test_loss, gap_loss (NaN)\n" in out
    lacking = json.loads(call(*paths, "--json").stdout)["comparisons"][0]["missing"]
    assert lacking["first"] == {}
    assert {"test_loss", "lambda_max", "ece"} <= set(lacking["second"])
    assert "trace" not in lacking["second"]


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


def test_losses_that_rest_on_few_whole_batches_have_students_intervals() -> None:
    """Three batches that stay whole (a contrastive loss): their standard error has two degrees of freedom, not many."""
    g = torch.Generator().manual_seed(0)
    ends, runs = [], []
    for n in (3, 5):
        x, y = torch.randn(4 * n, 2, generator=g).double(), torch.randn(4 * n, 1, generator=g).double()
        batches = list(zip(x.split(4), y.split(4), strict=True))
        model = torch.nn.Linear(2, 1).double()
        runs.append(make_run("a", [evaluate_checkpoint(Task(model, torch.nn.MSELoss(), batches, rebatch=False))]))
        with torch.no_grad():
            means = np.array([float(((model(a) - b) ** 2).mean()) for a, b in batches])
        half = {3: 4.302653, 5: 2.776445}[n] * means.std(ddof=1) / math.sqrt(n)
        ends.append((means.mean(), half))
    found = compare_runs(*unique(runs))["train_loss"]
    for value, (mean, half) in zip((found.first, found.second), ends, strict=True):
        assert value.number == pytest.approx(mean, rel=1e-9)
        assert (value.low, value.high) == pytest.approx((mean - half, mean + half), rel=1e-6)
    assert found.how == "independent"
    assert found.difference.high - found.difference.value == pytest.approx(math.hypot(*(h for _, h in ends)), rel=1e-6)
