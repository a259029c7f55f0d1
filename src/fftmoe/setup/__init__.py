"""Makes the parts of a run from a recipe, and wires whole runs, forecasts, exports and predictions.

It is the only package below the command line that reads recipes; the parts themselves live in the packages below and
take plain values. Only `cli`, `comparison`, `deploy` and `flower_app` import it.
"""
