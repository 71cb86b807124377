"""Measurements in time: what watches a training run, and what measures its checkpoints.

Imports the core, never the cli. Begin with `posthoc.py`: the run behind `landscape probe`. Names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from landscape._lazy import attach

_NAMES = {
    "Recorder": "landscape.probes.recorder",
    "default_probes": "landscape.probes.chosen",
    "Probe": "landscape.probes.probe",
    "Quantity": "landscape.probes.probe",
    "Found": "landscape.probes.probe",
    "GradientNorms": "landscape.probes.gradients",
    "Updates": "landscape.probes.updates",
    "GradientNoise": "landscape.probes.noise",
    "LossTerms": "landscape.probes.terms",
    "LearningRate": "landscape.probes.rates",
    "Embeddings": "landscape.probes.embeddings",
    "CalibrationProbe": "landscape.probes.calibration",
    "CurvatureProbe": "landscape.probes.curvature",
    "SurfaceProbe": "landscape.probes.surface",
    "every": "landscape.probes.when",
    "at": "landscape.probes.when",
    "log_spaced": "landscape.probes.when",
    "CalibrationOutcome": "landscape.probes.calibrating",
    "calibrate_files": "landscape.probes.calibrating",
    "PathOutcome": "landscape.probes.connecting",
    "connect_checkpoints": "landscape.probes.connecting",
    "ProbeOutcome": "landscape.probes.outcome",
    "NotAllMeasured": "landscape.probes.outcome",
    "Inspection": "landscape.probes.inspection",
    "inspect_task": "landscape.probes.inspection",
    "plan_run": "landscape.probes.posthoc",
    "Sweep": "landscape.probes.sweep.study",
    "Cell": "landscape.probes.sweep.grid",
    "CellResult": "landscape.probes.sweep.outcome",
    "How": "landscape.probes.sweep.how",
    "grid": "landscape.probes.sweep.grid",
    "train_cell": "landscape.probes.sweep.cell",
    "collect": "landscape.probes.sweep.collecting",
    "range_test": "landscape.probes.sweep.range_test",
    "probe_checkpoints": "landscape.probes.posthoc",
}

__getattr__, __dir__ = attach(__name__, _NAMES)
__all__ = sorted(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .calibrating import CalibrationOutcome as CalibrationOutcome
    from .calibrating import calibrate_files as calibrate_files
    from .calibration import CalibrationProbe as CalibrationProbe
    from .chosen import default_probes as default_probes
    from .connecting import PathOutcome as PathOutcome
    from .connecting import connect_checkpoints as connect_checkpoints
    from .curvature import CurvatureProbe as CurvatureProbe
    from .embeddings import Embeddings as Embeddings
    from .gradients import GradientNorms as GradientNorms
    from .inspection import Inspection as Inspection
    from .inspection import inspect_task as inspect_task
    from .noise import GradientNoise as GradientNoise
    from .outcome import NotAllMeasured as NotAllMeasured
    from .outcome import ProbeOutcome as ProbeOutcome
    from .posthoc import plan_run as plan_run
    from .posthoc import probe_checkpoints as probe_checkpoints
    from .probe import Found as Found
    from .probe import Probe as Probe
    from .probe import Quantity as Quantity
    from .rates import LearningRate as LearningRate
    from .recorder import Recorder as Recorder
    from .surface import SurfaceProbe as SurfaceProbe
    from .sweep.cell import train_cell as train_cell
    from .sweep.collecting import collect as collect
    from .sweep.grid import Cell as Cell
    from .sweep.grid import grid as grid
    from .sweep.how import How as How
    from .sweep.outcome import CellResult as CellResult
    from .sweep.range_test import range_test as range_test
    from .sweep.study import Sweep as Sweep
    from .terms import LossTerms as LossTerms
    from .updates import Updates as Updates
    from .when import at as at
    from .when import every as every
    from .when import log_spaced as log_spaced
