"""Compares many runs side by side: the grid of cells, its worker processes, statistics, tables and page.

What happens inside one run does not live here. Only `cli` imports it.
"""
