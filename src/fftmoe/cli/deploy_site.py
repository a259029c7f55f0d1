"""Defines the verbs of `fftmoe deploy site`: review and ledger, for the operator of a site."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fftmoe.cli.help import VerbPage
from fftmoe.cli.lines import say
from fftmoe.errors import InputError
from fftmoe.report.console import Console

site = typer.Typer(
    help="Decide what a server may ask of a site, and see what it has asked.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SiteOption = Annotated[Path, typer.Option("--site", help="The folder of the site; by default the current one.")]


@site.command(cls=VerbPage, short_help="Show what a recipe asks of a site, and approve it.")
def review(
    recipe: Annotated[str, typer.Argument(help="The recipe file that the server will run.")],
    folder: SiteOption = Path(),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A value that the server overrides, e.g. --set federation.rounds=5."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(min=0, help="In a first policy: what the rows may lose; by default the recipe's.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without a question.")] = False,
) -> None:
    """Show what a recipe asks of a site, and approve it in the site's policy.

    The first approval writes the policy and begins the ledger.
    """
    from fftmoe.config import load_recipe
    from fftmoe.deploy.review import approve, describe_request
    from fftmoe.setup.places import full_model
    from fftmoe.setup.site_request import request_in

    _check_site(folder)
    loaded = load_recipe(recipe, set_ or [], may_read=False)
    console, request = Console(), replace(request_in(loaded), backbone=full_model(loaded.backbone.model, Path.cwd()))
    for line in describe_request(request):
        say(console, line)
    if not yes and not _agreed():
        say(console, "not approved; nothing has been written")
        return
    say(console, approve(folder, request, epsilon))


@site.command(cls=VerbPage, short_help="Print what a site was asked, answered and refused.")
def ledger(
    folder: SiteOption = Path(),
    begin: Annotated[bool, typer.Option("--begin", help="Begin the ledger of a site that never answered.")] = False,
) -> None:
    """Print what a site was asked, answered and refused, and what is left of what its policy grants."""
    from fftmoe.deploy.account import begin_ledger, describe_ledger

    _check_site(folder)
    for line in [begin_ledger(folder)] if begin else describe_ledger(folder):
        say(Console(), line)


def _agreed() -> bool:
    """Return whether the person says yes; the end of the input is a no."""
    try:
        return typer.confirm("approve this recipe?", default=False)
    except typer.Abort:
        typer.echo()
        return False


def _check_site(folder: Path) -> None:
    if not folder.is_dir() or (folder / "deployment.json").exists():
        raise InputError(f"{folder} is not the folder of a site; name one with --site, such as federation/sites/a")
