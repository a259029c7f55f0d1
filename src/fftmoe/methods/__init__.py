"""Contains the federated methods: each decides what clients train, what they send, and how the server merges it."""
