"""Effects of settings: against paired t tests, Welch's test, regression written out, and by their coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from landscape.comparison.ablation import FEWEST_SEEDS, LEAST_FREEDOM, Ablation, Effect, ablate
from landscape.comparison.least_squares import Clustered, rank


def grid(*levels: list[str], seeds: int) -> tuple[list[tuple[str, ...]], list[int]]:
    """Return the settings and the seed of each run of a full grid."""
    rows = [(cell, s) for s in range(seeds) for cell in itertools.product(*levels)]
    return [cell for cell, _ in rows], [s for _, s in rows]


def factors(cells: list[tuple[str, ...]], *names: str) -> dict[str, list[str]]:
    return {name: [c[i] for c in cells] for i, name in enumerate(names)}


def only(found: Ablation, *names: str) -> Effect:
    (effect,) = [e for e in found.effects if e.factors == names]
    return effect


# ------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("seeds", [3, 5])
def test_in_a_full_grid_an_effect_is_the_paired_t_test_over_seeds(seeds: int) -> None:
    cells, names = grid(["a", "b"], ["c", "d"], seeds=seeds)
    y = np.random.default_rng(seeds).normal(size=len(cells)) + np.repeat(np.arange(seeds) * 3.0, 4)
    found = ablate(y, factors(cells, "loss", "schedule"), names)
    assert (found.paired, found.balanced, found.independent, found.left_out) == (True, True, seeds, ())
    ac, ad, bc, bd = y.reshape(seeds, 4).T
    expected = {
        ("loss",): (bc + bd - ac - ad) / 2,
        ("schedule",): (ad + bd - ac - bc) / 2,
        ("loss", "schedule"): (bd - ad) - (bc - ac),
    }
    for names_, change in expected.items():
        effect = only(found, *names_)
        low, high = stats.ttest_1samp(change, 0).confidence_interval(0.95)
        assert effect.value == pytest.approx(change.mean(), rel=1e-9)
        assert (effect.low, effect.high) == pytest.approx((low, high), rel=1e-8)
        assert effect.df == pytest.approx(seeds - 1, rel=1e-8)


def test_three_levels_are_each_laid_against_the_first() -> None:
    cells, names = grid(["a", "b", "c"], ["x", "y"], seeds=4)
    y = np.random.default_rng(0).normal(size=len(cells))
    found = ablate(y, factors(cells, "loss", "schedule"), names)
    table = y.reshape(4, 3, 2)
    b, c = (e for e in found.main if e.factors == ("loss",))
    assert (b.levels, c.levels) == ((("a", "b"),), (("a", "c"),))
    for effect, level in ((b, 1), (c, 2)):
        low, high = stats.ttest_1samp((table[:, level] - table[:, 0]).mean(axis=1), 0).confidence_interval(0.95)
        assert (effect.low, effect.high) == pytest.approx((low, high), rel=1e-8)
    assert len(found.interactions) == 2


def test_runs_without_seeds_are_welchs_two_sample_comparison() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=5), rng.normal(size=9) * 3 + 1
    found = ablate(np.concatenate([a, b]), {"loss": ["a"] * 5 + ["b"] * 9})
    (effect,) = found.effects
    stderr = np.sqrt(a.var(ddof=1) / 5 + b.var(ddof=1) / 9)
    # Bell and McCaffrey's degrees of freedom for two groups: Imbens and Kolesar 2016, equation (10).
    df = 14**2 * 4 * 8 / (9**2 * 8 + 5**2 * 4)
    assert not found.paired
    assert effect.value == pytest.approx(b.mean() - a.mean())
    assert effect.high - effect.value == pytest.approx(stats.t.ppf(0.975, effect.df) * stderr, rel=1e-9)
    assert effect.df == pytest.approx(df, rel=1e-9)


def test_an_unbalanced_grid_is_the_regression_on_dummies() -> None:
    rng = np.random.default_rng(2)
    cells, names = grid(["a", "b"], ["c", "d", "e"], seeds=5)
    keep = [0, 1, 2, *np.sort(3 + rng.permutation(len(cells) - 3)[:19])]  # the first levels stay the first
    cells, names = [cells[i] for i in keep], [names[i] for i in keep]
    y = rng.normal(size=22) + np.array(names) * 2.0
    found = ablate(y, factors(cells, "loss", "schedule"), names, interactions=False)
    assert found.paired
    assert not found.balanced
    loss = np.array([c[0] == "b" for c in cells], dtype=float)
    schedule = np.array([[c[1] == "d", c[1] == "e"] for c in cells], dtype=float)
    seeds = np.eye(5)[names]
    coefficients = np.linalg.lstsq(np.column_stack([loss, schedule, seeds]), y, rcond=None)[0]
    assert [e.value for e in found.effects] == pytest.approx(coefficients[:3])


def test_a_clusters_weight_is_that_of_its_definition() -> None:
    # CR2 and its degrees of freedom by dense matrices, without the shortcuts.
    rng = np.random.default_rng(3)
    X, clusters = (
        np.column_stack([np.ones(12), rng.normal(size=(12, 2))]),
        np.array([0] * 5 + [1] * 3 + [2] * 2 + [3] * 2),
    )
    y, w = rng.normal(size=12), np.array([[0.0, 1.0, 0.5]])
    found = Clustered(X, clusters).contrasts(y, w)
    bread = np.linalg.inv(X.T @ X)
    H = X @ bread @ X.T
    e, variance, G = y - H @ y, 0.0, []
    for c in range(4):
        m = np.flatnonzero(clusters == c)
        values, vectors = np.linalg.eigh(np.eye(len(m)) - H[np.ix_(m, m)])
        b = (vectors / np.sqrt(values)) @ vectors.T @ X[m] @ bread @ w[0]
        variance += float(b @ e[m]) ** 2
        G.append((np.eye(12) - H)[:, m] @ b)
    gram = np.array(G) @ np.array(G).T
    assert found.stderr[0] == pytest.approx(np.sqrt(variance), rel=1e-10)
    assert found.df[0] == pytest.approx(np.trace(gram) ** 2 / np.sum(gram**2), rel=1e-10)


def test_a_single_run_has_the_error_of_the_others() -> None:
    """Where a cell has one run its own scatter can't be seen: the two-sample t test with one variance is left."""
    y = np.array([3.0, 0.1, 0.4, -0.6, 0.3])
    X = np.column_stack([np.ones(5), np.arange(5) == 0]).astype(float)
    found = Clustered(X, np.arange(5)).contrasts(y, np.array([[0.0, 1.0]]))
    expected = stats.ttest_ind(y[:1], y[1:])
    assert found.value[0] == pytest.approx(3.0 - y[1:].mean())
    assert found.stderr[0] == pytest.approx(found.value[0] / expected.statistic, rel=1e-10)
    assert found.df[0] == pytest.approx(expected.df)


