"""Which client held and trained which experts: noted round by round in the rows, counted for the page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fftmoe.records import ClientUpdate, RoundPlan

MOST_CLIENTS = 50  # of a round: a row stays short whatever the cohort


class Usage:
    """What the clients of one round held and trained, noted while their updates pass by."""

    def __init__(self, plan: RoundPlan) -> None:
        self._held = {client.client_id: client.experts for client in plan.clients}
        self._noted: dict[str, dict[str, list[str]]] = {}

    def watch(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """The same updates; of the first `MOST_CLIENTS` that have experts it is noted which."""
        for update in updates:
            held = self._held[update.client_id]
            if held and len(self._noted) < MOST_CLIENTS:
                self._noted[str(update.client_id)] = {
                    str(block): [as_bits(ids), as_bits(update.experts.get(block, ()))] for block, ids in held.items()
                }
            yield update

    def row(self) -> dict[str, Any]:
        """`experts`: client -> block -> [held, trained], each as the bits of a hexadecimal number (`as_bits`)."""
        return {"experts": self._noted} if self._noted else {}


def as_bits(experts: Iterable[int]) -> str:
    """Expert m is bit m: experts 0, 1 and 4 are `13`."""
    return f"{sum(1 << expert for expert in experts):x}"


def from_bits(text: str) -> tuple[int, ...]:
    """Inverse of `as_bits`, ascending."""
    bits = int(text, 16)
    return tuple(expert for expert in range(bits.bit_length()) if bits >> expert & 1)


@dataclass
class Counts:
    """Of one block: in how many rounds each client held and trained each expert, and in how many it answered."""

    held: dict[int, dict[int, int]] = field(default_factory=dict)
    trained: dict[int, dict[int, int]] = field(default_factory=dict)
    rounds: dict[int, int] = field(default_factory=dict)


def count(rows: Sequence[Mapping[str, Any]]) -> dict[int, Counts]:
    """Block -> counts over the run, of every client that the rows name; empty where they name none."""
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
