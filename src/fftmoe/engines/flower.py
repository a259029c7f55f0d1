"""Clients on Flower's nodes. Cohorts, budgets and aggregation stay ours: Flower delivers bytes.

A message goes out once per client and round, and its answer carries the metrics. Every client of a round ends as a
reply or as a fault, at the latest at the deadline.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fftmoe.engines.base import Fault, Group, Reply
from fftmoe.engines.flower_messages import Job, failure_of, pack_query, pack_request, unpack_profile, unpack_reply
from fftmoe.engines.memory import peak_rss_mib

POLL_SECONDS = 0.05  # between looks for answers
MOST_WORDS = 500  # characters of a node's reason
Content = TypeVar("Content")


def ask(grid: Grid, nodes: Sequence[int], job: Job, seconds: float) -> dict[int, Mapping[str, Any] | str]:
    """Ask these nodes what they are; by node its profile, or why it cannot serve this job.

    Nodes that have not answered after so many seconds are left out.
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
            found[message.metadata.src_node_id] = _read(message, unpack_profile)
        if not answers:
            time.sleep(POLL_SECONDS)
    return found


def _read(message: Message, unpack: Callable[[RecordDict], Content]) -> Content | str:
    """What a node's answer holds, or why there is nothing in it."""
    try:
        reason = message.error.reason if message.has_error() else failure_of(message.content)
        if reason is None:
            return unpack(message.content)
    except Exception as error:  # whatever records that a node made up can cause
        reason = f"its answer cannot be read ({type(error).__name__})"
    plain = "".join(c if c.isprintable() else " " for c in reason)  # it will be shown on a terminal
    return plain[:MOST_WORDS] or "no reason given"


@dataclass
class FlowerEngine:
    """Runs clients through a Flower grid.

    Attributes:
        nodes: client_id -> the node that serves it.
        job: what nodes must know to serve this run; it goes with every message, since a node may start anew for each.
        deadline_seconds: of an exchange, after which nobody is waited for.
    """

    grid: Grid
    nodes: Mapping[int, int]
    job: Job
    deadline_seconds: float
    _overdue: dict[str, Group] = field(default_factory=dict)  # messages of rounds that are over
    _peaks: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def reliable(self) -> bool:
        """Nodes come and go."""
        return False

    def absent(self) -> frozenset[int]:
        """The clients whose nodes are not connected."""
        connected = set(self.grid.get_node_ids())
        return frozenset(client_id for client_id, node in self.nodes.items() if node not in connected)

    def run_clients(self, groups: Sequence[Group], enough: int | None = None) -> Iterator[Reply | Fault]:
        """See `Engine`."""
        ends = time.monotonic() + self.deadline_seconds
        waiting = self._send(groups)
        yield from (
            Fault(client_id, "failed", "its message could not be handed to Flower")
            for group in self._unsent(groups, waiting)
            for client_id, _ in group
        )
        replies = 0
        while waiting and time.monotonic() < ends and (enough is None or replies < enough):
            answers = list(self.grid.pull_messages([*waiting, *self._overdue]))
            for message in answers:
                group = waiting.pop(message.metadata.reply_to_message_id, None)
                if group is None:
                    yield from self._stale(message)
                    continue
                for answer in self._read(message, group):
                    replies += isinstance(answer, Reply)
                    yield answer
            if not answers:
                time.sleep(POLL_SECONDS)
        kind, reason = (
            ("late", f"no answer within {self.deadline_seconds:g} s")
            if time.monotonic() >= ends
            else (
                "spare",
                "enough others had answered",
            )
        )
        self._overdue |= waiting
        yield from (Fault(client_id, kind, reason) for group in waiting.values() for client_id, _ in group)

    def close(self) -> None:
        """Nothing to end: the grid belongs to whoever gave it."""

    def peak_rss_mib(self) -> float:
        """Of this process, and of the nodes' processes that answered, wherever they are."""
        return peak_rss_mib() + sum(self._peaks.values())

    def _send(self, groups: Sequence[Group]) -> dict[str, Group]:
        """The messages that were taken, by their ids."""
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

    @staticmethod
    def _unsent(groups: Sequence[Group], waiting: Mapping[str, Group]) -> list[Group]:
        sent = {group[0][0] for group in waiting.values()}
        return [group for group in groups if group[0][0] not in sent]

    def _read(self, message: Message, group: Group) -> Iterator[Reply | Fault]:
        """What a node's answer says of each client of the group."""
        asked = [client_id for client_id, _ in group]
        answer = _read(message, unpack_reply)
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
            return  # Flower gives up on the message: no answer came at all
        yield from (Fault(client_id, "stale", "its answer came after its round") for client_id, _ in group)
