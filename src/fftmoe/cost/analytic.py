"""Makes the analytic forecast: what a client's round costs, from shapes and from the messages that would be sent.

Nothing is trained for it. `adapter_cost` needs no more than the shape of one expert, so that a site can use it before
it joins; `tier_cost` adds the head and the real bytes of the first round's messages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fftmoe.client.compress import compress
from fftmoe.cost.workload import Workload
from fftmoe.head import sum_shapes
from fftmoe.methods.budget import BYTES_PER_PARAMETER, TRAINING_COPIES, ExpertShape
from fftmoe.methods.lora import rank_of
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    Experts,
    RoundPlan,
    ServerState,
    Training,
    names,
    pack_plan,
    pack_update,
)
from fftmoe.records.codec import bytes_per_number
from fftmoe.server.plan import plan_round
from fftmoe.server.solve import plan_sums, plan_validation


@dataclass(frozen=True)
class AdapterCost:
    """States what the experts of one budget cost a client.

    Attributes:
        parameters: of the resident experts, their router rows, and what all clients share.
        training_bytes: of these parameters with their gradients and AdamW's two moments.
        bytes_up: of the changes to these parameters, without the header of the message.
        flops_per_token: forward and backward.
    """

    parameters: int
    training_bytes: int
    bytes_up: float
    flops_per_token: int


def adapter_cost(budget: Budget, shape: ExpertShape, upload: str) -> AdapterCost:
    """Return the cost of a budget from the shape of one expert.

    Args:
        upload: the numbers of an upload, as in `Training.upload`.
    """
    num_blocks = len(budget.blocks)
    parameters = num_blocks * shape.block_parameters(budget.experts)
    return AdapterCost(
        parameters=parameters,
        training_bytes=training_bytes(parameters),
        bytes_up=parameters * bytes_per_number(upload, shape.dim),
        flops_per_token=num_blocks * shape.flops_per_token(budget.top_k, budget.experts),
    )


def training_bytes(parameters: int) -> int:
    """Return the memory for so many parameters while they train: weights, gradients and AdamW's two moments,
    in float32.
    """
    return BYTES_PER_PARAMETER * TRAINING_COPIES * parameters


def tokens_per_round(training: Training, num_examples: float, mean_tokens: float) -> int:
    """Return the tokens that a client with so many examples trains on in a round, at least 1."""
    if training.local_steps is not None:
        examples = float(training.local_steps * training.batch_size)
    else:
        examples = (training.local_epochs or 1) * num_examples
    return max(1, round(examples * mean_tokens))


def budget_order(budget: Budget) -> tuple[int, int, int]:
    """Return a key that orders budgets by size: by adapted blocks, then by resident experts, then by experts for each
    token.

    Blocks come first because a client trains nothing in a block that it leaves out, whereas other clients train the
    experts that it does not hold.
    """
    return len(budget.blocks), budget.experts, budget.top_k


@dataclass(frozen=True)
class TierCost:
    """States what one client of a tier costs in a round.

    Attributes:
        bytes_down: of the real message in the first round.
        bytes_up: at most, which is when every resident expert was trained.
        trainable_parameters: of the adapter and the head. adapter_bytes: of the same, in float32.
        training_bytes: of the same, with gradients and AdamW's moments.
        flops_per_token: of the adapter, forward and backward.
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


def first_plans(workload: Workload, cohort: Sequence[int], seed: int) -> dict[int, ClientPlan]:
    """Return the plans of the first round, by client, if these clients took part in it."""
    method, state, budgets = workload.method, workload.state, workload.budgets
    plan = plan_round(method, state, 1, cohort, budgets, workload.training, seed)
    return {client.client_id: client for client in plan.clients}


def tier_cost(workload: Workload, tier: Budget, plans: Mapping[int, ClientPlan]) -> TierCost:
    """Return the cost of a tier, from the messages of its first client.

    Args:
        plans: of the first round; they must include the first client of the tier.
    """
    method = workload.method
    clients = tuple(workload.budgets.members(tier).tolist())
    plan = plans[clients[0]]
    download = method.download(workload.state, plan)
    update = method.widest_update(plan, download)
    widest, _ = compress(update, {}, workload.training.upload)
    parameters = method.parameters(tier) + workload.head_parameters
    return TierCost(
        budget=tier,
        clients=clients,
        bytes_down=len(pack_plan(plan, download)),
        bytes_up=len(pack_update(widest)),
        trainable_parameters=parameters,
        adapter_bytes=BYTES_PER_PARAMETER * parameters,
        training_bytes=training_bytes(parameters),
        flops_per_token=_flops_per_token(workload, tier),
        rank=rank_of(update),
    )


def _flops_per_token(workload: Workload, tier: Budget) -> int:
    if tier.rank or not workload.has_experts:  # LoRA: a multiply and an add per parameter, in each of three passes
        return 6 * workload.method.parameters(tier)
    return adapter_cost(tier, workload.shape, workload.training.upload).flops_per_token


@dataclass(frozen=True)
class StatisticsCost:
    """States what a closed-form head, or validation, costs every client, whatever its tier, in addition to the rounds.

    Attributes:
        bytes_first: of the first client's message before the first round; others differ by a few bytes of header.
        bytes_down: likewise of later messages, of a client of the largest tier where clients have models of their own;
            those of FLoRA are larger, since it sends what has been merged.
        bytes_up: of the client whose feature statistics are largest.
        times: exchanges in the whole run; the first one comes before the first round.
        every: rounds from one exchange to the next, with one after the last round; None: only the first exchange.
    """

    bytes_first: int
    bytes_down: int
    bytes_up: int
    times: int
    every: int | None


