"""Finds what can be changed in a module so that one of its checks is gone or says something else.

Kinds of change:

- `guard`: an `if` that ends by raising, or a call of a function whose name begins with `check_` or `_check_`, is taken
  out; an `except` that raises something else lets the first error through.
- `branch`: any other `if` never holds.
- `negated`: a comparison says the opposite, or a `not` is taken out.
- `border`: a comparison by size counts the border to the other side.
- `part`: one part of an `and` or `or` is taken out.
- `bound`: `min` or `max` returns one of its arguments.
"""

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

GUARD, OTHERS = ("guard",), ("branch", "negated", "border", "part", "bound")
KINDS = GUARD + OTHERS
OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.Lt: ast.GtE,
    ast.Gt: ast.LtE,
    ast.In: ast.NotIn,
    ast.Is: ast.IsNot,
}
OPPOSITE |= {other: one for one, other in OPPOSITE.items()}
BORDER: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}


class Mutant(NamedTuple):
    """A change: its kind and place, the words of the code before and after it, and the module with it."""

    kind: str
    function: str  # qualified name of the outermost function around it
    line: int
    before: str
    after: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """What it is called in a list; it has no line, so that it stays the same when the lines above change."""
        return f"{self.function}: {self.kind}: {self.before} -> {self.after or 'nothing'}"


def find_mutants(source: str, kinds: tuple[str, ...] = KINDS) -> Iterator[Mutant]:
    """Find the changes of these kinds inside the functions of a module."""
    tree = ast.parse(source)
    functions = outermost(tree)
    for position, node in enumerate(ast.walk(tree)):
        if node not in functions:
            continue
        for kind, others in changes(node):
            if kind in kinds:
                changed = ast.fix_missing_locations(Exchange(position, others).done(source))
                words = [ast.unparse(part).splitlines()[0] for part in (node, *others[:1])]
                yield Mutant(kind, functions[node], _line(node), words[0], "".join(words[1:]), changed)


def find_guards(source: str) -> Iterator[Mutant]:
    """Find what raises, or calls what raises."""
    return find_mutants(source, GUARD)


def outermost(tree: ast.Module) -> dict[ast.AST, str]:
    """The qualified name of the outermost function around each node that is in a function and not its signature."""
    found: dict[ast.AST, str] = {}

    def visit(node: ast.AST, name: str, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if inside:
                found[child] = name
                visit(child, name, True)
            elif isinstance(child, ast.ClassDef | ast.FunctionDef):
                own = f"{name}.{child.name}" if name else child.name
                if isinstance(child, ast.ClassDef):
                    visit(child, own, False)
                    continue
                for statement in child.body:
                    found[statement] = own
                    visit(statement, own, True)

    visit(tree, "", False)
    return found


def functions_of(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The outermost functions with their qualified names."""

    def found(node: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                own = f"{name}.{child.name}" if name else child.name
                if isinstance(child, ast.FunctionDef):
                    yield own, child
                else:
                    yield from found(child, own)
            else:
                yield from found(child, name)

    return found(tree, "")


def changes(node: ast.AST) -> Iterator[tuple[str, list[ast.stmt] | list[ast.expr] | list[ast.excepthandler]]]:
    """The kinds of change of a node, each with what stands in its place."""
    if isinstance(node, ast.If):
        yield ("guard" if _raises(node.body) else "branch"), node.orelse or [ast.Pass()]
    elif isinstance(node, ast.ExceptHandler) and _raises(node.body):
        yield "guard", [ast.ExceptHandler(node.type, node.name, [ast.Raise(None, None)])]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and is_check(node.value):
        yield "guard", [ast.Pass()]
    elif isinstance(node, ast.expr):
        yield from _of_expression(node)


def _of_expression(node: ast.expr) -> Iterator[tuple[str, list[ast.expr]]]:
    if isinstance(node, ast.IfExp):
        yield "branch", [node.orelse]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "negated", [node.operand]
    elif isinstance(node, ast.Compare):
        for kind, table in (("negated", OPPOSITE), ("border", BORDER)):
            for place, op in enumerate(node.ops):
                if type(op) in table:
                    ops = [table[type(op)]() if place == other else one for other, one in enumerate(node.ops)]
                    yield kind, [ast.Compare(node.left, ops, node.comparators)]
    elif isinstance(node, ast.BoolOp):
        for place in range(len(node.values)):
            rest = node.values[:place] + node.values[place + 1 :]
            yield "part", [rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)]
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("min", "max") and len(node.args) > 1:
        yield from (("bound", [argument]) for argument in node.args)


def _raises(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], ast.Raise) and body[-1].exc is not None


def is_check(call: ast.Call) -> bool:
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    return name.removeprefix("_").startswith("check_")


def _line(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)


class Exchange(ast.NodeTransformer):
    """Puts other nodes in the place of the node at a position in the order of `ast.walk`."""

    def __init__(self, position: int, others: list[ast.stmt] | list[ast.expr] | list[ast.excepthandler]) -> None:
        self._position = position
        self._others = copy.deepcopy(others)

    def done(self, source: str) -> ast.Module:
        tree = ast.parse(source)
        self._wanted = list(ast.walk(tree))[self._position]
        self.generic_visit(tree)
        return tree

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt] | list[ast.expr] | list[ast.excepthandler]:
        if node is self._wanted:
            return self._others[0] if len(self._others) == 1 else self._others
        return self.generic_visit(node)
