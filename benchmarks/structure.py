"""Print how the package is built, from its source only: `python benchmarks/structure.py [BEFORE [AFTER]]`.

Prints a Markdown table of one checkout (default: this one), or of two side by side. `--list` adds the names behind the
counts. `--key federation.clients_per_round` counts, by file, the attributes that have the key's last name.

- A module counts as used by each module that imports it, directly or from a package whose `__init__.py` exports the
  name again. The export itself does not count as a use.
- A cycle is a group of modules each of which imports every other one, directly or through others. Imports within
  functions count. A separate row counts the imports for type checking only.
- The lines of a function are those from its first decorator to its end, including its docstring.
"""

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from source_graph import PACKAGE, Module, Modules, cycles_of, graph_of, read_modules, users_of

THIS = Path(__file__).parents[1]
LONG_FUNCTION, LONG_FILE = 40, 300  # lines; longer ones are counted
LONGEST = 10  # functions that are named
NOTHING = "–"


@dataclass(frozen=True)
class Figures:
    """The figures of one checkout.

    Attributes:
        packages: cells of the first part of the table, by their row. The last row is the total.
        counts: cells of the rest of the table.
        lists: the names behind a count.
    """

    packages: dict[str, str]
    counts: dict[str, str]
    lists: dict[str, list[str]]


def used_once(modules: Modules) -> list[str]:
    """The modules that exactly one other module uses, packages aside."""
    users = {name: others for name, others in users_of(modules).items() if not modules[name].is_package}
    return [f"{name} by {next(iter(others))}" for name, others in users.items() if len(others) == 1]


def top_level_names(module: Module) -> Iterator[str]:
    """The functions, classes and constants that a module defines; not its imports, nor names such as `__all__`."""
    for node in module.tree.body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            inner = (part for target in targets for part in ast.walk(target))
            names = [part.id for part in inner if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
        yield from (name for name in names if not name.startswith("__"))


def repeated_names(modules: Modules) -> list[str]:
    """The names that two or more modules define, and which modules those are."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules.values():
        for name in dict.fromkeys(top_level_names(module)):
            places[name].append(module.name)
    return [f"{name} in {', '.join(found)}" for name, found in sorted(places.items()) if len(found) > 1]


def functions_of(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    """The functions and methods below this node, also within functions, each with its number of lines."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{child.name}"
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
            yield name, (child.end_lineno or first) - first + 1
        yield from functions_of(child, name)


def by_length(modules: Modules) -> list[tuple[str, int]]:
    """All functions with their lines, the longest first."""
    found = [f for m in modules.values() for f in functions_of(m.tree, m.name.removeprefix(f"{PACKAGE}."))]
    return sorted(found, key=lambda function: (-function[1], function[0]))


def mentions(modules: Modules, key: str) -> dict[str, int]:
    """Count how often each file reads or sets an attribute with the key's last name."""
    name = key.rpartition(".")[2]
    found = Counter[str]()
    for module in modules.values():
        found[str(module.path)] += sum(isinstance(n, ast.Attribute) and n.attr == name for n in ast.walk(module.tree))
    return {path: count for path, count in found.items() if count}


def lines_of_tests(checkout: Path) -> dict[str, int]:
    """The lines of each file of tests, in the folder `tests` and in folders `tests` one level below the top."""
    folders = (*checkout.glob("tests"), *checkout.glob("*/tests"))
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return {str(path.relative_to(checkout)): len(path.read_text().splitlines()) for path in paths}


def packages_of(modules: Modules) -> dict[str, str]:
    """Files and lines by package, and of all."""
    files, lines = Counter[str](), Counter[str]()
    for module in modules.values():
        files[module.group] += 1
        lines[module.group] += module.lines
    sizes = {group: _size(files[group], lines[group]) for group in sorted(files)}
    return {**sizes, "total": _size(files.total(), lines.total())}


def measure(checkout: Path, keys: Sequence[str]) -> Figures:
    """Measure all figures of a checkout."""
    modules, tests = read_modules(checkout), lines_of_tests(checkout)
    functions = by_length(modules)
    named = [f"{name} ({length})" for name, length in functions]
    lists = {
        "modules used by exactly one other": used_once(modules),
        "names defined in two or more modules": repeated_names(modules),
        "import cycles": [", ".join(group) for group in cycles_of(graph_of(modules, for_types=False))],
        "import cycles, with imports for types": [", ".join(g) for g in cycles_of(graph_of(modules, for_types=True))],
        f"functions above {LONG_FUNCTION} lines": named[: sum(length > LONG_FUNCTION for _, length in functions)],
        f"files above {LONG_FILE} lines": [f"{m.path} ({m.lines})" for m in modules.values() if m.lines > LONG_FILE],
        f"files of tests above {LONG_FILE} lines": [f"{path} ({n})" for path, n in tests.items() if n > LONG_FILE],
    }
    counts = {"tests": _size(len(tests), sum(tests.values()))}
    counts |= {title: str(len(found)) for title, found in lists.items()}
    counts |= {f"longest function, {place}": name for place, name in enumerate(named[:LONGEST], 1)}
    for key in keys:
        found, title = mentions(modules, key), f"attributes of the name of {key}"
        counts[title] = f"{sum(found.values())} places in {len(found)} files"
        lists[title] = [f"{path} ({count})" for path, count in found.items()]
    return Figures(packages_of(modules), counts, lists)


def _size(files: int, lines: int) -> str:
    return f"{files} files, {lines:,} lines"


def table(found: Mapping[str, Figures]) -> str:
    """The figures of each checkout in a column."""
    packages = sorted({name for figures in found.values() for name in figures.packages} - {"total"})
    counts = dict.fromkeys(name for figures in found.values() for name in figures.counts)
    rows = [[name, *(f.packages.get(name, NOTHING) for f in found.values())] for name in (*packages, "total")]
    rows += [[name, *(f.counts.get(name, NOTHING) for f in found.values())] for name in counts]
    lines = [["", *found], ["---"] * (len(found) + 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="one checkout, or one before and one after a change"
    )
    parser.add_argument("--list", action="store_true", help="add the names behind the counts")
    parser.add_argument("--key", action="append", default=[], help="a key of recipes to look for; may be repeated")
    parsed = parser.parse_args(arguments)
    if len(parsed.checkouts) > 2:
        parser.error("name one checkout, or two")
    titles = ("before", "after") if len(parsed.checkouts) == 2 else ("figure",)
    checkouts = zip(titles, parsed.checkouts or [THIS], strict=True)
    found = {title: measure(checkout, parsed.key) for title, checkout in checkouts}
    print(table(found))
    for title, figures in found.items():
        for name, entries in figures.lists.items():
            if entries and (parsed.list or name.startswith("attributes")):
                print(f"\n{name}, {title}:\n")
                print("\n".join(f"- {entry}" for entry in entries))


if __name__ == "__main__":
    main()
