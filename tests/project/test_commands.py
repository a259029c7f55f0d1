"""Commands that the package prints can be pasted into a shell, whatever blanks and quotes their paths have."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "fftmoe"
PROGRAMS = (
    r"fftmoe (?:run|resume|plan|compare|predict|chat|evaluate|export|report|init|deploy \w+(?: review| ledger)?)"
    r"|chmod|iconv|cp|mv|rm|cat|ls|tail|openssl|python"
)
COMMAND = re.compile(rf"(?:^|[\s`:(])(?:{PROGRAMS}) [^`;,\n]*")
VALUE = re.compile("\0(\\d+)\0")


def commands_in(text: str) -> Iterator[tuple[int, str]]:
    """The line and the source of every value that a format string puts into a command without quoting it."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.JoinedStr):
            continue
        values = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        numbers = iter(range(len(values)))
        whole = "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"\0{next(numbers)}\0" for part in node.values
        )
        for command in COMMAND.finditer(whole):
            for found in VALUE.finditer(command[0]):
                value = values[int(found[1])]
                if not _is_quoted(value):
                    yield node.lineno, ast.unparse(value)


def _is_quoted(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "quoted"


def test_no_command_has_a_path_that_a_shell_would_divide():
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {value}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, value in commands_in(path.read_text())
    ]
    assert not found


def test_such_a_command_is_found():
    text = """
f"finish it first: fftmoe resume {folder}"
f"the folder {folder} is old; run `fftmoe deploy stop` there, or see {place}"
f"run: chmod go-w " f"{quoted(path)} {path.name}"
f"or:  fftmoe predict {quoted(folder)} 'some text'"
"""
    assert list(commands_in(text)) == [(2, "folder"), (4, "path.name")]
