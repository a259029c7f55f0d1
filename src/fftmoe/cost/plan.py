"""`fftmoe plan`: who gets what and what it costs, before anything trains."""

from dataclasses import dataclass, replace

import torch

from fftmoe import adapter
from fftmoe.backbones import first_adapted_block
from fftmoe.backbones.prefix_cache import prefix_cost
from fftmoe.client.compress import compress
from fftmoe.config import HeadSection, Recipe
from fftmoe.head import sum_shapes
from fftmoe.methods.budget import TRAINING_COPIES
from fftmoe.methods.lora import LoraMethod
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, pack_plan, pack_update
from fftmoe.server.plan import plan_round
from fftmoe.server.solve import plan_sums
from fftmoe.setup.compose import Experiment, compose


@dataclass(frozen=True)
class TierCost:
    """What one client of a tier costs in a round.

    Attributes:
        bytes_down: of the real first message. bytes_up: at most (every resident expert was trained).
        adapter_bytes: resident experts, router rows and head. training_bytes: with gradients and AdamW moments.
        flops_per_token: adapter only, forward and backward.
        rank: of LoRA; None for methods that train no LoRA.
    """

    budget: Budget
    clients: tuple[int, ...]
    bytes_down: int
    bytes_up: int
    trainable_parameters: int
    adapter_bytes: int
    training_bytes: int
    flops_per_token: int
    rank: int | None


@dataclass(frozen=True)
class SumsCost:
    """What a closed-form head costs every client, whatever its tier and beside the rounds.

    Attributes:
        bytes_first: of the first client's message before the first round; others differ by a few bytes of header.
        bytes_down: likewise of later ones; with FLoRA, which sends what has been merged, they are larger.
        bytes_up: of the client whose sums are largest.
        times: exchanges in the whole run, the first before the first round.
        every: rounds from one exchange to the next, and there is one after the last round; None: no more follow.
    """

    bytes_first: int
    bytes_down: int
    bytes_up: int
    times: int
    every: int | None


@dataclass(frozen=True)
class Forecast:
    """The plan of a run: costs by tier, every client's first experts, and the backbone's size in each process.

    `sums` is None where the head is not closed-form. `prefix_bytes` of the frozen prefix's states are kept on disk, 0
    where `prefix_refused` says why none are.
    """

    tiers: tuple[TierCost, ...]
    sums: SumsCost | None
    experts: dict[int, Experts]
    num_examples: tuple[int, ...]
    backbone_bytes: int
    prefix_bytes: int
    prefix_refused: str | None
    rounds: int
    clients_per_round: int


def forecast(recipe: Recipe) -> Forecast:
    """Compose the experiment and cost its first round; trains nothing and writes no run folder.

    Raises:
        InputError: as `run`, among others a budget that cannot hold one expert.
    """
    # The prefix is costed, not computed: that takes as long as some rounds.
    engine = recipe.engine.model_copy(update={"prefix_cache": "off"})
    experiment = compose(recipe.model_copy(update={"engine": engine}))
    prefix_bytes, prefix_refused = _prefix_cost(experiment, recipe)
    state = experiment.method.init(experiment.model)
    everyone = range(experiment.num_clients)
    plan = plan_round(experiment.method, state, 1, everyone, experiment.budgets, experiment.training, recipe.seed)
    plans = {client.client_id: client for client in plan.clients}
    adapted = {name for name, p in experiment.model.named_parameters() if p.requires_grad}
    backbone = sum(p.nbytes for name, p in experiment.model.named_parameters() if name not in adapted)
    return Forecast(
        tiers=tuple(_cost(experiment, tier, plans, state) for tier in experiment.tiers),
        sums=_sums_cost(experiment, state, recipe.closed_form) if recipe.closed_form else None,
        experts={client_id: client.experts for client_id, client in plans.items()},
        num_examples=tuple(len(rows) for rows in experiment.partition.indices),
        backbone_bytes=backbone,
        prefix_bytes=prefix_bytes,
        prefix_refused=prefix_refused,
        rounds=experiment.recipe.federation.rounds,
        clients_per_round=experiment.recipe.federation.clients_per_round,
    )


