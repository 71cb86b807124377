"""Where in the loss landscape did this training end up, how did it get there, can its confidence be trusted?

Names load on first use: `import landscape` imports neither torch nor h5py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import attach

__version__ = "0.1.0"

_NAMES = {
    "Task": "landscape.tasks",
    "task": "landscape.tasks",
    "next_token": "landscape.tokens",
    "load_task": "landscape.task_files",
    "Checkpoint": "landscape.checkpoint",
    "load_checkpoint": "landscape.checkpoint",
    "read_checkpoint": "landscape.checkpoint",
    "save_checkpoint": "landscape.checkpoints.writing",
    "Objective": "landscape.objective",
    "Result": "landscape.results",
    "Cost": "landscape.results",
    "Check": "landscape.results",
    "Option": "landscape.results",
    "array": "landscape.results",
    "measurement": "landscape.results",
    "measurements": "landscape.results",
    "Hessian": "landscape.curvature.operators",
    "GaussNewton": "landscape.curvature.operators",
    "Fisher": "landscape.curvature.fisher",
    "Eigenpairs": "landscape.curvature.spectrum",
    "Estimate": "landscape.curvature.spectrum",
    "eigenpairs": "landscape.curvature.lanczos",
    "layer_curvature": "landscape.curvature.layers",
    "trace": "landscape.curvature.traces",
    "frobenius_norm": "landscape.curvature.moments",
    "diagonal": "landscape.curvature.diagonals",
    "spectral_density": "landscape.curvature.density",
    "SpectralDensity": "landscape.curvature.estimates",
    "SamplingError": "landscape.curvature.estimates",
    "sampling_error": "landscape.curvature.sampling",
    "to_precision": "landscape.curvature.sampling",
    "sharpness": "landscape.curvature.sharpness",
    "stability_threshold": "landscape.curvature.stability",
    "Preconditioned": "landscape.curvature.preconditioned",
    "FiniteDifferences": "landscape.curvature.finite_differences",
    "Direction": "landscape.surface.directions",
    "direction_between": "landscape.surface.derived",
    "gradient_direction": "landscape.surface.derived",
    "hessian_directions": "landscape.surface.derived",
    "project": "landscape.surface.derived",
    "random_direction": "landscape.surface.directions",
    "Line": "landscape.surface.slices",
    "Plane": "landscape.surface.slices",
    "line": "landscape.surface.grid",
    "plane": "landscape.surface.grid",
    "Path": "landscape.surface.routes",
    "Connectivity": "landscape.surface.routes",
    "connectivity": "landscape.surface.connectivity",
    "interpolate": "landscape.surface.path",
    "Alignment": "landscape.alignment.aligned",
    "align": "landscape.alignment.permuting",
    "Trajectory": "landscape.surface.routes",
    "trajectory": "landscape.surface.trajectory",
    "trajectory_plane": "landscape.surface.trajectory",
    "EigenvalueMap": "landscape.surface.fields",
    "eigenvalue_map": "landscape.surface.curvature_map",
    "Basin": "landscape.surface.fields",
    "basin": "landscape.surface.basin",
    "Calibration": "landscape.calibration.table",
    "CalibrationAccumulator": "landscape.calibration.accumulator",
    "calibration_error": "landscape.calibration.scores",
    "QuantileAccumulator": "landscape.calibration.quantiles",
    "QuantileCoverage": "landscape.calibration.coverage",
    "quantile_coverage": "landscape.calibration.quantile_heads",
    "QuantileCalibration": "landscape.calibration.table",
    "quantile_calibration": "landscape.calibration.quantiles",
    "Recalibration": "landscape.calibration.recalibrated",
    "Calibrated": "landscape.calibration.calibrated",
    "fit_temperature": "landscape.calibration.temperature",
    "recalibrate": "landscape.calibration.recalibration",
    "save_recalibration": "landscape.calibration.calibrated",
    "load_recalibration": "landscape.calibration.calibrated",
    "Subject": "landscape.archive.schema",
    "Archive": "landscape.archive.reader",
    "open_archive": "landscape.archive.reader",
    "save_archive": "landscape.archive.save",
    "ClassScores": "landscape.class_scores",
    "draw": "landscape.report.figures",
    "write_report": "landscape.report.formats",
    "losses": "landscape.training.registries",
    "schedules": "landscape.training.registries",
    "optimizers": "landscape.training.registries",
    "averages": "landscape.training.averaging",
    "LandscapeError": "landscape.errors",
}

__getattr__, __dir__ = attach(__name__, _NAMES)
__all__ = sorted([*_NAMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .alignment.aligned import Alignment
    from .alignment.permuting import align
    from .archive.reader import Archive, open_archive
    from .archive.save import save_archive
    from .archive.schema import Subject
    from .calibration.accumulator import CalibrationAccumulator
    from .calibration.calibrated import Calibrated, load_recalibration, save_recalibration
    from .calibration.coverage import QuantileCoverage
    from .calibration.quantile_heads import quantile_coverage
    from .calibration.quantiles import QuantileAccumulator, quantile_calibration
    from .calibration.recalibrated import Recalibration
    from .calibration.recalibration import recalibrate
    from .calibration.scores import calibration_error
    from .calibration.table import Calibration, QuantileCalibration
    from .calibration.temperature import fit_temperature
    from .checkpoint import Checkpoint, load_checkpoint, read_checkpoint
    from .checkpoints.writing import save_checkpoint
    from .class_scores import ClassScores
    from .curvature.density import spectral_density
    from .curvature.diagonals import diagonal
    from .curvature.estimates import SamplingError, SpectralDensity
    from .curvature.finite_differences import FiniteDifferences
    from .curvature.fisher import Fisher
    from .curvature.lanczos import eigenpairs
    from .curvature.layers import layer_curvature
    from .curvature.moments import frobenius_norm
    from .curvature.operators import GaussNewton, Hessian
    from .curvature.preconditioned import Preconditioned
    from .curvature.sampling import sampling_error, to_precision
    from .curvature.sharpness import sharpness
    from .curvature.spectrum import Eigenpairs, Estimate
    from .curvature.stability import stability_threshold
    from .curvature.traces import trace
    from .errors import LandscapeError
    from .objective import Objective
    from .report.figures import draw
    from .report.formats import write_report
    from .results import Check, Cost, Option, Result, array, measurement, measurements
    from .surface.basin import basin
    from .surface.connectivity import connectivity
    from .surface.curvature_map import eigenvalue_map
    from .surface.derived import direction_between, gradient_direction, hessian_directions, project
    from .surface.directions import Direction, random_direction
    from .surface.fields import Basin, EigenvalueMap
    from .surface.grid import line, plane
    from .surface.path import interpolate
    from .surface.routes import Connectivity, Path, Trajectory
    from .surface.slices import Line, Plane
    from .surface.trajectory import trajectory, trajectory_plane
    from .task_files import load_task
    from .tasks import Task, task
    from .tokens import next_token
    from .training.averaging import averages
    from .training.registries import losses, optimizers, schedules
