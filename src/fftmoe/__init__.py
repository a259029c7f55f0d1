"""FFT-MoE fine-tunes foundation models in a federation, with sparse mixture-of-experts adapters.

    import fftmoe
    result = fftmoe.run("quickstart", output="runs/quickstart")

PEFT, torch and transformers take seconds to import, so they are imported when a name below first needs them. The
adapter is registered with PEFT at that moment, or when this package is imported after PEFT; `PeftModel.from_pretrained`
then loads saved results. A program that uses nothing else of this package writes `import fftmoe.adapter`.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fftmoe.errors import FftmoeError as FftmoeError
from fftmoe.errors import InputError as InputError
from fftmoe.errors import OutputError as OutputError
from fftmoe.errors import RunError as RunError

if TYPE_CHECKING:
    from fftmoe.adapter import MoeAdapterConfig as MoeAdapterConfig
    from fftmoe.adapter import record_routing as record_routing
    from fftmoe.backbones import attach_adapter as attach_adapter
    from fftmoe.backbones import load_backbone as load_backbone
    from fftmoe.config import Recipe as Recipe
    from fftmoe.config import load_recipe as load_recipe
    from fftmoe.setup.plugins import Plugins as Plugins
    from fftmoe.setup.run import Result as Result

__all__ = [
    "FftmoeError",
    "InputError",
    "MoeAdapterConfig",
    "OutputError",
    "Plugins",
    "Recipe",
    "Result",
    "RunError",
    "attach_adapter",
    "export",
    "load_backbone",
    "load_recipe",
    "predict",
    "record_routing",
    "resume",
    "run",
]
__version__ = "0.1.0"

# The modules of the names that are imported on their first use.
_HOMES = {
    "MoeAdapterConfig": "fftmoe.adapter",
    "Plugins": "fftmoe.setup.plugins",
    "Recipe": "fftmoe.config",
    "Result": "fftmoe.setup.run",
    "attach_adapter": "fftmoe.backbones",
    "load_backbone": "fftmoe.backbones",
    "load_recipe": "fftmoe.config",
    "record_routing": "fftmoe.adapter",
}

if "peft" in sys.modules:  # PEFT is imported already, so waiting would save no time
    import_module("fftmoe.adapter")


def __getattr__(name: str) -> Any:
    """Import a name of the public API on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """List all names, including those of the public API that have not been imported yet."""
    return sorted({*globals(), *__all__})


def run(
    recipe: str | Path | Mapping[str, Any],
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    plugins: "Plugins | None" = None,
) -> "Result":
    """Run a recipe (a YAML file, the name of a shipped one, or its values) and return its folder and summary.

    Args:
        recipe: the path or the name of the recipe, or a dictionary of its sections. What it leaves out has the defaults
            of the command line.
        output: the run folder, new or empty; `runs/<name>` when None.
        overrides: texts `section.key=value`, as for the option `--set`.
        plugins: methods, aggregators and partitioners that the recipe names as `plugin:NAME` (docs/integration.md).

    Raises:
        InputError: the input is wrong; nothing has been written. RunError: the run failed.
    """
    from fftmoe.config import load_whole
    from fftmoe.setup import run as runs

    loaded, _, read_ahead = load_whole(recipe, overrides)
    folder = Path(output) if output else Path("runs") / loaded.name
    return runs.run(loaded, folder, plugins=plugins, read_ahead=read_ahead)


def resume(folder: str | Path, plugins: "Plugins | None" = None, accept_changes: bool = False) -> "Result":
    """Continue an interrupted run. The result is the same to the byte as that of an uninterrupted run.

    Args:
        plugins: the plug-ins that the run was started with.
        accept_changes: continue although data, backbone or versions are not those that the run began with.

    Raises:
        InputError: the folder holds no unfinished run, or something has changed that the run is bound to. RunError:
            the run failed.
    """
    from fftmoe.setup import run as runs

    return runs.resume(Path(folder), plugins=plugins, accept_changes=accept_changes)


def predict(run: str | Path, inputs: Sequence[str | None] = (), **options: Any) -> list[dict[str, Any]]:
    """Predict with a finished run: labels of texts or images, or completions of prompts; one dictionary per input.

    Args:
        run: the folder of the run.
        inputs: texts or prompts, whose answer is None with a reason where a text is blank or None; for a run on images,
            paths of image files, folders or tables.
        options: `top_k`, `file`, `column`, `batch_size`, `scores`, `client`, `max_new_tokens`, `temperature`, `top_p`,
            `seed`, `round` and `accept_changes`; they mean the same as the options of `fftmoe predict`.

    Raises:
        InputError: the folder holds no finished run, or an input cannot be read.
    """
    from fftmoe.setup.asked import predict_run

    return predict_run(Path(run), inputs, **options)


def export(run: str | Path, to: str, output: str | Path, **options: Any) -> dict[str, Any]:
    """Export a finished run in another format, after checking that the export computes the same as the run.

    Args:
        run: the folder of the run.
        to: the format: "peft", "personal", "lora", "merged", "gguf", "onnx" or "torch-export".
        output: the folder to write, new or empty.
        options: `top_k`, `client`, `tier`, `experts`, `rank`, `data` and `steps`, where the format takes them, `round`
            and `accept_changes`; they mean the same as the options of `fftmoe export`.

    Returns:
        the values of `export.json`.

    Raises:
        InputError: the input is wrong. RunError: the export computes something else than the run. In both cases nothing
            has been written.
    """
    from fftmoe.setup.export import export_run

    return export_run(Path(run), to, Path(output), options)
