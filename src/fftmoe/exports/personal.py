"""An adapter of fewer experts, for one device: a client's own model, or what a tier or a person chooses of the pool.

Experts are slices of tensors, and a router over some of them is some of its rows, so nothing is approximated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fftmoe import adapter
from fftmoe.backbones import attach_adapter, copy_head
from fftmoe.errors import InputError, did_you_mean
from fftmoe.exports.card import model_card, of_run
from fftmoe.exports.check import SAME, answers, difference, probes, require
from fftmoe.exports.folder import digest_of, write_text
from fftmoe.exports.load import WEIGHTS, fresh_backbone, open_run, read_summary, reload
from fftmoe.records import names
from fftmoe.store import save_adapter
from fftmoe.trained.load import Trained
from fftmoe.trained.personal import load_client, load_federation


@dataclass(frozen=True)
class Part:
    """Experts of a model, equally many in every block that has some.

    Attributes:
        trained: the model, which uses none but these.
        rows: their places in the model, by block. experts: their numbers in the pool, by block.
        top_k: of them a token uses. whose: for a person. facts: for `export.json`.
    """

    trained: Trained
    rows: Mapping[int, Sequence[int]]
    experts: Mapping[int, Sequence[int]]
    top_k: int
    whose: str
    facts: Mapping[str, Any]


def export_personal(
    run: Path,
    folder: Path,
    *,
    client: int | None = None,
    tier: str | None = None,
    experts: Sequence[int] | None = None,
    top_k: int | None = None,
) -> dict[str, Any]:
    """The experts of a client, of a tier or of this list, with their router rows, what is shared and the head.

    Args:
        top_k: experts a token uses; as the client, the tier or the run when None.

    Returns:
        what `export.json` says of it.
    """
    if sum(choice is not None for choice in (client, tier, experts)) != 1:
        raise InputError("say whose experts to export: one of --client ID, --tier NAME and --experts 0,3,5")
    if client is not None:
        part = _of_client(run, client, top_k)
    elif tier is not None:
        part = _of_tier(run, tier, top_k)
    else:
        part = _of_list(run, experts or (), top_k)
    trained, recipe = part.trained, part.trained.recipe
    batches = probes(trained)
    expected = answers(trained.model, batches)
    save_adapter(pruned(part), folder, trained.label_names)
    found = difference(answers(reload(trained, folder), batches), expected)
    summary = read_summary(run)
    measured = of_run(recipe, summary, own=False)
    write_text(folder / "README.md", model_card(recipe, summary, len(trained.label_names), f"{part.whose}.", measured))
    held = {str(block): list(ids) for block, ids in part.experts.items()}
    told = {**part.facts, "experts": held, "top_k": part.top_k}
    return {**require(found, SAME, "adapter"), "weights": digest_of(folder / WEIGHTS), **told}


def _of_client(run: Path, client_id: int, top_k: int | None) -> Part:
    client = load_client(run, client_id, top_k, exact=True)
    _check_experts(client.trained)
    whose = f"The personal adapter of client {client_id}: its resident experts and its own router"
    facts = {"client": client_id, "own_state": client.kept}
    # The model holds the client's experts alone: their places are not their numbers in the pool.
    rows = {block: range(len(ids)) for block, ids in client.experts.items()}
    return Part(client.trained, rows, client.experts, client.budget.top_k, whose, facts)


def _of_tier(run: Path, name: str, top_k: int | None) -> Part:
    federation = load_federation(run, exact=True)
    experiment, state = federation.experiment, federation.state
    tiers = {tier.name: tier for tier in experiment.tiers}
    if name not in tiers:
        raise InputError(f"the run in {run} has no tier {name!r}{did_you_mean(name, tiers)}")
    trained, tier = Trained(experiment.recipe, experiment.label_names, experiment.model), tiers[name]
    _check_experts(trained)
    experiment.method.install(trained.model, state.tensors, tier)
    used = tier.top_k if top_k is None else top_k
    busiest = {
        block: state.load[names.load_of_block(block)].argsort(descending=True, stable=True) for block in tier.blocks
    }
    rows = {block: sorted(order[: tier.experts].tolist()) for block, order in busiest.items()}
    _look_at(trained, rows, used)
    whose = f"For a device of tier {name}: the {tier.experts} experts of each block that the federation uses most"
    return Part(trained, rows, rows, used, whose, {"tier": name})


def _of_list(run: Path, experts: Sequence[int], top_k: int | None) -> Part:
    source = open_run(run, None)
    trained, chosen = source.trained, sorted(set(experts))
    _check_experts(trained)
    blocks = adapter.blocks(trained.model)
    most = min(moe.num_experts for moe in blocks.values())
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < most:
        raise InputError(f"--experts {','.join(map(str, experts))}: the run has experts 0 to {most - 1}")
    usual: int = trained.model.peft_config["default"].top_k
    used = min(usual, len(chosen)) if top_k is None else top_k
    rows = dict.fromkeys(blocks, chosen)
    _look_at(trained, rows, used)
    return Part(trained, rows, rows, used, f"Experts {', '.join(map(str, chosen))} of every block", {})


def _check_experts(trained: Trained) -> None:
    if not adapter.blocks(trained.model):
        raise InputError(
            f"a run of method {trained.recipe.method} has no experts to choose from; export it whole: --to peft"
        )


def _look_at(trained: Trained, rows: Mapping[int, Sequence[int]], top_k: int) -> None:
    """The pool, of which only these experts may be used."""
    for block, moe in adapter.blocks(trained.model).items():
        if block in rows:
            resident = torch.zeros(moe.num_experts, dtype=torch.bool)
            resident[list(rows[block])] = True
            moe.view(top_k, resident)


def pruned(part: Part) -> Any:
    """The run's backbone with an adapter of these experts alone."""
    old = part.trained.model
    pools, sizes = adapter.blocks(old), {len(rows) for rows in part.rows.values()}
    assert len(sizes) == 1, "a budget names one number for all its blocks"
    config = replace(
        old.peft_config["default"],
        num_experts=sizes.pop(),
        top_k=part.top_k,
        blocks=list(part.rows),
        scale=pools[next(iter(part.rows))].scale,  # FLAME's clients have their own
        target_modules=None,
        inference_mode=True,
    )
    new = attach_adapter(fresh_backbone(part.trained), config)
    for block, moe in adapter.blocks(new).items():
        pool, rows = pools[block], list(part.rows[block])
        moe.load_experts(pool.router.weight[rows], pool.up[rows], pool.down[rows], part.top_k)
        if pool.shared_up is not None and pool.shared_down is not None:
            moe.load_shared(pool.shared_up, pool.shared_down)
    values = adapter.shared_projections(old)
    with torch.no_grad():
        for name, parameter in adapter.shared_projections(new).items():
            parameter.copy_(values[name])
    copy_head(old, new)
    return new
