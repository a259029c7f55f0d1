"""Does the server's part of a round: chooses the cohort, plans, screens the updates, aggregates them, and computes the
head.

The loop over rounds is in `rounds/`, and the rules of each method are in `methods/`. Only `cost`, `trained`,
`rounds`, `setup` and `deploy` import this package.
"""
