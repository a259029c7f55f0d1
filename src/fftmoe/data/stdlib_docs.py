"""Makes the builtin data set: docstrings of the running Python's standard library, labelled with their topics.

Each text is the first paragraph of one docstring. Its label is the chapter of the Python Library Reference to which
the docstring's module belongs. `stdlib_chapters.json` is transcribed from the 3.11 reference's table of
contents, with private implementation modules under the chapter of the module that they implement (`_pydecimal`
under that of `decimal`). Nothing is downloaded, and no Python file of the library is executed: sources are parsed. Only
modules written in C, which have no source to parse, are imported, from the fixed list `C_MODULES`.
"""

import ast
import contextlib
import gc
import importlib
import inspect
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np

from fftmoe.errors import InputError
from fftmoe.rng import numpy_generator
from fftmoe.shown import count_of

# C modules whose import only defines names.
C_MODULES = (
    "_abc _asyncio _bisect _blake2 _bz2 _codecs _collections _contextvars _csv _datetime _decimal _functools"
    " _heapq _imp _io _json _locale _lzma _md5 _opcode _operator _pickle _queue _random _sha1 _sha3 _signal"
    " _socket _sqlite3 _sre _ssl _statistics _struct _symtable _thread _tracemalloc _warnings _weakref"
    " _zoneinfo array atexit binascii builtins cmath errno faulthandler fcntl gc grp itertools marshal math"
    " mmap posix pwd pyexpat resource select sys syslog termios time unicodedata zlib"
).split()
# idlelib is an application that the reference does not describe module by module.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}
MIN_CHARACTERS = 20
MIN_CHAPTER_TEXTS = 60
# With fewer than three texts a module could have a single training example, because every fifth text is for testing.
MIN_MODULE_TEXTS = 3
TEST_EVERY = 5
# A constant, because the test set is part of the data and must not change with a run's seed.
SPLIT_SEED = 20_250_818

DocRow = tuple[str, str, str]  # text, chapter, top-level module


def stdlib_docs() -> dict[str, list[DocRow]]:
    """Return the rows of the builtin data set by split.

    Rules, in order: texts of fewer than 20 characters are dropped; a text that occurs under several chapters
    is ambiguous and dropped, one that repeats under one chapter is kept where it first occurs; modules with
    fewer than 3 texts and then chapters with fewer than 60 are dropped. A fifth of every chapter, spread over
    its modules, is the test split, which is the same in every run.

    Returns:
        `{"train": rows, "test": rows}`, each row `(text, chapter, top-level module)`, in a fixed order.

    Raises:
        InputError: the running Python was installed without its library's source files.
    """
    with collector_paused():
        rows = _keep_frequent(drop_repeats(_all_rows()))
    chapters = sorted({chapter for _, chapter, _ in rows})
    if len(chapters) < 2:
        raise InputError(
            f"builtin:stdlib-docs found {count_of(len(rows), 'docstring')} in {sysconfig.get_path('stdlib')!r}: this "
            "Python was installed without the sources of its standard library; use an interpreter that has them, or "
            "give data.source a folder with train and test files"
        )
    splits: dict[str, list[DocRow]] = {"train": [], "test": []}
    for chapter in chapters:
        for name, part in _split([row for row in rows if row[1] == chapter], chapter).items():
            splits[name].extend(part)
    return splits


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python, within the context, from looking for cycles of objects."""
    # Syntax trees hold no cycles, but the search for cycles in millions of nodes takes as long as parsing.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def module_chapters() -> dict[str, str]:
    """Return the chapters of the reference by module, as they are stored with the package."""
    table = json.loads(resources.files("fftmoe.data").joinpath("stdlib_chapters.json").read_text("utf-8"))
    return {module: chapter for chapter, modules in table.items() for module in modules}


def chapter_of(module: str, chapters: dict[str, str]) -> str | None:
    """Return the chapter of a dotted module name, by its longest listed prefix; None if it has none."""
    while module not in chapters and "." in module:
        module = module.rpartition(".")[0]
    return chapters.get(module)


def _all_rows() -> Iterator[DocRow]:
    chapters = module_chapters()
    for module, docstrings in [*source_docstrings(Path(sysconfig.get_path("stdlib"))), *_c_docstrings()]:
        chapter = chapter_of(module, chapters)
        if chapter is None:
            continue
        for text in map(first_paragraph, docstrings):
            if len(text) >= MIN_CHARACTERS:
                yield text, chapter, module.partition(".")[0]


def first_paragraph(docstring: str) -> str:
    """Return the first paragraph on one line, whitespace collapsed, characters that UTF-8 cannot carry replaced."""
    lines = inspect.cleandoc(docstring).split("\n\n", 1)[0]
    return " ".join(lines.split()).encode("utf-8", "replace").decode("utf-8")


def source_docstrings(root: Path) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield the dotted name and the docstrings of every module under `root`, in path order."""
    for module, path in source_files(root):
        yield module, _docstrings_in(path)


