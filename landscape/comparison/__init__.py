"""Statistics across runs: differences with their intervals, rank correlations. No torch. Begin with `paired.py`."""
