"""`fftmoe plan` says what a run will cost, or what budget this machine can take."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fftmoe.cli.arguments import RecipeArgument, SetOption
from fftmoe.errors import InputError
from fftmoe.report.console import Console
from fftmoe.strict import json_text

if TYPE_CHECKING:
    from fftmoe.config import Recipe
    from fftmoe.data import ReadAhead


def plan(
    recipe: RecipeArgument = "quickstart",
    set_: SetOption = None,
    clients: Annotated[bool, typer.Option("--clients", help="List all clients instead of the first twenty.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="List all clients, and name the experts of each in every block.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time this machine instead, and choose a budget for it.")
    ] = False,
    deadline: Annotated[
        float | None, typer.Option(help="With --measure: seconds for a client's round; default: the recipe's.")
    ] = None,
    memory_mib: Annotated[
        float | None,
        typer.Option(help="With --measure: memory in MiB for the whole process; default: the free memory."),
    ] = None,
    uplink_mbit: Annotated[
        float | None, typer.Option(help="With --measure: megabits a second to the server; default: not counted.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="With --measure: the YAML file to write the chosen tier to.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --write: replace an existing file.")] = False,
) -> None:
    """Show which clients hold which experts and what a round costs, without training; or measure this machine."""
    from fftmoe.cli.lines import say_choices, say_prompt_form
    from fftmoe.config import load_whole

    loaded, chosen, read_ahead = load_whole(recipe, set_ or [])
    console = Console(stderr=as_json)
    say_choices(console, chosen)
    say_prompt_form(console, loaded.data.prompt, loaded.data.chat_template, loaded.backbone.model)
    limits = {"--deadline": deadline, "--memory-mib": memory_mib, "--uplink-mbit": uplink_mbit}
    _check_measuring(measure, limits, write, force)
    if measure:
        _measure(loaded, read_ahead, limits, write, as_json)
    else:
        _forecast(loaded, read_ahead, clients, verbose, as_json)


def _forecast(
    recipe: "Recipe", read_ahead: "ReadAhead | None", all_clients: bool, verbose: bool, as_json: bool
) -> None:
    from fftmoe.cli.plan_output import print_forecast
    from fftmoe.setup.forecast import forecast

    found = forecast(recipe, read_ahead)
    if as_json:
        _print_json(found)
    else:
        print_forecast(Console(), found, all_clients or verbose, every_block=verbose)


def _check_measuring(measure: bool, limits: Mapping[str, float | None], write: Path | None, force: bool) -> None:
    """Refuse options that could not be honoured, before anything is timed."""
    given = [name for name, value in {**limits, "--write": write}.items() if value is not None]
    if given and not measure:
        raise InputError(f"{given[0]} applies to measuring this machine; add --measure")
    for name, value in limits.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value:g}, and must be above 0")
    if write is not None and write.exists() and not force:
        raise InputError(f"--write {write}: the file exists; name another, or add --force to replace it")
    if write is not None and not write.absolute().parent.is_dir():
        raise InputError(f"--write {write}: there is no folder {write.parent}; make it, or name another")


def _measure(
    recipe: "Recipe",
    read_ahead: "ReadAhead | None",
    limits: Mapping[str, float | None],
    write: Path | None,
    as_json: bool,
) -> None:
    from fftmoe.cli.plan_output import print_profile
    from fftmoe.cost.measured import tier_as_yaml
    from fftmoe.setup.forecast import profile
    from fftmoe.store.files import write_atomically

    console = Console(stderr=as_json)
    say = lambda line: console.print(line, highlight=False, soft_wrap=True)  # noqa: E731
    found = profile(recipe, *limits.values(), say=say, read_ahead=read_ahead)
    tier = tier_as_yaml(found, recipe.name)
    if write is not None:
        write_atomically(write, tier.encode(), private=False)
    if as_json:
        _print_json(found)
        return
    print_profile(console, found)
    sys.stdout.write(f"\n{tier}")
    if write is not None:
        console.print(f"\nwritten to {write}", highlight=False, markup=False, soft_wrap=True)


def _print_json(found: Any) -> None:
    """Print a dataclass as JSON."""
    sys.stdout.write(json_text(dataclasses.asdict(found), indent=2) + "\n")
