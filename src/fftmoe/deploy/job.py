"""Defines what the server and a site say to each other before the first round: the job, and the site's profile.

Both arrive from another organisation, so both are validated before use.
"""

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from fftmoe.errors import InputError
from fftmoe.server.screening import MOST_EXAMPLES
from fftmoe.setup.deployment import SiteProfile

JOB_TYPES = {"recipe": dict, "labels": list, "run": str}
MOST_TEXT = 200  # characters of a name in a profile
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
RUN_NAME = re.compile(r"[0-9A-Za-z]{1,64}")


def make_job(recipe: Mapping[str, Any], label_names: Sequence[str], run: str) -> dict[str, Any]:
    """Return what a site must know about a run: its recipe, the labels in the order of the logits,
    and the run's name.
    """
    return {"recipe": dict(recipe), "labels": list(label_names), "run": run}


def read_job(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the server's job, if it has exactly the keys and types of `make_job`.

    Raises:
        InputError: it has not, or the run's name could not be the name of a folder.
    """
    right = {name: type(value) for name, value in job.items()} == JOB_TYPES
    if not right or not all(isinstance(label, str) for label in job["labels"]):
        raise InputError(f"the server's job is {reprlib.repr(job)}; expected a dictionary with {[*JOB_TYPES]}")
    if not RUN_NAME.fullmatch(job["run"]):  # it becomes the name of a folder at the site
        raise InputError(f"the server calls its run {job['run']!r:.100}; a name has 1 to 64 letters and digits only")
    return job


def read_profile(values: Mapping[str, Any]) -> SiteProfile:
    """Return a site's profile from its JSON values.

    Raises:
        InputError: a value is missing, is of another type, or is out of range.
    """
    types = {field.name: field.type for field in fields(SiteProfile)}
    right = isinstance(values, dict) and {name: type(value) for name, value in values.items()} == types
    if not right or not all(can_be(values[name]) for name, can_be in PROFILE_VALUES.items()):
        raise InputError(f"a site described itself as {reprlib.repr(values)}; expected a value for each of {[*types]}")
    return SiteProfile(**values)


def _short_and_printable(text: str) -> bool:
    return 0 < len(text) <= MOST_TEXT and text.isprintable()


PROFILE_VALUES: Mapping[str, Callable[[Any], object]] = {
    "site": _short_and_printable,
    "client_id": lambda number: 0 <= number <= MOST_EXAMPLES,
    "tier": _short_and_printable,
    "num_examples": lambda number: 0 < number <= MOST_EXAMPLES,
    "backbone": FINGERPRINT.fullmatch,
}
"""What each value of a profile can be; a profile arrives from another organisation."""
