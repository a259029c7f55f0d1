"""Writes a finished run in other forms: PEFT folders with a model card, a plain LoRA, and graphs that run by
themselves.

`trained/` loads the model of a run, and `setup/export.py` reads the run's recipe and chooses the form. Only `setup`
imports this package.
"""
