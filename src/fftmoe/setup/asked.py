"""Asks the model of a finished run, or measures it on what others ask."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftmoe.backbones import Decoding, add_to_head
from fftmoe.data import TextEncoding, encoding_option
from fftmoe.errors import InputError
from fftmoe.evaluate import EVALUATION_BATCH_SIZE, tally
from fftmoe.rounds.own_choice import ItemsSeen
from fftmoe.setup.finished import (
    check_rows,
    finished_run,
    load_client,
    load_federation,
    own_model,
    recipe_of,
)
from fftmoe.setup.load import read_split
from fftmoe.setup.splits import Splits
from fftmoe.store import KEPT_ROUND
from fftmoe.trained.complete import MAX_NEW_TOKENS, Writing
from fftmoe.trained.harness import HarnessTasks, check_harness, harness_metrics
from fftmoe.trained.inputs import read_inputs
from fftmoe.trained.load import load_trained
from fftmoe.trained.metrics import metrics_on
from fftmoe.trained.personal import common_model, own_answer_of
from fftmoe.trained.predict import Prediction, check_request, predict
from fftmoe.trained.prior import NONE, Prior, giving, stated_prior
from fftmoe.trained.run import FinishedRun, TrainedModel


@dataclass(frozen=True)
class Questions:
    """Holds what is asked of the model of a finished run.

    Attributes:
        inputs: texts or prompts, None or blank where there is none; for a run on images paths of image files, of
            folders of them, or of tables.
        top_k: how many experts a token uses; None keeps the value of the largest tier, or of the client's tier.
        file: further inputs: one text a line, or a column of a table, such as .csv or .json; for images a path.
        column: the column of a table; None for the one that the run's recipe names.
        encoding: of the file, or of the tables among the inputs; None for UTF-8. It need not be that of the run's data.
        client: the client whose personal answer is wanted, by its name or its number; None for everyone's.
        prior: how often labels occur where the inputs come from (`stated_prior`); None: for a client as among its rows,
            else as among everyone's.
        max_new_tokens, temperature, top_p, seed: how a language model chooses tokens, see `Decoding`.
        on_text: see `Writing`.
    """

    inputs: Sequence[str | None] = ()
    top_k: int | None = None
    file: Path | None = None
    column: str | None = None
    encoding: str | None = None
    batch_size: int = EVALUATION_BATCH_SIZE
    scores: bool = False
    client: int | str | None = None
    prior: str | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    on_text: Callable[[str], None] | None = None


def predict_run(
    folder: Path,
    inputs: Sequence[str | None] = (),
    top_k: int | None = None,
    *,
    accept_changes: bool = False,
    round: str = KEPT_ROUND,
    **options: Any,
) -> list[Prediction]:
    """Return the answers of a run's model; see `predict`.

    Args:
        accept_changes, round: see `finished_run`. options: the other fields of a `Questions`.

    Raises:
        InputError: as `answers_of_run`.
    """
    run = finished_run(folder, accept_changes, round)
    return list(answers_of_run(run, Questions(inputs, top_k, **options), round))


def answers_of_run(run: FinishedRun, asked: Questions, round: str = KEPT_ROUND) -> Iterator[Prediction]:
    """Yield the answers of a run's model, each as soon as it is there; see `predict`.

    Args:
        round: the same as the run's, for the model of a client.

    Raises:
        InputError: as `load_run` and `load_client`; an input cannot be read, or there is none.
    """
    decoding = Decoding(asked.max_new_tokens, asked.temperature, asked.top_p, asked.seed)
    check_request(run, asked.batch_size, asked.scores, draws=decoding.temperature > 0)
    # Before the model, because loading that takes longer.
    inputs = read_inputs(run, asked.inputs, asked.file, asked.column, encoding_option(asked.encoding))
    stated = stated_prior(run, asked.prior)
    trained, prior = _model_and_prior(run, asked, stated, round)
    writing = Writing(decoding, asked.batch_size, asked.on_text)
    answers = predict(trained, inputs, asked.batch_size, asked.scores, writing, prior)
    said = _prior_said(run, asked, prior)
    return ({**answer, **said} for answer in answers) if said else answers


def _model_and_prior(
    run: FinishedRun, asked: Questions, stated: Prior | None, round: str
) -> tuple[TrainedModel, Prior | None]:
    """Return the model that answers, and how its answers are corrected.

    A client that keeps no part of the model corrects the answers of everyone's; the experts that it holds are what it
    can train, and no better (docs/LOG.md).
    """
    if asked.client is None or run.is_language_model:
        return load_asked(run, asked.client, asked.top_k, round=round), stated
    federation = load_federation(run.folder, accept_changes=run.accept_changes, round=round)
    client_id = federation.client_id(asked.client)
    if federation.keeps_parts:
        personal = own_model(federation, asked.client, asked.top_k)
        trained, prior, part = personal.trained, personal.prior, personal.part
    else:
        trained = common_model(federation, client_id, asked.top_k)
        prior, part = (None, None) if asked.prior is not None else own_answer_of(federation, client_id)
    if asked.prior is not None:
        return trained, stated
    if part is not None:
        add_to_head(trained.model, part)
    return trained, prior


def load_asked(
    run: FinishedRun, client: int | str | None, top_k: int | None = None, *, round: str = KEPT_ROUND
) -> TrainedModel:
    """Return the model of a run, or of one of its clients.

    Raises:
        InputError: as `load_run` and `load_client`.
    """
    if client is None:
        return load_trained(run, top_k)
    return load_client(run.folder, client, top_k, accept_changes=run.accept_changes, round=round).trained


def evaluate_run(
    folder: Path,
    source: str | None = None,
    split: str = "test",
    top_k: int | None = None,
    accept_changes: bool = False,
    round: str = KEPT_ROUND,
    encoding: str | None = None,
    client: int | str | None = None,
    prior: str | None = None,
) -> dict[str, Any]:
    """Measure a finished run on a split of the run's data, or of `source`; see `metrics_on`.

    Args:
        accept_changes, round: see `finished_run`.
        encoding: of the text files of `source`; None: UTF-8, and for the run's own data that of its recipe.
        client, prior: measure the answers that this client gets, or a place with these label shares; see `Questions`.

    Returns:
        the metrics; and as `prior`, where a client or a prior is named, how often labels were taken to occur.

    Raises:
        InputError: as `answers_of_run`; the split cannot be read, or is not the one that the run began with.
    """
    stated, run = _stated_encoding(encoding, source), finished_run(folder, accept_changes, round)
    asked, wanted = Questions(top_k=top_k, client=client, prior=prior), stated_prior(run, prior)
    trained, used = _model_and_prior(run, asked, wanted, round)
    found = _rows_to_measure(run, source, split, stated)
    examples = found.examples[split]
    if used is not None and used.shares is None:
        seen = ItemsSeen(used.answers, temperature=1.0)
        tally(trained.model, run.judging_task, examples, len(found.strata), observe=seen)
        used = used.estimated(seen.items().logits)
    if used is not None:
        trained = giving(trained, used, None)
    metrics = metrics_on(trained, examples, found.strata, found.columns.owners.get(split))
    return metrics | _prior_said(run, asked, used)


def _prior_said(run: FinishedRun, asked: Questions, used: Prior | None) -> dict[str, str]:
    """Return how often labels were taken to occur, where that was asked for."""
    if run.is_language_model or (asked.client is None and asked.prior is None):
        return {}
    return {"prior": NONE if used is None else used.name}


def _is_place_of(own: str, source: str) -> bool:
    """Return whether a source is the same one as that of a run, perhaps under another path."""
    return source == own or (Path(source).exists() and Path(own).exists() and Path(source).samefile(own))


def _stated_encoding(encoding: str | None, source: str | None) -> TextEncoding | None:
    """Return the encoding of the text files of a source.

    Raises:
        InputError: it is unknown, or there is no source.
    """
    if encoding is not None and source is None:
        raise InputError("--encoding says how the files of --data are written; add --data, or leave it out")
    return encoding_option(encoding)


def _rows_to_measure(run: FinishedRun, source: str | None, split: str, encoding: TextEncoding | None) -> Splits:
    """Return a split of the run's data, or of `source`.

    Raises:
        InputError: it cannot be read, or is not the one that the run began with.
    """
    recipe = recipe_of(run.folder)
    if source is not None and _is_place_of(recipe.data.source, source):
        # Its test rows are those that the run has divided from the others, whatever has changed since.
        return read_split(recipe, split, run.label_names)
    found = read_split(recipe, split, run.label_names, source, encoding)
    if source is None:
        check_rows(run, found)
    return found


def harness_run(
    folder: Path,
    tasks: HarnessTasks,
    top_k: int | None = None,
    accept_changes: bool = False,
    round: str = KEPT_ROUND,
) -> dict[str, Any]:
    """Measure a finished run with lm-evaluation-harness; see `harness_metrics`.

    Args:
        accept_changes, round: see `finished_run`.

    Raises:
        InputError: see `load_run` and `check_harness`.
    """
    run = finished_run(folder, accept_changes, round)
    check_harness(run, tasks)
    return harness_metrics(load_trained(run, top_k), tasks)
