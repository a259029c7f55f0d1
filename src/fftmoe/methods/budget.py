"""Computes a tier's budget: top_k, the number of resident experts, and the adapted blocks (docs/math.md, Budgets).

The cost of an expert follows from its shape. An expert has the matrices U and V of [h, d] and a router row of [d], all
in float32. A shared expert, which every client holds, has the matrices U and V of [S, d] and no router row. With e
parameters per expert, c shared parameters per block and L adapted blocks, a client can train

    |R_n| = min(M, (memory / (16 L) - c) / e, (uplink / (b L) - c) / e)

experts per block: training takes 16 bytes of memory per parameter, and an upload takes b bytes per parameter.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fftmoe.errors import InputError
from fftmoe.records import Budget
from fftmoe.rng import numpy_generator
from fftmoe.shown import count_of

BYTES_PER_PARAMETER = 4  # float32, in memory and on the wire
TRAINING_COPIES = 4  # weight, gradient and AdamW's two moments
MIB = 2**20


@dataclass(frozen=True)
class ExpertShape:
    """`ExpertShape` describes the size of one expert and of the parameters that all clients share in a block.

    Attributes:
        dim: model dimension d.
        expert_dim: hidden units h of one expert.
        shared_dim: hidden units S of the shared expert; 0 if there is none.
        projections: parameters of the shared low-rank updates in one block; 0 if there are none.
    """

    dim: int
    expert_dim: int
    shared_dim: int = 0
    projections: int = 0

    @property
    def parameters(self) -> int:
        """Return the number of parameters of one expert, including its router row."""
        return 2 * self.expert_dim * self.dim + self.dim

    @property
    def shared_parameters(self) -> int:
        """Return the number of parameters that all clients share in one block."""
        return 2 * self.shared_dim * self.dim + self.projections

    def block_parameters(self, experts: int) -> int:
        """Return the number of parameters of `experts` experts and of what is shared in one block."""
        return experts * self.parameters + self.shared_parameters

    def flops_per_token(self, top_k: int, experts: int) -> int:
        """Return the adapter's FLOPs per token and block: forward and backward (3 x forward), router included."""
        routed = 2 * experts * self.dim + top_k * self.expert_dim * 4 * self.dim
        return 3 * (routed + 2 * self.shared_parameters)


def pool_of_smallest(shape: ExpertShape, experts: Sequence[int]) -> int:
    """Return the largest pool that the smallest tier can hold at the cost of its stated experts and shared parameters.

    Args:
        shape: shape of one expert, and of what clients share in addition to the stated experts.
        experts: stated number of experts of each tier.
    """
    return shape.block_parameters(min(experts)) // shape.parameters


@dataclass(frozen=True)
class Limits:
    """`Limits` is a tier as a recipe states it: `top_k` and `experts`, or limits from which they are derived.

    Attributes:
        name: name of the tier.
        fraction: fraction of the clients that belong to the tier.
        top_k: active experts per token; None: derived from the compute.
        experts: resident experts per block; None: derived from memory and uplink.
        blocks: the blocks that the tier adapts; None: all of them, or as many as the deadline allows.
        memory_mib: memory in MiB for training the adapter (weights, gradients, AdamW moments).
        uplink_mib: upload in MiB per round, head excluded.
        gflops: adapter compute per round, in GFLOPs.
        gflops_per_second: the machine's speed. Its product with `deadline_seconds` replaces `gflops`. If the adapter
            cannot be computed in all blocks before the deadline, the first blocks are left out.
        deadline_seconds: time in seconds that a client may compute in one round.
    """

    name: str
    fraction: float
    top_k: int | None = None
    experts: int | None = None
    blocks: tuple[int, ...] | None = None
    memory_mib: float | None = None
    uplink_mib: float | None = None
    gflops: float | None = None
    gflops_per_second: float | None = None
    deadline_seconds: float | None = None


