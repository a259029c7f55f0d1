"""The command line: verbs only."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import typer
from rich.console import Console

from fftmoe.cli.deploy import deploy
from fftmoe.cli.export import export
from fftmoe.cli.help import Page
from fftmoe.cli.init import init
from fftmoe.cli.report import report
from fftmoe.cli.use import evaluate, predict
from fftmoe.errors import FftmoeError, InputError, RunError

if TYPE_CHECKING:
    from fftmoe.config import Recipe

INTERRUPTED = 130
PIPE_COLUMNS = 200

app = typer.Typer(
    cls=Page,
    help="Federated fine-tuning of foundation models with sparse mixture-of-experts adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(deploy, name="deploy")
app.command(epilog="Example: fftmoe init my-data --by hospital --output mine.yaml")(init)
app.command(short_help="Make a run's page again.", epilog="Example: fftmoe report runs/first")(report)
app.command(epilog="Example: fftmoe evaluate runs/first --split test")(evaluate)
app.command(
    short_help="Label texts or images, or complete prompts.", epilog="Example: fftmoe predict runs/first 'a text'"
)(predict)
app.command(
    short_help="Write a run in the forms that others use: lora, onnx and more.",
    epilog="Example: fftmoe export runs/first --to lora --rank 32 --output lora",
)(export)


def _recipes(incomplete: str) -> list[str]:
    """What a shell may complete a recipe to: shipped ones by name, and YAML files beside what was typed."""
    from fftmoe.config import recipe_folder

    shipped = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
    beside = sorted(map(str, (Path(incomplete).parent if "/" in incomplete else Path()).glob("*.yaml")))
    return [name for name in (*shipped, *beside) if name.startswith(incomplete)]


RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped one.", autocompletion=_recipes)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the recipe, e.g. --set federation.rounds=5."),
]


def _version(wanted: bool) -> None:
    if wanted:
        from fftmoe import __version__

        sys.stdout.write(f"fftmoe {__version__}\n")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="Plain text, as with NO_COLOR=1 in the environment.")
    ] = False,
) -> None:
    """Federated fine-tuning of foundation models with sparse mixture-of-experts adapters."""
    if no_color:
        os.environ["NO_COLOR"] = "1"


@app.command(epilog="Example: fftmoe run mine.yaml --output runs/first --set federation.rounds=5")
def run(
    recipe: RecipeArgument = "quickstart",
    output: Annotated[Path | None, typer.Option(help="The run folder; default runs/<name>.")] = None,
    set_: SetOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; 1 trains in this one.")] = None,
    engine: Annotated[str | None, typer.Option(help="Where clients run: local, or flower (its simulation).")] = None,
) -> None:
    """Run an experiment and write its folder."""
    from fftmoe.config import load_recipe

    overrides = list(set_ or [])
    overrides += [f"engine.workers={workers}"] if workers else []
    overrides += [f"engine.kind={engine}"] if engine else []
    loaded = load_recipe(recipe, overrides)  # before what takes seconds to import: a typo is told at once
    from fftmoe.cli.terminal import print_outcome
    from fftmoe.report.progress import Progress
    from fftmoe.rounds import run as runs

    console = Console()
    folder = output or Path("runs") / loaded.name
    with _resumable(folder):
        result = runs.run(loaded, folder, Progress(console))
    print_outcome(console, result.summary, result.folder, loaded)


@app.command(short_help="Go on with an interrupted run.", epilog="Example: fftmoe resume runs/first")
def resume(
    run: Annotated[Path, typer.Argument(help="The folder of an interrupted run.", metavar="RUN")],
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; 1 trains in this one.")] = None,
    set_: SetOption = None,
) -> None:
    """Go on with an interrupted run, to the result that it would have had."""
    from fftmoe.cli.terminal import print_outcome
    from fftmoe.report.progress import Progress
    from fftmoe.rounds import run as runs
    from fftmoe.setup.finished import recipe_of

    overrides = [*(set_ or []), *([f"engine.workers={workers}"] if workers else [])]
    console = Console()
    with _resumable(run):
        result = runs.resume(run, Progress(console), overrides)
    print_outcome(console, result.summary, result.folder, recipe_of(result.folder))


@app.command(
    short_help="Show what a run will cost, or measure this machine.",
    epilog="Example: fftmoe plan mine.yaml --measure --deadline 30 --write budget.yaml",
)
def plan(
    recipe: RecipeArgument = "quickstart",
    set_: SetOption = None,
    clients: Annotated[bool, typer.Option("--clients", help="List every client, not the first twenty alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time this machine instead, and choose a budget for it.")
    ] = False,
    deadline: Annotated[
        float | None, typer.Option(help="With --measure: seconds for a client's round; default: the recipe's.")
    ] = None,
    memory_mib: Annotated[
        float | None, typer.Option(help="With --measure: memory for the whole process; default: what is free.")
    ] = None,
    uplink_mbit: Annotated[
        float | None, typer.Option(help="With --measure: megabits a second to the server; default: not counted.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="With --measure: a YAML file for the chosen tier.")] = None,
    force: Annotated[bool, typer.Option("--force", help="With --write: replace the file.")] = False,
) -> None:
    """Show who gets which experts and what a round costs, before anything trains; or measure this machine."""
    from fftmoe.config import load_recipe

    loaded = load_recipe(recipe, set_ or [])
    limits = {"--deadline": deadline, "--memory-mib": memory_mib, "--uplink-mbit": uplink_mbit}
    _check_measuring(measure, limits, write, force)
    from fftmoe.cli.terminal import print_forecast
    from fftmoe.setup.forecast import forecast

    if measure:
        _measure(loaded, limits, write, as_json)
        return
    found = forecast(loaded)
    if as_json:
        _print_json(dataclasses.asdict(found))
        return
    print_forecast(Console(), found, clients)


def _check_measuring(measure: bool, limits: Mapping[str, float | None], write: Path | None, force: bool) -> None:
    """Refuse what could not be followed, before anything is timed."""
    given = [name for name, value in {**limits, "--write": write}.items() if value is not None]
    if given and not measure:
        raise InputError(f"{given[0]} is for measuring this machine; add --measure")
    for name, value in limits.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value:g}, and must be above 0")
    if write is not None and write.exists() and not force:
        raise InputError(f"--write {write}: the file is there already; name another, or add --force to replace it")
    if write is not None and not write.absolute().parent.is_dir():
        raise InputError(f"--write {write}: there is no folder {write.parent}; make it, or name another")


def _measure(recipe: "Recipe", limits: Mapping[str, float | None], write: Path | None, as_json: bool) -> None:
    from fftmoe.cli.terminal import print_profile
    from fftmoe.cost.measured import tier_as_yaml
    from fftmoe.setup.forecast import profile
    from fftmoe.store.files import write_atomically

    console = Console(stderr=as_json)
    found = profile(recipe, *limits.values(), say=lambda line: console.print(line, highlight=False, soft_wrap=True))
    tier = tier_as_yaml(found, recipe.name)
    if write is not None:
        write_atomically(write, tier.encode())
    if as_json:
        _print_json(dataclasses.asdict(found))
        return
    print_profile(console, found)
    sys.stdout.write(f"\n{tier}")
    if write is not None:
        console.print(f"\nwritten to {write}", highlight=False, markup=False, soft_wrap=True)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


@app.command(
    short_help="Run methods side by side on equal data and seeds.",
    epilog="Example: fftmoe compare mine.yaml --methods fft-moe,fedit --seeds 3",
)
def compare(
    recipe: RecipeArgument = "quickstart",
    methods: Annotated[str | None, typer.Option(help="E.g. fft-moe,fedit+averaged; default: the recipe's.")] = None,
    heads: Annotated[str | None, typer.Option(help="E.g. averaged,one-vs-all; default: the recipe's.")] = None,
    partitions: Annotated[
        str | None,
        typer.Option(help="E.g. iid,dirichlet:0.1,shards:2,bernoulli-dirichlet:0.3:0.5; default: the recipe's."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="A number of seeds, or a list: 0,1,2; default: 3.")] = None,
    target: Annotated[
        float | None, typer.Option(help="The accuracy (or other metric) to reach; default: fedit's with the same head.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The folder; default runs/<name>-comparison.")] = None,
    workers: Annotated[str, typer.Option(help="Cells side by side, each on one core; auto: one per core.")] = "auto",
    set_: SetOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the cells' adapters and checkpoints.")] = False,
) -> None:
    """Compare methods on equal data, cohorts and seeds; started again, it goes on where it stopped."""
    from fftmoe.comparison.run import compare as compare_methods
    from fftmoe.comparison.tables import print_comparison
    from fftmoe.config import parse_override
    from fftmoe.report.progress import Progress

    # Where nobody's window folds them, tables are as wide as they need.
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    folder = output or Path("runs") / f"{Path(recipe).stem}-comparison"
    try:
        comparison = compare_methods(
            recipe,
            folder,
            methods=_listed(methods),
            heads=_listed(heads),
            partitions=_listed(partitions),
            seeds=_seeds(seeds),
            target=target,
            overrides=dict(map(parse_override, set_ or [])),
            workers=_workers(workers),
            keep=keep,
            progress=Progress(console),
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"fftmoe: interrupted; finished cells stay in {folder}; the same command goes on\n")
        raise
    print_comparison(console, comparison)
    console.print(f"\npage  {folder / 'comparison.html'}", highlight=False, markup=False, soft_wrap=True)
    if comparison.failed:
        raise RunError(
            f"{len(comparison.failed)} of {len(comparison.cells)} cells failed, for the reasons above; "
            "the same command tries them again"
        )


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Say after Ctrl-C how the run goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if (folder / "config.yaml").exists():
            sys.stderr.write(f"fftmoe: interrupted; go on after its last whole round: fftmoe resume {folder}\n")
        raise


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str | None) -> int | list[int] | None:
    """`3` is three seeds, `0,1,2` names them, `7,` is seed 7 alone."""
    try:
        seeds = [int(part) for part in _listed(text) or []]
    except ValueError:
        raise InputError(f"--seeds {text}: write a number of seeds, or a list of them, e.g. 3 or 0,1,2") from None
    if text is None:
        return None
    return seeds if "," in text or not seeds else seeds[0]


def _workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--workers {text}: write a number of processes, at least 1, or auto")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exit 0 done, 1 the run failed, 2 bad input, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn when a process forks after use
    try:
        # Outside standalone mode typer returns the status of an early exit: 0 after --help, 130 after Ctrl-C.
        status = app(args=arguments, standalone_mode=False) or 0
    except FftmoeError as error:
        sys.stderr.write(f"fftmoe: {error}\n")
        raise SystemExit(error.exit_status) from None
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except click.ClickException as error:  # a wrong flag or verb
        sys.stderr.write(f"fftmoe: {error.format_message()}\n")
        raise SystemExit(InputError.exit_status) from None
    if status:
        raise SystemExit(status)
