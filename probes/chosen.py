"""Which probes a recorder has: those of one that was not told which, and what is wrong with those that it was given."""

from __future__ import annotations

from collections.abc import Sequence

from landscape.errors import MeasurementError

from .calibration import CalibrationProbe
from .gradients import GradientNorms
from .probe import Probe
from .rates import LearningRate
from .updates import Updates


def default_probes() -> tuple[Probe, ...]:
    """Return the probes of a recorder that was not told which: what costs a few passes over the weights a step."""
    return (GradientNorms(), Updates(), LearningRate(), CalibrationProbe())


def check_probes(probes: Sequence[Probe]) -> None:
    """Raise TypeError for what is no probe, MeasurementError for two of one name."""
    for probe in probes:
        if not isinstance(probe, Probe):
            what = (
                f"the class {probe.__name__}; make one: {probe.__name__}()" if isinstance(probe, type) else repr(probe)
            )
            raise TypeError(f"probes are instances of landscape.probes.Probe, got {what}")
    names = [p.name for p in probes]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise MeasurementError(f"two probes are called {sorted(twice)[0]!r}: give one of them another name")
