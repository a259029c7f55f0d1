"""Prints lines as they are, without the markup of rich."""

import sys

from rich.console import Console

from fftmoe.shown import shown


def say(console: Console, line: str) -> None:
    """Print a line without markup, and flush it: a long-running site may be read through a pipe."""
    console.print(shown(line), highlight=False, markup=False, emoji=False, soft_wrap=True)
    sys.stdout.flush()
