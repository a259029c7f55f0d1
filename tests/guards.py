"""Changes the checks of modules one after another, and sees that a test of one file fails each time.

`mutants.py` says what is changed. The tests run once as they are, while it is noted which of them call which functions
of the modules. Then a copy of the process is made for each change (a fork, so that neither imports nor fixtures are
paid for again), which runs the tests that call the changed function until one fails.

What a test does in another process, and what a fixture of a whole file has done before, is not seen.

Usage: python tests/guards.py fftmoe.server.screening[,MODULE...] tests/server/test_screening.py [options of pytest]
    --kinds guard,branch,... what is changed (default: guard)
    --only FILE  a JSON list of names: only these changes
"""

import ast
import importlib
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest

from mutants import GUARD, Mutant, find_mutants, functions_of, outermost

LEAST_SECONDS, TIMES = 20.0, 10.0  # a copy may take this long, and so often the time of its tests without a change
GREEN, NOT_PLACED = b"green", b"not placed"  # what a copy says; otherwise the number of the test that failed


def put_in_place(module: Any, tree: ast.Module, name: str) -> None:
    """Replace a function's code by that in `tree`. The object stays the same for all that imported it."""
    *_, wanted = (
        code for code in codes(compile(tree, module.__file__, "exec")) if named(code, name)
    )  # after overloads
    found: Any = module
    for part in name.split("."):
        found = vars(found)[part]
    found = getattr(found, "fget", None) or getattr(found, "func", None) or getattr(found, "wrapped", None) or found
    function = inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(function, FunctionType)
    function.__code__ = wanted


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def named(code: CodeType, name: str) -> bool:
    return code.co_qualname == name


class Calls:
    """Which functions of some modules are called, in any thread: each gets a first line that notes its call.

    A profiler would be called for every function of the process, which makes tests several times slower.
    """

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        self._noted = set[tuple[str, str]]()
        self._always = set[tuple[str, str]]()  # functions that cannot be changed in place count as called by every test
        for module in modules:
            self._watch(module)

    def _watch(self, module: ModuleType) -> None:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        names = dict.fromkeys(outermost(tree).values())
        for name, function in functions_of(tree):
            function.body.insert(0, ast.parse(f"_called_.add(({module.__name__!r}, {name!r}))").body[0])
        vars(module)["_called_"] = self._noted
        for name in names:
            try:
                put_in_place(module, ast.fix_missing_locations(tree), name)
            except (AssertionError, ValueError, KeyError, StopIteration):
                self._always.add((module.__name__, name))

    def taken(self) -> set[tuple[str, str]]:
        """The calls since the last time, by the name of the module and the qualified name of the function."""
        found = self._noted | self._always
        self._noted.clear()
        return found


class Change(NamedTuple):
    """A change of a module that is imported."""

    module: ModuleType
    mutant: Mutant

    @property
    def name(self) -> str:
        return f"{self.module.__name__}: {self.mutant.name}"

    @property
    def place(self) -> tuple[str, str]:
        return self.module.__name__, self.mutant.function


class Session:
    """A plugin of pytest that runs the tests unchanged, and then with each change."""

    def __init__(self, names: Sequence[str], kinds: tuple[str, ...], only: set[str] | None) -> None:
        modules = [importlib.import_module(name) for name in names]
        self._calls = Calls(modules)
        changes = [
            Change(module, mutant)
            for module in modules
            for mutant in find_mutants(Path(str(module.__file__)).read_text(), kinds)
        ]
        self._changes = [change for change in changes if only is None or change.name in only]
        self.survivors: list[str] = []
        self.killed = 0
        self.baseline: list[str] = []
        self._failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert len({item.path for item in session.items}) == 1, "what a file sets up is taken down after it"
        taken: dict[pytest.Item, float] = {}
        calls: dict[pytest.Item, set[tuple[str, str]]] = {}
        for item in session.items:
            start = time.perf_counter()
            self._calls.taken()
            green = self._passes(item, session)
            taken[item], calls[item] = time.perf_counter() - start, self._calls.taken()
            self.baseline += [] if green else [item.nodeid]
        if self.baseline:
            return True
        order = sorted(session.items, key=lambda item: taken[item])
        for change in self._changes:
            items = [item for item in order if change.place in calls[item]]
            said = self._says(change, items, session, LEAST_SECONDS + TIMES * sum(taken[item] for item in items))
            assert said != NOT_PLACED, f"cannot put {change.name} in place"
            if said == GREEN:
                self.survivors.append(change.name)
                continue
            self.killed += 1
            if said:  # the test that failed is asked first, because it knows the function
                item = session.items[int(said)]
                order.remove(item)
                order.insert(0, item)
        return True

    def _says(self, change: Change, items: list[pytest.Item], session: pytest.Session, seconds: float) -> bytes:
        """What a copy of the process says that runs these tests with the change; nothing if it ended before that.

        A copy that hangs is ended after so many seconds, and counts as failed.
        """
        if not items:
            return GREEN
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            said = NOT_PLACED
            try:
                put_in_place(change.module, change.mutant.tree, change.mutant.function)
                said = b""
                red = next((item for item in items if not self._passes(item, session)), None)
                said = GREEN if red is None else str(session.items.index(red)).encode()
            finally:
                os.write(theirs, said)
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            os.waitpid(pid, 0)
            return pipe.read(64)

    def _passes(self, item: pytest.Item, session: pytest.Session) -> bool:
        """Run one test. The fixtures of its file stay set up, because pytest expects another test after it."""
        self._failed = False
        following = next((other for other in session.items if other is not item), None)
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        return not self._failed


def main(modules: str, *arguments: str) -> dict[str, Any]:
    """Return how many changes made a test fail, and the names of those that did not."""
    given = list(arguments)
    kinds = tuple(_taken(given, "--kinds").split(",")) if "--kinds" in given else GUARD
    only = set(json.loads(Path(_taken(given, "--only")).read_text())) if "--only" in given else None
    plugin = Session(modules.split(","), kinds, only)
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    # typer imports names that click deprecates. The filter of shared_fixtures.py acts only in pytest's own loop.
    quiet += ["-W", "ignore:'click.:DeprecationWarning"]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        status = pytest.main([*quiet, *given], plugins=[plugin])
    return {
        "status": int(status),
        "killed": plugin.killed,
        "survivors": plugin.survivors,
        "red without a change": plugin.baseline,
    }


def _taken(arguments: list[str], option: str) -> str:
    place = arguments.index(option)
    value = arguments[place + 1]
    del arguments[place : place + 2]
    return value


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
