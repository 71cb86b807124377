"""HDF5 archives of Results: the only place that imports h5py. Begin with `schema.py`."""
