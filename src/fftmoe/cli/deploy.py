"""The verbs of `fftmoe deploy`."""

import importlib.util
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fftmoe.errors import InputError

deploy = typer.Typer(
    help="Federations of many machines, over TLS with a key for each site.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
FolderArgument = Annotated[Path, typer.Argument(help="The deployment's server folder, or the folder of a site.")]


@deploy.callback()
def needs_flower() -> None:
    """Federations of many machines, over TLS with a key for each site."""
    if importlib.util.find_spec("flwr") is None:
        raise InputError("fftmoe deploy needs Flower: pip install 'fftmoe[flower]'")


@deploy.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make.")],
    sites: Annotated[str, typer.Option(help="Their names: hospital-a,hospital-b,hospital-c.")],
    address: Annotated[str, typer.Option(help="How sites reach the server: host:port.")],
    days: Annotated[int, typer.Option(help="How long certificates are good.")] = 365,
) -> None:
    """Make certificates, keys, and a folder for the server and for each site."""
    from fftmoe.deploy.folder import create_deployment

    create_deployment(folder, address, [name.strip() for name in sites.split(",")], days)
    say(Console(), f"made {folder}; {folder / 'README.md'} says who gets what")


@deploy.command()
def server(
    folder: FolderArgument,
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of a shipped one.")],
    output: Annotated[Path, typer.Option(help="The run folder; that of an interrupted run goes on.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a value of the recipe, e.g. --set federation.rounds=5."),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds for the sites to come.")] = 3600.0,
) -> None:
    """Run a recipe over the sites of a deployment."""
    from fftmoe.cli.terminal import print_outcome
    from fftmoe.config import load_recipe
    from fftmoe.deploy.server import run_server
    from fftmoe.report.progress import Progress
    from fftmoe.setup.finished import recipe_of

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `deploy stop` ends it as Ctrl-C does
    console = Console()
    try:
        result = run_server(folder, load_recipe(recipe, set_ or []), output, wait, Progress(console))
    except KeyboardInterrupt:
        sys.stderr.write("fftmoe: stopped; the same command goes on after the last whole round\n")
        raise
    print_outcome(console, result.summary, result.folder, recipe_of(result.folder))


@deploy.command()
def client(
    folder: FolderArgument,
    data: Annotated[Path, typer.Option(help="The folder with this site's train.csv, .jsonl or .parquet.")],
    budget: Annotated[
        str, typer.Option(help="A tier of the recipe, auto, or limits: memory_mib=300,gflops=5.")
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="A folder with the backbone; default: the recipe's.")] = None,
) -> None:
    """Join a federation as a site, and serve it until stopped."""
    from fftmoe.deploy.client import run_client

    console = Console()
    run_client(folder, data, budget, model, lambda line: say(console, line))


@deploy.command()
def status(folder: FolderArgument) -> None:
    """Show whether it runs, how far the run is, and which sites are connected."""
    from fftmoe.deploy.status import describe

    for line in describe(folder):
        say(Console(), line)


@deploy.command()
def stop(
    folder: FolderArgument,
    seconds: Annotated[float, typer.Option(min=0, help="To wait for its end.")] = 60.0,
) -> None:
    """End the server or the site that runs from this folder."""
    from fftmoe.deploy.running import stop as end

    found = end(folder, seconds)
    say(Console(), f"ended what ran from {folder}" if found else f"nothing runs from {folder}")


def say(console: Console, line: str) -> None:
    """A line as it is, at once: whoever watches a long-running site may read it through a pipe."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
