"""Makes a site's client from the recipe that its server sent: the model, the site's own examples,
and what it agrees to.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe.backbones import check_vocabulary, fingerprint
from fftmoe.client.runtime import ClientRuntime, ClientStates
from fftmoe.client.screening import Agreement
from fftmoe.client.sums import groups_of, in_frequent_groups
from fftmoe.client.validation import validation_sums
from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import Examples, SplitRequest, encoding_option, held_out_places, largest_token
from fftmoe.engines.failures import Failure, failing_as
from fftmoe.errors import InputError
from fftmoe.methods.budget import ExpertShape
from fftmoe.setup.bindings import rows_values
from fftmoe.setup.clients import marked
from fftmoe.setup.forecast import site_tier
from fftmoe.setup.judged import judging_task, make_answers, make_loss
from fftmoe.setup.method import adapted_blocks, build_method, expert_shape, fit_budgets, pool_size
from fftmoe.setup.model import build_model
from fftmoe.setup.places import check_same_from_anywhere
from fftmoe.setup.prepared import prepared
from fftmoe.setup.site_request import SiteRows, stated_labels, tasks_of
from fftmoe.setup.splits import Splits, load_splits
from fftmoe.setup.text_sizes import check_max_length, counted_tokens
from fftmoe.setup.tiers import schedule_of, training_of


@dataclass(frozen=True)
class SiteClient:
    """Holds the client of one site, ready for one run.

    Attributes:
        runtime: trains, and answers the server's messages.
        agreed: the limits within which a message must be.
        rows: how many rows the site has, by their use.
        backbone: fingerprint of the backbone that was loaded.
        bindings: what the site's part in the run is bound to; it stays at the site.
    """

    runtime: ClientRuntime
    agreed: Agreement
    rows: SiteRows
    backbone: str
    bindings: Mapping[str, Any]


def make_site_client(
    values: Mapping[str, Any],
    label_names: Sequence[str],
    *,
    client_id: int,
    data: Path,
    encoding: str | None = None,
    budget: str,
    model: str | None,
    states: ClientStates,
) -> SiteClient:
    """Load the site's data and the backbone, and make its client.

    Args:
        values: the recipe that the server sent.
        label_names: the labels that all sites use, in the order of the logits; none for a task without labels.
        client_id: the site's index among the clients. states: where the client keeps its state.
        data: the folder with the site's `train.*`, whatever the recipe says.
        encoding: of its text files, whatever the recipe says; None for UTF-8.
        budget: see `site_tier`.
        model: a folder with the backbone; None for the one that the recipe names.

    Raises:
        CodedError: the recipe is not valid, or the data, the budget or the model does not fit it; its cause has the
            words.
    """
    with failing_as(Failure.RECIPE):
        recipe = site_recipe(values, data, model, encoding)
        _check_same_labels(stated_labels(recipe), tuple(label_names))
    with failing_as(Failure.DATA):
        request = SplitRequest(("train",), tuple(label_names) or None, declared=recipe.differential, divide=False)
        request = replace(request, encoding=encoding_option(encoding))
        found = load_splits(recipe, str(data), request)
        rows = found.examples["train"]
    with failing_as(Failure.BACKBONE):
        adapted = build_model(recipe, label_names)
        check_max_length(recipe, found.max_length, adapted)  # a long text that fails would show itself
        check_vocabulary(adapted, largest_token(rows), recipe.backbone.model)
        shape = expert_shape(recipe, adapted.get_base_model())
        blocks = tuple(adapted_blocks(recipe, adapted.get_base_model()))
    with failing_as(Failure.BUDGET):
        tier = site_tier(budget, recipe, shape, blocks, len(rows), counted_tokens(recipe, rows, adapted))
    kept, held = _divided(recipe, rows, client_id)
    runtime = _make_runtime(recipe, adapted, shape, found, {client_id: (kept, held)}, len(label_names), states)
    backbone = fingerprint(adapted)
    bindings = {**rows_values(found.rows), "tokenizer": found.reader, "backbone": backbone, "labels": list(label_names)}
    agreed = make_agreement(recipe, adapted, client_id, tier)
    return SiteClient(runtime, agreed, _counted(recipe, rows, kept, held, len(label_names)), backbone, bindings)


def _counted(recipe: Recipe, rows: Examples, kept: np.ndarray, held: np.ndarray, num_outputs: int) -> SiteRows:
    """Count the rows that the site trains on (`kept`) and those that it sets aside, and those in feature statistics."""
    if not recipe.closed_form:
        return SiteRows(len(kept), len(held))
    groups_NG = groups_of(rows, kept, num_outputs, make_answers(recipe))
    by_label = tuple(groups_NG.sum(0).tolist())
    return SiteRows(len(kept), len(held), by_label, lambda fewest: int(in_frequent_groups(groups_NG, fewest).sum()))


def _make_runtime(
    recipe: Recipe,
    adapted: Any,
    shape: ExpertShape,
    found: Splits,
    divided: Mapping[int, tuple[np.ndarray, np.ndarray]],
    num_outputs: int,
    states: ClientStates,
) -> ClientRuntime:
    """Return what trains and validates on the rows that the site found, with the model that it built.

    Args:
        divided: by client, the rows that it trains on and those that it sets aside.
    """
    train = prepared(recipe, adapted, found.examples["train"])
    return ClientRuntime(
        adapted,
        build_method(recipe, adapted, shape, {}),
        make_loss(recipe),
        num_outputs,
        train,
        {client: marked(kept, found.left_out) for client, (kept, _) in divided.items()},
        states,
        lambda *_, **__: {},  # a site trains and measures nothing for the server
        partial(
            validation_sums,
            task=judging_task(recipe),
            num_outputs=num_outputs,
            examples=train,
            rows={client: held for client, (_, held) in divided.items()},
        ),
        micro_batch_size=recipe.engine.micro_batch_size,
        answers=make_answers(recipe),
    )


def _divided(recipe: Recipe, rows: Examples, client_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that the site trains on, and those that it sets aside."""
    fraction, every = recipe.data.validation, np.arange(len(rows))
    aside = every[:0] if fraction is None else held_out_places(rows.labels.numpy(), fraction, client_id)
    return np.setdiff1d(every, aside), aside


