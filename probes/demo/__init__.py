"""The demo's task and its short trainings: real data, no download. Begin with `digits.py`."""
