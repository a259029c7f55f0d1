"""Puts a finished run to work: loads, measures and asks its model or a client's personal model, and generates text.

Recipes and run folders are read in `setup/finished.py`, and other forms of a run are written in `exports/`. Only
`exports`, `setup` and `cli` import this package.
"""
