"""Writes a finished run in another form: whole or not at all, and compared with the run before the folder appears."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fftmoe.adapter.bound import ADAPTER_WEIGHTS
from fftmoe.backbones.lora import lora_modules
from fftmoe.config import Recipe
from fftmoe.data import Examples, TextEncoding, encoding_option, read_texts
from fftmoe.errors import InputError, did_you_mean
from fftmoe.exports.card import CardFacts
from fftmoe.exports.check import check_has_experts
from fftmoe.exports.examples import fitting_batches
from fftmoe.exports.folder import ABOUT, file_digest, new_folder, scratch_folder, size_of, write_json, write_text
from fftmoe.exports.gguf_file import check_convertible, export_gguf
from fftmoe.exports.graphs import check_onnx_packages, export_graph, export_onnx
from fftmoe.exports.lora import BATCH_SIZE, LoraExamples, LoraSettings, export_lora
from fftmoe.exports.merged import check_mergeable, export_merged
from fftmoe.exports.peft import export_peft
from fftmoe.exports.personal import (
    ExpertChoice,
    experts_of_client,
    experts_of_tier,
    export_personal,
    listed_experts,
    with_own_answers,
)
from fftmoe.exports.plain import export_plain
from fftmoe.setup.described import described_facts
from fftmoe.setup.finished import check_rows, load_client, load_federation, load_run, recipe_of
from fftmoe.setup.load import read_split
from fftmoe.store import KEPT_ROUND, adapter_of, read_summary
from fftmoe.trained.inputs import unlabelled_images, unlabelled_texts
from fftmoe.trained.run import FinishedRun, TrainedModel


def export_run(run: Path, to: str, output: Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write a run in the format `to` into a new or empty folder.

    Args:
        options: of the format, by name; an option that is None counts as not given. `accept_changes` and `round`
            of the formats here: see `finished_run`.

    Returns:
        What `export.json` records: the run with the SHA-256 of its adapter, the size and the SHA-256 of the weights
        written, and the largest difference between the logits of both with the largest difference allowed.

    Raises:
        InputError: the format, an option, the run or the output cannot be used. RunError: the exported model gives
        other logits than the run's model. Nothing has been written in either case.
    """
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}{did_you_mean(to, FORMATS)}")
    make, known = FORMATS[to]
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if unknown := sorted(set(given) - known):
        others = [name for name, (_, options) in FORMATS.items() if unknown[0] in options]
        raise InputError(
            f"--{unknown[0].replace('_', '-')} is not an option of --to {to}"
            + (f", but of {' and '.join(others)}" if others else f"; its options are {', '.join(sorted(known))}")
        )
    recipe, model = recipe_of(run), adapter_of(run, given.get("round", KEPT_ROUND))
    with new_folder(output) as folder:
        exported = file_digest(model / ADAPTER_WEIGHTS)
        about = {
            "format": to,
            "run": {"name": recipe.name, "method": recipe.method, "adapter": exported},
            **make(run, folder, **given),
            "bytes": size_of(folder),
        }
        write_json(folder / ABOUT, about)
    return about


def _peft(run: Path, folder: Path, *, top_k: int | None = None, **use: Any) -> dict[str, Any]:
    trained = load_run(run, top_k, exact=True, **use)
    return export_peft(trained, _card_facts(run, use), folder, top_k)


def _personal(
    run: Path,
    folder: Path,
    *,
    client: int | str | None = None,
    tier: str | None = None,
    experts: Sequence[int] | None = None,
    top_k: int | None = None,
    **use: Any,
) -> dict[str, Any]:
    if sum(choice is not None for choice in (client, tier, experts)) != 1:
        raise InputError(
            "name the experts to export with exactly one of --client NAME, --tier NAME and --experts 0,3,5"
        )
    choice: ExpertChoice
    facts = replace(_card_facts(run, use), own_parts=client is not None)
    if client is not None:
        choice = experts_of_client(with_own_answers(load_client(run, client, top_k, exact=True, **use)))
    elif tier is not None:
        choice = experts_of_tier(load_federation(run, exact=True, **use), tier, top_k)
    else:
        choice = listed_experts(load_run(run, exact=True, **use), experts or (), top_k)
    return export_personal(choice, facts, folder)


def _lora(run: Path, folder: Path, *, top_k: int | None = None, **options: Any) -> dict[str, Any]:
    imitation, use = _divided(options)
    return _write_lora(load_run(run, top_k, exact=True, **use), _card_facts(run, use), folder, **imitation)