def source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every module under `root`, in path order."""
    paths: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = set(folders) - SKIPPED_FOLDERS  # they are never entered: site-packages may be huge
        paths.extend(Path(folder, file) for file in files if file.endswith(".py"))
    for path in sorted(paths):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def _docstrings_in(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # the library includes a few templates that are not valid Python
    yield from _docstrings(tree)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Yield the docstrings of `node` and of every definition in it, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node, clean=False) or ""
    # Only statements can hold definitions; skipping expressions makes the walk several times faster.
    for field in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, field, ()) if not isinstance(node, ast.expr) else ():
            yield from _docstrings(child)


def _c_docstrings() -> Iterator[tuple[str, Iterator[str]]]:
    """Yield the name and the docstrings of every C module of this Python."""
    for name in C_MODULES:
        with contextlib.suppress(ImportError):  # not on this platform, or not in this build
            yield name, _member_docstrings(importlib.import_module(name))


def _member_docstrings(module: ModuleType) -> Iterator[str]:
    """Yield the docstrings of a module, of its functions and classes, and of the members of its classes."""
    yield module.__doc__ or ""
    for _, member in sorted(vars(module).items()):
        # A re-exported member belongs to the module that it names, which may be in another chapter.
        if callable(member) and getattr(member, "__module__", None) == module.__name__:
            yield _own_doc(member)
            for _, value in sorted(vars(member).items()) if isinstance(member, type) else ():
                yield _own_doc(value)


def _own_doc(member: object) -> str:
    doc = getattr(member, "__doc__", None)
    # The docstring of a plain value is that of its class.
    return doc if isinstance(doc, str) and doc is not type(member).__doc__ else ""


def drop_repeats(rows: Iterator[DocRow]) -> list[DocRow]:
    """Return the first row of each text, without the texts that occur under several chapters."""
    first: dict[str, DocRow] = {}
    ambiguous: set[str] = set()
    for row in rows:
        if first.setdefault(row[0], row)[1] != row[1]:
            ambiguous.add(row[0])
    return [row for text, row in first.items() if text not in ambiguous]


def _keep_frequent(rows: list[DocRow]) -> list[DocRow]:
    modules = Counter(module for _, _, module in rows)
    rows = [row for row in rows if modules[row[2]] >= MIN_MODULE_TEXTS]
    chapters = Counter(chapter for _, chapter, _ in rows)
    return [row for row in rows if chapters[row[1]] >= MIN_CHAPTER_TEXTS]


def _split(rows: list[DocRow], chapter: str) -> dict[str, list[DocRow]]:
    """Return every fifth row of a chapter for testing, after shuffling within each module: stratified by both."""
    rng = numpy_generator(SPLIT_SEED, "stdlib-docs", chapter)
    by_module = np.lexsort((rng.random(len(rows)), np.array([module for _, _, module in rows])))
    chosen = set(by_module[int(rng.integers(TEST_EVERY)) :: TEST_EVERY].tolist())
    return {
        "train": [row for index, row in enumerate(rows) if index not in chosen],
        "test": [row for index, row in enumerate(rows) if index in chosen],
    }
