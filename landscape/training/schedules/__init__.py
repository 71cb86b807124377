"""Schedules by family; each registers itself in `landscape.training.registries.schedules`. Begin with `decay.py`."""
