"""Prints lines as they are, without the markup of rich."""

import sys

from rich.console import Console


def say(console: Console, line: str) -> None:
    """Print a line without markup, and flush it: a long-running site may be read through a pipe."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
