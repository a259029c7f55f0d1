"""The command line: verbs only."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import click
import typer
from rich.console import Console

from fftmoe.deploy_cli import deploy
from fftmoe.errors import FftmoeError, InputError, RunError

INTERRUPTED = 130
PIPE_COLUMNS = 200

app = typer.Typer(
    help="Federated fine-tuning of foundation models with sparse mixture-of-experts adapters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(deploy, name="deploy")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the recipe, e.g. --set federation.rounds=5."),
]
RunArgument = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Experts a token uses; default: the largest tier's.")]


@app.command()
def run(
    recipe: RecipeArgument = "quickstart",
    output: Annotated[Path | None, typer.Option(help="The run folder; default runs/<name>.")] = None,
    set_: SetOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; 1 trains in this one.")] = None,
    engine: Annotated[str | None, typer.Option(help="Where clients run: local, or flower (its simulation).")] = None,
) -> None:
    """Run an experiment and write its folder."""
    from fftmoe import experiment
    from fftmoe.config import load_recipe
    from fftmoe.report.progress import Progress
    from fftmoe.terminal import print_outcome

    overrides = list(set_ or [])
    overrides += [f"engine.workers={workers}"] if workers else []
    overrides += [f"engine.kind={engine}"] if engine else []
    loaded = load_recipe(recipe, overrides)
    console = Console()
    folder = output or Path("runs") / loaded.name
    with _resumable(folder):
        result = experiment.run(loaded, folder, Progress(console))
    print_outcome(console, result.summary, result.folder, loaded)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The folder of an interrupted run.", metavar="RUN")],
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; 1 trains in this one.")] = None,
    set_: SetOption = None,
) -> None:
    """Go on with an interrupted run, to the result that it would have had."""
    from fftmoe import experiment
    from fftmoe.experiment.use import recipe_of
    from fftmoe.report.progress import Progress
    from fftmoe.terminal import print_outcome

    overrides = [*(set_ or []), *([f"engine.workers={workers}"] if workers else [])]
    console = Console()
    with _resumable(run):
        result = experiment.resume(run, Progress(console), overrides)
    print_outcome(console, result.summary, result.folder, recipe_of(result.folder))


@app.command()
def plan(
    recipe: RecipeArgument = "quickstart",
    set_: SetOption = None,
    clients: Annotated[bool, typer.Option("--clients", help="List every client, not the first twenty alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show who gets which experts and what a round costs, before anything trains."""
    from fftmoe import experiment
    from fftmoe.config import load_recipe
    from fftmoe.terminal import print_forecast

    forecast = experiment.forecast(load_recipe(recipe, set_ or []))
    if as_json:
        import dataclasses

        sys.stdout.write(json.dumps(dataclasses.asdict(forecast), indent=2) + "\n")
        return
    print_forecast(Console(), forecast, clients)


@app.command()
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
        float | None, typer.Option(min=0, max=1, help="The accuracy to reach; default: fedit's with the same head.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The folder; default runs/<name>-comparison.")] = None,
    workers: Annotated[str, typer.Option(help="Cells side by side, each on one core; auto: one per core.")] = "auto",
    set_: SetOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the cells' adapters and checkpoints.")] = False,
) -> None:
    """Compare methods on equal data, cohorts and seeds; started again, it goes on where it stopped."""
    from fftmoe import experiment
    from fftmoe.config import parse_override
    from fftmoe.report.comparison_tables import print_comparison
    from fftmoe.report.progress import Progress

    # Where nobody's window folds them, tables are as wide as they need.
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    folder = output or Path("runs") / f"{Path(recipe).stem}-comparison"
    try:
        comparison = experiment.compare(
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
        console.print(f"finished cells stay in {folder}; the same command goes on", highlight=False, soft_wrap=True)
        raise
    print_comparison(console, comparison)
    console.print(f"\npage  {folder / 'comparison.html'}", highlight=False, markup=False, soft_wrap=True)
    if comparison.failed:
        raise RunError(
            f"{len(comparison.failed)} of {len(comparison.cells)} cells failed, for the reasons above; "
            "the same command tries them again"
        )


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[str | None, typer.Option(help="Another source; default: the run's own.")] = None,
    split: Annotated[str, typer.Option(help="train, test or validation.")] = "test",
    top_k: TopKOption = None,
) -> None:
    """Measure a finished run; prints JSON."""
    from fftmoe import experiment

    sys.stdout.write(json.dumps(experiment.evaluate_run(run, data, split, top_k), indent=2) + "\n")


@app.command()
def predict(
    run: RunArgument,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; default: the lines of standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one text per line.")] = None,
    top_k: TopKOption = None,
) -> None:
    """Label texts with a finished run; prints one JSON object a line."""
    from fftmoe import experiment
    from fftmoe.experiment.use import check_labels_texts

    check_labels_texts(run)
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read --file {file}: {error}") from error
    else:
        lines = texts or sys.stdin.read().splitlines()
    for row in experiment.predict_run(run, [line for line in lines if line.strip()], top_k):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


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
