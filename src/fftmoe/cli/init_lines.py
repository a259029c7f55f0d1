"""Writes what `fftmoe init` says of the data: how it was read, what was guessed, and what nothing reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from fftmoe.shown import count_of, quoted

if TYPE_CHECKING:
    from fftmoe.config import Recipe
    from fftmoe.cost.analytic import Forecast
    from fftmoe.data.guessed_encoding import GuessedEncoding

MOST_LINES = 3  # that show an encoding
MOST_UNREAD = 8  # columns that nothing reads
TEXT_KEYS = ("text", "label", "prompt", "completion", "chosen", "rejected", "image", "tokens", "tags")


def encoding_lines(guessed: "GuessedEncoding | None") -> Iterator[str]:
    """Yield what was guessed of the encoding, with a line of the data by which a person sees whether it is right."""
    if guessed is None:
        return
    yield (
        f"guessed: encoding {guessed.name}, because {count_of(len(guessed.lines), 'file')} "
        f"{'is' if len(guessed.lines) == 1 else 'are'} not UTF-8; if these letters are wrong, name another: --encoding"
    )
    for file, line in guessed.lines[:MOST_LINES]:
        yield f"  {file}: {line}"


def what_was_read(
    recipe: "Recipe", chosen: Mapping[str, Any], found: "Forecast", names: Sequence[str]
) -> Iterator[str]:
    """Yield lines about the data as it was read, about the guesses, and about the columns that nothing reads."""
    from fftmoe.data.first_line import value_among_names

    rows, clients = sum(found.num_examples), len(found.num_examples)
    held_out = f"{found.held_out:,} more that clients set aside for validation, " if found.held_out else ""
    yield (
        f"{count_of(rows, 'training row')}, {held_out}{count_of(found.test_examples, 'test row')}, "
        f"{count_of(clients, 'client')} in {recipe.data.source}"
    )
    guessed = [key for key in TEXT_KEYS if f"data.{key}" in chosen]
    made_of = _made_of(recipe, names)
    columns = [f"{key} in column {getattr(recipe.data, key)!r}" for key in guessed if not made_of]
    if made_of and guessed:
        columns = [f"{' and '.join(guessed)} made of column {', '.join(map(repr, made_of))}"]
    columns += [f"targets in column {name!r}" for name in chosen.get("data.targets", ())]
    if columns:
        others = "--text, --label, or --prompt and --completion for a language model"
        yield f"guessed: {recipe.backbone.task}, {', '.join(columns)}; for others: {others}"
    if recipe.data.label in chosen.get("data.targets", ()):
        yield (
            f"the column of labels, {recipe.data.label!r}, holds too many different numbers for classes, so a "
            "regression predicts them; to make a class of each, write task: sequence-classification, and label in "
            "place of targets"
        )
    unread = unread_columns(recipe, names)
    if unread:
        more = f" and {len(unread) - MOST_UNREAD} more" if len(unread) > MOST_UNREAD else ""
        yield f"columns that are not read: {', '.join(map(repr, unread[:MOST_UNREAD]))}{more}"
    if (value := value_among_names(names)) is not None:
        yield (
            f"warning: the first line names the columns, and {value!r} looks like a value; if that line is a row, "
            "write a line of names above it"
        )
    if recipe.partition.by is None:
        from fftmoe.data.usual_names import CLIENT_NAMES

        likely = [name for name in unread if name.lower() in CLIENT_NAMES][:1]
        remedy = "".join(f"; if column {name!r} does: --by {quoted(name)}" for name in likely) or " (--by names one)"
        yield f"rows go to clients at random, because no column says who holds them{remedy}"


def unread_columns(recipe: "Recipe", names: Sequence[str]) -> list[str]:
    """Return the columns of the data that a run does not read."""
    from fftmoe.setup.site_request import columns_read

    read = {name for names_of_use in astuple(columns_read(recipe)) for name in names_of_use}
    return [name for name in names if name not in {*read, *_made_of(recipe, names)}]


def _made_of(recipe: "Recipe", names: Sequence[str]) -> list[str]:
    """Return the columns of which prompts and answers are made; none where the data has columns of these."""
    from fftmoe.data.prompts_asked import MADE_OF

    made = recipe.data.prompt is not None and recipe.data.prompt not in names
    return [name for name in names if made and name.lower() in MADE_OF]
