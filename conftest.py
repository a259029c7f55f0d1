"""Gives the tests in `tests/` and in `benchmarks/tests/` the same fixtures."""

import gc

pytest_plugins = ("shared_fixtures", "arithmetic", "rounding")


def pytest_collection_finish() -> None:
    """Leave what importing and collecting has made out of each later search for garbage, which would visit it again."""
    gc.collect()
    gc.freeze()
