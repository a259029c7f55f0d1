"""What the server and a site say to each other before the first round: the job, and the site's profile.

Both arrive from another organisation, so both are validated before use.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fftmoe.errors import InputError
from fftmoe.server.screening import MOST_EXAMPLES
from fftmoe.setup.deployment import SiteProfile

JOB_TYPES = {"recipe": dict, "labels": list, "run": str}
RUN_NAME = re.compile(r"[0-9A-Za-z]{1,64}")


def make_job(recipe: Mapping[str, Any], label_names: Sequence[str], run: str) -> dict[str, Any]:
    """What a site must know about a run: its recipe, the labels in the order of the logits, and the run's name."""
    return {"recipe": dict(recipe), "labels": list(label_names), "run": run}


def read_job(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """The server's job, if it has exactly the keys and types of `make_job`.

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
    """A site's profile from its JSON values.

    Raises:
        InputError: a value is missing, is of another type, or is out of range.
    """
    types = {field.name: field.type for field in fields(SiteProfile)}
    right = isinstance(values, dict) and {name: type(value) for name, value in values.items()} == types
    if not right or not 0 < values["num_examples"] <= MOST_EXAMPLES:
        raise InputError(f"a site described itself as {reprlib.repr(values)}; expected a value for each of {[*types]}")
    return SiteProfile(**values)
