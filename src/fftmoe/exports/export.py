"""A finished run in another form: written whole or not at all, and compared with the run before it is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError, did_you_mean
from fftmoe.exports.folder import ABOUT, digest_of, new_folder, size_of, write_json
from fftmoe.exports.graphs import export_graph, export_onnx
from fftmoe.exports.load import WEIGHTS
from fftmoe.exports.lora import export_lora
from fftmoe.exports.peft import export_peft
from fftmoe.exports.personal import export_personal
from fftmoe.trained.load import recipe_of

FORMATS: dict[str, tuple[Callable[..., dict[str, Any]], set[str]]] = {
    "peft": (export_peft, {"top_k"}),
    "personal": (export_personal, {"client", "tier", "experts", "top_k"}),
    "lora": (export_lora, {"rank", "data", "steps", "top_k"}),
    "onnx": (export_onnx, {"top_k"}),
    "torch-export": (export_graph, {"top_k"}),
}


def export_run(run: Path, to: str, output: Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write a run in the format `to` into a new or empty folder.

    Args:
        options: of the format, by name; those that are None count as not given.

    Returns:
        what `export.json` says: the run and the SHA-256 of its adapter, of what was written the size and the SHA-256
        of its weights, the largest difference found between the logits of both, and what was allowed.

    Raises:
        InputError: the format, an option, the run or the output cannot be used. RunError: the exported model computes
        something else. Nothing has been written in either case.
    """
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}{did_you_mean(to, FORMATS)}")
    make, known = FORMATS[to]
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if strange := sorted(set(given) - known):
        others = [name for name, (_, options) in FORMATS.items() if strange[0] in options]
        raise InputError(
            f"--{strange[0].replace('_', '-')} is no option of --to {to}"
            + (f", but of {' and '.join(others)}" if others else f"; it takes {', '.join(sorted(known))}")
        )
    recipe = recipe_of(run)
    with new_folder(output) as folder:
        about = {
            "format": to,
            "run": {"name": recipe.name, "method": recipe.method, "adapter": digest_of(run / "adapter" / WEIGHTS)},
            **make(run, folder, **given),
            "bytes": size_of(folder),
        }
        write_json(folder / ABOUT, about)
    return about
