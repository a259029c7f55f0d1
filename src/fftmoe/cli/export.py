"""`fftmoe export` writes a finished run in another form."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fftmoe.cli.arguments import AcceptUseOption, EncodingOption, RoundOption
from fftmoe.errors import InputError
from fftmoe.shown import count_of, shown


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")],
    to: Annotated[str, typer.Option(help="peft, personal, lora, merged, gguf, onnx or torch-export.")],
    output: Annotated[Path, typer.Option(help="The folder to write; it must be new or empty.")],
    top_k: Annotated[int | None, typer.Option(min=1, help="Experts per token; default: as the largest tier.")] = None,
    client: Annotated[
        str | None, typer.Option(help="personal: the model of this client, by its name or number.")
    ] = None,
    tier: Annotated[str | None, typer.Option(help="personal: as many experts as this tier holds.")] = None,
    experts: Annotated[str | None, typer.Option(help="personal: these experts of every block, e.g. 0,3,5.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="lora, merged, gguf: the rank of the factors; default 16.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="lora, merged, gguf: a file of texts, or a data source; default: the run's training split."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0, help="lora, merged, gguf: training steps after the fit; default 100, none after a close fit."
        ),
    ] = None,
    encoding: EncodingOption = None,
    which_round: RoundOption = "kept",
    accept_changes: AcceptUseOption = False,
) -> None:
    """Write a finished run in another form, after comparing it with the run."""
    from fftmoe.setup.export import export_run

    options = {"top_k": top_k, "client": client, "tier": tier, "experts": _expert_ids(experts)}
    options |= {"accept_changes": accept_changes or None, "round": None if which_round == "kept" else which_round}
    about = export_run(run, to, output, {**options, "rank": rank, "data": data, "steps": steps, "encoding": encoding})
    sys.stdout.write(shown(describe_export(about, output)))


def describe_export(about: dict[str, Any], output: Path) -> str:
    """Return what the terminal shows of an export, from the contents of `export.json`."""
    found = f"logits differ by {about['max_difference']:.2g} at most (allowed: {about['tolerance']:.2g})"
    lines = [f"{output}: {about['format']}, {about['bytes'] / 2**20:.2f} MiB"]
    if "lora" in about:  # which was added to the weights
        lines.append(f"compared with the LoRA in it: {found}")
        about = about["lora"]
        found = f"logits differ by {about['max_difference']:.2g} at most (allowed: {about['tolerance']:.2g})"
    if "relative_error" not in about:
        return "\n".join([*lines, f"compared with the run: {found}"]) + "\n"
    lines += [
        f"loaded again: {found}",
        "this LoRA is an imitation. It misses this share of what the experts add (squared, on held-out tokens):",
    ]
    lines += [f"  block {block}: {error:.1%}" for block, error in about["relative_error"].items()]
    if about["steps"] and about["kept"] == "closed_form":
        lines.append(
            f"  the {count_of(about['steps'], 'step')} of training brought it no closer on held-out texts; the fit was "
            "kept"
        )
    if any(error > 1 for error in about["relative_error"].values()):
        lines.append(
            "  above 100%, no LoRA at all would be nearer to the experts: compare the metrics below, or use --steps 0"
        )
    lines.append("on the run's test split:")
    lines += [f"  {model.replace('_', ' ')}: {_metric_text(metric)}" for model, metric in about["metric"].items()]
    return "\n".join(lines) + "\n"


def _metric_text(metric: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metric.items())


def _expert_ids(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--experts {text}: write the numbers of experts, e.g. 0,3,5") from None
