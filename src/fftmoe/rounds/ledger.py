"""Counts what the messages of a run cost: bytes that were really serialised, seconds of clients, and faults by kind."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fftmoe.engines.base import Fault, Reply
from fftmoe.records import ClientPlan
from fftmoe.server.lengths import ROUNDS_REMEMBERED

UPDATE_NORM = "update_norm"  # in a row: the usual length of the round's changes


class Ledger:
    """Counts bytes and seconds per tier and direction, and the faults of clients, since the start of the run.

    It also remembers the usual length of a change in each of the last rounds, the newest last.
    """

    def __init__(self) -> None:
        self.bytes_down = self.bytes_up = 0
        self.seconds = 0.0
        self.tiers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.faults: dict[str, int] = defaultdict(int)
        self._new_faults: list[Fault] = []
        self.lengths: list[float] = []
        self._new_length: float | None = None

    @classmethod
    def resumed(cls, rows: Sequence[Mapping[str, Any]]) -> "Ledger":
        """Return the ledger as it was when the last of these rows of `metrics.jsonl` was written.

        It is empty if that row has no costs, or if there is none.
        """
        ledger, row = cls(), rows[-1] if rows else {}
        if "by_tier" not in row:  # the run keeps its costs to itself
            return ledger
        ledger.bytes_down, ledger.bytes_up, ledger.seconds = row["bytes_down"], row["bytes_up"], row["client_seconds"]
        for name, sums in row["by_tier"].items():
            ledger.tiers[name].update(sums)
        ledger.faults.update(row.get("fault_counts", {}))
        ledger.lengths = [row[UPDATE_NORM] for row in rows if UPDATE_NORM in row][-ROUNDS_REMEMBERED:]
        return ledger

    def row(self) -> dict[str, Any]:
        """Return the totals since the start and the faults since the last row, for the next row."""
        faults, self._new_faults = self._new_faults, []
        length, self._new_length = self._new_length, None
        return {
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "client_seconds": round(self.seconds, 3),
            "by_tier": {name: dict(sums) for name, sums in sorted(self.tiers.items())},
            **({"faults": [fault._asdict() for fault in faults]} if faults else {}),
            **({"fault_counts": dict(self.faults)} if self.faults else {}),
            **({UPDATE_NORM: length} if length is not None else {}),
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
        """Return the faults since the last row."""
        return tuple(self._new_faults)

    def note(self, fault: Fault) -> None:
        """Count a fault."""
        self.faults[fault.kind] += 1
        self._new_faults.append(fault)

    def usual(self, length: float) -> None:
        """Remember the usual length of this round's changes; six digits are the same in memory and in the row."""
        self._new_length = float(f"{length:.6g}")
        self.lengths = [*self.lengths, self._new_length][-ROUNDS_REMEMBERED:]

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
        if client.task not in (
            "sums",
            "validate",
        ):  # all clients answer these with the largest budget
            for key, value in took.items():
                self.tiers[client.budget.name][key] += value
