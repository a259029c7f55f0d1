"""What a run will cost before it trains: bytes, memory and FLOPs from the recipe, seconds from a few timed steps.

What a run really took is counted in `rounds/`. The command line, `rounds/` and `deploy/` import it.
"""
