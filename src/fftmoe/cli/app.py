"""Defines the command line: its verbs, `run` and `resume`, and the entry point."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import click
import typer

from fftmoe.cli.arguments import AcceptOption, RecipeArgument, SetOption
from fftmoe.cli.chat import chat
from fftmoe.cli.compare import compare
from fftmoe.cli.deploy import deploy
from fftmoe.cli.export import export
from fftmoe.cli.help import HelpPage, VerbPage
from fftmoe.cli.init import init
from fftmoe.cli.mistakes import usage_text
from fftmoe.cli.personalize import personalize
from fftmoe.cli.plan import plan
from fftmoe.cli.report import report
from fftmoe.cli.streams import endure
from fftmoe.cli.use import evaluate, predict
from fftmoe.errors import FftmoeError, InputError, OutputError
from fftmoe.report.console import Console
from fftmoe.shown import quoted, shown, shown_errors, shown_on_a_line

INTERRUPTED = 130

app = typer.Typer(
    cls=HelpPage,
    help="Federated fine-tuning of foundation models with sparse mixture-of-experts adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(deploy, name="deploy")
app.command(cls=VerbPage, epilog="Example: fftmoe init my-data --by hospital --output mine.yaml")(init)
app.command(
    cls=VerbPage,
    short_help="Show what a run will cost, or measure this machine.",
    epilog="Example: fftmoe plan mine.yaml --measure --deadline 30 --write budget.yaml",
)(plan)
app.command(
    cls=VerbPage,
    short_help="Compute the metrics of a finished run.",
    epilog="Example: fftmoe evaluate runs/first --split test",
)(evaluate)
app.command(
    cls=VerbPage,
    short_help="Label texts or images, or complete prompts.",
    epilog="Example: fftmoe predict runs/first 'a text'",
)(predict)
app.command(
    cls=VerbPage,
    short_help="Make answers fit a place from its own rows.",
    epilog="Example: fftmoe personalize runs/first --data my-rows.csv --output shares.json",
)(personalize)
app.command(
    cls=VerbPage,
    short_help="Talk with a tuned language model.",
    epilog="Example: fftmoe chat runs/first --temperature 0.7",
)(chat)
app.command(cls=VerbPage, short_help="Write the page of a run again.", epilog="Example: fftmoe report runs/first")(
    report
)
app.command(
    cls=VerbPage,
    short_help="Write a run in other formats: lora, onnx and more.",
    epilog="Example: fftmoe export runs/first --to lora --rank 32 --output lora",
)(export)
app.command(
    cls=VerbPage,
    short_help="Run methods side by side on equal data and seeds.",
    epilog="Example: fftmoe compare mine.yaml --methods fft-moe,fedit --seeds 3",
)(compare)


def _print_version(asked: bool) -> None:
    if asked:
        from fftmoe import __version__

        sys.stdout.write(f"fftmoe {__version__}\n")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="Print plain text, as with NO_COLOR=1 in the environment.")
    ] = False,
) -> None:
    """Read the options that stand before the verb."""
    if no_color:
        os.environ["NO_COLOR"] = "1"


@app.command(cls=VerbPage, epilog="Example: fftmoe run mine.yaml --output runs/first --set federation.rounds=5")
def run(
    recipe: RecipeArgument = "quickstart",
    output: Annotated[Path | None, typer.Option(help="The run folder; default: runs/<name>.")] = None,
    set_: SetOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; 1 trains in this process.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="Where clients run: local, or flower (Flower's simulation).")
    ] = None,
) -> None:
    """Run an experiment and write its folder."""
    from fftmoe.config import load_whole

    overrides = list(set_ or [])
    overrides += [f"engine.workers={workers}"] if workers else []
    overrides += [f"engine.kind={engine}"] if engine else []
    # Before the slow imports: a typo is reported without a wait.
    loaded, chosen, read_ahead = load_whole(recipe, overrides)
    from fftmoe.cli.lines import say_choices, say_prompt_form
    from fftmoe.cli.terminal import print_outcome
    from fftmoe.report.progress import Progress
    from fftmoe.setup import run as runs

    console = Console()
    say_choices(console, chosen)
    say_prompt_form(console, loaded.data.prompt, loaded.data.chat_template, loaded.backbone.model)
    folder = output or Path("runs") / loaded.name
    with _resumable(folder):
        result = runs.run(loaded, folder, Progress(console), read_ahead=read_ahead)
    print_outcome(console, result.summary, result.folder, loaded)


@app.command(cls=VerbPage, short_help="Continue an interrupted run.", epilog="Example: fftmoe resume runs/first")
def resume(
    run: Annotated[Path, typer.Argument(help="The folder of an interrupted run.", metavar="RUN")],
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; 1 trains in this process.")] = None,
    set_: SetOption = None,
    accept_changes: AcceptOption = False,
) -> None:
    """Continue an interrupted run, to the result that it would have had."""
    from fftmoe.cli.terminal import print_outcome
    from fftmoe.report.progress import Progress
    from fftmoe.setup import run as runs
    from fftmoe.setup.finished import recipe_of

    overrides = [*(set_ or []), *([f"engine.workers={workers}"] if workers else [])]
    console = Console()
    with _resumable(run):
        result = runs.resume(run, Progress(console), overrides, accept_changes=accept_changes)
    print_outcome(console, result.summary, result.folder, recipe_of(result.folder))


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Print, after Ctrl-C, how to continue the run."""
    try:
        yield
    except KeyboardInterrupt:
        if (folder / "config.yaml").exists():
            command = f"fftmoe resume {quoted(folder)}"
            sys.stderr.write(f"fftmoe: interrupted; to continue after its last whole round: {command}\n")
        raise


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0 done, 1 the run failed, 2 bad input, 130 interrupted."""
    why_incomplete = endure()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn when a process forks after use
    # Threads that wait for one another sleep. Where they spin, which is the default, they take the processors of a busy
    # machine from the threads that they wait for (`benchmarks/busy_machine.py`). Torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with shown_errors():
        _run_verb(arguments, why_incomplete)


def _run_verb(arguments: Sequence[str] | None, why_incomplete: Callable[[], str | None]) -> None:
    """Run one verb, and end the process with the status of its outcome."""
    try:
        # Outside standalone mode typer returns the status of an early exit: 0 after --help, 130 after Ctrl-C.
        status = app(args=arguments, standalone_mode=False) or 0
    except FftmoeError as error:
        sys.stderr.write(f"fftmoe: {shown_on_a_line(str(error))}\n")
        raise SystemExit(error.exit_status) from None
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # typer takes every one for the end of a person's input
            raise error.__cause__ from None
        status = INTERRUPTED
    except OSError as error:  # of a file or a folder that no other place expects to fail
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"fftmoe: {shown_on_a_line(place)}{shown_on_a_line(error.strerror or str(error))}\n")
        raise SystemExit(InputError.exit_status) from None
    except click.MissingParameter as error:
        where = f"; see: {error.ctx.command_path} --help" if error.ctx else ""
        sys.stderr.write(f"fftmoe: {shown(error.format_message()).rstrip('.')}{where}\n")
        raise SystemExit(InputError.exit_status) from None
    except click.UsageError as error:  # an unknown flag or verb
        sys.stderr.write(f"fftmoe: {shown_on_a_line(usage_text(error))}\n")
        raise SystemExit(InputError.exit_status) from None
    except click.ClickException as error:
        sys.stderr.write(f"fftmoe: {shown(error.format_message())}\n")
        raise SystemExit(InputError.exit_status) from None
    if not status and (reason := why_incomplete()) is not None:
        sys.stderr.write(f"fftmoe: {reason}\n")
        status = OutputError.exit_status
    if status:
        raise SystemExit(status)
