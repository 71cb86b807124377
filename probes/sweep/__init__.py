"""Trainings over every combination of losses, schedules, optimizers, batch sizes, rates and seeds.

Begin with `study.py`: `Sweep`, which plans, runs and collects. `grid.py` says what a cell is, `cell.py` trains one,
`workers.py` runs several at a time, `manifest.py` knows whose folder it is, `range_test.py` finds the learning rate.
"""
