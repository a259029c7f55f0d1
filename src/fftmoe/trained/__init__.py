"""A finished run at work: its model loaded, measured and asked, a client's personal model, and generated text.

Recipes and run folders are read in `setup/finished.py`, and other forms of a run are written in `exports/`. Only
`exports`, `setup` and `cli` import this package.
"""