def predicted_by_tier(experiment: Experiment, state: ServerState) -> dict[str, dict[str, float]]:
    """What one client of each tier was to cost in a round of this run, to be held against what it did."""
    first = {tier: int(ids[0]) for tier in experiment.tiers if len(ids := experiment.budgets.members(tier))}
    cohort = sorted(first.values())
    plan = plan_round(experiment.method, state, 1, cohort, experiment.budgets, experiment.training, 0)
    plans = {client.client_id: client for client in plan.clients}
    costs = {tier.name: _cost(experiment, tier, plans, state) for tier in first}
    kept = ("bytes_down", "bytes_up", "training_bytes", "flops_per_token")
    return {name: {key: getattr(cost, key) for key in kept} for name, cost in costs.items()}


def _prefix_cost(experiment: Experiment, recipe: Recipe) -> tuple[int, str | None]:
    """Of the training and the test examples, each of which is cached or not."""
    if recipe.engine.prefix_cache == "off":
        return 0, "engine.prefix_cache is off"
    model, limit = experiment.model, recipe.engine.prefix_cache_mib * 2**20
    block = first_adapted_block(model)
    costs = [prefix_cost(model, block, examples, limit) for examples in (experiment.train, experiment.test)]
    refused = [reason for _, reason in costs if reason is not None]
    return sum(cost for cost, reason in costs if reason is None), refused[0] if refused else None


def _cost(experiment: Experiment, tier: Budget, plans: dict[int, ClientPlan], state: ServerState) -> TierCost:
    clients = tuple(c for c, budget in experiment.budgets.items() if budget == tier)
    head = sum(t.numel() for name, t in state.tensors.items() if name.startswith("head."))
    parameters = experiment.method.parameters(tier) + head
    first = plans[clients[0]]
    download = experiment.method.download(state, first)
    upload = experiment.training.upload
    return TierCost(
        budget=tier,
        clients=clients,
        bytes_down=len(pack_plan(first, download)),
        bytes_up=len(pack_update(compress(experiment.method.widest_update(first, download), {}, upload)[0])),
        trainable_parameters=parameters,
        adapter_bytes=4 * parameters,
        training_bytes=4 * parameters * TRAINING_COPIES,
        flops_per_token=_flops_per_token(experiment, tier),
        rank=experiment.method.rank(tier) if isinstance(experiment.method, LoraMethod) else None,
    )


def _sums_cost(experiment: Experiment, state: ServerState, head: HeadSection) -> SumsCost:
    method, recipe = experiment.method, experiment.recipe
    first, client = (
        plan_sums(method, at, [0], experiment.largest, experiment.training, recipe.seed).clients[0]
        for at in (state, replace(state, round=1))
    )
    num_labels, num_features = state.tensors["head.weight"].shape
    told = recipe.privacy is None
    sent = [
        {name: torch.empty(shape) for name, shape in sum_shapes(num_features, num_labels, n if told else None).items()}
        for n in {len(rows) for rows in experiment.partition.indices}
    ]
    largest = max(sent, key=lambda tensors: sum(t.numel() for t in tensors.values()))
    update = ClientUpdate(state.round, client.client_id, len(experiment.train), largest)
    rounds = recipe.federation.rounds
    return SumsCost(
        bytes_first=len(pack_plan(first, method.download(state, first))),
        bytes_down=len(pack_plan(client, method.download(state, client))),
        bytes_up=len(pack_update(update)),
        times=sum(head.solved_after(done, rounds) for done in range(rounds + 1)),
        every=head.every if head.update == "resolved" else None,
    )


def _flops_per_token(experiment: Experiment, tier: Budget) -> int:
    if tier.rank or not adapter.blocks(experiment.model):  # LoRA: a multiply and an add per parameter, three times
        return 6 * experiment.method.parameters(tier)
    return len(tier.blocks) * experiment.shape.flops_per_token(tier.top_k, tier.experts)
