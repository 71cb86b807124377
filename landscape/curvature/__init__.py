"""Curvature of the loss: operators, their eigenpairs, traces, and sharpness. Begin with `operators.py`."""