def resolve(
    limits: Limits,
    *,
    shape: ExpertShape,
    num_experts: int,
    blocks: tuple[int, ...],
    tokens_per_round: int,
    bytes_up: float = BYTES_PER_PARAMETER,
) -> Budget:
    """Compute the budget of one tier: keep stated numbers, and choose the others as large as every limit allows.

    Args:
        limits: the tier as the recipe states it.
        shape: shape of one expert, and of what clients share.
        num_experts: M, the size of the pool in each block.
        blocks: the adapted blocks, which a tier without `blocks` uses.
        tokens_per_round: tokens that a client trains on in one round.
        bytes_up: bytes per parameter in an upload.

    Raises:
        InputError: the limits allow less than one expert, or the stated numbers contradict each other.
    """
    if limits.blocks is not None:
        blocks = limits.blocks
    else:
        blocks = _affordable_blocks(limits, shape, num_experts, blocks, tokens_per_round, bytes_up)
    experts = limits.experts or min(num_experts, _affordable_experts(limits, shape, len(blocks), bytes_up))
    _check_holds_one_expert(limits, shape, experts, len(blocks), bytes_up)
    top_k = limits.top_k or min(experts, _affordable_top_k(limits, shape, experts, len(blocks), tokens_per_round))
    _check_computes_one_expert(limits, top_k, tokens_per_round)
    _check_sizes(limits.name, top_k, experts, num_experts)
    return Budget(limits.name, top_k, experts, blocks)


def _check_holds_one_expert(limits: Limits, shape: ExpertShape, experts: int, num_blocks: int, bytes_up: float) -> None:
    if experts < 1:
        parameters = num_blocks * shape.block_parameters(1)
        raise InputError(
            f"budget {limits.name!r} cannot hold one expert per adapted block: it needs "
            f"{parameters * BYTES_PER_PARAMETER * TRAINING_COPIES / MIB:.3f} MiB of memory and "
            f"{parameters * bytes_up / MIB:.3f} MiB of uplink, but has "
            f"memory_mib={limits.memory_mib}, uplink_mib={limits.uplink_mib}; "
            "raise the limit, lower adapter.expert_dim, adapter.shared_dim or adapter.shared_rank, "
            "or give the tier fewer `blocks`"
        )


def _check_computes_one_expert(limits: Limits, top_k: int, tokens: int) -> None:
    if top_k < 1:
        raise InputError(
            f"budget {limits.name!r} cannot compute one expert per token within its limit of {_gflops(limits):g} "
            f"GFLOPs per round for {count_of(tokens, 'token')}; raise gflops or deadline_seconds, lower "
            "federation.local_steps, or give the tier fewer `blocks`"
        )


def _check_sizes(name: str, top_k: int, experts: int, num_experts: int) -> None:
    """Check that top_k <= experts <= num_experts."""
    if top_k > experts:
        raise InputError(
            f"budget {name!r} has top_k={top_k}, which is more than its experts={experts}; "
            f"lower top_k to {experts} or raise experts to {top_k}"
        )
    if experts > num_experts:
        raise InputError(
            f"budget {name!r} has experts={experts}, which is more than adapter.num_experts={num_experts}; "
            f"lower experts to {num_experts} or raise adapter.num_experts"
        )


def _affordable_blocks(
    limits: Limits, shape: ExpertShape, num_experts: int, blocks: tuple[int, ...], tokens: int, bytes_up: float
) -> tuple[int, ...]:
    """Return all blocks, or with a deadline the last ones for which the compute suffices.

    The compute suffices if it allows the stated top_k, or one expert per token where none is stated.
    """
    if limits.deadline_seconds is None:
        return blocks
    for count in range(len(blocks), 1, -1):
        experts = limits.experts or min(num_experts, _affordable_experts(limits, shape, count, bytes_up))
        if experts and _affordable_top_k(limits, shape, experts, count, tokens) >= (limits.top_k or 1):
            return blocks[-count:]
    return blocks[-1:]


