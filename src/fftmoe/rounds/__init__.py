"""Runs the federated round: the loop, the exchange of messages, the policies of private and unreliable runs, the
journal.

Nothing here reads a recipe: `setup/` makes the parts of a run and gives them to the loop. Only `setup` imports it.
"""