def statistics_cost(workload: Workload, times: int, every: int | None, numbers_sent: bool) -> StatisticsCost:
    """Return the cost of the feature statistics from which a closed-form head is computed.

    Args:
        times, every: see `StatisticsCost`.
        numbers_sent: whether a client's message may depend on its number of examples, which private runs conceal.
    """
    return StatisticsCost(
        *_bytes_of_model(workload, lambda state: _plan_of_sums(workload, state)),
        bytes_up=len(pack_update(_largest_statistics(workload, numbers_sent))),
        times=times,
        every=every,
    )


def validation_cost(workload: Workload, num_statistics: int, times: int, every: int) -> StatisticsCost:
    """Return the cost of validation on rows that the clients have set aside.

    Args:
        num_statistics: of the task. times, every: see `StatisticsCost`.
    """
    answer = ClientUpdate(workload.state.round, 0, 1, {names.VALIDATION: torch.empty(num_statistics + 1)})
    return StatisticsCost(
        *_bytes_of_model(workload, lambda state: _plan_of_validation(workload, state)),
        len(pack_update(answer)),
        times,
        every,
    )


def _plan_of_sums(workload: Workload, state: ServerState) -> RoundPlan:
    return plan_sums(state, [0], workload.largest, workload.training, workload.seed)


def _plan_of_validation(workload: Workload, state: ServerState) -> RoundPlan:
    """Plan validation for one client of the largest tier, if clients validate their own models."""
    client = int(workload.budgets.members(workload.largest)[0]) if workload.method.capabilities.personal else 0
    budgets, training = workload.budgets, workload.training
    return plan_validation(workload.method, state, [client], workload.largest, budgets, training, workload.seed)


def _bytes_of_model(workload: Workload, plan: Callable[[ServerState], RoundPlan]) -> tuple[int, int]:
    """Return the bytes of the model that a client runs forward: before the first round, and later."""
    method, state = workload.method, workload.state
    plans = (plan(before).clients[0] for before in (state, replace(state, round=1)))
    first, later = (len(pack_plan(plan, method.download(state, plan))) for plan in plans)
    return first, later


def _largest_statistics(workload: Workload, numbers_sent: bool) -> ClientUpdate:
    """Return the message with the most numbers that any client may send."""
    num_outputs, num_features = workload.state.tensors[names.HEAD_WEIGHT].shape
    candidates = [
        {name: torch.empty(shape) for name, shape in sum_shapes(num_features, num_outputs, n, workload.answers).items()}
        for n in ({*workload.sizes.tolist()} if numbers_sent else {None})
    ]
    largest = max(candidates, key=lambda tensors: sum(t.numel() for t in tensors.values()))
    return ClientUpdate(workload.state.round, 0, workload.num_examples, largest)


@dataclass(frozen=True)
class BaselineCost:
    """States what a baseline costs in addition to the run.

    Attributes:
        reason: why it is not measured; None for one that is.
        statistics: clients whose feature statistics are computed once more.
        clients: that train; 1 for all rows in one place. steps: of training in all.
    """

    reason: str | None
    statistics: int = 0
    clients: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Forecast:
    """Holds the plan of a run: costs by tier, every client's first experts, and the size of the frozen parts.

    Attributes:
        sums: None where the head is not closed-form. validation: None where no rows are set aside.
        backbone_bytes: of the frozen backbone, in each process.
        prefix_bytes: of the frozen prefix's states that are cached on disk.
        prefix_refused: why the states of some examples are not cached; None where all are.
        notes: what a person should know about the data and the recipe.
        num_examples: each client's rows for training. held_out: the rows that all clients set aside together.
        test_examples: the number of test rows.
        client_names: by client_id, where the data gives clients names.
        baselines: by name. steps: of training of all clients in all rounds. own_steps: that all clients train for
            themselves after the last round.
    """

    tiers: tuple[TierCost, ...]
    sums: StatisticsCost | None
    experts: dict[int, Experts]
    num_examples: tuple[int, ...]
    backbone_bytes: int
    prefix_bytes: int
    prefix_refused: str | None
    rounds: int
    clients_per_round: int
    notes: tuple[str, ...] = ()
    validation: StatisticsCost | None = None
    held_out: int = 0
    test_examples: int = 0
    client_names: tuple[str, ...] | None = None
    baselines: Mapping[str, BaselineCost] = field(default_factory=dict)
    steps: int = 0
    own_steps: int = 0


def forecast_run(
    workload: Workload,
    sums: StatisticsCost | None,
    backbone_bytes: int,
    prefix_bytes: int,
    prefix_refused: str | None,
) -> Forecast:
    """Return the forecast of a whole run; for the arguments see `Forecast`."""
    plans = first_plans(workload, range(workload.num_clients), workload.seed)
    return Forecast(
        tiers=tuple(tier_cost(workload, tier, plans) for tier in workload.tiers),
        sums=sums,
        experts={client_id: plan.experts for client_id, plan in plans.items()},
        num_examples=tuple(workload.sizes.tolist()),
        backbone_bytes=backbone_bytes,
        prefix_bytes=prefix_bytes,
        prefix_refused=prefix_refused,
        rounds=workload.rounds,
        clients_per_round=workload.clients_per_round,
    )


def cost_by_tier(workload: Workload) -> dict[str, dict[str, float]]:
    """Return the cost of one client's round in each tier that has clients, as `summary.json` records it."""
    first = {tier: int(ids[0]) for tier in workload.tiers if len(ids := workload.budgets.members(tier))}
    plans = first_plans(workload, sorted(first.values()), seed=0)
    recorded = ("bytes_down", "bytes_up", "training_bytes", "flops_per_token")
    costs = {tier.name: tier_cost(workload, tier, plans) for tier in first}
    return {name: {key: getattr(cost, key) for key in recorded} for name, cost in costs.items()}
