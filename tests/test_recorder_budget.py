"""The budget of a whole recording, on a clock that only the test turns: what cheap probes take counts, too."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from recorded_training import batch, small
from torch import nn

from landscape import open_archive
from landscape.errors import MeasurementError
from landscape.probes import Found, Probe, Quantity, Recorder, every
from landscape.probes.when import When

CHEAP, COST, SHARE = 0.02, 1.0, 0.05


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


class Cheap(Probe):
    """Takes two hundredths of a second in each step, which itself takes one."""

    name = "cheap"

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def after(self, run, step) -> None:
        self.clock[0] += CHEAP


class Costly(Probe):
    expensive = True

    def __init__(self, clock: list[float], name: str = "costly", when: When | None = None) -> None:
        self.clock, self.name = clock, name
        self.when = every(steps=1) if when is None else when

    def start(self, run):
        return [Quantity(self.name, ("at",))]

    def measure(self, run, now):
        self.clock[0] += COST
        return Found({self.name: (float(now.step),)})


def train(path, clock, probes, steps: int, **options):
    """Return the share of the time that recording had taken after each step."""
    model, optimizer = small()
    began, shares, generator = clock[0], [], torch.Generator().manual_seed(0)
    with Recorder(path, model, optimizer, probes=probes, **options) as rec:
        for _ in range(steps):
            x, y = batch(4, generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            clock[0] += 1.0
            optimizer.step()
            shares.append(rec.seconds / (clock[0] - began))
    return np.array(shares), open_archive(path).history


def test_all_recording_together_stays_within_it(tmp_path, clock):
    shares, history = train(tmp_path / "run.h5", clock, [Cheap(clock), Costly(clock)], 400, budget=SHARE)
    taken = history["costly"].steps
    second = int(taken[1])
    assert (shares[second - 1 :] <= SHARE).all()
    # What the cheap ones leave is used: 3% of the time, one second each.
    assert len(taken) == pytest.approx((SHARE - CHEAP) * 400 / COST, abs=1)
    assert not [e for e in history.events if e.kind == "over_budget"]


def test_a_probes_own_budget_is_about_that_probe_alone(tmp_path, clock):
    probes = [Cheap(clock), Costly(clock, when=every(steps=1, budget=SHARE))]
    shares, history = train(tmp_path / "run.h5", clock, probes, 400)
    assert shares[-1] > SHARE + CHEAP / 2
    assert len(history["costly"].steps) == pytest.approx(SHARE * 400 / COST, abs=2)
    # Both hold where both are given.
    probes = [Cheap(clock), Costly(clock, when=every(steps=1, budget=0.01))]
    _, history = train(tmp_path / "both.h5", clock, probes, 400, budget=SHARE)
    assert len(history["costly"].steps) == pytest.approx(0.01 * 400 / COST, abs=1)


def test_two_that_are_due_at_once_do_not_spend_the_same_room(tmp_path, clock):
    lattice = every(steps=50)
    probes = [Costly(clock, "first", lattice), Costly(clock, "second", lattice)]
    shares, history = train(tmp_path / "run.h5", clock, probes, 400, budget=0.031)
    # 1.55 s of 50 s: one of the two fits at most of the points, and the first is asked first.
    assert (shares[100:] <= 0.031).all()
    assert len(history["first"].steps) > len(history["second"].steps) >= 1


def test_one_that_cannot_be_kept_is_said(tmp_path, clock):
    shares, history = train(tmp_path / "run.h5", clock, [Cheap(clock), Costly(clock)], 60, budget=0.01)
    np.testing.assert_array_equal(history["costly"].steps, [0])
    (event,) = [e for e in history.events if e.kind == "over_budget"]
    assert "more than its budget of 1.0%" in event.message
    assert f"{shares[-1]:.1%} of the run's" in event.message


def test_what_is_no_share_is_refused_before_anything_is_made(tmp_path):
    model, optimizer = small()
    with pytest.raises(MeasurementError, match="budget=5 must be a share"):
        Recorder(tmp_path / "run.h5", model, optimizer, budget=5)
    assert not (tmp_path / "run.h5").exists()
