"""From a client's budget to what it activates: top_k, resident experts, adapted blocks (docs/math.md, Budgets).

Costs of one expert follow from its shape: U, V of [h, d] and a router row of [d], in float32. A shared expert, which
everyone holds, has U, V of [S, d] and no router row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fftmoe.errors import InputError
from fftmoe.records import Budget
from fftmoe.rng import numpy_generator

BYTES = 4  # float32, in memory and on the wire
TRAINING_COPIES = 4  # weight, gradient and AdamW's two moments
MIB = 2**20


@dataclass(frozen=True)
class ExpertShape:
    """Shape of one expert: model dimension d, hidden units h; and of what is shared, 0 for none.

    Attributes:
        shared_dim: hidden units S of the shared expert.
        projections: parameters of the shared update of attention in one block.
    """

    dim: int
    expert_dim: int
    shared_dim: int = 0
    projections: int = 0

    @property
    def parameters(self) -> int:
        """Parameters of one expert with its router row."""
        return 2 * self.expert_dim * self.dim + self.dim

    @property
    def shared_parameters(self) -> int:
        """Parameters of what is shared, in one block."""
        return 2 * self.shared_dim * self.dim + self.projections

    def block_parameters(self, experts: int) -> int:
        """Parameters of so many experts and the shared one."""
        return experts * self.parameters + self.shared_parameters

    def flops_per_token(self, top_k: int, experts: int) -> int:
        """Adapter FLOPs of one token in one block, forward and backward (3 x forward), router included."""
        routed = 2 * experts * self.dim + top_k * self.expert_dim * 4 * self.dim
        return 3 * (routed + 2 * self.shared_parameters)


def pool_of_smallest(shape: ExpertShape, experts: Sequence[int]) -> int:
    """How many experts the smallest tier can hold if it shares nothing else, at the cost of its stated experts.

    Args:
        shape: shape of one expert, and of what clients share next to the stated experts.
        experts: stated number of experts of each tier.
    """
    return shape.block_parameters(min(experts)) // shape.parameters


@dataclass(frozen=True)
class Limits:
    """A tier as a recipe states it: either `top_k` and `experts`, or limits from which they are derived.

    Attributes:
        memory_mib: memory for the adapter while training (weights, gradients, AdamW moments).
        uplink_mib: upload per round, head excluded.
        gflops: adapter compute per round.
        gflops_per_second: the machine's speed; with `deadline_seconds` it stands for `gflops`, and leaves out the
            first blocks where the adapter in all of them cannot be computed in time.
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
    bytes_up: float = BYTES,
) -> Budget:
    """The budget of one tier: stated numbers as they are, the others as large as every limit allows.

    Args:
        bytes_up: what a parameter takes on its way to the server.

    Raises:
        InputError: the limits cannot hold one expert, or the stated numbers contradict each other.
    """
    blocks = (
        limits.blocks
        if limits.blocks is not None
        else _affordable_blocks(limits, shape, num_experts, blocks, tokens_per_round, bytes_up)
    )
    experts = limits.experts or min(num_experts, _affordable_experts(limits, shape, len(blocks), bytes_up))
    if experts < 1:
        raise InputError(
            f"budget {limits.name!r} cannot hold one expert per adapted block: it needs "
            f"{len(blocks) * shape.block_parameters(1) * BYTES * TRAINING_COPIES / MIB:.3f} MiB of memory and "
            f"{len(blocks) * shape.block_parameters(1) * bytes_up / MIB:.3f} MiB of uplink, but has "
            f"memory_mib={limits.memory_mib}, uplink_mib={limits.uplink_mib}; "
            "raise the limit, lower adapter.expert_dim, adapter.shared_dim or adapter.shared_rank, "
            "or give the tier fewer `blocks`"
        )
    top_k = limits.top_k or min(experts, _affordable_top_k(limits, shape, experts, len(blocks), tokens_per_round))
    if top_k < 1:
        raise InputError(
            f"budget {limits.name!r} cannot compute one expert per token within its limit of "
            f"{_gflops(limits):g} GFLOPs a round over {tokens_per_round} tokens; "
            "raise gflops or deadline_seconds, lower federation.local_steps, or give the tier fewer `blocks`"
        )
    if top_k > experts:
        raise InputError(
            f"budget {limits.name!r} has top_k={top_k} above its experts={experts}; "
            f"lower top_k to {experts} or raise experts to {top_k}"
        )
    if experts > num_experts:
        raise InputError(
            f"budget {limits.name!r} has experts={experts} above adapter.num_experts={num_experts}; "
            f"lower experts to {num_experts} or raise adapter.num_experts"
        )
    return Budget(limits.name, top_k, experts, blocks)


def _affordable_blocks(
    limits: Limits, shape: ExpertShape, num_experts: int, blocks: tuple[int, ...], tokens: int, bytes_up: float
) -> tuple[int, ...]:
    """All; with a deadline as many of the last as leave time for the stated top_k, or for one expert a token."""
    if limits.deadline_seconds is None:
        return blocks
    for count in range(len(blocks), 1, -1):
        experts = limits.experts or min(num_experts, _affordable_experts(limits, shape, count, bytes_up))
        if experts and _affordable_top_k(limits, shape, experts, count, tokens) >= (limits.top_k or 1):
            return blocks[-count:]
    return blocks[-1:]


def _affordable_experts(limits: Limits, shape: ExpertShape, num_blocks: int, bytes_up: float) -> int:
    bounds = []
    for mib, cost in ((limits.memory_mib, BYTES * TRAINING_COPIES), (limits.uplink_mib, bytes_up)):
        if mib is not None:
            parameters = mib * MIB / cost / num_blocks
            bounds.append((parameters - shape.shared_parameters) / shape.parameters)
    return int(min(bounds, default=2**31))


def _gflops(limits: Limits) -> float | None:
    if limits.gflops is not None:
        return limits.gflops
    if limits.deadline_seconds is not None and limits.gflops_per_second is not None:
        return limits.deadline_seconds * limits.gflops_per_second
    return None


def _affordable_top_k(limits: Limits, shape: ExpertShape, experts: int, num_blocks: int, tokens: int) -> int:
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
    """client_id -> budget for the clients 0 to C-1, in one byte each; equal to the dict of the same items.

    Attributes:
        tiers: the distinct budgets.
        numbers: the tier of each client, the smallest unsigned integers [C] that can name them all.
    """

    tiers: tuple[Budget, ...]
    numbers: np.ndarray

    @classmethod
    def of(cls, tiers: Sequence[Budget], numbers: np.ndarray) -> "Budgets":
        """Client c has the budget `tiers[numbers[c]]`; `numbers` are integers [C]."""
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
        """The clients of a tier, ascending, int64."""
        return np.flatnonzero(self.numbers == self.tiers.index(tier))


def assign_tiers(fractions: Sequence[float], num_clients: int, seed: int) -> np.ndarray:
    """Tier index of every client, int64 [C]: largest-remainder shares of the fractions, dealt at random.

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
                f"a tier of `budgets` gets no client: its fraction {fraction:g} of {num_clients} clients rounds to "
                "none; raise the fraction, remove the tier, or raise partition.num_clients"
            )
    tiers = np.repeat(np.arange(len(counts)), counts)
    return numpy_generator(seed, "tiers").permutation(tiers)
