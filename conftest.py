"""Gives the tests in `tests/` and in `benchmarks/tests/` the same fixtures."""

pytest_plugins = ("shared_fixtures", "arithmetic", "rounding")
