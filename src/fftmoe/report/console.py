"""Writes to the terminal for every command: texts are shown as they are, and none of them can act on it."""

from typing import Any

import rich.console
from rich.text import Text

from fftmoe.shown import shown


class Console(rich.console.Console):
    """Is a console without markup, emoji codes and highlighting, which writes out control characters.

    A label, a tier, a client or the reason of a site may hold `[/b]`, `:x:` or an escape sequence; it is shown so.

    Args:
        options: of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich: every string that is printed, also in the cell of a table, comes here."""
        return super().render_str(shown(text), **options)
