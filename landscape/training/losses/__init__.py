"""Losses by family; each registers itself in `landscape.training.registries.losses`. Begin with `regression.py`."""
