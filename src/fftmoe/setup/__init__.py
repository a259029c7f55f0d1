"""From a recipe to the parts of a run: the only package below the command line that reads recipes.

The parts themselves live in the packages below, and take plain arguments. `rounds/`, `cost/`, `trained/`, `exports/`,
`deploy/` and `comparison/` import it.
"""
