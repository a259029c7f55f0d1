"""`fftmoe compare` makes many runs and shows them side by side."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fftmoe.cli.arguments import RecipeArgument, SetOption, split_list
from fftmoe.errors import InputError, RunError
from fftmoe.report.console import Console
from fftmoe.shown import count_of

if TYPE_CHECKING:
    from fftmoe.comparison.statistics import Comparison

PIPE_COLUMNS = 200
PartitionsOption = Annotated[
    str | None, typer.Option(help="E.g. iid,dirichlet:0.1,shards:2,bernoulli-dirichlet:0.3:0.5; default: the recipe's.")
]
VariantOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Also run each method and head with other values: --variant 'wide: adapter.expert_dim=32 adapter.top_k=4'."
    ),
]
TargetOption = Annotated[
    float | None,
    typer.Option(help="The accuracy (or other metric) to reach; default: that of fedit with the same head."),
]
WorkersOption = Annotated[
    str, typer.Option(help="Cells that run at the same time, each on one core; auto: one for each core.")
]
AcceptCellsOption = Annotated[
    bool, typer.Option("--accept-changes", help="Keep finished cells of other versions of the software.")
]


def compare(
    recipe: RecipeArgument = "quickstart",
    methods: Annotated[str | None, typer.Option(help="E.g. fft-moe,fedit+averaged; default: the recipe's.")] = None,
    heads: Annotated[str | None, typer.Option(help="E.g. averaged,one-vs-all; default: the recipe's.")] = None,
    partitions: PartitionsOption = None,
    seeds: Annotated[str | None, typer.Option(help="A number of seeds, or a list: 0,1,2; default: 3.")] = None,
    variant: VariantOption = None,
    target: TargetOption = None,
    output: Annotated[Path | None, typer.Option(help="The folder; default: runs/<name>-comparison.")] = None,
    workers: WorkersOption = "auto",
    set_: SetOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the adapters and checkpoints of the cells.")] = False,
    accept_changes: AcceptCellsOption = False,
) -> None:
    """Compare methods on equal data, cohorts and seeds; the same command continues an interrupted comparison."""
    from fftmoe.comparison.run import compare as compare_methods
    from fftmoe.config import parse_override
    from fftmoe.report.progress import Progress

    # No window folds the lines of a pipe or a file, so tables may be as wide as they need.
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    folder = output or Path("runs") / f"{Path(recipe).stem}-comparison"
    try:
        comparison = compare_methods(
            recipe,
            folder,
            methods=split_list(methods),
            heads=split_list(heads),
            partitions=split_list(partitions),
            seeds=_parse_seeds(seeds),
            target=target,
            changes=_parse_variants(variant),
            overrides=dict(map(parse_override, set_ or [])),
            workers=_parse_workers(workers),
            keep=keep,
            progress=Progress(console),
            accept_changes=accept_changes,
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"fftmoe: interrupted; {folder} keeps the finished cells; to continue, repeat the command\n")
        raise
    _print_result(console, comparison, folder)


def _print_result(console: Console, comparison: "Comparison", folder: Path) -> None:
    """Print the table and the place of the page; a comparison with failed cells ends with an error."""
    from fftmoe.comparison.tables import print_comparison

    print_comparison(console, comparison)
    console.print(f"\npage  {folder / 'comparison.html'}", highlight=False, markup=False, soft_wrap=True)
    if comparison.failed:
        raise RunError(
            f"{len(comparison.failed)} of {count_of(len(comparison.cells), 'cell')} failed, for the reasons above; to "
            "try them again, repeat the command"
        )


def _parse_seeds(text: str | None) -> int | list[int] | None:
    """Parse seeds: `3` means three seeds, `0,1,2` names them, and `7,` means seed 7 only."""
    if text is None:
        return None
    try:
        seeds = [int(part) for part in split_list(text) or []]
    except ValueError:
        raise InputError(f"--seeds {text}: write a number of seeds, or a list of them, e.g. 3 or 0,1,2") from None
    return seeds if "," in text or not seeds else seeds[0]


def _parse_variants(texts: list[str] | None) -> dict[str, dict[str, Any]] | None:
    """Parse `LABEL: key=value key=value` for each variant; a value with blanks stands in quotation marks."""
    from fftmoe.config import parse_override

    if texts is None:
        return None
    variants: dict[str, dict[str, Any]] = {}
    for text in texts:
        label, colon, rest = (part.strip() for part in text.partition(":"))
        try:
            values = dict(map(parse_override, shlex.split(rest)))
        except ValueError as error:
            raise InputError(f"--variant {text}: {error}; close every quotation mark") from None
        if not label or not colon or not values:
            raise InputError(f"--variant {text}: write a label and what it changes, e.g. 'wide: adapter.expert_dim=32'")
        if label in variants:
            raise InputError(f"--variant {text}: another variant has the label {label!r} too; give each its own")
        variants[label] = values
    return variants


def _parse_workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--workers {text}: write a number of processes, at least 1, or auto")
    return int(text)
