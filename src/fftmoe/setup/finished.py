"""Opens the folder of a finished run, and measures it, or rebuilds the model of one of its clients.

This is the only place that reads the recipe of a finished run for these uses; `trained/` takes plain values.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fftmoe.adapter.bound import check_adapter_files, check_base
from fftmoe.config import Recipe, parse_recipe
from fftmoe.errors import InputError
from fftmoe.head import are_shares
from fftmoe.records import ServerState
from fftmoe.server.average import served
from fftmoe.setup.bindings import bindings_of, rows_values
from fftmoe.setup.calibrated import set_temperature
from fftmoe.setup.compose import compose
from fftmoe.setup.described import described_run
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.own_labels import own_answer
from fftmoe.setup.places import from_its_place
from fftmoe.setup.splits import Splits
from fftmoe.setup.target_scales import scales_of, to_units
from fftmoe.store import (
    KEPT_ROUND,
    LAST_ADAPTER,
    Bindings,
    DamagedFileError,
    RunFolder,
    adapter_of,
    read_run,
    read_said,
    read_summary,
)
from fftmoe.store.bindings import differences, require_same
from fftmoe.tasks import Scales
from fftmoe.trained.load import load_trained
from fftmoe.trained.personal import FinishedFederation, PersonalModel, personal_model
from fftmoe.trained.prior import OwnAnswer
from fftmoe.trained.run import FinishedRun, TrainedModel

USED_FREELY = ("versions", "keys")  # bindings that do not matter once a run has finished


def recipe_of(folder: Path) -> Recipe:
    """Return the recipe of a finished run.

    Raises:
        InputError: the folder is not a finished run.
    """
    return parse_recipe(from_its_place(folder, read_run(folder)), str(folder / "config.yaml"))


def finished_run(folder: Path, accept_changes: bool = False, round: str = KEPT_ROUND) -> FinishedRun:
    """Return what a finished run looks like to the code that uses it.

    Args:
        round: see `adapter_of`.
        accept_changes: use it although backbone, tokenizer or data are not those that it is bound to.

    Raises:
        InputError: the folder is not a finished run, or is damaged.
    """
    recipe = recipe_of(folder)
    model = adapter_of(folder, round)
    if (began := _began(folder)) is not None:
        began.check_adapter(model)
    said = read_said(model)
    described = described_run(recipe, folder, model, said.labels)
    return replace(
        described,
        began=began,
        accept_changes=accept_changes,
        temperature=said.temperature,
        label_shares=said.label_shares or _counted_shares(folder, said.labels),
    )


def _counted_shares(folder: Path, labels: Sequence[str]) -> tuple[float, ...] | None:
    """Return everyone's shares of these labels from the summary of a run; None if there are none."""
    if not labels or not (folder / "summary.json").is_file():  # an adapter that others hand over may come without
        return None
    shares = read_summary(folder).get("label_shares")
    return tuple(shares) if are_shares(shares) and len(shares) == len(labels) else None


def _began(folder: Path) -> Bindings | None:
    found = Bindings.read(folder)
    if found is None:
        logging.getLogger(__name__).warning(
            "%s does not record what it was trained with, because an older version of fftmoe made it; whether backbone "
            "and data are the same cannot be checked",
            folder,
        )
    return found


def load_run(
    folder: Path,
    top_k: int | None = None,
    *,
    exact: bool = False,
    accept_changes: bool = False,
    round: str = KEPT_ROUND,
) -> TrainedModel:
    """Return the trained model of a run folder.

    Args:
        top_k, exact: see `load_trained`. accept_changes, round: see `finished_run`.

    Raises:
        InputError: the folder is not a finished run, or `top_k` is above the number of experts.
    """
    return load_trained(finished_run(folder, accept_changes, round), top_k, exact=exact)


def check_rows(run: FinishedRun, found: Splits) -> None:
    """Refuse splits of the run's own data that have changed since it began.

    Raises:
        InputError: they have, and nobody has accepted it.
    """
    if run.began is not None:
        require_same(
            f"the data of the run in {run.folder} are not those that it began with",
            differences(run.began.values, rows_values(found.rows)),
            run.accept_changes,
            "restore them, or name the data to measure with --data",
        )


