"""`fftmoe init` reads a person's own data, checks it as a run would, and writes a first recipe for it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fftmoe.cli.hints import hint_lines
from fftmoe.cli.init_lines import TEXT_KEYS, encoding_lines, what_was_read
from fftmoe.errors import InputError, looked_up
from fftmoe.shown import quoted, shown_on_a_line
from fftmoe.strict import json_text

if TYPE_CHECKING:
    from fftmoe.config import Recipe
    from fftmoe.config.read import WholeRecipe
    from fftmoe.data.guessed_encoding import GuessedEncoding

MOST_TIERS = 3  # by default; a population that is too small has fewer


def init(
    data: Annotated[
        str,
        typer.Argument(
            help="A table, a folder with a table for each client, with train and test files or of images, or a hub id.",
            metavar="DATA",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("mine.yaml"),
    text: Annotated[str | None, typer.Option(help="The column of texts; default: guessed, and printed.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels; default: guessed, and printed.")] = None,
    prompt: Annotated[str | None, typer.Option(help="For a language model: the column of prompts.")] = None,
    completion: Annotated[str | None, typer.Option(help="For a language model: the column of answers.")] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The encoding of text files that are not UTF-8; default: guessed, and printed."
        ),
    ] = None,
    list_separator: Annotated[
        str | None,
        typer.Option(help="What divides several labels, or tokens and tags, in one cell of text, such as ;"),
    ] = None,
    by: Annotated[str | None, typer.Option(help="The column that says who holds a row, e.g. hospital.")] = None,
    model: Annotated[str | None, typer.Option(help="The backbone: a local folder, or a hub id.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
) -> None:
    """Look at your own data and write a first recipe for it."""
    if output.exists() and not force:
        raise InputError(f"--output {output}: the file is there already; name another, or add --force to replace it")
    from fftmoe.cli.lines import say_prompt_form
    from fftmoe.cli.plan_output import print_forecast
    from fftmoe.report.console import Console
    from fftmoe.setup.forecast import forecast

    columns = {
        "text": text,
        "label": label,
        "prompt": prompt,
        "completion": completion,
        "list_separator": list_separator,
    }
    (recipe, chosen, read_ahead), guessed = _completed(_stated(data, output, columns, by, model), data, encoding)
    names = read_ahead.columns if read_ahead else ()
    hints = tuple(hint_lines(recipe, read_ahead) if read_ahead else ())
    found = forecast(recipe, read_ahead)  # which checks the data as a run does
    if len(found.num_examples) < 2:
        raise InputError(
            f"column {recipe.partition.by!r} names one client only, and a federation needs two; name another column "
            "with --by, or leave --by out"
        )
    _write(output, recipe_text(recipe, chosen, output))
    for line in (*encoding_lines(guessed), *what_was_read(recipe, chosen, found, names), *hints):
        sys.stdout.write(shown_on_a_line(line) + "\n")
    console = Console()
    say_prompt_form(console, recipe.data.prompt, recipe.data.chat_template, recipe.backbone.model)
    print_forecast(console, found, all_clients=False)
    sys.stdout.write(f"wrote {output}; read it, then: fftmoe run {quoted(output)}\n")


def _stated(
    data: str, output: Path, columns: Mapping[str, str | None], by: str | None, model: str | None
) -> dict[str, Any]:
    """Return the values of a recipe that a person stated with the arguments."""
    from fftmoe.data.sources import local_place

    place = local_place(data)
    source = data if place is None else str(place.absolute())
    stated = {
        "name": output.stem,
        "backbone": {"model": _full_name(model)} if model else {},
        "data": {"source": source, **{key: name for key, name in columns.items() if name}},
        "partition": {"by": by} if by else {},
    }
    return {key: value for key, value in stated.items() if value}


def _completed(
    values: dict[str, Any], data: str, encoding: str | None
) -> tuple["WholeRecipe", "GuessedEncoding | None"]:
    """Return the whole recipe; and the encoding of the files, if nobody has named it and they are not UTF-8.

    Raises:
        InputError: the recipe is not valid, or the data cannot be read.
    """
    from fftmoe.config import complete_values
    from fftmoe.data.guessed_encoding import guess_encoding
    from fftmoe.data.text_encodings import OtherEncodingError, encoding_option

    def completed(name: str | None) -> "WholeRecipe":
        stated = {"encoding": encoding_option(name).name} if name else {}
        return complete_values({**values, "data": {**values["data"], **stated}}, f"for {data}")

    try:
        return completed(encoding), None
    except OtherEncodingError as error:
        if encoding is not None:
            others = f"--encoding {error.likely}, or without, and it is guessed" if error.likely else "another one"
            raise InputError(f"--encoding {encoding} does not fit: {error.what}; try {others}") from error
        if (guessed := guess_encoding(values["data"]["source"])) is None:
            raise
    return completed(guessed.name), guessed


def _full_name(model: str) -> str:
    """Return the name of a backbone; a folder under its full name, because a recipe is run from anywhere."""
    with looked_up(f"--model {model!r:.200}"):
        folder = Path(model).expanduser()
        return str(folder.absolute()) if folder.is_dir() else model


def recipe_text(recipe: "Recipe", chosen: Mapping[str, Any], output: Path) -> str:
    """Return a recipe in YAML with what is known of the data, and of what followed from it;
    the rest is left to defaults.
    """
    columns = {key: as_yaml(getattr(recipe.data, key)) for key in TEXT_KEYS if _is_named(recipe, chosen, key)}
    if recipe.data.targets:
        if recipe.data.label in recipe.data.targets:
            del columns["label"]
        columns["targets"] = f"[{', '.join(map(as_yaml, recipe.data.targets))}]"
    lines = [
        f"# fftmoe plan {quoted(output)}    what it will cost, before anything trains",
        f"# fftmoe run {quoted(output)}     trains; then fftmoe evaluate and fftmoe predict",
        "# Every other key has a default; the run's folder has them all, in config.yaml.",
        f"backbone: {{model: {as_yaml(recipe.backbone.model)}, task: {recipe.backbone.task}}}",
        "data:",
        f"  source: {as_yaml(recipe.data.source)}",
        *([f"  encoding: {as_yaml(recipe.data.encoding)}"] if recipe.data.encoding else []),
        *(f"  {key}: {name}" for key, name in columns.items()),
        *([f"  list_separator: {as_yaml(recipe.data.list_separator)}"] if recipe.data.list_separator else []),
    ]
    if recipe.data.prompt is not None:  # sites take it from here: they may have no model to look at yet
        written = "true  # as messages" if recipe.data.chat_template else "false  # as plain text"
        lines.append(f"  chat_template: {written}")
    if "data.max_length" in chosen:
        lines.append(f"  max_length: {recipe.data.max_length}  # tokens; what is longer is cut")
    lines.append(
        f"  validation: {recipe.data.validation or 'off'}  # of its rows, that each client sets aside to measure on"
    )
    lines.append(f"partition: {_partition_line(recipe)}")
    if "head.num_features" in chosen and recipe.head is not None:
        lines.append(f"head: {{num_features: {recipe.head.num_features}}}")
    if len(recipe.budgets) < MOST_TIERS:
        tiers = ("name", "fraction", "top_k", "experts")
        lines += ["budgets:", *(f"  - {json_text(b.model_dump(include=set(tiers)))}" for b in recipe.budgets)]
    federation = recipe.federation
    numbers = f"clients_per_round: {federation.clients_per_round}, local_steps: {federation.local_steps}"
    lines.append(f"federation: {{{numbers}}}")
    return "\n".join(lines) + "\n"


def _is_named(recipe: "Recipe", chosen: Mapping[str, Any], key: str) -> bool:
    """Return whether a run reads the column of this key."""
    default = type(recipe.data).model_fields[key].default
    return f"data.{key}" in chosen or getattr(recipe.data, key) != default


def _partition_line(recipe: "Recipe") -> str:
    section = recipe.partition
    if section.kind == "natural":
        return f"{{kind: natural, by: {as_yaml(section.by)}}}  # one client for each value of that column"
    return (
        f"{{kind: {section.kind}, num_clients: {section.num_clients}}}  "
        "# or {kind: natural, by: a column that says who holds a row}"
    )


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write --output {output}: {error.strerror}; name another place") from error


def as_yaml(text: str | None) -> str:
    """Return a string with any content as YAML in double quotes."""
    import yaml

    return yaml.safe_dump(text, default_style='"', width=sys.maxsize, allow_unicode=True).strip()
