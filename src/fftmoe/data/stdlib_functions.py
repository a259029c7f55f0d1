"""Reads the functions of Python's standard library, as the running interpreter's own source files define them.

Nothing is executed: sources are parsed. They are under the licence of Python (PSF-2.0).
"""

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fftmoe.data.stdlib_docs import chapter_of, first_paragraph, module_chapters, source_files

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class DocumentedFunction:
    """Describes a function or method that has a docstring.

    Attributes:
        chapter: of the Python Library Reference to which its module belongs.
        summary: the first paragraph of its docstring, on one line.
        signature: `def name(...):`, on one line.
        body: its source without signature and docstring, dedented.
        defaults: the names of its parameters that have a default value. raised: the exceptions that it raises by name.
    """

    chapter: str
    summary: str
    signature: str
    body: str
    defaults: tuple[str, ...]
    raised: tuple[str, ...]

    @property
    def source(self) -> str:
        """Return the signature and the body, without the docstring."""
        return self.signature + "\n" + "\n".join(f"    {line}" if line else "" for line in self.body.split("\n"))


def documented_functions() -> Iterator[DocumentedFunction]:
    """Yield the functions of all modules that the reference names, in the order of files and lines; some repeat."""
    chapters = module_chapters()
    for module, path in source_files(Path(sysconfig.get_path("stdlib"))):
        chapter = chapter_of(module, chapters)
        if chapter is None:
            continue
        try:
            text = path.read_bytes().decode("utf-8")
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue  # the library includes a few templates that are not valid Python
        lines = text.split("\n")
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION) and len(node.body) > 1 and ast.get_docstring(node, clean=False):
                yield _described(node, chapter, lines)


def _described(node: FUNCTION, chapter: str, lines: list[str]) -> DocumentedFunction:
    body = lines[node.body[1].lineno - 1 : node.end_lineno]
    keyword_only = [name for name, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if value]
    positional = [*node.args.posonlyargs, *node.args.args]
    with_default = positional[len(positional) - len(node.args.defaults) :]
    return DocumentedFunction(
        chapter=chapter,
        summary=first_paragraph(ast.get_docstring(node, clean=False) or ""),
        signature=f"def {node.name}({ast.unparse(node.args)}):",
        body=inspect.cleandoc("\n" + "\n".join(body)),
        defaults=tuple(argument.arg for argument in [*with_default, *keyword_only]),
        raised=tuple(dict.fromkeys(_raised(node))),
    )


def _raised(function: FUNCTION) -> Iterator[str]:
    """Yield the names of the exceptions that stand in its `raise` statements, in the order of the lines."""
    raises = [node for node in ast.walk(function) if isinstance(node, ast.Raise)]
    for node in sorted(raises, key=lambda one: one.lineno):
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if isinstance(raised, ast.Name) and raised.id[0].isupper():
            yield raised.id
