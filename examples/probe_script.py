"""Probe a model from Python, without the command line: writes probe.h5 and probe.html into the current folder."""

import numpy as np
import torch
from digits_task import digits, train

import landscape as ls

model = train()
task = digits().replace(model=model)
with ls.Hessian(task) as hessian:
    pairs = ls.eigenpairs(hessian, k=5, which="both")
print("largest ", pairs.values, "+-", pairs.residuals)
print("smallest", pairs.smallest, "+-", pairs.smallest_residuals)

steps = np.linspace(-1, 1, 15)
first, second = (ls.random_direction(task, seed) for seed in (0, 1))
surface = ls.plane(task, first, second, steps, steps)
print("loss at the center", surface.center_loss, "and at most", surface.loss.max())

with torch.no_grad():
    x, y = task.test
    calibration = ls.calibration_error(logits=model(x), labels=y)
print("calibration error", calibration.ece, "in", calibration.ece_interval)

subject = ls.Subject(name="32 hidden units")
ls.save_archive("probe.h5", [pairs, surface, calibration], subject=subject, run={"loss": "cross_entropy"}, force=True)
ls.write_report(["probe.h5"], "probe.html")
