"""The command line: parse, make one call, print. No mathematics, no h5py, no drawing. Begin with `main.py`."""
