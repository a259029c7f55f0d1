"""Exchanges the messages of a round: plans go out, and replies are screened as they arrive and put in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from fftmoe.engines.base import Engine, Fault, Quota, Reply
from fftmoe.records import ClientPlan, ClientUpdate, RoundPlan, Tensors, pack_plan
from fftmoe.rounds.comparison import AnswerLengths
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.expectation import Expectation
from fftmoe.server.plan import group_clients
from fftmoe.server.screening import Rejected, screen

IN_FLIGHT = 256  # clients with a message or a reply in memory, so that memory does not grow with the cohort

Download = Callable[[ClientPlan], Tensors]
"""From a client's plan to the tensors that it is sent."""

Expect = Callable[[ClientPlan, Tensors], Expectation]
"""From what a client is sent to what an honest client may answer."""


class Sent(NamedTuple):
    """Holds the message that a client was sent, and what may come back."""

    message: bytes
    expected: Expectation


class UnreadReply(NamedTuple):
    """Holds a client's reply, not yet read, and what an honest client may have answered."""

    client_id: int
    message: bytes
    expected: Expectation


Arrival = tuple[int, UnreadReply | None]
"""A client, and its reply; None if it has none."""


@dataclass(frozen=True)
class Exchange:
    """Sends the plans of a round over an engine and yields the replies.

    Attributes:
        expect: what an honest client may answer.
        ledger: counts bytes, seconds and faults.
        clients_per_batch: at most so many clients train in one batch.
        client_done: called with the id of every client that is done, however it ended.
    """

    engine: Engine
    expect: Expect
    ledger: Ledger
    clients_per_batch: int = 1
    client_done: Callable[[int], None] = lambda _: None

    def __call__(self, plan: RoundPlan, download: Download, quota: Quota) -> Iterator[Arrival]:
        """Send every client its plan and tensors; yield each client once, as its reply arrives or fails to.

        Clients without a reply are noted in the ledger, and so are second replies and late ones.
        """
        for start in range(0, len(plan.clients), IN_FLIGHT):
            clients = plan.clients[start : start + IN_FLIGHT]
            sent = {client.client_id: self._sent(client, download(client)) for client in clients}
            yield from self._arrivals(clients, sent, quota)

    def updates(self, plan: RoundPlan, download: Download, enough: int | None = None) -> Iterator[ClientUpdate]:
        """Exchange the messages of a plan and screen the replies; wait for `enough` valid ones, or for all clients."""
        quota = Quota(enough)
        return screen_replies(plan, self(plan, download, quota), quota, self.ledger)

    def _sent(self, client: ClientPlan, tensors: Tensors) -> Sent:
        return Sent(pack_plan(client, tensors), self.expect(client, tensors))

    def _arrivals(self, clients: Sequence[ClientPlan], sent: Mapping[int, Sent], quota: Quota) -> Iterator[Arrival]:
        """Yield each client with its answer, in the order of arrival; None for a client that has none."""
        groups = [
            [(client.client_id, sent[client.client_id].message) for client in group]
            for group in group_clients(clients, self.clients_per_batch)
        ]
        unanswered = set(sent)
        for answer in self.engine.run_clients(groups, quota):
            if isinstance(answer, Fault) and answer.kind == "stale":
                self.ledger.note(answer)  # it belongs to an earlier round
            elif answer.client_id not in unanswered:
                self.ledger.note(Fault(answer.client_id, "stale", "it has answered already, or was not asked"))
            else:
                unanswered.discard(answer.client_id)
                found = self._booked(answer, sent[answer.client_id])
                self.client_done(answer.client_id)
                yield answer.client_id, found
        assert not unanswered, "an engine answers for every client"

    def _booked(self, answer: Reply | Fault, sent: Sent) -> UnreadReply | None:
        """Enter an answer in the ledger."""
        if isinstance(answer, Reply) or answer.kind in ("failed", "late", "spare"):  # they were sent their message
            self.ledger.sent(len(sent.message))
        if isinstance(answer, Fault):
            self.ledger.note(answer)
            return None
        self.ledger.received(sent.expected.plan, len(sent.message), answer)
        return UnreadReply(answer.client_id, answer.message, sent.expected)


def screen_replies(
    plan: RoundPlan, arrivals: Iterable[Arrival], quota: Quota, ledger: Ledger
) -> Iterator[ClientUpdate]:
    """Yield, in `client_id` order, the updates of the answers that an honest client could have sent.

    The other answers are noted as faults. Each is screened when it arrives, so that only valid ones fill the quota.
    """
    comparison = AnswerLengths(plan.clients[0].task if plan.clients else "train", ledger)
    screened = _screened(arrivals, quota, ledger, comparison)
    return comparison.within(in_client_order([client.client_id for client in plan.clients], screened))


def _screened(
    arrivals: Iterable[Arrival], quota: Quota, ledger: Ledger, comparison: AnswerLengths
) -> Iterator[tuple[int, ClientUpdate | None]]:
    for client_id, answer in arrivals:
        update = None
        if answer is not None:
            try:
                update = screen(answer.message, answer.expected)
                quota.count(comparison.arrived(update, answer.expected))
            except Rejected as reason:
                ledger.note(Fault(client_id, "rejected", str(reason)))
        yield client_id, update


Item = TypeVar("Item")


def in_client_order(client_ids: Sequence[int], arrivals: Iterable[tuple[int, Item | None]]) -> Iterator[Item]:
    """Yield what arrives in the order of `client_ids`: what comes early waits for its turn; None is left out."""
    waiting: dict[int, Item | None] = {}
    upcoming = iter(client_ids)
    turn = next(upcoming, None)
    for client_id, item in arrivals:
        waiting[client_id] = item
        while turn in waiting:
            found = waiting.pop(turn)
            if found is not None:
                yield found
            turn = next(upcoming, None)
