"""Read the modules of the package and their imports from the source, without importing it."""

import ast
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "fftmoe"

Graph = Mapping[str, Set[str]]  # of each module, others by name


@dataclass(frozen=True)
class Module:
    """One source file of the package.

    Attributes:
        name: with dots, as it is imported.
        path: from the package's folder.
        lines: how many the file has.
    """

    name: str
    path: Path
    lines: int
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Return whether the module is the `__init__.py` of a package."""
        return self.path.name == "__init__.py"

    @property
    def group(self) -> str:
        """Return the folder of the module, directly below the package's own."""
        return self.path.parts[0] if len(self.path.parts) > 1 else "(top level)"


Modules = Mapping[str, Module]  # by name


@dataclass(frozen=True)
class Import:
    """A name that a module gets from another one.

    Attributes:
        module: the other one; of whatever package.
        name: what is taken from it; None for the module itself.
        local: how the importing module calls it.
        for_types: it stands below `if TYPE_CHECKING`.
    """

    module: str
    name: str | None
    local: str
    for_types: bool


def read_modules(checkout: Path) -> dict[str, Module]:
    """The modules of the package in this checkout, by name."""
    folder = checkout / "src" / PACKAGE
    if not folder.is_dir():
        raise SystemExit(f"{checkout} has no folder src/{PACKAGE}")
    found = {}
    for path in sorted(folder.rglob("*.py")):
        text, place = path.read_text(), path.relative_to(folder)
        parts = place.parent.parts if path.name == "__init__.py" else place.with_suffix("").parts
        name = ".".join((PACKAGE, *parts))
        found[name] = Module(name, place, len(text.splitlines()), ast.parse(text))
    return found


def imports_of(module: Module) -> Iterator[Import]:
    """The imports anywhere in this module, also within functions."""
    for node, for_types in _within(module.tree, False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, alias.asname or alias.name, for_types)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(_source(node, module), alias.name, alias.asname or alias.name, for_types)


def _within(node: ast.AST, for_types: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below this one, and whether it stands below `if TYPE_CHECKING`."""
    checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        below = for_types or (checked and isinstance(node, ast.If) and child in node.body)
        yield child, below
        yield from _within(child, below)


def _source(node: ast.ImportFrom, module: Module) -> str:
    """The absolute name of the module after `from`."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    above = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*above, *([node.module] if node.module else [])])


def target_of(found: Import, modules: Modules) -> str | None:
    """The module of the package that an import names; None where it names another package."""
    inner = f"{found.module}.{found.name}"
    if found.name is not None and inner in modules:
        return inner
    return found.module if found.module in modules else None


def graph_of(modules: Modules, for_types: bool) -> Graph:
    """Return what each module imports, as written; `for_types`: include imports for type checking only."""
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for module in modules.values():
        for found in imports_of(module):
            target = target_of(found, modules)
            if target not in (None, module.name) and (for_types or not found.for_types):
                graph[module.name].add(target)
    return graph


def users_of(modules: Modules) -> Graph:
    """Return the users of each module, including those that import its names from an exporting package."""
    passed_on = {
        (module.name, found.local): Import(target, found.name, found.local, False)
        for module in modules.values()
        if module.is_package
        for found in imports_of(module)
        if found.name is not None and (target := target_of(found, modules)) not in (None, module.name)
    }
    users: dict[str, set[str]] = {name: set() for name in modules}
    for module in modules.values():
        for found in _uses(module, modules):
            while found is not None and (target := target_of(found, modules)) is not None:
                users[target].add(module.name)
                found = passed_on.get((target, found.name or ""))
    return {name: others - {name} for name, others in users.items()}


def _uses(module: Module, modules: Modules) -> Iterator[Import]:
    """Return the module's imports, except those that a package only exports, and names such as `package.name`."""
    nodes = [*ast.walk(module.tree)]
    read = {node.id for node in nodes if isinstance(node, ast.Name)}
    imports = [found for found in imports_of(module) if not module.is_package or found.local in read]
    yield from imports
    homes = {found.local: target_of(found, modules) for found in imports}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            home = homes.get(node.value.id)
            if home is not None and modules[home].is_package:
                yield Import(home, node.attr, node.attr, False)


def cycles_of(graph: Graph) -> list[list[str]]:
    """The groups of modules each of which imports every other one, directly or through others."""
    reached = {name: _reached(graph, name) for name in graph}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def _reached(graph: Graph, start: str) -> set[str]:
    found, waiting = set[str](), [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found
