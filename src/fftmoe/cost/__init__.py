"""Forecasts what a run will cost, before it trains: bytes, memory and FLOPs from shapes, and seconds from a few timed
steps.

`analytic.py` and `timed.py` hold the two forecasts; the other modules apply them to a run and to a machine. Everything
here takes plain values (`workload.py`); `setup/forecast.py` makes them from a recipe. What a run really took is counted
in `rounds/`. Only `setup` and `cli` import this package.
"""
