"""Marks what depends on arithmetic, which `make test-processors` runs under several settings of the libraries.

These are the tests of each module that compares tensors or stored figures, so that nobody has to remember the mark.
"""

import re
from functools import cache
from pathlib import Path

import pytest

COMPARISONS = re.compile(r"assert_close|allclose|golden|torch\.equal|mixture_bounds")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if compares(item.path):
            item.add_marker("arithmetic")


@cache
def compares(module: Path) -> bool:
    """Whether a module of tests compares results of arithmetic."""
    return COMPARISONS.search(module.read_text()) is not None
