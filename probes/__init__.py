"""Measurements in time: what watches a training run, and the demo's trainings. Imports the core, never the cli."""
