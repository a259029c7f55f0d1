"""Turns YAML into a checked recipe, with messages that name the nearest valid key."""

import copy
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from fftmoe.config.defaults import Filled, fill_in
from fftmoe.config.overrides import apply_override, parse_override
from fftmoe.config.rules import check_rules
from fftmoe.config.schema import Recipe
from fftmoe.errors import InputError, did_you_mean, looked_up
from fftmoe.strict import read_small, strict_yaml

if TYPE_CHECKING:
    from fftmoe.data.sources import ReadAhead

DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".conll", ".bio", ".iob", ".parquet", ".gz")
MOST_TOLD = 20  # errors of one recipe
RENAMED = {
    "engine.clients_at_once": "clients_per_batch",
    "federation.average_decay": "ema_decay",
    "federation.spare_clients": "over_selection",
    "head.update=resolved": "recomputed",
}
"""Former keys and values of a recipe with their present names, which messages suggest."""


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), may_read: bool = True) -> Recipe:
    """Read a recipe: a YAML file, the name of one that ships with the package (`quickstart`), or its values.

    What it leaves out is filled in (`defaults.py`), whatever it was read from.

    Args:
        overrides: `a.b=c` each; the value is YAML; items of a list are reached by index or by their `name`.
        may_read: whether the data may be read to fill in a value; not where it is elsewhere.

    Raises:
        InputError: an unreadable file, an unknown key, a wrong type or a contradiction; or data that has to be read
            for a value, and cannot be.
    """
    return load_whole(source, overrides, may_read).recipe


class WholeRecipe(NamedTuple):
    """Holds a recipe with all its values; by dotted key those that followed from the data;
    and what was read of the data.
    """

    recipe: Recipe
    from_data: dict[str, Any]
    read_ahead: "ReadAhead | None"


def load_whole(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), may_read: bool = True
) -> WholeRecipe:
    """Read a recipe as `load_recipe` does, and keep what else became known."""
    values, where = read_recipe(source)
    values.pop("compare", None)  # a section for `fftmoe compare`, which a single run ignores
    for text in overrides:
        apply_override(values, *parse_override(text))
    return complete_values(values, where, may_read)


def complete_recipe(
    values: Mapping[str, Any], where: str, may_read: bool = True, may_load: bool | None = None
) -> tuple[Recipe, dict[str, Any]]:
    """Fill in what the values of a recipe leave out, and check them.

    Args:
        where: names the origin of the values in messages.
        may_read: as for `load_recipe`. may_load: whether files of the model may be read for a value; by default as
            `may_read`, because where the data is elsewhere the model may be elsewhere too.

    Returns:
        the recipe; and by dotted key the values that followed from the data.
    """
    return complete_values(values, where, may_read, may_load)[:2]


def complete_values(
    values: Mapping[str, Any], where: str, may_read: bool = True, may_load: bool | None = None
) -> WholeRecipe:
    """Do the same, and keep what was read of the data."""
    recipe, filled = _completed(values, where, may_read, may_read if may_load is None else may_load)
    return WholeRecipe(recipe, filled.from_data, filled.read_ahead)


def complete_common(values: Mapping[str, Any], where: str) -> tuple[Recipe, dict[str, Any]]:
    """Do the same for the common values of a comparison.

    Returns:
        the recipe; and by dotted key the values that the data decides for all cells.
    """
    recipe, filled = _completed(values, where, may_read=True, may_load=True)
    return recipe, filled.shared


def _completed(values: Mapping[str, Any], where: str, may_read: bool, may_load: bool) -> tuple[Recipe, Filled]:
    # A misspelt key is reported before data is read.
    check_sections(fill_in(values, may_read=False, may_load=False).values, where)
    filled = fill_in(values, may_read, may_load)
    return parse_recipe(filled.values, where), filled


