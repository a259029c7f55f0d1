"""Records which client held and trained which experts: in the row of each round, and counted for the page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fftmoe.records import ClientUpdate, RoundPlan

RECORDED_CLIENTS = 50  # in each round, so that a row stays short for any cohort


class Usage:
    """Records which experts the clients of one round held and trained, while their updates pass through."""

    def __init__(self, plan: RoundPlan) -> None:
        self._held = {client.client_id: client.experts for client in plan.clients}
        self._recorded: dict[str, dict[str, list[str]]] = {}

    def watch(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """Yield the same updates, and record the experts of the first `RECORDED_CLIENTS` clients that have any."""
        for update in updates:
            held = self._held[update.client_id]
            if held and len(self._recorded) < RECORDED_CLIENTS:
                self._recorded[str(update.client_id)] = {
                    str(block): [as_bits(ids), as_bits(update.experts.get(block, ()))] for block, ids in held.items()
                }
            yield update

    def row(self) -> dict[str, Any]:
        """Return `experts`: client -> block -> [held, trained], each as the bits of a hexadecimal
        number (`as_bits`).
        """
        return {"experts": self._recorded} if self._recorded else {}


def as_bits(experts: Iterable[int]) -> str:
    """Return experts as a hexadecimal number in which expert m is bit m: experts 0, 1 and 4 are `13`."""
    return f"{sum(1 << expert for expert in experts):x}"


def from_bits(text: str) -> tuple[int, ...]:
    """Return the inverse of `as_bits`: the experts in ascending order."""
    bits = int(text, 16)
    return tuple(expert for expert in range(bits.bit_length()) if bits >> expert & 1)


@dataclass
class Counts:
    """Counts for one block in how many rounds each client held and trained each expert, and in how many it answered."""

    held: dict[int, dict[int, int]] = field(default_factory=dict)
    trained: dict[int, dict[int, int]] = field(default_factory=dict)
    rounds: dict[int, int] = field(default_factory=dict)


def count(rows: Sequence[Mapping[str, Any]]) -> dict[int, Counts]:
    """Return, by block, the counts over the run for every client that the rows name; empty if they name none."""
    blocks: dict[int, Counts] = {}
    for row in rows:
        for client, by_block in row.get("experts", {}).items():
            for block, (held, trained) in by_block.items():
                counts, c = blocks.setdefault(int(block), Counts()), int(client)
                counts.rounds[c] = counts.rounds.get(c, 0) + 1
                for of, bits in ((counts.held, held), (counts.trained, trained)):
                    for expert in from_bits(bits):
                        own = of.setdefault(c, {})
                        own[expert] = own.get(expert, 0) + 1
    return dict(sorted(blocks.items()))
