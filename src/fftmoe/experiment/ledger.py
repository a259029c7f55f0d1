"""What the messages of a run cost: bytes that were really serialised, seconds, and clients that did not answer."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fftmoe.engines.base import Engine, Fault, Reply
from fftmoe.records import ClientPlan, ClientUpdate, RoundPlan, Tensors, pack_plan, unpack_update
from fftmoe.server.rounds import together

IN_FLIGHT = 256  # clients


class Ledger:
    """Counts the bytes that were really serialised, per tier and direction, the seconds clients took, and faults."""

    def __init__(self) -> None:
        self.bytes_down = self.bytes_up = 0
        self.seconds = 0.0
        self.tiers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.faults: dict[str, int] = defaultdict(int)
        self._new_faults: list[Fault] = []

    @classmethod
    def resumed(cls, row: Mapping[str, Any]) -> "Ledger":
        """The ledger as it was when this row was written."""
        ledger = cls()
        ledger.bytes_down, ledger.bytes_up, ledger.seconds = row["bytes_down"], row["bytes_up"], row["client_seconds"]
        for name, sums in row["by_tier"].items():
            ledger.tiers[name].update(sums)
        ledger.faults.update(row.get("fault_counts", {}))
        return ledger

    def row(self) -> dict[str, Any]:
        """Totals since the start, and what went wrong since the last row."""
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
        """By tier: client-rounds so far, and their mean bytes and seconds."""
        return {
            name: {
                "client_rounds": sums["client_rounds"],
                **{key: sums[key] / sums["client_rounds"] for key in ("bytes_down", "bytes_up", "seconds")},
            }
            for name, sums in sorted(self.tiers.items())
        }

    def exchange(
        self,
        engine: Engine,
        plan: RoundPlan,
        download: Callable[[ClientPlan], Tensors],
        done: Callable[[int], None],
        at_once: int = 1,
        enough: int | None = None,
    ) -> Iterator[ClientUpdate]:
        """Send every client its plan and tensors, up to `at_once` together; yield the updates in `client_id` order.

        At most `IN_FLIGHT` clients have a message or a reply waiting, so that memory does not grow with the cohort.
        Clients that do not answer are noted, and so are those beyond the first `enough` (None: all) that do.
        """
        missing = enough
        for start in range(0, len(plan.clients), IN_FLIGHT):
            clients = plan.clients[start : start + IN_FLIGHT]
            messages = {client.client_id: pack_plan(client, download(client)) for client in clients}
            groups = [[(c.client_id, messages[c.client_id]) for c in group] for group in together(clients, at_once)]
            answers: dict[int, Reply | Fault] = {}
            waiting = iter(clients)
            client = next(waiting)
            for answer in engine.run_clients(groups, missing):
                self._note(answer, messages)
                if isinstance(answer, Fault) and answer.kind == "stale":
                    continue  # of an earlier round
                answers[answer.client_id] = answer
                done(answer.client_id)
                # Answers cut across the order of the clients: what comes early is kept as bytes until its turn.
                while client is not None and client.client_id in answers:
                    ready = answers.pop(client.client_id)
                    if isinstance(ready, Reply):
                        yield self._booked(client, len(messages[client.client_id]), ready)
                        missing = None if missing is None else missing - 1
                    client = next(waiting, None)
            assert client is None, "an engine answers for every client"

    def _note(self, answer: Reply | Fault, messages: Mapping[int, bytes]) -> None:
        if isinstance(answer, Fault):
            self.faults[answer.kind] += 1
            self._new_faults.append(answer)
        if isinstance(answer, Reply) or answer.kind in ("failed", "late", "spare"):  # they were sent their message
            self.bytes_down += len(messages[answer.client_id])

    def _booked(self, client: ClientPlan, bytes_down: int, reply: Reply) -> ClientUpdate:
        self.bytes_up += len(reply.message)
        self.seconds += reply.seconds
        took = {
            "client_rounds": 1,
            "bytes_down": bytes_down,
            "bytes_up": len(reply.message),
            "seconds": reply.seconds,
        }
        if client.task != "sums":  # which everyone gets with the largest budget: no round of that tier
            for key, value in took.items():
                self.tiers[client.budget.name][key] += value
        return unpack_update(reply.message)