def read_recipe(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Read a recipe without checking it: a file, or a copy of its values.

    Returns:
        its values, with its `compare:` section, and its path or `values` for messages.
    """
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source)), "values"
    path = find_recipe(str(source))
    try:
        values = strict_yaml(read_small(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}; correct the file, or name another") from error
    if not isinstance(values, dict):
        raise InputError(f"the recipe {path} must be a mapping of sections; start from recipes/quickstart.yaml")
    values.setdefault("name", path.stem)
    return values, str(path)


def parse_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Check the whole values of a recipe, each section by itself and then the rules across sections.

    They are those of a run folder, or those that a server has sent. What they leave out has the neutral value that it
    had before the key was there, and not the default of a recipe that a person writes: see `load_recipe` for that.

    Args:
        where: names the origin of the values in messages.

    Raises:
        InputError: an unknown key, a wrong type or a contradiction.
    """
    recipe = check_sections(values, where)
    try:
        check_rules(recipe)
    except ValueError as error:
        raise InputError(f"recipe {where}: {error}") from None
    return recipe


def check_sections(values: Mapping[str, Any], where: str) -> Recipe:
    """Check each section of a recipe by itself.

    Raises:
        InputError: an unknown key, a missing one, or a wrong type.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()
        more = f"; and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
        raise InputError(f"recipe {where}: {'; '.join(map(_explain, wrong[:MOST_TOLD]))}{more}") from None


def recipe_folder() -> Path:
    """Return the folder of the shipped recipes: inside an installed package, or at the top of a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def find_recipe(source: str) -> Path:
    """Return the recipe's file, given as a path or as the name of a shipped one.

    Raises:
        InputError: there is no such file, or it is data and not a recipe.
    """
    with looked_up(f"recipe {source!r:.200}"):
        is_folder, is_file = Path(source).is_dir(), Path(source).is_file()
    if is_folder or Path(source).suffix in DATA_SUFFIXES:
        raise InputError(
            f"{source!r} is {'a folder' if is_folder else 'data'}, but a recipe is a YAML file; "
            "to write a recipe for your own data: fftmoe init"
        )
    if is_file:
        return Path(source)
    shipped = {path.stem: path for path in recipe_folder().glob("*.yaml")}
    if source in shipped:
        return shipped[source]
    raise InputError(f"no recipe file {source!r}, and no shipped recipe of that name{did_you_mean(source, shipped)}")


def _explain(error: Any) -> str:
    """Return one pydantic error as a sentence: where, what, which value, which values are valid."""
    path = ".".join(
        str(part) for part in error["loc"] if not str(part).startswith(("literal", "list", "function", "constrained"))
    )
    if error["type"] == "extra_forbidden":
        return f"unknown key {path!r}{_suggest(path, str(error['loc'][-1]), _keys_at(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"missing key {path!r}; add it (recipes/quickstart.yaml shows every section)"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        valid = [v for v in error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ") if v]
        return f"{path} is {error['input']!r}" + _suggest(f"{path}={error['input']}", error["input"], valid)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_type" and isinstance(error["input"], bool):
        message += "; YAML reads an unquoted yes, no, on or off as true or false: quote it"
    shown = "" if isinstance(error["input"], dict) else f" (value: {reprlib.repr(error['input'])})"
    return f"{path + ': ' if path else ''}{message}{shown}"


def _suggest(former: str, name: str, valid: Sequence[str]) -> str:
    """Return the present name of something renamed, or the nearest valid one."""
    return f"; did you mean {RENAMED[former]!r}?" if former in RENAMED else did_you_mean(name, valid)


def dotted_keys() -> list[str]:
    """Return all keys of a recipe: of the top, and of its sections as `section.key`."""
    keys = []
    for name in Recipe.model_fields:
        inside = _keys_at([name])
        keys += [f"{name}.{key}" for key in inside] if inside != list(Recipe.model_fields) else [name]
    return keys


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """Return the valid keys of the section at `location`."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        nested = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested:
            break
        section = nested[0]
    return list(section.model_fields)
