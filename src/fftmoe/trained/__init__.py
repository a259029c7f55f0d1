"""A finished run at work: loading it, predictions, a client's own model, generated text.

Other forms of a finished run live in `exports/`. The command line, `rounds/` and `exports/` import it.
"""
