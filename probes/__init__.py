"""Measurements in time: what watches a training run, and what measures its checkpoints.

Imports the core, never the cli. Begin with `posthoc.py`: the run behind `landscape probe`. Names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from landscape._lazy import attach

_NAMES = {
    "CalibrationOutcome": "landscape.probes.calibrating",
    "calibrate_files": "landscape.probes.calibrating",
    "ProbeOutcome": "landscape.probes.outcome",
    "Inspection": "landscape.probes.inspection",
    "inspect_task": "landscape.probes.inspection",
    "plan_run": "landscape.probes.posthoc",
    "probe_checkpoints": "landscape.probes.posthoc",
}

__getattr__, __dir__ = attach(__name__, _NAMES)
__all__ = [
    "CalibrationOutcome",
    "Inspection",
    "ProbeOutcome",
    "calibrate_files",
    "inspect_task",
    "plan_run",
    "probe_checkpoints",
]

if TYPE_CHECKING:
    from .calibrating import CalibrationOutcome as CalibrationOutcome
    from .calibrating import calibrate_files as calibrate_files
    from .inspection import Inspection as Inspection
    from .inspection import inspect_task as inspect_task
    from .outcome import ProbeOutcome as ProbeOutcome
    from .posthoc import plan_run as plan_run
    from .posthoc import probe_checkpoints as probe_checkpoints