# ------------------------------------------------------------------------------------------------ what can't be told


def test_settings_that_change_together_are_named() -> None:
    cells, names = grid(["sgd", "adam"], ["c", "d"], seeds=3)
    given = factors(cells, "optimizer", "schedule")
    given["lr"] = ["0.1" if o == "sgd" else "0.001" for o in given["optimizer"]]
    found = ablate(np.arange(12.0) ** 1.5, given, names)
    assert {e.factors for e in found.effects} == {("optimizer",), ("schedule",), ("optimizer", "schedule")}
    assert found.left_out == ("lr: it changes only together with optimizer, so that the two can't be told apart",)


def test_an_interaction_with_an_empty_cell_is_left_out() -> None:
    cells, names = grid(["a", "b"], ["c", "d"], seeds=4)
    keep = [i for i, c in enumerate(cells) if c != ("b", "d")]
    y = np.random.default_rng(4).normal(size=len(keep))
    found = ablate(y, factors([cells[i] for i in keep], "loss", "schedule"), [names[i] for i in keep])
    assert found.left_out == ("loss × schedule: some combinations have no run",)
    assert len(found.main) == 2


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_claim_nothing(seeds: int) -> None:
    assert seeds < FEWEST_SEEDS
    cells, names = grid(["a", "b"], ["c", "d"], seeds=seeds)
    y = np.array([0.0, 0.1, 5.0, 5.1] * seeds)
    found = ablate(y, factors(cells, "loss", "schedule"), names)
    effect = only(found, "loss")
    assert effect.value == pytest.approx(5.0)
    assert np.isnan(effect.low)
    assert not effect.claimed


