"""The server's part of a round: choose the cohort, plan, screen the updates, aggregate them, and compute the head.

The loop over rounds is in `rounds/`, and the rules of each method are in `methods/`. Only `cost`, `trained`,
`rounds`, `setup` and `deploy` import this package.
"""
