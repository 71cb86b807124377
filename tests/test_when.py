"""When probes measure: lattices by hand, and budgets played through a simulated run."""

from __future__ import annotations

import math

import pytest

from landscape.errors import MeasurementError
from landscape.probes.when import Moment, When, at, every, log_spaced


def steps_of(when: When, last: int) -> list[int]:
    return [s for s in range(last + 1) if when.due(Moment(s))]


class TestLattices:
    def test_every_so_many_steps_from_the_start(self):
        assert steps_of(every(steps=4), 13) == [0, 4, 8, 12]
        assert steps_of(every(steps=1), 3) == [0, 1, 2, 3]

    def test_at_given_steps_in_any_order(self):
        assert steps_of(at([7, 0, 3, 3]), 10) == [0, 3, 7]

    def test_log_spaced(self):
        assert steps_of(log_spaced(1), 1000) == [0, 1, 10, 100, 1000]
        assert steps_of(log_spaced(5), 110) == [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100]
        # Dense at the start: no step is asked for twice, and none is missed where several powers round to one.
        assert steps_of(log_spaced(50), 12) == list(range(13))

    def test_every_so_many_epochs_at_their_end_alone(self):
        moments = [Moment(10 * e, e, ends_epoch) for e in range(1, 6) for ends_epoch in (False, True)]
        assert [m.epoch for m in moments if every(epochs=2).due(m)] == [2, 4]
        # A step that also ends an epoch is one moment of a lattice of steps, not two.
        assert [m for m in moments if every(steps=10).due(m)] == [m for m in moments if not m.ends_epoch]


class TestBudget:
    def play(self, budget: float, cost: float, step: float = 1.0, steps: int = 400) -> tuple[list[int], float, float]:
        """Return (steps measured at, seconds spent, seconds of the whole run) on a lattice of 10."""
        when, elapsed, spent, last, taken = every(steps=10, budget=budget), 0.0, 0.0, 0.0, []
        for s in range(steps):
            if when.due(Moment(s, elapsed=elapsed, spent=spent, cost=last)):
                taken.append(s)
                spent, elapsed, last = spent + cost, elapsed + cost, cost
            elapsed += step
        return taken, spent, elapsed

    def test_the_share_is_kept_once_the_first_has_paid_off(self):
        taken, spent, elapsed = self.play(0.05, cost=2.0)
        assert taken[0] == 0
        assert all(s % 10 == 0 for s in taken)
        assert 0.04 * elapsed < spent <= 0.05 * elapsed

    def test_a_cheap_probe_misses_nothing(self):
        assert self.play(0.05, cost=0.1)[0] == list(range(0, 400, 10))

    def test_a_probe_that_is_too_dear_runs_once(self):
        assert self.play(0.05, cost=1000.0)[0] == [0]

    def test_the_first_point_counts_so_that_the_next_waits_for_the_share(self):
        """8 s at the start within 5%: the next point is the first on the lattice at which 16 s are affordable."""
        taken, _, _ = self.play(0.05, cost=8.0, steps=800)
        assert taken[:2] == [0, 320]

    def test_no_budget_no_limit(self):
        assert every(steps=10).due(Moment(10, elapsed=1.0, spent=100.0, cost=50.0))


def test_what_is_archived():
    assert every(steps=5, budget=0.1).describe() == {"steps": 5, "budget": 0.1}
    assert at([3, 1]).describe() == {"points": [1, 3]}
    assert log_spaced().describe() == {"per_decade": 5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: every(), "one of the two"),
        (lambda: every(steps=1, epochs=1), "one of the two"),
        (lambda: every(steps=0), "steps=0 must be"),
        (lambda: every(epochs=1.5), r"epochs=1\.5 must be"),
        (lambda: at([]), "at least one"),
        (lambda: at([-1]), "0 or more"),
        (lambda: log_spaced(0), "per_decade=0"),
        (lambda: every(steps=1, budget=0), "budget=0 must be"),
        (lambda: every(steps=1, budget=5), "budget=5 must be a share"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(MeasurementError, match=message):
        make()


@pytest.mark.parametrize(
    "when", [every(steps=1), every(steps=7), at([0, 3, 4, 50]), log_spaced(), log_spaced(1), log_spaced(40)]
)
def test_the_next_step_of_a_lattice_is_the_first_that_is_on_it(when):
    for step in range(120):
        on_it = [s for s in range(step, 2000) if when.on_lattice(Moment(s))]
        assert when.first_from(step) == (on_it[0] if on_it else math.inf)
    assert every(epochs=1).first_from(5) == math.inf