def load_federation(
    folder: Path, *, exact: bool = False, accept_changes: bool = False, round: str = KEPT_ROUND
) -> FinishedFederation:
    """Return the parts of a finished run, and the state of its server after the round that is asked for.

    Args:
        exact: see `load_trained`. accept_changes, round: see `finished_run`.

    Raises:
        InputError: the run has not finished, has no checkpoint, or its data cannot be read.
    """
    run, recipe, files = finished_run(folder, accept_changes, round), recipe_of(folder), RunFolder(folder)
    state = _kept_state(run, files)
    parts = compose(_without_training(recipe, exact), measures=False)
    if (base := check_adapter_files(run.adapter)) is not None:
        check_base(base, parts.model, run.adapter)
    _check_parts(run, bindings_of(parts, recipe))
    return FinishedFederation(
        trained=TrainedModel(run, parts.model),
        method=parts.method,
        state=served(state),
        tiers=parts.tiers,
        budgets=parts.budgets,
        training=parts.training,
        seed=recipe.seed,
        client_states=files.client_states,
        to_units=partial(_to_answers, scales=scales_of(parts.recipe), temperature=run.temperature),
        names=parts.partition.groups,
        own_answer=_own_answer(parts, run),
        keeps_parts=parts.method.capabilities.personal or recipe.adapter.router != "shared",
        own_parts=files.own_parts if recipe.federation.own_training and round == KEPT_ROUND else None,
    )


def _own_answer(parts: Experiment, run: FinishedRun) -> Callable[[int], OwnAnswer] | None:
    own, shares = parts.own_labels, run.label_shares
    if own is None or shares is None:
        return None
    return lambda client: own_answer(own, client, parts.model, parts.task, shares, run.temperature)


def _to_answers(model: Any, scales: Scales, temperature: float | None) -> None:
    """Let the head of a model in which a state has been installed answer as the saved model does."""
    to_units(model, scales)
    set_temperature(model, temperature)


def _kept_state(run: FinishedRun, files: RunFolder) -> ServerState:
    """Return the state of the server after the last round, or after the round that is kept."""
    saved = files.load_newest()
    if saved.state is None:
        raise InputError(
            f"the run in {run.folder} has no checkpoint, so the experts of its clients are unknown; run it again "
            "(`fftmoe compare` keeps the checkpoints of its runs with --keep)"
        )
    if not _keeps_earlier(run):
        return saved.state
    try:
        return files.checkpoints.load(read_summary(run.folder)["best_round"])[0]
    except DamagedFileError as error:
        raise InputError(f"the round that the run keeps cannot be read: {error}; restore the file") from error


def _keeps_earlier(run: FinishedRun) -> bool:
    """Return whether what is used is the model of a round before the last."""
    return run.adapter.name != LAST_ADAPTER and (run.folder / LAST_ADAPTER).is_dir()


def _check_parts(run: FinishedRun, now: Mapping[str, Any]) -> None:
    """Refuse parts that are not those of the run. Versions may differ: a finished model can be used with newer ones."""
    if run.began is not None:
        require_same(
            f"the clients of the run in {run.folder} cannot be rebuilt",
            differences(run.began.values, {name: value for name, value in now.items() if name not in USED_FREELY}),
            run.accept_changes,
            "restore what it began with",
        )


def load_client(
    folder: Path,
    client: int | str,
    top_k: int | None = None,
    *,
    exact: bool = False,
    accept_changes: bool = False,
    round: str = KEPT_ROUND,
) -> PersonalModel:
    """Return a client's personal model; see `personal_model`.

    Args:
        client: its name or its number.

    Raises:
        InputError: as `load_federation`; there is no such client, it holds fewer than `top_k` experts, or the run keeps
            an earlier round, of which clients have kept nothing.
    """
    federation = load_federation(folder, exact=exact, accept_changes=accept_changes, round=round)
    return own_model(federation, client, top_k)


def own_model(federation: FinishedFederation, client: int | str, top_k: int | None = None) -> PersonalModel:
    """Return a client's personal model of a federation that has been loaded.

    Raises:
        InputError: as `load_client`.
    """
    run = federation.trained.run
    if _keeps_earlier(run) and (federation.keeps_parts or federation.own_parts is None):
        raise InputError(
            f"the run in {run.folder} keeps an earlier round, and clients keep their own part of the model only for "
            "the last one; add --round last"
        )
    return personal_model(federation, client, top_k)


def _without_training(recipe: Recipe, exact: bool) -> Recipe:
    """Return the recipe without what only training needs, on a device that this machine has."""
    changes = {"device": "cpu", "precision": "float32"} if exact else {"device": "auto"}
    engine = recipe.engine.model_copy(update={**changes, "prefix_cache": "off"})
    return recipe.model_copy(update={"engine": engine, "start_from": None})
