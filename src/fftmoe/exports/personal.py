"""Exports an adapter of fewer experts for one device: a client's own, or a choice from the pool.

Experts are slices of tensors, and the router of some experts consists of their rows of the router, so the exported
adapter computes exactly what the model computes with these experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fftmoe import adapter
from fftmoe.adapter.bound import ADAPTER_WEIGHTS
from fftmoe.backbones import attach_adapter, copy_head
from fftmoe.errors import InputError, did_you_mean
from fftmoe.exports.card import CardFacts, figures_of_run, model_card
from fftmoe.exports.check import REORDERED, answers, check_has_experts, difference, probes, require
from fftmoe.exports.folder import beside, file_digest, write_text
from fftmoe.exports.load import fresh_backbone, reload
from fftmoe.records import names
from fftmoe.shown import count_of
from fftmoe.store import save_adapter
from fftmoe.trained.personal import FinishedFederation, PersonalModel
from fftmoe.trained.prior import giving
from fftmoe.trained.run import TrainedModel


@dataclass(frozen=True)
class ExpertChoice:
    """Names experts of a model; every block that has experts at all has the same number of them.

    Attributes:
        trained: the model, which uses only these experts.
        rows: their positions in the model, by block. experts: their ids in the pool, by block.
        top_k: how many of them a token uses.
        description: the choice in words, for the model card. facts: the choice for `export.json`.
    """

    trained: TrainedModel
    rows: Mapping[int, Sequence[int]]
    experts: Mapping[int, Sequence[int]]
    top_k: int
    description: str
    facts: Mapping[str, Any]


def with_own_answers(personal: PersonalModel) -> PersonalModel:
    """Let the head of a client's model give its personal answers. The run is then one of rows with its label shares."""
    if personal.prior is None:
        return personal
    return replace(personal, trained=giving(personal.trained, personal.prior, personal.part))


def experts_of_client(personal: PersonalModel) -> ExpertChoice:
    """Return the resident experts of a client.

    Raises:
        InputError: the method has no experts.
    """
    check_has_experts(personal.trained, "to choose from")
    description = f"The personal adapter of client {personal.name}: its resident experts and its own router"
    if personal.prior is not None:
        description += "; its answers are corrected for how often each label occurs among the client's rows"
    if personal.part is not None:
        description += ", and its head has a private part that was fitted to these rows"
    # The model holds only the client's experts, so their positions are not their ids in the pool.
    rows = {block: range(len(ids)) for block, ids in personal.experts.items()}
    facts = {"client": personal.client_id, "client_name": personal.name, "own_state": personal.kept}
    if personal.prior is not None:
        facts |= {"prior": personal.prior.name, "private_part": personal.part is not None}
    return ExpertChoice(personal.trained, rows, personal.experts, personal.budget.top_k, description, facts)


def experts_of_tier(federation: FinishedFederation, name: str, top_k: int | None) -> ExpertChoice:
    """Return the experts that the federation uses most, as many as a tier holds.

    Raises:
        InputError: there is no such tier, the method has no experts, or a tier holds fewer than `top_k`.
    """
    trained, state = federation.trained, federation.state
    tiers = {tier.name: tier for tier in federation.tiers}
    if name not in tiers:
        raise InputError(f"the run in {trained.run.folder} has no tier {name!r}{did_you_mean(name, tiers)}")
    tier = tiers[name]
    check_has_experts(trained, "to choose from")
    federation.method.install(trained.model, state.tensors, tier)
    federation.to_units(trained.model)
    top_k = tier.top_k if top_k is None else top_k
    load = {block: state.load[names.load_of_block(block)] for block in tier.blocks}
    busiest = {block: load_E.argsort(descending=True, stable=True) for block, load_E in load.items()}
    rows = {block: sorted(order[: tier.experts].tolist()) for block, order in busiest.items()}
    _use_only(trained, rows, top_k)
    most = count_of(tier.experts, "expert")
    description = f"For a device of tier {name}: the {most} of each block that the federation uses most"
    return ExpertChoice(trained, rows, rows, top_k, description, {"tier": name})


def listed_experts(trained: TrainedModel, experts: Sequence[int], top_k: int | None) -> ExpertChoice:
    """Return the same listed experts in every block.

    Raises:
        InputError: the method has no experts, an id is not in the pool, or there are fewer than `top_k`.
    """
    chosen = sorted(set(experts))
    check_has_experts(trained, "to choose from")
    blocks = adapter.blocks(trained.model)
    most = min(moe.num_experts for moe in blocks.values())
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < most:
        raise InputError(
            f"--experts {','.join(map(str, experts))}: the run has experts 0 to {most - 1}; choose among them"
        )
    usual: int = trained.model.peft_config["default"].top_k
    top_k = min(usual, len(chosen)) if top_k is None else top_k
    rows = dict.fromkeys(blocks, chosen)
    _use_only(trained, rows, top_k)
    return ExpertChoice(trained, rows, rows, top_k, f"Experts {', '.join(map(str, chosen))} of every block", {})


def _use_only(trained: TrainedModel, rows: Mapping[int, Sequence[int]], top_k: int) -> None:
    """Let the model use only these experts of the pool."""
    for block, moe in adapter.blocks(trained.model).items():
        if block in rows:
            resident = torch.zeros(moe.num_experts, dtype=torch.bool)
            resident[list(rows[block])] = True
            moe.view(top_k, resident)


def export_personal(choice: ExpertChoice, facts: CardFacts, folder: Path) -> dict[str, Any]:
    """Write the chosen experts with their router rows, the shared parts and the head as a PEFT folder.

    Returns:
        What `export.json` records about this format.

    Raises:
        RunError: the exported adapter gives other logits.
    """
    run = choice.trained.run
    batches = probes(choice.trained)
    expected = answers(choice.trained.model, batches)
    save_adapter(pruned(choice), folder, beside(run), private=False)
    found = difference(answers(reload(run, folder), batches), expected)
    figures = figures_of_run(facts, own=False)
    write_text(folder / "README.md", model_card(run, facts, f"{choice.description}.", figures))
    return {
        **require(found, REORDERED, "adapter"),  # products with a smaller pool
        "weights": file_digest(folder / ADAPTER_WEIGHTS),
        **choice.facts,
        "experts": {str(block): list(ids) for block, ids in choice.experts.items()},
        "top_k": choice.top_k,
    }


def pruned(choice: ExpertChoice) -> Any:
    """Return the run's backbone with an adapter that holds only the chosen experts."""
    old = choice.trained.model
    pools, sizes = adapter.blocks(old), {len(rows) for rows in choice.rows.values()}
    assert len(sizes) == 1, "a budget gives all its blocks the same number of experts"
    config = replace(
        old.peft_config["default"],
        num_experts=sizes.pop(),
        top_k=choice.top_k,
        blocks=list(choice.rows),
        scale=pools[next(iter(choice.rows))].scale,  # each client of FLAME has its own scale
        target_modules=None,
        inference_mode=True,
    )
    new = attach_adapter(fresh_backbone(choice.trained.run), config)
    for block, moe in adapter.blocks(new).items():
        pool, rows = pools[block], list(choice.rows[block])
        moe.load_experts(pool.router.weight[rows], pool.up[rows], pool.down[rows], choice.top_k)
        if pool.shared_up is not None and pool.shared_down is not None:
            moe.load_shared(pool.shared_up, pool.shared_down)
    values = adapter.shared_projections(old)
    with torch.no_grad():
        for name, parameter in adapter.shared_projections(new).items():
            parameter.copy_(values[name])
    copy_head(old, new)
    return new
