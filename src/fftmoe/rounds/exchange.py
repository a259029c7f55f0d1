"""What the messages of a run cost: bytes that were really serialised, seconds, and clients without a usable answer."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fftmoe.backbones import fingerprint
from fftmoe.engines.base import Engine, Fault, Reply
from fftmoe.records import ClientPlan, ClientUpdate, RoundPlan, Tensors, pack_plan
from fftmoe.server.expectation import Expectation
from fftmoe.server.plan import group_clients
from fftmoe.server.screening import Rejected, screen
from fftmoe.setup.compose import Experiment

IN_FLIGHT = 256  # clients
Expect = Callable[[ClientPlan, Tensors], Expectation]
"""From what a client is sent to what it may answer."""


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

    @property
    def new_faults(self) -> tuple[Fault, ...]:
        """Those since the last row."""
        return tuple(self._new_faults)

    def exchange(
        self,
        engine: Engine,
        plan: RoundPlan,
        download: Callable[[ClientPlan], Tensors],
        expect: Expect,
        done: Callable[[int], None],
        at_once: int = 1,
        enough: int | None = None,
    ) -> Iterator[ClientUpdate]:
        """Send every client its plan and tensors, up to `at_once` together; yield the updates in `client_id` order.

        At most `IN_FLIGHT` clients have a message or a reply waiting, so that memory does not grow with the cohort.
        Clients that do not answer are noted, and so are those whose answer is not what `expect` says of their plan and
        tensors, and those beyond the first `enough` (None: all) that do. Of each client one answer is looked at.
        """
        missing = enough
        for start in range(0, len(plan.clients), IN_FLIGHT):
            clients = plan.clients[start : start + IN_FLIGHT]
            sent = {client.client_id: _sent(client, download(client), expect) for client in clients}
            groups = [
                [(client.client_id, sent[client.client_id].message) for client in group]
                for group in group_clients(clients, at_once)
            ]
            answers: dict[int, ClientUpdate | None] = {}
            unanswered = set(sent)
            waiting = iter(clients)
            client = next(waiting)
            for answer in engine.run_clients(groups, missing):
                if isinstance(answer, Fault) and answer.kind == "stale":
                    self._note(answer)  # of an earlier round
                    continue
                if answer.client_id not in unanswered:
                    self._note(Fault(answer.client_id, "stale", "it has answered already, or was not asked"))
                    continue
                unanswered.discard(answer.client_id)
                answers[answer.client_id] = self._opened(answer, sent[answer.client_id])
                done(answer.client_id)
                # Answers cut across the order of the clients: what comes early waits for its turn.
                while client is not None and client.client_id in answers:
                    update = answers.pop(client.client_id)
                    if update is not None:
                        yield update
                        missing = None if missing is None else missing - 1
                    client = next(waiting, None)
            assert client is None, "an engine answers for every client"

    def _opened(self, answer: Reply | Fault, sent: "Sent") -> ClientUpdate | None:
        """The update in an answer, booked; None where there is none that can be used."""
        if isinstance(answer, Reply) or answer.kind in ("failed", "late", "spare"):  # they were sent their message
            self.bytes_down += len(sent.message)
        if isinstance(answer, Fault):
            return self._note(answer)
        self._book(answer, sent)
        try:
            return screen(answer.message, sent.expected)
        except Rejected as reason:
            return self._note(Fault(answer.client_id, "rejected", str(reason)))

    def _note(self, fault: Fault) -> None:
        self.faults[fault.kind] += 1
        self._new_faults.append(fault)

    def _book(self, reply: Reply, sent: "Sent") -> None:
        client = sent.expected.plan
        self.bytes_up += len(reply.message)
        self.seconds += reply.seconds
        took = {
            "client_rounds": 1,
            "bytes_down": len(sent.message),
            "bytes_up": len(reply.message),
            "seconds": reply.seconds,
        }
        if client.task != "sums":  # which everyone gets with the largest budget: no round of that tier
            for key, value in took.items():
                self.tiers[client.budget.name][key] += value


def expectations(experiment: Experiment) -> Expect:
    """What clients of this experiment may answer."""
    # Padding is no token. Images have more than `max_length` says, and all of them the same number.
    max_tokens = max(experiment.recipe.data.max_length, math.ceil(experiment.mean_tokens))
    backbone, max_norm = fingerprint(experiment.model), experiment.recipe.federation.max_update_norm
    measured = {experiment.task.metric: experiment.task.bounds}

    def expect(client: ClientPlan, tensors: Tensors) -> Expectation:
        # How many examples a site holds is for nobody else to count.
        num_examples = None if experiment.remote else len(experiment.partition.indices[client.client_id])
        method = experiment.method
        return Expectation.of(client, tensors, method, backbone, num_examples, max_tokens, max_norm, measured)

    return expect


class Sent(NamedTuple):
    """What a client was sent, and what may come back."""

    message: bytes
    expected: Expectation


def _sent(client: ClientPlan, tensors: Tensors, expect: Expect) -> Sent:
    return Sent(pack_plan(client, tensors), expect(client, tensors))
