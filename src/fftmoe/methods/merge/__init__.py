"""Merges the updates of a round into one delta, and applies the delta to the global model.

What a single method trains and sends lives in its own file next to this folder. Only `methods`
and `setup` import this package.
"""
