"""Shows what a person sees of a run: progress on the terminal, the load of experts, trackers, and the HTML pages.

Nothing here computes a result, reads a recipe or reads a folder: callers pass values. Every package above may
import it.
"""
