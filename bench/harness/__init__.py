"""What the benchmarks beside this folder share.

In: systems (`systems.py`, with an adapter each in `peers/`) and texts (`workloads.py`). Out: results as JSON, and their
tables.
`worker.py`, `prepare.py` and `gemm.py` are processes of their own. No benchmark is imported here.
"""
