"""Defines the verbs of `fftmoe deploy`: init, server, client, status and stop, and the group `site`."""

import importlib.util
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fftmoe.cli.arguments import AcceptOption, EncodingOption
from fftmoe.cli.deploy_site import site
from fftmoe.cli.help import VerbPage
from fftmoe.cli.lines import say
from fftmoe.errors import InputError
from fftmoe.report.console import Console

deploy = typer.Typer(
    help="Run a federation over organisations, with TLS and keys.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
deploy.add_typer(site, name="site")
FolderArgument = Annotated[Path, typer.Argument(help="The deployment's server folder, or the folder of a site.")]
ServerFolderArgument = Annotated[Path, typer.Argument(help="The deployment's server folder.")]
SiteFolderArgument = Annotated[Path, typer.Argument(help="The folder of this site.")]


@deploy.callback()
def needs_flower() -> None:
    """Run a federation over organisations, with TLS and keys."""
    if importlib.util.find_spec("flwr") is None:
        raise InputError("fftmoe deploy needs Flower: pip install 'fftmoe[flower]'")


@deploy.command(cls=VerbPage, short_help="Make the keys, certificates and folders of a federation.")
def init(
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    sites: Annotated[str, typer.Option(help="Names of the sites: hospital-a,hospital-b,hospital-c.")],
    address: Annotated[str, typer.Option(help="Address at which sites reach the server: host:port.")],
    days: Annotated[int, typer.Option(help="Days for which the certificates are valid.")] = 365,
) -> None:
    """Make keys and certificates, with one folder for the server and one for each site."""
    from fftmoe.deploy.folder import create_deployment

    create_deployment(folder, address, [name.strip() for name in sites.split(",")], days)
    say(Console(), f"made {folder}; {folder / 'README.md'} explains who gets which folder")


@deploy.command(cls=VerbPage)
def server(
    folder: ServerFolderArgument,
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of a shipped one.")],
    output: Annotated[Path, typer.Option(help="The run folder; an interrupted run in it is continued.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a value of the recipe, e.g. --set federation.rounds=5."),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the sites.")] = 3600.0,
    accept_changes: AcceptOption = False,
) -> None:
    """Run a recipe over the sites of a deployment."""
    from fftmoe.cli.lines import say_prompt_form
    from fftmoe.cli.terminal import print_outcome
    from fftmoe.config import load_recipe
    from fftmoe.deploy.server import run_server
    from fftmoe.report.progress import Progress
    from fftmoe.setup.finished import recipe_of

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `deploy stop` ends the server as Ctrl-C does
    console = Console()
    loaded = load_recipe(recipe, set_ or [], may_read=False)
    say_prompt_form(console, loaded.data.prompt, loaded.data.chat_template, loaded.backbone.model)
    try:
        result = run_server(folder, loaded, output, wait, Progress(console), accept_changes)
    except KeyboardInterrupt:
        sys.stderr.write("fftmoe: stopped; the same command continues after the last finished round\n")
        raise
    print_outcome(console, result.summary, result.folder, recipe_of(result.folder))


@deploy.command(cls=VerbPage, short_help="Join a federation as a site.")
def client(
    folder: SiteFolderArgument,
    data: Annotated[Path, typer.Option(help="The folder with this site's train.csv, .tsv, .jsonl, .json or .parquet.")],
    budget: Annotated[
        str, typer.Option(help="A tier of the recipe, auto, or limits such as memory_mib=300,gflops=5.")
    ] = "auto",
    model: Annotated[
        str | None, typer.Option(help="A folder with the backbone; by default the one that the recipe names.")
    ] = None,
    encoding: EncodingOption = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on in a run although this site's data or backbone changed.")
    ] = False,
) -> None:
    """Join a federation as a site, and serve it until the site is stopped."""
    from fftmoe.deploy.client import run_client

    console = Console()
    run_client(folder, data, budget, model, lambda line: say(console, line), accept_changes, encoding)


@deploy.command(cls=VerbPage, short_help="Show whether a server or a site runs.")
def status(folder: FolderArgument) -> None:
    """Show whether a server or site runs; of a server also the last round and the connected sites."""
    from fftmoe.deploy.status import describe

    for line in describe(folder):
        say(Console(), line)


@deploy.command(cls=VerbPage)
def stop(
    folder: FolderArgument,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds to wait for its end.")] = 60.0,
) -> None:
    """Stop the server or the site that runs from this folder."""
    from fftmoe.deploy.running import stop as end

    found = end(folder, seconds)
    say(Console(), f"stopped the process that ran from {folder}" if found else f"nothing runs from {folder}")
