"""Make two pages of the site, on commands and recipes, from the program itself, so that they are never out of date."""

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ABSENT = object()


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
    """Return a page of every section of a recipe: its purpose, its keys, what they do, their types and defaults."""
    from fftmoe.config import Recipe

    parts = [
        "# Recipe\n\nA recipe is a YAML file. `--set section.key=value` overrides a key. An unknown key is an error. "
        "Every key but `data.source` has a default, so `data: {source: notes.csv}` is a whole recipe. Where the "
        "default follows from the data by a rule, the rule stands here; with differential privacy, and for a run over "
        "sites, nothing follows from the data, and the value is the one in front of the rule. The `config.yaml` of a "
        "run's folder has the values that the run was made with.\n"
    ]
    defaults, rules = _recipe_defaults()
    for path, section in _sections("", Recipe):
        heading = path.rstrip(".") or "the recipe"
        rows = [
            f"| `{path}{key}` | {_kind(field)} | {_shown_default(path + key, field, defaults, rules)} "
            f"| {(field.description or '').replace(chr(10), ' ')} |"
            for key, field in _fields(section)
        ]
        parts.append(
            f"## {heading}\n\n{_plain(section.__doc__)}\n\n| key | type | default | what it does |\n"
            + "\n".join(["|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


def _recipe_defaults() -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a recipe that says nothing, and the rules in words, both by dotted key."""
    from fftmoe.config.default_rules import RULES
    from fftmoe.config.defaults import fill_in

    whole = fill_in({"data": {"source": "notes.csv"}}, may_read=False).values
    return whole, {rule.key: rule.says for rule in RULES if rule.says}


def _shown_default(key: str, field: Any, defaults: dict[str, Any], rules: dict[str, str]) -> str:
    """The default of a key, and the rule by which it follows from the data, if there is one."""
    if key == "data.source":
        return "needed"
    section, _, name = key.rpartition(".")
    own = defaults.get(section, {}) if section else defaults
    stated = own.get(name, ABSENT) if isinstance(own, dict) else ABSENT
    if isinstance(stated, dict | list):
        return rules.get(key, "its own defaults")
    shown = _default(field) if stated is ABSENT else f"`{stated}`"
    return f"{shown}; {rules[key]}" if key in rules else shown


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
