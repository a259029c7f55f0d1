"""Runs clients on Flower's nodes. Flower delivers bytes; cohorts, budgets and aggregation are fftmoe's own.

Each message goes out once per client and round. Every client of a round ends with a reply or a fault, at the latest
when the deadline passes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fftmoe.engines.base import Fault, Group, Quota, Reply
from fftmoe.engines.failures import described_error
from fftmoe.engines.flower_messages import (
    JobValues,
    failure_of,
    pack_query,
    pack_request,
    unpack_profile,
    unpack_reply,
)
from fftmoe.engines.memory import peak_rss_mib

POLL_SECONDS = 0.05  # between two looks for answers
MOST_REASON_CHARACTERS = 500  # of the reason that a node gives
Content = TypeVar("Content")


class Unreadable(str):
    """Says why an answer cannot be read: no honest node sends such an answer."""


def ask(
    grid: Grid, nodes: Sequence[int], job: JobValues, seconds: float, own: bool = False
) -> dict[int, Mapping[str, Any] | str]:
    """Ask nodes for their profiles; returns node -> its profile, why it cannot serve this job, or `Unreadable`.

    Nodes that do not answer within this many seconds are missing from the result. `own`: see `FlowerEngine`.
    """
    ends = time.monotonic() + seconds
    messages = [
        Message(pack_query(job), dst_node_id=node, message_type=MessageType.QUERY, ttl=seconds) for node in nodes
    ]
    waiting, found = set(filter(None, grid.push_messages(messages))), {}
    while waiting and time.monotonic() < ends:
        answers = list(grid.pull_messages(waiting))
        for message in answers:
            waiting.discard(message.metadata.reply_to_message_id)
            found[message.metadata.src_node_id] = read_answer(message, unpack_profile, own)
        if not answers:
            time.sleep(POLL_SECONDS)
    return found


def read_answer(message: Message, unpack: Callable[[RecordDict], Content], own: bool) -> Content | str:
    """Return the content of a node's answer, or why there is none."""
    try:
        reason = _reason_of(message.error, own) if message.has_error() else failure_of(message.content, own)
        if reason is None:
            return unpack(message.content)
    except Exception as error:  # invalid records can raise anything
        return Unreadable(f"its answer cannot be read ({type(error).__name__})")
    plain = "".join(c if c.isprintable() else " " for c in reason)  # a terminal may show it
    return plain[:MOST_REASON_CHARACTERS] or "no reason given"


def _reason_of(error: Error, own: bool) -> str:
    return str(error.reason) if own else described_error(error.code, str(error.reason))


@dataclass
class FlowerEngine:
    """Runs clients through a Flower grid.

    Attributes:
        own: the nodes are the same person's, as in a simulation, so what they say about a failure is shown. What nodes
            of other organisations say is reduced to codes.
        nodes: client_id -> the node that serves it.
        job: what a node must know to serve this run. It goes with every message, because a node may be a new process.
        deadline_seconds: of an exchange, after which the engine stops waiting.
    """

    grid: Grid
    nodes: Mapping[int, int]
    job: JobValues
    deadline_seconds: float
    own: bool = False
    _overdue: dict[str, Group] = field(default_factory=dict)  # messages of rounds that are over
    _peaks: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def reliable(self) -> bool:
        """Return False: nodes may leave at any time."""
        return False

    def absent(self) -> frozenset[int]:
        """Return the clients whose nodes are not connected."""
        connected = set(self.grid.get_node_ids())
        return frozenset(client_id for client_id, node in self.nodes.items() if node not in connected)

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        """See `Engine`."""
        ends = time.monotonic() + self.deadline_seconds
        waiting = self._send(groups)
        sent = {group[0][0] for group in waiting.values()}
        yield from (
            Fault(client_id, "failed", "its message could not be handed to Flower")
            for group in groups
            if group[0][0] not in sent
            for client_id, _ in group
        )
        while waiting and time.monotonic() < ends and not (quota is not None and quota.is_met):
            answers = list(self.grid.pull_messages([*waiting, *self._overdue]))
            for message in answers:
                group = waiting.pop(message.metadata.reply_to_message_id, None)
                if group is None:
                    yield from self._stale(message)
                    continue
                yield from self._read(message, group)
            if not answers:
                time.sleep(POLL_SECONDS)
        yield from self._give_up(waiting, is_late=time.monotonic() >= ends)

    def close(self) -> None:
        """Do nothing: the grid belongs to the caller."""

    def peak_rss_mib(self) -> float:
        """Return the peak of this process, plus those of the processes of a simulation's nodes, which report theirs."""
        return peak_rss_mib() + sum(self._peaks.values())

    def _send(self, groups: Sequence[Group]) -> dict[str, Group]:
        """Return the groups whose messages Flower accepted, by the ids of the messages."""
        messages = [
            Message(
                pack_request(self.job, group),
                dst_node_id=self.nodes[group[0][0]],
                message_type=MessageType.TRAIN,
                ttl=self.deadline_seconds,
            )
            for group in groups
        ]
        ids = list(self.grid.push_messages(messages))
        return {i: group for i, group in zip(ids, groups, strict=False) if i}

    def _read(self, message: Message, group: Group) -> Iterator[Reply | Fault]:
        """Yield a reply or a fault for each client of the group, from their node's answer."""
        asked = [client_id for client_id, _ in group]
        answer = read_answer(message, unpack_reply, self.own)
        if not isinstance(answer, str):
            replies, cost = answer
            if [client_id for client_id, _ in replies] == asked:
                self._peaks[message.metadata.src_node_id, cost.process] = cost.peak_rss_mib
                yield from (Reply(client_id, reply, cost.seconds / len(group)) for client_id, reply in replies)
                return
            answer = f"its node answered for other clients than {', '.join(map(str, asked))}"
        yield from (Fault(client_id, "failed", answer) for client_id in asked)

    def _stale(self, message: Message) -> Iterator[Fault]:
        group = self._overdue.pop(message.metadata.reply_to_message_id, ())
        if message.has_error():
            return  # Flower gives up on the message, so there was no answer at all
        yield from (Fault(client_id, "stale", "its answer came after its round") for client_id, _ in group)

    def _give_up(self, waiting: Mapping[str, Group], is_late: bool) -> Iterator[Fault]:
        """Yield a fault for each client that has not answered; a later answer will be stale."""
        kind, reason = "spare", "enough others had answered"
        if is_late:
            kind, reason = "late", f"no answer within {self.deadline_seconds:g} s"
        self._overdue |= waiting
        yield from (Fault(client_id, kind, reason) for group in waiting.values() for client_id, _ in group)
