"""What the messages of a run cost: bytes that were really serialised, seconds of clients, and faults by kind."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fftmoe.engines.base import Fault, Reply
from fftmoe.records import ClientPlan


class Ledger:
    """Counts bytes and seconds per tier and direction, and the faults of clients, since the start of the run."""

    def __init__(self) -> None:
        self.bytes_down = self.bytes_up = 0
        self.seconds = 0.0
        self.tiers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.faults: dict[str, int] = defaultdict(int)
        self._new_faults: list[Fault] = []

    @classmethod
    def resumed(cls, row: Mapping[str, Any]) -> "Ledger":
        """Return the ledger as it was when this row of `metrics.jsonl` was written; empty if the row has no costs."""
        ledger = cls()
        if "by_tier" not in row:  # the run keeps its costs to itself
            return ledger
        ledger.bytes_down, ledger.bytes_up, ledger.seconds = row["bytes_down"], row["bytes_up"], row["client_seconds"]
        for name, sums in row["by_tier"].items():
            ledger.tiers[name].update(sums)
        ledger.faults.update(row.get("fault_counts", {}))
        return ledger

    def row(self) -> dict[str, Any]:
        """Return the totals since the start and the faults since the last row, for the next row."""
        faults, self._new_faults = self._new_faults, []
        return {
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "client_seconds": round(self.seconds, 3),
            "by_tier": {name: dict(sums) for name, sums in sorted(self.tiers.items())},
            **({"faults": [fault._asdict() for fault in faults]} if faults else {}),
            **({"fault_counts": dict(self.faults)} if self.faults else {}),
        }

    def per_client_round(self) -> dict[str, dict[str, float]]:
        """Return, by tier, how often a client took part so far, and its mean bytes and seconds."""
        return {
            name: {
                "client_rounds": sums["client_rounds"],
                **{key: sums[key] / sums["client_rounds"] for key in ("bytes_down", "bytes_up", "seconds")},
            }
            for name, sums in sorted(self.tiers.items())
        }

    @property
    def new_faults(self) -> tuple[Fault, ...]:
        """The faults since the last row."""
        return tuple(self._new_faults)

    def note(self, fault: Fault) -> None:
        """Count a fault."""
        self.faults[fault.kind] += 1
        self._new_faults.append(fault)

    def sent(self, num_bytes: int) -> None:
        """Count a message that went to a client."""
        self.bytes_down += num_bytes

    def received(self, client: ClientPlan, bytes_down: int, reply: Reply) -> None:
        """Count a client's reply, and what its whole part in the round took."""
        self.bytes_up += len(reply.message)
        self.seconds += reply.seconds
        took = {
            "client_rounds": 1,
            "bytes_down": bytes_down,
            "bytes_up": len(reply.message),
            "seconds": reply.seconds,
        }
        if client.task != "sums":  # feature statistics are asked of all clients with the largest budget, in no tier
            for key, value in took.items():
                self.tiers[client.budget.name][key] += value
