"""Work in several processes: what a sweep's trainings and a probe's checkpoints share. Begin with `pool.py`.

`pool.py` is the side that gives jobs out, `process.py` the side that does them; they speak in lines of JSON.
"""
