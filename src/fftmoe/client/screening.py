"""No plan is believed either: a site does what it agreed to when it joined, whatever its server asks.

Nothing is made larger than the message that it came in, or than the adapter of the recipe.
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fftmoe.errors import InputError
from fftmoe.records import Budget, Training, inspect_message

MOST_HEADER = 2**22  # bytes of JSON, half a million experts
MOST_DIMENSIONS = 3
LARGEST = 2**63  # of a number of a round and of a seed

PLAN = {"round": int, "client_id": int, "seed": int, "task": str, "base": str, "budget": dict, "experts": dict}
BUDGET = {field.name: list if field.name == "blocks" else field.type for field in fields(Budget)}

_shown = reprlib.repr


@dataclass(frozen=True)
class Agreement:
    """What a site serves.

    Attributes:
        client_id: its own. tier: the name of its budget; sums are asked for on another.
        training: as the recipe has it.
        blocks, num_experts: of the adapter.
        longest: dimension of anything that is trained.
        fit: the budget as the recipe's method honours it, which a sound one is already.
    """

    client_id: int
    tier: str
    training: Training
    blocks: tuple[int, ...]
    num_experts: int
    longest: int
    fit: Callable[[Budget], Budget]


def screen_plan(message: bytes, agreed: Agreement) -> None:
    """Whether the site does what the message asks.

    Raises:
        InputError: no server that keeps to the job sends it.
    """
    try:
        declared, header, _ = inspect_message(message, MOST_HEADER)
    except ValueError as error:
        raise InputError(f"the server's message is none of ours: {error}") from error
    _check_types("plan", header, {**PLAN, "training": dict})
    _check_numbers(header, agreed.client_id)
    wanted = json.dumps(vars(agreed.training), sort_keys=True)
    if json.dumps(header["training"], sort_keys=True) != wanted:  # True is no 1
        raise InputError(f"the server asks to train by {_shown(header['training'])}, and the recipe says {wanted}")
    budget = _budget(header["budget"], header["task"], agreed)
    _check_experts(header["experts"], budget, header["task"], agreed)
    _check_tensors(declared, max(agreed.longest, budget.rank))


def _check_types(what: str, table: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Exactly these names, with values of exactly these types."""
    if {name: type(value) for name, value in table.items()} != types:
        raise InputError(f"the server's {what} is {_shown(table)}, and it should have {[*types]}")


def _check_numbers(header: Mapping[str, Any], client_id: int) -> None:
    if header["client_id"] != client_id or header["task"] not in ("train", "sums"):
        raise InputError(
            f"this site is client {client_id} and trains for the federation; it was asked to {_shown(header['task'])} "
            f"as client {header['client_id']}"
        )
    if not (0 <= header["round"] < LARGEST and 0 <= header["seed"] < LARGEST):
        raise InputError(f"the server's plan has round {_shown(header['round'])} and seed {_shown(header['seed'])}")


def _budget(table: Mapping[str, Any], task: str, agreed: Agreement) -> Budget:
    _check_types("budget", table, BUDGET)
    blocks = tuple(table["blocks"])
    budget = Budget(**{**table, "blocks": blocks})
    ascending = all(type(block) is int for block in blocks) and list(blocks) == sorted(set(blocks))
    bounded = 1 <= budget.top_k <= budget.experts <= agreed.num_experts
    own = budget.name == agreed.tier or task == "sums"
    if not (own and ascending and bounded and set(blocks) <= set(agreed.blocks) and agreed.fit(budget) == budget):
        raise InputError(f"the server asks for the budget {_shown(table)}, which is none that this site agreed to")
    return budget


def _check_experts(table: Mapping[str, Any], budget: Budget, task: str, agreed: Agreement) -> None:
    """Of each of the budget's blocks, or none at all; as many as it has, or all where sums are asked for."""
    most = agreed.num_experts if task == "sums" else budget.experts
    if table and table.keys() != {str(block) for block in budget.blocks}:
        raise InputError(f"the server's experts are {_shown(table)}, and those of blocks {budget.blocks} were expected")
    for block, ids in table.items():
        plain = isinstance(ids, list) and all(type(m) is int and 0 <= m < agreed.num_experts for m in ids)
        if not plain or ids != sorted(set(ids)) or len(ids) > most:
            raise InputError(f"the server's experts of block {block} are {_shown(ids)}, and at most {most} were due")


def _check_tensors(declared: Mapping[str, Any], longest: int) -> None:
    """Of few dimensions and none too long, so that what is made of them is not either."""
    for name, found in declared.items():
        shape: Any = found.get("shape") if isinstance(found, dict) and found.get("dtype") == "F32" else None
        plain = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
        if not plain or any(type(size) is not int or not 0 <= size <= longest for size in shape):
            raise InputError(
                f"the server's tensor {_shown(name)} is {_shown(found)}, and float32 of at most {MOST_DIMENSIONS} "
                f"dimensions up to {longest} was expected"
            )
