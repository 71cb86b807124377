"""Is it right? Each question gets the answers that belong to it, and what to do where one is no."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_samples import about, performance, plane, sample_runs, settings
from test_report import page
from training_samples import history, series

from landscape.archive.history import Event, History
from landscape.comparison.seeds import over_seeds, seed_groups
from landscape.report.measures import measures
from landscape.report.questions import QUESTIONS, answers, every_check
from landscape.report.runs import Run, make_run, unique
from landscape.report.sections.seeds import mean_value
from landscape.results import Check


def asked(*runs):
    found = answers(list(every_check(runs)), runs)
    return {a.question.title: a for a in found}


def run_of(*checks: Check, **facts):
    return make_run("a", [replace(performance(), checks=checks)], **facts)


def accurate(*shares: float) -> list[Run]:
    """Return runs of one setting with these test accuracies, a seed each."""
    return [
        make_run(f"seed {i}", [performance(accuracy=a)], settings={"loss": "mse", "seed": i}, about=about(0))
        for i, a in enumerate(shares)
    ]


class TestQuestions:
    @pytest.mark.parametrize(
        ("check", "title"),
        [
            ("deterministic", "Deterministic"),
            ("center", "Centre loss"),
            ("convergence", "Residuals"),
            ("convergence, smallest", "Residuals"),
            ("sampling", "Subsampling error"),
            ("interpolation", "Interpolation error"),
            ("finite", "Finite numbers"),
            ("weights", "Weights of batches"),
            ("nobody knows", "Other checks"),
        ],
    )
    def test_a_check_answers_its_question(self, check, title):
        found = asked(run_of(Check(check, "warn", "look")))
        assert [t for t, a in found.items() if a.level == "warn"] == [title]

    def test_every_question_says_what_to_do(self):
        assert all(q.asks.endswith("?") and q.do for q in QUESTIONS)
        assert len({name for q in QUESTIONS for name in q.checks}) == sum(len(q.checks) for q in QUESTIONS)

    def test_the_worst_answer_counts(self):
        found = asked(run_of(Check("finite", "pass", ""), Check("finite", "fail", ""), Check("finite", "warn", "")))
        assert found["Finite numbers"].level == "fail"
        assert found["Finite numbers"].found == {"pass": 1, "warn": 1, "fail": 1}

    def test_what_nobody_checked_is_not_green(self):
        assert asked(run_of())["Interpolation error"].level is None
        assert "not checked" in page([run_of(Check("finite", "pass", ""))]).text

    def test_archives_that_were_read_are_readable_and_others_are_not(self):
        good, bad = unique([run_of(), run_of(problems=("results/plane/1 cannot be read",))])
        found = asked(good, bad)["Readable"]
        assert found.found == {"pass": 1, "warn": 0, "fail": 1}

    def test_a_record_answers_for_skipped_steps_and_lost_rows(self):
        loss = series("loss", ("loss",), range(1, 101), [1.0] * 100)
        events = (
            Event(5, "skipped_step"),
            Event(7, "not_finite"),
            Event(9, "lost_rows", "12 rows could not be written"),
        )
        found = asked(make_run("a", [], history=History({"loss": loss}, events)))
        assert {t for t, a in found.items() if a.level == "warn"} == {"Skipped steps", "Finite numbers", "Lost rows"}
        text = page([make_run("a", [], history=History({"loss": loss}, events))]).text
        assert "1 of 101 steps were skipped" in text
        assert "12 rows could not be written" in text
        assert asked(make_run("a", [], history=history()))["Lost rows"].level == "pass"

    def test_many_runs_that_say_the_same_are_told_once(self):
        runs = sample_runs(14, points=5)
        text = page(runs).text
        assert "14 runs eigenvalues converged the last pair did not converge" in text
        assert "the furthest from its limit" in text


class TestProvenance:
    def test_hashes_commands_and_what_it_cost_are_there_once(self):
        runs = [
            make_run(
                str(i), [performance(), plane(n=5)], about=about(0), settings=settings(i), digest=f"{i}" * 64, index=i
            )
            for i in range(3)
        ]
        text = page(runs).text
        assert "0" * 64 in text
        assert "train a1b2c3; test d4e5f6" in text
        assert text.count("landscape probe runs/0.pt -o runs/0.h5") == 1
        assert "every run" in text


class TestSeeds:
    def test_students_interval_over_seeds(self):
        found = over_seeds([1.0, 2.0, 3.0, float("nan")])
        assert (found.mean, found.seeds) == (2.0, 3)
        assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # t(2) at 0.975, spread 1
        assert over_seeds([5.0]).low != over_seeds([5.0]).low
        assert over_seeds([]).seeds == 0

    def test_coverage_is_what_it_says(self):
        import numpy as np

        draws = np.random.default_rng(0).normal(size=(2000, 3))
        held = sum(f.low <= 0 <= f.high for f in map(over_seeds, draws))
        assert abs(held / 2000 - 0.95) < 3.3 * (0.95 * 0.05 / 2000) ** 0.5

    def test_runs_that_differ_in_their_seed_alone_go_together(self):
        told = [{"loss": "ce", "seed": 0}, {"loss": "ce", "seed": 1}, {"loss": "focal", "seed": 0}, {"loss": "ce"}]
        assert seed_groups(told) == [[0, 1], [2], [3]]

    def test_checkpoints_of_one_training_are_no_seeds(self):
        told = [{"seed": 0}, {"seed": 0}, {"seed": 1}, {"seed": 1}]
        assert seed_groups(told, [10, 20, 10, 20]) == [[0, 2], [1, 3]]
        assert seed_groups(told, [10, 10, 20, 20]) == [[0], [1], [2], [3]]

    def test_an_interval_over_seeds_stays_where_the_number_can_lie(self):
        known = {m.key: m for m in measures(accurate(0.93, 0.99))}
        value, found = mean_value(known["test_accuracy"], accurate(0.93, 0.99))
        assert (value.number, found.high > 1, value.high) == (0.96, True, 1.0)
        assert value.low == found.low == pytest.approx(0.96 - 12.706 * 0.03, abs=1e-4)  # Student's t, 1 degree

    def test_seeds_that_agree_give_no_interval(self):
        runs = accurate(0.97, 0.97)
        value, _ = mean_value({m.key: m for m in measures(runs)}["test_accuracy"], runs)
        assert value.text() == ("0.9700", "")
        assert "the same in all" in page(runs).text

    def test_the_first_sight_compares_settings_where_seeds_are_repeated(self):
        text = page(sample_runs(8, points=5)).text
        assert "(cross_entropy constant, mean of 2 seeds)" in text[: text.index("another seed would change")]
        assert "where each run was measured with its own, λ max has different units" in text
        single = page(sample_runs(4, points=5)).text
        assert "one run of a kind can't say how far" in single
        assert "mean of" not in single[: single.index("one run of a kind")]

    def test_the_table_over_seeds_comes_where_seeds_are_repeated(self):
        assert "Mean over seeds" in page(sample_runs(8, points=5)).text
        assert "Mean over seeds" not in page(sample_runs(4, points=5)).text
