"""Checks every plan before it is carried out: a site does what it agreed to, whatever its server asks.

Nothing is made that is larger than the message, or larger than the adapter of the recipe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from reprlib import repr as shortened
from typing import Any, NamedTuple

from fftmoe.errors import InputError
from fftmoe.records import Budget, Schedule, Training, inspect_message, training_values
from fftmoe.shown import count_of
from fftmoe.strict import hash_text

MOST_HEADER = 2**22  # bytes of JSON, enough for half a million experts
MOST_DIMENSIONS = 3
NUMBER_LIMIT = 2**63  # the seed is below this
PLAN_TYPES = {"round": int, "client_id": int, "seed": int, "task": str, "base": str, "budget": dict, "experts": dict}
BUDGET_TYPES = {field.name: list if field.name == "blocks" else field.type for field in fields(Budget)}


@dataclass(frozen=True)
class Agreement:
    """States what a site agreed to when it joined.

    Attributes:
        client_id: the site's own.
        tier: the name of its budget. Feature statistics and validation may be asked for with that of another tier.
        tasks: what the recipe needs, and so all that the site carries out: `train`, `sums` for a closed-form head, and
            `validate` where rows are set aside.
        rounds: of the recipe.
        training: the settings of the recipe.
        schedule: how its learning rates change over the rounds.
        blocks: the blocks that the recipe adapts.
        num_experts: experts of each block.
        longest: the largest dimension of anything that is trained.
        fit: gives a budget as the recipe's method uses it; a budget that an honest server sends stays as it is.
    """

    client_id: int
    tier: str
    tasks: tuple[str, ...]
    rounds: int
    training: Training
    blocks: tuple[int, ...]
    num_experts: int
    longest: int
    fit: Callable[[Budget], Budget]
    schedule: Schedule


class CheckedRequest(NamedTuple):
    """Holds the task and the round of a message that has been checked."""

    task: str
    round: int


def screen_plan(message: bytes, agreed: Agreement) -> CheckedRequest:
    """Check a message before any of it is used, and return what it asks for.

    Raises:
        InputError: the message asks for something that the site did not agree to.
    """
    declared, header = _read_header(message)
    _check_types("plan", header, {**PLAN_TYPES, "training": dict})
    _check_client(header["client_id"], agreed.client_id)
    _check_agreed_task(header["task"], agreed.tasks)
    _check_round_and_seed(header["round"], header["seed"], agreed.rounds)
    own = agreed.schedule.at(agreed.training, header["round"]) if header["task"] == "train" else agreed.training
    _check_training(header["training"], own)
    _check_types("budget", header["budget"], BUDGET_TYPES)
    budget = Budget(**{**header["budget"], "blocks": tuple(header["budget"]["blocks"])})
    forward = header["task"] in ("sums", "validate")  # with the whole global model
    _check_budget(budget, agreed, any_tier=forward)
    most = agreed.num_experts if forward else budget.experts
    _check_expert_ids(header["experts"], budget, agreed.num_experts, most)
    _check_tensors(declared, max(agreed.longest, budget.rank))
    return CheckedRequest(header["task"], header["round"])


def _read_header(message: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the message declares of its tensors, and its header; neither has been checked."""
    try:
        declared, header, _ = inspect_message(message, MOST_HEADER)
    except ValueError as error:
        raise InputError(f"the server's message cannot be read: {error}") from error
    return declared, header


def _check_types(what: str, table: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Check that the table has exactly these names, with values of exactly these types."""
    if {name: type(value) for name, value in table.items()} != types:
        raise InputError(f"the server's {what} is {shortened(table)}; it must have exactly the fields {[*types]}")


def _check_client(client_id: int, own: int) -> None:
    if client_id != own:
        raise InputError(f"the server's plan is for client {shortened(client_id)}; this site is client {own}")


def _check_agreed_task(task: str, agreed: tuple[str, ...]) -> None:
    if task not in agreed:
        raise InputError(
            f"the server asks for the task {shortened(task)}; for this recipe this site carries out {', '.join(agreed)}"
        )


def _check_round_and_seed(round: int, seed: int, rounds: int) -> None:
    if not 0 <= round <= rounds:
        raise InputError(f"the server's plan has round {shortened(round)}; the recipe has {count_of(rounds, 'round')}")
    if not 0 <= seed < NUMBER_LIMIT:
        raise InputError(f"the server's plan has seed {shortened(seed)}; it must be at least 0 and below 2^63")


def _check_training(asked: Mapping[str, Any], agreed: Training) -> None:
    """Check the settings, compared as JSON: in Python True equals 1."""
    expected = hash_text(training_values(agreed))
    if hash_text(asked) != expected:
        raise InputError(
            f"the server asks for the training settings {shortened(asked)}; this site agreed to those of the recipe, "
            f"{expected}"
        )


def _check_budget(budget: Budget, agreed: Agreement, any_tier: bool) -> None:
    problem = _problem_of(budget, agreed, any_tier)
    if problem is not None:
        raise InputError(f"the server asks for the budget {shortened(vars(budget))}, but {problem}")


def _problem_of(budget: Budget, agreed: Agreement, any_tier: bool) -> str | None:
    """Return why the site did not agree to this budget; None if it did. Each check relies on those before it."""
    blocks = budget.blocks
    if budget.name != agreed.tier and not any_tier:
        return f"the tier of this site is {agreed.tier!r}"
    if not all(type(block) is int for block in blocks) or list(blocks) != sorted(set(blocks)):
        return "its blocks must be integers in ascending order"
    if not set(blocks) <= set(agreed.blocks):
        return f"the recipe adapts the blocks {agreed.blocks}"
    if not 1 <= budget.top_k <= budget.experts <= agreed.num_experts:
        return f"1 <= top_k <= experts <= {agreed.num_experts} must hold"
    return None if agreed.fit(budget) == budget else "the recipe's method gives this tier other limits"


def _check_expert_ids(table: Mapping[str, Any], budget: Budget, num_experts: int, most: int) -> None:
    """Check that there are expert ids for each block of the budget, or for no block; at most `most` in a block."""
    if table and table.keys() != {str(block) for block in budget.blocks}:
        raise InputError(f"the server's plan has experts for blocks {shortened([*table])}, not for {[*budget.blocks]}")
    for block, ids in table.items():
        valid = isinstance(ids, list) and all(type(m) is int and 0 <= m < num_experts for m in ids)
        if not valid or ids != sorted(set(ids)) or len(ids) > most:
            raise InputError(
                f"block {block}: the server's plan lists these experts {shortened(ids)}; expected at most "
                f"{count_of(most, 'different id')} below {num_experts} in ascending order"
            )


def _check_tensors(declared: Mapping[str, Any], longest: int) -> None:
    """Check that the tensors have few dimensions, none of them too long,
    so nothing that is made of them is too large.
    """
    for name, found in declared.items():
        shape: Any = found.get("shape") if isinstance(found, dict) and found.get("dtype") == "F32" else None
        valid = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
        if not valid or any(type(size) is not int or not 0 <= size <= longest for size in shape):
            raise InputError(
                f"the server's tensor {shortened(name)} is {shortened(found)}; expected float32 with at most "
                f"{MOST_DIMENSIONS} dimensions of at most {longest}"
            )
