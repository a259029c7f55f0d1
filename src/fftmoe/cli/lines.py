"""Prints lines as they are, without the markup of rich."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from fftmoe.shown import shown


def say(console: Console, line: str) -> None:
    """Print a line without markup, and flush it: a long-running site may be read through a pipe."""
    console.print(shown(line), highlight=False, markup=False, emoji=False, soft_wrap=True)
    sys.stdout.flush()


def say_choices(console: Console, chosen: Mapping[str, Any]) -> None:
    """Print the values of a recipe that followed from its data, if there are any.

    Args:
        chosen: by dotted key; those that follow from the task, the model and the tiers, are left out.
    """
    shown_keys = [key for key in chosen if key not in ("backbone.model", "budgets")]
    if shown_keys:
        say(console, f"from the data: {', '.join(f'{key}={chosen[key]}' for key in shown_keys)}")


def say_prompt_form(console: Console, prompt_column: str | None, chat_template: bool, model: str) -> None:
    """Print how the prompts of a language model are written, if there are any; see `prompt_form`."""
    if prompt_column is None:  # the import below takes seconds
        return
    from fftmoe.trained.prompts import prompt_form

    if (line := prompt_form(prompt_column, chat_template, model)) is not None:
        say(console, line)