def _affordable_experts(limits: Limits, shape: ExpertShape, num_blocks: int, bytes_up: float) -> int:
    """Return the number of experts per block that both memory and uplink allow."""
    bounds = []
    for mib, cost in ((limits.memory_mib, BYTES_PER_PARAMETER * TRAINING_COPIES), (limits.uplink_mib, bytes_up)):
        if mib is not None:
            parameters = mib * MIB / cost / num_blocks
            bounds.append((parameters - shape.shared_parameters) / shape.parameters)
    return int(min(bounds, default=2**31))


def _gflops(limits: Limits) -> float | None:
    """Return the limit of compute per round; None if the tier states none."""
    if limits.gflops is not None:
        return limits.gflops
    if limits.deadline_seconds is not None and limits.gflops_per_second is not None:
        return limits.deadline_seconds * limits.gflops_per_second
    return None


def _affordable_top_k(limits: Limits, shape: ExpertShape, experts: int, num_blocks: int, tokens: int) -> int:
    """Return the number of experts per token that the compute allows."""
    gflops = _gflops(limits)
    if gflops is None:
        return experts
    router = shape.flops_per_token(0, experts)
    one_expert = shape.flops_per_token(1, experts) - router
    return int((gflops * 1e9 / (tokens * num_blocks) - router) / one_expert)


def largest_tier(tiers: Sequence[Budget]) -> Budget:
    """Return the tier with the most blocks, then the largest top_k."""
    return max(tiers, key=lambda tier: (len(tier.blocks), tier.top_k))


@dataclass(frozen=True, eq=False)
class Budgets(Mapping[int, Budget]):
    """`Budgets` maps the clients 0 to C-1 to their budgets. It equals the dict of the same items.

    The mapping takes one byte per client for up to 256 tiers.

    Attributes:
        tiers: the distinct budgets.
        numbers: index of each client's tier, unsigned integers [C] of the smallest sufficient dtype.
    """

    tiers: tuple[Budget, ...]
    numbers: np.ndarray

    @classmethod
    def of(cls, tiers: Sequence[Budget], numbers: np.ndarray) -> "Budgets":
        """Make the mapping in which client c has the budget `tiers[numbers[c]]`; `numbers` are integers [C]."""
        return cls(tuple(tiers), numbers.astype(np.min_scalar_type(len(tiers) - 1)))

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, client_id: int) -> Budget:
        if client_id not in range(len(self)):
            raise KeyError(client_id)
        return self.tiers[self.numbers[client_id]]

    def members(self, tier: Budget) -> np.ndarray:
        """Return the clients of a tier in ascending order, int64."""
        return np.flatnonzero(self.numbers == self.tiers.index(tier))


def assign_tiers(fractions: Sequence[float], num_clients: int, seed: int) -> np.ndarray:
    """Assign a tier index to every client, int64 [C], at random.

    The sizes of the tiers are the largest-remainder shares of the fractions.

    Args:
        fractions: fraction of the clients in each tier; they sum to 1.
        num_clients: C, the size of the population.
        seed: seed of the random assignment.

    Raises:
        InputError: the fractions do not sum to 1, or some tier gets no client.
    """
    if abs(sum(fractions) - 1.0) > 1e-6:
        raise InputError(f"the fractions of `budgets` sum to {sum(fractions):g}; make them sum to 1")
    exact = np.array(fractions) * num_clients
    counts = np.floor(exact).astype(int)
    for tier in np.argsort(counts - exact, kind="stable")[: num_clients - counts.sum()]:
        counts[tier] += 1
    for fraction, count in zip(fractions, counts, strict=True):
        if count == 0:
            raise InputError(
                f"a tier of `budgets` gets no client: its fraction {fraction:g} of {count_of(num_clients, 'client')} "
                "rounds to zero; raise the fraction, remove the tier, or raise partition.num_clients"
            )
    tiers = np.repeat(np.arange(len(counts)), counts)
    return numpy_generator(seed, "tiers").permutation(tiers)
