"""Checks the names of sites, which become names of folders and files."""

import re
from collections.abc import Sequence

from fftmoe.errors import InputError

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")  # no leading hyphen, because a command would read it as an option


def check_sites(names: Sequence[str]) -> None:
    """Check that these can be the names of all sites, in the order of their client ids.

    Raises:
        InputError: there is no name, a name cannot be used, or two names are the same.
    """
    if not names:
        raise InputError("there are no sites; name at least one, such as --sites hospital-a,hospital-b")
    seen: set[str] = set()
    for i, name in enumerate(names, start=1):
        if not isinstance(name, str) or not SITE_NAME.fullmatch(name):
            raise InputError(
                f"site {i} cannot be called {name!r}; "
                "use 1 to 32 lower-case letters, digits and hyphens, and no hyphen in front"
            )
        if name in seen:
            raise InputError(f"two sites are called {name!r}; give each its own name")
        seen.add(name)
