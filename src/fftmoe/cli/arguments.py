"""Defines arguments that several verbs share, and reads lists of values that a person types."""

from pathlib import Path
from typing import Annotated

import typer


def _recipes(incomplete: str) -> list[str]:
    """Return the recipes that a shell may complete: shipped ones by name, and YAML files next to what was typed."""
    from fftmoe.config import recipe_folder

    shipped = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
    local = sorted(map(str, (Path(incomplete).parent if "/" in incomplete else Path()).glob("*.yaml")))
    return [name for name in (*shipped, *local) if name.startswith(incomplete)]


RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", autocompletion=_recipes)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the recipe, e.g. --set federation.rounds=5."),
]

AcceptOption = Annotated[
    bool,
    typer.Option(
        "--accept-changes", help="Continue although data, backbone or versions are not those of the beginning."
    ),
]

AcceptUseOption = Annotated[
    bool, typer.Option("--accept-changes", help="Use the model although data, backbone or tokenizer have changed.")
]

RoundOption = Annotated[
    str,
    typer.Option("--round", help="The model to use: kept, or last where the run keeps an earlier, better round."),
]

EncodingOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The encoding of text files that are not UTF-8, such as windows-1252 or shift_jis."
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")]
ClientOption = Annotated[str | None, typer.Option(help="Answer as for this client, by its name or number.")]
PriorOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|estimate|none",
        help="How often labels occur where the inputs come from: a JSON file of label: share, estimate (from the "
        "inputs), or none. Default: with --client as among its rows.",
    ),
]
NewTokensOption = Annotated[int, typer.Option(min=1, help="The longest completion, in tokens.")]
TemperatureOption = Annotated[
    float,
    typer.Option(
        help="0 takes the most likely token each time. Above 0 tokens are drawn, at 1 with the model's probabilities."
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        help="Draw only among the most likely tokens that together have this probability; needs --temperature."
    ),
]
SeedOption = Annotated[int, typer.Option(help="The seed of the draws: the same seed gives the same text.")]


def split_list(text: str | None) -> list[str] | None:
    """Return the parts of a comma-separated list without surrounding spaces; None where nothing was typed."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
