"""Merges the updates of a round into one delta, and applies the delta to the global model."""
