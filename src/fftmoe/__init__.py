"""FFT-MoE: federated fine-tuning of foundation models with sparse mixture-of-experts adapters.

    import fftmoe
    result = fftmoe.run("quickstart", output="runs/quickstart")

Importing the package registers the adapter with PEFT, so `PeftModel.from_pretrained` loads saved results.
"""

from collections.abc import Sequence
from pathlib import Path

from fftmoe.adapter import MoeAdapterConfig as MoeAdapterConfig
from fftmoe.adapter import record_routing as record_routing
from fftmoe.backbones import attach_adapter as attach_adapter
from fftmoe.backbones import load_backbone as load_backbone
from fftmoe.config import Recipe as Recipe
from fftmoe.config import load_recipe as load_recipe
from fftmoe.errors import FftmoeError as FftmoeError
from fftmoe.errors import InputError as InputError
from fftmoe.errors import OutputError as OutputError
from fftmoe.errors import RunError as RunError
from fftmoe.experiment import Result as Result
from fftmoe.experiment import resume as _resume
from fftmoe.experiment import run as _run

__all__ = [
    "FftmoeError",
    "InputError",
    "MoeAdapterConfig",
    "OutputError",
    "Recipe",
    "Result",
    "RunError",
    "attach_adapter",
    "load_backbone",
    "load_recipe",
    "record_routing",
    "resume",
    "run",
]
__version__ = "0.1.0"


def run(recipe: str | Path, output: str | Path | None = None, overrides: Sequence[str] = ()) -> Result:
    """Run a recipe (a YAML file, or the name of a shipped one) and return its folder and summary.

    Args:
        output: the run folder, new or empty; `runs/<name>` when None.
        overrides: `section.key=value` each, as `--set` takes them.

    Raises:
        InputError: bad input; nothing has been written. RunError: the run failed.
    """
    loaded = load_recipe(recipe, overrides)
    return _run(loaded, Path(output) if output else Path("runs") / loaded.name)


def resume(folder: str | Path) -> Result:
    """Go on with an interrupted run; the result has the bytes that it would have had.

    Raises:
        InputError: the folder holds no unfinished run. RunError: the run failed.
    """
    return _resume(Path(folder))
