"""A run: the loop over rounds, the exchange of messages, the policies of private and robust runs, and the journal.

The parts of a run are made from a recipe in `setup/`. The command line, `comparison/` and `deploy/` import it.
"""
