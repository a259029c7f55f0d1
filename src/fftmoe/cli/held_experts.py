"""Says which experts clients hold, as lines of `fftmoe plan`: by name in a few blocks, counted in many.

The experts of a client by name take a line for each of thirty blocks, which nobody reads for twenty clients. What a
person decides with is how many a client holds, and whether every expert has clients enough.
"""

from collections.abc import Iterable, Mapping, Sequence

from fftmoe.cost.analytic import Forecast
from fftmoe.records.client_names import client_name
from fftmoe.shown import count_of, shown_on_a_line

NAMED_BLOCKS = 2  # whose experts have room by name, on the line of their client
LETTERS_OF_A_CLIENT = 24  # of a client's name, where experts are counted


def client_lines(forecast: Forecast, clients: Iterable[int], every_block: bool) -> list[str]:
    """Return a line for each client: its tier, its examples, and the experts that it holds.

    Args:
        every_block: name the experts of all blocks, each block of many on a line of its own.
    """
    tier_of = {client: tier.budget.name for tier in forecast.tiers for client in tier.clients}
    by_name = not counts_blocks(forecast)
    whole = by_name or every_block
    named = {client: _shown(forecast, client, whole) for client in clients}
    width = max((len(name) for name in named.values()), default=0)
    lines: list[str] = []
    for client, name in named.items():
        place = f"{name:>3}" if forecast.client_names is None else name.ljust(width)
        number, noun = count_of(forecast.num_examples[client], "example").split()
        facts = f"client {place}  {tier_of[client]:<8} {number:>6} {noun:<8}"
        held = {block: ranges(ids) for block, ids in forecast.experts[client].items()}
        if whole and not by_name:
            lines += [facts, *(f"  block {block}: {ids}" for block, ids in held.items())]
        else:
            said = [f"block {block}: {ids}" for block, ids in held.items()]
            said = said if by_name else [counted_experts(forecast.experts[client])]
            lines.append("  ".join([facts, *said]).rstrip())
    return lines


def counts_blocks(forecast: Forecast) -> bool:
    """Return whether there are too many blocks to name the experts of each."""
    return max(map(len, forecast.experts.values()), default=0) > NAMED_BLOCKS


def _shown(forecast: Forecast, client: int, whole: bool) -> str:
    name = shown_on_a_line(client_name(client, forecast.client_names))
    return name if whole or len(name) <= LETTERS_OF_A_CLIENT else f"{name[: LETTERS_OF_A_CLIENT - 1]}…"


def counted_experts(held: Mapping[int, Sequence[int]]) -> str:
    """Return how many experts are held in each block: `9 experts in each of 30 blocks`,
    `1 to 9 experts in each of …`.
    """
    if not held:
        return "no experts"
    least, most = min(map(len, held.values())), max(map(len, held.values()))
    number = count_of(most, "expert") if least == most else f"{least} to {most} experts"
    blocks = f"each of {count_of(len(held), 'block')}" if len(held) > 1 else f"block {next(iter(held))}"
    return f"{number} in {blocks}"


def coverage(experts: Mapping[int, Mapping[int, Sequence[int]]]) -> str:
    """Return by how many clients the experts are held, and how many by none.

    Args:
        experts: by client, the experts that it holds in each block.
    """
    pool = range(1 + max(expert for held in experts.values() for ids in held.values() for expert in ids))
    holders = {(block, expert): 0 for held in experts.values() for block in held for expert in pool}
    for held in experts.values():
        for block, ids in held.items():
            for expert in ids:
                holders[block, expert] += 1
    numbers = holders.values()
    none = sum(number == 0 for number in numbers)
    found = (
        f"an expert is held by {min(numbers)} to {max(numbers)} of {count_of(len(experts), 'client')}, "
        f"{sum(numbers) / len(numbers):.1f} on average"
    )
    return f"{found}; no client holds {none} of {count_of(len(numbers), 'expert')}." if none else f"{found}."


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in short form: `0-3 7 9-11`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
