"""Can the confidence of a classifier be trusted? Begin with `scores.py`."""
