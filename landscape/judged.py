"""On which data predictions are judged: held-out ones, where the task has any."""

from __future__ import annotations

from .objective import Objective
from .results import Option
from .tasks import Task

#: The option of measurements that judge predictions.
SPLIT = Option(
    "test", "data to judge on; train where the task has no test data, with a warning", choices=("train", "test")
)


def judged_split(task: Task | Objective, split: str) -> tuple[str, bool]:
    """Return the split to judge on (an Objective's own), and whether train data stand in for test data."""
    if isinstance(task, Objective):
        return task.split, False
    instead = split == "test" and task.splits == ("train",)
    return ("train" if instead else split), instead
