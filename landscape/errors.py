"""The errors that reach a user as one line: what was expected, what came, what to do."""

from __future__ import annotations


class LandscapeError(ValueError):
    """Base of every error that the command line prints as one line (exit 1)."""


class TaskError(LandscapeError):
    """A task that cannot be loaded, drawn from or evaluated."""


class CheckpointError(LandscapeError):
    """A checkpoint that cannot be read, is refused, or does not fit the model."""


class ObjectiveError(LandscapeError):
    """A loss that cannot be measured: not deterministic, without a weight, not finite, not differentiable."""


class NonFiniteLossError(ObjectiveError):
    """A loss that is NaN or infinite at the weights as they are."""


class ArchiveError(LandscapeError):
    """An archive that cannot be read or written."""


class DamagedError(ArchiveError):
    """An archive that is not as it was written, or not all of it: `landscape repair` salvages the rest."""


class MeasurementError(LandscapeError):
    """A measurement asked for something that it cannot give."""


class MissingSplitError(TaskError, MeasurementError):
    """A measurement needs data of a split that the task has not: others may be measured."""


class NoLabelsError(MeasurementError):
    """Class labels are asked of a task that has none there, such as a regression or a model that generates."""


class OutOfMemory(MeasurementError):
    """No memory left, with the batches as small as the task allows."""


class ProcessError(LandscapeError):
    """Processes that share their work don't do the same, or one of them can no longer be reached."""


class TrainingError(LandscapeError):
    """A loss, schedule or optimizer that there is none of, or that is asked for what it cannot give."""
