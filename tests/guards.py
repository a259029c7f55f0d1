"""Removes the guards of a module one after another, and checks that a test of one file fails each time.

A guard is an `if` that ends by raising, a call of a function whose name begins with `check_` or `_check_`, or an
`except` that raises something else. The tests run once as they are; then a copy of the process is made for each guard
(a fork, so that neither imports nor fixtures are paid for again), which runs them without it until one fails.

Usage: python tests/guards.py fftmoe.server.screening tests/server/test_screening.py [options of pytest]
"""

import ast
import importlib
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple, TypeGuard

import pytest

SECONDS = 120  # limit of a copy; a copy that hangs counts as failed


class Guard(NamedTuple):
    """A guard: its place, and the module without it."""

    function: str  # qualified name of the outermost function around it
    line: int
    what: str
    tree: ast.Module  # the module without it


def find_guards(source: str) -> Iterator[Guard]:
    """Find the guards of a module."""
    for position, node in enumerate(ast.walk(ast.parse(source))):
        if not is_guard(node):
            continue
        tree = ast.parse(source)
        remover = Remover(position, tree)
        without = ast.fix_missing_locations(remover.visit(tree))
        yield Guard(remover.function, node.lineno, ast.unparse(node).splitlines()[0], without)


def is_guard(node: ast.AST) -> TypeGuard[ast.If | ast.ExceptHandler | ast.Expr]:
    if isinstance(node, ast.If | ast.ExceptHandler):
        last = node.body[-1]
        return isinstance(last, ast.Raise) and last.exc is not None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        name = getattr(function, "id", getattr(function, "attr", ""))
        return name.removeprefix("_").startswith("check_")
    return False


class Remover(ast.NodeTransformer):
    """Removes the node at a position in the order of `ast.walk`, and records the function around it."""

    def __init__(self, position: int, tree: ast.Module) -> None:
        self._wanted = list(ast.walk(tree))[position]
        self._names: list[tuple[str, bool]] = []
        self.function = ""

    def visit(self, node: ast.AST) -> Any:
        if node is self._wanted:
            for name, is_function in self._names:
                self.function += ("." if self.function else "") + name
                if is_function:
                    break
            if isinstance(node, ast.ExceptHandler):
                node.body = [ast.Raise(None, None)]
                return node
            return node.orelse or ast.Pass() if isinstance(node, ast.If) else ast.Pass()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self._names.append((node.name, isinstance(node, ast.FunctionDef)))
            try:
                return self.generic_visit(node)
            finally:
                self._names.pop()
        return self.generic_visit(node)


def put_in_place(module: Any, guard: Guard) -> None:
    """Replace the function's code by code without the guard. The object stays the same for all that imported it."""
    wanted = next(code for code in codes(compile(guard.tree, module.__file__, "exec")) if named(code, guard.function))
    found: Any = module
    for part in guard.function.split("."):
        found = vars(found)[part]
    function = inspect.unwrap(getattr(found, "fget", None) or getattr(found, "__func__", found))
    assert isinstance(function, FunctionType)
    function.__code__ = wanted


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def named(code: CodeType, name: str) -> bool:
    return code.co_qualname == name


class Session:
    """A plugin of pytest that runs the tests unchanged, and then without each guard."""

    def __init__(self, module: str) -> None:
        self._module = importlib.import_module(module)
        self.survivors: list[str] = []
        self.killed = 0
        self.baseline: list[str] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert len({item.path for item in session.items}) == 1, "what a file sets up is taken down after it"
        failed, taken = [], {}
        for item in session.items:
            start = time.perf_counter()
            failed += [item.nodeid] if not passes(item, session.items) else []
            taken[item] = time.perf_counter() - start
        self.baseline = failed
        if failed:
            return True
        quickest_first = sorted(session.items, key=lambda item: taken[item])
        for guard in find_guards(inspect.getsource(self._module)):
            if self._survives(guard, quickest_first):
                self.survivors.append(f"{self._module.__name__}:{guard.line} in {guard.function}: {guard.what}")
            else:
                self.killed += 1
        return True

    def _survives(self, guard: Guard, items: list[pytest.Item]) -> bool:
        pid = os.fork()
        if not pid:
            signal.alarm(SECONDS)
            try:
                put_in_place(self._module, guard)
                green = all(passes(item, items) for item in items)
            except BaseException:
                green = False
            os._exit(0 if green else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def passes(item: pytest.Item, items: list[pytest.Item]) -> bool:
    """Run one test. The fixtures of its file stay set up, because pytest expects another test after it."""
    following = next((other for other in items if other is not item), None)
    reports: list[pytest.TestReport] = runtestprotocol(item, log=False, nextitem=following)
    return not any(report.failed for report in reports)


runtestprotocol: Callable[..., Any] = importlib.import_module("_pytest.runner").runtestprotocol


def main(module: str, *arguments: str) -> dict[str, Any]:
    """Return how many removed guards made a test fail, and the guards that did not."""
    plugin = Session(module)
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    # typer imports names that click deprecates. The filter of shared_fixtures.py acts only in pytest's own loop.
    quiet += ["-W", "ignore:'click.:DeprecationWarning"]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        status = pytest.main([*quiet, *arguments], plugins=[plugin])
    return {
        "status": int(status),
        "killed": plugin.killed,
        "survivors": plugin.survivors,
        "red without a change": plugin.baseline,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
