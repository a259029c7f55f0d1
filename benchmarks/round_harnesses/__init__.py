"""One tiny federated fit in four harnesses, for `benchmarks/round_overhead.py`."""