def test_an_effect_that_two_of_many_seeds_carry_has_no_interval() -> None:
    """Every seed varies the schedule, two of them the loss: one degree of freedom, and 12.7 standard errors."""
    cells = [
        (loss, schedule, seed) for seed in range(5) for loss in "ab" for schedule in "cd" if loss == "a" or seed < 2
    ]
    y = np.random.default_rng(7).normal(size=len(cells))
    told = {"loss": [c[0] for c in cells], "schedule": [c[1] for c in cells]}
    found = ablate(y, told, [c[2] for c in cells])
    loss, schedule = (only(found, name) for name in ("loss", "schedule"))
    assert 0 < loss.df < LEAST_FREEDOM < schedule.df
    assert np.isnan(loss.low)
    assert np.isfinite(loss.value)
    assert np.isfinite(schedule.low)


def test_seeds_of_one_run_make_two_others_no_more() -> None:
    """Two seeds hold differences: enough degrees of freedom here, but no three seeds; the third seed has one run."""
    seeds, told = [0, 0, 1, 1, 1, 2], {"loss": list("xyxyyy"), "schedule": list("cdcccd")}
    found = ablate(np.array([0.3, 1.2, 0.1, 0.9, 1.4, 0.2]), told, seeds)
    loss = only(found, "loss")
    assert found.paired
    assert loss.df > LEAST_FREEDOM
    assert np.isnan(loss.low)


def test_a_design_that_leaves_no_error_has_no_interval() -> None:
    found = ablate(np.array([0.0, 1.0, 2.0]), {"loss": ["a", "b", "c"]})
    assert found.effects == ()
    assert found.left_out == ("loss: too few runs for so many settings",)
    one = ablate(np.array([0.0, 1.0]), {"loss": ["a", "a"]}, [0, 1])
    assert (one.effects, one.left_out) == ((), ())


def test_runs_without_a_number_are_left_out() -> None:
    cells, names = grid(["a", "b"], ["c", "d"], seeds=4)
    y = np.random.default_rng(5).normal(size=16)
    y[3] = np.nan
    found = ablate(y, factors(cells, "loss", "schedule"), names)
    assert (found.runs, found.balanced, found.paired) == (15, False, True)
    assert np.isfinite(only(found, "loss").low)


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="'loss' has 2 values for 3 runs"):
        ablate(np.zeros(3), {"loss": ["a", "b"]})
    with pytest.raises(ValueError, match="'seeds' has 1 values for 3 runs"):
        ablate(np.zeros(3), {"loss": ["a", "b", "b"]}, [0])
    with pytest.raises(ValueError, match="rank 1, expected 2"):
        Clustered(np.ones((4, 2)), np.arange(4))
    assert rank(np.zeros((3, 0))) == 0


# ------------------------------------------------------------------------------------------------ coverage


def coverage(trials: int, seeds: int, missing: float, *, uneven: bool, crossed: bool) -> float:
    """Return how often the intervals hold the true effects of loss (0.4), schedule (0) and their interaction (0.6)."""
    rng = np.random.default_rng(seeds)
    held = []
    for _ in range(trials):
        cells, names = grid(["a", "b"], ["c", "d"], seeds=seeds)
        names_ = np.array(names if crossed else range(len(cells)))
        loss, schedule = (np.array([c[i] in "bd" for c in cells], dtype=float) - 0.5 for i in range(2))
        noise = rng.normal(size=len(cells)) * (np.where(loss > 0, 2.0, 0.7) if uneven else 1.0)
        own = rng.normal(size=(seeds, 2))[names] if crossed else np.zeros((len(cells), 2))
        y = 0.4 * loss + 0.6 * loss * schedule + noise + own[:, 0] + own[:, 1] * schedule  # seeds differ in a setting
        y[rng.random(len(y)) < missing] = np.nan
        found = ablate(y, factors(cells, "loss", "schedule"), names_.tolist())
        truth = {("loss",): 0.4, ("schedule",): 0.0, ("loss", "schedule"): 0.6}
        for e in found.effects:  # the first level is the one first seen
            true = truth[e.factors] * np.prod([1 if first in "ac" else -1 for first, _ in e.levels])
            held += [e.low <= true <= e.high] if np.isfinite(e.low) else []
    return float(np.mean(held))


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize(("seeds", "missing"), [(3, 0.0), (5, 0.0), (5, 0.25), (10, 0.3)])
def test_the_intervals_cover(seeds: int, missing: float, uneven: bool, crossed: bool) -> None:
    # 95% meant; three effects in 250 trials: a true 95% is below 92% with about 1 in 1,000. Where the variances differ
    # eightfold between independent runs, the degrees of freedom are too many: 92 to 94% in 1,500 trials.
    assert coverage(250, seeds, missing, uneven=uneven, crossed=crossed) >= (0.89 if uneven and not crossed else 0.92)
