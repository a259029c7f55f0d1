"""Defines the federated methods: each decides what clients train, what they send, and how the server merges it.

The loop over rounds, messages and recipes live elsewhere. Every package above may import this one; it and `evaluate` do
not know each other.
"""
