"""Make two pages of the site, on commands and recipes, from the program itself, so that they are never out of date."""

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def on_files(files: Any, config: Any) -> Any:
    """Add the pages; mkdocs calls this function."""
    from mkdocs.structure.files import File

    for path, text in {"reference/commands.md": commands_page(), "reference/recipe.md": recipe_page()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def commands_page() -> str:
    """Return a page of every command with its help, as `--help` prints it."""
    from fftmoe.cli.app import app

    parts = ["# Command line\n\nThis page shows what `--help` prints for every command.\n"]
    for name, command in sorted(_commands("fftmoe", typer.main.get_command(app))):
        context = click.Context(command, info_name=name, max_content_width=100)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for child in getattr(command, "commands", {}).values():
        yield from _commands(f"{name} {child.name}", child)


def recipe_page() -> str:
    """Return a page of every section of a recipe: its purpose, its keys, their types and their defaults."""
    from fftmoe.config import Recipe

    parts = [
        "# Recipe\n\nA recipe is a YAML file. `--set section.key=value` overrides a key. An unknown key is an error.\n"
    ]
    for path, section in _sections("", Recipe):
        heading = path.rstrip(".") or "the recipe"
        rows = [f"| `{path}{key}` | {_kind(field)} | {_default(field)} |" for key, field in _fields(section)]
        parts.append(
            f"## {heading}\n\n{_plain(section.__doc__)}\n\n| key | type | default |\n|---|---|---|\n" + "\n".join(rows)
        )
    return "\n\n".join(parts) + "\n"


def _fields(section: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    yield from section.model_fields.items()


def _sections(path: str, section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, section
    for key, field in section.model_fields.items():
        for inner in _models(field.annotation):
            own = f"{path}{key}[]." if "list" in str(field.annotation) else f"{path}{key}."
            yield from _sections(own, inner)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _kind(field: Any) -> str:
    text = _type(field.annotation)
    return ", ".join([text, *filter(None, map(_bound, field.metadata))])


def _type(annotation: Any) -> str:
    """For a person: `int`, `a` or `b`, a list of …."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [_bound(part) for known in arguments[1:] for part in getattr(known, "metadata", [known])]
        return ", ".join([_type(arguments[0]), *filter(None, bounds)])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin in (list, dict):
        return f"{origin.__name__} of {_type(arguments[-1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    return f"`{getattr(annotation, '__name__', annotation)}`"


def _bound(part: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [(signs[name], getattr(part, name)) for name in signs if getattr(part, name, None) is not None]
    return ", ".join(f"{sign} {value:g}" for sign, value in found if value < 2**53)  # beyond it is no bound to state


def _default(field: Any) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    return "its own defaults" if isinstance(value, BaseModel) else f"`{value}`".replace("|", "or")


def _plain(docstring: str | None) -> str:
    return re.sub(r"\n {4}", "\n", docstring or "").strip()
