"""Asks one probe at its moments: keeps to its budget, times it, and switches it off when it fails."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from landscape.errors import MeasurementError

from .probe import Found, Now, Probe, Quantity, Run, Step
from .when import Moment


class Timed:
    """One probe of a recorder: whether it is due, what it took, and whether it still works.

    `decided` holds, by step, whether an earlier session measured there: a resumed run that takes those steps again
    decides in the same way. In a distributed training the first process decides for a probe that all take part in.
    """

    def __init__(self, probe: Probe, run: Run, decided: Mapping[int, bool], world: int) -> None:
        self.probe, self._run, self._decided = probe, run, decided
        self.off = False
        #: Whether it was ever asked to look or to measure.
        self.asked = False
        self.evaluates = probe.evaluates
        self.wants_ready = type(probe).ready is not Probe.ready
        #: Processes that take part, and whether the probe has been switched off in all of them because it was in one.
        self._world = world if probe.everywhere(run) else 1
        self._parted = False
        when = probe.when
        #: Of a cheap probe on a plain lattice of steps, without a budget, its spacing: no more is asked inside a step.
        self.spacing = when.steps if when.budget is None and not self._decided and not probe.expensive else None
        self._began = time.perf_counter()
        self._spent = self._cost = self._this = 0.0
        self._asked: tuple[int, bool] = (-1, False)

    def start(self) -> Sequence[Quantity]:
        """Return what the probe will record; none where it fails."""
        found = self.call(lambda p: p.start(self._run)) or ()
        self._this = 0.0  # what it takes to begin is no measure of what a step will cost
        return found

    def next_look(self, number: int) -> float:
        """Return the first step from this one on at which a cheap probe may look; inf where it never will."""
        return math.inf if self.off else self.probe.when.first_from(number)

    def due(self, number: int) -> bool:
        """Whether a cheap probe looks at the step with this number; the same answer each time it is asked."""
        if self.off:
            return False
        if self.spacing is not None:
            return number % self.spacing == 0
        if self._asked[0] != number:
            if self._this:
                self._spent, self._cost, self._this = self._spent + self._this, self._this, 0.0
            moment = Moment(number, elapsed=time.perf_counter() - self._began, spent=self._spent, cost=self._cost)
            when = self.probe.when
            due = when.on_lattice(moment) and self._agreed(self._decided.get(number, when.affordable(moment)))
            self._asked = (number, due)
        return self._asked[1]

    def on_lattice(self, now: Now) -> bool:
        """Whether this moment is one of an expensive probe's, whatever it costs."""
        if not self.probe.when.on_lattice(Moment(now.step, now.epoch, now.ends_epoch)):
            return False
        if self._world > 1 and not self._parted:
            self._stay_together()
        return not self.off

    def _stay_together(self) -> None:
        """Switch the probe off where it is off in another process: the others would wait for that one."""
        told: list[Any] = [None] * self._world
        torch.distributed.all_gather_object(told, self.off)
        if any(told):
            self._parted = True
            self.fail(MeasurementError(f"it is switched off in process {told.index(True)}"))

    def measure(self, now: Now, elapsed: float, room: float = math.inf) -> tuple[Found | None, float]:
        """Let an expensive probe measure, if its budget allows, and return what it found and the seconds it took.

        `room` are the seconds that the budget of the whole recording has left. Like a probe's own, it lets the first
        point be measured whatever it costs.
        """
        moment = Moment(now.step, now.epoch, now.ends_epoch, elapsed, self._spent, self._cost)
        affordable = self.probe.when.affordable(moment) and (self._cost == 0 or self._cost <= room)
        if not self._agreed(self._decided.get(now.step, affordable), limited=room < math.inf):
            return None, 0.0
        return self.forced(now, elapsed)

    def forced(self, now: Now, elapsed: float) -> tuple[Found | None, float]:
        """Let the probe measure whatever it costs."""
        started = time.perf_counter()
        self._run.measuring = self.asked = True
        try:
            with torch.enable_grad():
                found = self.call(lambda p: _checked(p.measure(self._run, now)))
        finally:
            self._run.measuring = False
        # Never 0, which says that the probe was left out.
        seconds = max(time.perf_counter() - started, 1e-9)
        self._spent += seconds
        self._cost = seconds
        return found, seconds if found is not None else math.nan

    def took(self, number: int) -> float:
        """Return the seconds that a cheap probe with a budget took at a step: 0 left out, NaN not on its lattice."""
        if self._asked[0] != number or not self.probe.when.on_lattice(Moment(number)):
            return math.nan
        return max(self._this, 1e-9) if self._asked[1] else 0.0

    def show(self, look: Callable[[Run, Step], None], step: Step) -> None:
        """Let a cheap probe look at a step, if it is due: `look` is its `before`, `on_gradients` or `after`."""
        if self.spacing is not None:
            if step.number % self.spacing == 0:
                self.asked = True
                try:
                    look(self._run, step)
                except Exception as error:
                    self.fail(error)
        elif self.due(step.number):
            self.asked = True
            self.call(lambda _: look(self._run, step))

    def call(self, what: Callable[[Any], Any]) -> Any:
        """Call the probe; whatever it raises switches it off, once and for all, and the training goes on."""
        if self.off:
            return None
        started = time.perf_counter()
        try:
            return what(self.probe)
        except Exception as error:
            self.fail(error)
            return None
        finally:
            self._this += time.perf_counter() - started

    def fail(self, error: Exception) -> None:
        """Switch the probe off, and say so, once."""
        if not self.off:
            self.off, self.spacing = True, None
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            self._run.event("probe_failed", f"{self.probe.name}: {text}")
            warnings.warn(
                f"the probe {self.probe.name!r} failed and is switched off, training goes on: {text}",
                RuntimeWarning,
                stacklevel=3,
            )

    def nothing_recorded(self, steps: int, epochs: int) -> str:
        """Return in words why a run of so many steps and epochs left nothing of the probe; "" where that is not so."""
        when = self.probe.when
        if self.off or self.evaluates or not steps:
            return ""
        first = when.first_from(1)
        if when.epochs is None and first <= steps and (lacked := self.probe.lacked()):
            return f"{self.probe.name}: nothing was recorded{lacked}"
        if self.asked:
            return ""
        if when.epochs is not None:
            ahead = f"the end of epoch {when.epochs}, and there were {epochs}"
        elif steps < first < math.inf:
            ahead = f"step {first:g}, and the run ended at step {steps}"
        else:
            return ""
        return (
            f"{self.probe.name}: nothing was recorded: its first moment is {ahead}; let it look more often (when=...)"
        )

    def over_budget(self, elapsed: float) -> str:
        """Return in words that a run of so many seconds was too short for the first point's cost; "" if it was not."""
        budget, spent = self.probe.when.budget, self._spent + (0.0 if self.probe.expensive else self._this)
        if budget is None or spent <= budget * elapsed:
            return ""
        return (
            f"{self.probe.name} took {spent:.3g} s, {spent / elapsed:.1%} of the run's {elapsed:.3g} s, more than its "
            f"budget of {budget:.1%}: its first point is measured whatever it costs, and the run ended before that was "
            f"a share of {budget:.1%}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: what the probe last took."""
        return {"cost": self._cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._cost = float(state.get("cost", 0.0))

    def discard(self) -> None:
        """The gradients were thrown away: a step of this number will be tried again."""
        if not self.off:
            self.call(lambda p: p.discard(self._run))

    def _agreed(self, decision: bool, *, limited: bool = False) -> bool:
        if self._world == 1 or not (limited or self.probe.when.budget is not None):
            return decision
        told = [decision]
        torch.distributed.broadcast_object_list(told, src=0)
        return bool(told[0])


def _checked(found: Any) -> Found | None:
    if found is not None and not isinstance(found, Found):
        raise TypeError(f"measure() returns a Found or None, got {type(found).__name__}")
    return found
