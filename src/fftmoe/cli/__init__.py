"""Defines the command line: every verb with its help and what it prints.

No rule of a run lives here: a verb reads what a person typed, calls one function of a package below, and prints the
result. No other package imports this one.
"""
