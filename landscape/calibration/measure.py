"""Calibration of a task's model on its held-out data, as `landscape probe` runs it."""

from __future__ import annotations

import dataclasses
import time

from ..judged import SPLIT
from ..objective import Objective
from ..results import Cost, Option, measurement
from ..tasks import Task
from .held_out import held_out_predictions
from .maps import METHODS, Method
from .table import Calibration
from .together import calibrate


@measurement(
    "calibration",
    options={
        "bins": Option(15, "confidence bins of equal width", "Guo et al. 2017, arXiv:1706.04599"),
        "split": SPLIT,
        "method": Option(
            "temperature", "recalibration: temperature, vector, isotonic or histogram", "Guo et al. 2017", METHODS
        ),
    },
    order=20,
    estimate=lambda *_, **__: 1.0,
    needs=("labels",),
)
def measure_calibration(
    task: Task | Objective,
    *,
    bins: int = 15,
    seed: int = 0,
    progress: bool = False,
    split: str = "test",
    method: Method = "temperature",
) -> Calibration:
    """Top-label calibration on held-out data, before and after temperature scaling.

    ECE, scores and the reliability table are those of `calibration_error` on all predictions of the split's draw.
    `along` holds the Recalibration by `method` (fitted on one part of them, judged on the other) and the
    SampleScores that runs are compared by. Compare `ece_before_temperature` with `ece_after_temperature`, both on the
    part that the fit has not seen (a smaller sample has a larger plug-in ECE, so `ece` is no match for them). Where
    there is no such fit, the warnings say why. Costs one forward pass (of the draw).

    Raises MeasurementError where the task has no class labels there, or its outputs are no class scores.
    """
    del progress  # one forward pass and a second of arithmetic
    start = time.perf_counter()
    found = held_out_predictions(task, split)
    return dataclasses.replace(
        calibrate(found, bins=bins, method=method, seed=seed),
        cost=Cost(passes=found.passes, seconds=time.perf_counter() - start),
    )