def _write_lora(
    trained: TrainedModel,
    facts: CardFacts,
    folder: Path,
    *,
    rank: int | None = None,
    data: str | None = None,
    steps: int | None = None,
    encoding: str | None = None,
) -> dict[str, Any]:
    if encoding is not None and data is None:
        raise InputError("--encoding says how the files of --data are written; add --data, or leave it out")
    stated = encoding_option(encoding)
    given = {name: value for name, value in (("rank", rank), ("steps", steps)) if value is not None}
    settings = LoraSettings(**given)
    if lora_modules(trained.model):
        return export_plain(trained, facts, folder, given | ({} if data is None else {"data": data}))
    check_has_experts(trained, "to imitate")  # before the data, because loading that takes longer
    return export_lora(trained, facts, folder, settings, lora_examples(trained.run, data, stated))


def _divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of an imitation, and those of `finished_run`."""
    imitation = {name: value for name, value in options.items() if name in ("rank", "data", "steps", "encoding")}
    return imitation, {name: value for name, value in options.items() if name not in imitation}


def _in_weights(
    write: Callable[[TrainedModel, Path, Path], dict[str, Any]],
    checks: Sequence[Callable[[FinishedRun], None]],
    run: Path,
    folder: Path,
    *,
    top_k: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a LoRA as `_lora` does, and with it a model that has it in its weights."""
    imitation, use = _divided(options)
    trained = load_run(run, top_k, exact=True, **use)
    for check in checks:
        check(trained.run)
    with scratch_folder(folder) as lora:
        about = _write_lora(trained, _card_facts(run, use), lora, **imitation)
        card = (lora / CARD).read_text()
        found = {**write(trained, lora, folder), "lora": about}
    write_text(folder / CARD, card)
    return found


def _graph(run: Path, folder: Path, *, top_k: int | None = None, **use: Any) -> dict[str, Any]:
    return export_graph(load_run(run, top_k, exact=True, **use), folder)


def _onnx(run: Path, folder: Path, *, top_k: int | None = None, **use: Any) -> dict[str, Any]:
    check_onnx_packages()
    return export_onnx(load_run(run, top_k, exact=True, **use), folder)


CARD = "README.md"
IMITATION = {"rank", "data", "steps", "encoding", "top_k", "accept_changes", "round"}  # of experts by a LoRA
FORMATS: dict[str, tuple[Callable[..., dict[str, Any]], set[str]]] = {
    "peft": (_peft, {"top_k", "accept_changes", "round"}),
    "personal": (_personal, {"client", "tier", "experts", "top_k", "accept_changes", "round"}),
    "lora": (_lora, IMITATION),
    "merged": (partial(_in_weights, export_merged, (check_mergeable,)), IMITATION),
    "gguf": (partial(_in_weights, export_gguf, (check_convertible, check_mergeable)), IMITATION),
    "onnx": (_onnx, {"top_k", "accept_changes", "round"}),
    "torch-export": (_graph, {"top_k", "accept_changes", "round"}),
}


def card_facts(run: Path, round: str = KEPT_ROUND) -> CardFacts:
    """Return what the model card of a run says about its training.

    Args:
        round: see `finished_run`.

    Raises:
        InputError: the folder is not a finished run.
    """
    return described_facts(recipe_of(run), read_summary(run), run, round)


def _card_facts(run: Path, use: Mapping[str, Any]) -> CardFacts:
    """Return the facts of the model that is used with these options of `finished_run`."""
    return card_facts(run, use.get("round", KEPT_ROUND))


def lora_examples(run: FinishedRun, data: str | None, encoding: TextEncoding | None = None) -> LoraExamples:
    """Return the examples that an imitation of a run is fitted to and judged by.

    Args:
        data: a file of texts or images without labels, or a source with a training split; None for the run's own
            training split.
        encoding: of the text files of `data`.

    Raises:
        InputError: the examples cannot be read, or there are fewer than 20.
    """
    recipe = recipe_of(run.folder)
    if recipe.differential and data is None:
        raise InputError(
            "--to lora fits the imitation to texts or images, and those that the run was trained on would enter it "
            "without the noise of differential privacy; name others with --data"
        )
    examples = _unlabelled(run, recipe, data, encoding)
    fitted, held_out = fitting_batches(examples, data or "the training split", BATCH_SIZE)
    test = read_split(recipe, "test", run.label_names)
    check_rows(run, test)
    return LoraExamples(fitted, held_out, test.examples["test"], len(test.strata))


def _unlabelled(run: FinishedRun, recipe: Recipe, data: str | None, encoding: TextEncoding | None) -> Examples:
    if data is None or not Path(data).is_file():
        train = read_split(recipe, "train", run.label_names, data, encoding)
        if data is None:
            check_rows(run, train)
        return train.examples["train"]
    if run.reads_images:
        return unlabelled_images(run, Path(data), encoding or encoding_option(None))
    given = read_texts(Path(data), run.inputs.text_column, encoding or encoding_option(None))
    given.check_texts()
    texts = [text for text in given.texts if text is not None and text.strip()]
    return unlabelled_texts(run, texts)
