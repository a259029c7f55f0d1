"""Asks once, and not again for every file, whether the Hugging Face hub can be reached.

The hub's client repeats each failed request for half a minute, and a model has many files: a typo in the name of a
folder would cost minutes without a network.
"""

import time
from functools import lru_cache

import httpx
from huggingface_hub import constants, get_session

PATIENCE_SECONDS = 10.0
REMEMBERED_SECONDS = 60.0


def why_unreachable() -> str | None:
    """Return the reason why the hub cannot be reached, in words; None if it answers, whatever it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _asked(constants.ENDPOINT, int(time.monotonic() / REMEMBERED_SECONDS))


@lru_cache(maxsize=4)
def _asked(endpoint: str, _minute: int) -> str | None:
    try:
        get_session().head(endpoint, timeout=PATIENCE_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None
