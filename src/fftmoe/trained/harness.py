"""Measures the language model of a finished run with lm-evaluation-harness, an optional package.

The harness reads its tasks from YAML files, its own or a person's. These name data sets, and may name Python functions
that are run: only task files that are trusted like a program should be measured with.
"""

import importlib
import importlib.metadata
import importlib.util
import io
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fftmoe.backbones import compute_dtype, end_ids_of, load_tokenizer, plain_generation
from fftmoe.data import dated_template
from fftmoe.errors import InputError, did_you_mean
from fftmoe.trained.converse import check_talks
from fftmoe.trained.run import FinishedRun, TrainedModel

PACKAGE = "lm_eval"
TASK_FILES = (".yaml", ".yml")
BATCH = 8  # requests at once: the harness makes the logits of all their places


@dataclass(frozen=True)
class HarnessTasks:
    """States what is measured.

    Attributes:
        names: of tasks or groups that the harness knows, or paths of task files.
        limit: how many examples of each task; None for all.
    """

    names: Sequence[str]
    limit: int | None = None


def check_harness(run: FinishedRun, tasks: HarnessTasks) -> None:
    """Check what can be known before a model is loaded.

    Raises:
        InputError: the model writes no text, the package is missing, or there is no such task file.
    """
    check_talks(run)
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError("lm-evaluation-harness is not installed; run: pip install 'fftmoe[harness]'")
    if not tasks.names:
        raise InputError("no task is named; name some, separated by commas, or the path of a task file")
    for name in tasks.names:
        if name.endswith(TASK_FILES) and not Path(name).is_file():
            raise InputError(f"there is no task file {name!r:.200}; name one, or a task of lm-evaluation-harness")


def harness_metrics(trained: TrainedModel, tasks: HarnessTasks) -> dict[str, Any]:
    """Return what lm-evaluation-harness says of a model, its prompts written with a chat template if the run has one.

    Returns:
        `harness`, the version of the package; `chat_template`; and `tasks`, for each task its metrics under the names
        that the harness gives them, and `examples`, how many were measured.

    Raises:
        InputError: a task is unknown, or cannot be read or measured.
    """
    run = trained.run
    tokenizer, chat_template = load_tokenizer(run.backbone.model), run.inputs.chat_template
    if chat_template:
        tokenizer.chat_template = dated_template(tokenizer)  # this tokenizer is of this call only
    ends = end_ids_of(trained.model, tokenizer, chat_template)
    with _silent(), _random_state_kept(), plain_generation(trained.model, ends):
        try:
            found = _evaluated(trained, tokenizer, tasks)
        except InputError:
            raise
        except Exception as error:  # of a task file, of a data set, of code that they name
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"lm-evaluation-harness cannot measure {', '.join(tasks.names)!r:.200}: {reason:.500}; correct the "
                "task, or name another"
            ) from error
    return {
        "harness": importlib.metadata.version(PACKAGE),
        "chat_template": chat_template,
        "tasks": {name: _metrics(name, own, found) for name, own in sorted(found["results"].items())},
    }


def _evaluated(trained: TrainedModel, tokenizer: Any, tasks: HarnessTasks) -> dict[str, Any]:
    """Return what the harness returns."""
    dtype = compute_dtype(trained.model)
    model = importlib.import_module(f"{PACKAGE}.models.huggingface").HFLM(
        pretrained=trained.model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=BATCH,
        truncation=True,
        mixed_precision_dtype=None if dtype == torch.float32 else dtype,
    )
    return importlib.import_module(PACKAGE).simple_evaluate(
        model=model,
        tasks=_resolved(tasks.names),
        limit=tasks.limit,
        log_samples=False,
        apply_chat_template=trained.run.inputs.chat_template,
        numpy_random_seed=None,
    )


def _metrics(name: str, own: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a task, and of how many examples they are."""
    count = found.get("n-samples", {}).get(name, {}).get("effective")
    numbers = {key: value for key, value in own.items() if isinstance(value, (int, float))}
    return {**{key: value for key, value in numbers.items() if key != "sample_len"}, "examples": count}


def _resolved(names: Sequence[str]) -> list[Any]:
    """Return task names as they are, and task files as the harness reads them.

    Raises:
        InputError: the harness knows no task of a name.
    """
    known = importlib.import_module(f"{PACKAGE}.tasks").TaskManager().all_tasks
    read = importlib.import_module(f"{PACKAGE}.tasks._yaml_loader").load_yaml
    resolved = []
    for name in names:
        if name.endswith(TASK_FILES):
            resolved.append(read(str(Path(name).absolute()), resolve_func=True))
        elif name in known:
            resolved.append(name)
        else:
            raise InputError(
                f"lm-evaluation-harness knows no task {name!r:.200}{_suggested(name, known)}; name one of its tasks, "
                "or the path of a task file"
            )
    return resolved


def _suggested(name: str, known: Sequence[str]) -> str:
    """Return a near name; there are thousands, so that a list of all helps nobody."""
    near = did_you_mean(name, known)
    return near if near.startswith("; did you mean") else "; `lm-eval ls tasks` lists those that there are"


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the bars and notes of the harness from the terminal: standard output holds the result, and nothing else."""
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        yield


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave the random state of this process, which the harness seeds, as it is."""
    before = random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(before)
