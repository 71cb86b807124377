"""Several checkpoints at a time, by several processes. Begin with `jobs.py`, the side that gives them out and keeps all
archives; `measuring.py` is what a worker does with one.
"""
