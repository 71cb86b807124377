"""Losses, schedules and optimizers by name, and what drives them during training. Begin with `registries.py`."""
