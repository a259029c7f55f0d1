"""Finds the options among which the answer to a prompt is, where there are some.

Two places say them: a list at the end of a prompt, as FLAN writes it (Wei et al., 2022),

    OPTIONS:
    - yes
    - no

and the completions of a task that has only a few different ones, such as the classes of a data set.
"""

import re
from collections.abc import Sequence

LISTED = re.compile(r"^[ \t]*options:[ \t]*\n((?:[ \t]*-[^\n]*(?:\n|$))+)", re.IGNORECASE | re.MULTILINE)
MOST_OPTIONS = 12  # different completions of a task; those of a task with more are texts of their own
ROWS_OF_EACH = 3  # on average, for a task with few rows has few completions of any kind


def listed_options(prompt: str) -> list[str]:
    """Return the last list of options in a prompt; empty if there is none of at least two."""
    lists = LISTED.findall(prompt)
    items = [line.strip().removeprefix("-").strip() for line in lists[-1].splitlines()] if lists else []
    found = list(dict.fromkeys(item for item in items if item))
    return found if len(found) > 1 else []


def common_completions(completions: Sequence[str]) -> list[str]:
    """Return the different completions of a task, sorted, if there are few of them; else nothing."""
    found = sorted({completion.strip() for completion in completions})
    few = 1 < len(found) <= MOST_OPTIONS and len(completions) >= ROWS_OF_EACH * len(found)
    return found if few else []


def options_of(prompt: str, completion: str, common: Sequence[str]) -> list[str]:
    """Return the options of one row; empty if it has none, or if its completion is not among them.

    Args:
        common: `common_completions` of its task, which count where the prompt lists none.
    """
    found = listed_options(prompt) or list(common)
    return found if completion.strip() in found else []
