"""The command line: every verb with its help, what it prints, and `fftmoe init`.

No rule of a run lives here: verbs read what a person typed, call one function below, and print. Nobody imports it.
"""