def _check_same_labels(stated: tuple[str, ...] | None, sent: tuple[str, ...]) -> None:
    """Compare the labels that the server lists with those of its recipe, if that has any.

    Raises:
        InputError: they differ; the message is for this site's own log.
    """
    if stated is not None and stated != sent:
        raise InputError(
            f"the server lists the labels {reprlib.repr(sent)} and its recipe says {reprlib.repr(stated)}; the server "
            "must list those of the recipe, in its order"
        )


def make_agreement(recipe: Recipe, model: Any, client_id: int, tier: str) -> Agreement:
    """Return what a site agrees to when it joins a run of this recipe; `model` is freshly built from it."""
    backbone = model.get_base_model()
    shape = expert_shape(recipe, backbone)
    return Agreement(
        client_id=client_id,
        tier=tier,
        tasks=tasks_of(recipe),
        rounds=recipe.federation.rounds,
        training=training_of(recipe),
        blocks=tuple(adapted_blocks(recipe, backbone)),
        num_experts=pool_size(recipe, backbone),
        longest=max(size for p in model.parameters() if p.requires_grad for size in p.shape),
        schedule=schedule_of(recipe),
        fit=lambda budget: fit_budgets(recipe, model, [replace(budget, rank=0)], shape)[0],
    )


def site_recipe(values: Mapping[str, Any], data: Path, model: str | None, encoding: str | None = None) -> Recipe:
    """Return the server's recipe with this site's own paths, and the encoding of its own text files.

    Raises:
        InputError: it is not a valid recipe, or its backbone depends on where the site was started.
    """
    recipe = parse_recipe(values, "that the server sent")
    if model is None:
        check_same_from_anywhere(recipe.backbone.model)
    backbone = recipe.backbone.model_copy(update={"model": model} if model else {})
    own = recipe.data.model_copy(update={"source": str(data), "encoding": encoding})
    return recipe.model_copy(update={"backbone": backbone, "data": own})
